"""Builds drrkit._C: CPU kernels always, CUDA kernels where torch and nvcc have CUDA.

DRRKIT_CUDA=0 builds without CUDA, DRRKIT_CUDA=1 insists on it; TORCH_CUDA_ARCH_LIST chooses the
architectures; DRRKIT_SANITIZE=1 compiles for the address and undefined-behaviour sanitizers (make
sanitize runs the tests that way). All metadata is in pyproject.toml.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.egg_info import egg_info

try:
    import torch
    from torch.utils import cpp_extension
except ImportError as error:
    raise SystemExit(
        "drrkit builds against the torch that will run it, and torch is not importable here "
        f"({error}). Install torch first, then drrkit with --no-build-isolation."
    ) from error
try:
    import pybind11
except ImportError as error:
    raise SystemExit(
        "drrkit needs pybind11 to build: pip install pybind11 ninja setuptools wheel"
    ) from error

OLDEST_TORCH = re.search(r'"torch>=([\d.]+)"', Path("pyproject.toml").read_text()).group(1)
DEFAULT_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
CPU_SOURCES = sorted(map(str, Path("csrc").rglob("*.cpp")))
CUDA_SOURCES = sorted(map(str, Path("csrc").rglob("*.cu")))
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
    # The stable ABI as of that torch, a byte each of major and minor version.
    "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*map(int, OLDEST_TORCH.split("."))),
    # Error messages hold __FILE__: the same wherever it is built, and no folder of the builder's.
    f"-ffile-prefix-map={Path.cwd()}/=",
    f"-ffile-prefix-map={Path(torch.__file__).parent}/include/=",
]
LINK_FLAGS = []
if os.environ.get("DRRKIT_SANITIZE") == "1":
    CHECKS = "address,undefined,float-cast-overflow"
    SANITIZE = [f"-fsanitize={CHECKS}", f"-fno-sanitize-recover={CHECKS}"]
    # Whatever the kernels call is inlined, and GCC's register allocator needs ten minutes for the
    # checks in what comes of it. Without optimisation, and with the address checks as calls, a
    # kernel compiles in half a minute.
    CXX_FLAGS += ["-O0", "-g1", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS", *SANITIZE]
    CXX_FLAGS += ["-fno-wrapv"]  # Python's own flags define what signed numbers do on overflow
    CXX_FLAGS += ["--param=asan-instrumentation-with-call-threshold=0"]
    LINK_FLAGS += SANITIZE


def correct_cuda_home() -> None:
    """torch takes the folder of the nvcc on the PATH; that may be a script that calls another."""
    if cpp_extension.CUDA_HOME is None or {"CUDA_HOME", "CUDA_PATH"} & set(os.environ):
        return
    command = [Path(cpp_extension.CUDA_HOME, "bin", "nvcc"), "--dryrun", "any.cu"]
    try:
        plan = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    except OSError:
        return
    found = re.search(r"_HERE_=(.+)", plan)
    if found and Path(found.group(1), "..", "include", "cuda_runtime.h").is_file():
        cpp_extension.CUDA_HOME = str(Path(found.group(1)).parent)


def nvcc_version() -> str | None:
    """The release that nvcc reports, e.g. "13.0", or None where there is no nvcc."""
    if cpp_extension.CUDA_HOME is None:
        return None
    nvcc = Path(cpp_extension.CUDA_HOME, "bin", "nvcc")
    try:
        text = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else None


def choose_cuda() -> bool:
    """Whether to build the CUDA kernels; never asks for a visible GPU: build machines lack it."""
    wanted = os.environ.get("DRRKIT_CUDA")
    if wanted not in (None, "", "0", "1"):
        raise SystemExit(f"DRRKIT_CUDA must be 0 or 1, got {wanted!r}")
    torch_cuda, nvcc = torch.version.cuda, nvcc_version()
    missing = []
    if torch_cuda is None:
        missing.append(f"torch {torch.__version__} is a CPU build")
    if nvcc is None:
        missing.append("nvcc was not found (set CUDA_HOME)")
    if torch_cuda and nvcc and torch_cuda.split(".")[0] != nvcc.split(".")[0]:
        missing.append(f"torch {torch.__version__} has CUDA {torch_cuda} but nvcc is {nvcc}")
    if wanted == "1" and missing:
        raise SystemExit("DRRKIT_CUDA=1, but " + "; ".join(missing))
    if wanted in (None, "") and torch_cuda and missing:
        print(f"drrkit: building for CPU only: {'; '.join(missing)}", file=sys.stderr)
    return wanted != "0" and not missing


class NameWithCuda(egg_info):
    """Appends +cu13 to the version of what is built with CUDA 13: a CPU build has no such label.

    An sdist has none either: it holds no binary.
    """

    def finalize_options(self) -> None:
        if WITH_CUDA and "sdist" not in sys.argv:
            self.tag_build = f"+cu{torch.version.cuda.split('.')[0]}"
        super().finalize_options()


class BuildWithRecord(cpp_extension.BuildExtension):
    """Leaves drrkit/_build.py beside the binary: what it was built for, loadable or not."""

    def run(self) -> None:
        super().run()
        root = Path("." if self.inplace else self.build_lib)
        record = {
            "torch": torch.__version__,
            "oldest_torch": OLDEST_TORCH,
            "cuda": torch.version.cuda if WITH_CUDA else None,
            "nvcc": nvcc_version() if WITH_CUDA else None,
            "architectures": os.environ["TORCH_CUDA_ARCH_LIST"] if WITH_CUDA else None,
            "python": sys.version.split()[0],
        }
        lines = ['"""Written by setup.py: what drrkit._C was built for."""\n\n']
        lines += [f"{name.upper()} = {value!r}\n" for name, value in record.items()]
        (root / "drrkit" / "_build.py").write_text("".join(lines))


if torch.__version__ < torch.torch_version.TorchVersion(OLDEST_TORCH):
    raise SystemExit(f"drrkit needs torch >= {OLDEST_TORCH}, got torch {torch.__version__}")
correct_cuda_home()
WITH_CUDA = choose_cuda()
sources = CPU_SOURCES + (CUDA_SOURCES if WITH_CUDA else [])
headers = sorted(str(path) for path in Path("csrc").rglob("*") if path.suffix in (".h", ".cuh"))
options = {
    "include_dirs": [pybind11.get_include()],
    "depends": headers,
    "extra_compile_args": {"cxx": CXX_FLAGS},
    "extra_link_args": LINK_FLAGS,
}
if WITH_CUDA:
    COMPRESS = ["--compress-mode=size"] if float(nvcc_version() or 0) >= 12.8 else []
    # torch's own default asks the visible GPUs and fails on an empty list where there are none.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
    options["extra_compile_args"] = {
        "cxx": [*CXX_FLAGS, "-DDRRKIT_CUDA"],
        # Architectures in parallel; the binary compressed, which seven of them need.
        "nvcc": ["-O3", "-lineinfo", "--expt-relaxed-constexpr", "--threads=2", *COMPRESS],
    }
    extension = cpp_extension.CUDAExtension("drrkit._C", sources, **options)
else:
    extension = cpp_extension.CppExtension("drrkit._C", sources, **options)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildWithRecord, "egg_info": NameWithCuda},
)
