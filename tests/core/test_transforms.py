"""torch's function transforms equal plain autograd through the oracle, and cost no extra launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.functional import hessian, jacobian

import drrkit
from tests.support import oracle
from tests.support.launches import Launches
from tests.support.scenes import (
    SMALL,
    TWICE,
    every_beam,
    every_method,
    oblique,
    options_of,
    rand,
    randn,
    relative,
    small_frames,
    twice_differentiable,
)

F = torch.func
SIZE = (2, 3)
VIEWS = 2
TOLERANCE = 1e-10

either = pytest.mark.parametrize("argument", [0, 1], ids=["values", "frames"])


def projection(
    project: Callable[..., Tensor], method: str = "joseph", beam: str = "cone"
) -> Callable[[Tensor, Tensor], Tensor]:
    """Images as a function of values and frames."""
    options = options_of(method, beam)
    return lambda values, frames: project(values, frames, SIZE, **options)


def energy(image: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A scalar whose second derivatives mix values and frames."""
    return lambda values, frames: (image(values, frames) ** 3).sum()


def scene(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    return rand(2, 1, *SMALL, seed=1).to(device), small_frames(VIEWS).to(device)


def equal(found: Any, expected: Any) -> bool:
    return relative(found.detach().cpu(), expected.detach()) <= TOLERANCE


@cache
def oracle_hessian(method: str, beam: str) -> tuple[tuple[Tensor, ...], ...]:
    """All four blocks of the second derivative of `energy` at `scene`."""
    return hessian(energy(projection(oracle.project, method, beam)), scene())


# ---- derivatives


@every_beam
@every_method
def test_jvp_equals_the_oracle_in_values_and_frames(method, beam, device) -> None:
    point, along = scene(device), (randn(2, 1, *SMALL).to(device), randn(VIEWS, 4, 3).to(device))
    image, tangent = F.jvp(projection(drrkit.project, method, beam), point, along)
    truth = projection(oracle.project, method, beam)
    values, frames = scene()
    by_values = jacobian(lambda v: truth(v, frames), values).flatten(4) @ along[0].cpu().flatten()
    by_frames = jacobian(lambda f: truth(values, f), frames).flatten(4) @ along[1].cpu().flatten()
    assert equal(image, truth(values, frames))
    assert equal(tangent, by_values + by_frames)


@every_beam
@every_method
def test_vjp_and_grad_equal_the_oracle(method, beam, device) -> None:
    found = projection(drrkit.project, method, beam)
    point, g = scene(device), randn(VIEWS, 1, *SIZE).to(device)
    image, pull = F.vjp(found, *point)
    truth = projection(oracle.project, method, beam)
    inputs = [t.requires_grad_() for t in scene()]
    expected = torch.autograd.grad(truth(*inputs), inputs, g.cpu())
    assert equal(image, truth(*inputs))
    assert all(equal(a, b) for a, b in zip(pull(g), expected, strict=True))

    gradients = F.grad(energy(found), (0, 1))(*point)
    expected = torch.autograd.grad(energy(truth)(*inputs), inputs)
    assert all(equal(a, b) for a, b in zip(gradients, expected, strict=True))


@either
@pytest.mark.parametrize("transform", [F.jacrev, F.jacfwd])
@every_beam
@every_method
def test_jacobians_equal_the_oracle(method, beam, transform, argument, device) -> None:
    found = transform(projection(drrkit.project, method, beam), argument)(*scene(device))
    expected = jacobian(projection(oracle.project, method, beam), scene())[argument]
    assert equal(found, expected)


NESTINGS: dict[str, Callable[[Callable, int, int], Callable]] = {
    "jacfwd(jacrev)": lambda f, a, b: F.jacfwd(F.jacrev(f, a), b),
    "jacrev(jacrev)": lambda f, a, b: F.jacrev(F.jacrev(f, a), b),
    "jacrev(jacfwd)": lambda f, a, b: F.jacrev(F.jacfwd(f, a), b),
}


@every_beam
@twice_differentiable
@pytest.mark.parametrize("nesting", NESTINGS)
def test_nested_jacobians_equal_the_oracle_in_every_pair_of_arguments(
    nesting, method, beam, device
) -> None:
    found = energy(projection(drrkit.project, method, beam))
    expected = oracle_hessian(method, beam)
    for first in (0, 1):
        for second in (0, 1):
            nested = NESTINGS[nesting](found, first, second)(*scene(device))
            assert equal(nested, expected[first][second]), (first, second)


@twice_differentiable
def test_grad_of_grad_and_jvp_of_grad_equal_the_oracle(method, device) -> None:
    found = energy(projection(drrkit.project, method))
    values, frames = scene(device)
    along = randn(VIEWS, 4, 3).to(device)
    slope = F.grad(lambda f: (along * F.grad(found, 1)(values, f)).sum())(frames)
    pushed = F.jvp(lambda f: F.grad(found, 1)(values, f), (frames,), (along,))[1]
    truth = oracle_hessian(method, "cone")[1][1]
    expected = (truth.flatten(3) @ along.cpu().flatten()).reshape(frames.shape)
    assert equal(slope, expected) and equal(pushed, expected)


@every_method
def test_backproject_is_transformed_as_the_oracles_adjoint(method, device) -> None:
    """<weights, P* g> = <P weights, g>: its derivatives are those of the right-hand side."""
    weights, frames = scene(device)
    g, shape = randn(VIEWS, 1, *SIZE, seed=3).to(device), weights.shape
    options = options_of(method)

    def found(images: Tensor, where: Tensor) -> Tensor:
        return (drrkit.backproject(images, where, shape, **options) * weights).sum()

    def truth(images: Tensor, where: Tensor) -> Tensor:
        return (oracle.project(weights.cpu(), where, SIZE, **options) * images).sum()

    expected = jacobian(truth, (g.cpu(), frames.cpu()))
    for transform in (F.grad, F.jacrev, F.jacfwd):
        assert all(
            equal(a, b) for a, b in zip(transform(found, (0, 1))(g, frames), expected, strict=True)
        )
    if method in TWICE:
        twice = hessian(lambda where: truth(g.cpu(), where), frames.cpu())
        assert equal(F.hessian(found, 1)(g, frames), twice)


@every_beam
def test_pixels_are_transformed_too(beam, device) -> None:
    values, frames = scene(device)
    pixels = (rand(VIEWS, 4, 2, seed=5) * 2).to(device)

    def image(project: Callable, where: Tensor, points: Tensor) -> Tensor:
        return project(values.to(where.device), where, SIZE, pixels=points, beam=beam)

    def found(where: Tensor, points: Tensor) -> Tensor:
        return image(drrkit.project, where, points)

    expected = jacobian(lambda f, p: image(oracle.project, f, p), (frames.cpu(), pixels.cpu()))
    for transform in (F.jacrev, F.jacfwd):
        for a, b in zip(transform(found, (0, 1))(frames, pixels), expected, strict=True):
            assert equal(a, b)
    twice = hessian(lambda p: image(oracle.project, frames.cpu(), p).pow(2).sum(), pixels.cpu())
    assert equal(F.hessian(lambda p: found(frames, p).pow(2).sum())(pixels), twice)
    many = torch.stack([pixels, pixels + 0.3, pixels - 0.2])
    mapped = torch.vmap(found, (None, 0))(frames, many)
    assert equal(mapped, torch.stack([found(frames, p) for p in many]).cpu())


@every_method
def test_dual_numbers_carry_the_same_tangents_as_jvp(method, device) -> None:
    image = projection(drrkit.project, method)
    values, frames = scene(device)
    along = randn(2, 1, *SMALL).to(device), randn(VIEWS, 4, 3).to(device)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip((values, frames), along, strict=True)]
        both = forward_ad.unpack_dual(image(*duals)).tangent
        by_values = forward_ad.unpack_dual(image(duals[0], frames)).tangent
        by_frames = forward_ad.unpack_dual(image(values, duals[1])).tangent
        assert forward_ad.unpack_dual(image(values, frames)).tangent is None
    assert equal(both, F.jvp(image, (values, frames), along)[1].cpu())
    assert equal(by_values + by_frames, both.cpu())


