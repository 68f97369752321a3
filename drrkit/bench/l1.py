"""How many float32 values a second come out of the first cache: ceilings for fetches."""

from __future__ import annotations

import time

import numpy as np
import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with torch for CUDA
    triton = None

SHORT, LONG = 256, 2048  # floats of a vector: two long ones fill 16 KiB
REPEATS = 1000
TABLE, BLOCK, ROUNDS = 4096, 1024, 512  # 16 KiB; elements a program; a quarter of their loads
STRIDE = 33 * 32  # elements between two loads: whole cache lines, so that a warp reads one


def cpu_loads_per_s() -> float:
    """Of one core, by a BLAS dot product of two vectors in the first cache.

    The slope between two lengths: what a call costs besides does not count. Contiguous vectors in
    full width: gathers, as a projector needs them, are slower, so this is a ceiling. No BLAS uses
    a second thread for so few numbers.
    """
    a, b = np.ones(LONG, np.float32), np.ones(LONG, np.float32)
    seconds = {n: min(_dots(a[:n], b[:n]) for _ in range(15)) for n in (SHORT, LONG)}
    slope = (seconds[LONG] - seconds[SHORT]) / (LONG - SHORT)
    return 2.0 / max(slope, 1e-12)


def cuda_loads_per_s(device: torch.device) -> float | None:
    """Of the whole card, by a Triton kernel; None without Triton."""
    if triton is None:
        return None
    programs = 64 * torch.cuda.get_device_properties(device).multi_processor_count
    table = torch.ones(TABLE, device=device)
    out = torch.empty(programs * BLOCK, device=device)
    best = float("inf")
    for _ in range(6):  # the first compiles
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        sum_of_table(table, out, programs)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 4.0 * ROUNDS * BLOCK * programs / best


def sum_of_table(table: torch.Tensor, out: torch.Tensor, programs: int) -> None:
    """out[i] = sum of the 4 ROUNDS values of the table that element i walks over."""
    _walk[(programs,)](
        table, out, SIZE=TABLE, BLOCK=BLOCK, ROUNDS=ROUNDS, STRIDE=STRIDE, num_warps=8
    )


def _dots(a: np.ndarray, b: np.ndarray) -> float:
    begin = time.perf_counter()
    for _ in range(REPEATS):
        np.dot(a, b)
    return (time.perf_counter() - begin) / REPEATS


if triton is not None:

    @triton.jit
    def _walk(
        table,
        out,
        SIZE: tl.constexpr,
        BLOCK: tl.constexpr,
        ROUNDS: tl.constexpr,
        STRIDE: tl.constexpr,
    ):
        lane = tl.arange(0, BLOCK)
        index = lane + 32 * tl.program_id(0)
        total = tl.zeros([BLOCK], tl.float32)
        for _ in range(ROUNDS):
            # Four independent loads a round, so that they overlap.
            a = tl.load(table + (index & (SIZE - 1)))
            b = tl.load(table + ((index + STRIDE) & (SIZE - 1)))
            c = tl.load(table + ((index + 2 * STRIDE) & (SIZE - 1)))
            d = tl.load(table + ((index + 3 * STRIDE) & (SIZE - 1)))
            total += (a + b) + (c + d)
            index += 4 * STRIDE
        tl.store(out + tl.program_id(0) * BLOCK + lane, total)
