"""A slow, readable projector in pure torch float64: the reference the kernels are tested against.

It states what every method computes and leaves every derivative to autograd, so values, frames,
pixels and spacing can be differentiated as often as wanted.  Three conventions follow the
operators' definition:

* which samples, planes and cells a ray uses is a constant for derivatives, positions are not;
* the ends of the ray (t = 0, t = 1) are constants for derivatives;
* the volume is zero outside the grid; interpolation runs against an infinite border of zeros.

Index coordinates are (x, y, z) everywhere, values are [..., z, y, x].
"""

from __future__ import annotations

import torch
from torch import Tensor

METHODS = ("joseph", "siddon", "trilinear")


def project(
    values: Tensor,
    frames: Tensor,
    size: tuple[int, int] | None = None,
    *,
    spacing: tuple[float, float, float] | Tensor = (1.0, 1.0, 1.0),
    method: str = "joseph",
    beam: str = "cone",
    step: float | None = None,
    pixels: Tensor | None = None,
    derivative: str = "exact",
    anchor: str = "source",
) -> Tensor:
    """Line integrals of `values` along the rays of `frames`.

    values [D, H, W], [C, D, H, W] or [N, C, D, H, W]; view b reads volume b // (B / N).
    frames [B, 4, 3] (source, pixel (0, 0), column step, row step) or endpoints [B, P, 2, 3].
    pixels [P, 2] or [B, P, 2], (row, col), fractions allowed.  step in mm (trilinear only).
    Returns [B, C, rows, cols], or [B, C, P] with `pixels` or endpoints.  derivative="line" holds
    for first derivatives in the frame only.
    """
    values = values.to(torch.float64)
    values = values.reshape((1,) * (5 - values.ndim) + values.shape)
    grid_spacing = torch.as_tensor(spacing, dtype=torch.float64)
    source, target, shaped = _rays(frames.to(torch.float64), size, pixels, beam)
    views, volumes = source.shape[0], values.shape[0]
    if views % volumes:
        raise ValueError(f"{volumes} volumes do not divide {views} views")
    values = values.repeat_interleave(views // volumes, dim=0)  # [B, C, D, H, W]

    # A ray of length zero integrates to zero; give it a direction to keep its derivatives finite.
    degenerate = (target == source).all(-1)
    target = torch.where(degenerate[..., None], source.detach() + 1.0, target)

    if method == "joseph":
        image = joseph(values, source, target, grid_spacing)
    elif method == "siddon":
        image = siddon(values, source, target, grid_spacing)
    elif method == "trilinear":
        h = 0.5 * float(grid_spacing.min()) if step is None else float(step)
        image = trilinear(values, source, target, grid_spacing, h, derivative, anchor)
    else:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    image = torch.where(degenerate[:, None], torch.zeros_like(image), image)
    return image.reshape(*image.shape[:2], *shaped) if shaped is not None else image


def _rays(
    frames: Tensor, size: tuple[int, int] | None, pixels: Tensor | None, beam: str
) -> tuple[Tensor, Tensor, tuple[int, int] | None]:
    """Source and target of every ray, [B, P, 3] each, and the image shape to restore (or None)."""
    if frames.ndim == 4 and frames.shape[-2:] == (2, 3):
        return frames[:, :, 0], frames[:, :, 1], None
    frames = frames if frames.ndim == 3 else frames[None]
    s, o, u, v = frames[:, None].unbind(-2)  # each [B, 1, 3]
    shaped = None
    if pixels is None:
        if size is None:
            raise ValueError("size is needed unless pixels or endpoints are given")
        shaped = size
        grid = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
        pixels = torch.stack(grid, dim=-1).reshape(-1, 2)
    row, col = pixels.to(torch.float64).unbind(-1)  # [P] or [B, P]
    offset = col[..., None] * u + row[..., None] * v  # [B, P, 3]
    if beam == "cone":
        return s.expand_as(offset), o + offset, shaped
    if beam == "parallel":
        return s + offset, o + offset, shaped
    raise ValueError(f"beam must be 'cone' or 'parallel', got {beam!r}")


def _length(direction: Tensor, spacing: Tensor) -> Tensor:
    """Length in mm of index-space vectors [..., 3]."""
    return (spacing * direction).square().sum(-1).sqrt()


def _shape_xyz(values: Tensor) -> Tensor:
    return torch.tensor(values.shape[:1:-1], dtype=torch.float64)  # (W, H, D)


def _lookup(values: Tensor, index: Tensor) -> Tensor:
    """Voxel values [B, C, P, K] at integer-valued indices [B, P, K, 3]; zero outside the grid."""
    batch, channels, _, height, width = values.shape
    last = _shape_xyz(values) - 1
    inside = ((index >= 0) & (index <= last)).all(-1)
    x, y, z = torch.minimum(index.clamp(min=0), last).long().unbind(-1)
    flat = (x + width * (y + height * z)).reshape(batch, 1, -1).expand(-1, channels, -1)
    found = values.flatten(2).gather(2, flat).reshape(batch, channels, *index.shape[1:3])
    return found * inside[:, None]


def _interpolate(values: Tensor, position: Tensor) -> Tensor:
    """Trilinear values [B, C, P, K] at positions [B, P, K, 3], differentiable within cells."""
    cell = position.detach().floor()  # half-open cells [i, i + 1)
    fraction = position - cell
    total = torch.zeros((), dtype=torch.float64)
    for corner in range(8):
        shift = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], dtype=torch.float64)
        weight = torch.where(shift > 0, fraction, 1.0 - fraction).prod(-1)  # [B, P, K]
        total = total + weight[:, None] * _lookup(values, cell + shift)
    return total


