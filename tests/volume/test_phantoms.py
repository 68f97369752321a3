"""Ellipsoid phantoms against quadrature, hand cases and the oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from drrkit.geometry import (
    Camera,
    CArm,
    perturb,
    view_ap,
    view_carm,
    view_frames,
    volume_center,
)
from drrkit.phantoms import (
    Ellipsoids,
    random_soft_ellipsoids,
    shepp_logan_3d,
)
from drrkit.volume import Volume
from tests.support import oracle


def ball(radius: float = 30.0, value: float = 0.02, exponent: int = 0) -> Ellipsoids:
    return Ellipsoids(
        torch.tensor([[5.0, -3.0, 2.0]]),
        torch.full((1, 3), radius),
        torch.eye(3)[None],
        torch.tensor([value], dtype=torch.float64),
        exponent,
    )


def random_rays(count: int, seed: int = 0, reach: float = 300.0) -> tuple[Tensor, Tensor]:
    """Rays through the neighbourhood of the origin, both ends `reach` mm away or more."""
    generator = torch.Generator().manual_seed(seed)
    through, toward = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    toward = reach * toward / toward.norm(dim=-1, keepdim=True)
    return 25.0 * through - toward, 25.0 * through + 1.3 * toward


def quadrature(phantom: Ellipsoids, source: Tensor, target: Tensor) -> Tensor:
    """Integrals by Gauss-Legendre, exact for the polynomial between two kinks, which are found."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(12))
    result = []
    for s, p in zip(source, target, strict=True):
        cuts = {0.0, 1.0}
        for c, a, r in zip(phantom.centers, phantom.semi_axes, phantom.rotations, strict=True):
            u, w = (r.mT @ (s - c)) / a, (r.mT @ (p - s)) / a
            roots = np.roots([float(w @ w), 2 * float(u @ w), float(u @ u) - 1.0])
            cuts |= {float(t.real) for t in roots if abs(t.imag) < 1e-14 and 0 < t.real < 1}
        edges = torch.tensor(sorted(cuts), dtype=torch.float64)
        half, middle = 0.5 * edges.diff()[:, None], 0.5 * (edges[1:] + edges[:-1])[:, None]
        t = (middle + half * nodes)[..., None]
        result.append((half * weights * phantom.sample(s + t * (p - s))).sum() * (p - s).norm())
    return torch.stack(result)


@pytest.mark.parametrize("exponent", [0, 1, 2, 5])
@pytest.mark.parametrize("cut", [1.0, 0.45], ids=["whole chords", "ends inside"])
def test_line_integrals_equal_fine_quadrature(exponent: int, cut: float) -> None:
    phantom = random_soft_ellipsoids(seed=1, count=6, exponent=exponent)
    source, target = random_rays(60)
    target = source + cut * (target - source)
    exact = phantom.line_integrals(source, target)
    assert (exact > 0).sum() > 30
    torch.testing.assert_close(exact, quadrature(phantom, source, target), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3])
def test_a_full_chord_is_the_gamma_formula(exponent: int) -> None:
    phantom = ball(30.0, 0.02, exponent)
    source = torch.tensor([[5.0, -300.0, 14.0], [5.0, -300.0, 2.0], [5.0, -300.0, 33.0]])
    target = source + torch.tensor([0.0, 700.0, 0.0])
    b2 = torch.tensor([12.0, 0.0, 31.0], dtype=torch.float64).square() / 900.0
    gamma = math.sqrt(math.pi) * math.gamma(exponent + 1) / math.gamma(exponent + 1.5)
    expected = 0.02 * 30.0 * gamma * (1 - b2).clamp(min=0) ** (exponent + 0.5)
    result = phantom.line_integrals(source, target)
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-15)


