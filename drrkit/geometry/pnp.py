"""Perspective-n-point: the pose of a camera from world points and their pixels.

A linear start (Hartley's normalised DLT, or a homography where the points lie in a plane), then
Levenberg-Marquardt on the reprojection error over left perturbations in SE(3). A flat or distant
set has a second minimum, its mirror image in depth; both are refined and the better one is kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.geometry.camera import Camera, project_points
from drrkit.geometry.checks import check_floating
from drrkit.geometry.se3 import assemble, perturb

# Thickness over length of a point set: below the first it is a line, below the second a plane,
# below the third a homography is worth a try as well.
_LINE, _PLANE, _SLAB = 1e-6, 1e-3, 0.2
_ITERATIONS = 200
_DAMPING_LIMIT = 1e8
# Squared pixels per point: rounding alone leaves about 1e-25.
_EXACT = 1e-23
# Ratio of extreme eigenvalues of the scaled normal matrix: rounding alone leaves about 1e-16.
_UNDETERMINED = 1e-12


class _Problem(NamedTuple):
    camera: Camera
    points: Tensor  # [P, 3] world mm
    pixels: Tensor  # [P, 2] (row, col)
    center: Tensor  # [3] their mean
    axes: Tensor  # [3, 3] rows: principal directions, longest first, right-handed
    thickness: tuple[float, float]  # middle and smallest extent over the largest


def solve_pnp(
    camera: Camera, points: Tensor, pixels: Tensor, *, init: Tensor | None = None
) -> Tensor:
    """The world_to_camera [4, 4] float64 that brings the projected points closest to their pixels.

    camera  one cone-beam camera (K [3, 3])
    points  [P, 3] world mm
    pixels  [P, 2] = (row, col), fractions allowed
    init    [4, 4] (or [1, 4, 4]) start, with all points in front of the source; without it a linear
            method gives the start

    Needs four points where they lie in a plane or init is given, six otherwise. Computed in float64
    on the CPU, not differentiable; the result is on points' device. reprojection_rms measures how
    well it fits. Raises TypeError or ValueError for a parallel beam, wrong shapes, values that
    are not finite, too few distinct points, points on a line, and where the pose is not determined
    or none has all points in front of the source.
    """
    problem = _checked_problem(camera, points, pixels)
    if init is not None:
        best, _ = _refine(problem, _checked_init(problem, init))
    else:
        best = _best_of(problem, _linear_starts(problem))
    _, _, normal = _linearised(problem, best)
    scale = normal.diagonal().sqrt()
    values = torch.linalg.eigvalsh(normal / scale.outer(scale)) if bool((scale > 0).all()) else None
    if values is None or not float(values[0]) > _UNDETERMINED * float(values[-1]):
        raise ValueError("points: expected a set that determines the pose, got a degenerate one")
    return best.to(points.device)


def reprojection_rms(
    camera: Camera, world_to_camera: Tensor, points: Tensor, pixels: Tensor
) -> Tensor:
    """Root mean squared distance [B] in pixels between projected points and pixels (row, col).

    world_to_camera [4, 4] or [B, 4, 4]; points [P, 3] world mm; pixels [P, 2] or [B, P, 2]. NaN for
    a pose with a point behind the source; differentiable. Raises TypeError or ValueError for wrong
    shapes and dtypes.
    """
    check_floating("pixels", pixels, (2,))
    found = project_points(camera, world_to_camera, points)
    if pixels.dim() not in (2, 3) or pixels.shape[-2] != found.shape[-2]:
        shape = list(pixels.shape)
        raise ValueError(f"pixels: expected [{found.shape[-2]}, 2], one per point, got {shape}")
    return (found - pixels.to(found)).square().sum(-1).mean(-1).sqrt()


def _checked_problem(camera: Camera, points: Any, pixels: Any) -> _Problem:
    if camera.beam != "cone":
        raise ValueError(
            f"camera: expected a cone beam (parallel shows no depth), got {camera.beam!r}"
        )
    if camera.batch is not None:
        raise ValueError(f"camera: expected a single one, got K {list(camera.K.shape)}")
    for name, value, size in (("points", points, 3), ("pixels", pixels, 2)):
        check_floating(name, value, (size,))
        if value.dim() != 2:
            raise ValueError(f"{name}: expected shape [P, {size}], got {list(value.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    if len(points) != len(pixels):
        raise ValueError(f"pixels: expected {len(points)}, one per point, got {len(pixels)}")
    world, image = (value.detach().to("cpu", torch.float64) for value in (points, pixels))
    distinct = len(torch.unique(world, dim=0))
    if distinct < 4:
        raise ValueError(f"points: expected at least 4 distinct points, got {distinct}")
    places = len(torch.unique(image, dim=0))
    if places < 3:
        raise ValueError(f"pixels: expected at least 3 distinct pixels, got {places}")
    center = world.mean(0)
    _, extent, axes = torch.linalg.svd(world - center, full_matrices=False)
    if extent[1] <= _LINE * extent[0]:
        raise ValueError("points: expected points that span a plane or space, got collinear ones")
    axes = axes * torch.linalg.det(axes).sign()
    thickness = (float(extent[1] / extent[0]), float(extent[2] / extent[0]))
    single = Camera(camera.K.detach().to("cpu", torch.float64), camera.size, 1.0)
    return _Problem(single, world, image, center, axes, thickness)


def _checked_init(problem: _Problem, init: Tensor) -> Tensor:
    check_floating("init", init, (4, 4))
    if init.numel() != 16:
        raise ValueError(f"init: expected shape [4, 4], got {list(init.shape)}")
    start = init.detach().to("cpu", torch.float64).reshape(4, 4)
    if not bool(start.isfinite().all()):
        raise ValueError(f"init: expected finite numbers, got {start.tolist()}")
    behind = int((_in_camera(problem, start)[:, 2] <= 0).sum())
    if behind:
        total = len(problem.points)
        raise ValueError(
            f"init: expected all {total} points in front of the source, got {behind} behind it"
        )
    return start


def _linear_starts(problem: _Problem) -> list[Tensor]:
    """Poses to refine, all points in front of the source."""
    flat = problem.thickness[1] <= _PLANE
    count = len(torch.unique(problem.points, dim=0))
    if count < 6 and not flat:
        raise ValueError(
            f"points: expected at least 6 distinct points, or coplanar ones, or init, got {count}"
        )
    homogeneous = torch.cat((problem.pixels.flip(-1), torch.ones_like(problem.pixels[:, :1])), -1)
    rays = torch.linalg.solve_triangular(problem.camera.K, homogeneous.mT, upper=True)[:2].mT
    local = (problem.points - problem.center) @ problem.axes.mT
    rotations = []
    if not flat:
        projection = _direct_linear_transform(local, rays)[:, :3]
        # Its sign is free; noise on a distant set may prefer the mirror image.
        rotations += [_nearest_rotation(projection), _nearest_rotation(-projection)]
    if problem.thickness[1] <= _SLAB:
        columns = _direct_linear_transform(local[:, :2], rays)[:, :2]
        for signed in (columns, -columns):
            normal = torch.linalg.cross(signed[:, 0], signed[:, 1])
            scaled = normal / normal.norm().clamp(min=1e-300).sqrt()
            rotations.append(_nearest_rotation(torch.cat((signed, scaled[:, None]), 1)))
    poses = [_with_translation(problem, rotation @ problem.axes, rays) for rotation in rotations]
    return [pose for pose in poses if _in_front(problem, pose)]


def _best_of(problem: _Problem, starts: list[Tensor]) -> Tensor:
    """Refine all starts, then the best one's mirror image; the pose of the smallest error."""
    if not starts:
        raise ValueError(
            "points: expected a pose with all of them in front of the source, found none"
        )
    results = [_refine(problem, start) for start in starts]
    best, error = min(results, key=lambda result: result[1])
    sight = _in_camera(problem, best).mean(0)
    sight = sight / sight.norm()
    eye = torch.eye(3, dtype=torch.float64, device=best.device)
    normal = problem.axes[2]
    flipped = (eye - 2 * sight.outer(sight)) @ best[:3, :3] @ (eye - 2 * normal.outer(normal))
    center = best[:3, :3] @ problem.center + best[:3, 3]
    mirror = assemble(flipped, (center - flipped @ problem.center)[:, None])
    if _in_front(problem, mirror):
        other, other_error = _refine(problem, mirror)
        # Both may be the same pose: rounding alone must not decide.
        if other_error < error * (1 - 1e-9):
            best = other
    return best