@pytest.mark.parametrize("vectorize", [False, True])
def test_torch_autograd_functional_agrees(vectorize, device) -> None:
    found, options = projection(drrkit.project), {"vectorize": vectorize}
    values, frames = scene(device)
    expected = jacobian(projection(oracle.project), scene())[1]
    assert equal(jacobian(lambda f: found(values, f), frames, **options), expected)
    expected = oracle_hessian("joseph", "cone")[1][1]
    assert equal(hessian(lambda f: energy(found)(values, f), frames, **options), expected)


# ---- vmap


def mapped_scene(
    dims: tuple[int | None, int | None], device: torch.device
) -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
    """Arguments with the mapped axis where `dims` says, and the slices of it."""
    many = [torch.stack([t + 0.1 * i for i in range(3)]) for t in scene(device)]
    single = scene(device)
    slices = [
        tuple(s if d is None else m[i] for s, m, d in zip(single, many, dims, strict=True))
        for i in range(3)
    ]
    moved = [
        s if d is None else m.movedim(0, d) for s, m, d in zip(single, many, dims, strict=True)
    ]
    return tuple(moved), slices


DIMS = [(0, None), (None, 0), (0, 0), (1, None), (None, 2), (2, 1), (-1, -1)]


@pytest.mark.parametrize("dims", DIMS, ids=str)
@every_method
def test_vmap_equals_the_oracle_slice_by_slice(method, dims, device) -> None:
    arguments, slices = mapped_scene(dims, device)
    found = torch.vmap(projection(drrkit.project, method), dims)(*arguments)
    truth = projection(oracle.project, method)
    assert equal(found, torch.stack([truth(*(t.cpu() for t in one)) for one in slices]))


