"""What a call asks of torch's dispatcher; that a registration step never waits for its device.

Nothing is timed here (the study overhead does that): dispatched ops are counted, and a mode that
sees every one of them refuses whatever CUDA graphs cannot capture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import drrkit
from drrkit import losses
from tests.support.scenes import SPACING, rand

SIZE = (14, 13)
MOST_OPS = 6

# Results on the host, or shapes that depend on values: both wait for the device.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
}


class Dispatched(TorchDispatchMode):
    """`with Dispatched() as seen:` counts the ops of a block, forward and backward, in seen.ops.

    device  when given, refuses what a graph of that device cannot hold: ops that wait for results,
            and tensors of any other device
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.ops[name] += 1
        if self.device is not None and (name in WAITING or _by_mask(name, args)):
            raise AssertionError(f"{name} waits for the device")
        result = func(*args, **(kwargs or {}))
        if self.device is not None:
            for tensor in tree_leaves((args, kwargs, result)):
                if isinstance(tensor, Tensor) and tensor.device != self.device:
                    raise AssertionError(f"{name} meets a tensor on {tensor.device}")
        return result


def _by_mask(name: str, args: Any) -> bool:
    """Whether elements are chosen by a mask: how many there are decides the result's shape."""
    masks = (torch.bool, torch.uint8)
    return name.startswith("aten::index") and any(
        isinstance(a, Tensor) and a.dtype in masks for a in tree_leaves(args[1:])
    )


class Scene:
    """A small volume and what a registration of it holds on a device."""

    def __init__(self, device: str = "cpu", views: int = 1, **options: Any) -> None:
        values = rand(7, 6, 5, seed=1).float()
        volume = drrkit.Volume(values, SPACING, origin=(3.0, -2.0, 5.0), unit="mu")
        self.camera = drrkit.CArm(60.0, SIZE, pixel_spacing=2.1)
        self.projector = drrkit.Projector(volume, self.camera, **options).to(device)
        pose = drrkit.view_carm(volume, 40.0, 0.3, -0.2)
        self.pose = pose.expand(views, 4, 4).contiguous().to(device)
        self.center = drrkit.volume_center(volume).to(device)
        self.xi = torch.zeros(views, 6, dtype=torch.float64, device=device, requires_grad=True)
        # An image of another pose: at the same one the gradients of the similarities vanish.
        turned = drrkit.perturb(pose, torch.full((6,), 0.05), drrkit.volume_center(volume))
        self.xray = drrkit.render(volume, self.camera, turned).to(device)

    def image(self, xi: Tensor) -> Tensor:
        return self.projector(drrkit.perturb(self.pose, xi, self.center))


def ops_of(call: Callable[[], Any]) -> Counter[str]:
    with Dispatched() as seen:
        call()
    return seen.ops


# ---- how many ops


@pytest.mark.parametrize("with_gradient", [False, True])
def test_a_projection_dispatches_three_ops(with_gradient):
    scene = Scene()
    frames = drrkit.view_frames(
        drrkit.geometry.GridConstants(scene.projector._grid.grid), scene.camera, scene.pose
    ).requires_grad_(with_gradient)
    values = scene.projector.values
    ops = ops_of(lambda: drrkit.project(values, frames, SIZE, spacing=SPACING))
    assert ops == {"drrkit::project": 1, "aten::view": 2}
    whole = values[None, None].double()  # five dimensions need no view
    assert sum(ops_of(lambda: drrkit.project(whole, frames, SIZE)).values()) == 2


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("options", [{}, {"extend": False}, {"method": "siddon"}], ids=str)
def test_a_projector_dispatches_four_ops_from_pose_to_image(options, with_gradient, views):
    scene = Scene(views=views, **options)
    pose = scene.pose.requires_grad_(with_gradient)
    ops = ops_of(lambda: scene.projector(pose))
    assert ops["drrkit::frames"] == ops["drrkit::project_packed"] == 1
    assert sum(ops.values()) == 4 <= MOST_OPS


def test_area_pixels_cost_one_op_more():
    scene = Scene(supersample=2)
    ops = ops_of(lambda: scene.projector(scene.pose))
    assert ops["aten::avg_pool2d"] == 1 and sum(ops.values()) == 5


def test_the_gradient_of_a_pose_is_two_ops_and_a_view():
    scene = Scene()
    pose = scene.pose.requires_grad_()
    image = scene.projector(pose)
    ops = ops_of(lambda: torch.autograd.grad(image, pose, torch.ones_like(image)))
    del ops["aten::ones_like"]  # of this test
    assert ops == {"aten::view": 1, "drrkit::reduce": 1, "drrkit::frames_vjp": 1}


@pytest.mark.parametrize("views", [1, 4])
def test_a_moved_image_and_its_gradient_take_three_native_ops_each(views):
    scene = Scene(views=views)
    ops = ops_of(lambda: scene.image(scene.xi).sum().backward())
    native = {name: count for name, count in ops.items() if name.startswith("drrkit")}
    forward, backward = ("perturb", "frames", "project_packed"), ("perturb_vjp", "frames_vjp")
    expected = {f"drrkit::{name}": 1 for name in (*forward, *backward, "reduce")}
    assert native == expected
    assert sum(ops.values()) <= 15  # with the loss, its expansion and the gradient's storage


