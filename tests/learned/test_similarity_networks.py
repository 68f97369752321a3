"""The networks of learned similarities: sizes, derivatives, files, preparing a volume."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
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
    LearnedSimilarity,
    PoseSampling,
    SimilarityTask,
    TrainingPatient,
    TrainingRecipe,
    bone_center,
    build,
    construct,
    load_similarity,
    save_similarity,
)
from drrkit.similarity.networks import VolumeExpansion, _convolved, scaled
from drrkit.similarity.prost import CrossViT
from drrkit.training import drawn_integer, generator
from drrkit.volume import water_attenuation

SMALL = ("prost-small", "prost-2020-small")
TINY = {
    "prost-encoder": {"expansion": (2, 2), "widths": (4, 8, 4), "moving_scale": "standard"},
    "prost-transformer": {
        "expansion": (2, 2),
        "images": (16, 16),
        "patches": (4, 8),
        "dims": (8, 12),
        "heads": (2, 2),
        "depth": (1, 1),
        "stages": 1,
        "mlp": (2.0, 2.0),
    },
}


@cache
def small_torso() -> Volume:
    return torso(18.0)


def weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=random)


# ---- sizes


def test_the_3d_network_has_its_published_size() -> None:
    assert weights(build("prost").expansion) == 8571
    assert weights(VolumeExpansion((4, 8, 16, 16, 8, 3))) == 15499  # as in the 2020 paper's figure


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


@pytest.mark.parametrize(
    "settings, expected",
    [(CROSSVIT_9, 8_553_296), (CROSSVIT_9 | CROSSVIT_TINY, 7_014_800)],
)
def test_crossvit_has_the_published_number_of_weights(settings: dict, expected: int) -> None:
    """With ImageNet's 3 channels and 1000 classes: 8.6 and 7.0 million in the paper."""
    assert weights(CrossViT(3, 1000, **settings)) == expected
    prost = build("prost").transformer
    assert weights(prost) == weights(CrossViT(4, 1, **CROSSVIT_9))


@pytest.mark.parametrize("name", SMALL)
def test_the_small_networks_are_small(name: str) -> None:
    assert weights(build(name)) < 700_000


@pytest.mark.parametrize("name", ["prost-small", "prost-2020-small", "prost-2020"])
def test_a_network_gives_one_number_an_image(name: str) -> None:
    network = build(name)
    channels = network.channels(torch.rand(10, 9, 8))
    assert channels.shape == (3, 10, 9, 8)
    moving, fixed = images(2, 3, 64), images(2, 1, 64)
    assert network(moving, fixed).shape == (2,)
    assert torch.allclose(network(moving, fixed[:1])[0], network(moving, fixed)[0], atol=1e-5)


def test_encoder_features_have_their_published_shape() -> None:
    encoder = build("prost-2020").moving_encoder
    assert encoder(images(1, 3, 128)).shape == (1, 64, 16, 16)


def test_the_published_size_reads_images_of_any_size() -> None:
    network = build("prost")
    assert network(images(1, 3, 128), images(1, 1, 128)).shape == (1,)


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
    assert weights(without.expansion) == 0


@pytest.mark.parametrize("depth", [4, 7, 10])
def test_convolving_halves_is_convolving_the_whole(depth: int) -> None:
    layer = nn.Conv3d(2, 3, 3, padding=1).double()
    features = torch.rand(1, 2, depth, 5, 6, dtype=torch.float64, requires_grad=True)
    found, expected = _convolved(layer, features), layer(features)
    assert torch.allclose(found, expected, atol=1e-12)
    weight = torch.rand_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), features)[0] for y in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-12)


def test_the_moving_volume_is_bone_only() -> None:
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


def test_the_moving_volume_has_the_networks_voxels() -> None:
    network = construct("prost-encoder", {"voxel_mm": 20.0})
    assert network.moving(torso(12.0).to_mu()).spacing == (20.0, 20.0, 20.0)


