"""One case: who is X-rayed, how, what the user has, where the registration starts, how far it ends.

A `Recipe` is everything that is drawn; `draw` makes it from (seeds, condition, number), `simulate`
its X-ray, and `Case.of` what a user hands to drrkit.register.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import drrkit
from bench.studies.gauntlet.physics import Detector, transmitted
from bench.studies.gauntlet.projector import (
    OVERSAMPLING,
    Deformation,
    Pinhole,
    area_densities,
    detector_positions,
    rotation_matrix,
)
from bench.studies.gauntlet.solids import Piece, add_areas
from bench.studies.gauntlet.subjects import SEEDS, Chain, Subject, names_of, subject

CHAIN = 2  # raised when X-rays change: cached ones of another number are not read
SDD, SOD, SIZE, PIXEL_MM = 1020.0, 800.0, (128, 128), 2.176
CYCLE = (
    "pelvis",
    "random_spine",
    "chest",
    "random_pelvis",
    "pelvis",
    "abdomen",
    "chest",
    "random_skull",
)
VIEWS = ("AP", "lateral", "PA", "oblique")
TARGET = (15.0, 25.0)  # degrees and mm, half widths of the true pose about its view


@dataclass(frozen=True)
class Start:
    """A protocol (design: narrow, ProST, CDreg): six half widths or standard deviations."""

    name: str
    stages: str
    widths: tuple[float, ...]
    about_truth: bool = True
    normal: bool = False


STARTS = {
    start.name: start
    for start in (
        Start("narrow", "auto", (10.0, 10.0, 10.0, 20.0, 20.0, 50.0)),
        Start("prost", "global", (50.0, 50.0, 50.0, 200.0, 200.0, 300.0), about_truth=False),
        Start("cdreg", "global", (20.0, 20.0, 20.0, 30.0, 30.0, 60.0), normal=True),
    )
}
"""Degrees about the camera's x, y, z, then mm along them."""


@dataclass(frozen=True)
class Condition:
    """What is unlike the ideal: a name, a line that says it, and a change to a recipe.

    Attributes:
        kinds: subjects it is drawn from.
        scoring: "plain"; "geometry" (depth counts against its own sigma); "reprojection" (the
            principal point: points are compared in the image); "refuse" (no pose is right: accepted
            is a fault); "combination".
        hard: listed apart; right or refused is what is asked.
    """

    name: str
    text: str
    change: Callable[[Recipe], None]
    kinds: tuple[str, ...] = CYCLE
    scoring: str = "plain"
    hard: bool = False


@dataclass(eq=False)
class Recipe:
    """What an X-ray shows and what the user has; conditions change it in place.

    Attributes:
        truth, nominal: world_to_camera [4, 4] of the X-ray, and of the view that it varies.
        camera: of the X-ray.
        declared: the camera that the user states, None for the true one.
        pieces: solids in the scene that the CT does not have.
        opening: share of the beam let through [rows, cols], and whether the user has the mask.
        motion: twist (rad, mm) over the exposure.
        processing: image [rows, cols] -> image, in turn.
        moving: Volume in HU -> Volume in HU, in turn: what the user's CT is unlike the whole.
        scale: of all lengths, with mu divided by it.
        expected: the pose that is right for the image as the user has it; None for the truth.
        start_focus: world point whose place at the isocentre starts are about; None for the rule.
    """

    rng: np.random.Generator
    subject: Subject
    view: str
    nominal: np.ndarray
    truth: np.ndarray
    camera: Pinhole
    kilovolt: float
    detector: Detector = field(default_factory=Detector)
    declared: Pinhole | None = None
    pieces: list[Piece] = field(default_factory=list)
    deformation: Deformation | None = None
    opening: np.ndarray | None = None
    mask_given: bool = False
    motion: np.ndarray | None = None
    distortion: float = 0.0
    processing: list[Callable[[np.ndarray], np.ndarray]] = field(default_factory=list)
    moving: list[Callable[[drrkit.Volume], drrkit.Volume]] = field(default_factory=list)
    scale: float = 1.0
    expected: np.ndarray | None = None
    start_focus: np.ndarray | None = None

    @property
    def axes(self) -> np.ndarray:
        """[3, 3], rows: the camera's right, down and forward in the world."""
        return self.truth[:3, :3]

    def at(self, col: float, row: float, depth: float) -> np.ndarray:
        """World point at a pixel and a depth (mm from the source along the axis)."""
        focal = self.camera.sdd / self.camera.pixel_mm
        seen = np.array([col, row]) - np.array(self.camera.principal)
        seen = np.append(seen / focal, 1.0) * depth
        return self.truth[:3, :3].T @ (seen - self.truth[:3, 3])

    def bone_point(self, margin_px: float = 20.0) -> np.ndarray:
        """A bone point of the CT that falls inside the image."""
        pixels = self.camera.pixels(self.subject.points, self.truth)
        size = np.array(self.camera.size[::-1])
        inside = ((pixels > margin_px) & (pixels < size - margin_px)).all(1)
        points = self.subject.points[inside] if inside.any() else self.subject.points
        return points[self.rng.integers(len(points))]

    def tissue_point(self) -> np.ndarray:
        """A point in the trunk inside the image."""
        inner = self.subject.low + 0.25 * (self.subject.high - self.subject.low)
        outer = self.subject.high - 0.25 * (self.subject.high - self.subject.low)
        for _ in range(200):
            point = self.rng.uniform(inner, outer)
            pixel = self.camera.pixels(point[None], self.truth)[0]
            if (pixel > 8).all() and (pixel < np.array(self.camera.size[::-1]) - 8).all():
                return point
        return self.subject.focus


