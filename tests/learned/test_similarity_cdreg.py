"""CDreg and SOPI as similarities: shapes, sizes, derivatives through the projector, training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import drrkit
from drrkit import CArm, Stage, register, render, view_ap
from drrkit.phantoms import torso
from drrkit.registration import Descent, Levenberg
from drrkit.similarity import (
    NETWORKS,
    CDRegTask,
    LearnedSimilarity,
    PoseSampling,
    SimilarityTask,
    TrainingPatient,
    TrainingRecipe,
    build,
    construct,
    load_similarity,
    objective_loss,
    save_similarity,
)
from drrkit.training import train
from drrkit.volume import Volume

SIZE = 32
CAMERA = CArm(1020.0, (SIZE, SIZE), 280.0 / SIZE)
TINY: dict[str, dict[str, Any]] = {
    "cdreg-small": {"image": 32, "features": (8, 16, 32), "score_side": 4},
    "sopi-small": {"image": 32},
}


@pytest.fixture(scope="module")
def ct() -> Volume:
    return torso(10.0)


def tiny(name: str, seed: int = 0, **changes: Any) -> LearnedSimilarity:
    """A small network for images of 32 x 32."""
    configuration = NETWORKS[name].but(**TINY[name], **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return construct(configuration.kind, configuration.settings)


def plain(ct: Volume, camera: drrkit.Camera, world_to_camera: Tensor, seed: int) -> Tensor:
    """X-rays without noise: line integrals."""
    return render(ct.to_mu(), camera, world_to_camera)


def task_for(network: LearnedSimilarity, ct: Volume, kind: type = SimilarityTask, **recipe: Any):
    patient = TrainingPatient.of("torso", ct, network)
    sampling = PoseSampling(target=(15.0,) * 3 + (25.0,) * 3, moving=(25.0,) * 5 + (60.0,))
    options = TrainingRecipe(**{"schedule": "constant", "rate": 1e-3, **recipe})
    return kind(network, [patient], [], CAMERA, sampling, options, synthesise=plain)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_networks_of_the_published_size_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        cdreg, published = (construct("cdreg", {"norm": norm}) for norm in ("group", "batch"))
        sopi = construct("sopi", {})
    # 3D network, encoder, two Fourier and two invertible branches, two scores, two uncertainties.
    wanted = 9115 + 193752 + 2 * 62016 + 2 * 54528 + 2 * 176_700_418 + 2
    assert parameters(cdreg) == parameters(published) == wanted
    assert parameters(sopi) == 2 * 5349792


def test_small_networks_are_small() -> None:
    assert parameters(build("cdreg-small")) < 500_000
    assert parameters(build("sopi-small")) < 500_000


def test_features_of_cdreg_are_64_by_16_by_16_at_the_published_image_size() -> None:
    # The scores alone are large: pooled here, they do not change the features.
    network = construct("cdreg", {"score_side": 2, "expansion": (3,)}).eval()
    with torch.no_grad():
        found = network.features(torch.rand(2, 3, 256, 256), torch.rand(1, 1, 256, 256))
    assert {tuple(f.shape) for f in found[::2]} == {(2, 64, 16, 16)}
    assert {tuple(f.shape) for f in found[1::2]} == {(1, 64, 16, 16)}


@pytest.mark.parametrize("name", TINY)
def test_any_image_size_gives_one_number_a_view(name: str) -> None:
    network = tiny(name)
    channels = 2 if name.startswith("sopi") else 3
    for rows, cols in ((32, 32), (48, 40), (20, 28)):
        moving = torch.rand(3, channels, rows, cols)
        assert network(moving, torch.rand(1, 1, rows, cols)).shape == (3,)
        assert network(moving, torch.rand(3, 1, rows, cols)).shape == (3,)


@pytest.mark.parametrize("name", TINY)
def test_gain_and_offset_of_the_xray_do_not_matter(name: str) -> None:
    network = tiny(name).double()
    channels = 2 if name.startswith("sopi") else 3
    moving = torch.rand(2, channels, 32, 32, dtype=torch.float64)
    fixed = 5.0 * torch.rand(1, 1, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(
        network(moving, 30.0 * fixed + 4.0), network(moving, fixed), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", TINY)
def test_masked_pixels_do_not_matter(name: str) -> None:
    network = tiny(name)
    moving = torch.rand(2, 2 if name.startswith("sopi") else 3, 32, 32)
    fixed = torch.rand(1, 1, 32, 32)
    mask = torch.ones_like(fixed)
    mask[..., :8] = 0.0
    other = fixed + 7.0 * (1.0 - mask)
    torch.testing.assert_close(network(moving, fixed, mask), network(moving, other, mask))
    assert not torch.allclose(network(moving, fixed), network(moving, other))


@pytest.mark.parametrize("name", TINY)
def test_views_of_a_batch_are_judged_independently_in_training_mode(name: str, ct: Volume) -> None:
    network = tiny(name).train()
    volume = network.prepare(ct.to_mu())
    start = view_ap(volume, 800.0).expand(3, -1, -1).clone()
    start[:, 0, 3] += torch.tensor([0.0, 9.0, -20.0])
    pose = start.requires_grad_()
    fixed = render(ct.to_mu(), CAMERA, view_ap(ct, 790.0))
    value = network(render(volume, CAMERA, pose), fixed)
    alone = torch.cat([network(render(volume, CAMERA, p[None].detach()), fixed) for p in start])
    torch.testing.assert_close(value, alone, rtol=1e-4, atol=1e-5)
    for view in range(3):
        (gradient,) = torch.autograd.grad(value[view], pose, retain_graph=True)
        others = [other for other in range(3) if other != view]
        assert not bool(gradient[others].any()) and bool(gradient[view].any())


def smoothed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds every kink: at one, the pose gradient jumps, which finite differences would see."""
    soft = nn.functional.softplus
    monkeypatch.setattr(torch, "relu", lambda x: soft(x))
    monkeypatch.setattr(Tensor, "relu", lambda x: soft(x))
    monkeypatch.setattr(nn.LeakyReLU, "forward", lambda self, x: 0.1 * x + soft(x))
    monkeypatch.setattr(nn.ReLU6, "forward", lambda self, x: soft(x) - soft(x - 6.0))
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: soft(x))


