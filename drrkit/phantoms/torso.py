"""A voxelised torso and pelvis in HU, built from implicit shapes, for when no CT is at hand.

Nothing in it is measured from a person. Sizes and places follow an adult lying on the back; the
two sides differ on purpose (a slight scoliosis, a tilted pelvis, organs, gas), so that no view
equals another one mirrored. Shapes are signed distances in world millimetres (x left, y posterior,
z superior), painted over each other with partial volume, so every spacing shows the same body.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drrkit.geometry import check_numbers
from drrkit.phantoms.shapes import (
    HERE,
    Box,
    Canvas,
    Placement,
    Shape,
    capsule,
    chain,
    cup,
    drum,
    ellipsoid,
    from_table,
    per_axis,
    sheet,
    smooth_max,
    smooth_min,
)
from drrkit.volume import Volume

_SOFT = (
    "air",
    "fat",
    "muscle",
    "viscera",
    "liver",
    "kidney_left",
    "kidney_right",
    "bladder",
    "gas",
)
_VERTEBRAE = ("vertebra_L1", "vertebra_L2", "vertebra_L3", "vertebra_L4", "vertebra_L5")
_PELVIS = ("sacrum", "hip_left", "hip_right", "femur_left", "femur_right")
TORSO_LABELS: dict[str, int] = {
    name: number for number, name in enumerate((*_SOFT, "ribs", *_VERTEBRAE, *_PELVIS))
}
FIELD_MM = (342.0, 246.0, 330.0)  # x, y, z

# The right half of the skeleton is the left half's table, mirrored, shrunk and moved a little.
_LEFT = HERE
_RIGHT = Placement(side=-1, scale=0.97, shift=(-2.0, 1.0, -5.0), tilt=0.045)

# Everything below is the left side, mm.  Hip joint:
_HIP = (82.0, -15.0, -75.0)

# Body outline: z, half width (x), half depth (y), centre y.
_OUTLINE = (
    (-200.0, 158.0, 98.0, 2.0),
    (-90.0, 162.0, 104.0, 4.0),
    (-30.0, 156.0, 104.0, 3.0),
    (40.0, 146.0, 97.0, 0.0),
    (95.0, 137.0, 95.0, -2.0),
    (165.0, 143.0, 101.0, -1.0),
)
# Abdominal and pelvic cavity, the same columns.
_CAVITY = (
    (-120.0, 20.0, 14.0, -10.0),
    (-95.0, 48.0, 44.0, -10.0),
    (-40.0, 62.0, 58.0, -14.0),
    (10.0, 92.0, 66.0, -24.0),
    (70.0, 108.0, 68.0, -22.0),
    (165.0, 114.0, 76.0, -14.0),
)

# Iliac wing: its outline in the (y, z) plane and points (y, z, x) of its middle surface.
_WING_OUTLINE = (
    (-38, -62), (-46, -38), (-46, -20), (-58, 0), (-59, 14), (-48, 38), (-26, 60), (2, 72),
    (26, 70), (46, 58), (66, 44), (82, 30), (84, 16), (72, -4), (50, -14), (34, -30), (26, -50),
    (18, -72), (-10, -80),
)  # fmt: skip
_WING_SURFACE = (
    (-15, -65, 76), (-40, -38, 90), (-46, -20, 98), (-58, 6, 108), (-50, 34, 120), (-24, 58, 126),
    (2, 70, 121), (26, 68, 107), (46, 56, 86), (66, 42, 64), (82, 24, 49), (70, -2, 51),
    (50, -14, 60), (26, -40, 72), (-12, -20, 90), (-14, 14, 106), (14, 8, 94), (14, 40, 107),
    (46, 24, 69), (60, 10, 55),
)  # fmt: skip

_PUBIS_AND_ISCHIUM = (
    *chain((66, -34, -74, 12), (46, -52, -80, 8.5), (24, -61, -86, 8.5), (12, -62, -92, 10)),
    ellipsoid((11.5, -60.0, -100.0), (9.0, 8.5, 18.0)),
    *chain((11, -58, -112, 7.5), (24, -46, -127, 6.5), (38, -20, -141, 7), (50, 4, -146, 10)),
    *chain((72, 4, -86, 17), (66, 16, -112, 13), (58, 18, -138, 14)),
)


def _wing_thickness(y: Tensor, z: Tensor, depth: Tensor) -> Tensor:
    """Thin in the middle of the wing, thick at its crest, its hip joint and its sacral joint."""
    crest = 9.0 * torch.exp(-((depth / 7.0) ** 2))
    hip_joint = 22.0 * torch.exp(-((y + 15.0) ** 2 + (z + 66.0) ** 2) / 700.0)
    sacral_joint = 9.0 * torch.exp(-((y - 58.0) ** 2 + (z - 12.0) ** 2) / 700.0)
    return 5.5 + crest + hip_joint + sacral_joint


_HIP_BONE = (
    sheet(_WING_OUTLINE, _WING_SURFACE, _wing_thickness),
    cup(_HIP, 26.8, 37.0, opening=(0.70, -0.25, -0.67), depth=5.0),
    *_PUBIS_AND_ISCHIUM,
)


def _femur(knee: tuple[float, float], twist: float) -> list[Shape]:
    """A femur whose shaft runs to (x, y) at z = -215; `twist` (mm) moves the trochanters back."""
    foot = (*knee, -215.0, 14.5)
    return [
        ellipsoid(_HIP, (23.5, 23.5, 23.5)),
        *chain((82, -15, -75, 17), (105, -13 + 0.5 * twist, -93, 14.5), (121, -8, -108, 17)),
        ellipsoid((132.0, -1.0 + twist, -98.0), (11.0, 15.0, 18.0)),
        ellipsoid((105.0, 9.0 + twist, -137.0), (8.0, 9.0, 11.0)),
        *chain((121, -8, -108, 18.5), (116, -8, -142, 16), foot),
    ]


_FEMURS = {"left": _femur((110.0, -8.0), 0.0), "right": _femur((104.0, -14.0), 7.0)}

_RIBS = (
    chain((72, 60, 178, 4.5), (88, 50, 158, 4.5), (99, 37, 139, 4)),
    chain((98, 54, 178, 5), (115, 34, 152, 5), (121, 6, 124, 4.5)),
    chain((120, 26, 178, 5), (124, -4, 152, 5), (121, -38, 126, 5), (109, -60, 113, 4.5)),
    chain((122, -44, 178, 5), (112, -64, 152, 5), (96, -78, 137, 4.5)),
)

# Vertebrae: centre x (a slight scoliosis), y, z, tilt about x in rad, size.
_SPINE = {
    "vertebra_L1": (5.0, 15.0, 167.5, -0.20, 0.94),
    "vertebra_L2": (4.5, 9.0, 134.0, -0.10, 0.97),
    "vertebra_L3": (2.5, 7.0, 101.0, 0.03, 1.0),
    "vertebra_L4": (0.5, 11.0, 68.0, 0.20, 1.03),
    "vertebra_L5": (-0.5, 20.5, 36.5, 0.38, 1.03),
}


def _both_sides(shapes: tuple[Shape, ...] | list[Shape]) -> list[Shape]:
    return [*shapes, *(shape.mirrored() for shape in shapes)]


_VERTEBRA = (
    drum((0.0, 0.0, 0.0), (24.5, 17.0), 13.5),
    *_both_sides(
        [
            capsule((14, 11, 4), (17, 27, 4), 4.5, 4.5),  # pedicle
            capsule((16, 27, 3), (43, 32, 5), 4.5, 3.0),  # transverse process
            capsule((16, 30, 13), (15, 34, -14), 5.0, 5.5),  # articular processes
            capsule((14, 33, 0), (0, 45, -5), 4.0, 4.0),  # lamina
        ]
    ),
    ellipsoid((0.0, 54.0, -7.0), (3.6, 15.0, 11.0)),  # spinous process
)
_DISC = ellipsoid((0.0, 0.0, -17.0), (24.0, 16.5, 6.0))

# Sacrum: centre (y, z), half width, half depth, half height and tilt of every segment.
_SEGMENTS = (
    (35.0, 10.0, 28.0, 17.0, 14.0, 0.62),
    (49.5, -13.0, 23.0, 14.0, 13.0, 0.55),
    (60.0, -35.0, 19.0, 11.5, 12.0, 0.33),
    (63.5, -56.0, 16.0, 9.5, 11.5, 0.0),
    (60.0, -75.0, 12.0, 7.5, 10.0, -0.35),
    (52.5, -92.0, 7.5, 5.5, 9.0, -0.6),
    (44.0, -104.0, 5.0, 4.5, 6.5, -0.8),
)
_SACRUM = (
    *(
        drum((0.0, y, z), (width, depth), height).tilted((0.0, y, z), tilt)
        for y, z, width, depth, height, tilt in _SEGMENTS
    ),
    *chain((0, 62, 8, 5), (0, 74, -20, 4), (0, 75, -48, 3.5)),
    *_both_sides(
        chain(
            (22, 38, 12, 15), (36, 47, 5, 14), (34, 58, -14, 12), (23, 63, -38, 9), (14, 62, -62, 6)
        )
    ),
)
_FORAMINA = tuple(
    capsule((side * (21.0 - 2.2 * k), 10.0, z), (side * (21.0 - 2.2 * k), 90.0, z), r, r)
    for side in (-1, 1)
    for k, (z, r) in enumerate(((-3.0, 4.8), (-25.0, 4.4), (-46.0, 4.0), (-65.0, 3.4)))
)

_PSOAS = chain((27, 22, 175, 12), (40, 10, 70, 20), (62, -32, -15, 17), (82, -42, -75, 13))
_LIVER = (
    ellipsoid((-62.0, -14.0, 158.0), (56.0, 66.0, 52.0)),
    ellipsoid((-14.0, -48.0, 168.0), (52.0, 34.0, 26.0)),
)
_KIDNEYS = {
    "kidney_left": ellipsoid((66.0, 32.0, 126.0), (25.0, 20.0, 53.0)),
    "kidney_right": ellipsoid((-68.0, 34.0, 106.0), (25.0, 21.0, 51.0)),
}
_BLADDER = ellipsoid((4.0, -32.0, -72.0), (37.0, 25.0, 26.0))
# Colon and stomach: gas lies in front, as in a patient lying on the back.
_GAS = (
    ellipsoid((58.0, -52.0, 150.0), (34.0, 20.0, 19.0)),
    ellipsoid((-88.0, -34.0, 2.0), (19.0, 18.0, 21.0)),
    ellipsoid((-93.0, -30.0, 44.0), (14.0, 15.0, 19.0)),
    ellipsoid((-90.0, -34.0, 80.0), (16.0, 13.0, 15.0)),
    ellipsoid((-44.0, -66.0, 92.0), (25.0, 11.0, 12.0)),
    ellipsoid((10.0, -70.0, 78.0), (24.0, 11.0, 12.0)),
    ellipsoid((52.0, -62.0, 94.0), (18.0, 11.0, 11.0)),
    ellipsoid((97.0, -12.0, 84.0), (9.0, 10.0, 25.0)),
    ellipsoid((94.0, -18.0, 22.0), (8.0, 9.0, 17.0)),
    ellipsoid((44.0, -20.0, -20.0), (17.0, 11.0, 9.0)),
    ellipsoid((5.0, 30.0, -68.0), (12.0, 9.0, 18.0)),
)


def torso(
    spacing: float | tuple[float, float, float] = 3.0,
    *,
    texture: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Volume:
    """An asymmetric torso and pelvis, thighs to the first lumbar vertebra, as a labelled CT in HU.

    spacing in mm, a number or (x, y, z), 0.5 to 20; about 342 x 246 x 330 mm (x, y, z) about the
    world's origin are covered at every spacing. texture scales the fluctuations of the tissues
    (0: none), which depend on the place in mm, not on the spacing. The same arguments give the same
    volume. Labels are those of `TORSO_LABELS`.

    Air -1000 HU, fat about -100, soft tissue 10 to 65, cancellous bone 150 to 450, cortical bone
    950 to 1400. Raises ValueError for a spacing out of range or a negative texture.
    """
    pitch = per_axis("spacing", spacing, 0.5, 20.0)
    check_numbers(True, texture=texture)
    canvas = Canvas(FIELD_MM, pitch)
    fine = texture * canvas.noise(seed=1, waves=24, shortest=7.0, longest=20.0)
    coarse = texture * canvas.noise(seed=2, waves=16, shortest=25.0, longest=70.0)
    _paint_soft_tissue(canvas, fine, coarse)
    _paint_organs(canvas, fine)
    _paint_gas(canvas)
    _paint_skeleton(canvas, 300.0 + 80.0 * fine + 35.0 * coarse)
    return Volume(canvas.hu.to(dtype), pitch, canvas.origin, unit="HU", labels=canvas.labels)


def _paint_soft_tissue(canvas: Canvas, fine: Tensor, coarse: Tensor) -> None:
    """Skin outline filled with fat, muscle under it, and the abdominal cavity."""
    trunk = from_table(_OUTLINE, power=2.4)
    thigh = capsule((80.0, -4.0, -95.0), (85.0, -8.0, -260.0), 76.0, 70.0)
    other = capsule((-81.0, -3.0, -95.0), (-88.0, -6.0, -260.0), 75.0, 72.0)
    whole = canvas.whole()
    x, y, z = canvas.coordinates(whole)
    above_crotch = smooth_max(trunk.distance(x, y, z), -137.0 - z, 60.0)
    deeper = 0.86 * y  # thighs are deeper than wide
    thighs = torch.minimum(thigh.distance(x, deeper, z), other.distance(x, deeper, z))
    skin = smooth_min(above_crotch, thighs, 25.0)
    canvas.paint(whole, skin, -102.0 + 7.0 * fine, TORSO_LABELS["fat"])
    # More fat over the buttocks and flanks than in front; a little more on the right.
    padding = 13.0 + 6.0 * torch.sigmoid((y - 10.0) / 25.0) + 4.0 * (x / 150.0) ** 2 - 0.01 * x
    padding = padding + 3.0 * torch.exp(-(((z + 60.0) / 60.0) ** 2))
    muscle = 54.0 + 7.0 * fine - 60.0 * torch.sigmoid(6.0 * (coarse - 1.5))
    canvas.paint(whole, skin + padding, muscle, TORSO_LABELS["muscle"])
    cavity = from_table(_CAVITY, power=2.2).distance(x, y, z)
    cavity = smooth_max(cavity, -112.0 - z, 20.0)
    # Loops of bowel, 30 to 45 HU, in mesenteric fat.
    content = -75.0 + 115.0 * torch.sigmoid(5.0 * (coarse + 0.5 * fine + 0.35))
    canvas.paint(whole, cavity, content, TORSO_LABELS["viscera"])


def _paint_organs(canvas: Canvas, fine: Tensor) -> None:
    muscle = TORSO_LABELS["muscle"]
    for placement in (_LEFT, _RIGHT):
        canvas.paint(*canvas.union(_PSOAS, placement, blend=8.0), 56.0 + 6.0 * fine, muscle)
    canvas.paint(*canvas.union(_LIVER, blend=15.0), 60.0 + 6.0 * fine, TORSO_LABELS["liver"])
    for name, kidney in _KIDNEYS.items():
        canvas.paint(*canvas.union([kidney]), 34.0 + 5.0 * fine, TORSO_LABELS[name])
    canvas.paint(*canvas.union([_BLADDER]), 8.0 + 2.0 * fine, TORSO_LABELS["bladder"])


def _paint_gas(canvas: Canvas) -> None:
    """Gas pockets in a wall of soft tissue, and small bubbles between the loops of bowel."""
    uniform = torch.rand(18, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    bubbles = []
    for a, b, c, r in uniform.tolist():
        center = (-70.0 + 140.0 * a, -72.0 + 40.0 * b, -25.0 + 130.0 * c)
        radius = 3.5 + 5.0 * r
        bubbles.append(ellipsoid(center, (1.5 * radius, 0.8 * radius, radius)))
    for pocket in (*_GAS, *bubbles):
        box, distance = canvas.union([pocket])
        canvas.paint(box, distance - 2.5, 42.0, TORSO_LABELS["viscera"])
        canvas.paint(box, distance, -940.0, TORSO_LABELS["gas"])


def _paint_skeleton(canvas: Canvas, cancellous: Tensor) -> None:
    def bone(
        solid: tuple[Box, Tensor], name: str, cortex: float | Tensor, hu: float, inside: Tensor
    ) -> None:
        canvas.paint_bone(solid, TORSO_LABELS[name], cortex, hu, inside.clamp(-60.0, 480.0))

    for placement in (_LEFT, _RIGHT):
        for rib in _RIBS:
            bone(canvas.union(rib, placement), "ribs", 1.6, 1100.0, cancellous)
    for name, (x, y, z, tilt, scale) in _SPINE.items():
        placement = Placement(scale=scale, shift=(x, y, z), tilt=tilt)
        canvas.paint(*canvas.union([_DISC], placement), 92.0, TORSO_LABELS["muscle"])
        vertebra = canvas.union(_VERTEBRA, placement, blend=3.0)
        bone(vertebra, name, 1.7, 1050.0, cancellous - 90.0)
    sacrum = canvas.carve(canvas.union(_SACRUM, blend=7.0), _FORAMINA)
    bone(sacrum, "sacrum", 1.8, 1000.0, cancellous - 60.0)
    for side, placement in (("left", _LEFT), ("right", _RIGHT)):
        hip = canvas.union(_HIP_BONE, placement, blend=7.0)
        hip = canvas.carve(hip, [ellipsoid(_HIP, (26.8, 26.8, 26.8))], placement)
        bone(hip, f"hip_{side}", 2.3, 1250.0, cancellous)
        femur = canvas.union(_FEMURS[side], placement, blend=8.0)
        # Down the shaft the cortex grows thick and the cancellous bone gives way to fatty marrow.
        shaft = torch.sigmoid((-151.0 - canvas.axes[2]) / 8.0)[:, None, None]
        walls, marrow = 2.2 + 5.3 * shaft, cancellous + 30.0 - 380.0 * shaft
        bone(femur, f"femur_{side}", walls[femur[0][0]], 1350.0, marrow)