def rng_of(seeds: str, condition: str, number: int, stream: int = 0) -> np.random.Generator:
    """A generator of its own for every set of seeds, condition, number and stream."""
    return np.random.default_rng((SEEDS[seeds], zlib.crc32(condition.encode()), number, stream))


def moved(pose: np.ndarray, motion: np.ndarray, center: np.ndarray) -> np.ndarray:
    """A pose after turns Rx Ry Rz (rad) about a world point and a shift (mm) in camera axes."""
    turn = np.eye(3)
    for axis in range(3):
        turn = turn @ rotation_matrix(motion[axis] * np.eye(3)[axis])
    result = np.eye(4)
    result[:3, :3] = turn @ pose[:3, :3]
    result[:3, 3] = pose[:3, :3] @ center + pose[:3, 3] + motion[3:] - result[:3, :3] @ center
    return result


def draw(condition: Condition, seeds: str, number: int, cache: Path) -> Recipe:
    """The recipe of a case, always the same one."""
    rng = rng_of(seeds, condition.name, number)
    offset = zlib.crc32(condition.name.encode())
    kind = condition.kinds[(number + offset) % len(condition.kinds)]
    view = VIEWS[(number + number // len(VIEWS) + offset // 8) % len(VIEWS)]
    who = subject(names_of([kind], seeds)[0], cache)
    nominal = _view(who, view, rng)
    shift = rng.uniform(-1, 1, 3) * TARGET[1]
    turn = np.radians(rng.uniform(-1, 1, 3) * TARGET[0])
    camera = Pinhole.centred(SDD, SIZE, PIXEL_MM)
    truth = kept_inside(moved(nominal, np.append(turn, shift), who.focus), camera, who)
    recipe = Recipe(rng, who, view, nominal, truth, camera, float(rng.uniform(70.0, 110.0)))
    condition.change(recipe)
    return recipe


def kept_inside(pose: np.ndarray, camera: Pinhole, who: Subject) -> np.ndarray:
    """The pose with the camera moved along the patient until the CT's ends are out of the field.

    Rays through the image's corners and edges are followed through the body, 0.85 of the box
    across; where a field is too wide for the CT, it ends as far outside at the head as at the foot.
    """
    cols, rows = (grid.ravel() for grid in np.meshgrid((0.0, 63.5, 127.0), (0.0, 127.0)))
    source, directions = camera.rays(pose, cols, rows)
    middle, half = (who.low + who.high)[:2] / 2, 0.85 * (who.high - who.low)[:2] / 2
    faces = np.stack([middle - half, middle + half]) - source[:2]
    with np.errstate(divide="ignore"):
        times = faces[:, None] / directions[None, :, :2]
    near, far = times.min(0).max(1), times.max(0).min(1)
    through = near < far
    if not through.any():
        return pose
    z = source[2] + directions[through, 2] * np.stack([near, far])[:, through]
    under, over = who.low[2] - z.min(), z.max() - who.high[2]
    shift = (under - over) / 2 if under > -over else float(np.clip(0.0, under, -over))
    result = pose.copy()
    result[:3, 3] -= pose[:3, 2] * shift
    return result


def _view(who: Subject, view: str, rng: np.random.Generator) -> np.ndarray:
    """world_to_camera of a view with the subject's focus at the isocentre."""
    base = view if view in ("AP", "PA") else ("AP", "PA")[rng.integers(2)]
    side = (-1.0, 1.0)[rng.integers(2)]
    primary = {"lateral": 90.0, "oblique": rng.uniform(20.0, 50.0)}.get(view, 0.0)
    secondary = rng.uniform(-5.0, 5.0) if view == "oblique" else 0.0
    pose = drrkit.view_carm(
        who.moving, SOD, math.radians(side * primary), math.radians(secondary), base=base
    )[0]
    result = pose.double().numpy().copy()
    result[:3, 3] = np.array([0.0, 0.0, SOD]) - result[:3, :3] @ who.focus
    return result


def simulate(recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """The X-ray [rows, cols] as the user gets it: lines unless its processing says otherwise."""
    size = recipe.camera.size
    cols, rows = detector_positions(size, rng, recipe.distortion)
    cell = np.add.outer(
        OVERSAMPLING * (np.arange(size[0] * OVERSAMPLING) % OVERSAMPLING),
        np.arange(size[1] * OVERSAMPLING) % OVERSAMPLING,
    ).ravel()
    times = [0.0] if recipe.motion is None else np.linspace(-0.5, 0.5, OVERSAMPLING**2)
    primary = np.empty(len(cols))
    for k, time in enumerate(times):
        part = slice(None) if recipe.motion is None else cell == k
        motion = np.zeros(6) if recipe.motion is None else time * recipe.motion
        pose = moved(recipe.truth, motion, recipe.subject.focus)
        source, directions = recipe.camera.rays(pose, cols[part], rows[part])
        areas = area_densities(recipe.subject.grid, source, directions, rng, recipe.deformation)
        areas = add_areas(areas, recipe.pieces, source, directions)
        primary[part] = transmitted(areas, recipe.kilovolt)
    fine = primary.reshape(size[0] * OVERSAMPLING, -1)
    open_field = np.ones(size) if recipe.opening is None else recipe.opening
    image = recipe.detector.lines(fine, OVERSAMPLING, open_field, rng)
    for process in recipe.processing:
        image = process(image)
    return image


@dataclass(frozen=True, eq=False)
class Case:
    """What the user hands to drrkit.register, and what is known about the right answer."""

    volume: drrkit.Volume
    camera: drrkit.CArm
    xray: torch.Tensor
    mask: torch.Tensor | None
    start: torch.Tensor
    truth: np.ndarray
    true_camera: Pinhole
    declared: Pinhole
    points: np.ndarray
    scale: float
    subject: str
    view: str

    @staticmethod
    def of(condition: Condition, seeds: str, number: int, start: Start, cache: Path) -> Case:
        """The case of this number; its X-ray from the cache where it is there."""
        recipe = draw(condition, seeds, number, cache)
        image = cached_xray(condition, seeds, number, cache, recipe)
        volume = recipe.subject.moving
        for change in recipe.moving:
            volume = change(volume)
        points = recipe.subject.points
        if recipe.deformation is not None:
            places = torch.from_numpy(points).float()
            points = points[((recipe.deformation(places) - places).norm(dim=-1) < 0.05).numpy()]
        expected = recipe.truth if recipe.expected is None else recipe.expected
        pose = start_pose(recipe, volume, rng_of(seeds, condition.name, number, 2), start)
        k = recipe.scale
        declared = (recipe.declared or recipe.camera).scaled(k)
        mask = None
        if recipe.opening is not None and recipe.mask_given:
            mask = torch.from_numpy((recipe.opening > 0.97).astype(np.float32))[None, None]
        mu = volume.to_mu()
        if k != 1.0:
            spacing, origin = (tuple(k * x for x in xs) for xs in (mu.spacing, mu.origin))
            mu = drrkit.Volume(mu.values / k, spacing, origin, mu.direction, "mu")
        return Case(
            volume=mu,
            camera=drrkit.CArm(declared.sdd, declared.size, declared.pixel_mm, declared.principal),
            xray=torch.from_numpy(image.astype(np.float32))[None, None],
            mask=mask,
            start=torch.from_numpy(_stretched(pose, k)),
            truth=_stretched(expected, k),
            true_camera=recipe.camera.scaled(k),
            declared=declared,
            points=k * points,
            scale=k,
            subject=recipe.subject.name,
            view=recipe.view,
        )

    def errors(self, pose: np.ndarray) -> dict[str, float]:
        """mTRE, its parts in plane and depth, reprojection (all mm, means over points), degrees.

        In plane and depth are the parts of the points' errors across and along the true camera's
        axis. Reprojection is their distance in the image, of the true camera's truth from the
        declared camera's pose, scaled to the points' own depth.
        """
        turn, shift = self.truth[:3, :3], self.truth[:3, 3]
        truth = self.points @ turn.T + shift
        found = self.points @ pose[:3, :3].T + pose[:3, 3]
        off = found - truth
        pixels = self.declared.pixels(self.points, pose)
        pixels = pixels - self.true_camera.pixels(self.points, self.truth)
        size_mm = self.true_camera.pixel_mm / self.true_camera.sdd * truth[:, 2]
        cosine = (np.trace(pose[:3, :3] @ turn.T) - 1) / 2
        return {
            "mtre": float(np.linalg.norm(off, axis=1).mean()),
            "in_plane": float(np.linalg.norm(off[:, :2], axis=1).mean()),
            "depth": float(np.abs(off[:, 2]).mean()),
            "reprojection": float((np.linalg.norm(pixels, axis=1) * size_mm).mean()),
            "degrees": math.degrees(math.acos(min(1.0, max(-1.0, float(cosine))))),
        }


def start_pose(
    recipe: Recipe,
    volume: drrkit.Volume,
    rng: np.random.Generator,
    start: Start,
) -> np.ndarray:
    """Where a protocol begins: turned and shifted about the centre of the user's volume.

    Starts near the truth are near that of the X-ray as it was taken: who does not know that an
    image was turned does not start from a turned pose.
    """
    center = drrkit.volume_center(volume).double().numpy()
    rng = np.random.default_rng((int(rng.integers(2**31)), zlib.crc32(start.name.encode())))
    units = rng.standard_normal(6) if start.normal else rng.uniform(-1, 1, 6)
    offset = units * np.array(start.widths) * np.array([math.pi / 180] * 3 + [1.0] * 3)
    origin = (recipe.truth if start.about_truth else recipe.nominal).copy()
    if not start.about_truth or recipe.start_focus is not None:
        middle = center if recipe.start_focus is None else recipe.start_focus
        origin[:3, 3] = np.array([0.0, 0.0, SOD]) - origin[:3, :3] @ middle
    return moved(origin, offset, center)


def cached_xray(
    condition: Condition, seeds: str, number: int, cache: Path, recipe: Recipe
) -> np.ndarray:
    """A case's X-ray, simulated where no file has it; a file appears whole or not at all."""
    path = cache / f"xrays-{CHAIN}" / seeds / condition.name / f"{number}.npy"
    if path.exists():
        return np.load(path)
    image = simulate(recipe, rng_of(seeds, condition.name, number, 1)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        np.save(file, image)
    draft.replace(path)
    return image


def _stretched(pose: np.ndarray, factor: float) -> np.ndarray:
    """A pose in a world and a camera whose lengths are all multiplied."""
    result = pose.copy()
    result[:3, 3] *= factor
    return result


def deform(recipe: Recipe, parts: list) -> None:
    """Add deformations to a recipe's own."""
    before = [] if recipe.deformation is None else [recipe.deformation]
    recipe.deformation = Chain((*before, *parts))


def replace_detector(recipe: Recipe, **changes: float) -> None:
    """Change single attributes of the detector."""
    recipe.detector = replace(recipe.detector, **changes)
