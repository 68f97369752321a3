"""The blocks of CDreg and SOPI do what their publications say, counted, inverted, compared."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from drrkit.similarity.cdreg import (
    CDReg,
    Features,
    FourierConvolution,
    FourierResidual,
    FourierUnit,
    GatedScore,
    InvertibleNetwork,
    PoolformerEncoder,
    UncertaintyWeights,
    decomposition_loss,
)
from drrkit.similarity.networks import resized
from drrkit.similarity.regressors import ConvolutionPair
from drrkit.similarity.sopi import (
    CascadeFusion,
    CompositeEncoder,
    SplitAttention,
    SplitBottleneck,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def smooth(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_parameters_are_as_many_as_in_the_published_code() -> None:
    # Counted in the authors' repositories, layer by layer with torch.
    assert parameters(PoolformerEncoder(3, 256, (8, 16, 32, 64, 64), 0.1)) == 193752
    assert parameters(FourierResidual(64)) == parameters(FourierResidual(64, "batch")) == 62016
    assert parameters(InvertibleNetwork(64)) == 54528
    assert parameters(CompositeEncoder()) == 5349792
    assert parameters(ConvolutionPair(3, 1, 64)) == 112576
    assert parameters(ConvolutionPair(2, 1, 64)) == 37568
    assert parameters(SplitBottleneck(64)) == 19104
    with torch.device("meta"):
        score = GatedScore(64, 16)
    assert parameters(score) == 176_700_418


def undone(network: InvertibleNetwork, image: Tensor) -> Tensor:
    """The input whose output this is."""
    for step in reversed(network.steps):
        first, second = image.chunk(2, 1)
        first = (first - step.eta(second)) * (-step.rho(second)).exp()
        second = second - step.phi(first)
        mixed = torch.cat((first, second), 1) - step.shuffle.bias[:, None, None]
        weight = torch.linalg.inv(step.shuffle.weight[:, :, 0, 0])
        image = nn.functional.conv2d(mixed, weight[:, :, None, None])
    return image


@pytest.mark.parametrize("channels, steps", [(8, 1), (64, 3)])
def test_the_invertible_network_has_an_inverse(channels: int, steps: int) -> None:
    network = InvertibleNetwork(channels, steps)
    image = torch.randn(2, channels, 9, 7)
    assert not torch.allclose(network(image), image, atol=1e-2)
    assert (undone(network, network(image)) - image).abs().max() < 1e-5
    assert (network(undone(network, image)) - image).abs().max() < 1e-5


def test_a_fourier_unit_is_a_convolution_of_the_spectrum_by_definition() -> None:
    unit = FourierUnit(2, norm="none").double()
    image = smooth(1, 2, 6, 4)
    rows, cols = torch.arange(6.0).double(), torch.arange(4.0).double()
    over_rows = torch.exp(-2j * math.pi * rows[:, None] * rows / 6) / math.sqrt(6)
    over_cols = torch.exp(-2j * math.pi * cols[:3, None] * cols / 4) / math.sqrt(4)
    spectrum = torch.einsum("kx,ly,bcxy->bckl", over_rows, over_cols, image.to(torch.complex128))
    parts = torch.stack((spectrum[:, 0].real, spectrum[:, 0].imag), 1)
    parts = torch.cat((parts, spectrum[:, 1].real[:, None], spectrum[:, 1].imag[:, None]), 1)
    parts = torch.einsum("oi,bikl->bokl", unit.mix.weight[:, :, 0, 0], parts).relu()
    mixed = torch.complex(parts[:, 0::2], parts[:, 1::2])
    # The columns left out are the conjugates of those kept; DC and Nyquist columns stand once.
    count = torch.tensor([1.0, 2.0, 1.0]).double()
    back = torch.einsum("kx,ly,l,bckl->bcxy", over_rows.conj(), over_cols.conj(), count + 0j, mixed)
    torch.testing.assert_close(unit(image), back.real)


def test_the_global_branch_sees_global_structure_and_the_local_one_does_not() -> None:
    layer = FourierConvolution(16, norm="none").double()
    image = smooth(1, 8, 16, 16).requires_grad_()
    # A corner of the global channels depends on every pixel, but for what the ReLUs hold back.
    unit = torch.autograd.grad(layer.global_to_global.whole(image[:, :4])[0, :, 0, 0].sum(), image)
    assert bool((unit[0][:, :4].abs().amax(1) > 0).all())
    reach = torch.autograd.grad(layer.global_to_global(image)[0, :, 0, 0].sum(), image)[0]
    assert (reach.abs().amax(1) > 0).double().mean() > 0.9
    near = torch.autograd.grad(layer.local_to_local(image)[0, :, 0, 0].sum(), image)[0]
    assert not bool(near[:, :, 3:].any()) and not bool(near[:, :, :, 3:].any())


def test_the_fourier_unit_can_pass_low_frequencies_and_hold_back_high_ones() -> None:
    # ReLU passes coefficients by their sign, whatever their place in the image: with the identity
    # for the convolution a bright background passes and a fine pattern of the other sign does not.
    unit = FourierUnit(1, norm="none").double()
    with torch.no_grad():
        unit.mix.weight.copy_(torch.eye(2)[:, :, None, None])
    constant = torch.full((1, 1, 8, 8), 2.0, dtype=torch.float64)
    torch.testing.assert_close(unit(constant), constant)
    checks = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(4)
    stripes = -(checks[:, None] * torch.ones(8, dtype=torch.float64))[None, None]
    # (-1)^row with a minus: its one coefficient is negative and does not pass.
    torch.testing.assert_close(unit(stripes), torch.zeros_like(stripes))
    torch.testing.assert_close(unit(constant + stripes), constant)


def test_the_composite_encoder_makes_three_scales() -> None:
    encoder = CompositeEncoder((4, 8), (16, 24, 32))
    shapes = [tuple(f.shape) for f in encoder(torch.randn(2, 1, 64, 96))]
    assert shapes == [(2, 16, 8, 12), (2, 16, 8, 12), (2, 24, 4, 6)]
    fused, added, coarse = CascadeFusion((16, 24, 32))(torch.randn(1, 16, 8, 8))
    assert fused.shape == added.shape == (1, 16, 8, 8) and coarse.shape == (1, 24, 4, 4)


def test_split_attention_weighs_two_branches_with_weights_that_add_up_to_one() -> None:
    attention = SplitAttention(4).double()
    with torch.no_grad():
        # Equal branches: whatever the weights, the sum is the branch.
        attention.branches.weight[4:] = attention.branches.weight[:4]
        attention.branches.bias[4:] = attention.branches.bias[:4]
        # Both branches read their own half of the channels; make the halves equal, too.
    half = smooth(2, 2, 5, 5)
    image = torch.cat((half, half), 1)
    branch = attention.branches(image).relu()[:, :4]
    torch.testing.assert_close(attention(image), branch)


def test_resized_images_keep_their_mean_or_are_interpolated() -> None:
    image = smooth(1, 1, 8, 8)
    torch.testing.assert_close(resized(image, 4).mean(), image.mean())
    assert resized(image, 8) is image
    assert resized(image, 12).shape == (1, 1, 12, 12)


def features(whole: Tensor, local: Tensor) -> Features:
    """Features whose global and local correlations are those of these pairs of images."""
    return Features(whole[:1], whole[1:], local[:1], local[1:])


def correlated(by: float) -> Tensor:
    """Two images [2, 1, 8, 8] of correlation `by`."""
    first, second = smooth(2, 64)
    first = first - first.mean()
    second = second - second.mean()
    second = second - first * (first @ second) / (first @ first)
    other = by * first / first.norm() + math.sqrt(1 - by * by) * second / second.norm()
    return torch.stack((first, 3.0 * other)).reshape(2, 1, 8, 8)


@pytest.mark.parametrize("whole", [-1.0, -0.4, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("local", [-1.0, 0.0, 1.0])
def test_the_decomposition_loss_is_the_ratio_with_epsilon_in_the_denominator(
    whole: float, local: float
) -> None:
    given = features(correlated(whole), correlated(local))
    wanted = whole * whole / (local + 1.01)
    found = decomposition_loss(given)
    assert bool(found.isfinite())
    assert float(found) == pytest.approx(wanted, abs=1e-6 + 1e-6 * wanted / 0.01)


def test_the_decomposition_loss_has_derivatives_of_constant_features() -> None:
    flat = torch.zeros(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    loss = decomposition_loss(features(flat, correlated(0.2)))
    assert bool(torch.autograd.grad(loss, flat)[0].isfinite().all())


def test_both_combinations_of_scores_follow_their_formulas() -> None:
    settings = {"image": 32, "features": (8, 16, 16), "expansion": (3,), "score_side": 4}
    gated = CDReg(**settings).eval()
    literal = CDReg(**settings, combination="sigmoid_product").eval()
    literal.load_state_dict(gated.state_dict())
    moving, fixed = torch.rand(2, 3, 32, 32), torch.rand(1, 1, 32, 32)
    found = gated.features(moving, fixed)
    whole, trust = gated.global_score((found.global_fixed - found.global_moving).square())
    local, local_trust = gated.local_score((found.local_fixed - found.local_moving).square())
    torch.testing.assert_close(gated(moving, fixed), whole * trust + local * local_trust)
    torch.testing.assert_close(literal(moving, fixed), torch.sigmoid(whole) * torch.sigmoid(local))
    assert bool(((trust > 0) & (trust < 1)).all())


def test_uncertainty_weights_are_kendalls_near_zero_and_learn_the_log_of_the_losses() -> None:
    weights = UncertaintyWeights(2).double()
    first, second = (torch.tensor(v, dtype=torch.float64) for v in (2.0, 0.5))
    assert float(weights(first, second).detach()) == pytest.approx(0.5 * (2.0 + 0.5))
    optimiser = torch.optim.SGD(weights.parameters(), 0.2)
    for _ in range(500):
        optimiser.zero_grad()
        weights(first, second).backward()
        optimiser.step()
    # d/ds (L exp(-s) + s) = 0 at s = log L.
    torch.testing.assert_close(
        weights.log_variance.detach(), torch.tensor([2.0, 0.5]).double().log(), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("rate", [1e-2, 1.0, 100.0])
def test_uncertainty_weights_do_not_diverge_where_losses_are_negative(rate: float) -> None:
    weights = UncertaintyWeights(2, bound=3.0)
    optimiser = torch.optim.SGD(weights.parameters(), rate, momentum=0.9)
    for _ in range(2000):
        optimiser.zero_grad()
        total = weights(torch.tensor(1.0), torch.tensor(-0.7))
        total.backward()
        optimiser.step()
    sigma = (0.5 * weights.log_variance).exp()
    assert bool(sigma.isfinite().all()) and bool((sigma > 0).all())
    assert float(total.detach()) >= 0.5 * (-0.7 * math.exp(3.0) - 2 * 3.0) - 1e-3
    assert bool((weights.log_variance.abs() <= 3.0).all())
