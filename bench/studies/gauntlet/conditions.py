"""The conditions: what is unlike the ideal, each alone, and three at once.

Every function takes a recipe and changes it; what it draws comes from the recipe's own generator.
The docstring of each is the line that the table's legend prints.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

import drrkit
from bench.studies.gauntlet.cases import (
    SOD,
    Condition,
    Recipe,
    deform,
    replace_detector,
)
from bench.studies.gauntlet.projector import Pinhole, rotation_matrix
from bench.studies.gauntlet.solids import Box, Cylinder, Ellipsoid, Piece
from bench.studies.gauntlet.subjects import (
    BREATHING,
    JOINTS,
    PHANTOM_MM,
    PHANTOM_SPACING,
    SPINE_BENDS,
    VERTEBRAE,
    Bend,
    Breath,
    Turn,
    cut,
    phantom,
)

# What the patient contains ------------------------------------------------------------------------


def nothing(recipe: Recipe) -> None:
    """nothing else: 20,000 photons, scatter 0.1 of the primary"""


def soft_tissue(recipe: Recipe) -> None:
    """other soft tissue: 12 regions of 2 to 7 cm denser or fatter by up to 0.12 g/cm^3, more fat"""
    for _ in range(12):
        radii = recipe.rng.uniform(20.0, 70.0, 3)
        change = recipe.rng.uniform(0.05, 0.12) * (-1.0) ** recipe.rng.integers(2)
        recipe.pieces.append(
            Piece(_ellipsoid(recipe, recipe.tissue_point(), radii), "muscle", change)
        )
    middle = (recipe.subject.low + recipe.subject.high) / 2
    half = (recipe.subject.high - recipe.subject.low) / 2 * np.array([0.8, 0.8, 3.0])
    side = recipe.rng.uniform(-15.0, 15.0, 3) * np.array([1.0, 1.0, 0.0])
    thick = Ellipsoid(middle + side, np.eye(3), half + recipe.rng.uniform(10.0, 30.0))
    recipe.pieces.append(Piece(thick, "adipose", 0.92))
    recipe.pieces.append(Piece(Ellipsoid(middle, np.eye(3), half), "adipose", -0.92))


def gas(recipe: Recipe) -> None:
    """6 to 15 gas pockets of 1 to 4 cm where the CT has none"""
    for _ in range(recipe.rng.integers(6, 16)):
        radii = recipe.rng.uniform(5.0, 20.0, 3)
        pocket = _ellipsoid(recipe, recipe.tissue_point(), radii)
        recipe.pieces.append(Piece(pocket, "muscle", -1.02))


def contrast(recipe: Recipe) -> None:
    """contrast filling: a bladder or bowel loops and a tree of vessels, 5 to 40 mg/ml of iodine"""
    for _ in range(recipe.rng.integers(1, 4)):
        radii = recipe.rng.uniform(10.0, 35.0, 3)
        filled = _ellipsoid(recipe, recipe.tissue_point(), radii)
        recipe.pieces.append(Piece(filled, "iodine", 1e-3 * recipe.rng.uniform(5.0, 25.0)))
    place = recipe.tissue_point()
    for radius in (5.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.5):
        tip = place + recipe.rng.normal(size=3) * np.array([25.0, 15.0, 40.0])
        recipe.pieces.append(Piece(Cylinder(place, tip, radius), "iodine", 0.04))
        place = tip if recipe.rng.random() < 0.6 else place


# What stands around -------------------------------------------------------------------------------


def arms(recipe: Recipe) -> None:
    """one or two arms with bones beside the trunk, or a forearm across it"""
    for side in (-1.0, 1.0)[: recipe.rng.integers(1, 3)]:
        across = recipe.rng.random() < 0.5
        col = 63.5 + side * recipe.rng.uniform(20.0, 60.0)
        depth = SOD + recipe.rng.uniform(-150.0, 120.0)
        top = recipe.at(col, -30.0, depth)
        bottom = recipe.at(127.0 - col if across else col + recipe.rng.normal() * 15, 160.0, depth)
        radius = recipe.rng.uniform(35.0, 48.0)
        recipe.pieces.append(Piece(Cylinder(top, bottom, radius), "muscle", 1.0))
        for shift in (-9.0, 9.0) if across else (0.0,):
            move = shift * recipe.axes[1]
            bone = 7.0 if across else 12.0
            recipe.pieces.append(
                Piece(Cylinder(top + move, bottom + move, bone), "cortical bone", 0.9)
            )
            marrow = Cylinder(top + move, bottom + move, bone * 0.55)
            recipe.pieces.append(Piece(marrow, "cortical bone", -0.9))


def table(recipe: Recipe) -> None:
    """table, mattress and rails under the patient, a rail in the field"""
    back = recipe.subject.back - 30.0  # the patient sinks in
    x = recipe.subject.focus[0]
    z = recipe.subject.focus[2]
    tilt = rotation_matrix(np.radians(recipe.rng.uniform(-4.0, 4.0, 3)))
    skin = Box(np.array([x, back + 75.0, z]), tilt, np.array([230.0, 1.5, 900.0]))
    other = Box(np.array([x, back + 110.0, z]), tilt, np.array([230.0, 1.5, 900.0]))
    foam = Box(np.array([x, back + 40.0, z]), tilt, np.array([230.0, 30.0, 900.0]))
    core = Box(np.array([x, back + 92.0, z]), tilt, np.array([230.0, 16.0, 900.0]))
    recipe.pieces += [Piece(skin, "carbon", 1.6), Piece(other, "carbon", 1.6)]
    recipe.pieces += [Piece(foam, "plastic", 0.06), Piece(core, "plastic", 0.1)]
    for side in (-1.0, 1.0):
        place = np.array([x + side * recipe.rng.uniform(60.0, 140.0), back + 95.0, z])
        rail = Box(place, tilt, np.array([6.0, 14.0, 900.0]))
        recipe.pieces.append(Piece(rail, "aluminium", 2.7))
    place = np.array([x, back + 92.0, z + recipe.rng.uniform(-80.0, 80.0)])
    recipe.pieces.append(Piece(Box(place, tilt, np.array([230.0, 12.0, 5.0])), "aluminium", 2.7))


def cables(recipe: Recipe) -> None:
    """three to six cables with electrodes and clips on the skin"""
    for _ in range(recipe.rng.integers(3, 7)):
        depth = SOD + recipe.rng.uniform(-160.0, 120.0)
        start = recipe.rng.uniform(0.0, 128.0, 2)
        heading = recipe.rng.uniform(0.0, 2 * np.pi)
        path = [start]
        for _ in range(14):
            heading += recipe.rng.normal() * 0.45
            path.append(path[-1] + 12.0 * np.array([np.cos(heading), np.sin(heading)]))
        world = [recipe.at(*place, depth) for place in path]
        for a, b in pairwise(world):
            recipe.pieces.append(Piece(Cylinder(a, b, 0.7), "copper", 4.0))
            recipe.pieces.append(Piece(Cylinder(a, b, 2.2), "plastic", 1.3))
        pad = Ellipsoid(world[0], recipe.axes, np.array([16.0, 16.0, 1.0]))
        snap = Ellipsoid(world[0], recipe.axes, np.array([4.0, 4.0, 2.5]))
        recipe.pieces += [Piece(pad, "plastic", 1.4), Piece(snap, "steel", 7.9)]


# Fields -------------------------------------------------------------------------------------------


def rectangle(recipe: Recipe) -> None:
    """rectangular collimator, 45 to 80 % of each side, rims of 0.5 to 8 pixels"""
    size = recipe.rng.uniform(0.45, 0.8, 2) * 128.0
    middle = 63.5 + recipe.rng.uniform(-10.0, 10.0, 2)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2
    turn = rotation_matrix(np.array([0, 0, np.radians(recipe.rng.uniform(-8.0, 8.0))]))[:2, :2]
    _open(recipe, middle + corners @ turn)


def round_field(recipe: Recipe) -> None:
    """round field of 60 to 95 % of the image's width, rims of 0.5 to 8 pixels"""
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    middle = 63.5 + recipe.rng.uniform(-8.0, 8.0, 2)
    radius = recipe.rng.uniform(0.3, 0.475) * 128.0
    _open(recipe, middle + radius * np.stack([np.cos(angles), np.sin(angles)], 1))


