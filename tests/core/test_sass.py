"""What nvcc makes of the kernel that reads textures: sm_90's instructions, with no GPU to run them.

A warp hides the latency of its texture fetches only where several are under way. That takes two
things that no test of results sees: that the compiler knows all lanes to fetch from one texture
(else each fetch stands in a loop over the lanes' handles, closed by a `BRA.U.ANY`), and that it
issues four before it adds up the first.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import NO_NVCC

NATIVE = Path(__file__).resolve().parents[2] / "csrc"
NO_NVDISASM = "nvdisasm is missing: pip install nvidia-cuda-nvdisasm"
UNROLLED = 4
"""Fetches under way at a time: the `#pragma unroll` of csrc/cuda/textures.cu."""


def nvdisasm() -> str | None:
    """The disassembler on the PATH, or the one that pip installs."""
    try:
        import nvidia

        places = [str(p) for folder in nvidia.__path__ for p in Path(folder).glob("*/bin")]
    except ImportError:
        places = []
    return shutil.which("nvdisasm") or shutil.which("nvdisasm", path=":".join(places))


def compiled(source: Path, kernel: str, folder: Path) -> tuple[str, list[str]]:
    """What ptxas says of a kernel's registers, and its instructions, labels among them."""
    nvcc, disassembler = shutil.which("nvcc"), nvdisasm()
    if nvcc is None:
        pytest.skip(NO_NVCC)
    if disassembler is None:
        pytest.skip(NO_NVDISASM)
    binary = folder / "kernel.cubin"
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-arch=sm_90", "-Xptxas=-v", "-cubin"]
    words = subprocess.run(
        [nvcc, *flags, "-o", binary, source], capture_output=True, text=True, check=True
    ).stderr
    found = re.search(rf"Function properties for \S*{kernel}\S*\n(.*\n.*)", words)
    assert found, words
    text = subprocess.run(
        [disassembler, "-c", binary], capture_output=True, text=True, check=True
    ).stdout
    own = next(part for part in text.split("\n.text.")[1:] if kernel in part.split(":")[0])
    lines = (re.sub(r"/\*.*?\*/", "", line).strip(" ;\t") for line in own.splitlines())
    return found.group(1), [line for line in lines if line and not line.startswith("//")]


def straight_runs(instructions: list[str]) -> list[list[str]]:
    """The instructions between labels and branches."""
    runs: list[list[str]] = [[]]
    for line in instructions:
        if line.endswith(":") or re.search(r"\b(BRA|BRX|EXIT|RET|CALL|BSYNC|WARPSYNC)\b", line):
            runs.append([])
        else:
            runs[-1].append(line)
    return runs


def under_way(run: list[str]) -> int:
    """The most fetches that a run has issued before it reads what one of them brought."""
    most, targets = 0, []
    for line in run:
        if any(re.search(rf"\b{target}\b", line.partition(",")[2]) for target in targets):
            targets = []
        if fetch := re.search(r"\bTEX\S* RZ, (R\d+),", line):
            targets.append(fetch.group(1))
            most = max(most, len(targets))
    return most


@pytest.mark.slow
def test_texture_fetches_of_a_warp_are_under_way_together(tmp_path: Path) -> None:
    source = NATIVE / "cuda" / "textures.cu"
    registers, instructions = compiled(source, "textures_kernel", tmp_path)
    fetches = [line for line in instructions if re.search(r"\bTEX\b", line)]
    assert fetches and not [line for line in instructions if "BRA.U.ANY" in line]
    together = [run for run in straight_runs(instructions) if under_way(run) >= UNROLLED]
    # Volumes whose bricks are looked up, and others, along each of three axes.
    assert len(together) >= 6
    assert "0 bytes spill stores, 0 bytes spill loads" in registers
    assert int(re.search(r"Used (\d+) registers", registers).group(1)) <= 64
