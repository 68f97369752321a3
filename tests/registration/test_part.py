"""Volumes that are a part of what the X-ray shows: neighbours do not pull, the crop is exact."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from drrkit import CArm, perturb, register, render, view_ap
from drrkit.geometry import Camera, project_points, volume_center
from drrkit.registration import AUTO, Bodies, Registrar
from drrkit.registration.presets import PART
from drrkit.registration.problem.part import around
from drrkit.registration.problem.rendering import SceneRenderer
from drrkit.registration.problem.views import View
from drrkit.volume import Volume
from tests.registration.test_formation import implant

CAMERA = CArm(1000.0, (220, 240), 1.0)
CENTER = volume_center(implant())


def bone() -> Volume:
    return implant(0.05).to(torch.float32)


def truth() -> Tensor:
    turn = torch.tensor([0.2, -0.3, 0.1, 5.0, -8.0, 0.0], dtype=torch.float64)
    return perturb(view_ap(implant(), 800.0), turn, CENTER)


def scene(metal: float, pose: Tensor | None = None, camera: Camera = CAMERA) -> Tensor:
    """An X-ray of the object, soft tissue of other thickness and two neighbours: line integrals.

    pose: of the object alone; default `truth()`.
    """
    volume = implant(metal).to(torch.float32)
    line = render(volume, camera, truth() if pose is None else pose, supersample=3)
    for shift, turn in (((30.0, 12.0, 10.0), 0.7), ((-34.0, -20.0, -25.0), -0.4)):
        xi = torch.tensor([turn, 0.2, -turn, *shift], dtype=torch.float64)
        line = line + render(bone(), camera, perturb(truth(), xi, CENTER), supersample=3)
    rows, cols = (torch.linspace(-1, 1, n) for n in camera.size)
    return line + 2.0 + 0.8 * rows[:, None] - 0.6 * cols * rows[:, None]


def starts(count: int) -> Tensor:
    draw = 2 * torch.rand(count, 6, dtype=torch.float64, generator=torch.manual_seed(3)) - 1
    xi = draw * torch.tensor([0.15, 0.15, 0.15, 4.0, 4.0, 20.0], dtype=torch.float64)
    return perturb(truth().expand(count, 4, 4), xi, CENTER)


def errors(found: Tensor) -> tuple[float, float]:
    """In the image plane at the object (mm), and the turn (rad)."""
    seen = project_points(CAMERA, torch.cat((found[None], truth())), CENTER[None])
    turn = found[:3, :3] @ truth()[0, :3, :3].T
    cosine = ((turn.trace() - 1) / 2).clamp(-1, 1)
    return float((seen[0] - seen[1]).norm()) * 0.8, float(torch.acos(cosine))


@pytest.mark.parametrize(("metal", "most"), [(0.05, 0.01), (0.6, 0.02)])
def test_neighbours_do_not_pull_a_part(metal: float, most: float) -> None:
    """A bone by line integrals and an implant by intensity, from starts within 8 degrees.

    What is beside the implant in the beam is in the X-ray and not in the rendering, so that its
    edges have other contrasts there: that turns it a little.
    """
    volume, xray = implant(metal).to(torch.float32), scene(metal)
    registrar = Registrar(volume, CAMERA, stages="part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one view: no depth
        found = [registrar(xray, start) for start in starts(2)]
    for result in found:
        plane, turn = errors(result.world_to_camera)
        assert plane < 0.2 and turn < most
        assert {record.similarity for record in result.history} == {"gradient_ncc"}


def test_implants_are_parts_unless_told_otherwise() -> None:
    metal, light = implant(0.6), implant(0.05)

    def stages(scene, **options):
        return [trial.stages for trial in Registrar(scene, CAMERA, **options).trials]

    assert stages(metal) == stages(Bodies([metal, metal])) == [PART]
    assert stages(metal, stages=AUTO) == [AUTO]
    assert AUTO in stages(light) and stages(light) == stages(Bodies([metal, light]))


def test_the_surroundings_of_a_part_are_a_window_of_the_same_pixels() -> None:
    xray = torch.rand(1, 1, *CAMERA.size)
    mask = torch.rand(1, 1, *CAMERA.size)
    drawn = SceneRenderer(bone())
    poses = starts(2)
    (view,) = around([View(CAMERA, xray, mask, None)], drawn, poses, 800.0, 8.0)
    whole = render(bone(), CAMERA, poses)
    rows, cols = view.camera.size
    assert rows < 120 and cols < 120
    row, col = (int(offset) for offset in (CAMERA.K - view.camera.K)[[1, 0], 2])
    window = (..., slice(row, row + rows), slice(col, col + cols))
    assert torch.equal(view.xray, xray[window]) and torch.equal(view.mask, mask[window])
    torch.testing.assert_close(render(bone(), view.camera, poses), whole[window])
    inner = (..., slice(row + 9, row + rows - 9), slice(col + 9, col + cols - 9))
    assert float((whole[inner] > 0.1).sum()) == float((whole > 0.1).sum())  # 10 pixels of margin


def test_a_part_at_the_image_s_rim_or_outside_of_it_keeps_enough_pixels() -> None:
    xray = torch.rand(1, 1, *CAMERA.size)
    for shift in (100.0, -100.0, 300.0):
        pose = truth().clone()
        pose[:, :2, 3] += shift
        (view,) = around([View(CAMERA, xray, None, None)], SceneRenderer(bone()), pose, 800.0, 5.0)
        assert min(view.camera.size) >= 24
        assert view.xray.shape[-2:] == view.camera.size
        assert (view.camera.size == CAMERA.size) == (shift == 300.0)


def test_two_views_of_a_part_know_its_depth() -> None:
    rig = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    turn = view_ap(bone(), 800.0)[0]
    side = perturb(turn[None], torch.tensor([0, 1.2, 0, 0, 0, 0]).double(), CENTER)[0]
    rig[1] = side @ torch.linalg.inv(turn)
    xrays = []
    for pose in (truth(), rig[1] @ truth()):
        line = render(bone(), CAMERA, pose, supersample=3)
        near = perturb(pose, torch.tensor([0.5, 0, 0, 28.0, 25.0, 0]).double(), CENTER)
        xrays.append(line + render(bone(), CAMERA, near, supersample=3))
    found = register(
        bone(), [CAMERA, CAMERA], xrays, starts(1), stages="part", rig_to_camera=rig
    ).world_to_camera
    center = torch.cat((CENTER, torch.ones(1).double()))
    assert float(((found - truth()[0]) @ center).norm()) < 0.3