def polygon(recipe: Recipe) -> None:
    """irregular field of 5 to 8 corners, rims of 0.5 to 8 pixels"""
    count = recipe.rng.integers(5, 9)
    angles = 2 * np.pi * (np.arange(count) + recipe.rng.uniform(-0.25, 0.25, count)) / count
    radius = recipe.rng.uniform(36.0, 62.0, count)
    _open(recipe, 63.5 + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))


def masked(recipe: Recipe) -> None:
    """the user has the exact mask"""
    recipe.mask_given = True


def _open(recipe: Recipe, corners: np.ndarray) -> None:
    """A field inside corners (col, row) with a soft rim and a little leakage."""
    fine = 4
    image = Image.new("L", (128 * fine, 128 * fine))
    ImageDraw.Draw(image).polygon([tuple(fine * (xy + 0.5)) for xy in corners], fill=255)
    rim = float(np.exp(recipe.rng.uniform(np.log(0.5), np.log(8.0))))
    soft = gaussian_filter(np.asarray(image) / 255.0, fine * rim / 2.5)
    share = soft.reshape(128, fine, 128, fine).mean((1, 3))
    leak = float(np.exp(recipe.rng.uniform(np.log(0.001), np.log(0.02))))
    recipe.opening = leak + (1.0 - leak) * share


