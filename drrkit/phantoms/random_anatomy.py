"""Random asymmetric phantoms: a different pelvis, spine or skull for every seed.

Learned similarities train and are tested on them where no CTs are at hand: train on some seeds,
test on others. A subject's bones are signed distances in body millimetres (x left, y posterior,
z superior) whose sizes and places are drawn separately for each side, so that no subject equals its
mirror image; the whole is then scaled, turned, shifted and bent by a smooth random displacement.
Bone is a cortical shell of 700 to 1500 HU around cancellous bone, in soft tissue of about 40 HU.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from drrkit.geometry import check_counts, check_numbers
from drrkit.phantoms.bones import ANATOMIES, Draw
from drrkit.phantoms.shapes import Box, Canvas, Shape, per_axis
from drrkit.volume import Volume

ANATOMY_LABELS: dict[str, int] = {
    name: number for number, name in enumerate(("air", "soft_tissue", "bone", "other_bone", "gas"))
}
"""Labels of `random_anatomy`. "bone" moves as one piece: hip bones, sacrum and fifth lumbar
vertebra; the vertebrae; the cranium. "other_bone" may move against it in a patient: femurs, ribs,
mandible and neck."""

FIELD_MM: dict[str, float] = {"pelvis": 288.0, "spine": 192.0, "skull": 240.0}
"""Edge of the cube that the default spacing covers."""

BEND_MM = 4.0
"""Standard deviation of each component of a subject's smooth displacement."""

_STREAMS = {"pelvis": 0, "spine": 1, "skull": 2}


def random_anatomy(
    kind: str = "pelvis",
    seed: int = 0,
    *,
    shape: int | tuple[int, int, int] = 48,
    spacing: float | tuple[float, float, float] | None = None,
    texture: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Volume:
    """A random subject as a labelled CT in HU about the world's origin; the same for a seed.

    Args:
        kind: "pelvis", "spine" or "skull".
        seed: of the subject, 0 or more; subjects of different seeds differ in every size, place,
            density and in their bend. The same seed shows the same subject on every grid.
        shape: voxels, one number or (x, y, z), 8 to 512 each.
        spacing: mm, one number or (x, y, z); by default the largest side of `shape` covers 288 mm
            (pelvis), 192 mm (spine) or 240 mm (skull). What lies outside is cut off.
        texture: scales the fluctuations inside the tissues (0: none).
        dtype: of the values.

    Returns:
        a Volume on the CPU, values [z, y, x], labels as in `ANATOMY_LABELS`: air -1000 HU, fat
        about -100, soft tissue about 40, cancellous bone 250 to 600, cortical bone 700 to 1500;
        voxels at a surface are mixtures in proportion to their coverage.

    Raises:
        ValueError: an argument is none of those described.
    """
    if kind not in ANATOMIES:
        raise ValueError(f"kind: expected one of {', '.join(ANATOMIES)}, got {kind!r}")
    check_counts(0, seed=seed)
    check_numbers(True, texture=texture)
    counts = per_axis("shape", shape, 8, 512)
    for count in counts:
        check_counts(8, shape=count)
    if spacing is None:
        spacing = FIELD_MM[kind] / max(counts)
    pitch = per_axis("spacing", spacing, 0.3, 30.0)
    generator = torch.Generator().manual_seed(len(_STREAMS) * seed + _STREAMS[kind])
    draw = Draw(generator)
    width, height, depth = (n * p for n, p in zip(counts, pitch, strict=True))
    canvas = Canvas((width, height, depth), pitch)
    body = Body(canvas, draw)
    fine = texture * canvas.noise(draw.integer(), waves=24, shortest=9.0, longest=25.0)
    coarse = texture * canvas.noise(draw.integer(), waves=12, shortest=30.0, longest=90.0)
    outline, bones, gas = ANATOMIES[kind](draw)
    _paint_soft_tissue(canvas, body, draw, outline, fine, coarse)
    for pocket in gas:
        canvas.paint(*canvas.union([pocket], body), -950.0, ANATOMY_LABELS["gas"])
    cortical = draw.between(800.0, 1400.0)
    cancellous = draw.between(300.0, 500.0) + 50.0 * fine + 25.0 * coarse
    for bone in bones:
        solid = canvas.carve(canvas.union(bone.shapes, body, bone.blend), bone.holes, body)
        label = ANATOMY_LABELS["other_bone" if bone.moves else "bone"]
        shell = min(max(cortical * draw.between(0.9, 1.07), 700.0), 1500.0)
        canvas.paint_bone(solid, label, bone.cortex, shell, cancellous.clamp(250.0, 600.0))
    # Several surfaces may share a voxel that none of them covers by half.
    shared = (canvas.labels == ANATOMY_LABELS["air"]) & (canvas.hu > -400.0)
    canvas.labels[shared] = ANATOMY_LABELS["soft_tissue"]
    return Volume(canvas.hu.to(dtype), pitch, canvas.origin, unit="HU", labels=canvas.labels)


class Body:
    """The Place of a subject: scaled, turned, shifted and bent against the world."""

    def __init__(self, canvas: Canvas, draw: Draw) -> None:
        self.scale = draw.between(0.9, 1.1)
        self.rotation = draw.rotation(0.14)
        self.shift = torch.tensor([draw.between(-7.0, 7.0) for _ in range(3)])
        x, y, z = torch.broadcast_tensors(*canvas.coordinates(canvas.whole()))
        world = torch.stack([x, y, z], dim=-1)
        bend = [canvas.noise(draw.integer(), 6, shortest=90.0, longest=220.0) for _ in range(3)]
        bend = BEND_MM * torch.stack(bend, dim=-1)
        self.reach = float(bend.abs().max())
        placed = (world + bend - self.shift) @ self.rotation / self.scale
        self.coordinates = placed.permute(3, 0, 1, 2).contiguous()

    def box(self, canvas: Canvas, shape: Shape, margin: float) -> Box:
        """See `Place`."""
        corners = torch.tensor(list(product(*zip(shape.low, shape.high, strict=True))))
        placed = self.scale * corners @ self.rotation.mT + self.shift
        grow = margin + self.reach
        low = (placed.amin(0) - grow).tolist()
        return canvas.region(tuple(low), tuple((placed.amax(0) + grow).tolist()))

    def distance(self, canvas: Canvas, shape: Shape, box: Box) -> Tensor:
        """See `Place`."""
        return self.scale * shape.distance(*self.coordinates[(slice(None), *box)])


def _paint_soft_tissue(
    canvas: Canvas, body: Body, draw: Draw, outline: Shape, fine: Tensor, coarse: Tensor
) -> None:
    """The skin's outline filled with fat, soft tissue under it."""
    whole = canvas.whole()
    skin = body.distance(canvas, outline, whole)
    label = ANATOMY_LABELS["soft_tissue"]
    canvas.paint(whole, skin, -100.0 + 7.0 * fine, label)
    fat = draw.between(4.0, 16.0) + 2.0 * coarse
    canvas.paint(whole, skin + fat.clamp(min=2.0), 40.0 + 12.0 * coarse + 6.0 * fine, label)