@pytest.mark.parametrize("name", TINY)
def test_the_objective_is_differentiated_exactly_through_network_and_projector(
    name: str, ct: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoothed(monkeypatch)
    network = tiny(name).double()
    task = task_for(network, replace(ct, values=ct.values.double()), batch=1)
    patient, theta, target, xray = task.batch(0, 0)
    xray = xray.double()

    def objective() -> Tensor:
        similarity = task.similarity(patient, theta, xray)
        return objective_loss("direction", similarity, theta, target)

    weights = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(objective(), weights, allow_unused=True)
    random = torch.Generator().manual_seed(2)
    pushes = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in weights]
    pairs = zip(gradients, pushes, strict=True)
    slope = sum(float((g * push).sum()) for g, push in pairs if g is not None)
    step = 1e-6

    def pushed(by: float) -> float:
        with torch.no_grad():
            for weight, push in zip(weights, pushes, strict=True):
                weight += by * push
        return float(objective().detach())

    difference = (pushed(step) - pushed(-2 * step)) / (2 * step)
    assert abs(slope) > 1e-3
    assert slope == pytest.approx(difference, rel=1e-4), (slope, difference)


@pytest.mark.parametrize("name", TINY)
def test_networks_train_under_autocast(name: str, ct: Volume) -> None:
    network = tiny(name)
    task = task_for(network, ct, CDRegTask if name.startswith("cdreg") else SimilarityTask, batch=2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.losses(0, 0, 1)["loss"]
        loss.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert loss.isfinite() and all(bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients)


def test_sopi_compares_where_the_bones_are_projected(ct: Volume) -> None:
    network = tiny("sopi-small")
    volume = network.prepare(ct.to_mu())
    assert volume.values.shape[0] == 2
    assert set(volume.values[1].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(volume.values[1] > 0, volume.values[0] > 0)
    moving = render(volume, CAMERA, view_ap(ct, 800.0))
    fixed = render(ct.to_mu(), CAMERA, view_ap(ct, 810.0))
    # A brighter segmentation changes nothing, its shape does.
    brighter = torch.cat((moving[:, :1], 3.0 * moving[:, 1:]), 1)
    torch.testing.assert_close(network(brighter, fixed), network(moving, fixed))
    other = torch.cat((moving[:, :1], moving[:, 1:].roll(9, -1)), 1)
    assert not torch.allclose(network(other, fixed), network(moving, fixed), rtol=1e-3)


def test_wrong_settings_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="combination: expected one of"):
        construct("cdreg", {"combination": "sum", "score_side": 1})
    with pytest.raises(ValueError, match="features: expected the last to be a multiple of 16"):
        construct("cdreg", {"features": (8, 20), "score_side": 1})
    with pytest.raises(ValueError, match="image: expected a multiple of 32"):
        construct("sopi", {"image": 48})
    with pytest.raises(ValueError, match="moving: expected"):
        tiny("cdreg-small")(torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32))


