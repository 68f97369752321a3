"""The open field of an X-ray: what neither a collimator's blades nor an intensifier's rim cover.

Seen from a point inside the field, its rim is a closed curve across which the attenuation rises and
stays high, in every direction. The curve is the closed path of largest rise in polar coordinates,
found by dynamic programming (as Timp and Karssemeijer, Med. Phys. 31:958, 2004, find the outlines
of masses) from several points. It counts as a rim only where the rise is there nearly all around
and what it encloses is convex: a lung or a patient's outline is neither.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.xray.prepare import convex_depth

_SIDE = 128  # pixels along the longer side on which a field is looked for
_DIRECTIONS = 144
_STEEPEST = 4  # largest change of the radius from one direction to the next, pixels
_NEAREST = 6  # smallest radius, pixels
_CENTERS = (0.32, 0.5, 0.68)  # points to look from, shares of the sides

# Half widths of rims, pixels; each step up costs this much of a full rise: sharp rims win.
_WIDTHS, _WIDER = (1, 2, 4, 8), 0.1

# Shares of the image's range (2 to 98 %): a rise that counts in full, and the least of a rim.
_FULL, _LEAST = 0.25, 0.18
_SEEN = 0.6  # share of the directions with a rim inside the image; air beside a patient has less
_AROUND = 0.9  # share of those in which it has to rise
_BORDER = 0.5  # what the image's border is worth beside a full rise: content there is worth less
_DEEPEST = 12  # pixels: no rim begins farther inside
_BEYOND, _LASTING = 10, 0.06  # so far outside the rim, pixels, so much of the rise is left
_CONVEX = 0.92  # share of its convex hull that a field fills, tools in front of it aside
_WORTH, _WORTH_CUT = 0.96, 0.9  # mean worth of a rim, whole and cut by the image's border
# Least shares of the image, of a field inside it and of one cut by its border: a lung fills less.
_SMALLEST, _CUT = 0.13, 0.3


class _Outline(NamedTuple):
    """A closed curve about a point; tensors hold a value per direction.

    score: mean worth of its path; center: (x, y) pixels; radius: pixels; foot: how far inside it
    the rim begins, pixels; rise, lasting: shares of the image's range; border: where the curve is
    the image's.
    """

    score: float
    center: Tensor
    radius: Tensor
    foot: int
    rise: Tensor
    lasting: Tensor
    border: Tensor


def open_field(image: Tensor, mask: Tensor | None = None) -> Tensor | None:
    """Where the beam was open: [1, 1, rows, cols] bool, or None where no field's rim is seen.

    Finds rectangular, round and other convex fields that fill at least 13 % of the image (30 %
    where its border cuts them), and leaves out their rims: what gets less than half of the beam,
    and most of what gets less than 90 %.

    Args:
        image: [..., rows, cols], bright where the beam is attenuated, such as line integrals.
        mask: of its shape, 0 where pixels are to be ignored; they count as covered.
    """
    rows, cols = image.shape[-2:]
    if min(rows, cols) < 24:
        return None
    # On the CPU: a path is found one direction after the other.
    grid = image.detach().reshape(1, 1, rows, cols).to("cpu", torch.float64)
    if mask is not None:
        known = mask.detach().reshape(1, 1, rows, cols).cpu() > 0
        grid = torch.where(known, grid, grid[known].max())
    factor = max(1, round(max(rows, cols) / _SIDE))
    small = functional.avg_pool2d(grid, factor, ceil_mode=True, count_include_pad=False)
    best = max((_outline(small, x, y) for y in _CENTERS for x in _CENTERS), key=_score)
    best = max(best, _outline(small, *_middle(best, small)), key=_score)
    size = (int(small.shape[-2]), int(small.shape[-1]))
    if not _is_rim(best, _enclosed(best, size, 1, 0)):
        return None
    return _enclosed(best, (rows, cols), factor, best.foot + 2).to(image.device)


def _score(outline: _Outline) -> float:
    return outline.score


def _angles(like: Tensor) -> Tensor:
    return torch.arange(_DIRECTIONS).to(like) * (2 * math.pi / _DIRECTIONS)


def _outline(image: Tensor, x: float, y: float) -> _Outline:
    """The curve about a point (shares of the sides) across which the image rises most."""
    size = image.new_tensor([image.shape[-1] - 1.0, image.shape[-2] - 1.0])
    center = image.new_tensor([x, y]) * size
    angle = _angles(image)
    radius = torch.arange(max(image.shape)).to(image)[:, None]
    place = center + radius[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    outside = ((place < 0) | (place > size)).any(-1)  # [radius, direction]
    grid = (2 * place / size - 1)[None]
    ray = functional.grid_sample(image, grid, align_corners=True, padding_mode="border")[0, 0]
    low, high = torch.quantile(image.flatten(), image.new_tensor([0.02, 0.98]))
    ray = ray / (high - low).clamp_min(torch.finfo(ray.dtype).tiny)
    worth, rise = _rises(ray, (~outside).sum(0))
    worth = torch.where(outside, _BORDER, worth)
    worth = torch.where(radius < _NEAREST, -1.0, worth)
    path = _closed_path(worth)
    index = torch.arange(_DIRECTIONS)
    beyond = torch.minimum(path + _BEYOND, (~outside).sum(0) - 1)
    return _Outline(
        float(worth[path, index].mean()),
        center,
        radius[path, 0],
        _foot(ray, path, outside[path, index]),
        rise[path, index],
        ray[beyond, index] - ray[(path - 4).clamp_min(0), index],
        outside[path, index],
    )


def _foot(ray: Tensor, path: Tensor, border: Tensor) -> int:
    """How far inside a path the image begins to rise, pixels: where the median profile over the
    directions has a thirtieth of its rise. On a logarithmic scale that is far inside a soft rim."""
    seen = (~border).nonzero().flatten()
    if len(seen) == 0:
        return 0
    inwards = torch.arange(-4, _DEEPEST + 1)
    place = (path[seen] - inwards[:, None]).clamp(0, len(ray) - 1)
    profile = (ray[place, seen] - ray[place[-1], seen]).median(1).values
    rising = profile > 0.03 * profile[0]
    return int(inwards[rising.nonzero().max()]) + 1 if bool(rising.any()) else 0


def _rises(ray: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """What a rim at each [radius, direction] is worth, and how much the ray rises there outwards.

    inside: [direction] samples before the image ends.
    """
    total = functional.pad(ray.cumsum(0), (0, 0, 1, 0))
    count = ray.shape[0]
    radius = torch.arange(count)
    worth, rise = torch.full_like(ray, -torch.inf), torch.zeros_like(ray)
    for number, half in enumerate(_WIDTHS):
        span = max(2, half)
        outer = (radius + half).clamp(0, count - span)
        inner = (radius - half - span + 1).clamp(0, count - span)
        step = (total[outer + span] - total[outer] - total[inner + span] + total[inner]) / span
        step = torch.where(radius[:, None] + half + span > inside, 0.0, step)
        own = (step / _FULL).clamp(-1.0, 1.0) + 0.2 * step.clamp(-1.0, 1.0) - _WIDER * number
        better = own > worth
        worth, rise = torch.where(better, own, worth), torch.where(better, step, rise)
    return worth, rise


def _closed_path(worth: Tensor) -> Tensor:
    """Radius index in every direction of the closed path of largest worth, of two laps' middle."""
    count = worth.shape[1]
    total, steps = worth[:, 0], []
    for number in range(1, 2 * count + 1):
        reach = functional.pad(total, (_STEEPEST, _STEEPEST), value=-torch.inf)
        total, chosen = reach.unfold(0, 2 * _STEEPEST + 1, 1).max(-1)
        steps.append(chosen - _STEEPEST)
        total = total + worth[:, number % count]
    at, path = int(total.argmax()), torch.zeros(count, dtype=torch.long)
    for number in range(2 * count, 0, -1):
        if count // 2 < number <= count + count // 2:
            path[number % count] = at
        at += int(steps[number - 1][at])
    return path