# Metal --------------------------------------------------------------------------------------------


def few_tools(recipe: Recipe) -> None:
    """one to four steel tools across the field: wires, needles, clamps, retractors"""
    for _ in range(recipe.rng.integers(1, 5)):
        _tool(recipe)


def many_tools(recipe: Recipe) -> None:
    """five to twelve steel tools across the field"""
    for _ in range(recipe.rng.integers(5, 13)):
        _tool(recipe)


def screws(recipe: Recipe) -> None:
    """three to eight titanium screws in bones, with or without a plate"""
    for _ in range(recipe.rng.integers(3, 9)):
        _screw(recipe, recipe.bone_point())
    if recipe.rng.random() < 0.5:
        _plate(recipe, recipe.bone_point())


def implants(recipe: Recipe) -> None:
    """large implants: hip prostheses where there are hips, rods with screws or plates elsewhere"""
    hips = JOINTS.get(recipe.subject.kind, ()) if recipe.subject.kind == "pelvis" else ()
    for _, center, capsules in hips[: recipe.rng.integers(1, 3)] if hips else ():
        head, trochanter = np.array(center), np.array(capsules[1][1])
        inward = -np.sign(head[0]) * 4.0
        recipe.pieces.append(Piece(_ball(head, recipe.rng.uniform(12.0, 18.0)), "steel", 8.3))
        cup = head + np.array([inward, 0.0, 4.0])
        recipe.pieces += [
            Piece(_ball(cup, 27.0), "titanium", 4.4),
            Piece(_ball(cup, 24.0), "titanium", -4.4),
        ]
        recipe.pieces.append(Piece(Cylinder(head, trochanter, 6.5), "titanium", 4.4))
        end = trochanter + np.array([0.0, -5.0, -140.0])
        recipe.pieces.append(Piece(Cylinder(trochanter, end, 8.0), "titanium", 4.4))
    if not hips:
        _rods(recipe)


def ct_metal(recipe: Recipe) -> None:
    """metal in the CT alone: one or two rods of 5 mm radius and a ball in bone"""
    places = [(recipe.bone_point(), _direction(recipe)) for _ in range(2)]
    ball = recipe.bone_point()

    def change(volume: drrkit.Volume) -> drrkit.Volume:
        values = volume.values.clone()
        for place, along in places:
            for t in np.arange(-35.0, 35.1, 1.0):
                _paint(volume, values, place + t * along, 5.0)
        _paint(volume, values, ball, 14.0)
        return drrkit.Volume(values, volume.spacing, volume.origin, volume.direction, "HU")

    recipe.moving.append(change)


def _tool(recipe: Recipe) -> None:
    middle = recipe.at(*recipe.rng.uniform(15.0, 113.0, 2), SOD + recipe.rng.uniform(-150.0, 80.0))
    along = _direction(recipe, flat=0.35)
    kind = recipe.rng.integers(4)
    if kind == 0:  # wire or needle
        reach, radius = recipe.rng.uniform(40.0, 120.0), recipe.rng.uniform(0.7, 1.8)
        recipe.pieces.append(
            Piece(Cylinder(middle - reach * along, middle + reach * along, radius), "steel", 7.9)
        )
    elif kind == 1:  # clamp: two crossed arms
        other = rotation_matrix(0.15 * recipe.axes[2]) @ along
        for direction in (along, other):
            rod = Cylinder(middle - 70.0 * direction, middle + 50.0 * direction, 2.8)
            recipe.pieces.append(Piece(rod, "steel", 7.9))
        recipe.pieces.append(Piece(_ball(middle, 5.0), "steel", 7.9))
    elif kind == 2:  # retractor
        across = np.cross(along, recipe.axes[2])
        across /= np.linalg.norm(across)
        axes = np.stack([along, across, np.cross(along, across)])
        half = np.array([recipe.rng.uniform(40.0, 80.0), recipe.rng.uniform(6.0, 14.0), 1.2])
        recipe.pieces.append(Piece(Box(middle, axes, half), "steel", 7.9))
    else:  # trocar: a thick tube with a handle
        tip = middle + 60.0 * along
        recipe.pieces.append(Piece(Cylinder(middle, tip, 4.0), "steel", 4.0))
        recipe.pieces.append(Piece(Cylinder(middle - 45.0 * along, middle, 9.0), "plastic", 1.2))


