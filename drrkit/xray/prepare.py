"""Real X-rays made ready for registration: polarity, logarithm, shutters, vignette, scale, crop.

A detector's file shows the shutters of the collimator or the round field of an image intensifier,
may be bright or dark where bone is, and may fall off towards its edges. `preprocess_xray` returns
what `drrkit.register` compares: bone bright on the scale of line integrals, a mask of the open
field, and the camera of the cropped window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from drrkit.geometry import Camera, check_counts

KINDS = ("auto", "intensity", "line", "inverted")
AUTO_LEVELS = (0.0002, 0.001, 0.005, 0.02)
EDGE, STEP = 3, 0.15  # a shutter's edge: within so many pixels, so much of the image's range
AIR_SHARE = 0.03  # of the field: with less air, no vignette is estimated
AIR_LEVEL = 0.6  # of the brightest: air, vignette or not
FLATNESS = 0.02  # median deviation of the air's logarithm from a vignette that fits it


class PreprocessedXray(NamedTuple):
    """An X-ray ready to be registered.

    image   [1, 1, rows, cols], bone bright; 0 to 1 if scaled, else minus log intensity or the
            input's own numbers
    mask    [1, 1, rows, cols] of the image's dtype, 1 where the patient or air is seen, 0 behind
            shutters: the `mask` of `drrkit.register` and of the losses
    camera  of this window: the principal point has moved with the crop
    kind    "intensity", "line" or "inverted": how the pixels were read
    i0      unattenuated intensity, None unless the kind is "intensity"
    """

    image: Tensor
    mask: Tensor
    camera: Camera
    kind: str
    i0: float | None


def preprocess_xray(
    pixels: Tensor,
    camera: Camera,
    *,
    kind: str = "auto",
    i0: float | None = None,
    mask: Tensor | None = None,
    flat_field: Tensor | None = None,
    vignette: bool = True,
    shutter_level: float | str | None = "auto",
    border: int = 2,
    percentiles: tuple[float, float] | None = (1.0, 99.0),
    crop: bool = True,
) -> PreprocessedXray:
    """One X-ray as a detector's file holds it, made ready for registration.

    Args:
        pixels: [rows, cols] or [1, 1, rows, cols], any real dtype, finite.
        camera: of the whole detector, its size that of the pixels.
        kind: what the pixels are. "intensity": proportional to photons, bone dark; the logarithm
            is taken. "line": bone bright, already logarithmic. "inverted": bone dark, already
            logarithmic (a display image). "auto": "line" if `bone_is_bright`, else "intensity".
            Prefer what the file states: DICOM's Pixel Intensity Relationship and its sign.
        i0: unattenuated intensity; default the median of the brightest hundredth in the open field.
        mask: above 0 where the field is known to be open, of the pixels' size: a file's
            `Xray.mask`. Pixels outside it (black, white or padding) are ignored.
        flat_field: image of the open beam of the pixels' size, divided out before anything else.
        vignette: without a flat field, divide an intensity by an even polynomial of the radius
            fitted to the air around the patient. Nothing is done where less than 3 % of the field
            is air, or air is seen in fewer than three quarters of the image.
        shutter_level: pixels within this share of the range from the most attenuated value count
            as blocked; the convex hull of all others is the open field (a collimator's polygon or
            an image intensifier's circle). "auto": the lowest of 0.0002 to 0.02 whose field ends in
            a sharp edge, as a thick patient's shadow does not; without one, and for None, the
            whole detector is open.
        border: pixels removed all around the open field, for penumbra.
        percentiles: of the open field, scaled to 0 and 1 (not clipped); None: no scaling.
        crop: to the open field's bounding box.

    Returns:
        a PreprocessedXray.

    Raises:
        TypeError, ValueError: pixels that are not one finite image of the camera's size or all
            equal, a mask of another size or all zero, an unknown kind, negative intensities, a
            level, border or percentiles out of range.
    """
    image = _checked_pixels(pixels, camera)
    _check_options(kind, shutter_level, border, percentiles)
    known = None if mask is None else _checked_mask(mask, image)
    if flat_field is not None:
        image = _divided(image, flat_field)
    if kind == "auto":
        kind = "line" if bone_is_bright(image, known) else "intensity"
    if known is not None:  # as dark as a shutter
        low, high = torch.aminmax(image[known])
        image = torch.where(known, image, high if kind == "line" else low)
    mask = _open_field(image, kind, shutter_level, border)
    mask = mask if known is None else mask & known
    if not bool(mask.any()):
        raise ValueError(
            f"border, mask: expected to leave some of the open field, got border={border} and "
            f"{'no mask' if known is None else 'a mask'} that leave none"
        )
    found_i0 = None
    if kind == "intensity":
        if vignette and flat_field is None:
            image = _without_vignette(image, mask)
        brightest = torch.quantile(_sample(image[mask]), 0.995)
        found_i0 = float(brightest if i0 is None else i0)
        image = _minus_log(image, found_i0)
    elif kind == "inverted":
        image = -image
    if percentiles is not None:
        image = _scaled(image, mask, percentiles)
    mask = mask.to(image)
    if crop:
        image, mask, camera = _cropped(image, mask, camera)
    return PreprocessedXray(image, mask, camera, kind, found_i0)


def bone_is_bright(pixels: Tensor, mask: Tensor | None = None) -> bool:
    """Whether an image is bright where the patient attenuates, judged by its pixels.

    A patient is thicker in the middle of the picture than at its edge: the mean rank of the inner
    pixels is compared with that of the outer ones, inside the convex hull of the pixels that are
    neither at the lowest nor at the highest value (shutters, saturated air). This is a guess that
    holds only for a patient in the middle of the image.

    Args:
        pixels: [rows, cols] or [1, 1, rows, cols].
        mask: of the same size, 0 where pixels are to be ignored.

    Raises:
        ValueError: an image of one value.
    """
    image = pixels.reshape(1, 1, *pixels.shape[-2:]).to(torch.float64)
    known = torch.ones_like(image, dtype=torch.bool) if mask is None else mask.reshape_as(image) > 0
    low, high = torch.aminmax(image[known])
    if low == high:
        raise ValueError(f"pixels: expected an X-ray, got an image whose pixels are {float(low):g}")
    margin = 0.003 * (high - low)
    alive = opened(known & (image > low + margin) & (image < high - margin))
    if not bool(alive.any()):
        alive = known
    depth = convex_depth(alive)
    ranks = image.flatten().argsort().argsort().reshape(image.shape).double()
    deepest = depth.max()
    inner = ranks[alive & (depth > 0.5 * deepest)].mean()
    outer = ranks[alive & (depth >= 0) & (depth < 0.2 * deepest)].mean()
    return bool(inner > outer)


def _open_field(image: Tensor, kind: str, level: float | str | None, border: int) -> Tensor:
    """[1, 1, rows, cols], true where the detector was not behind shutters."""
    everything = torch.ones_like(image, dtype=torch.bool)
    levels: tuple = AUTO_LEVELS if level == "auto" else () if level is None else (level,)
    for share in levels:
        depth = _depth_of_the_open(image, kind, share)
        if int((depth < 0).sum()) < 0.005 * depth.numel():
            continue
        if level != "auto" or _ends_sharply(image, kind, depth):
            return depth >= border
    return everything


def _depth_of_the_open(image: Tensor, kind: str, level: float) -> Tensor:
    """Depth in the convex hull of the pixels that are not at the most attenuated end."""
    low, high = torch.aminmax(image)
    span = level * (high - low)
    seen = opened(image < high - span if kind == "line" else image > low + span)
    if not bool(seen.any()):
        raise ValueError(f"shutter_level: no pixel is open at {level!r}; None takes all of them")
    return convex_depth(seen)


def _ends_sharply(image: Tensor, kind: str, depth: Tensor) -> bool:
    """Whether a field's edge is a step in the attenuation nearly all around."""
    scale = _smooth(image)  # unsmoothed, the logarithm of a shutter's noise is full of steps
    if kind == "intensity":
        low, high = torch.aminmax(scale)
        scale = (scale - low + 1e-4 * (high - low)).log()
    rows, cols = image.shape[-2:]
    frame = torch.zeros_like(depth, dtype=torch.bool)
    frame[..., EDGE : rows - EDGE, EDGE : cols - EDGE] = True
    edge = (depth.abs() <= 1.0) & frame
    if not bool(edge.any()):
        return False
    wide = 2 * EDGE + 1
    highest = functional.max_pool2d(scale, wide, stride=1, padding=EDGE)
    lowest = -functional.max_pool2d(-scale, wide, stride=1, padding=EDGE)
    inside = torch.quantile(_sample(scale[depth > EDGE]), scale.new_tensor([0.01, 0.99]))
    step = STEP * float(inside[1] - inside[0])
    return float(((highest - lowest)[edge] > step).double().mean()) > 0.9


def _without_vignette(image: Tensor, mask: Tensor) -> Tensor:
    """The intensity over exp(a r^2 + b r^4), fitted to the air's logarithm about the centre."""
    rows, cols = image.shape[-2:]
    down = torch.linspace(-1, 1, rows, dtype=image.dtype, device=image.device)[:, None]
    across = torch.linspace(-1, 1, cols, dtype=image.dtype, device=image.device)[None, :]
    square = ((down * rows) ** 2 + (across * cols) ** 2) / max(rows, cols) ** 2
    smooth = _smooth(image)
    brightest = torch.quantile(_sample(smooth[mask]), 0.995)
    air = (mask & (smooth > AIR_LEVEL * brightest))[0, 0]
    if not _surrounds(air, AIR_SHARE * int(mask.sum())):
        return image
    basis = torch.stack([torch.ones_like(square), square, square**2], dim=-1)
    value = smooth[0, 0].clamp_min(1e-12 * float(brightest)).log()
    keep = air
    field = torch.zeros_like(square)
    # Skin edges and thin tissue lie below the air: fit again without what does.
    for _ in range(4):
        matrix, wanted = basis[keep], value[keep]
        normal = matrix.mT @ matrix + 1e-9 * len(wanted) * torch.eye(3).to(matrix)
        weights = torch.linalg.solve(normal, matrix.mT @ wanted)
        residual = value - basis @ weights
        field = basis[..., 1:] @ weights[1:]
        spread = residual[keep].abs().median().clamp_min(1e-6)
        keep = air & (residual > -2.0 * spread) & (residual < 5.0 * spread)
    if float(residual[air].abs().median()) > FLATNESS:
        return image  # thin tissue, not air: no field of this form fits it
    reached = square[keep].max()  # beyond it the polynomial would only be guessing
    edge = field[square <= reached]
    return image / field.clamp(float(edge.min()), float(edge.max())).exp()


def _smooth(image: Tensor) -> Tensor:
    """Means over 5 x 5 pixels."""
    return functional.avg_pool2d(image, 5, stride=1, padding=2, count_include_pad=False)


def _surrounds(air: Tensor, least: float) -> bool:
    """Whether [rows, cols] has at least so many pixels, in three of its quarters some of them."""
    count = int(air.sum())
    rows, cols = air.shape
    halves = (slice(rows // 2), slice(rows // 2, None)), (slice(cols // 2), slice(cols // 2, None))
    quarters = [int(air[a, b].sum()) for a in halves[0] for b in halves[1]]
    return count >= max(least, 16) and sum(q > 0.05 * count for q in quarters) >= 3


def _minus_log(image: Tensor, i0: float) -> Tensor:
    low = float(image.min())
    if low < 0:
        raise ValueError(
            f"pixels: expected intensities, 0 or more, got {low:g}; kind='line' says that these "
            "are line integrals"
        )
    if not 0.0 < i0 < math.inf:
        raise ValueError(f"i0: expected a positive intensity, got {i0!r}")
    darkest = image[image > 0].min()
    return -(image.clamp_min(darkest) / i0).log()


def _scaled(image: Tensor, mask: Tensor, percentiles: tuple[float, float]) -> Tensor:
    shares = image.new_tensor(percentiles) / 100.0
    low, high = torch.quantile(_sample(image[mask]), shares).tolist()
    if not high > low:
        raise ValueError(f"percentiles: the open field has one value between {percentiles}")
    return (image - low) / (high - low)


def _cropped(image: Tensor, mask: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Camera]:
    seen = mask[0, 0] > 0
    rows, cols = (seen.any(dim).nonzero().flatten() for dim in (1, 0))
    top, left = int(rows[0]), int(cols[0])
    height, width = int(rows[-1]) + 1 - top, int(cols[-1]) + 1 - left
    window = (..., slice(top, top + height), slice(left, left + width))
    return (
        image[window].contiguous(),
        mask[window].contiguous(),
        camera.crop(top, left, height, width),
    )


def _sample(values: Tensor) -> Tensor:
    """At most a million of the values, evenly picked: torch.quantile takes no more than 16."""
    return values[:: max(1, values.numel() // 1_000_000)]


def opened(mask: Tensor, size: int = 5) -> Tensor:
    """A mask [1, 1, rows, cols] without what is narrower than `size` pixels (letters, specks)."""
    pad = size // 2
    # Outside counts as inside: the edge of the image is no edge of the mask.
    outside = functional.pad((~mask).float(), (pad,) * 4, value=0.0)
    kept = 1.0 - functional.max_pool2d(outside, size, stride=1)
    return functional.max_pool2d(kept, size, stride=1, padding=pad) > 0.5


def convex_depth(mask: Tensor) -> Tensor:
    """How deep each pixel lies in the convex hull of a mask: [1, 1, rows, cols] float64.

    Pixels to the nearest edge of the polygon through the outermost pixels' centres, negative
    outside. A mask of fewer than three corners has depth 0 on itself and -1 elsewhere.
    """
    corners = _hull(_row_ends(mask[0, 0]))
    rows, cols = mask.shape[-2:]
    if len(corners) < 3:
        return mask.double() - 1.0
    row = torch.arange(rows, dtype=torch.float64, device=mask.device)[:, None]
    col = torch.arange(cols, dtype=torch.float64, device=mask.device)[None, :]
    depth = torch.full((rows, cols), float("inf"), dtype=torch.float64, device=mask.device)
    for (y0, x0), (y1, x1) in zip(corners, corners[1:] + corners[:1], strict=True):
        dy, dx = y1 - y0, x1 - x0
        length = (dy * dy + dx * dx) ** 0.5
        depth = torch.minimum(depth, ((row - y0) * dx - (col - x0) * dy) / length)
    return depth[None, None]


def _row_ends(mask: Tensor) -> list[tuple[float, float]]:
    """(row, col) of the first and the last pixel of every row."""
    inside = mask.to(torch.uint8).cpu()
    first = inside.argmax(dim=1)
    last = inside.shape[1] - 1 - inside.flip(1).argmax(dim=1)
    ends = []
    for row in inside.any(dim=1).nonzero().flatten().tolist():
        ends += [(float(row), float(first[row])), (float(row), float(last[row]))]
    return sorted(set(ends))


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the convex hull of sorted points (row, col), inside on the positive side.

    Andrew's monotone chain.
    """

    def chain(ordered: list[tuple[float, float]]) -> list[tuple[float, float]]:
        corners: list[tuple[float, float]] = []
        for y, x in ordered:
            while len(corners) >= 2:
                (y0, x0), (y1, x1) = corners[-2:]
                if (y - y0) * (x1 - x0) - (x - x0) * (y1 - y0) > 0:
                    break
                corners.pop()
            corners.append((y, x))
        return corners[:-1]

    if len(points) < 3:
        return points
    return chain(points) + chain(points[::-1])


def _divided(image: Tensor, flat_field: Tensor) -> Tensor:
    flat = flat_field.reshape(1, 1, *flat_field.shape[-2:]).to(image)
    if flat.shape != image.shape or not bool((flat > 0).all()):
        raise ValueError(
            f"flat_field: expected positive numbers of the pixels' size "
            f"{tuple(image.shape[-2:])}, got {tuple(flat_field.shape)}"
        )
    return image / flat * flat.median()


def _checked_pixels(pixels: Tensor, camera: Camera) -> Tensor:
    """[1, 1, rows, cols] float32, or float64 as given."""
    if not isinstance(pixels, Tensor) or pixels.is_complex():
        raise TypeError(f"pixels: expected a real tensor, got {type(pixels).__name__}")
    shape = tuple(pixels.shape)
    if len(shape) not in (2, 4) or shape[:-2] not in ((), (1, 1)) or shape[-2:] != camera.size:
        raise ValueError(
            f"pixels: expected [rows, cols] or [1, 1, rows, cols] of the camera's size "
            f"{camera.size}, got {shape}"
        )
    dtype = torch.float64 if pixels.dtype == torch.float64 else torch.float32
    image = pixels.detach().reshape(1, 1, *shape[-2:]).to(dtype)
    if not bool(torch.isfinite(image).all()):
        raise ValueError("pixels: expected finite numbers")
    low, high = (float(v) for v in torch.aminmax(image))
    if low == high:
        raise ValueError(f"pixels: expected an X-ray, got an image whose pixels are all {low:g}")
    return image


def _checked_mask(mask: Tensor, image: Tensor) -> Tensor:
    """[1, 1, rows, cols] bool."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: expected a tensor, got {type(mask).__name__}")
    if mask.shape[-2:] != image.shape[-2:] or mask.numel() != image.numel():
        raise ValueError(
            f"mask: expected the pixels' size {tuple(image.shape[-2:])}, got {tuple(mask.shape)}"
        )
    known = mask.to(image.device).reshape_as(image) > 0
    if not bool(known.any()):
        raise ValueError("mask: expected some pixels above 0, got none")
    low, high = (float(v) for v in torch.aminmax(image[known]))
    if low == high:
        raise ValueError(f"pixels: expected an X-ray, got one whose open pixels are all {low:g}")
    return known


def _check_options(
    kind: str,
    level: float | str | None,
    border: int,
    percentiles: tuple[float, float] | None,
) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    named = level is None or level == "auto"
    if not named and not (isinstance(level, (int, float)) and 0.0 <= level < 1.0):
        raise ValueError(
            f"shutter_level: expected a share of the range, 'auto' or None, got {level!r}"
        )
    check_counts(0, border=border)
    if percentiles is not None and not 0.0 <= percentiles[0] < percentiles[1] <= 100.0:
        raise ValueError(f"percentiles: expected 0 <= low < high <= 100, got {percentiles!r}")