def test_hard_chords_by_hand() -> None:
    phantom = ball(30.0, 0.5)  # centre (5, -3, 2)
    start = torch.tensor([5.0, -100.0, 2.0], dtype=torch.float64)
    for y, length in ((200.0, 60.0), (-3.0, 30.0), (17.0, 50.0), (-33.0, 0.0), (-50.0, 0.0)):
        end = torch.tensor([5.0, y, 2.0], dtype=torch.float64)
        assert phantom.line_integrals(start, end).item() == pytest.approx(0.5 * length, abs=1e-12)
        assert phantom.line_integrals(end, start).item() == pytest.approx(0.5 * length, abs=1e-12)
        whole = phantom.line_integrals(start, end, extend=True)
        assert whole.item() == pytest.approx(30.0, abs=1e-12)
    inside = torch.tensor([5.0, 7.0, 2.0], dtype=torch.float64)
    centre = torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64)
    assert phantom.line_integrals(centre, inside).item() == pytest.approx(5.0)
    away = torch.tensor([5.0, 200.0, 2.0], dtype=torch.float64)
    assert phantom.line_integrals(inside, away).item() == pytest.approx(10.0)
    assert phantom.line_integrals(centre, centre).item() == 0.0


def test_a_rotated_hard_ellipsoid_by_hand() -> None:
    turn = math.radians(30.0)
    rotation = torch.tensor(
        [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]],
        dtype=torch.float64,
    )
    phantom = Ellipsoids(
        torch.zeros(1, 3), torch.tensor([[40.0, 10.0, 20.0]]), rotation[None], torch.ones(1), 0
    )
    for k, semi_axis in enumerate((40.0, 10.0, 20.0)):
        chord = phantom.line_integrals(-100 * rotation[:, k], 100 * rotation[:, k])
        assert chord.item() == pytest.approx(2 * semi_axis, rel=1e-13)