def _direct_linear_transform(source: Tensor, target: Tensor) -> Tensor:
    """The projective map [3, n + 1], up to scale and sign, of points [P, n] to points [P, 2].

    Hartley's normalisation: both sets are shifted and scaled to mean zero and unit variance a
    coordinate (source: of the set as a whole, it is centred already). Least squares by SVD.
    """
    spread = source.square().sum(-1).mean().sqrt()
    mean = target.mean(0)
    size = (target - mean).square().sum(-1).mean().sqrt().clamp(min=1e-300)
    x = torch.cat((source / spread, torch.ones_like(source[:, :1])), -1)
    u = (target - mean) / size
    zero = torch.zeros_like(x)
    rows = torch.cat(
        (torch.cat((x, zero, -u[:, :1] * x), -1), torch.cat((zero, x, -u[:, 1:] * x), -1))
    )
    if len(rows) < rows.shape[1]:  # four points in a plane: the null vector needs a row as well
        rows = torch.cat((rows, torch.zeros_like(rows[:1])))
    solution = torch.linalg.svd(rows, full_matrices=False)[2][-1].reshape(3, -1)
    denormalise = torch.zeros(3, 3, dtype=torch.float64, device=x.device)
    denormalise[0, 0] = denormalise[1, 1] = size
    denormalise[:2, 2] = mean
    denormalise[2, 2] = 1.0
    solution = denormalise @ solution
    return torch.cat((solution[:, :-1] / spread, solution[:, -1:]), -1)