@pytest.mark.parametrize("dims", DIMS, ids=str)
@either
def test_vmap_of_grad_equals_the_oracle_slice_by_slice(argument, dims, device) -> None:
    arguments, slices = mapped_scene(dims, device)
    found = torch.vmap(F.grad(energy(projection(drrkit.project)), argument), dims)(*arguments)
    truth = energy(projection(oracle.project))
    expected = [jacobian(truth, tuple(t.cpu() for t in one))[argument] for one in slices]
    assert equal(found, torch.stack(expected))


ALONG = randn(VIEWS, 4, 3)


def backprojected(values: Tensor, frames: Tensor, **options: Any) -> Tensor:
    images = values.flatten()[: VIEWS * SIZE[0] * SIZE[1]].reshape(VIEWS, 1, *SIZE)
    return drrkit.backproject(images, frames, (2, 1, *SMALL), **options)


def pushed(values: Tensor, frames: Tensor, **options: Any) -> Tensor:
    along = (ALONG.to(frames.device),)
    return F.jvp(lambda f: drrkit.project(values, f, SIZE, **options), (frames,), along)[1]


def curved(values: Tensor, frames: Tensor, **options: Any) -> Tensor:
    return F.hessian(lambda f: (drrkit.project(values, f, SIZE, **options) ** 3).sum())(frames)


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (2, 1)], ids=str)
@pytest.mark.parametrize("function", [backprojected, pushed, curved])
@twice_differentiable
def test_vmap_of_the_other_products_equals_them_slice_by_slice(
    method, function, dims, device
) -> None:
    arguments, slices = mapped_scene(dims, device)
    run = partial(function, **options_of(method))
    assert equal(torch.vmap(run, dims)(*arguments), torch.stack([run(*s) for s in slices]).cpu())


def test_nested_vmap_equals_the_oracle(device) -> None:
    values, frames = scene(device)
    volumes = torch.stack([values, 2 * values + 0.1])
    poses = torch.stack([frames + 0.1 * i for i in range(3)])
    image, truth = projection(drrkit.project), projection(oracle.project)
    found = torch.vmap(torch.vmap(image, (None, 0)), (0, None))(volumes, poses)
    expected = torch.stack([torch.stack([truth(v, f) for f in poses.cpu()]) for v in volumes.cpu()])
    assert equal(found, expected)
    inside_out = torch.vmap(torch.vmap(image, (0, None)), (None, 0))(volumes, poses)
    assert equal(inside_out, expected.transpose(0, 1))
    gradient = F.grad(energy(image), (0, 1))
    found = torch.vmap(torch.vmap(gradient, (None, 0)), (0, None))(volumes, poses)
    one = gradient(volumes[1], poses[2])
    assert all(equal(a[1, 2], b.cpu()) for a, b in zip(found, one, strict=True))


BIG = (24, 24, 24)


def big_scene(device: torch.device, poses: int) -> tuple[Tensor, Tensor]:
    values = rand(1, 2, *BIG, seed=1).to(device)
    return values, torch.stack([oblique(VIEWS, seed=i) for i in range(poses)]).to(device)


def test_vmap_over_frames_is_one_launch_on_the_one_volume(device) -> None:
    values, poses = big_scene(device, 5)
    with Launches() as ran:
        torch.vmap(projection(drrkit.project), (None, 0))(values, poses)
    assert ran.counts == {"project": 1} and ran.volumes == [1]
    assert ran.largest < values.numel()


def test_vmap_of_grad_over_frames_is_one_march_and_one_reduction(device) -> None:
    values, poses = big_scene(device, 5)
    with Launches() as ran:
        torch.vmap(F.grad(energy(projection(drrkit.project)), 1), (None, 0))(values, poses)
    assert ran.counts == {"project+six": 1, "reduce": 1} and ran.volumes == [1]
    assert ran.largest < values.numel()


def test_vmap_over_volumes_is_one_launch_and_no_copy(device) -> None:
    values = torch.stack([rand(1, 2, *BIG, seed=i) for i in range(3)]).to(device)
    frames = oblique(VIEWS, seed=1).to(device)
    with Launches() as ran:
        torch.vmap(projection(drrkit.project), (0, None))(values, frames)
        torch.vmap(projection(drrkit.project), (0, 0))(values, frames.expand(3, -1, -1, -1))
    assert ran.counts == {"project": 2} and ran.volumes == [3, 3]
    assert ran.largest < values[0].numel()


def test_a_hessian_is_one_march_for_the_image_and_one_for_all_columns(device) -> None:
    values, poses = big_scene(device, 1)
    with Launches() as ran:
        F.hessian(energy(projection(drrkit.project)), 1)(values, poses[0])
    assert ran.counts["project+six"] == 1 and ran.counts["second"] == 1
    assert ran.counts["project"] == ran.counts["backproject"] == 0
    assert ran.volumes == [1, 1]  # neither of the two saw a copy of the volume


def test_a_pose_gradient_by_func_is_one_march(device) -> None:
    values, frames = scene(device)
    with Launches() as ran:
        F.grad(lambda f: energy(projection(drrkit.project))(values, f))(frames)
    assert ran.counts == {"project+six": 1, "reduce": 1}
