"""Second derivatives: against finite differences, against the oracle, and by their symmetries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck

import drrkit
from tests.support import oracle
from tests.support.launches import Launches
from tests.support.scenes import (
    FRAMES,
    LINES,
    METHODS,
    SHAPE,
    SPACING,
    TWICE,
    every_beam,
    every_method,
    every_option,
    fluoroscope,
    oblique,
    options_of,
    rand,
    randn,
    relative,
    towards,
    twice_differentiable,
)

SIZE = (4, 5)
TOLERANCE = 1e-9


def leaf(tensor: Tensor, device: torch.device | str = "cpu") -> Tensor:
    return tensor.detach().clone().to(device).requires_grad_()


# ---- finite differences

SMALL = (2, 3, 3)  # D, H, W
LAYOUTS: dict[str, tuple[tuple[int, ...], int, Callable[[], Tensor] | None]] = {
    "one-view": (SMALL, 1, None),
    "three-channels": ((3, *SMALL), 2, None),
    "volume-per-view": ((2, 2, *SMALL), 2, None),
    "views-of-volumes": ((2, 1, *SMALL), 4, None),
    "pixels": ((2, *SMALL), 2, lambda: rand(4, 2, seed=5) * 3 - 0.5),
    "pixels-per-view": ((2, 1, *SMALL), 2, lambda: rand(2, 3, 2, seed=6) * 3 - 0.5),
}


def small_frames(views: int, seed: int = 0) -> Tensor:
    one = [towards(i % 3, shape=SMALL, size=(2, 3), tilt=0.3, seed=seed + i) for i in range(views)]
    return torch.cat(one)


def project_case(layout: str, device: torch.device, **options: Any) -> tuple[Callable, list]:
    """A function of values, frames and perhaps pixels, and its inputs."""
    shape, views, chosen = LAYOUTS[layout]
    inputs = [rand(*shape, seed=1), small_frames(views)] + ([chosen()] if chosen else [])

    def image(values: Tensor, frames: Tensor, pixels: Tensor | None = None) -> Tensor:
        return drrkit.project(values, frames, (2, 3), pixels=pixels, **options)

    return image, [leaf(t, device) for t in inputs]


def backproject_case(layout: str, device: torch.device, **options: Any) -> tuple[Callable, list]:
    """A function of images, frames and perhaps pixels, and its inputs."""
    shape, views, chosen = LAYOUTS[layout]
    points = [chosen()] if chosen else []
    rays = points[0].shape[-2:-1] if points else (2, 3)
    images = randn(views, (1, 1, *shape)[-4], *rays, seed=2)

    def volume(images: Tensor, frames: Tensor, pixels: Tensor | None = None) -> Tensor:
        return drrkit.backproject(images, frames, shape, pixels=pixels, **options)

    return volume, [leaf(t, device) for t in (images, small_frames(views, seed=7), *points)]


CASES = {"project": project_case, "backproject": backproject_case}


@every_beam
@pytest.mark.parametrize("layout", LAYOUTS)
@twice_differentiable
@pytest.mark.parametrize("case", CASES)
def test_gradgradcheck_passes(case, method, layout, beam, device) -> None:
    """Reverse over reverse, forward over reverse and batched, in a random direction."""
    function, inputs = CASES[case](layout, device, **options_of(method, beam))
    options = {"check_fwd_over_rev": True, "check_batched_grad": True, "fast_mode": True}
    assert gradgradcheck(function, inputs, **options)


quick_layout, *slow_layouts = sorted(LAYOUTS, key=lambda name: name != "views-of-volumes")
slow_layouts = [pytest.param(name, marks=pytest.mark.slow) for name in slow_layouts]


@every_beam
@pytest.mark.parametrize("layout", [quick_layout, *slow_layouts])
@twice_differentiable
@pytest.mark.parametrize("case", CASES)
def test_gradgradcheck_passes_entry_by_entry(case, method, layout, beam, device) -> None:
    function, inputs = CASES[case](layout, device, **options_of(method, beam))
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@every_beam
@every_option
def test_gradcheck_of_a_frame_gradient_passes_in_values_and_cotangents(
    method, beam, device
) -> None:
    """T and T* are exact even where the geometry's own derivative is not."""
    frames = leaf(small_frames(2), device)

    def frame_gradient(values: Tensor, g: Tensor) -> Tensor:
        image = drrkit.project(values, frames, (2, 3), **options_of(method, beam))
        return grad(image, frames, g, create_graph=True)[0]

    inputs = leaf(rand(2, *SMALL, seed=1), device), leaf(randn(2, 2, 2, 3, seed=2), device)
    assert gradcheck(frame_gradient, inputs)