def _nearest_rotation(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix)
    sign = torch.ones(3, dtype=torch.float64, device=left.device)
    sign[2] = torch.linalg.det(left @ right).sign()
    return left @ (sign[:, None] * right)


def _with_translation(problem: _Problem, rotation: Tensor, rays: Tensor) -> Tensor:
    """The pose of a rotation whose translation solves X + tx = x (Z + tz), Y + ty = y (Z + tz).

    Where noise sends points behind the source, the translation that fits size and place of the
    image instead, all points at one depth.
    """
    turned = (problem.points - problem.center) @ rotation.mT
    rows = torch.zeros(2, len(rays), 3, dtype=torch.float64, device=rays.device)
    rows[0, :, 0] = rows[1, :, 1] = 1.0
    rows[:, :, 2] = -rays.mT
    right = rays.mT * turned[:, 2] - turned[:, :2].mT
    solution = torch.linalg.lstsq(rows.reshape(-1, 3), right.reshape(-1, 1), driver="gelsd")
    place = solution.solution[:, 0]
    if not bool((turned[:, 2] + place[2] > 0).all()):
        middle = rays.mean(0)
        depth = turned[:, :2].norm() / (rays - middle).norm()
        place = depth * torch.cat((middle, torch.ones_like(middle[:1])))
    return assemble(rotation, (place - rotation @ problem.center)[:, None])


def _refine(problem: _Problem, pose: Tensor) -> tuple[Tensor, float]:
    """Levenberg-Marquardt (Marquardt's scaling) from a pose; the pose and its sum of squares."""
    damping, growth = 1e-3, 2.0
    error, gradient, normal = _linearised(problem, pose)
    for _ in range(_ITERATIONS):
        scale = normal.diagonal()
        scale = scale.clamp(min=1e-15 * float(scale.max()) + 1e-300)
        # A singular system gives steps that are not finite, which count as steps that fail.
        step = torch.linalg.solve_ex(normal + damping * torch.diag(scale), -gradient)[0]
        moved = perturb(pose, step, problem.center)[0]
        found = _linearised(problem, moved) if _in_front(problem, moved) else None
        if found is None or not found[0] < error:
            damping, growth = damping * growth, growth * 2.0
            if damping > _DAMPING_LIMIT:
                break
            continue
        gain = error - found[0]
        pose, (error, gradient, normal) = moved, found
        damping, growth = max(damping / 10.0, 1e-12), 2.0
        if gain <= 1e-15 * error or error < _EXACT * len(problem.points):
            break
    return pose, error


def _linearised(problem: _Problem, pose: Tensor) -> tuple[float, Tensor, Tensor]:
    """Sum of squared residuals, J' r [6] and J' J [6, 6] in the twist about the points' mean."""
    matrix = problem.camera.K
    seen = _in_camera(problem, pose)
    x, y, z = seen.unbind(-1)
    zero = torch.zeros_like(z)
    residual = project_points(problem.camera, pose, problem.points)[0] - problem.pixels
    # d(x / z, y / z) / dX, then K's upper left block, in the order (row, col).
    slope = torch.stack((1 / z, zero, -x / z**2, zero, 1 / z, -y / z**2), -1).unflatten(-1, (2, 3))
    slope = (matrix[:2, :2] @ slope).flip(-2)
    arm = seen - (pose[:3, :3] @ problem.center + pose[:3, 3])
    # dX = omega x arm + tau, and g . (omega x arm) = omega . (arm x g)
    turn = torch.linalg.cross(arm[:, None].expand_as(slope), slope, dim=-1)
    jacobian = torch.cat((turn, slope), -1).reshape(-1, 6)
    # Sums, not matrix products: BLAS would wake its threads for these few numbers.
    extended = torch.cat((jacobian, residual.reshape(-1, 1)), -1)
    products = (extended[:, :, None] * extended[:, None, :]).sum(0)
    return float(products[6, 6]), products[:6, 6], products[:6, :6]


def _in_camera(problem: _Problem, pose: Tensor) -> Tensor:
    return problem.points @ pose[:3, :3].mT + pose[:3, 3]


def _in_front(problem: _Problem, pose: Tensor) -> bool:
    return bool((_in_camera(problem, pose)[:, 2] > 0).all())
