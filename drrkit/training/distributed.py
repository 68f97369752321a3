"""The processes of one training run: torchrun's, or this one alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: rank 0 writes checkpoints meanwhile."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: 0 to world - 1; rank 0 writes.
        world: how many there are, on all machines.
        local_rank: rank on this machine, which is the GPU's number.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @staticmethod
    def of_environment() -> Processes:
        """As torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; one process without it.

        Raises:
            ValueError: the variables contradict each other.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, world, local = (os.environ.get(name, "") for name in names)
        try:
            found = Processes(int(rank or 0), int(world or 1), int(local or rank or 0))
        except ValueError:
            found = Processes(-1)
        if not 0 <= found.rank < found.world:
            raise ValueError(
                f"RANK, WORLD_SIZE: expected numbers as torchrun sets them, got {rank!r}, {world!r}"
            )
        return found

    @property
    def writes(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.rank == 0

    def device(self, wanted: torch.device | str) -> torch.device:
        """The device of this process: of several GPUs the one with its local rank."""
        device = torch.device(wanted)
        if device.type == "cuda" and device.index is None and self.world > 1:
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return device

    def connect(self, device: torch.device) -> None:
        """Joins a process group (NCCL between GPUs, gloo between CPUs) if there are several.

        A group that an earlier training has left is used again.
        """
        if self.world > 1 and not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)

    def leave(self) -> None:
        """Waits for the other processes and exits with code 0; does nothing in a single process.

        The last line of a script under torchrun. Python is not finalised, because gloo's threads
        sometimes abort a process while that happens.
        """
        if self.world > 1:
            if dist.is_initialized():
                dist.barrier()
                dist.destroy_process_group()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def mean(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The mean over the processes of each number."""
        if self.world == 1 or not values:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return (total / self.world).tolist()

    def from_writer(self, value: Any) -> Any:
        """The value that the writing process has, sent to all of them (pickled)."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
