"""Large batches in groups, recomputed gradients, function transforms, separable correlations."""

from __future__ import annotations

import pytest
import torch

from drrkit import losses
from drrkit.losses import batches, stencils
from tests.losses.test_every_loss import ALL, FREE
from tests.support.smooth_images import images


@pytest.fixture(params=sorted(ALL))
def name(request):
    return request.param


@pytest.fixture
def one_by_one(monkeypatch):
    """Every view is a group of its own."""
    monkeypatch.setattr(batches, "_CPU_NUMBERS", 1)


def scene(views: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return images(views, 2, 8, 9), images(1, 1, 8, 9, seed=1), images(1, 1, 8, 9, seed=2)


def with_gradients(name, moving, fixed, mask):
    moving, fixed, mask = (
        None if tensor is None else tensor.clone().requires_grad_()
        for tensor in (moving, fixed, mask)
    )
    loss = ALL[name](moving, fixed, mask)
    given = [tensor for tensor in (moving, fixed, mask) if tensor is not None]
    weights = torch.arange(1.0, 1 + loss.shape[0], dtype=loss.dtype)
    return loss, torch.autograd.grad((loss * weights).sum(), given, allow_unused=True)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_groups_change_neither_losses_nor_gradients(name, shared, masked, monkeypatch):
    moving, fixed, mask = scene()
    if not shared:
        fixed = images(3, 2, 8, 9, seed=1)
        mask = images(3, 1, 8, 9, seed=2)
    arguments = (moving, fixed, mask if masked else None)
    together = with_gradients(name, *arguments)
    monkeypatch.setattr(batches, "_CPU_NUMBERS", 1)
    apart = with_gradients(name, *arguments)
    torch.testing.assert_close(apart, together)


def test_second_derivatives_pass_through_recomputed_gradients(name, one_by_one):
    moving = images(2, 1, 5, 6).requires_grad_()
    fixed = images(1, 1, 5, 6, seed=1).requires_grad_()
    mask = images(1, 1, 5, 6, seed=2)

    def checked(i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return ALL[name](i, j, mask, **FREE.get(name, {}))

    assert torch.autograd.gradcheck(checked, (moving, fixed), fast_mode=True)
    assert torch.autograd.gradgradcheck(checked, (moving, fixed), fast_mode=True)


def test_images_computed_from_one_another_are_not_counted_twice(name, one_by_one):
    def checked(x: torch.Tensor) -> torch.Tensor:
        fixed = (x[:1] + 0.5).square()
        return ALL[name](x, fixed, None, **FREE.get(name, {}))

    if name != "mattes_mutual_information":  # its fixed image carries no derivative
        moving = images(2, 1, 5, 6).requires_grad_()
        assert torch.autograd.gradcheck(checked, moving, fast_mode=True)
        assert torch.autograd.gradgradcheck(checked, moving, fast_mode=True)


def test_groups_keep_nothing_but_the_images(one_by_one):
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    moving, fixed = images(4, 1, 24, 25).requires_grad_(), images(1, 1, 24, 25, seed=1)
    for call in (losses.patch_gradient_ncc, losses.mutual_information, losses.local_ncc):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call(moving, fixed)
        own = sum(numel for numel in kept if numel == 600)
        assert own >= 4 * 600  # the moving images
        # Windows of the fixed image are kept once, though seen by every group.
        assert max(kept) <= 32 * 600


def test_function_transforms_agree_with_the_ordinary_derivatives(name):
    moving, fixed = images(2, 1, 6, 7), images(1, 1, 6, 7, seed=1)
    mask = images(1, 1, 6, 7, seed=2)
    options = FREE.get(name, {})

    def total(x: torch.Tensor) -> torch.Tensor:
        return ALL[name](x, fixed, mask, **options).sum()

    tangent = images(2, 1, 6, 7, seed=3)
    x = moving.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(x), x, create_graph=True)
    (product,) = torch.autograd.grad((gradient * tangent).sum(), x)
    gradient = gradient.detach()
    torch.testing.assert_close(torch.func.grad(total)(moving), gradient)
    _, slope = torch.func.jvp(total, (moving,), (tangent,))
    torch.testing.assert_close(slope, (gradient * tangent).sum())
    _, forward_over_reverse = torch.func.jvp(torch.func.grad(total), (moving,), (tangent,))
    torch.testing.assert_close(forward_over_reverse, product)
    alone = torch.vmap(lambda image: ALL[name](image[None], fixed, mask, **options)[0])(moving)
    torch.testing.assert_close(alone, ALL[name](moving, fixed, mask, **options))
    jacobian = torch.func.jacrev(lambda image: ALL[name](image, fixed, mask, **options))(moving)
    torch.testing.assert_close(jacobian.sum(dim=0), gradient)


def test_gradients_of_several_losses_at_once_agree_with_one_at_a_time(name, one_by_one):
    moving, fixed, mask = scene()
    moving.requires_grad_()
    loss = ALL[name](moving, fixed, mask)
    rows = torch.eye(3, dtype=loss.dtype)
    (batched,) = torch.autograd.grad(loss, moving, rows, is_grads_batched=True, retain_graph=True)
    for b in range(3):
        (single,) = torch.autograd.grad(loss, moving, rows[b], retain_graph=True)
        torch.testing.assert_close(batched[b], single)


@pytest.mark.parametrize("taps", [(1.0,), (1.0,) * 7, (0.5,) * 6, (1.0, -2.0, 0.0, 4.0, 3.0)])
def test_correlations_are_those_of_conv2d(taps):
    image = images(2, 3, 11, 12)
    kernel = torch.tensor(taps, dtype=torch.float64)[:, None] * torch.tensor([2.0, 0.0, 1.0])
    expected = torch.nn.functional.conv2d(image.reshape(6, 1, 11, 12), kernel[None, None])
    found = stencils.correlate(image, taps, (2.0, 0.0, 1.0))
    torch.testing.assert_close(found.reshape(expected.shape), expected)
    assert torch.equal(stencils.correlate(image, (1.0,), (1.0,)), image)


@pytest.mark.parametrize("side", range(1, 12))
def test_boxes_of_every_side_are_sums_over_squares(side):
    image = images(2, 1, 11, 12)
    expected = torch.nn.functional.avg_pool2d(image, side, 1) * side**2
    torch.testing.assert_close(stencils.box(image, side), expected)


def test_correlations_pass_gradcheck_in_every_mode():
    image = images(2, 1, 6, 7).requires_grad_()

    def checked(x: torch.Tensor) -> torch.Tensor:
        return stencils.correlate(x, (1.0, 1.0, 1.0), (1.0, -0.5, 2.0, 0.25))

    modes = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(checked, image, check_batched_forward_grad=True, **modes)
    assert torch.autograd.gradgradcheck(checked, image, check_batched_grad=True)
    batched = torch.vmap(checked, in_dims=2)(torch.rand(2, 1, 3, 6, 7))
    assert batched.shape == (3, 2, 1, 4, 4)


@pytest.mark.slow
def test_compiled_losses_agree_with_eager_ones(name):
    torch._dynamo.reset()
    moving, fixed, mask = scene()
    moving.requires_grad_()
    compiled = torch.compile(ALL[name], fullgraph=True, backend="aot_eager")(moving, fixed, mask)
    (found,) = torch.autograd.grad(compiled.sum(), moving)
    eager = ALL[name](moving, fixed, mask)
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(found, torch.autograd.grad(eager.sum(), moving)[0])