def _screw(recipe: Recipe, place: np.ndarray, along: np.ndarray | None = None) -> None:
    along = _direction(recipe) if along is None else along
    length, radius = recipe.rng.uniform(25.0, 70.0), recipe.rng.uniform(1.8, 3.6)
    tip = place + length * along
    recipe.pieces.append(Piece(Cylinder(place, tip, radius), "titanium", 4.4))
    recipe.pieces.append(Piece(Cylinder(place - 4.0 * along, place, 1.7 * radius), "titanium", 4.4))


def _plate(recipe: Recipe, place: np.ndarray) -> None:
    along = _direction(recipe, flat=0.3)
    across = np.cross(along, recipe.rng.normal(size=3))
    across /= np.linalg.norm(across)
    axes = np.stack([along, across, np.cross(along, across)])
    half = np.array([recipe.rng.uniform(35.0, 70.0), 6.0, 1.8])
    recipe.pieces.append(Piece(Box(place, axes, half), "titanium", 4.4))
    for t in np.linspace(-0.85, 0.85, recipe.rng.integers(4, 8)):
        _screw(recipe, place + t * half[0] * along, axes[2])


def _rods(recipe: Recipe) -> None:
    """Two spinal rods with screws, along the patient."""
    place, up = recipe.bone_point(), np.array([0.0, 0.0, 1.0])
    for side in (-1.0, 1.0):
        rod = place + np.array([18.0 * side, 15.0, 0.0])
        end = recipe.rng.uniform(50.0, 90.0)
        recipe.pieces.append(Piece(Cylinder(rod - end * up, rod + end * up, 3.0), "titanium", 4.4))
        for z in (-40.0, -5.0, 30.0):
            _screw(recipe, rod + z * up, np.array([-0.25 * side, -0.97, 0.0]))
    _plate(recipe, recipe.bone_point())


def _direction(recipe: Recipe, flat: float = 1.0) -> np.ndarray:
    """A random unit vector, its part along the beam shrunk."""
    vector = (recipe.rng.normal(size=3) * np.array([1.0, 1.0, flat])) @ recipe.axes
    return vector / np.linalg.norm(vector)


def _ball(center: np.ndarray, radius: float) -> Ellipsoid:
    return Ellipsoid(center, np.eye(3), np.full(3, radius))


def _ellipsoid(recipe: Recipe, center: np.ndarray, radii: np.ndarray) -> Ellipsoid:
    return Ellipsoid(center, rotation_matrix(recipe.rng.normal(size=3)), radii)


def _paint(volume: drrkit.Volume, values: torch.Tensor, center: np.ndarray, radius: float) -> None:
    """3071 HU in a ball."""
    index = (center - np.array(volume.origin)) / np.array(volume.spacing)
    reach = radius / np.array(volume.spacing)
    low = np.maximum(np.floor(index - reach), 0).astype(int)
    high = np.minimum(np.ceil(index + reach) + 1, volume.shape_xyz).astype(int)
    if (high <= low).any():
        return
    grids = np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij")
    inside = sum(((g - i) / r) ** 2 for g, i, r in zip(grids, index, reach, strict=True)) <= 1.0
    box = values[..., low[2] : high[2], low[1] : high[1], low[0] : high[0]]
    box[..., torch.from_numpy(inside.transpose(2, 1, 0).copy())] = 3071.0


# Where the CT ends, and how it was sampled --------------------------------------------------------


def cut_head(recipe: Recipe) -> None:
    """the CT ends at the head end, 1 to 15 % of the field inside it"""
    _end(recipe, 2, 1.0, recipe.rng.uniform(0.01, 0.15))


def cut_foot(recipe: Recipe) -> None:
    """the CT ends at the foot end, 1 to 15 % of the field inside it"""
    _end(recipe, 2, -1.0, recipe.rng.uniform(0.01, 0.15))


def cut_side(recipe: Recipe) -> None:
    """the CT ends at one side (left, right, front or back), 1 to 15 % of the field inside it"""
    side = (-1.0, 1.0)[recipe.rng.integers(2)]
    _end(recipe, _sideways(recipe), side, recipe.rng.uniform(0.01, 0.15))


def cut_deep(recipe: Recipe) -> None:
    """the CT ends 25 % of the field inside it at the head or foot end, and at times at the other"""
    ends = [(-1.0, 1.0), (-1.0,), (1.0,)][recipe.rng.integers(3)]
    for k, end in enumerate(ends):
        _end(recipe, 2, end, 0.25 if k == 0 else 0.1)


