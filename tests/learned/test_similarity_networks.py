"""Learned similarities: sizes, volumes, images, derivatives, training, files, use in register()."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from drrkit import CArm, Stage, Volume, register, view_ap, volume_center
from drrkit.phantoms import random_anatomy, torso
from drrkit.projector import render
from drrkit.registration import Descent, Directions, Optimiser, TrustRegion
from drrkit.similarity import (
    MEASURED,
    NETWORKS,
    SAMPLINGS,
    PoseRegressor,
    PoseSampling,
    SimilarityTask,
    TrainingPatient,
    TrainingRecipe,
    bone_center,
    build,
    construct,
    load_similarity,
    objective_loss,
    save_similarity,
)
from drrkit.similarity.networks import VolumeExpansion, _convolved, scaled
from drrkit.similarity.prost import CrossViT
from drrkit.training import drawn_integer, generator, train
from drrkit.volume import water_attenuation
from tests.support.small_networks import (
    CAMERA,
    REGRESSORS,
    SIMILARITIES,
    ct,
    image_pair,
    parameters,
    shaken,
    task_for,
    tiny,
)

# ---- sizes


CROSSVIT_9 = {
    "images": (240, 224),
    "patches": (12, 16),
    "dims": (128, 256),
    "heads": (4, 4),
    "depth": (1, 3),
    "stages": 3,
    "mlp": (3.0, 3.0),
}
CROSSVIT_TINY = {"dims": (96, 192), "heads": (3, 3), "depth": (1, 4), "mlp": (4.0, 4.0)}


def test_networks_of_the_published_size_have_the_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        prost, sopi = construct("prost-transformer", {}), construct("sopi", {})
        cdreg, published = (construct("cdreg", {"norm": norm}) for norm in ("group", "batch"))
    assert parameters(prost.expansion) == 8571
    assert parameters(VolumeExpansion((4, 8, 16, 16, 8, 3))) == 15499  # the 2020 paper's figure
    # With ImageNet's 3 channels and 1000 classes: 8.6 and 7.0 million in CrossViT's paper.
    assert parameters(CrossViT(3, 1000, **CROSSVIT_9)) == 8_553_296
    assert parameters(CrossViT(3, 1000, **(CROSSVIT_9 | CROSSVIT_TINY))) == 7_014_800
    assert parameters(prost.transformer) == parameters(CrossViT(4, 1, **CROSSVIT_9))
    # 3D network, encoder, two Fourier and two invertible branches, two scores, two uncertainties.
    wanted = 9115 + 193752 + 2 * 62016 + 2 * 54528 + 2 * 176_700_418 + 2
    assert parameters(cdreg) == parameters(published) == wanted
    assert parameters(sopi) == 2 * 5349792
    assert all(parameters(build(name)) < 700_000 for name in SIMILARITIES)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_any_image_size_gives_one_number_a_view(name: str) -> None:
    network = tiny(name)
    for size in ((32, 32), (48, 40), (20, 28)):
        moving, fixed = image_pair(network, 3, size)
        found = network(moving, fixed)
        assert found.shape == (3,)
        assert torch.allclose(network(moving, fixed[:1])[0], found[0], atol=1e-5)


def test_features_have_their_published_shapes() -> None:
    encoder = build("prost-2020").moving_encoder
    assert encoder(torch.rand(1, 3, 128, 128)).shape == (1, 64, 16, 16)
    prost = build("prost")
    assert prost(torch.rand(1, 3, 128, 128), torch.rand(1, 1, 128, 128)).shape == (1,)
    # CDreg's scores alone are large: pooled here, they do not change the features.
    network = construct("cdreg", {"score_side": 2, "expansion": (3,)}).eval()
    with torch.no_grad():
        found = network.features(torch.rand(2, 3, 256, 256), torch.rand(1, 1, 256, 256))
    assert {tuple(f.shape) for f in found[::2]} == {(2, 64, 16, 16)}
    assert {tuple(f.shape) for f in found[1::2]} == {(1, 64, 16, 16)}


def test_building_repeats_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (build("prost-2020-small", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


# ---- volumes


def test_a_silent_3d_network_repeats_the_volume() -> None:
    network = build("prost-2020-small")
    for weight in network.expansion.parameters():
        nn.init.zeros_(weight)
    values = torch.rand(6, 7, 8)
    assert torch.allclose(network.channels(values), values.expand(3, 6, 7, 8))
    without = construct("prost-encoder", {"expansion": (3,)})
    assert torch.allclose(without.channels(values), values.expand(3, 6, 7, 8))
    assert parameters(without.expansion) == 0


@pytest.mark.parametrize("depth", [4, 7, 10])
def test_convolving_halves_is_convolving_the_whole(depth: int) -> None:
    layer = nn.Conv3d(2, 3, 3, padding=1).double()
    features = torch.rand(1, 2, depth, 5, 6, dtype=torch.float64, requires_grad=True)
    found, expected = _convolved(layer, features), layer(features)
    assert torch.allclose(found, expected, atol=1e-12)
    weight = torch.rand_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), features)[0] for y in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-12)


def test_the_moving_volume_is_bone_on_the_networks_voxels() -> None:
    network = build("prost-2020-small")
    scene = torso(12.0).to_mu()
    moving = network.moving(scene)
    hu = (scene.values / water_attenuation(70.0) - 1.0) * 1000.0
    assert float(moving.values[hu < 149.0].abs().max()) == 0.0
    assert float(moving.values[hu > 151.0].min()) > 0.0
    inside = hu > 151.0
    expected = water_attenuation(70.0) * (hu[inside] + 130.0) / 1000.0
    assert torch.allclose(moving.values[inside], expected, atol=1e-6)
    whole = construct("prost-encoder", {"threshold_hu": None}).moving(scene)
    assert int((whole.values > 0).sum()) > 3 * int((moving.values > 0).sum())
    coarse = construct("prost-encoder", {"voxel_mm": 20.0})
    assert coarse.moving(scene).spacing == (20.0, 20.0, 20.0)
    # What registration projects is what training projects.
    prepared = network.prepare(scene)
    assert prepared.values.shape[0] == 3 and not prepared.values.requires_grad
    assert torch.equal(prepared.values, network.channels(moving.values).detach())


def test_scenes_that_cannot_be_prepared_are_refused() -> None:
    network = build("prost-2020-small")
    with pytest.raises(TypeError, match=r"scene: expected a drrkit\.Volume"):
        network.prepare(torch.rand(3, 3, 3))
    with pytest.raises(ValueError, match="to_mu"):
        network.prepare(torso(20.0))
    several = Volume(torch.rand(2, 3, 3, 3), (1.0, 1.0, 1.0), unit="mu")
    with pytest.raises(ValueError, match="one channel"):
        network.prepare(several)


def test_sopi_compares_where_the_bones_are_projected() -> None:
    network = tiny("sopi-small")
    volume = network.prepare(ct().to_mu())
    assert volume.values.shape[0] == 2
    assert set(volume.values[1].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(volume.values[1] > 0, volume.values[0] > 0)
    moving = render(volume, CAMERA, view_ap(ct(), 800.0))
    fixed = render(ct().to_mu(), CAMERA, view_ap(ct(), 810.0))
    # A brighter segmentation changes nothing, its shape does.
    brighter = torch.cat((moving[:, :1], 3.0 * moving[:, 1:]), 1)
    torch.testing.assert_close(network(brighter, fixed), network(moving, fixed))
    other = torch.cat((moving[:, :1], moving[:, 1:].roll(9, -1)), 1)
    assert not torch.allclose(network(other, fixed), network(moving, fixed), rtol=1e-3)


# ---- images


@pytest.mark.parametrize("how", ["none", "unit", "standard"])
def test_scales_ignore_masked_pixels(how: str) -> None:
    image = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :2] = 0.0
    other = image.clone()
    other[..., :2] = 50.0
    assert torch.allclose(scaled(image, how, mask), scaled(other, how, mask))
    assert float(scaled(other, how, mask)[..., :2].abs().max()) == 0.0


def test_scales_do_what_they_say() -> None:
    image = 5.0 + 3.0 * torch.rand(2, 3, 8, 8, dtype=torch.float64)
    unit, standard = scaled(image, "unit"), scaled(image, "standard")
    assert torch.allclose(unit.amax((1, 2, 3)), torch.ones(2).double())
    assert torch.allclose(unit.amin((1, 2, 3)), torch.zeros(2).double())
    assert torch.allclose(standard.mean((1, 2, 3)), torch.zeros(2).double(), atol=1e-12)
    assert torch.allclose(standard.square().mean((1, 2, 3)), torch.ones(2).double(), atol=1e-4)
    assert bool(scaled(torch.zeros(1, 1, 4, 4), "standard").isfinite().all())
    assert bool(scaled(torch.zeros(1, 1, 4, 4), "unit").isfinite().all())


@pytest.mark.parametrize("name", SIMILARITIES)
def test_masked_pixels_gain_and_offset_of_the_xray_do_not_matter(name: str) -> None:
    network = tiny(name).double()
    moving, fixed = image_pair(network, 2)
    mask = torch.ones_like(fixed[:1])
    mask[..., :8] = 0.0
    spoilt = [image.clone() for image in (moving, fixed)]
    spoilt[0][..., :8] += 7.0
    spoilt[1][..., :8] -= 3.0
    found = network(moving, fixed, mask)
    torch.testing.assert_close(network(*spoilt, mask), found)
    assert not torch.allclose(network(*spoilt), network(moving, fixed))
    brighter = network(moving, 30.0 * fixed + 4.0)
    torch.testing.assert_close(brighter, network(moving, fixed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_every_image_is_judged_by_itself_in_training_too(name: str) -> None:
    network = tiny(name).double().train()
    moving, fixed = image_pair(network, 3)
    moving.requires_grad_()
    together = network(moving, fixed)
    apart = torch.cat([network(moving[i : i + 1], fixed[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, apart)
    (gradient,) = torch.autograd.grad(together[0], moving)
    assert float(gradient[1:].abs().max()) == 0.0 and float(gradient[0].abs().max()) > 0.0


def test_images_and_settings_that_do_not_fit_are_refused() -> None:
    network = build("prost-2020-small")
    for channels, (views, size), message in (
        (1, (1, 32), "moving: expected"),
        (3, (2, 32), "fixed: expected"),
        (3, (1, 16), r"fixed: expected \[3 or 1, 1, 32, 32\]"),
    ):
        with pytest.raises(ValueError, match=message):
            network(torch.rand(3, channels, 32, 32), torch.rand(views, 1, size, size))
    with pytest.raises(ValueError, match="patches: expected divisors"):
        CrossViT(1, 1, **{**CROSSVIT_9, "images": (30, 32), "patches": (8, 8)})
    for kind, settings, message in (
        ("cdreg", {"combination": "sum"}, "combination: expected one of"),
        ("cdreg", {"features": (8, 20)}, "features: expected the last to be a multiple of 16"),
        ("sopi", {"image": 48}, "image: expected a multiple of 32"),
        ("resnet", {}, "kind: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            construct(kind, settings)
    with pytest.raises(ValueError, match="name: expected one of"):
        build("resnet")


# ---- derivatives


def smoothed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds every kink: at one, the pose gradient jumps, which finite differences would see."""
    soft = nn.functional.softplus
    monkeypatch.setattr(torch, "relu", lambda x: soft(x))
    monkeypatch.setattr(Tensor, "relu", lambda x: soft(x))
    monkeypatch.setattr(nn.LeakyReLU, "forward", lambda self, x: 0.1 * x + soft(x))
    monkeypatch.setattr(nn.ReLU6, "forward", lambda self, x: soft(x) - soft(x - 6.0))
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: soft(x))


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("objective", ["direction", "geodesic", "mse"])
def test_the_loss_has_the_derivative_that_differences_give(
    name: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the 3D network, the projector twice, the 2D network and the objective."""
    smoothed(monkeypatch)
    network = tiny(name).double()
    coarse = torso(18.0, dtype=torch.float64)
    task = task_for(network, coarse, batch=1)
    patient, theta, target, xray = task.batch(0, 0)
    xray = xray.double()

    def loss() -> Tensor:
        return objective_loss(objective, task.similarity(patient, theta, xray), theta, target)

    weights = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    random = torch.Generator().manual_seed(2)
    pushes = [torch.randn(p.shape, generator=random, dtype=p.dtype) for p in weights]
    pairs = zip(gradients, pushes, strict=True)
    slope = sum(float((g * push).sum()) for g, push in pairs if g is not None)
    step = 1e-6

    def pushed(by: float) -> float:
        with torch.no_grad():
            for weight, push in zip(weights, pushes, strict=True):
                weight += by * push
        return float(loss().detach())

    difference = (pushed(step) - pushed(-2 * step)) / (2 * step)
    assert abs(slope) > 1e-8
    assert slope == pytest.approx(difference, rel=1e-4), (slope, difference)


# ---- training


@pytest.mark.parametrize("name", [*SIMILARITIES, *REGRESSORS])
def test_networks_train_under_autocast(name: str) -> None:
    network = shaken(tiny(name))
    with torch.autocast("cpu", torch.bfloat16):
        loss = task_for(network, ct(), batch=2).losses(0, 0, 1)["loss"]
    loss.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert loss.isfinite() and all(bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients)


METRICS = {"loss", "start_mtre", "mtre", "median_mtre"}


@pytest.mark.parametrize("name", ["cdreg-small", *REGRESSORS])
def test_training_resumes_bit_for_bit_and_changes_the_weights(name: str, tmp_path: Path) -> None:
    def trained(folder: Path, *steps: int) -> dict[str, Tensor]:
        network = tiny(name)
        task = task_for(network, ct(), batch=2, validation_pairs=2)
        for count in steps:
            options = {"validate_every": 9, "save_every": 1, "progress": False}
            result = train(task, folder, steps=count, clip_norm=10.0, **options)
            if isinstance(network, PoseRegressor):
                assert set(result.metrics) == METRICS
            else:
                assert set(result.losses) >= {"loss", "approach", "decomposition"}
        return network.state_dict()

    whole, parts = trained(tmp_path / "whole", 3), trained(tmp_path / "parts", 1, 3)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    fresh = tiny(name).state_dict()
    same = [key for key in fresh if torch.equal(fresh[key], whole[key])]
    # What precedes a last layer of zeros has no gradient at first; a buffer never changes.
    assert not same if name == "cdreg-small" else len(same) < len(fresh)


def test_losses_depend_on_seed_step_and_rank_only() -> None:
    task = task_for(tiny("prost-2020-small"), ct(), batch=2)
    first, again = (float(task.losses(3, 0, 2)["loss"].detach()) for _ in range(2))
    others = [float(task.losses(*at)["loss"].detach()) for at in ((4, 0, 2), (3, 1, 2))]
    assert first == again and first not in others


def test_a_patient_is_not_trained_and_validated_on() -> None:
    network = tiny("prost-2020-small")
    patient = TrainingPatient.of("torso", ct(), network)
    arguments = (CAMERA, SAMPLINGS["narrow"], TrainingRecipe())
    with pytest.raises(ValueError, match="trained on, too"):
        SimilarityTask(network, [patient], [patient], *arguments)
    with pytest.raises(ValueError, match="patients: expected at least one"):
        SimilarityTask(network, [], [patient], *arguments)
    with pytest.raises(ValueError, match="objective: expected one of"):
        TrainingRecipe(objective="cosine")


def off_centre_ct() -> Volume:
    """Soft tissue of 480 mm with a ball of bone, label 2, 190 mm from its centre."""
    axis = 12.0 * (torch.arange(40) - 19.5)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    ball = x**2 + y**2 + (z + 190.0) ** 2 < 40.0**2
    hu = torch.where(ball, 900.0, 0.0)
    return Volume(hu, (12.0,) * 3, (5.0, -9.0, 30.0), labels=2 * ball.to(torch.uint8))


def test_training_centres_views_on_the_bone_that_moves() -> None:
    ct, network = off_centre_ct(), build("prost-2020-small")
    camera, recipe = CArm(1020.0, (32, 32), 8.7), TrainingRecipe(batch=2)
    patient = TrainingPatient.of("a", ct, network, bones=[2])
    middle = bone_center(patient.moving)
    inside = (ct.labels == 2).nonzero().flip(-1).double()
    assert torch.allclose(middle, ct.index_to_world(inside).mean(0), atol=6.0)
    reference = patient.chart.world_to_camera(torch.zeros(1, 6))[0]
    seen = reference[:3, :3] @ middle + reference[:3, 3]
    assert torch.allclose(seen, torch.tensor([0.0, 0.0, 800.0]).double(), atol=1e-9)
    SimilarityTask(network, [patient], [], camera, SAMPLINGS["uniform"], recipe)
    theta = torch.cat(SAMPLINGS["uniform"].draw(patient.chart, 64, torch.Generator()))
    aside = TrainingPatient.of("b", ct, network, bones=[2], center=volume_center(ct))
    assert float(patient.share_in_view(camera, theta).mean()) > 0.75
    assert float(aside.share_in_view(camera, theta).mean()) < 0.10
    still = torch.zeros(1, 6, dtype=torch.float64)
    assert float(patient.share_in_view(camera, still)) == 1.0
    with pytest.raises(ValueError, match=r"patients: \d % of the bone of 'b' .* at least 10 %"):
        SimilarityTask(network, [patient], [aside], camera, SAMPLINGS["uniform"], recipe)
    narrow = CArm(1020.0, (32, 32), 2.5)
    with pytest.warns(UserWarning, match=r"only \d\d % of the bone of 'a' is in view"):
        SimilarityTask(network, [patient], [], narrow, SAMPLINGS["uniform"], recipe)
    with pytest.raises(ValueError, match="got none in 'c'"):
        TrainingPatient.of("c", replace(ct, values=ct.values.clamp_max(0.0)), network)


def test_an_example_shows_the_x_ray_and_the_bone_at_both_poses() -> None:
    task = task_for(tiny("prost-2020-small"), ct())
    images = task.example(3)
    assert images.shape == (3, 3, *CAMERA.size)
    patient = task.patients[0]
    draw = generator(0)
    drawn_integer(draw, 1)  # which patient
    theta, target, xray = task.views(patient, 3, draw, randomised=True)
    for channel, pose in ((1, target), (2, theta)):
        bone = render(patient.moving, task.camera, patient.chart.world_to_camera(pose))
        assert torch.allclose(images[:, channel], bone[:, 0].to(images), atol=1e-5)
    assert torch.equal(images[:, 0], xray[:, 0])


def test_validation_is_the_same_for_the_same_weights() -> None:
    task = task_for(tiny("prost-2020-small").eval(), ct(), validation_pairs=3)
    task.held_out = [task.patients[0]._replace(name="other")]
    found, again = task.validate(), task.validate()
    assert found == again
    assert found["loss"] == pytest.approx(4 - 4 * found["cosine"], abs=1e-6)
    assert set(found) == {"loss", "cosine", "cosine_rotation", "cosine_translation"}


# ---- files


@pytest.mark.parametrize("name", [*SIMILARITIES, *REGRESSORS])
def test_a_file_gives_the_network_back(name: str, tmp_path: Path) -> None:
    network = shaken(tiny(name, seed=5)).eval()
    save_similarity(network, tmp_path / "net.pt", trained_on="phantoms")
    loaded = load_similarity(tmp_path / "net.pt")
    if isinstance(network, PoseRegressor):
        volume = network.prepare(ct().to_mu())
        moving = render(volume, CAMERA, view_ap(ct(), 800.0))
        pair = moving, moving.flip(-1), volume
        found, wanted = loaded.predict(*pair), network.predict(*pair)
    else:
        found, wanted = (one(*image_pair(network, 2)) for one in (loaded, network))
    assert torch.equal(found, wanted) and loaded.notes == {"trained_on": "phantoms"}
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    save_similarity(loaded, tmp_path / "again.pt")
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["again.pt", "net.pt"]


def test_networks_that_nobody_trained_are_not_offered_as_measured() -> None:
    assert set(SIMILARITIES) < set(MEASURED) < set(NETWORKS)
    assert all(name.endswith("-small") for name in MEASURED)
    assert not {"prost-tiny", "prost-medium", "prost-15", "prost-18"} & set(NETWORKS)


# ---- use


@pytest.mark.parametrize(
    "name, optimiser",
    [
        *((name, Descent(0.1, final_step=0.01)) for name in SIMILARITIES),
        ("prost-2020-small", Directions()),
        ("prost-2020-small", TrustRegion()),
    ],
)
def test_a_network_is_a_similarity_like_any_other_in_register(
    name: str, optimiser: Optimiser
) -> None:
    network = tiny(name).eval().requires_grad_(False)
    scene, truth = ct().to_mu(), view_ap(ct(), 800.0)
    start = truth.clone()
    start[:, 0, 3] += 15.0
    stages = [Stage(network, optimiser=optimiser, iterations=6, mm=True), Stage("gradient_ncc")]
    fixed = render(scene, CAMERA, truth)
    found = register(scene, CAMERA, fixed, start, stages=stages)
    first = found.history[0]
    assert first.similarity == type(network).__name__
    assert bool(found.world_to_camera.isfinite().all()) and bool(first.loss.isfinite().all())
    own = network(render(network.prepare(scene), CAMERA, start), fixed).double()
    torch.testing.assert_close(first.loss[0], own, rtol=1e-4, atol=1e-5)
    assert float(first.loss.min()) < float(first.loss[0])


def descend(task: SimilarityTask, steps: int) -> list[float]:
    """The losses of so many steps."""
    optimiser = task.optimiser()
    schedule = task.schedule(optimiser)
    found = []
    for step in range(steps):
        losses = task.losses(step, 0, 1)
        optimiser.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), 10.0)
        optimiser.step()
        if schedule is not None:
            schedule.step()
        found.append(float(losses.get("approach", losses["loss"]).detach()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cdreg-small", "sopi-small"])
def test_overfitting_four_pairs_brings_the_direction_loss_from_4_below_1(name: str) -> None:
    task = task_for(tiny(name).train(), ct(), rate=2e-3)
    batch = task.batch(0, 0)
    task.batch = lambda step, rank: batch
    found = descend(task, 70)
    assert found[0] > 2.5
    assert max(found[-10:]) < 1.0, found[::10]


@pytest.mark.slow
def test_gradients_point_on_patients_never_trained_on_and_better_than_by_regression() -> None:
    """The miniature of the study prost_small: cosines on held-out pelves, two objectives."""
    sampling = PoseSampling(
        (15.0,) * 3 + (25.0,) * 3, (30.0,) * 3 + (50.0,) * 3, about_target=True, moving_normal=False
    )
    camera = CArm(1020.0, (32, 32), 8.7)
    cts = [random_anatomy("pelvis", seed, shape=24) for seed in range(16)]
    found = {}
    for objective in ("direction", "mse"):
        network = build("prost-2020-small", 0)
        patients = [
            TrainingPatient.of(f"pelvis {n}", ct, network, bones=(2,)) for n, ct in enumerate(cts)
        ]
        recipe = TrainingRecipe(objective, batch=8, rate=3e-3, steps=100)
        task = SimilarityTask(network, patients[4:], patients[:4], camera, sampling, recipe)
        descend(task, 100)
        found[objective] = task.validate()
    direction, mse = found["direction"], found["mse"]
    assert direction["cosine_rotation"] > 0.5 and direction["cosine_translation"] > 0.5
    assert direction["cosine"] > max(mse["cosine"], 0.6)
