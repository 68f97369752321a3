"""torch.compile(fullgraph=True): the same numbers as eager, forward and backward, in one march."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import drrkit
from drrkit._native import functions
from drrkit._native.functions import LOSES_GRADIENTS
from tests.support.scenes import (
    METHODS,
    SHAPE,
    SPACING,
    every_beam,
    every_method,
    fluoroscope,
    oblique,
    rand,
    randn,
    relative,
)

F = torch.func
SIZE = (4, 5)
VIEWS = 2
ROUNDING = 1e-12
LOST = r"they would be zero.*torch 2\.12 or newer"
INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)

every_backend = pytest.mark.parametrize("backend", ["eager", "aot_eager", INDUCTOR])
# After a graph break under func.grad, torch's debugging backend "eager" fails in torch itself.
working_backend = pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], backend: str = "aot_eager", **options: Any) -> Callable:
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def scene(device: torch.device, views: int = VIEWS) -> tuple[Tensor, Tensor]:
    return rand(2, *SHAPE, seed=1).to(device), oblique(views, seed=2).to(device)


def energy(values: Tensor, frames: Tensor, **options: Any) -> Tensor:
    return (drrkit.project(values, frames, SIZE, spacing=SPACING, **options) ** 3).sum()


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The function's value and its gradients in all inputs."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def equal(found: list[Tensor] | tuple[Tensor, ...], expected: list[Tensor]) -> bool:
    return all(relative(a, b) <= ROUNDING for a, b in zip(found, expected, strict=True))


def launches(function: Callable[[], Any]) -> Counter[str]:
    """How often each product of drrkit ran, compiled or not."""
    with profile(activities=[ProfilerActivity.CPU]) as ran:
        function()
    names = (event.name.split("::") for event in ran.events() if event.name.startswith("drrkit::"))
    return Counter(name for _, name in names)


# ---- forward and backward


@every_backend
@every_method
def test_forward_and_backward_equal_eager(method, backend, device) -> None:
    def loss(values: Tensor, frames: Tensor) -> Tensor:
        return 2 * energy(values, frames, **METHODS[method]) + frames.sum()

    inputs = scene(device)
    assert equal(gradients(compiled(loss, backend), *inputs), gradients(loss, *inputs))


@every_beam
def test_beams_and_pixels_equal_eager(beam, device) -> None:
    def loss(values: Tensor, frames: Tensor, pixels: Tensor) -> Tensor:
        image = drrkit.project(values, frames, SIZE, pixels=pixels, beam=beam)
        return (image**2).sum()

    inputs = (*scene(device), (rand(VIEWS, 3, 2, seed=4) * 3).to(device))
    assert equal(gradients(compiled(loss), *inputs), gradients(loss, *inputs))


@every_backend
def test_backproject_equals_eager(backend, device) -> None:
    def loss(images: Tensor, frames: Tensor) -> Tensor:
        return (drrkit.backproject(images, frames, (2, *SHAPE)) ** 2).sum()

    inputs = randn(VIEWS, 2, *SIZE).to(device), scene(device)[1]
    assert equal(gradients(compiled(loss, backend), *inputs), gradients(loss, *inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_voxel_dtype_compiles_to_the_same_digits(dtype, device) -> None:
    values, frames = scene(device)
    inputs = values.to(dtype), frames
    found, expected = gradients(compiled(energy), *inputs), gradients(energy, *inputs)
    assert [t.dtype for t in found] == [torch.float32, dtype, torch.float64]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_backend
def test_without_gradients_only_images_are_marched(backend, device) -> None:
    image = compiled(lambda v, f: drrkit.project(v, f, SIZE) * 2, backend)
    values, frames = scene(device)
    expected = drrkit.project(values, frames, SIZE) * 2
    assert equal([image(values, frames)], [expected])
    frames.requires_grad_()
    with torch.no_grad():
        assert equal([image(values, frames)], [expected])
        assert launches(lambda: image(values, frames)) == {"project": 1}
    with torch.inference_mode():
        assert equal([image(values, frames)], [expected])


@every_backend
def test_a_pose_gradient_is_one_march(backend, device) -> None:
    values, frames = scene(device)
    frames.requires_grad_()
    loss = compiled(lambda f: energy(values, f), backend)
    loss(frames).backward()  # compiles
    frames.grad = None
    assert launches(lambda: loss(frames).backward()) == {"project": 1, "reduce": 1}
    expected = torch.autograd.grad(energy(values, frames), frames)[0]
    assert equal([frames.grad], [expected])


@every_backend
def test_a_full_gradient_is_one_march_and_one_scatter(backend, device) -> None:
    inputs = [t.requires_grad_() for t in scene(device)]
    loss = compiled(energy, backend)
    loss(*inputs).backward()  # compiles
    counts = launches(lambda: loss(*inputs).backward())
    assert counts == {"project": 1, "reduce": 1, "backproject": 1}


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_dynamic_graph_serves_every_batch_and_image_size(backend, device) -> None:
    def loss(values: Tensor, frames: Tensor, like: Tensor) -> Tensor:
        return ((drrkit.project(values, frames, like.shape) - like) ** 2).sum()

    run = compiled(loss, backend, dynamic=True)
    values, _ = scene(device)
    first = True
    # Sizes that are equal at first are taken to be the same one: so they all differ there.
    for views, rows, cols in ((10, 8, 9), (3, 5, 4), (5, 2, 7), (4, 9, 8)):
        inputs = values, oblique(views, seed=views).to(device), randn(rows, cols).to(device)
        with torch._dynamo.config.patch(error_on_recompile=not first):
            found = gradients(run, *inputs)
        assert equal(found, gradients(loss, *inputs))
        first = False


def test_one_dynamic_graph_serves_every_grid_and_channel_count(device) -> None:
    run = compiled(energy, dynamic=True)
    frames = scene(device)[1]
    first = True
    for shape in ((8, 5, 6, 7), (3, 4, 5, 8), (5, 7, 3, 4)):
        inputs = rand(*shape, seed=3).to(device), frames
        with torch._dynamo.config.patch(error_on_recompile=not first):
            found = gradients(run, *inputs)
        assert equal(found, gradients(energy, *inputs))
        first = False


# ---- render


def fluoroscope_on(device: torch.device) -> tuple[drrkit.Volume, drrkit.Camera, Tensor]:
    volume, camera, pose = fluoroscope()
    return volume.to(device), camera, pose.to(device)


@every_backend
def test_render_of_a_perturbed_pose_equals_eager(backend, device) -> None:
    volume, camera, pose = fluoroscope_on(device)
    center = drrkit.volume_center(volume)

    def loss(xi: Tensor) -> Tensor:
        moved = drrkit.perturb(pose, xi, center)
        return drrkit.render(volume, camera, moved, supersample=2).square().sum()

    xi = (0.1 * randn(2, 6)).to(device)
    assert equal(gradients(compiled(loss, backend), xi), gradients(loss, xi))
    assert equal(gradients(compiled(loss, backend), 0 * xi), gradients(loss, 0 * xi))


@every_backend
def test_the_pose_jacobian_equals_eager(backend, device) -> None:
    volume, camera, pose = fluoroscope_on(device)

    def image_and_jacobian(where: Tensor) -> tuple[Tensor, Tensor]:
        return drrkit.project_with_jacobian(volume, camera, where, method="trilinear", step=0.4)

    found, expected = compiled(image_and_jacobian, backend)(pose), image_and_jacobian(pose)
    assert equal(found, list(expected))


@every_backend
def test_projector_modules_equal_eager(backend, device) -> None:
    volume, camera, pose = fluoroscope_on(device)
    values = torch.nn.Parameter(volume.values)
    projector = drrkit.Projector(replace(volume, values=values), camera)
    run = compiled(projector, backend)
    expected = torch.autograd.grad(projector(pose).square().sum(), values)[0]
    run(pose).square().sum().backward()
    assert equal([run(pose).detach(), values.grad], [projector(pose).detach(), expected])


# ---- transforms inside compile


@working_backend
def test_func_grad_inside_compile_equals_eager(backend, device) -> None:
    values, frames = scene(device)

    def gradient(where: Tensor) -> Tensor:
        return F.grad(lambda f: energy(values, f))(where) * 2

    run = torch.compile(gradient, backend=backend)
    if LOSES_GRADIENTS:
        with pytest.raises(RuntimeError, match=LOST):
            run(frames)
    else:
        assert equal([run(frames)], [gradient(frames)])


@every_backend
@pytest.mark.parametrize("dims", [(None, 0), (0, None), (0, 0)], ids=str)
def test_vmap_inside_compile_equals_eager(dims, backend, device) -> None:
    many = [torch.stack([t, t + 0.1, t - 0.2]) for t in scene(device)]
    inputs = [m[0] if d is None else m for m, d in zip(many, dims, strict=True)]

    def mapped(values: Tensor, frames: Tensor) -> Tensor:
        return torch.vmap(lambda v, f: drrkit.project(v, f, SIZE), dims)(values, frames) * 2

    assert equal([torch.compile(mapped, backend=backend)(*inputs)], [mapped(*inputs)])


@every_backend
def test_jvp_inside_compile_equals_eager(backend, device) -> None:
    values, frames = scene(device)
    along = randn(VIEWS, 4, 3, seed=6).to(device)

    def push(where: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
        return F.jvp(lambda f: drrkit.project(values, f, SIZE), (where,), (by,))

    run = torch.compile(push, backend=backend)
    assert equal(run(frames, along), list(push(frames, along)))


@pytest.mark.parametrize("transform", [F.jacrev, F.jacfwd, F.hessian])
def test_jacobians_inside_compile_equal_eager(transform, device) -> None:
    values, frames = scene(device, views=1)

    def derivative(where: Tensor) -> Tensor:
        return transform(lambda f: energy(values, f))(where)

    run = torch.compile(derivative, backend="aot_eager")
    if transform is F.jacrev and LOSES_GRADIENTS:
        with pytest.raises(RuntimeError, match=LOST):
            run(frames)
    else:
        assert equal([run(frames)], [derivative(frames)])


def by_vjp(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: F.vjp(f, x)[1](torch.ones((), dtype=x.dtype))[0]


@pytest.mark.parametrize("limit", [1, 8])
@pytest.mark.parametrize("transform", [F.grad, by_vjp, F.jacrev])
def test_a_torch_that_loses_gradients_is_refused_not_trusted(
    transform, limit, device, monkeypatch
) -> None:
    """Inside and around compiled code, also where dynamo has given up compiling it."""
    monkeypatch.setattr(functions, "LOSES_GRADIENTS", True)
    values, frames = scene(device, views=1)

    def scaled(where: Tensor, factor: int) -> Tensor:
        return transform(lambda f: energy(values, f) * factor)(where) * 2

    plain = scaled(frames, 1)
    inside = torch.compile(scaled, backend="aot_eager", dynamic=False)
    around = transform(torch.compile(lambda f: energy(values, f) * 2, backend="aot_eager"))
    for run in (around, *(lambda f, k=k: inside(f, k) for k in (1, 2, 3))):
        with (
            torch._dynamo.config.patch(recompile_limit=limit),
            pytest.raises(RuntimeError, match=LOST),
        ):
            run(frames)
    assert equal([scaled(frames, 1)], [plain])


# ---- limits


def test_double_backward_through_a_compiled_function_raises(device) -> None:
    """A limit of torch itself; what matters is that it gives no wrong number."""
    values, frames = (t.requires_grad_() for t in scene(device))
    loss = compiled(energy)(values, frames)
    first = torch.autograd.grad(loss, frames, create_graph=True)[0]
    for wanted in (frames, values, (values, frames)):
        with pytest.raises(RuntimeError, match=r"double backward|not have been used in the graph"):
            torch.autograd.grad(first.sum(), wanted)
    with pytest.raises(RuntimeError, match="double backward"):
        first.sum().backward()


def test_errors_in_arguments_stay_what_they_are_when_compiled(device) -> None:
    values, frames = scene(device)
    run = torch.compile(lambda v, f: drrkit.project(v, f, (4, 0)), backend="eager")
    with pytest.raises(ValueError, match="size: expected"):
        run(values, frames)
