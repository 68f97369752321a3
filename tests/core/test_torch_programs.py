"""In torch programs: checkpoints, hooks, copies of modules, mixed precision, processes."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import drrkit
from tests.support import scenes
from tests.support.scenes import SMALL, SPACING, rand, small_frames

SIZE = (2, 3)
METHOD = {"spacing": SPACING, "method": "joseph"}


def image_of(values: Tensor, frames: Tensor) -> Tensor:
    return drrkit.project(values, frames, SIZE, **METHOD)


def energy(values: Tensor, frames: Tensor) -> Tensor:
    """A scalar whose second derivatives mix values and frames."""
    return (image_of(values, frames) ** 3).sum()


def scene(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    return rand(2, 1, *SMALL, seed=1).to(device), small_frames(2).to(device)


# ---- checkpoints and hooks


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(reentrant, device) -> None:
    plain = [t.requires_grad_() for t in scene(device)]
    saved = [t.requires_grad_() for t in scene(device)]
    (image_of(*plain) ** 3).sum().backward()
    (checkpoint(image_of, *saved, use_reentrant=reentrant) ** 3).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain, saved, strict=True))


def test_checkpointing_allows_double_backward(device) -> None:

    def hessian_times_ones(run: Callable[..., Tensor]) -> Tensor:
        values, frames = (t.requires_grad_() for t in scene(device))
        first = torch.autograd.grad((run(values, frames) ** 3).sum(), frames, create_graph=True)[0]
        return torch.autograd.grad(first.sum(), values)[0]

    found = hessian_times_ones(lambda *args: checkpoint(image_of, *args, use_reentrant=False))
    torch.testing.assert_close(found, hessian_times_ones(image_of), rtol=1e-10, atol=1e-10)


def test_saved_tensors_may_be_kept_on_the_cpu_or_be_copies(device) -> None:
    hooks = (
        torch.autograd.graph.save_on_cpu(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    )
    for hook in hooks:
        plain = [t.requires_grad_() for t in scene(device)]
        packed = [t.requires_grad_() for t in scene(device)]
        energy(*plain).backward()
        with hook:
            loss = energy(*packed)
        loss.backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain, packed, strict=True))


def test_changing_a_saved_volume_in_place_before_backward_is_an_error(device) -> None:
    values, frames = scene(device)
    loss = energy(values, frames.requires_grad_())
    values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- Projector as a module, mixed precision, several processes


def fluoroscope(trained: bool = False) -> tuple[drrkit.Volume, drrkit.Camera, Tensor]:
    volume, camera, pose = scenes.fluoroscope(SMALL, SIZE)
    values = volume.values.float()
    volume = replace(volume, values=torch.nn.Parameter(values) if trained else values)
    return volume, camera, torch.cat([pose, drrkit.view_carm(volume, 40.0, 0.4, -0.2)])


@pytest.mark.parametrize("trained", [False, True])
def test_projectors_survive_deepcopy_pickle_and_state_dict(trained, device) -> None:
    volume, camera, pose = fluoroscope(trained)
    projector = drrkit.Projector(volume, camera, method="trilinear", step=0.4).to(device)
    pose = pose.to(device).requires_grad_()
    image = projector(pose)
    other = replace(volume, values=torch.zeros(*SMALL))
    blank = drrkit.Projector(other, camera, method="trilinear", step=0.4).to(device)
    assert list(projector.state_dict()) == ["values"]
    blank.load_state_dict(projector.state_dict())
    for same in (copy.deepcopy(projector), pickle.loads(pickle.dumps(projector)), blank):
        assert same.values.data_ptr() != projector.values.data_ptr()
        assert torch.equal(same(pose), image)
    assert [name for name, _ in copy.deepcopy(projector).named_parameters()] == (
        ["values"] if trained else []
    )
    found = torch.func.functional_call(projector, {"values": 2 * projector.values}, (pose,))
    torch.testing.assert_close(found, 2 * image)


def mixed_precision_results(device: torch.device) -> dict[str, Tensor]:
    volume, camera, pose = fluoroscope()
    volume, pose = volume.to(device), pose.float().to(device)
    values, frames = scene(device)
    values, frames = values.float().requires_grad_(), frames.float().requires_grad_()
    image = drrkit.project(values, frames, SIZE)
    first = torch.autograd.grad(image.square().sum(), (values, frames), create_graph=True)
    moved = drrkit.perturb(pose, 0.1 * torch.ones(2, 6).to(device), drrkit.volume_center(volume))
    return {
        "project": image,
        "gradient in the volume": first[0],
        "gradient in the frames": first[1],
        "second": torch.autograd.grad(first[1].square().sum(), frames, retain_graph=True)[0],
        "pixels": drrkit.project(values, frames, SIZE, pixels=rand(4, 2).float().to(device)),
        "backproject": drrkit.backproject(image, frames, values.shape),
        "render": drrkit.render(volume, camera, pose, supersample=2),
        "perturb": moved,
        "projector": drrkit.Projector(volume, camera)(moved),
    }


def test_autocast_changes_no_digit(device) -> None:
    expected = mixed_precision_results(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = mixed_precision_results(device)
    unequal = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert unequal == []


def train_a_volume(rank: int, world: int, store: str) -> None:
    """Each process sees its own view; the gradient is the mean over all views."""
    torch.set_num_threads(1)
    where = f"file://{store}"
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=world)
    try:
        volume, camera, pose = fluoroscope(trained=True)
        projector = drrkit.Projector(volume, camera)
        replica = DistributedDataParallel(projector)
        replica(pose[rank : rank + 1]).square().sum().backward()
        total = projector(pose[:world]).square().sum()
        expected = torch.autograd.grad(total, volume.values)[0] / world
        torch.testing.assert_close(volume.values.grad, expected)
    finally:
        distributed.destroy_process_group()


def train_and_leave(rank: int, world: int, store: str) -> None:
    """Leaves without finalising Python.

    A process of this test was aborted after its assertions once, while Python was being finalised.
    Why is not known: 48 further runs did not show it again. A thread of torch's process group that
    asks for the interpreter too late would look like this.
    """
    train_a_volume(rank, world, store)
    os._exit(0)


@pytest.mark.slow
def test_distributed_data_parallel_averages_gradients_of_two_processes(tmp_path: Path) -> None:
    arguments = (2, str(tmp_path / "store"))
    both = torch.multiprocessing.spawn(train_and_leave, arguments, nprocs=2, join=False)
    for _ in range(2):  # each returns when a process has ended, or after the time
        if both.join(timeout=300):
            return
    for process in both.processes:
        process.kill()
    pytest.fail("the processes did not end")