def test_density_is_the_power_of_the_distance_to_the_surface() -> None:
    centre = torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64)
    offsets = torch.tensor([[0.0, 0, 0], [15, 0, 0], [0, 24, 0], [0, 0, 31]], dtype=torch.float64)
    soft = ball(30.0, 0.02, 2).sample(centre + offsets)
    torch.testing.assert_close(soft, 0.02 * torch.tensor([1.0, 0.75**2, 0.36**2, 0.0]).double())
    hard = ball(30.0, 0.02, 0).sample(centre + offsets)
    torch.testing.assert_close(hard, 0.02 * torch.tensor([1.0, 1.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("cut", [1.0, 0.45], ids=["whole chords", "ends inside"])
def test_derivatives_of_line_integrals_pass_gradcheck_twice(cut: float) -> None:
    phantom = random_soft_ellipsoids(seed=2, count=4, radius=10.0)
    source, target = random_rays(6, seed=3, reach=20.0)
    source, target = 0.1 * source, 0.1 * target
    target = source + cut * (target - source)
    inputs = (source.requires_grad_(), target.detach().requires_grad_())
    assert phantom.line_integrals(*inputs).count_nonzero() >= 4
    assert torch.autograd.gradcheck(phantom.line_integrals, inputs)
    assert torch.autograd.gradgradcheck(phantom.line_integrals, inputs)


def test_the_phantom_itself_is_differentiable() -> None:
    start = random_soft_ellipsoids(seed=2, count=2, radius=10.0)
    source, target = (0.1 * ends for ends in random_rays(6, seed=3))
    inputs = [t.clone().requires_grad_() for t in (start.centers, start.semi_axes, start.values)]

    def image(centers: Tensor, semi_axes: Tensor, values: Tensor) -> Tensor:
        phantom = Ellipsoids(centers, semi_axes, start.rotations, values)
        return phantom.line_integrals(source, target)

    assert torch.autograd.gradcheck(image, inputs)


def test_derivatives_at_the_silhouette_and_at_misses_are_finite_zeros() -> None:
    phantom = ball(30.0, 0.02, 2)
    source = torch.tensor([[35.0, -100.0, 2.0], [80.0, -100.0, 2.0]], dtype=torch.float64)
    source.requires_grad_()
    image = phantom.line_integrals(source, source + torch.tensor([0.0, 200.0, 0.0]))
    (gradient,) = torch.autograd.grad(image.sum(), source)
    assert image.abs().max() < 1e-15 and gradient.abs().max() < 1e-12


def tilted_grid(unit: str = "mu") -> Volume:
    """An oblique, left-handed grid of 12 x 14 x 16 (x, y, z) voxels about (4, -6, 9) mm."""
    q = torch.linalg.qr(torch.tensor([[2.0, 0.3, -0.4], [0.1, 1.5, 0.6], [0.5, -0.2, 1.0]]))[0]
    direction = q.double() * torch.tensor([1.0, 1.0, -torch.linalg.det(q).item()])
    direction, _ = torch.linalg.qr(direction)
    if torch.linalg.det(direction) > 0:
        direction = direction * torch.tensor([1.0, 1.0, -1.0])
    spacing = (5.0, 4.0, 3.0)
    half = torch.tensor([5.5, 6.5, 7.5], dtype=torch.float64) * torch.tensor(spacing)
    origin = torch.tensor([4.0, -6.0, 9.0], dtype=torch.float64) - direction @ half
    x, y, z = origin.tolist()
    return Volume(torch.zeros(16, 14, 12, dtype=torch.float64), spacing, (x, y, z), direction, unit)


@pytest.mark.parametrize("beam", ["cone", "parallel"])
def test_render_and_project_give_the_same_exact_image(beam: str) -> None:
    phantom, grid = random_soft_ellipsoids(seed=4, radius=30.0), tilted_grid()
    carm = CArm(300.0, (9, 8), (6.0, 5.0), (3.2, 4.1))
    camera = Camera(carm.K, carm.size, carm.sdd, beam)
    pose = perturb(
        view_ap(grid, 220.0).repeat(2, 1, 1),
        torch.tensor([[0.2, -0.1, 0.3, 4.0, -3.0, 20.0], [0.1, 0.4, -0.2, 1.0, 2.0, -9.0]]),
        volume_center(grid),
    )
    image = phantom.render(camera, pose)
    assert image.shape == (2, 1, 9, 8) and (image > 0.02).sum() > 40
    frames = view_frames(grid, camera, pose)
    by_frames = phantom.project(frames, grid, (9, 8), beam=beam, extend=True)
    torch.testing.assert_close(image, by_frames, rtol=1e-10, atol=1e-12)
    pixels = torch.tensor([[4.0, 3.0], [2.0, 5.0]])
    picked = phantom.project(frames, grid, pixels=pixels, beam=beam, extend=True)
    torch.testing.assert_close(picked, image[:, :, [4, 2], [3, 5]], rtol=1e-10, atol=1e-12)


def test_render_stops_at_the_detector_only_when_told() -> None:
    phantom, grid = ball(30.0), tilted_grid()
    pose = view_ap(grid, 220.0)
    through_centre = (phantom.centers @ pose[0, :3, :3].mT + pose[0, :3, 3])[0]
    x, y, z = through_centre.tolist()
    camera = CArm(z, (1, 1), 1.0, principal_point=(-x, -y))  # the detector halves the ball
    whole, half = phantom.render(camera, pose), phantom.render(camera, pose, extend=False)
    assert whole.item() == pytest.approx(0.02 * 60.0)
    assert half.item() == pytest.approx(0.02 * 30.0)


def test_area_pixels_average_exact_rays() -> None:
    phantom, grid = random_soft_ellipsoids(seed=4, radius=30.0), tilted_grid()
    pose, coarse = view_ap(grid, 220.0), CArm(300.0, (6, 5), 12.0)
    fine = CArm(300.0, (18, 15), 4.0)
    expected = torch.nn.functional.avg_pool2d(phantom.render(fine, pose), 3)
    torch.testing.assert_close(phantom.render(coarse, pose, supersample=3), expected)


@pytest.mark.parametrize("beam", ["cone", "parallel"])
def test_pose_and_camera_derivatives_of_the_exact_image_pass_gradcheck(beam: str) -> None:
    phantom, grid = random_soft_ellipsoids(seed=4, radius=30.0), tilted_grid()
    base = view_ap(grid, 220.0)
    carm = CArm(300.0, (3, 3), 20.0)

    def image(xi: Tensor, focal: Tensor, sdd: Tensor) -> Tensor:
        scale = torch.stack([focal, focal, torch.ones_like(focal)])
        camera = Camera(carm.K.double() * scale.diag(), carm.size, sdd, beam)
        return phantom.render(camera, perturb(base, xi, volume_center(grid)))

    xi = torch.tensor([[0.1, -0.05, 0.2, 1.0, -2.0, 3.0]], dtype=torch.float64)
    inputs = (xi, torch.tensor(1.1).double(), torch.tensor(310.0).double())
    assert torch.autograd.gradcheck(image, tuple(t.requires_grad_() for t in inputs))


@pytest.mark.parametrize("method", ["joseph", "siddon", "trilinear"])
def test_the_oracle_converges_to_the_exact_image_and_pose_derivative(method: str) -> None:
    phantom = random_soft_ellipsoids(seed=6, count=5, radius=30.0)
    camera = CArm(300.0, (9, 9), 11.0)
    errors = []
    for count in (24, 48):
        pitch = 64.0 / count
        volume = phantom.voxelize((count,) * 3, pitch)
        pose = view_carm(volume, 220.0, 0.3, 0.2)
        xi = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
        moved = perturb(pose, xi, volume_center(volume))
        exact = phantom.render(camera, moved)
        image = oracle.project(
            volume.values,
            view_frames(volume, camera, moved, extend=True),
            camera.size,
            spacing=volume.spacing,
            method=method,
        )
        weights = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)).double()
        truth, found = (
            torch.autograd.grad((weights * i).sum(), xi, retain_graph=True)[0]
            for i in (exact, image)
        )
        image_error = ((image - exact).norm() / exact.norm()).item()
        errors.append((image_error, ((found - truth).norm() / truth.norm()).item()))
    assert errors[1][0] < 0.03 and errors[1][0] < 0.6 * errors[0][0], errors
    if method == "joseph":  # the others' pose derivatives converge slowly or not at all
        assert errors[1][1] < 0.1 and errors[1][1] < 0.3 * errors[0][1], errors


def test_voxelize_samples_the_density_on_any_grid() -> None:
    phantom, grid = random_soft_ellipsoids(seed=4, radius=30.0), tilted_grid()
    volume = phantom.voxelize(
        (16, 14, 12), grid.spacing, origin=grid.origin, direction=grid.direction
    )
    assert volume.unit == "mu" and volume.values.dtype == torch.float64
    index = torch.tensor([[3.0, 7.0, 9.0], [6.0, 5.0, 8.0], [5.0, 8.0, 7.0]], dtype=torch.float64)
    expected = phantom.sample(volume.index_to_world(index))
    x, y, z = index.long().unbind(-1)
    assert (expected > 0).any()
    torch.testing.assert_close(volume.values[z, y, x], expected, rtol=1e-12, atol=1e-15)


def test_voxelize_centres_the_grid_and_supersampling_converges_to_the_exact_mass() -> None:
    phantom = ball(20.0, 0.02)
    mass = 0.02 * 4 / 3 * math.pi * 20.0**3
    errors = []
    for supersample in (1, 2, 4):
        volume = phantom.voxelize((12, 13, 14), (5.0, 5.0, 6.0), supersample=supersample)
        errors.append(abs(volume.values.sum().item() * 150.0 / mass - 1))
    assert volume_center(volume).abs().max() < 1e-12
    assert errors[2] < 5e-3 and errors[2] < errors[0], errors
    values = volume.values
    assert ((values > 1e-9) & (values < 0.02 - 1e-9)).any() and values.max() <= 0.02 + 1e-15


def test_shepp_logan_has_the_values_of_the_table() -> None:
    head = shepp_logan_3d(size_mm=2.0, mu=1.0)
    assert len(head) == 10 and head.exponent == 0
    points = {  # table coordinates: density relative to water
        (0.0, 0.0, 0.0): 1.02,  # brain
        (0.0, 0.9, 0.0): 2.0,  # skull
        (0.0, 0.95, 0.0): 0.0,  # outside
        (-0.22, 0.0, -0.25): 1.0,  # ventricles
        (0.22, 0.0, -0.25): 1.0,
        (0.0, 0.35, -0.25): 1.04,
        (0.0, 0.1, 0.625): 1.0,
        (0.06, -0.105, 0.625): 1.04,
        # The ventricle of semi-axis 0.41 lies along 108 degrees, not along -108.
        (
            -0.22 + 0.35 * math.cos(math.radians(108)),
            0.35 * math.sin(math.radians(108)),
            -0.25,
        ): 1.0,
        (
            -0.22 - 0.35 * math.cos(math.radians(108)),
            0.35 * math.sin(math.radians(108)),
            -0.25,
        ): 1.04,
    }
    density = head.sample(torch.tensor(list(points), dtype=torch.float64))
    assert density.tolist() == pytest.approx(list(points.values()), abs=1e-12)
    contrast = shepp_logan_3d(size_mm=2.0, mu=1.0, high_contrast=True)
    assert contrast.sample(torch.zeros(3)).item() == pytest.approx(0.2)


def test_shepp_logan_is_scaled_to_size_and_water() -> None:
    head = shepp_logan_3d(size_mm=180.0)
    chord = head.line_integrals(torch.tensor([0.0, 0.0, 300.0]), torch.tensor([0.0, 0.0, -300.0]))
    expected = 90.0 * 0.01929 * (2 * 0.9 * 2.0 - 2 * 0.88 * 0.98)
    # Only skull and brain lie on the z axis, but for the edges of small, faint ellipsoids.
    assert chord.item() == pytest.approx(expected, rel=0.01)
    assert shepp_logan_3d(soft=True).exponent == 2


def test_random_ellipsoids_are_repeatable_and_stay_within_their_radius() -> None:
    first, again = random_soft_ellipsoids(7, 12), random_soft_ellipsoids(7, 12)
    other = random_soft_ellipsoids(8, 12)
    assert torch.equal(first.centers, again.centers) and len(first) == 12
    assert torch.equal(first.rotations, again.rotations)
    assert not torch.equal(first.centers, other.centers)
    assert (first.centers.norm(dim=-1) + first.semi_axes.amax(-1)).max() <= 100.0
    assert (torch.linalg.det(first.rotations) > 0).all()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"centers": [[0, 0, 0]]}, TypeError, "centers: expected a tensor, got list"),
        ({"centers": torch.zeros(2, 3)}, ValueError, r"centers: expected \[E, 3\]"),
        ({"values": torch.zeros(1, 1)}, ValueError, "values: expected"),
        ({"values": torch.zeros(0)}, ValueError, "values: expected"),
        ({"values": torch.tensor([math.nan])}, ValueError, "values: contains 1 non-finite"),
        (
            {"semi_axes": torch.tensor([[1.0, 0.0, 1.0]])},
            ValueError,
            "semi_axes: expected positive",
        ),
        ({"rotations": 2 * torch.eye(3)[None]}, ValueError, "rotations: expected orthonormal"),
        ({"exponent": 2.0}, ValueError, "exponent: expected an integer >= 0, got 2.0"),
        ({"exponent": 9}, ValueError, "exponent: expected 0 to 8, got 9"),
    ],
)
def test_a_bad_phantom_is_refused(change: dict, error: type[Exception], message: str) -> None:
    fields = {
        "centers": torch.zeros(1, 3),
        "semi_axes": torch.ones(1, 3),
        "rotations": torch.eye(3)[None],
        "values": torch.ones(1),
    }
    with pytest.raises(error, match=message):
        Ellipsoids(**(fields | change))