# ---- the oracle


def second_order(
    project: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    *,
    device: torch.device | str = "cpu",
    in_geometry: bool = True,
    **options: Any,
) -> dict[str, Tensor]:
    """Gradients of a weighted sum of all first derivatives, g being the image's cotangent.

    inputs are values, frames and perhaps pixels. Without `in_geometry` the second derivative is
    taken in values and g only.
    """
    given = {name: leaf(tensor, device) for name, tensor in inputs.items()}
    image = project(given["values"], given["frames"], SIZE, pixels=given.get("pixels"), **options)
    g = leaf(randn(*image.shape, seed=31), device)
    first = grad(image, list(given.values()), g, create_graph=True)
    weights = (randn(*d.shape, seed=32 + i).to(device) for i, d in enumerate(first))
    total = sum((weight * d).sum() for weight, d in zip(weights, first, strict=True))
    given["g"] = g
    names = list(given) if in_geometry else ["values", "g"]
    return dict(zip(names, grad(total, [given[name] for name in names]), strict=True))


def check_second_order(device: torch.device, inputs: dict[str, Tensor], **options: Any) -> None:
    found = second_order(drrkit.project, inputs, device=device, **options)
    expected = second_order(oracle.project, inputs, **options)
    for name, tensor in found.items():
        assert relative(tensor.cpu(), expected[name]) <= TOLERANCE, name


@every_beam
@pytest.mark.parametrize("kind", FRAMES)
@twice_differentiable
def test_second_derivatives_equal_the_oracle(method, kind, beam, device) -> None:
    inputs = {"values": rand(2, 3, *SHAPE, seed=1), "frames": FRAMES[kind]()}
    check_second_order(device, inputs, **options_of(method, beam))


@every_beam
@pytest.mark.parametrize("per_view", [False, True])
@twice_differentiable
def test_second_derivatives_at_fractional_pixels_equal_the_oracle(
    method, per_view, beam, device
) -> None:
    pixels = rand(*([6] if per_view else []), 9, 2, seed=4) * 6 - 1
    inputs = {"values": rand(3, 2, *SHAPE, seed=2), "frames": oblique(6, seed=5), "pixels": pixels}
    check_second_order(device, inputs, **options_of(method, beam))


@every_beam
@pytest.mark.parametrize("kind", ["along-axes", "oblique", "source-inside", "detector-inside"])
@pytest.mark.parametrize("method", ["foot", *LINES])
def test_tangents_of_the_other_sampling_rules_equal_the_oracle(method, kind, beam, device) -> None:
    inputs = {"values": rand(2, *SHAPE, seed=3), "frames": FRAMES[kind]()}
    check_second_order(device, inputs, in_geometry=False, **options_of(method, beam))


def oracle_backproject(
    images: Tensor, frames: Tensor, shape: tuple[int, ...], **options: Any
) -> Tensor:
    """The adjoint as the gradient of the oracle in its values: differentiable as often."""
    values = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    image = oracle.project(values, frames, SIZE, **options)
    return grad(image, values, images, create_graph=True)[0]


def second_order_of_adjoint(
    backproject: Callable[..., Tensor], device: torch.device | str = "cpu", **options: Any
) -> tuple[Tensor, ...]:
    shape = (3, 2, *SHAPE)
    images, frames = leaf(randn(6, 2, *SIZE, seed=8), device), leaf(oblique(6, seed=9), device)
    weights = leaf(randn(*shape, seed=10), device)
    volume = backproject(images, frames, shape, **options)
    first = grad(volume, (images, frames), weights, create_graph=True)
    total = sum((randn(*d.shape, seed=11 + i).to(device) * d).sum() for i, d in enumerate(first))
    return grad(total, (images, frames, weights))


