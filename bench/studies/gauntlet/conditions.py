"""The conditions: what is unlike the ideal, each alone, and three at once.

Every function takes a recipe and changes it; what it draws comes from the recipe's own generator.
The docstring of each is the line that the table's legend prints.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

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
from bench.studies.gauntlet.scenes import (
    arms,
    cables,
    contrast,
    ct_metal,
    few_tools,
    gas,
    implants,
    many_tools,
    masked,
    nothing,
    one_tool,
    open_field,
    polygon,
    rectangle,
    round_field,
    screws,
    soft_tissue,
    table,
)
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
    open_field(recipe, 63.5 + corners)
    recipe.mask_given = True


# All together -------------------------------------------------------------------------------------


def theatre(recipe: Recipe) -> None:
    """operating theatre: irregular field with mask, table, cables, four tools, gas, scatter 1"""
    polygon(recipe)
    masked(recipe)
    table(recipe)
    cables(recipe)
    for _ in range(4):
        one_tool(recipe)
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
