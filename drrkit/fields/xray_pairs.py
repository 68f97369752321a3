"""Pairs to learn from: X-rays of one subject and their poses, real or drawn at random."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drrkit._arguments import check_attenuation
from drrkit.geometry import Camera, perturb, view_ap, volume_center
from drrkit.training import generator
from drrkit.volume import Volume


@dataclass(frozen=True, eq=False)
class Pairs:
    """X-rays of one subject and the poses they were taken at. Checked on creation.

    Attributes:
        subject: the subject's name; all scans and X-rays of a person carry the same one.
        volume: the CT, a Volume in mu, one channel.
        camera: of all X-rays.
        xrays: [N, 1, rows, cols], bright where the patient attenuates.
        world_to_camera: [N, 4, 4] float64.

    Raises:
        TypeError, ValueError: what does not fit the rest; an X-ray that is not finite.
    """

    subject: str
    volume: Volume
    camera: Camera
    xrays: Tensor
    world_to_camera: Tensor

    def __post_init__(self) -> None:
        check_attenuation(self.volume)
        if self.volume.values.dim() != 3:
            found = tuple(self.volume.values.shape)
            raise ValueError(f"volume: expected one channel [D, H, W], got {found}")
        if not isinstance(self.subject, str) or not self.subject:
            raise ValueError(f"subject: expected a name, got {self.subject!r}")
        count = self.xrays.shape[0] if self.xrays.dim() == 4 else 0
        if count == 0 or self.xrays.shape[1:] != (1, *self.camera.size):
            raise ValueError(
                f"xrays: expected [N, 1, {self.camera.size[0]}, {self.camera.size[1]}] as the "
                f"camera has, N >= 1, got {tuple(self.xrays.shape)}"
            )
        if self.world_to_camera.shape != (count, 4, 4):
            raise ValueError(
                f"world_to_camera: expected [{count}, 4, 4], one per X-ray, "
                f"got {tuple(self.world_to_camera.shape)}"
            )
        if not bool(self.xrays.isfinite().all()) or not bool(self.world_to_camera.isfinite().all()):
            raise ValueError("xrays, world_to_camera: expected finite numbers")

    def __len__(self) -> int:
        return self.xrays.shape[0]

    def to(self, device: torch.device | str) -> Pairs:
        """The same on another device."""
        return replace(
            self,
            volume=self.volume.to(device),
            camera=self.camera.to(device),
            xrays=self.xrays.to(device),
            world_to_camera=self.world_to_camera.to(device),
        )

    def chosen(self, index: Sequence[int] | Tensor) -> Pairs:
        """The pairs of these numbers."""
        where = torch.as_tensor(index, dtype=torch.long, device=self.xrays.device)
        return replace(self, xrays=self.xrays[where], world_to_camera=self.world_to_camera[where])

    def held_out(self, count: int, seed: int = 0) -> tuple[Pairs, Pairs]:
        """Pairs to train on, and `count` others, drawn at random, to validate on.

        Raises:
            ValueError: none would remain to train on, or count is not positive.
        """
        if not 0 < count < len(self):
            raise ValueError(f"count: expected 1 to {len(self) - 1} of {len(self)}, got {count!r}")
        order = torch.randperm(len(self), generator=generator(seed, len(self)))
        return self.chosen(order[count:].sort().values), self.chosen(order[:count].sort().values)

    def fingerprint(self) -> str:
        """SHA-256 of the CT's values, the same under every name."""
        return _sha256(self.volume.values)

    def view_fingerprints(self) -> set[str]:
        """SHA-256 of every X-ray's pixels."""
        return {_sha256(xray) for xray in self.xrays}


def _sha256(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def check_subjects(pairs: Sequence[Pairs]) -> dict[str, list[Pairs]]:
    """The pairs by subject, once it is certain that no CT and no X-ray has two names.

    Raises:
        ValueError: none, or the same CT or X-ray under the names of two subjects.
    """
    if not pairs:
        raise ValueError("pairs: expected those of one subject at least, got none")
    by_subject: dict[str, list[Pairs]] = {}
    owners: dict[str, str] = {}
    for one in pairs:
        by_subject.setdefault(one.subject, []).append(one)
        for mark in (one.fingerprint(), *one.view_fingerprints()):
            owner = owners.setdefault(mark, one.subject)
            if owner != one.subject:
                raise ValueError(
                    f"pairs: the same CT or X-ray belongs to {owner!r} and to {one.subject!r}: "
                    "training on one would leak into the other"
                )
    return by_subject


def random_views(
    volume: Volume,
    count: int,
    seed: int = 0,
    *,
    sod: float = 800.0,
    turn: float = math.radians(30.0),
    shift: float = 25.0,
) -> Tensor:
    """Poses [count, 4, 4] about the frontal view: turns and shifts drawn from uniform boxes.

    Args:
        sod: source-to-isocentre distance of the frontal view, mm.
        turn, shift: half widths, rad and mm, of the three components of each.
    """
    width = torch.tensor([turn] * 3 + [shift] * 3, dtype=torch.float64)
    draw = torch.rand(count, 6, generator=generator(seed, count), dtype=torch.float64)
    center = volume_center(volume).cpu()
    xi = (2 * draw - 1) * width
    return perturb(view_ap(volume, sod).cpu(), xi, center).to(volume.values.device)