@every_beam
@twice_differentiable
def test_second_derivatives_of_backproject_equal_the_oracle(method, beam, device) -> None:
    options = options_of(method, beam)
    found = second_order_of_adjoint(drrkit.backproject, device, **options)
    expected = second_order_of_adjoint(oracle_backproject, **options)
    for a, b in zip(found, expected, strict=True):
        assert relative(a.cpu(), b) <= TOLERANCE


def third_derivative(
    project: Callable[..., Tensor], order: str, device: torch.device | str = "cpu", **options: Any
) -> Tensor:
    """Differentiates a cubic energy along fixed directions in v(alues) or f(rames), in order."""
    inputs = {"v": leaf(rand(2, *SHAPE, seed=1), device), "f": leaf(oblique(2, seed=3), device)}
    result = (project(inputs["v"], inputs["f"], SIZE, **options) ** 3).sum()
    for i, letter in enumerate(order):
        along = randn(*inputs[letter].shape, seed=60 + i).to(device)
        result = (grad(result, inputs[letter], create_graph=True)[0] * along).sum()
    return result


@every_beam
@pytest.mark.parametrize("order", ["vvf", "vfv", "fvv", "vff", "fvf"])
@twice_differentiable
def test_mixed_third_derivatives_equal_the_oracle(method, order, beam, device) -> None:
    """They exist unless the frames have been differentiated twice before the last one."""
    options = options_of(method, beam)
    found = third_derivative(drrkit.project, order, device, **options)
    assert relative(found.cpu(), third_derivative(oracle.project, order, **options)) <= TOLERANCE


# ---- symmetries, for rays of every kind


def tangent_image(values: Tensor, frames: Tensor, along: Tensor, **options: Any) -> Tensor:
    """T: how the images change when the frames move along `along`."""
    return torch.func.jvp(
        lambda f: drrkit.project(values, f, SIZE, **options), (frames,), (along,)
    )[1]


def frame_cotangent(values: Tensor, frames: Tensor, g: Tensor, **options: Any) -> Tensor:
    """J."""
    return torch.func.grad(lambda f: (g * drrkit.project(values, f, SIZE, **options)).sum())(frames)


def curvature(values: Tensor, frames: Tensor, g: Tensor, along: Tensor, **options: Any) -> Tensor:
    """K: how the frame cotangent changes when the frames move along `along`."""
    frames = leaf(frames)
    image = drrkit.project(values, frames, SIZE, **options)
    first = grad(image, frames, g, create_graph=True)[0]
    return grad(first, frames, along)[0]