def _sideways(recipe: Recipe) -> int:
    """x or y, whichever runs across the image."""
    return int(np.argmax(np.abs(recipe.axes[0][:2])))


def _end(recipe: Recipe, axis: int, sign: float, share: float) -> None:
    """Cut the CT where the share of the field, at the isocentre's depth, lies beyond the cut."""
    inner = 64.0 * (1.0 - 2.0 * share)
    across = recipe.axes[1] if axis == 2 else recipe.axes[0]
    towards = float(np.sign(across[axis]) * sign)
    edge = np.array([63.5, 63.5])
    edge[1 if axis == 2 else 0] += towards * inner
    depth = float(recipe.truth[2, :3] @ recipe.subject.focus + recipe.truth[2, 3])
    place = float(recipe.at(edge[0], edge[1], depth)[axis])
    if sign > 0:
        recipe.moving.append(lambda volume: cut(volume, axis, -np.inf, place))
    else:
        recipe.moving.append(lambda volume: cut(volume, axis, place, np.inf))


def thin_slices(recipe: Recipe) -> None:
    """slices of 1 or 3 mm in the user's CT"""
    _slices(recipe, (1.0, 3.0)[recipe.rng.integers(2)])


def thick_slices(recipe: Recipe) -> None:
    """slices of 6 mm in the user's CT"""
    _slices(recipe, 6.0)


def _slices(recipe: Recipe, thickness: float) -> None:
    recipe.moving.append(lambda volume: volume.resample((*volume.spacing[:2], thickness)))


# What moved ---------------------------------------------------------------------------------------


def femurs(recipe: Recipe) -> None:
    """both femurs turned by 5 to 12 degrees; errors on the pelvis' own points"""
    _turn(recipe, 5.0, 12.0)


def shoulders(recipe: Recipe) -> None:
    """both shoulder blades turned by 6 to 14 degrees; errors on what did not move"""
    _turn(recipe, 6.0, 14.0)


def spine(recipe: Recipe) -> None:
    """the lumbar spine bent by 12 degrees; errors on the pelvis' own points"""
    center, z0, z1 = SPINE_BENDS[recipe.subject.kind]
    angle = recipe.rng.uniform(0.0, 2 * np.pi)
    axis = torch.tensor([np.cos(angle), np.sin(angle), 0.0]).float()
    deform(recipe, [Bend(torch.tensor(center), axis, np.radians(12.0), z0, z1)])


def breathing(recipe: Recipe) -> None:
    """breathing: the front of the trunk moves 8 to 18 mm, ribs and organs with it"""
    still, front = BREATHING[recipe.subject.kind]
    depth = recipe.rng.uniform(8.0, 18.0) * (-1.0) ** recipe.rng.integers(2)
    stroke = depth * torch.tensor([0.0, -0.6, 0.8])
    deform(recipe, [Breath(still, front, stroke)])


def _turn(recipe: Recipe, low: float, high: float) -> None:
    for _, center, capsules in JOINTS[recipe.subject.kind]:
        axis = torch.from_numpy(recipe.rng.normal(size=3)).float()
        angle = np.radians(recipe.rng.uniform(low, high))
        deform(recipe, [Turn(torch.tensor(center), axis / axis.norm(), angle, capsules)])


# Physics ------------------------------------------------------------------------------------------


def scatter(recipe: Recipe) -> None:
    """scatter 0.5 to 1.5 of the primary"""
    replace_detector(recipe, scatter=recipe.rng.uniform(0.5, 1.5))


def much_scatter(recipe: Recipe) -> None:
    """scatter 3 times the primary"""
    replace_detector(recipe, scatter=3.0)


def few_photons(recipe: Recipe) -> None:
    """200 to 1,000 photons per pixel behind the patient"""
    replace_detector(recipe, photons=float(np.exp(recipe.rng.uniform(np.log(200), np.log(1000)))))


def fifty_photons(recipe: Recipe) -> None:
    """50 photons per pixel behind the patient"""
    replace_detector(recipe, photons=50.0)


def motion(recipe: Recipe) -> None:
    """motion during the exposure: 2 to 6 mm and up to 2 degrees"""
    shift = recipe.rng.normal(size=3)
    shift *= recipe.rng.uniform(2.0, 6.0) / np.linalg.norm(shift)
    recipe.motion = np.append(np.radians(recipe.rng.uniform(-2.0, 2.0, 3)), shift)


# Processing ---------------------------------------------------------------------------------------


def gamma(recipe: Recipe) -> None:
    """gamma of 0.5 to 2 on the displayed range"""
    power = float(np.exp(recipe.rng.uniform(np.log(0.5), np.log(2.0))))
    recipe.processing.append(lambda image: _window(image, 0.0, 100.0) ** power)