def test_bad_arguments_are_named() -> None:
    phantom, grid = ball(), tilted_grid()
    frames = torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match=r"source: expected \[..., 3\], got \[4, 2\]"):
        phantom.line_integrals(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="points: expected"):
        phantom.sample(torch.zeros(2))
    with pytest.raises(ValueError, match=r"frames: expected \[B, 4, 3\]"):
        phantom.project(frames[0], grid, (2, 2))
    with pytest.raises(ValueError, match="exactly one of them, got neither"):
        phantom.project(frames, grid)
    with pytest.raises(ValueError, match="beam: expected"):
        phantom.project(frames, grid, (2, 2), beam="fan")
    with pytest.raises(ValueError, match="world_to_camera: expected"):
        phantom.render(CArm(300.0, (2, 2), 1.0), torch.eye(3))
    with pytest.raises(ValueError, match="supersample: expected a positive integer, got 0"):
        phantom.render(CArm(300.0, (2, 2), 1.0), torch.eye(4), supersample=0)
    with pytest.raises(ValueError, match="supersample: expected a positive integer, got 0"):
        phantom.voxelize((2, 2, 2), 1.0, supersample=0)
    with pytest.raises(ValueError, match="shape: expected three positive numbers"):
        phantom.voxelize((2, 2, 0), 1.0)
    with pytest.raises(ValueError, match="size_mm: expected a positive number"):
        shepp_logan_3d(0.0)
    with pytest.raises(ValueError, match="count: expected a positive integer"):
        random_soft_ellipsoids(0, 0)
