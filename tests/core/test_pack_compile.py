"""Compiled code over a prepared volume: by its handle while that fits, and by the values else."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit._native import ops as _ops
from drrkit._native.pack import Pack
from tests.support.packs import SHAPE, SIZE, around, camera, poses, uses, values_of, volume_of
from tests.support.scenes import SPACING, relative


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_a_compiled_projector_goes_by_its_handle_until_the_values_change(backend, device) -> None:
    project = drrkit.Projector(volume_of(values_of().to(device)), camera())
    run = torch.compile(lambda p: project(p) * 2, backend=backend, fullgraph=True)
    where = poses(device)
    before = uses(project._pack)
    assert torch.equal(run(where), 2 * project(where))
    assert uses(project._pack) == before + 2
    for _ in range(2):
        project.values.add_(
            values_of(6).to(device)
        )  # compiled code cannot prepare again, and renders the values
        expected = 2 * drrkit.render(volume_of(project.values), project.camera, where)
        assert torch.equal(run(where), expected)
        assert uses(project._pack) == before + 2
    project.prepare()
    run(where)
    assert uses(project._pack) == before + 3


@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_a_compiled_pose_gradient_is_that_of_eager_mode(backend, device) -> None:
    project = drrkit.Projector(volume_of(values_of().to(device)), camera())

    def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = poses(device).requires_grad_()
        return torch.autograd.grad(run(leaf).square().sum(), leaf)[0]

    run = torch.compile(lambda p: project(p) * 2, backend=backend, fullgraph=True)
    before = uses(project._pack)
    found = gradient(run)
    assert uses(project._pack) == before + 1
    assert relative(found, gradient(lambda p: project(p) * 2)) <= 1e-6


def test_compiled_code_whose_handle_is_dead_or_anothers_renders_the_values(device) -> None:
    gc.collect()
    values, frames = values_of().to(device), around().to(device)
    spec = _ops.Spec(SHAPE, SIZE, SPACING, 0, 0.4)
    pack = Pack("auto", "joseph")
    handle = pack.handle_of(values)
    run = torch.compile(
        lambda v, f: _ops.project_packed(v, f, handle, False, spec)[0] * 2,
        backend="aot_eager",
        fullgraph=True,
    )
    run(values, frames)
    assert uses(pack) == 1
    del pack
    expected = 2 * _ops.project(values[None, None], frames, False, spec)[0]
    assert torch.equal(run(values, frames), expected)
    successor = Pack("auto", "joseph")
    assert successor.handle_of(values_of(6).to(device)) == handle
    assert torch.equal(run(values, frames), expected) and uses(successor) == 0


def test_one_projector_after_the_other_needs_no_second_compilation(device) -> None:
    def image(project: drrkit.Projector, where: Tensor) -> Tensor:
        return project(where) * 2

    run = torch.compile(image, backend="eager", fullgraph=True)
    for seed in range(12):  # more than recompile_limit
        project = drrkit.Projector(volume_of(values_of(seed % 4).to(device)), camera())
        assert torch.equal(run(project, poses(device)), 2 * project(poses(device)))
        assert uses(project._pack) == 2
        del project
