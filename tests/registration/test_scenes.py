"""Scenes that render themselves: what a registration asks of their render()."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from drrkit import CArm, Stage, Volume, register, render
from drrkit.fields import MNeRF, NeTT, TunedCT, VolumeRendered
from drrkit.geometry import Camera, perturb, view_ap, volume_center
from drrkit.phantoms import torso
from drrkit.registration import Descent, Levenberg
from drrkit.registration.problem.rendering import renderer

CAMERA = CArm(1020.0, (24, 20), 12.0)


@lru_cache
def attenuation() -> Volume:
    return torso(12.0).to_mu()


def pose() -> Tensor:
    return view_ap(attenuation(), 800.0)


class Plain:
    """A scene whose render() takes no options at all."""

    def __init__(self) -> None:
        self.center = volume_center(attenuation())

    def render(self, camera: Camera, world_to_camera: Tensor) -> Tensor:
        return render(attenuation(), camera, world_to_camera)


class Named(Plain):
    """One that takes the method, and nothing else."""

    def render(self, camera: Camera, world_to_camera: Tensor, *, method: str = "joseph") -> Tensor:
        return render(attenuation(), camera, world_to_camera, method=method)


class Told(Plain):
    """One that takes anything and remembers it."""

    def render(self, camera: Camera, world_to_camera: Tensor, **options: Any) -> Tensor:
        self.options = options
        return super().render(camera, world_to_camera)


@pytest.mark.parametrize("method", ["joseph", "siddon", "trilinear"])
@pytest.mark.parametrize("supersample", [1, 3])
def test_a_volume_seen_through_a_scene_is_rendered_as_the_volume_is(method, supersample):
    wanted = renderer(attenuation(), CAMERA, supersample, method)(pose())
    seen = renderer(VolumeRendered(attenuation()), CAMERA, supersample, method)(pose())
    torch.testing.assert_close(seen, 1.0 - torch.exp(-wanted))
    named = renderer(Named(), CAMERA, supersample, method)(pose())
    torch.testing.assert_close(named, wanted)


@pytest.mark.parametrize("supersample", [1, 2])
def test_a_scene_without_options_is_still_supersampled(supersample):
    found = renderer(Plain(), CAMERA, supersample, "joseph")(pose())
    wanted = render(attenuation(), CAMERA, pose(), supersample=supersample)
    torch.testing.assert_close(found, wanted)


def test_a_scene_that_cannot_choose_its_method_refuses_another_one():
    start = perturb(pose(), torch.tensor([0.02, 0.0, 0.0, 3.0, 0.0, 0.0]), Plain().center)
    xray = render(attenuation(), CAMERA, pose())
    for optimiser in (Descent(), Levenberg()):
        stage = Stage("ncc", optimiser=optimiser, iterations=2)
        with pytest.raises(ValueError, match="method: expected 'joseph' for a Plain"):
            register(Plain(), CAMERA, xray, start, stages=stage, method="siddon")


def test_a_scene_that_has_a_volume_too_is_registered_by_its_own_render():
    scene = Told()
    nothing = replace(attenuation(), values=torch.zeros_like(attenuation().values))
    scene.volume = nothing
    start = perturb(pose(), torch.tensor([0.02, 0.0, 0.0, 3.0, 0.0, 0.0]), scene.center)
    stage = Stage("ncc", optimiser=Levenberg(), iterations=3)
    xray = render(attenuation(), CAMERA, pose())
    found, plain = (
        register(one, CAMERA, xray, start, stages=stage).world_to_camera for one in (scene, Plain())
    )
    assert scene.options and torch.equal(found, plain)


def test_register_tells_a_scene_its_method_and_every_stages_supersampling():
    scene = Told()
    xray = render(attenuation(), CAMERA, pose())
    seen = []

    def watch(world_to_camera: Tensor, loss: float) -> None:
        seen.append(scene.options)

    stages = [Stage("ncc", iterations=1, supersample=n) for n in (1, 2)]
    register(scene, CAMERA, xray, pose(), stages=stages, method="siddon", progress=watch)
    assert seen == [{"method": "siddon", "supersample": n} for n in (1, 2)]


def test_fields_are_supersampled_and_a_tuned_ct_is_rendered_by_the_method():
    tuned = VolumeRendered(TunedCT(NeTT(), attenuation()))
    field = MNeRF.inside(attenuation())
    for scene in (tuned, field):
        images = [renderer(scene, CAMERA, n, "siddon")(pose()).detach() for n in (1, 2)]
        assert images[0].shape == images[1].shape == (1, 1, *CAMERA.size)
        assert not torch.equal(*images)
    joseph, siddon = (renderer(tuned, CAMERA, 1, m)(pose()).detach() for m in ("joseph", "siddon"))
    assert not torch.equal(joseph, siddon)