def close(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    return abs(float(a - b)) <= 1e-12 * float(scale)


def scene(kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Volumes, frames, image cotangent, and two directions of the frames."""
    frames = FRAMES[kind]()
    g = randn(len(frames), 2, *SIZE, seed=seed)
    one, two = randn(2, *frames.shape, seed=seed + 1)
    return randn(3, 2, *SHAPE, seed=seed + 2), frames, g, one, two


@every_beam
@pytest.mark.parametrize("kind", FRAMES)
@twice_differentiable
def test_the_curvature_in_the_frames_is_symmetric(method, kind, beam) -> None:
    values, frames, g, one, two = scene(kind, seed=40)
    options = options_of(method, beam)
    first = curvature(values, frames, g, one, **options) * two
    second = curvature(values, frames, g, two, **options) * one
    assert close(first.sum(), second.sum(), first.abs().sum())
    assert kind in ("misses", "before", "behind") or first.abs().sum() > 0


@every_beam
@pytest.mark.parametrize("kind", FRAMES)
@every_option
def test_tangent_and_its_adjoints_agree(method, kind, beam) -> None:
    """<T(V, f'), g> = <V, T*(g, f')> = <f', J(g, V)>."""
    values, frames, g, along, _ = scene(kind, seed=50)
    options = options_of(method, beam)
    image = tangent_image(values, frames, along, **options) * g
    volume = torch.func.jvp(
        lambda f: drrkit.backproject(g, f, values.shape, **options), (frames,), (along,)
    )[1]
    cotangent = frame_cotangent(values, frames, g, **options)
    assert close(image.sum(), (volume * values).sum(), image.abs().sum())
    assert close(image.sum(), (cotangent * along).sum(), image.abs().sum())
    assert kind in ("misses", "before", "behind") or image.abs().sum() > 0


# ---- where derivatives end


def scalar(values: Tensor, frames: Tensor, **options: Any) -> Tensor:
    return drrkit.project(values, frames, SIZE, **options).square().sum()


def reverse_thrice(values: Tensor, frames: Tensor) -> Any:
    frames = leaf(frames)
    first = grad(scalar(values, frames), frames, create_graph=True)[0]
    second = grad(first.sum(), frames, create_graph=True)[0]
    return grad(second.sum(), frames)


def curvature_in_the_values(values: Tensor, frames: Tensor) -> Any:
    values, frames = leaf(values), leaf(frames)
    first = grad(drrkit.project(values, frames, SIZE).sum(), frames, create_graph=True)[0]
    second = grad(first.sum(), frames, create_graph=True)[0]
    return grad(second.sum(), values)


def forward_over_forward_of_backproject(values: Tensor, frames: Tensor) -> Any:
    images = drrkit.project(values, frames, SIZE)
    return torch.func.jacfwd(
        torch.func.jacfwd(lambda f: drrkit.backproject(images, f, values.shape).sum())
    )(frames)


F = torch.func
BEYOND: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "reverse thrice": reverse_thrice,
    "curvature in the values": curvature_in_the_values,
    "jacrev thrice": lambda v, f: F.jacrev(F.jacrev(F.jacrev(lambda x: scalar(v, x))))(f),
    "jacfwd of hessian": lambda v, f: F.jacfwd(F.hessian(lambda x: scalar(v, x)))(f),
    "grad of hessian": lambda v, f: F.grad(lambda x: F.hessian(lambda y: scalar(v, y))(x).sum())(f),
    "forward over forward": lambda v, f: F.jacfwd(F.jacfwd(lambda x: scalar(v, x)))(f),
    "forward over forward of backproject": forward_over_forward_of_backproject,
    "jvp of jvp": lambda v, f: F.jvp(
        lambda x: tangent_image(v, x, torch.ones_like(x)), (f,), (torch.ones_like(f),)
    ),
}


@pytest.mark.parametrize("order", BEYOND)
def test_third_derivatives_and_forward_over_forward_raise(order, device) -> None:
    values, frames = rand(2, 2, 3, seed=1).to(device), small_frames(1).to(device)
    with pytest.raises(NotImplementedError, match=r"drrkit\.project: .*(third|forward over)"):
        BEYOND[order](values, frames)


@every_beam
@pytest.mark.parametrize("method", ["foot", *LINES])
def test_twice_in_the_geometry_raises_for_the_other_sampling_rules(method, beam, device) -> None:
    options = options_of(method, beam)
    values, frames = rand(*SHAPE).to(device), leaf(oblique(1), device)
    message = "twice in the geometry exists for trilinear only with derivative='exact'"
    first = grad(scalar(values, frames, **options), frames, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match=message):
        grad(first.sum(), frames)
    with pytest.raises(NotImplementedError, match=message):
        F.hessian(lambda f: scalar(values, f, **options))(frames.detach())


# ---- no product runs that nobody asked for


def training_inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    values, frames = leaf(rand(2, *SHAPE), device), leaf(oblique(3), device)
    return values, frames, leaf(randn(3, 2, *SIZE), device)


def pose_gradient(values: Tensor, frames: Tensor, g: Tensor, **options: Any) -> Tensor:
    """What training differentiates once more."""
    return grad(drrkit.project(values, frames, SIZE, **options), frames, g, create_graph=True)[0]


@every_method
def test_a_pose_gradient_with_a_graph_is_one_march_and_scatters_nothing(method, device) -> None:
    with Launches() as ran:
        pose_gradient(*training_inputs(device), **METHODS[method])
    assert ran.counts == {"project+six": 1, "reduce": 1}


BEHIND: dict[str, tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Any], dict[str, int]]] = {
    "training": (
        lambda slope, values, frames, g: grad(slope.square().sum(), (values, g)),
        {"tangent": 1, "backproject+tangent": 1},
    ),
    "backward on chosen inputs": (
        lambda slope, values, frames, g: slope.square().sum().backward(inputs=[values, g]),
        {"tangent": 1, "backproject+tangent": 1},
    ),
    "values": (
        lambda slope, values, frames, g: grad(slope.sum(), values),
        {"backproject+tangent": 1},
    ),
    "g": (lambda slope, values, frames, g: grad(slope.sum(), g), {"tangent": 1}),
    "frames": (
        lambda slope, values, frames, g: grad(slope.sum(), frames),
        {"second": 1, "reduce second": 1},
    ),
}
"""What is asked of a pose gradient, and the products that this takes: neither P* nor a march."""


