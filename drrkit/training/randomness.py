"""Random numbers that are a function of (seed, step, rank), so that no checkpoint need keep any."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

TRAINING, VALIDATION = 0, 1  # follow the seed, so that the two streams have nothing in common


def _derived_seed(*numbers: int) -> int:
    """A seed of 63 bits from whole numbers >= 0; other numbers give an unrelated one."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator seeded from whole numbers >= 0, such as (seed, step, rank)."""
    return torch.Generator(device).manual_seed(_derived_seed(*numbers))


def drawn_integer(draw: torch.Generator, below: int = 2**31 - 1) -> int:
    """A whole number from 0 to below - 1; the default range makes seeds."""
    return int(torch.randint(below, (), generator=draw))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds the global generators of torch (all devices), NumPy and Python; restores them after."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    seed = _derived_seed(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
