"""Tensors stay on the device of their inputs: found without a GPU, by a device in name only."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import drrkit
from drrkit import Stage, conversions, fields, losses, register, similarity
from drrkit.conversions.vectors import grid_world
from drrkit.geometry import volume_center
from drrkit.registration import (
    SIMILARITIES,
    CmaEs,
    Descent,
    Directions,
    Levenberg,
    Optimiser,
    PosePrior,
    TrustRegion,
    refine_intrinsics,
    register_sequence,
)
from tests.support.coarse_torso import CAMERA, attenuation
from tests.support.elsewhere import DEVICE, Elsewhere, is_elsewhere

SETTINGS: tuple[Optimiser, ...] = (
    Levenberg(),
    Descent(),
    Directions(),
    CmaEs((0.02, 2.0), 8),
    TrustRegion(),
)
TO = [name for name in conversions.__all__ if name.startswith("to_")]
OF_A_VOLUME = ("to_astra", "to_leap", "to_tigre", "to_diffdrr", "to_plastimatch", "to_dicom_angles")
LOSSES = [n for n in losses.__all__ if callable(getattr(losses, n)) and n in SIMILARITIES]


@pytest.fixture
def scene() -> Any:
    """A volume, a pose, its X-ray, a start and a mask, all of them elsewhere."""
    with Elsewhere():
        volume = attenuation().to(DEVICE)
        pose = drrkit.view_ap(volume, 800.0)
        xi = torch.tensor([[0.02, 0.01, 0.0, 2.0, 1.0, 3.0]], dtype=torch.float64, device=DEVICE)
        xray = drrkit.render(volume, CAMERA, pose)
        yield SimpleNamespace(
            volume=volume,
            pose=pose,
            xray=xray,
            start=drrkit.perturb(pose, xi, volume_center(volume)),
            mask=torch.ones_like(xray),
        )


def registered(scene: Any, stage: Any, **options: Any) -> torch.Tensor:
    stages = [stage] if isinstance(stage, Stage) else stage
    found = register(scene.volume, CAMERA, scene.xray, scene.start, stages=stages, **options)
    return found.world_to_camera


def stage_of(kind: Any, optimiser: Optimiser = SETTINGS[1]) -> Stage:
    return Stage(kind, 17.0, mm=True, iterations=3, optimiser=optimiser)


def test_a_tensor_on_the_wrong_device_is_found(scene: Any) -> None:
    """As torch finds it on a GPU; numbers without dimensions and indices may come from the CPU."""
    with pytest.raises(RuntimeError, match="add: tensors on xpu:0 beside the CPU's"):
        scene.xray + torch.zeros(32)
    with pytest.raises(RuntimeError, match=r"stack: tensors on xpu:0"):
        torch.stack([scene.start[0], torch.eye(4)])
    with pytest.raises(ValueError, match="frames: expected device cpu, got xpu:0"):
        frames = drrkit.view_frames(scene.volume, CAMERA, scene.pose)
        drrkit.project(scene.volume.values.cpu(), frames, CAMERA.size)
    with pytest.raises(TypeError, match="numpy"):
        scene.xray.numpy()
    assert is_elsewhere(scene.xray[..., torch.arange(3)] * torch.tensor(2.0))
    assert not is_elsewhere(scene.xray.cpu())
    assert torch.zeros(2).to(scene.xray).device == DEVICE


@pytest.mark.parametrize("name", LOSSES)
def test_losses_stay_on_their_device(name: str, scene: Any) -> None:
    moving = drrkit.render(scene.volume, CAMERA, scene.start).requires_grad_()
    loss = getattr(losses, name)(moving, scene.xray, scene.mask)
    assert is_elsewhere(loss)
    assert is_elsewhere(torch.autograd.grad(loss.sum(), moving)[0])


@pytest.mark.parametrize("optimiser", SETTINGS, ids=lambda o: type(o).__name__)
def test_optimisers_stay_on_their_device(optimiser: Optimiser, scene: Any) -> None:
    assert is_elsewhere(registered(scene, stage_of("ncc", optimiser)))


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_stay_on_their_device(name: str, scene: Any) -> None:
    assert is_elsewhere(registered(scene, stage_of(name), mask=scene.mask))


@pytest.mark.parametrize("pipeline", ["auto", "global"])
def test_registration_stays_on_its_device(pipeline: str, scene: Any) -> None:
    assert is_elsewhere(registered(scene, pipeline))


def test_sequences_rigs_and_priors_stay_on_their_device(scene: Any) -> None:
    stage = stage_of("ncc")
    assert is_elsewhere(registered(scene, stage, prior=PosePrior()))
    rig, xrays = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1), [scene.xray, scene.xray]
    cameras = [CAMERA, CAMERA]
    found = register(scene.volume, cameras, xrays, scene.start, rig_to_camera=rig, stages=[stage])
    assert is_elsewhere(found.world_to_camera)
    frames = torch.cat(xrays)[:, 0]
    pipelines: dict[str, Any] = {"first": [stage], "follow": [stage], "recover": ()}
    sequence = register_sequence(scene.volume, CAMERA, frames, scene.start, **pipelines)
    assert len(sequence.frames) == 2
    refine_intrinsics(scene.volume, CAMERA, scene.xray, scene.start)


@pytest.mark.parametrize("name", ["prost-small", "cdreg-small", "sopi-small"])
def test_learned_similarities_stay_on_their_device(name: str, scene: Any) -> None:
    scene.volume, scene.xray = scene.volume.to(dtype=torch.float32), scene.xray.float()
    assert is_elsewhere(registered(scene, stage_of(similarity.build(name).to(DEVICE))))


def test_fields_stay_on_their_device(scene: Any) -> None:
    volume = scene.volume.to(dtype=torch.float32)
    tuned = fields.TunedCT(fields.NeTT().eval().to(DEVICE), volume)
    assert is_elsewhere(tuned.render(CAMERA, scene.pose))
    field = fields.MNeRF(volume.values > 0.01, volume, octaves=3, width=16, depth=3).to(DEVICE)
    image = field.render(CAMERA, scene.pose)
    image.sum().backward()
    assert is_elsewhere(image)


@pytest.mark.parametrize("name", TO)
def test_converters_stay_on_their_device(name: str, scene: Any) -> None:
    convert: Callable[..., Any] = getattr(conversions, name)
    if name == "to_prost":
        found = convert(scene.pose, scene.volume, 800.0)
    elif name in OF_A_VOLUME:
        found = convert(CAMERA, scene.pose, scene.volume)
    else:
        found = convert(CAMERA, scene.pose)
    tensors = [t for t in pytree.tree_leaves(found) if isinstance(t, torch.Tensor)]
    assert all(is_elsewhere(t) for t in tensors)


def test_the_grids_own_world_is_on_the_volumes_device(scene: Any) -> None:
    assert all(is_elsewhere(t) for t in grid_world(scene.volume))
    assert is_elsewhere(scene.volume.resample(7.0).values)
