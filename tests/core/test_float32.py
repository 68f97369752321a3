"""What float32 costs against float64 on a grid as large as a chest CT, views at sdd 1020.

Relative errors, measured on a CPU (worst of three views and six twist components):

              smooth: image  Jacobian  twist gradient     voxel noise: image  Jacobian  gradient
    joseph           2e-7     3e-6       2e-6                          4e-7     1e-4      1e-4
    siddon           4e-7     2e-5       9e-6                          5e-7     4e-4      3e-4
    trilinear        2e-7     1e-4       1e-4                          4e-7     4e-2      2e-2

Trilinear samples that come within float32 of a face choose the other cell: its derivatives are
held to these figures where neighbouring cells differ little, and to its median error elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import drrkit
from tests.support.scenes import endpoints, generator, rand, randn, rms

# torch's own forward mode warns of something in torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

SHAPE, SPACING = (133, 512, 512), (0.703, 0.703, 2.5)
CAMERA = drrkit.CArm(1020.0, (24, 24), 14.0)
METHODS: dict[str, dict[str, Any]] = {
    "joseph": {"method": "joseph"},
    "siddon": {"method": "siddon"},
    "trilinear": {"method": "trilinear"},
    "foot": {"method": "trilinear", "anchor": "foot"},
    "line": {"method": "trilinear", "derivative": "line"},
}


class Found(NamedTuple):
    image: Tensor  # [P]
    jacobian: Tensor  # [P, 6], d image / d xi of every pixel
    gradient: Tensor  # [4, 6], twist gradients for four random cotangents


class Bound(NamedTuple):
    image: float
    jacobian: float
    gradient: float


SMOOTH = {
    "joseph": Bound(1e-6, 3e-5, 3e-5),
    "siddon": Bound(1e-6, 1e-4, 1e-4),
    "trilinear": Bound(1e-6, 2e-3, 1e-3),
    "foot": Bound(1e-6, 2e-3, 1e-3),
    "line": Bound(1e-6, 2e-3, 1e-3),
}
NOISY = {"joseph": Bound(2e-6, 2e-3, 1e-3), "siddon": Bound(2e-6, 2e-3, 1e-3)}


def blobs() -> Tensor:
    """A sum of Gaussians 12 to 52 mm wide, float32."""
    z, y, x = (
        (torch.arange(n) - (n - 1) / 2) * pitch
        for n, pitch in zip(SHAPE, SPACING[::-1], strict=True)
    )
    values = torch.zeros(SHAPE)
    for seed in range(8):
        centre, width = (rand(3, seed=seed) - 0.5) * 250, 12 + 40 * rand(3, seed=seed + 40)
        of_x, of_y, of_z = (
            torch.exp(-(((axis - c) / w) ** 2)).float()
            for axis, c, w in zip((x, y, z), centre.tolist(), width.tolist(), strict=True)
        )
        values += 0.02 * (of_z[:, None, None] * (of_y[:, None] * of_x))
    return values


class Pair(NamedTuple):
    """One volume in both precisions."""

    single: drrkit.Volume
    double: drrkit.Volume

    @classmethod
    def of(cls, values: Tensor) -> Pair:
        single = drrkit.Volume(values, SPACING, unit="mu")
        return cls(single, single.to(torch.float64))


@pytest.fixture(scope="module")
def smooth() -> Pair:
    return Pair.of(blobs())


@pytest.fixture(scope="module")
def noisy() -> Pair:
    """With 30 % of independent noise in every voxel: rougher than a CT."""
    return Pair.of(blobs() * (1 + 0.3 * torch.randn(SHAPE, generator=generator(3))))


def pose_of(view: str, volume: drrkit.Volume) -> Tensor:
    pose = {
        "AP": lambda: drrkit.view_ap(volume, 800.0),
        "lateral": lambda: drrkit.view_left_lateral(volume, 800.0),
        "oblique": lambda: drrkit.view_carm(volume, 800.0, 0.5, 0.2),
    }[view]()
    # Off the symmetry that puts every sample of such a view on a voxel face.
    twist = torch.tensor([[0.013, 0.017, -0.011, 0.37, 0.21, 0.13]], dtype=torch.float64)
    return drrkit.perturb(pose, twist.to(pose.device), drrkit.volume_center(volume))


def measured(volume: drrkit.Volume, view: str, options: dict[str, Any]) -> Found:
    values = volume.values
    start, center = pose_of(view, volume), drrkit.volume_center(volume)

    def ends_of(xi: Tensor) -> Tensor:
        pose = drrkit.perturb(start, xi, center)
        frames = drrkit.view_frames(volume, CAMERA, pose, extend=True)
        return endpoints(frames.cpu(), CAMERA.size, CAMERA.beam)[0]

    still = torch.zeros(1, 6, dtype=torch.float64, device=values.device)
    ends = ends_of(still).to(values.device)
    frames = torch.cat([ends, torch.zeros_like(ends)], 1).requires_grad_()
    image = drrkit.project(values, frames, (1, 1), spacing=SPACING, **options).flatten()
    (slopes,) = torch.autograd.grad(image.sum(), frames)
    of_ends = torch.func.jacfwd(ends_of)(still)[..., 0, :]
    jacobian = torch.einsum("pab,pabk->pk", slopes[:, :2].double().cpu(), of_ends.cpu())

    xi = still.requires_grad_()
    picture = drrkit.render(volume, CAMERA, drrkit.perturb(start, xi, center), **options)
    cotangents = [randn(*picture.shape, seed=seed).to(picture) for seed in range(4)]
    rows = [torch.autograd.grad(picture, xi, g, retain_graph=True)[0][0] for g in cotangents]
    return Found(image.detach().double().cpu(), jacobian, torch.stack(rows).cpu())


def compared(
    pair: Pair, options: dict[str, Any], device: torch.device
) -> tuple[list[Bound], list[float]]:
    """Of every view: relative rms errors (of the twist's components the worst); worst median."""
    single, double = pair.single.to(device), pair.double.to(device)
    errors, medians = [], []
    for view in ("AP", "lateral", "oblique"):
        found, truth = measured(single, view, options), measured(double, view, options)
        off, size = found.jacobian - truth.jacobian, truth.jacobian
        of_jacobian = max(rms(off[:, k]) / rms(size[:, k]) for k in range(6))
        of_gradient = (found.gradient - truth.gradient).norm(dim=0) / truth.gradient.norm(dim=0)
        of_image = rms(found.image - truth.image) / rms(truth.image)
        errors.append(Bound(of_image, of_jacobian, float(of_gradient.max())))
        medians.append(float((off.abs().median(0).values / size.abs().median(0).values).max()))
    return errors, medians


def assert_within(errors: list[Bound], bound: Bound) -> None:
    for found in errors:
        assert found.image > 0  # float32 was at work
        assert all(a <= b for a, b in zip(found, bound, strict=True)), (errors, bound)


@pytest.mark.parametrize("method", METHODS)
def test_float32_is_accurate_on_a_smooth_volume(method, smooth, device) -> None:
    errors, _ = compared(smooth, METHODS[method], device)
    assert_within(errors, SMOOTH[method])


@pytest.mark.parametrize("method", METHODS)
def test_float32_is_accurate_on_a_noisy_volume(method, noisy, device) -> None:
    errors, medians = compared(noisy, METHODS[method], device)
    assert max(found.image for found in errors) <= 2e-6
    assert max(medians) <= 2e-4
    if method in NOISY:
        assert_within(errors, NOISY[method])


@pytest.mark.parametrize("method", METHODS)
def test_float32_pose_gradients_are_added_in_float64(method, device) -> None:
    # The parts of a cotangent give the parts of the gradient, to the digits of float64.
    values, parts = rand(40, 42, 44).to(device, torch.float32), 50
    camera = drrkit.CArm(1020.0, (200, 200), 0.5)
    volume = drrkit.Volume(values, (1.0, 1.0, 1.0), unit="mu")
    frames = drrkit.view_frames(volume, camera, pose_of("oblique", volume)).requires_grad_()
    image = drrkit.project(values, frames, camera.size, **METHODS[method])
    g = torch.ones_like(image)
    (whole,) = torch.autograd.grad(image, frames, g, retain_graph=True)
    total = torch.zeros_like(whole)
    for part in range(parts):
        some = torch.zeros_like(g)
        some.view(-1)[part::parts] = 1
        total += torch.autograd.grad(image, frames, some, retain_graph=True)[0]
    assert float((total - whole).abs().max() / whole.abs().max()) <= 1e-12