def test_a_prepared_volume_is_what_training_projects() -> None:
    network = build("prost-2020-small")
    scene = torso(12.0).to_mu()
    prepared = network.prepare(scene)
    assert prepared.values.shape[0] == 3 and not prepared.values.requires_grad
    expected = network.channels(network.moving(scene).values)
    assert torch.equal(prepared.values, expected.detach())


def test_scenes_that_cannot_be_prepared_are_refused() -> None:
    network = build("prost-2020-small")
    with pytest.raises(TypeError, match="scene: expected a Volume"):
        network.prepare(torch.rand(3, 3, 3))
    with pytest.raises(ValueError, match="to_mu"):
        network.prepare(torso(20.0))
    several = Volume(torch.rand(2, 3, 3, 3), (1.0, 1.0, 1.0), unit="mu")
    with pytest.raises(ValueError, match="one channel"):
        network.prepare(several)


# ---- images


@pytest.mark.parametrize("how", ["none", "unit", "standard"])
def test_scales_ignore_masked_pixels(how: str) -> None:
    image = images(2, 3, 8).double()
    mask = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    mask[..., :2] = 0.0
    other = image.clone()
    other[..., :2] = 50.0
    assert torch.allclose(scaled(image, how, mask), scaled(other, how, mask))
    assert float(scaled(other, how, mask)[..., :2].abs().max()) == 0.0


def test_scales_do_what_they_say() -> None:
    image = 5.0 + 3.0 * images(2, 3, 8).double()
    unit, standard = scaled(image, "unit"), scaled(image, "standard")
    assert torch.allclose(unit.amax((1, 2, 3)), torch.ones(2).double())
    assert torch.allclose(unit.amin((1, 2, 3)), torch.zeros(2).double())
    assert torch.allclose(standard.mean((1, 2, 3)), torch.zeros(2).double(), atol=1e-12)
    assert torch.allclose(standard.square().mean((1, 2, 3)), torch.ones(2).double(), atol=1e-4)
    assert bool(scaled(torch.zeros(1, 1, 4, 4), "standard").isfinite().all())
    assert bool(scaled(torch.zeros(1, 1, 4, 4), "unit").isfinite().all())


@pytest.mark.parametrize("kind", list(TINY))
def test_masked_pixels_do_not_count(kind: str) -> None:
    network = construct(kind, TINY[kind]).double()
    moving, fixed = images(1, 2, 16).double(), images(1, 1, 16, 1).double()
    mask = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    mask[..., 8:] = 0.0
    other_moving, other_fixed = moving.clone(), fixed.clone()
    other_moving[..., 8:] += 7.0
    other_fixed[..., 8:] -= 3.0
    found = network(moving, fixed, mask)
    assert torch.allclose(found, network(other_moving, other_fixed, mask))
    assert not torch.allclose(found, network(other_moving, other_fixed))


def test_images_that_do_not_fit_are_refused() -> None:
    network = build("prost-2020-small")
    with pytest.raises(ValueError, match="moving: expected"):
        network(images(1, 1, 32), images(1, 1, 32))
    with pytest.raises(ValueError, match="fixed: expected"):
        network(images(3, 3, 32), images(2, 1, 32))
    with pytest.raises(ValueError, match=r"fixed: expected \[1 or 1, 1, 32, 32\]"):
        network(images(1, 3, 32), images(1, 1, 16))
    with pytest.raises(ValueError, match="patches: expected divisors"):
        CrossViT(1, 1, **{**CROSSVIT_9, "images": (30, 32), "patches": (8, 8)})