@pytest.mark.parametrize("name", TINY)
def test_files_bring_networks_back(name: str, tmp_path: Path) -> None:
    network = tiny(name, seed=5)
    save_similarity(network, tmp_path / "network.pt", seen=3)
    found = load_similarity(tmp_path / "network.pt")
    moving = torch.rand(1, 2 if name.startswith("sopi") else 3, 32, 32)
    fixed = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(found(moving, fixed), network.eval()(moving, fixed))


@pytest.mark.parametrize("name", TINY)
def test_register_takes_them_as_any_other_similarity(name: str, ct: Volume) -> None:
    network = tiny(name).eval().requires_grad_(False)
    truth = view_ap(ct, 800.0)
    start = truth.clone()
    start[:, 0, 3] += 15.0
    stages = [
        Stage(network, optimiser=Descent(0.1, final_step=0.01), iterations=6, mm=True),
        Stage("gradient_ncc", optimiser=Levenberg()),
    ]
    fixed = render(ct.to_mu(), CAMERA, truth)
    found = register(ct.to_mu(), CAMERA, fixed, start, stages=stages)
    first = found.history[0]
    assert first.loss.shape == (6, 1) and bool(first.loss.isfinite().all())
    moving = render(network.prepare(ct.to_mu()), CAMERA, start)
    torch.testing.assert_close(first.loss[0], network(moving, fixed).double(), rtol=1e-4, atol=1e-5)
    assert float(first.loss.min()) < float(first.loss[0])


def test_a_step_of_training_changes_all_weights_and_resumes(tmp_path: Path, ct: Volume) -> None:
    def trained(folder: Path, *steps: int) -> dict[str, Tensor]:
        network = tiny("cdreg-small")
        task = task_for(network, ct, CDRegTask, batch=2)
        for count in steps:
            options = {"validate_every": 9, "save_every": 1, "progress": False}
            result = train(task, folder, steps=count, clip_norm=10.0, **options)
            assert set(result.losses) >= {"loss", "approach", "decomposition"}
        return network.state_dict()

    whole, parts = trained(tmp_path / "whole", 3), trained(tmp_path / "parts", 1, 3)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    fresh = tiny("cdreg-small").state_dict()
    same = [name for name in fresh if torch.equal(fresh[name], whole[name])]
    assert not same, same


@pytest.mark.slow
@pytest.mark.parametrize("name, kind", [("cdreg-small", CDRegTask), ("sopi-small", SimilarityTask)])
def test_overfitting_one_phantom_brings_the_direction_loss_from_4_below_1(
    name: str, kind: type, ct: Volume
) -> None:
    network = tiny(name).train()
    task = task_for(network, ct, kind, rate=2e-3)
    # The same four pairs at every step.
    batch = task.batch(0, 0)
    task.batch = lambda step, rank: batch
    optimiser = task.optimiser()
    found = []
    for step in range(70):
        losses = task.losses(step, 0, 1)
        optimiser.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        found.append(float(losses.get("approach", losses["loss"]).detach()))
    assert found[0] > 2.5
    assert max(found[-10:]) < 1.0, found[::10]