def joseph(values: Tensor, source: Tensor, target: Tensor, spacing: Tensor) -> Tensor:
    """One bilinear sample in every voxel plane across the dominant axis, times the plane pitch."""
    direction = target - source
    size = direction.detach().abs()
    x_is_largest = (size[..., 0] >= size[..., 1]) & (size[..., 0] >= size[..., 2])
    y_beats_z = size[..., 1] >= size[..., 2]
    zero = torch.zeros_like(x_is_largest, dtype=torch.int64)
    axis = torch.where(x_is_largest, zero, torch.where(y_beats_z, zero + 1, zero + 2))[..., None]

    shape = _shape_xyz(values)
    plane = torch.arange(int(shape.max()), dtype=torch.float64)  # [Q]
    s_m, d_m = source.gather(-1, axis), direction.gather(-1, axis)  # [B, P, 1]
    t = (plane - s_m) / d_m  # [B, P, Q]
    used = ((plane <= shape[axis] - 1) & (t >= 0) & (t <= 1)).detach()

    slope = direction / d_m  # rho
    position = source[..., None, :] + (plane - s_m)[..., None] * slope[..., None, :]
    # On the dominant axis the sample lies on the plane exactly, whatever the ray does.
    on_axis = torch.nn.functional.one_hot(axis[..., 0], 3).bool()[..., None, :]
    position = torch.where(on_axis, plane[:, None], position)

    samples = _interpolate(values, position) * used[:, None]
    pitch = _length(slope, spacing)  # w = l / |d_m|
    return pitch[:, None] * samples.sum(-1)


def siddon(values: Tensor, source: Tensor, target: Tensor, spacing: Tensor) -> Tensor:
    """The exact integral of piecewise-constant voxels: sorted crossings, one value a segment."""
    direction = target - source
    crossings = [torch.zeros_like(source[..., :1]), torch.ones_like(source[..., :1])]
    for axis, count in enumerate(_shape_xyz(values).long().tolist()):
        faces = torch.arange(count + 1, dtype=torch.float64) - 0.5
        d_a = direction[..., axis, None]
        parallel = d_a == 0
        t = (faces - source[..., axis, None]) / torch.where(parallel, torch.ones_like(d_a), d_a)
        proper = (t > 0) & (t < 1) & ~parallel
        # Every other crossing collapses onto an end of the ray and is a constant there.
        crossings.append(torch.where(proper, t, (t.detach() >= 1).to(t) * ~parallel))
    t = torch.cat(crossings, dim=-1).sort(dim=-1).values  # [B, P, K + 1]
    middle = 0.5 * (t[..., 1:] + t[..., :-1]).detach()
    position = source[..., None, :] + middle[..., None] * direction[..., None, :]
    voxel = (position.detach() + 0.5).floor()  # voxel i covers [i - 1/2, i + 1/2)
    lengths = _length(direction, spacing)[..., None] * (t[..., 1:] - t[..., :-1])
    return (_lookup(values, voxel) * lengths[:, None]).sum(-1)


def trilinear(
    values: Tensor,
    source: Tensor,
    target: Tensor,
    spacing: Tensor,
    h: float,
    derivative: str = "exact",
    anchor: str = "source",
) -> Tensor:
    """Trilinear samples every `h` mm, times h.

    anchor "source": r_k = (k + 1/2) h from the source; "foot": r_k = r_c + k h with r_c the foot of
    the perpendicular from the grid's centre.  Samples are kept while 0 < r_k < l.
    """
    direction = target - source
    length = _length(direction, spacing)[..., None]  # [B, P, 1]
    unit = direction / length  # e: index units a mm
    centre = (_shape_xyz(values) - 1) / 2
    foot = (unit * spacing.square() * (centre - source)).sum(-1, keepdim=True)  # r_c

    # Outside this sphere about the grid's centre all samples are zero: do not even take them.
    radius = float(_length((centre + 1.0).detach(), spacing).detach()) + 2 * h
    if anchor == "source":
        near = int((float(foot.detach().min()) - radius) // h)
        far = int((float(foot.detach().max()) + radius) // h) + 1
        distance = (torch.arange(max(near, 0), max(far, 1), dtype=torch.float64) + 0.5) * h
        distance = distance.expand(*foot.shape[:-1], -1)
    elif anchor == "foot":
        reach = int(radius // h) + 1
        distance = foot + torch.arange(-reach, reach + 1, dtype=torch.float64) * h
    else:
        raise ValueError(f"anchor must be 'source' or 'foot', got {anchor!r}")
    used = ((distance > 0) & (distance < length)).detach()

    start = source
    if derivative == "line":  # a change of the frame moves no sample along its ray
        e = unit.detach()
        change = source - source.detach()
        start = source - e * (e * spacing.detach().square() * change).sum(-1, keepdim=True)
        distance = distance.detach()
    elif derivative != "exact":
        raise ValueError(f"derivative must be 'exact' or 'line', got {derivative!r}")
    position = start[..., None, :] + distance[..., None] * unit[..., None, :]
    samples = _interpolate(values, position) * used[:, None]
    return h * samples.sum(-1)
