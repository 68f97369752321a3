"""What an X-ray shows that the CT does not: content, things around, fields, metal.

Every function takes a recipe and changes it; what it draws comes from the recipe's own generator.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

import drrkit
from bench.studies.gauntlet.cases import SOD, Recipe
from bench.studies.gauntlet.projector import rotation_matrix
from bench.studies.gauntlet.solids import Box, Cylinder, Ellipsoid, Piece
from bench.studies.gauntlet.subjects import JOINTS

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
    open_field(recipe, middle + corners @ turn)


def round_field(recipe: Recipe) -> None:
    """round field of 60 to 95 % of the image's width, rims of 0.5 to 8 pixels"""
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    middle = 63.5 + recipe.rng.uniform(-8.0, 8.0, 2)
    radius = recipe.rng.uniform(0.3, 0.475) * 128.0
    open_field(recipe, middle + radius * np.stack([np.cos(angles), np.sin(angles)], 1))


def polygon(recipe: Recipe) -> None:
    """irregular field of 5 to 8 corners, rims of 0.5 to 8 pixels"""
    count = recipe.rng.integers(5, 9)
    angles = 2 * np.pi * (np.arange(count) + recipe.rng.uniform(-0.25, 0.25, count)) / count
    radius = recipe.rng.uniform(36.0, 62.0, count)
    open_field(recipe, 63.5 + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))


def masked(recipe: Recipe) -> None:
    """the user has the exact mask"""
    recipe.mask_given = True


def open_field(recipe: Recipe, corners: np.ndarray) -> None:
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
        one_tool(recipe)


def many_tools(recipe: Recipe) -> None:
    """five to twelve steel tools across the field"""
    for _ in range(recipe.rng.integers(5, 13)):
        one_tool(recipe)


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
                paint(volume, values, place + t * along, 5.0)
        paint(volume, values, ball, 14.0)
        return drrkit.Volume(values, volume.spacing, volume.origin, volume.direction, "HU")

    recipe.moving.append(change)


def one_tool(recipe: Recipe) -> None:
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


def paint(volume: drrkit.Volume, values: torch.Tensor, center: np.ndarray, radius: float) -> None:
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