@pytest.mark.parametrize(
    "wanted, method",
    [(w, m) for m in (*METHODS, *LINES) for w in BEHIND if w != "frames" or m in TWICE],
)
def test_a_pose_gradient_is_differentiated_by_the_products_asked_for(
    wanted, method, device
) -> None:
    inputs = training_inputs(device)
    slope = pose_gradient(*inputs, **{**METHODS, **LINES}[method])
    ask, expected = BEHIND[wanted]
    with Launches() as ran:
        ask(slope, *inputs)
    assert ran.counts == expected


def test_training_a_network_before_and_behind_the_projector_runs_no_curvature(device) -> None:
    """The volume is a network's output and the cotangent comes from a learned similarity."""
    network = torch.nn.Conv3d(1, 2, 3, padding=1, dtype=torch.float64).to(device)
    weight = leaf(rand(2, *SIZE), device)
    ct, frames = rand(1, 1, *SHAPE).to(device), leaf(oblique(3), device)
    with Launches() as ran:
        image = drrkit.project(network(ct), frames, SIZE)
        loss = (image.square() * weight).sum()
        slope = grad(loss, frames, create_graph=True)[0]
        grad(slope.square().sum(), [weight, *network.parameters()])
    expected = {"project+six": 1, "reduce": 1, "tangent": 1, "backproject": 1}
    assert ran.counts == {**expected, "backproject+tangent": 1}


def test_a_volume_gradient_with_a_graph_marches_only_for_what_is_asked(device) -> None:
    values, frames, g = training_inputs(device)
    with Launches() as ran:
        image = drrkit.project(values, frames.detach(), SIZE)
        volume_gradient = grad(image, values, g, create_graph=True)[0]
        grad(volume_gradient.square().sum(), g)
    assert ran.counts == {"project": 2, "backproject": 1}


# ---- through render


@twice_differentiable
def test_second_derivatives_of_render_pass_gradgradcheck_in_the_pose(method, device) -> None:
    volume, camera, pose = fluoroscope()
    center = drrkit.volume_center(volume).to(device)
    options = METHODS[method]

    def image(values: Tensor, xi: Tensor) -> Tensor:
        moved = drrkit.perturb(pose.to(device), xi, center)
        seen = replace(volume, values=values)
        return drrkit.render(seen, camera, moved, supersample=2, **options)

    values, xi = leaf(volume.values, device), leaf(torch.zeros(6).double(), device)
    assert gradgradcheck(image, (values, xi), check_fwd_over_rev=True, fast_mode=True)


@twice_differentiable
def test_the_hessian_of_render_in_the_pose_equals_the_oracle(method, device) -> None:
    volume, camera, pose = fluoroscope()
    center = drrkit.volume_center(volume)
    seen = volume.to(device)

    def found(xi: Tensor) -> Tensor:
        moved = drrkit.perturb(pose.to(device), xi, center.to(device))
        return drrkit.render(seen, camera, moved, **METHODS[method]).square().sum()

    def expected(xi: Tensor) -> Tensor:
        moved = drrkit.perturb(pose, xi, center)
        frames = drrkit.view_frames(volume, camera, moved, extend=True)
        image = oracle.project(volume.values, frames, SIZE, spacing=SPACING, **METHODS[method])
        return image.square().sum()

    xi = 0.1 * randn(6, seed=2)
    reference = torch.autograd.functional.hessian(expected, xi)
    assert relative(F.hessian(found)(xi.to(device)).cpu(), reference) <= TOLERANCE
    twice = torch.autograd.functional.hessian(found, xi.to(device)).cpu()
    assert relative(twice, reference) <= TOLERANCE
