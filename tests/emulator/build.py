"""Compiles the kernels and the emulator into a library, once for each state of the sources."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "csrc"

FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-Wno-unknown-pragmas"]  # nvcc's #pragma unroll
FLAGS += ["-Wno-unused-parameter", "-U_FORTIFY_SOURCE"]  # fibers jump to other stacks
# Locals that nobody set hold a pattern, so that a kernel cannot get away with reading them.
PATTERN = "-ftrivial-auto-var-init=pattern"
# What CUDA inlines, GCC inlines: its register allocator takes forever over the checks in what comes
# of it, so that they are compiled without optimisation, and those of addresses as calls.
CHECKS = "address,undefined,float-cast-overflow"
SANITIZE = [f"-fsanitize={CHECKS}", f"-fno-sanitize-recover={CHECKS}", "-fno-omit-frame-pointer"]
SANITIZE += ["-O0", "--param=asan-instrumentation-with-call-threshold=0"]

# The lines that only a GPU executes, with the errors that it may make (csrc/cuda/adjoint/
# arithmetic.h), and products and sums contracted as nvcc does.
DEVICE = ["-DDRRKIT_EMULATED_DEVICE", "-include", "cuda_runtime.h"]
CONTRACT = ["-mfma", "-ffp-contract=fast"]


class EmulatorBuildError(RuntimeError):
    """There is no C++ compiler, or it refused a source."""


def compiler() -> str:
    """The C++ compiler: $CXX, g++ or c++."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and shutil.which(name):
            return name
    raise EmulatorBuildError("the CUDA kernels are tested with a C++ compiler: none was found")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EmulatorBuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _flags(cxx: str, sanitize: bool, device: bool) -> list[str]:
    probe = [cxx, PATTERN, "-E", "-x", "c++", os.devnull]
    pattern = [PATTERN] if subprocess.run(probe, capture_output=True).returncode == 0 else []
    fused = CONTRACT if torch.backends.cpu.get_cpu_capability().startswith("AVX") else []
    return FLAGS + pattern + (SANITIZE if sanitize else []) + (DEVICE + fused if device else [])


def _sources() -> list[Path]:
    return sorted((NATIVE / "cuda").rglob("*.cu")) + sorted(HERE.glob("*.cpp"))


def _state(command: list[str]) -> str:
    """A name for the compiler, its flags and every file that takes part."""
    digest = hashlib.sha256(" ".join(command).encode())
    digest.update(subprocess.run([command[0], "--version"], capture_output=True).stdout)
    endings = (".h", ".cuh", ".cu", ".cpp")
    for root in (NATIVE, HERE):
        for path in sorted(p for p in root.rglob("*") if p.suffix in endings):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build(*, sanitize: bool = False, device: bool = False) -> Path:
    """Compile, unless that has been done; returns the library.

    sanitize  compile for the address and undefined-behaviour sanitizers: the process that loads the
              library must have started with their runtimes preloaded
    device    execute what only a GPU executes, at its worst (make device-arithmetic)
    """
    cxx = compiler()
    command = [cxx, *_flags(cxx, sanitize, device)]
    folder = Path(tempfile.gettempdir()) / f"drrkit-cuda-emulation-{os.getuid()}"
    target = folder / f"{_state(command)}.so"
    if target.exists():
        return target
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        target.with_suffix(".lock").open("w") as lock,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process compiles, the others wait for it
        if target.exists():
            return target
        objects = [Path(scratch) / f"{i}.o" for i in range(len(_sources()))]
        compile_ = [*command, f"-I{HERE / 'include'}", f"-I{HERE}", "-x", "c++", "-c"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                pool.submit(_run, [*compile_, str(source), "-o", str(made)])
                for source, made in zip(_sources(), objects, strict=True)
            ]
            for job in jobs:
                job.result()
        whole = Path(scratch) / "library.so"
        _run([*command, "-shared", *map(str, objects), "-o", str(whole)])
        os.replace(whole, target)  # whole or not at all
    return target


@functools.cache
def _library_or_error() -> ctypes.CDLL | EmulatorBuildError:
    try:
        return ctypes.CDLL(os.environ.get("DRRKIT_EMULATION") or str(build()))
    except EmulatorBuildError as error:
        return error


def library() -> ctypes.CDLL:
    """The library, built on first use, once; DRRKIT_EMULATION names a ready one."""
    found = _library_or_error()
    if isinstance(found, EmulatorBuildError):
        raise EmulatorBuildError(*found.args)  # a new one: the old one would collect tracebacks
    return found