def _middle(outline: _Outline, image: Tensor) -> tuple[float, float]:
    """Centroid of what an outline encloses, as shares of the sides."""
    angle, radius = _angles(outline.radius), outline.radius
    weight = 2 / 3 * radius**3 / radius.square().sum()
    x, y = ((weight * trig).sum() for trig in (angle.cos(), angle.sin()))
    shares = (outline.center + torch.stack((x, y))) / image.new_tensor(
        [image.shape[-1] - 1.0, image.shape[-2] - 1.0]
    )
    return float(shares[0].clamp(0.1, 0.9)), float(shares[1].clamp(0.1, 0.9))


def _is_rim(outline: _Outline, enclosed: Tensor) -> bool:
    """Whether a curve is a field's: the image rises nearly all around and stays, and it is convex.

    enclosed: [1, 1, rows, cols], the pixels inside.
    """
    seen = ~outline.border
    if int(seen.sum()) < _SEEN * _DIRECTIONS:
        return False
    worth = outline.score * _DIRECTIONS - _BORDER * (_DIRECTIONS - int(seen.sum()))
    if worth < (_WORTH if bool(seen.all()) else _WORTH_CUT) * int(seen.sum()):
        return False
    rises = (outline.rise > _LEAST) & (outline.lasting > _LASTING)
    if float(rises[seen].double().mean()) < _AROUND:
        return False
    hull = float((convex_depth(enclosed) >= 0).sum())
    area = float(enclosed.sum())
    least = _SMALLEST if bool(seen.all()) else _CUT
    return area > least * enclosed.numel() and area > _CONVEX * hull


def _enclosed(outline: _Outline, size: tuple[int, int], factor: int, margin: int) -> Tensor:
    """Pixels of an image of this size, `factor` times finer, inside an outline by a margin.

    margin: pixels of the coarse image; none at the image's border.
    """
    inner = (outline.radius - torch.where(outline.border, -1.0, margin)) * factor
    across, along = outline.center.tolist()
    y = torch.arange(size[0]).to(inner)[:, None] - (along + 0.5) * factor + 0.5
    x = torch.arange(size[1]).to(inner) - (across + 0.5) * factor + 0.5
    turn = torch.atan2(y, x).remainder(2 * math.pi) / (2 * math.pi) * _DIRECTIONS
    first = turn.floor().long() % _DIRECTIONS
    limit = torch.lerp(inner[first], inner[(first + 1) % _DIRECTIONS], turn - turn.floor())
    return (torch.hypot(x, y) < limit)[None, None]