@pytest.mark.parametrize("kind", list(TINY))
def test_every_image_is_judged_by_itself_in_training_too(kind: str) -> None:
    network = construct(kind, TINY[kind]).double().train()
    moving = images(3, 2, 16).double().requires_grad_()
    fixed = images(3, 1, 16, 1).double()
    together = network(moving, fixed)
    apart = torch.cat([network(moving[i : i + 1], fixed[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, apart)
    (gradient,) = torch.autograd.grad(together[0], moving)
    assert float(gradient[1:].abs().max()) == 0.0 and float(gradient[0].abs().max()) > 0.0


# ---- derivatives


@pytest.mark.parametrize("kind", list(TINY))
def test_networks_have_second_derivatives(kind: str) -> None:
    network = construct(kind, TINY[kind]).double()
    moving = images(1, 2, 16).double().requires_grad_()
    fixed = images(1, 1, 16, 1).double()
    # Random projections of both derivatives: the exhaustive check would take 512 columns.
    assert torch.autograd.gradcheck(lambda m: network(m, fixed), (moving,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda m: network(m, fixed), (moving,), fast_mode=True)


def small_task(network: LearnedSimilarity, **changes: object) -> SimilarityTask:
    ct = small_torso()
    patients = [TrainingPatient.of("torso", ct, network)]
    recipe = TrainingRecipe(batch=2, **changes)
    camera = CArm(1020.0, (16, 16), 24.0)
    return SimilarityTask(network, patients, [], camera, SAMPLINGS["narrow"], recipe)


@pytest.mark.parametrize("kind", list(TINY))
@pytest.mark.parametrize("objective", ["direction", "geodesic", "mse"])
def test_the_loss_has_the_derivative_that_differences_give(kind: str, objective: str) -> None:
    """Through the 3D network, the projector twice, the 2D network and the objective."""
    network = construct(kind, TINY[kind])
    task = small_task(network, objective=objective)
    network.double()
    patient = task.patients[0]
    wide = patient._replace(moving=patient.moving.to(torch.float64))
    task.patients = [wide]
    random = torch.Generator().manual_seed(5)
    direction = {
        name: torch.randn(p.shape, generator=random, dtype=torch.float64)
        for name, p in network.named_parameters()
    }
    loss = task.losses(0, 0, 1)["loss"]
    loss.backward()
    slope = sum(
        float((p.grad * direction[n]).sum())
        for n, p in network.named_parameters()
        if p.grad is not None
    )
    start = {n: p.detach().clone() for n, p in network.named_parameters()}

    def at(step: float) -> float:
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(start[name] + step * direction[name])
        return float(task.losses(0, 0, 1)["loss"].detach())

    estimates = [(at(h) - at(-h)) / (2 * h) for h in (1e-6, 1e-7)]
    assert min(abs(e - slope) for e in estimates) < 1e-4 * max(1.0, abs(slope))
    assert abs(slope) > 1e-8


def test_losses_depend_on_seed_step_and_rank_only() -> None:
    task = small_task(build("prost-2020-small"))
    first, again = (float(task.losses(3, 0, 2)["loss"].detach()) for _ in range(2))
    others = [float(task.losses(*at)["loss"].detach()) for at in ((4, 0, 2), (3, 1, 2))]
    assert first == again and first not in others


def test_a_patient_is_not_trained_and_validated_on() -> None:
    network = build("prost-2020-small")
    patient = TrainingPatient.of("torso", small_torso(), network)
    arguments = (CArm(1020.0, (16, 16), 24.0), SAMPLINGS["narrow"], TrainingRecipe())
    with pytest.raises(ValueError, match="trained on, too"):
        SimilarityTask(network, [patient], [patient], *arguments)
    with pytest.raises(ValueError, match="at least one"):
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
    task = small_task(build("prost-2020-small"))
    images = task.example(3)
    assert images.shape == (3, 3, 16, 16)
    patient = task.patients[0]
    draw = generator(0)
    drawn_integer(draw, 1)  # which patient
    theta, target, xray = task.views(patient, 3, draw, randomised=True)
    for channel, pose in ((1, target), (2, theta)):
        bone = render(patient.moving, task.camera, patient.chart.world_to_camera(pose))
        assert torch.allclose(images[:, channel], bone[:, 0].to(images), atol=1e-5)
    assert torch.equal(images[:, 0], xray[:, 0])


def test_validation_is_the_same_for_the_same_weights() -> None:
    network = build("prost-2020-small").eval()
    task = small_task(network, validation_pairs=3)
    task.held_out = [task.patients[0]._replace(name="other")]
    found, again = task.validate(), task.validate()
    assert found == again
    assert found["loss"] == pytest.approx(4 - 4 * found["cosine"], abs=1e-6)
    assert set(found) == {"loss", "cosine", "cosine_rotation", "cosine_translation"}


# ---- files


def test_a_file_gives_the_network_back(tmp_path: Path) -> None:
    network = construct("prost-transformer", TINY["prost-transformer"])
    save_similarity(network, tmp_path / "net.pt", trained_on="phantoms")
    loaded = load_similarity(tmp_path / "net.pt")
    moving, fixed = images(2, 2, 16), images(2, 1, 16, 1)
    assert torch.equal(loaded(moving, fixed), network(moving, fixed))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    save_similarity(loaded, tmp_path / "again.pt")
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["again.pt", "net.pt"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pt"
    save_similarity(build("prost-2020-small", 1), path)
    before = path.read_bytes()

    def fails(content: object, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_similarity(build("prost-2020-small", 2), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected a similarity or regressor of drrkit"):
        load_similarity(tmp_path / "other.pt")
    save_similarity(build("prost-2020-small"), tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    torch.save({**content, "schema_version": 99}, tmp_path / "newer.pt")
    with pytest.raises(ValueError, match="99"):
        load_similarity(tmp_path / "newer.pt")
    torch.save({**content, "settings": {"expansion": (2, 2)}}, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match="weights do not fit"):
        load_similarity(tmp_path / "wrong.pt")
    with pytest.raises(TypeError, match="expected one made by build"):
        save_similarity(nn.Linear(1, 1), tmp_path / "linear.pt")


def test_networks_that_nobody_trained_are_not_offered_as_measured() -> None:
    assert set(SMALL) < set(MEASURED) < set(NETWORKS)
    assert all(name.endswith("-small") for name in MEASURED)
    assert not {"prost-tiny", "prost-medium", "prost-15", "prost-18"} & set(NETWORKS)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="name: expected one of"):
        build("resnet")
    with pytest.raises(ValueError, match="kind: expected one of"):
        construct("resnet", {})


# ---- use


@pytest.mark.parametrize("optimiser", [Descent(), Directions(), TrustRegion()])
def test_a_network_is_a_similarity_like_any_other_in_register(optimiser: Optimiser) -> None:
    network = build("prost-2020-small").eval()
    scene = torso(16.0).to_mu()
    camera = CArm(1020.0, (32, 32), 10.0)
    pose = view_ap(scene, 800.0)
    xray = render(scene, camera, pose)
    stage = Stage(network, optimiser=optimiser, iterations=3)
    result = register(scene, camera, xray, pose, stages=stage)
    assert result.world_to_camera.shape == (4, 4)
    assert bool(result.world_to_camera.isfinite().all())
    assert result.history[0].similarity == "EncoderProST"


def descend(task: SimilarityTask, steps: int) -> list[float]:
    """The losses of so many steps."""
    optimiser = task.optimiser()
    schedule = task.schedule(optimiser)
    losses = []
    for step in range(steps):
        loss = task.losses(step, 0, 1)["loss"]
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.slow
def test_one_phantom_can_be_learned_by_heart() -> None:
    """The direction loss falls from chance, 4, to below 1."""
    network = build("prost-2020-small", 0)
    ct = torso(11.0)
    scene = ct.to_mu()
    patient = TrainingPatient.of("torso", ct, network)
    recipe = TrainingRecipe(batch=8, rate=3e-3, steps=140)
    sampling = PoseSampling((0.0,) * 6, (15.0, 15.0, 15.0, 20.0, 20.0, 40.0), moving_normal=False)
    task = SimilarityTask(
        network,
        [patient],
        [],
        CArm(1020.0, (32, 32), 12.0),
        sampling,
        recipe,
        synthesise=lambda ct, camera, pose, seed: render(scene, camera, pose),
    )
    losses = descend(task, recipe.steps)
    assert sum(losses[:3]) / 3 > 3.0
    assert sum(losses[-20:]) / 20 < 1.0


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