def window(recipe: Recipe) -> None:
    """a window that clips the lowest 5 to 25 % and the highest 2 to 15 % of the pixels"""
    low, high = recipe.rng.uniform(5.0, 25.0), 100.0 - recipe.rng.uniform(2.0, 15.0)
    recipe.processing.append(lambda image: _window(image, low, high))


def local_contrast(recipe: Recipe) -> None:
    """local contrast processing: low frequencies held back, contrast made even"""
    sigma, share = recipe.rng.uniform(6.0, 16.0), recipe.rng.uniform(0.5, 0.9)

    def process(image: np.ndarray) -> np.ndarray:
        detail = image - gaussian_filter(image, sigma)
        spread = np.sqrt(gaussian_filter(detail**2, sigma)) + 0.1 * detail.std()
        even = detail / spread * detail.std()
        return (1.0 - share) * image + share * even

    recipe.processing.append(process)


def eight_bit(recipe: Recipe) -> None:
    """8 bit, as a JPEG of quality 25 to 70"""
    quality = int(recipe.rng.integers(25, 71))

    def process(image: np.ndarray) -> np.ndarray:
        grey = Image.fromarray(np.round(255 * _window(image, 0.5, 99.5)).astype(np.uint8))
        buffer = io.BytesIO()
        grey.save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer)) / 255.0

    recipe.processing.append(process)


def log_forgotten(recipe: Recipe) -> None:
    """the logarithm forgotten: one minus the intensity as a share of the brightest pixel's"""
    recipe.processing.append(lambda image: 1.0 - np.exp(image.min() - image))


def negative(recipe: Recipe) -> None:
    """negative: bone dark"""
    recipe.processing.append(lambda image: image.max() - image)


def mirrored(recipe: Recipe) -> None:
    """mirrored left to right"""
    recipe.processing.append(lambda image: image[:, ::-1].copy())


def rotated(recipe: Recipe) -> None:
    """turned by 90 degrees, uncorrected; the pose that is right is turned likewise"""
    sign = (-1, 1)[recipe.rng.integers(2)]
    recipe.processing.append(lambda image: np.rot90(image, sign).copy())
    quarter = np.eye(4)
    quarter[:3, :3] = rotation_matrix(np.array([0.0, 0.0, -sign * np.pi / 2]))
    recipe.expected = quarter @ recipe.truth


def text(recipe: Recipe) -> None:
    """burned-in text: names and numbers in two corners, a letter, a scale"""
    rng = recipe.rng
    words = ["ANON^PATIENT", "1020mm 88kV 4.2mA", "L" if rng.random() < 0.5 else "R", "12:41:07"]
    corners = rng.permutation([(2, 2), (2, 108), (70, 2), (62, 116)])
    bright = rng.random() < 0.7

    def process(image: np.ndarray) -> np.ndarray:
        layer = Image.new("L", (128, 128))
        pen = ImageDraw.Draw(layer)
        for word, place in zip(words, corners, strict=True):
            big = 20 if len(word) == 1 else 9
            pen.text(tuple(int(v) for v in place), word, fill=255, font=ImageFont.load_default(big))
        pen.line([(122, 30), (122, 98)], fill=255)
        for row in range(30, 99, 17):
            pen.line([(118, row), (122, row)], fill=255)
        ink = np.asarray(layer) / 255.0
        return (1 - ink) * image + ink * (image.max() if bright else image.min())

    recipe.processing.append(process)


