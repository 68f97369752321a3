"""NeTT and mNeRF learn from pairs of X-ray and pose; what is tested on never teaches."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import drrkit
from drrkit import fields
from drrkit.cli.io import write_pose
from drrkit.fields.masks import dilated
from drrkit.report import save_image
from drrkit.training import Split, k_folds, load_checkpoint, train
from drrkit.volume import Volume
from tests.support.commands import run, succeed

CAMERA = drrkit.CArm(1020.0, (24, 24), 11.6)


def tuned_by_hand(volume: Volume) -> Volume:
    """A hidden map of intensities: soft tissue thinner, bone denser."""
    mu = volume.values
    return replace(volume, values=mu * (0.8 + 0.9 * torch.sigmoid((mu - 0.024) / 0.002)))


def anatomy(kind: str, seed: int) -> Volume:
    return drrkit.phantoms.random_anatomy(kind, seed, shape=24).to_mu()


def pairs_of(name: str, volume: Volume, count: int, seed: int = 0) -> fields.Pairs:
    poses = fields.random_views(volume, count, seed)
    xrays = drrkit.render(tuned_by_hand(volume), CAMERA, poses)
    return fields.Pairs(name, volume, CAMERA, xrays, poses)


def ball() -> tuple[Volume, Tensor]:
    """A soft phantom in mu, about 160 mm wide, and a mask with a margin around it."""
    phantom = drrkit.phantoms.random_soft_ellipsoids(seed=2, count=16, radius=60.0)
    volume = phantom.voxelize((24, 24, 24), 8.0, dtype=torch.float32)
    return volume, dilated(volume.values > 1e-4, (2, 2, 2))


# ---- quality


def test_psnr_and_normalisation_are_their_definitions() -> None:
    reference = torch.zeros(2, 1, 4, 4)
    reference[:, :, 0, 0] = 2.0
    image = reference + 0.02
    assert fields.psnr(image, reference).tolist() == pytest.approx([40.0, 40.0], abs=1e-3)
    assert fields.psnr(image, reference, 0.2).tolist() == pytest.approx([20.0, 20.0], abs=1e-3)
    stretched = fields.min_max(3.0 * image - 7.0)
    assert float(stretched.min()) == 0.0 and float(stretched.max()) == 1.0
    assert torch.equal(fields.min_max(torch.full((1, 1, 3, 3), 5.0)), torch.zeros(1, 1, 3, 3))
    measure = fields.Normalised(drrkit.losses.mse)
    noise = torch.rand(2, 1, 4, 4)
    assert torch.allclose(measure(5 * noise + 2, noise), torch.zeros(2), atol=1e-10)
    mask = torch.ones(1, 1, 4, 4)
    mask[..., 0, 0] = 0.0
    spoiled = noise.clone()
    spoiled[..., 0, 0] = 100.0
    assert torch.allclose(measure(spoiled, noise, mask), torch.zeros(2), atol=1e-10)
    assert fields.ssim_index(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16)).item() < 0.5


def test_what_no_objective_can_be_is_refused() -> None:
    with pytest.raises(ValueError, match="loss: expected one of"):
        fields.ImageObjective(loss="mi")
    with pytest.raises(ValueError, match="formation: expected one of"):
        fields.ImageObjective(formation="xx")
    with pytest.raises(ValueError, match="final_rate"):
        fields.ImageObjective(rate=1e-3, final_rate=1e-2)


# ---- pairs


def test_pairs_are_checked_and_held_out_without_overlap() -> None:
    pairs = pairs_of("a", anatomy("pelvis", 0), 7)
    train_on, validate_on = pairs.held_out(3, seed=5)
    assert len(train_on) == 4 and len(validate_on) == 3
    assert not train_on.view_fingerprints() & validate_on.view_fingerprints()
    assert train_on.view_fingerprints() | validate_on.view_fingerprints() == (
        pairs.view_fingerprints()
    )
    again = pairs.held_out(3, seed=5)[1]
    assert torch.equal(again.xrays, validate_on.xrays)
    with pytest.raises(ValueError, match="count: expected 1 to 6"):
        pairs.held_out(7)
    with pytest.raises(ValueError, match="xrays: expected"):
        replace(pairs, xrays=pairs.xrays[:, :, :5])
    with pytest.raises(ValueError, match="one per X-ray"):
        replace(pairs, world_to_camera=pairs.world_to_camera[:3])
    with pytest.raises(ValueError, match="finite"):
        replace(pairs, xrays=pairs.xrays * math.nan)
    with pytest.raises(ValueError, match="subject: expected a name"):
        replace(pairs, subject="")


def test_one_ct_or_x_ray_under_two_names_is_a_leak() -> None:
    a, b = pairs_of("a", anatomy("pelvis", 0), 3), pairs_of("b", anatomy("pelvis", 1), 3)
    assert set(fields.check_subjects([a, b, replace(b, xrays=b.xrays + 1)])) == {"a", "b"}
    with pytest.raises(ValueError, match=r"belongs to 'a' and to 'c'.*leak"):
        fields.check_subjects([a, b, replace(a, subject="c", xrays=a.xrays + 1)])
    with pytest.raises(ValueError, match="leak"):
        fields.check_subjects([a, replace(b, xrays=a.xrays)])
    with pytest.raises(ValueError, match=r"'a'.* are trained on"):
        fields.NeTTTask(fields.NeTT(), [a], [a])
    with pytest.raises(ValueError, match="expected those of one subject"):
        fields.check_subjects([])


# ---- NeTT


def test_nett_learns_a_hidden_map_on_one_subject_and_serves_another(tmp_path: Path) -> None:
    first = pairs_of("pelvis", anatomy("pelvis", 0), 12)
    second = pairs_of("skull", anatomy("skull", 3), 4, seed=9)
    objective = fields.ImageObjective()
    before = fields.scene_quality(fields.CT(second.volume), second, objective)
    torch.manual_seed(0)
    task = fields.NeTTTask(fields.NeTT(width=32), [first], objective=objective, steps=120)
    train(task, tmp_path, steps=120, validate_every=60, save_every=60, progress=False)
    task.nett.eval()
    tuned = fields.TunedCT(task.nett, second.volume)
    after = fields.scene_quality(tuned, second, objective)
    assert after["psnr"] > before["psnr"] + 10.0  # at least 3 dB is what is promised
    assert after["ssim"] > before["ssim"] and after["loss"] < before["loss"]
    mu = torch.linspace(0.015, 0.035, 20)
    grid = Volume(mu.reshape(20, 1, 1), (1.0, 1.0, 1.0), unit="mu")
    learned, hidden = task.nett.curve(mu).detach(), tuned_by_hand(grid).values.flatten()
    assert float(torch.corrcoef(torch.stack((learned, hidden)))[0, 1]) > 0.95


def test_training_through_volume_rendering_and_structure_lowers_the_loss() -> None:
    pairs = pairs_of("a", anatomy("pelvis", 0), 6)
    pairs = replace(pairs, xrays=fields.absorption(pairs.xrays))
    objective = fields.ImageObjective("ssim_dice_l1", "vr")
    task = fields.NeTTTask(fields.NeTT(width=16), [pairs], objective=objective, steps=30)
    optimiser = task.optimiser()
    schedule = task.schedule(optimiser)
    before = task.validate()["loss"]
    for step in range(30):
        optimiser.zero_grad()
        task.losses(step, 0, 1)["loss"].backward()
        optimiser.step()
        schedule.step()
    assert task.validate()["loss"] < 0.6 * before
    assert optimiser.param_groups[0]["lr"] == pytest.approx(objective.final_rate)


def test_steps_depend_on_seed_step_and_rank_alone() -> None:
    pairs, (field, views) = pairs_of("a", anatomy("pelvis", 0), 6), field_and_pairs()
    for task in (
        fields.NeTTTask(fields.NeTT(), [pairs], batch=2, seed=1),
        fields.MNeRFTask(field, replace(views, xrays=views.xrays.roll(1, 0)), images=2, rays=20),
    ):
        loss = task.losses(3, 0, 2)["loss"]
        torch.manual_seed(77)
        assert torch.equal(task.losses(3, 0, 2)["loss"], loss)
        assert not torch.equal(task.losses(4, 0, 2)["loss"], loss)
        assert not torch.equal(task.losses(3, 1, 2)["loss"], loss)


# ---- cross-subject and leave-one-out


def test_leave_one_out_tests_every_subject_by_a_network_that_never_saw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = [pairs_of(f"p{k}", anatomy("pelvis", k), 3, seed=k) for k in range(3)]
    splits = k_folds([one.subject for one in everyone], 3)
    settings = {"steps": 25, "batch": 2, "make": lambda: fields.NeTT(width=16)}
    results = fields.cross_validate(everyone, splits, tmp_path / "a", **settings)
    assert sorted(one.subject for one in results) == ["p0", "p1", "p2"]
    for one in results:
        assert one.subject not in one.trained_on and len(one.trained_on) == 2
        assert one.tuned["psnr"] > one.untuned["psnr"] + 3.0
    # What is tested on cannot change what is learned.
    tested = splits[0].test
    other = [replace(p, xrays=p.xrays.flip(-1)) if p.subject in tested else p for p in everyone]
    again = fields.cross_validate(other, splits[:1], tmp_path / "b", **settings)
    weights = [load_checkpoint(tmp_path / x / "fold-0" / "last.pt").model for x in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert again[0].tuned != next(r for r in results if r.fold == 0).tuned
    # A finished fold is tested again, not trained again.
    monkeypatch.setattr(fields.NeTTTask, "losses", lambda *_: pytest.fail("trained again"))
    assert fields.cross_validate(everyone, splits, tmp_path / "a", **settings) == results
    with pytest.raises(ValueError, match="holds a run with other config"):
        fields.cross_validate(everyone, splits[1:], tmp_path / "a", **settings)


def test_a_split_of_an_unknown_subject_is_refused(tmp_path: Path) -> None:
    pairs = [pairs_of("a", anatomy("pelvis", 0), 2)]
    with pytest.raises(ValueError, match="splits: expected subjects"):
        fields.cross_validate(pairs, [Split(("a",), test=("b",))], tmp_path)


# ---- mNeRF


def field_and_pairs(count: int = 6) -> tuple[fields.MNeRF, fields.Pairs]:
    """A field and X-rays rendered from itself."""
    volume, mask = ball()
    torch.manual_seed(3)
    field = fields.MNeRF(mask, volume, octaves=3, width=16, depth=2, step=4.0)
    nn.init.normal_(field.network.last.weight, std=0.5)
    poses = fields.random_views(volume, count)
    camera = drrkit.CArm(1020.0, (16, 16), 12.0)
    with torch.no_grad():
        xrays = field.render(camera, poses)
    return field, fields.Pairs("a", volume, camera, xrays, poses)


@pytest.mark.parametrize("loss", ["mse", "l1", "ssim_dice_l1"])
@pytest.mark.parametrize("formation", ["rc", "vr"])
def test_the_loss_of_a_field_on_its_own_x_rays_is_nearly_zero(loss: str, formation: str) -> None:
    field, pairs = field_and_pairs()
    objective = fields.ImageObjective(loss, formation, normalised=False)
    pairs = replace(pairs, xrays=objective.formed(pairs.xrays))
    matched = fields.MNeRFTask(field, pairs, objective=objective, rays=200)
    wrong = replace(pairs, xrays=pairs.xrays.roll(1, 0))
    mixed = fields.MNeRFTask(field, wrong, objective=objective, rays=200)
    small, large = matched.losses(0, 0, 1)["loss"], mixed.losses(0, 0, 1)["loss"]
    assert small.item() < 0.1 * large.item()


def test_a_field_is_validated_on_other_x_rays_of_its_own_subject() -> None:
    field, pairs = field_and_pairs()
    train_on, validate_on = pairs.held_out(2)
    found = fields.MNeRFTask(field, train_on, validate_on).validate()
    assert found["psnr"] > 60.0 and found["ssim"] > 0.999
    with pytest.raises(ValueError, match="some of these X-rays are trained on"):
        fields.MNeRFTask(field, pairs, validate_on)
    with pytest.raises(ValueError, match="of one subject"):
        fields.MNeRFTask(field, train_on, replace(validate_on, subject="b"))
    with pytest.raises(ValueError, match="rays: expected a positive integer"):
        fields.MNeRFTask(field, train_on, rays=0)


def test_mnerf_fits_a_phantom_above_30_db_at_poses_it_has_not_seen(tmp_path: Path) -> None:
    volume, mask = ball()
    poses = fields.random_views(volume, 40, turn=math.radians(60.0), shift=10.0)
    camera = drrkit.CArm(1020.0, (32, 32), 6.5)
    xrays = drrkit.render(volume, camera, poses)
    train_on, validate_on = fields.Pairs("a", volume, camera, xrays, poses).held_out(4)
    torch.manual_seed(0)
    field = fields.MNeRF(mask, volume, octaves=4, width=32, depth=3, step=8.0)
    objective = fields.ImageObjective(normalised=False, rate=1e-2, final_rate=1e-3)
    task = fields.MNeRFTask(field, train_on, validate_on, objective=objective, steps=150, rays=64)
    result = train(task, tmp_path, steps=150, validate_every=150, save_every=150, progress=False)
    assert result.metrics["psnr"] > 33.0
    baked = fields.scene_quality(fields.CT(field.eval().bake()), validate_on, objective)
    assert baked["psnr"] > 30.0


# ---- files


def test_fields_come_back_from_files_as_they_were(tmp_path: Path) -> None:
    nett = fields.NeTT(width=8, depth=2, features=("gradient",), knots=64)
    nn.init.normal_(nett.network.last.weight)
    volume, mask = ball()
    field = fields.MNeRF(mask, volume, octaves=2, width=8, depth=2, levels=2)
    assert field.features is not None
    for table in field.features.tables:
        nn.init.normal_(table)
    fields.save_field(nett, tmp_path / "nett.pt")
    fields.save_field(field.double(), tmp_path / "mnerf.pt")
    loaded = fields.load_field(tmp_path / "nett.pt")
    assert isinstance(loaded, fields.NeTT) and not loaded.training
    assert torch.equal(loaded(volume).values, nett(volume).values)
    again = fields.load_field(tmp_path / "mnerf.pt")
    assert isinstance(again, fields.MNeRF)
    points = 80 * (torch.rand(50, 3, dtype=torch.float64) - 0.5)
    assert torch.equal(again.density(points), field.density(points))
    assert again.density(points).dtype == torch.float64
    assert {path.name for path in tmp_path.iterdir()} == {"nett.pt", "mnerf.pt"}


# ---- command line


def write_pairs(folder: Path, seed: int, count: int = 3) -> list[Path]:
    """A CT in HU and a folder of X-rays with pose files."""
    ct = drrkit.phantoms.random_anatomy("pelvis", seed, shape=16)
    place = folder / f"xrays-{seed}"
    place.mkdir(parents=True)
    drrkit.write_volume(ct, folder / f"ct-{seed}.nii.gz")
    camera = drrkit.CArm(1020.0, (16, 16), 17.0)
    for number, pose in enumerate(fields.random_views(ct, count, seed)):
        xray = drrkit.simulate_xray(ct, camera, pose, photons=None)
        save_image(xray, place / f"{number}.npy")
        write_pose(place / f"{number}.json", pose, camera)
    return [folder / f"ct-{seed}.nii.gz", place]


@pytest.mark.io
def test_nett_is_trained_from_files_and_resumed(tmp_path: Path) -> None:
    first, second = write_pairs(tmp_path, 0), write_pairs(tmp_path, 1)
    out = tmp_path / "out"
    arguments = ["--pairs", *first, "--validate-on", *second, "--out", out, "--width", 8, "-q"]
    arguments = ["train", "nett", *arguments, "--depth", 2, "--steps", 4, "--device", "cpu"]
    succeed(*arguments, "--validate-every", 2)
    assert isinstance(fields.load_field(out / "nett.pt"), fields.NeTT)
    found = json.loads(succeed(*arguments, "--json").stdout)
    assert found["step"] == 4 and found["written"].endswith("nett.pt")
    again = run(*arguments[:3], *first, "--validate-on", *first, "--out", tmp_path / "b", "-q")
    assert again.exit_code == 2 and "trained on" in again.output
    other = run("train", "nett", "--validate-on", *first, "--out", tmp_path / "b")
    assert other.exit_code == 2 and "--validate-on needs --pairs" in other.output


@pytest.mark.io
def test_mnerf_is_trained_from_files_and_phantoms(tmp_path: Path) -> None:
    small = ["--width", 8, "--depth", 2, "--octaves", 2, "--levels", 1, "--images", 2]
    small += ["--rays", 10, "--steps", 2, "--held-out", 1, "-q", "--device", "cpu"]
    ct, folder = write_pairs(tmp_path, 0)
    succeed("train", "mnerf", "--pairs", ct, folder, "--out", tmp_path / "a", *small)
    field = fields.load_field(tmp_path / "a" / "mnerf.pt")
    assert isinstance(field, fields.MNeRF) and field.mask.shape == (16, 16, 16)
    assert field.features is not None and len(field.features.tables) == 1
    phantoms = ["--phantoms", 1, "--voxels", 16, "--views", 3, "--pixels", 16]
    succeed("train", "mnerf", *phantoms, "--out", tmp_path / "b", *small)
    twice = run("train", "mnerf", "--pairs", ct, folder, "--pairs", ct, folder, "--out", tmp_path)
    assert twice.exit_code == 2 and "one subject" in twice.output


@pytest.mark.io
def test_folders_that_hold_no_pairs_are_refused(tmp_path: Path) -> None:
    ct, folder = write_pairs(tmp_path, 0)

    def refused(words: str) -> None:
        result = run("train", "nett", "--pairs", ct, folder, "--out", tmp_path / "o", "-q")
        assert result.exit_code == 2 and words in result.output

    (folder / "0.npy").rename(folder / "lost.npy")
    refused("expected one image 0.* beside it, found none")
    (folder / "lost.npy").rename(folder / "0.npy")
    pose = fields.random_views(drrkit.phantoms.torso(16.0), 1)[0]
    write_pose(folder / "1.json", pose, drrkit.CArm(900.0, (16, 16), 17.0))
    refused("expected the camera of the other X-rays")
    (folder / "1.json").write_text(json.dumps(pose.tolist()))
    refused("expected a camera beside the pose")
    for path in folder.glob("*.json"):
        path.unlink()
    refused("found none")
