"""Comparison by intensity: images, derivatives, gain, which scenes choose it, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from drrkit import CArm, Stage, Volume, perturb, register, render, view_ap
from drrkit.geometry import volume_center
from drrkit.registration import Bodies, Levenberg, Regressor
from drrkit.registration.problem.formation import as_measured, gain_of, is_implant, is_metal
from drrkit.registration.problem.loss import StageLoss
from drrkit.registration.problem.rendering import SceneRenderer, renderer
from drrkit.registration.problem.views import make_views

CAMERA = CArm(1000.0, (30, 26), 4.0)
STAGES = [Stage("ncc", optimiser=Levenberg(0.03, final_step=1e-6), iterations=40)]


@lru_cache
def implant(mu: float = 0.6) -> Volume:
    """Two soft-edged balls, 20 and 10 mm thick, and a bar: no symmetry, float64."""
    z, y, x = torch.meshgrid(*(torch.arange(-20.0, 21.0, dtype=torch.float64),) * 3, indexing="ij")
    parts = [
        ((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2).sqrt() - radius
        for cx, cy, cz, radius in ((-6.0, 0.0, -4.0, 10.0), (9.0, 5.0, 6.0, 5.0))
    ]
    parts.append(torch.stack(((x + 2) / 3, (y + 9) / 3, z / 16)).abs().amax(0) * 3 - 3)
    inside = torch.stack([(-part / 1.5).sigmoid() for part in parts]).amax(0)
    inside = torch.where(inside > 0.02, inside, 0.0)
    return Volume(mu * inside, (1.0, 1.0, 1.0), (-20.0, -20.0, -20.0), unit="mu")


def pose() -> Tensor:
    turn = torch.tensor([0.2, -0.3, 0.1, 2.0, -1.0, 5.0], dtype=torch.float64)
    return perturb(view_ap(implant(), 700.0), turn, volume_center(implant()))


@pytest.mark.parametrize("supersample", [1, 3])
def test_rays_absorb_before_they_are_averaged(supersample: int) -> None:
    found = renderer(implant(), CAMERA, supersample, "joseph", 2.0)(pose())
    line = render(implant(), CAMERA.rescale(1 / supersample), pose())
    wanted = functional.avg_pool2d(1.0 - torch.exp(-2.0 * line), supersample)
    torch.testing.assert_close(found, wanted)
    assert 0.9 < float(found.max()) < 1.0


@pytest.mark.parametrize("supersample", [1, 2])
def test_the_jacobian_is_that_of_central_differences(supersample: int) -> None:
    draw, center = renderer(implant(), CAMERA, supersample, "siddon", 1.5), volume_center(implant())
    image, jacobian = draw.with_jacobian(pose(), None, center)
    torch.testing.assert_close(image, draw(pose()))
    for unknown, step in enumerate((1e-6,) * 3 + (1e-5,) * 3):
        xi = torch.zeros(6, dtype=torch.float64)
        xi[unknown] = step
        ends = [draw(perturb(pose(), sign * xi, center)) for sign in (1.0, -1.0)]
        slope = (ends[0] - ends[1]) / (2 * step)
        wrong = (jacobian[:, :, unknown] - slope).abs() > 1e-4 * slope.abs().max()
        assert float(wrong.double().mean()) < 0.01  # a ray that meets a voxel's edge in the step


def test_losses_of_bodies_have_the_gradient_of_their_sum_in_the_beam() -> None:
    bodies = Bodies([implant(), replace(implant(), values=0.3 * implant().values)])
    poses = torch.stack((pose(), view_ap(implant(), 690.0)[0].expand(1, 4, 4)), 1)
    line = sum(render(body, CAMERA, poses[:, i]) for i, body in enumerate(bodies.bodies))
    torch.testing.assert_close(
        renderer(bodies, CAMERA, 1, "joseph", 0.7)(poses), 1.0 - torch.exp(-0.7 * line)
    )
    xray = torch.rand(1, 1, *CAMERA.size, dtype=torch.float64)
    views = make_views(CAMERA, xray, None, None, implant().values[:0])
    stage = Stage("mse", optimiser=Levenberg())
    drawn = SceneRenderer(bodies, "joseph", 0.7)
    loss = StageLoss(drawn, views, stage, 1, bodies.center)
    xi = torch.zeros(1, 12, dtype=torch.float64, requires_grad=True)
    moved = torch.stack(
        [perturb(poses[:, i], xi[:, 6 * i : 6 * i + 6], bodies.center[i]) for i in range(2)], 1
    )
    (gradient,) = torch.autograd.grad(loss.objective(moved).sum(), xi)
    torch.testing.assert_close(loss.expand(poses).gradient, gradient)


def test_a_gain_is_a_denser_scene() -> None:
    denser = renderer(implant(1.2), CAMERA, 1, "joseph", 1.0)(pose())
    torch.testing.assert_close(renderer(implant(), CAMERA, 1, "joseph", 2.0)(pose()), denser)


def gain(scene, formation: str, value: float, stages) -> float:
    return gain_of(scene, stages, formation, value, "line")


def test_metal_chooses_intensity_and_bone_does_not() -> None:
    assert is_metal(implant()) and not is_metal(implant(0.12))
    assert is_metal(Bodies([implant(0.05), implant(0.4)]))
    assert is_implant(implant()) and not is_implant(Bodies([implant(0.05), implant(0.4)]))
    specks = torch.zeros(9, 9, 9, dtype=torch.float64)
    specks[4:7, 4:7, 4:7], specks[4, 4, 4] = 0.05, 0.5
    assert not is_metal(Volume(specks, (1.0, 1.0, 1.0), unit="mu"))  # a screw in a patient
    assert gain(implant(), "auto", 2.0, STAGES) == 2.0
    assert gain(implant(), "line", 2.0, STAGES) == gain(object(), "auto", 2.0, STAGES) == 0.0
    assert gain(implant(0.05), "intensity", 2.0, STAGES) == 2.0


def test_a_saturated_xray_is_met_by_intensity_and_missed_by_line_integrals() -> None:
    """A detector that clips what is behind 3 line integrals' worth of metal, as 8 bits do."""
    center, truth = volume_center(implant()), pose()
    line = render(implant(), CAMERA, truth, supersample=4)
    display = 1.0 - torch.exp(-line)
    start = perturb(truth, torch.tensor([0.05, 0.04, -0.06, 1.5, -1.0, 4.0]).double(), center)

    def end(**options) -> float:
        found = register(implant(), CAMERA, display, start, stages=STAGES, **options)
        point = torch.tensor([8.0, 5.0, 6.0, 1.0], dtype=torch.float64)
        return float(((found.world_to_camera - truth[0]) @ point)[:2].norm())

    assert end(xray_kind="display") < 0.2  # pixels of 2.8 mm at the implant, one ray each
    assert end(formation="line") > 2 * end(xray_kind="display")
    measured = -torch.log1p(-display)
    found = [
        register(implant(), CAMERA, xray, start, stages=STAGES, xray_kind=kind).world_to_camera
        for xray, kind in ((measured, "line"), (display, "display"))
    ]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_what_cannot_be_compared_by_intensity_is_refused() -> None:
    xray = 255.0 * torch.rand(1, 1, *CAMERA.size)
    with pytest.raises(ValueError, match=r"xray: expected line integrals.*xray_kind='display'"):
        register(implant(), CAMERA, xray, pose(), stages=STAGES)
    views = make_views(CAMERA, xray, None, None, torch.empty(0))
    assert torch.equal(as_measured(views, "display")[0].xray, xray)
    for name, value in (("formation", "vr"), ("gain", 0.0), ("gain", True), ("xray_kind", "raw")):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            register(implant(), CAMERA, xray, pose(), stages=STAGES, **{name: value})

    class Trained:
        def prepare(self, scene):
            return scene

        def __call__(self, moving, fixed, mask=None):
            return moving.sum((1, 2, 3))

        def update(self, *_):
            return None

    for stage in (Stage(Trained()), Stage(optimiser=Regressor(Trained()))):
        assert gain(implant(), "auto", 1.0, [stage]) == 0.0
        with pytest.raises(ValueError, match="formation: expected 'line' for the trained network"):
            gain(implant(), "intensity", 1.0, [stage])