def _window(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Percentiles of the image to 0 and 1, the rest clipped."""
    a, b = np.percentile(image, [low, high])
    return np.clip((image - a) / (b - a), 0.0, 1.0)


# Geometry that is wrong ---------------------------------------------------------------------------


def wrong_sdd(recipe: Recipe) -> None:
    """source-to-detector distance stated 1, 2 or 5 % too long or too short"""
    recipe.declared = _declared(recipe, sdd=recipe.camera.sdd * (1.0 + _share(recipe)))


def wrong_pixel(recipe: Recipe) -> None:
    """pixel size stated 1, 2 or 5 % too large or too small"""
    recipe.declared = _declared(recipe, pixel_mm=recipe.camera.pixel_mm * (1.0 + _share(recipe)))


def wrong_principal(recipe: Recipe) -> None:
    """principal point off by 1, 2 or 5 % of the image's width"""
    offset = abs(_share(recipe)) * 128.0
    angle = recipe.rng.uniform(0.0, 2 * np.pi)
    col, row = recipe.camera.principal
    place = (col + offset * float(np.cos(angle)), row + offset * float(np.sin(angle)))
    recipe.declared = _declared(recipe, principal=place)


def distorted(recipe: Recipe) -> None:
    """intensifier distortion of 2 % at the edge, uncorrected"""
    recipe.distortion = 0.02


def much_distorted(recipe: Recipe) -> None:
    """intensifier distortion of 4 % at the edge, uncorrected"""
    recipe.distortion = 0.04


def other_pixels(recipe: Recipe) -> None:
    """pixels stated as 2.176 mm that are 2.8 mm"""
    declared = recipe.camera
    recipe.camera = _declared(recipe, pixel_mm=2.8)
    recipe.declared = declared


def _share(recipe: Recipe) -> float:
    return (0.01, 0.02, 0.05)[recipe.rng.integers(3)] * (-1.0) ** recipe.rng.integers(2)


def _declared(recipe: Recipe, **changes: object) -> Pinhole:
    return replace(recipe.camera, **changes)


# Sizes --------------------------------------------------------------------------------------------


def small(recipe: Recipe) -> None:
    """the whole scene 5 to 15 times smaller: objects of 20 to 60 mm"""
    recipe.scale = float(np.exp(recipe.rng.uniform(np.log(20 / 300), np.log(60 / 300))))


def large(recipe: Recipe) -> None:
    """the whole scene half or twice as large: objects of 150 and 600 mm"""
    recipe.scale = (0.5, 2.0)[recipe.rng.integers(2)]


# Wrong from the start -----------------------------------------------------------------------------


def wrong_patient(recipe: Recipe) -> None:
    """the CT of another patient: a phantom of the same kind"""
    kind = recipe.subject.kind.removeprefix("random_")
    kind = {"abdomen": "spine", "chest": "spine"}.get(kind, kind)
    seed = 1000 + int(recipe.rng.integers(1000))
    other = phantom(kind, seed, PHANTOM_MM, PHANTOM_SPACING)
    shift = recipe.subject.focus
    origin = tuple(float(o + s) for o, s in zip(other.origin, shift, strict=True))
    volume = drrkit.Volume(other.values, other.spacing, origin, other.direction, "HU")
    recipe.moving.append(lambda _: volume)


def wrong_side(recipe: Recipe) -> None:
    """the CT of the right hip, the X-ray collimated on the left one, with its mask"""
    middle = float(recipe.subject.focus[0])
    left = np.array([middle + 88.0, *recipe.subject.focus[1:]])
    if recipe.subject.kind == "pelvis":
        left = np.array(JOINTS["pelvis"][1][1])
    right = np.array([2 * middle - left[0], left[1], left[2]])
    _look_at(recipe, left, 45.0, 45.0)
    recipe.moving.append(lambda volume: cut(volume, 0, -np.inf, middle))
    recipe.start_focus = right


def wrong_vertebra(recipe: Recipe) -> None:
    """the CT cut to one lumbar vertebra, the X-ray collimated on another, 2 or 3 levels away"""
    boxes = VERTEBRAE[recipe.subject.kind]
    pair = [("L5", "L2"), ("L1", "L4"), ("L4", "L2"), ("L2", "L5")][recipe.rng.integers(4)]
    shown, moving = boxes[pair[0]], boxes[pair[1]]
    _look_at(recipe, (np.array(shown[0]) + np.array(shown[1])) / 2, 32.0, 20.0)
    for axis in range(3):
        low, high = moving[0][axis], moving[1][axis]
        recipe.moving.append(lambda volume, a=axis, b=low, c=high: cut(volume, a, b, c))
    recipe.start_focus = (np.array(moving[0]) + np.array(moving[1])) / 2


def _look_at(recipe: Recipe, place: np.ndarray, cols: float, rows: float) -> None:
    """Move the patient so that a world point is at the isocentre; collimate around it."""
    recipe.truth = recipe.truth.copy()
    seen = recipe.truth[:3, :3] @ place
    recipe.truth[:3, 3] = np.array([0.0, 0.0, SOD]) - seen
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.array([cols, rows])
    _open(recipe, 63.5 + corners)
    recipe.mask_given = True


# All together -------------------------------------------------------------------------------------


def theatre(recipe: Recipe) -> None:
    """operating theatre: irregular field with mask, table, cables, four tools, gas, scatter 1"""
    polygon(recipe)
    masked(recipe)
    table(recipe)
    cables(recipe)
    for _ in range(4):
        _tool(recipe)
    gas(recipe)
    replace_detector(recipe, scatter=1.0, photons=2000.0)


def intensifier(recipe: Recipe) -> None:
    """old intensifier: round field without mask, distortion 2 %, gamma, JPEG, text, 500 photons"""
    round_field(recipe)
    distorted(recipe)
    gamma(recipe)
    eight_bit(recipe)
    text(recipe)
    replace_detector(recipe, scatter=0.8, photons=500.0)


def everything(recipe: Recipe) -> None:
    """all at once, mask given: field, other soft tissue, gas, table, tools, screws, what can move
    moved, CT cut by 5 %, slices of 3 mm, scatter 1.5, sdd 1 % wrong"""
    rectangle(recipe)
    masked(recipe)
    soft_tissue(recipe)
    gas(recipe)
    table(recipe)
    few_tools(recipe)
    screws(recipe)
    kind = recipe.subject.kind
    if kind in JOINTS:
        _turn(recipe, 4.0, 10.0)
    if kind in SPINE_BENDS:
        spine(recipe)
    _end(recipe, 2, 1.0, 0.05)
    _slices(recipe, 3.0)
    replace_detector(recipe, scatter=1.5, photons=2000.0)
    sdd = recipe.camera.sdd * (1.0 + 0.01 * (-1.0) ** recipe.rng.integers(2))
    recipe.declared = _declared(recipe, sdd=sdd)


def _all(*changes: Callable[[Recipe], None]) -> tuple[str, Callable[[Recipe], None]]:
    """One after the other, and what they are in words."""

    def change(recipe: Recipe) -> None:
        for one in changes:
            one(recipe)

    return "; ".join(" ".join((one.__doc__ or "").split()) for one in changes), change


def _condition(name: str, *changes: Callable[[Recipe], None], **rest: object) -> Condition:
    return Condition(name, *_all(*changes), **rest)


TRUNKS = ("pelvis", "chest", "random_spine", "abdomen", "random_pelvis", "pelvis", "chest")
CONDITIONS: dict[str, Condition] = {
    condition.name: condition
    for condition in (
        _condition("none", nothing),
        _condition("soft_tissue", soft_tissue),
        _condition("gas", gas, kinds=TRUNKS),
        _condition("contrast", contrast, kinds=TRUNKS),
        _condition("arms", arms),
        _condition("table", table),
        _condition("cables", cables),
        _condition("rectangle_mask", rectangle, masked),
        _condition("rectangle", rectangle),
        _condition("round_mask", round_field, masked),
        _condition("round", round_field),
        _condition("irregular_mask", polygon, masked),
        _condition("irregular", polygon),
        _condition("tools_few", few_tools),
        _condition("tools_many", many_tools),
        _condition("screws", screws),
        _condition("implants", implants),
        _condition("metal_in_ct", ct_metal),
        _condition("cut_head", cut_head),
        _condition("cut_foot", cut_foot),
        _condition("cut_side", cut_side),
        _condition("cut_25", cut_deep, hard=True),
        _condition("slices_1_3", thin_slices),
        _condition("slices_6", thick_slices),
        _condition("femurs", femurs, kinds=("pelvis",)),
        _condition("shoulders", shoulders, kinds=("chest",)),
        _condition("spine", spine, kinds=("pelvis",)),
        _condition("breathing", breathing, kinds=("chest", "abdomen")),
        _condition("scatter", scatter),
        _condition("scatter_3", much_scatter),
        _condition("photons", few_photons),
        _condition("photons_50", fifty_photons, hard=True),
        _condition("motion", motion),
        _condition("gamma", gamma),
        _condition("window", window),
        _condition("local_contrast", local_contrast),
        _condition("jpeg", eight_bit),
        _condition("log_forgotten", log_forgotten, hard=True),
        _condition("negative", negative),
        _condition("text", text),
        _condition("small", small),
        _condition("large", large),
        _condition("sdd", wrong_sdd, scoring="geometry"),
        _condition("pixel_size", wrong_pixel, scoring="geometry"),
        _condition("principal_point", wrong_principal, scoring="reprojection"),
        _condition("distortion_2", distorted, scoring="geometry"),
        _condition("distortion_4", much_distorted, scoring="geometry", hard=True),
        _condition("pixels_2.8", other_pixels, scoring="geometry"),
        _condition("rotated_90", rotated, scoring="geometry", hard=True),
        _condition("mirrored", mirrored, scoring="refuse"),
        _condition("wrong_patient", wrong_patient, scoring="refuse"),
        _condition("wrong_side", wrong_side, scoring="refuse", kinds=("pelvis", "random_pelvis")),
        _condition("wrong_vertebra", wrong_vertebra, scoring="refuse", kinds=("pelvis",)),
        _condition("theatre", theatre, scoring="combination"),
        _condition("intensifier", intensifier, scoring="combination"),
        _condition("everything", everything, scoring="combination"),
    )
}