def test_nothing_of_what_backward_needs_is_kept_without_a_gradient():
    scene = Scene()
    with torch.no_grad():
        assert scene.image(scene.xi).grad_fn is None
    assert scene.image(scene.xi.detach()).grad_fn is None
    with torch.inference_mode():
        assert scene.image(scene.xi.detach()).is_inference()


def test_a_gradient_that_is_not_asked_for_is_not_computed():
    """Values and pose both want one; autograd.grad names the pose: no scatter into the volume."""
    scene = Scene()
    scene.projector.values.requires_grad_()
    image = scene.image(scene.xi)
    ops = ops_of(lambda: torch.autograd.grad(image.sum(), scene.xi))
    assert ops["drrkit::reduce"] == 1 and "drrkit::backproject" not in ops


# ---- what a graph can hold


SIMILARITIES = {
    "mse": losses.mse,
    "ncc": losses.ncc,
    "gradient_ncc": losses.gradient_ncc,
    "local_ncc": losses.local_ncc,
    "mutual_information": losses.mutual_information,
}
META = torch.device("meta")


def step(scene: Scene, similarity: Callable[..., Tensor], optimiser: Any) -> Tensor:
    """One step of a registration, as docs/cuda_graphs.md captures it."""
    optimiser.zero_grad(set_to_none=True)
    loss = similarity(scene.image(scene.xi), scene.xray).sum()
    loss.backward()
    optimiser.step()
    return loss


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize(
    "options", [{}, {"supersample": 2}, {"method": "trilinear", "step": 1.0}], ids=str
)
def test_a_registration_step_never_leaves_its_device(options, name):
    """The meta device stands in for a GPU: its tensors have no values, so whatever needs one, or
    brings a tensor from elsewhere, cannot pass unseen."""
    scene = Scene("meta", **options)
    optimiser = torch.optim.SGD([scene.xi], lr=1e-3, momentum=0.9)
    step(scene, SIMILARITIES[name], optimiser)  # the first step makes the optimiser's state
    with Dispatched(META) as seen:
        step(scene, SIMILARITIES[name], optimiser)
    assert seen.ops["drrkit::perturb_vjp"] == 1


def test_the_watch_sees_what_it_should_refuse():
    with pytest.raises(AssertionError, match="waits"), Dispatched(torch.device("cpu")):
        torch.ones(2).sum().item()
    with pytest.raises(AssertionError, match="waits"), Dispatched(torch.device("cpu")):
        torch.ones(2)[torch.ones(2) > 0]
    with pytest.raises(AssertionError, match="meets a tensor on cpu"), Dispatched(META):
        torch.ones(2, device="meta") + torch.ones(2)
    with pytest.raises(AssertionError, match="meets a tensor on cpu"), Dispatched(META):
        torch.tensor(1.0).to("meta")


@pytest.mark.parametrize("wants", ["K", "sdd"])
def test_intrinsics_that_are_learned_stay_on_the_device_too(wants):
    sdd = torch.full((), 60.0, dtype=torch.float64)
    fixed = drrkit.CArm(60.0, SIZE, pixel_spacing=2.1)
    (fixed.K if wants == "K" else sdd).requires_grad_()
    volume = drrkit.Volume(rand(7, 6, 5, seed=1), SPACING, unit="mu")
    projector = drrkit.Projector(volume, drrkit.Camera(fixed.K, SIZE, sdd)).to("meta")
    leaf = getattr(projector.camera, wants)
    with Dispatched(META):
        image = projector(torch.eye(4, device="meta"))
        (gradient,) = torch.autograd.grad(image.sum(), leaf)
    assert gradient.shape == leaf.shape


if torch.cuda.is_available():

    def captured(scene: Scene, optimiser: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step(scene, losses.ncc, optimiser)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = step(scene, losses.ncc, optimiser)
        return graph, loss

    def test_a_captured_registration_step_repeats_the_eager_one():
        eager, replayed = Scene("cuda"), Scene("cuda")
        optimisers = [
            torch.optim.Adam([scene.xi], lr=1e-3, capturable=True) for scene in (eager, replayed)
        ]
        graph, loss = captured(replayed, optimisers[1])
        with torch.no_grad():  # the capture itself ran nothing; the warm-up did three steps
            replayed.xi.zero_()
        for tensor in tree_leaves(optimisers[1].state_dict()["state"]):
            tensor.zero_()
        for _ in range(5):
            expected = step(eager, losses.ncc, optimisers[0])
            graph.replay()
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(replayed.xi, eager.xi, rtol=1e-6, atol=1e-9)
        replayed.pose.copy_(drrkit.perturb(eager.pose, eager.xi.detach(), eager.center))
        graph.replay()  # reads what stands in its tensors now
        assert not torch.allclose(loss, expected)
