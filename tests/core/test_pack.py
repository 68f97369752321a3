"""What a Projector prepares: handles that may be dead, values that change, derivatives, compile.

Every test of a change runs on the CPU and on the emulated CUDA kernels, whose textures show what
they were made from; `device` adds a real GPU where there is one.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import drrkit
from drrkit import _C
from drrkit._native import ops as _ops
from drrkit._native.pack import Pack
from tests.emulator.packed import emulated_packs
from tests.support.packs import SHAPE, SIZE, around, camera, poses, uses, values_of, volume_of
from tests.support.scenes import SPACING, rand, relative


@pytest.fixture(params=["cpu", "emulated"])
def where(request) -> Iterator[str]:
    """Prepared by the CPU, or by the CUDA kernels on the emulator."""
    with emulated_packs() if request.param == "emulated" else nullcontext():
        yield request.param


def agrees(project: drrkit.Projector, expected: Tensor | None = None) -> bool:
    """Whether the image is that of the values as they are now."""
    with torch.no_grad():
        if expected is None:
            expected = drrkit.render(volume_of(project.values), project.camera, poses())
        return relative(project(poses()), expected) <= 4e-3


# ---- handles


def launch(values: Tensor, handle: int, **options: bool) -> Tensor:
    spec = _ops.Spec(SHAPE, SIZE, SPACING, 0, 0.4)
    frames = around().to(values.device)
    return _ops.project_packed(values, frames, handle, options.get("rays", False), spec)[0]


def test_a_handle_serves_the_values_that_it_was_made_from_and_no_others(device) -> None:
    values = values_of().to(device)
    pack = Pack("auto", "joseph")
    handle = pack.handle_of(values)
    assert handle > 0 and launch(values, handle).any() and uses(pack) == 1
    launch(values[None], handle)  # a view of the same numbers
    assert uses(pack) == 2
    others = {
        "a copy": values.clone(),
        "another shape": values.reshape(26, 20, 30),
        "another layout": values.mT.contiguous().mT,
        "part of it": values[1:],
        "another dtype": values.view(torch.int16).view(torch.float16),
    }
    for what, other in others.items():
        spec = _ops.Spec(tuple(other.shape[-3:]), SIZE, SPACING, 0, 0.4)
        frames = around().to(device)
        image = _ops.project_packed(other, frames, handle, False, spec)[0]
        volumes = other.reshape(1, 1, *other.shape[-3:])
        assert torch.equal(
            image.nan_to_num(), _ops.project(volumes, frames, False, spec)[0].nan_to_num()
        )
        assert uses(pack) == 2, what
    values.add_(1)
    launch(values, handle)
    assert uses(pack) == 2
    assert pack.handle_of(values) == handle
    launch(values, handle)
    assert uses(pack) == 3


@pytest.mark.parametrize("handle", [0, -1, 10**9, 2**62, -(2**63)])
def test_a_handle_of_nothing_is_none(handle, device) -> None:
    values = values_of().to(device)
    assert torch.equal(launch(values, handle), launch(values, 0))


def test_a_handle_outlives_its_projector_and_may_come_again(device) -> None:
    gc.collect()  # what other tests left
    values, other = values_of().to(device), values_of(2).to(device)
    pack = Pack("auto", "joseph")
    handle = pack.handle_of(values)
    del pack
    gc.collect()
    expected = launch(values, 0)
    assert torch.equal(launch(values, handle), expected)
    successor = Pack("auto", "joseph")
    assert successor.handle_of(other) == handle  # the lowest free one
    assert torch.equal(launch(values, handle), expected)
    assert uses(successor) == 0


def test_handles_are_reserved_and_released_by_many_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(seed: int) -> bool:
        for _ in range(20):
            pack, values = Pack("auto", "joseph"), rand(*SHAPE, seed=seed).float()
            image = launch(values, pack.handle_of(values))
            if not torch.equal(image, launch(values, 0)) or uses(pack) != 1:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


# ---- values that change


def by_inference_mode(project: drrkit.Projector) -> None:
    with torch.inference_mode():
        project.values.add_(values_of(5))


def by_dtype(project: drrkit.Projector) -> None:
    project.values.add_(values_of(3))
    project.to(torch.float16)


CHANGES: list[Callable[[drrkit.Projector], Any]] = [
    lambda project: project.values.mul_(2),
    lambda project: project.values.zero_(),
    lambda project: project.values.copy_(values_of(4)),
    lambda project: project.load_state_dict({"values": values_of(6)}),
    lambda project: project.load_state_dict({"values": values_of(6)}, assign=True),
    lambda project: setattr(project, "values", values_of(6)),
    lambda project: project.values[10:].add_(values_of(7)[10:]),
    lambda project: project.values.view(-1).add_(values_of(6).view(-1)),
    by_inference_mode,
    by_dtype,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_values_are_never_rendered_as_they_were(change, where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    assert project._pack.handle and agrees(project)
    change(project)
    assert agrees(project) and agrees(project)
    assert project._pack.handle
    before = uses(project._pack)
    project(poses())
    assert uses(project._pack) == before + 1


def test_a_frozen_parameter_whose_data_is_replaced_is_rendered_anew(where) -> None:
    parameter = nn.Parameter(values_of(), requires_grad=False)
    project = drrkit.Projector(volume_of(parameter), camera())
    assert project._pack.handle and agrees(project)
    parameter.data = values_of(3)
    assert agrees(project)
    parameter.data = parameter.data.clone().mul_(2)
    assert agrees(project)
    before = uses(project._pack)
    assert agrees(project) and uses(project._pack) == before + 1  # prepared again, not given up


def test_a_freed_tensors_address_does_not_bring_its_image_back(where) -> None:
    for seed in range(8):  # the allocator gives the same memory again
        project = drrkit.Projector(volume_of(values_of(seed)), camera())
        assert agrees(project)
        project.values = values_of(7 - seed)
        assert agrees(project)
        del project


def test_prepare_takes_in_what_torch_does_not_count(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    project(poses())
    project.values.data.add_(values_of(6))
    assert project.prepare() is project
    assert agrees(project)


def test_other_values_by_functional_call_are_rendered(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    for values in (values_of(4), values_of(2)):
        image = torch.func.functional_call(project, {"values": values}, (poses(),))
        assert relative(image, drrkit.render(volume_of(values), camera(), poses())) <= 4e-3
    assert agrees(project)


def test_copies_prepare_for_themselves(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    expected = project(poses())
    stream = io.BytesIO()
    torch.save(project, stream)
    stream.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(project),
        "pickle": pickle.loads(pickle.dumps(project)),
        "save": torch.load(stream, weights_only=False),
    }
    project.values.zero_()
    for how, other in copies.items():
        assert torch.equal(other(poses()), expected), how
        assert other._pack.handle not in (0, project._pack.handle), how


# ---- values that take part in derivatives, transforms, modes


def test_values_that_require_a_gradient_take_the_plain_path(where) -> None:
    parameter = nn.Parameter(values_of())
    project = drrkit.Projector(volume_of(parameter), camera())
    plain = drrkit.Projector(volume_of(parameter), camera(), pack=None)
    image, expected = project(poses()), plain(poses())
    assert torch.equal(image, expected) and project._pack.handle == 0
    found = torch.autograd.grad(image.square().sum(), parameter)[0]
    assert torch.equal(found, torch.autograd.grad(expected.square().sum(), parameter)[0])
    parameter.requires_grad_(False)
    assert agrees(project) and project._pack.handle
    parameter.requires_grad_(True)
    before = uses(project._pack)
    assert project(poses()).requires_grad and uses(project._pack) == before


def derivatives(project: drrkit.Projector) -> dict[str, Tensor]:
    """Derivatives of every mode in the pose."""
    func, weights = torch.func, rand(2, 1, *SIZE, seed=5).float()
    along = 0.1 * rand(2, 4, 4, seed=6)

    def loss(where: Tensor) -> Tensor:
        return (project(where).square() * weights).sum()

    leaf = poses().requires_grad_()
    first = torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0]
    return {
        "backward": first.detach(),
        "double backward": torch.autograd.grad((first * along).sum(), leaf)[0],
        "grad": func.grad(loss)(poses()),
        "jvp": func.jvp(project, (poses(),), (along,))[1],
        "jacrev": func.jacrev(lambda where: project(where).sum((1, 2, 3)))(poses()),
        "jacfwd": func.jacfwd(project)(poses()),
        "hessian": func.hessian(loss)(poses()),
        "vmap of grad": func.vmap(func.grad(loss))(torch.stack([poses(), poses() + 0.01])),
    }


def test_derivatives_in_the_pose_are_those_of_the_values(where) -> None:
    values = values_of()
    found = derivatives(drrkit.Projector(volume_of(values), camera()))
    expected = derivatives(drrkit.Projector(volume_of(values), camera(), pack=None))
    for name, value in found.items():
        # Where only the image's own factor comes from a texture, that is as near as textures are.
        assert relative(value, expected[name]) <= (1e-5 if where == "cpu" else 4e-3), name


def test_vmap_over_poses_is_one_launch_by_the_handle(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    many = torch.stack([poses(), poses() + 0.01, poses() - 0.02])
    before = uses(project._pack)
    found = torch.func.vmap(project)(many)
    assert uses(project._pack) == before + 1
    assert relative(found, torch.stack([project(p) for p in many])) <= 1e-5


def test_vmap_over_values_renders_each(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    many = torch.stack([values_of(2), values_of(3)])

    def image(values: Tensor) -> Tensor:
        return torch.func.functional_call(project, {"values": values}, (poses(),))

    expected = torch.stack([drrkit.render(volume_of(v), camera(), poses()) for v in many])
    assert relative(torch.func.vmap(image)(many), expected) <= 1e-5


def test_tangents_of_values_are_followed(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())

    def image(values: Tensor) -> Tensor:
        return torch.func.functional_call(project, {"values": values}, (poses(),))

    _, tangent = torch.func.jvp(image, (values_of(),), (values_of(2),))
    assert relative(tangent, drrkit.render(volume_of(values_of(2)), camera(), poses())) <= 1e-5


def test_tensors_of_inference_mode_have_no_versions_and_are_rendered_as_they_are(where) -> None:
    with torch.inference_mode():
        project = drrkit.Projector(volume_of(values_of()), camera())
        assert project._pack.handle == 0 and agrees(project)
        project.values.mul_(2)
        assert agrees(project)


def test_pack_none_prepares_nothing(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera(), pack=None)
    expected = drrkit.render(volume_of(values_of()), camera(), poses())
    assert torch.equal(project(poses()), expected) and project._pack.prepared is None
    project.prepare()
    assert project._pack.prepared is None


@pytest.mark.parametrize("method", ["siddon", "trilinear"])
def test_other_methods_skip_what_is_empty_on_the_cpu_and_prepare_nothing_on_cuda(
    method, where
) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera(), method=method)
    assert bool(project._pack.handle_of(project.values)) == (where == "cpu")
    expected = drrkit.render(volume_of(values_of()), camera(), poses(), method=method)
    assert torch.equal(project(poses()), expected)
    words = f"pack: 'int16' serves method 'joseph' only on CUDA, got '{method}'; 'auto' prepares"
    with nullcontext() if where == "cpu" else pytest.raises(ValueError, match=words):
        drrkit.Projector(volume_of(values_of()), camera(), method=method, pack="int16")


@pytest.mark.parametrize("wrong", ["int8", "Auto", "", 16, True, ("int16",)])
def test_other_words_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="pack: expected one of 'auto', 'int16', 'float16'"):
        drrkit.Projector(volume_of(values_of()), camera(), pack=wrong)


def test_the_owner_of_a_handle_is_what_counts_its_uses() -> None:
    native = _C.PackedVolume((1, 1, 8, 8, 8), 2, (2, 2, 2))
    assert native.handle > 0 and native.uses == 0 and native.bytes == 32 + 8


# ---- on every device that is there


def test_images_and_gradients_agree_with_the_cpu(device) -> None:
    values = torch.stack([values_of(seed) for seed in (1, 6)])  # channels
    results = []
    for where, pack in (("cpu", None), (device, "auto")):
        project = drrkit.Projector(volume_of(values), camera(), pack=pack).to(where)
        leaf = poses(where).requires_grad_()
        with torch.no_grad():
            alone = project(leaf)
        image = project(leaf)
        gradient = torch.autograd.grad(image.square().sum(), leaf)[0]
        results.append([t.detach().cpu() for t in (alone, image, gradient)])
        assert bool(project._pack.handle) == (pack == "auto")
    (alone, image, gradient), found = results[0], results[1]
    assert float((found[0] - alone).norm() / alone.norm()) <= 5e-4
    assert relative(found[1], image) <= 1e-5
    assert relative(found[2], gradient) <= 1e-4


def test_a_projector_that_moves_prepares_where_it_goes(device) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    expected = project(poses())
    for where in (device, torch.device("cpu"), device):
        project.to(where)
        before = uses(project._pack)
        assert relative(project(poses(where)).cpu(), expected) <= 4e-3
        assert uses(project._pack) == before + 1


if torch.cuda.is_available():  # without a GPU: tests/emulator/test_pack.py

    @pytest.mark.parametrize("gradient", [False, True])
    def test_a_captured_graph_outlives_its_projector_and_renders_new_values(gradient) -> None:
        device = torch.device("cuda")
        project = drrkit.Projector(volume_of(values_of().to(device)), camera())
        values, handle = project.values, project._pack.handle
        where, result = poses(device), []

        def step() -> Tensor:
            leaf = where.detach().requires_grad_(gradient)
            image = project(leaf)
            return torch.autograd.grad(image.square().sum(), leaf)[0] if gradient else image

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result.append(step())
        for seed in (1, 6):
            values.copy_(values_of(seed))
            project.prepare()
            assert project._pack.handle == handle
            graph.replay()
            assert relative(result[0], step()) <= 1e-6
        expected = result[0].clone()
        del project
        gc.collect()
        drrkit.Projector(volume_of(values_of(3).to(device)), camera())  # would take the memory
        result[0].zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert relative(result[0], expected) <= 1e-6

    def test_memory_on_the_gpu_is_given_back() -> None:
        values = values_of().repeat(4, 5, 6).cuda()
        torch.cuda.synchronize()
        free = torch.cuda.mem_get_info()[0]
        project = drrkit.Projector(volume_of(values), camera())
        held = uses(project._pack) == 0 and project._pack.prepared.bytes
        assert held and torch.cuda.mem_get_info()[0] <= free - 6 * values.numel()
        del project
        torch.cuda.empty_cache()
        assert torch.cuda.mem_get_info()[0] >= free
