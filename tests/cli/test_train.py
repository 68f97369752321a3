"""drrkit train: whose CTs, what is written, how it is resumed and repeated."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import drrkit
from drrkit.cli.options import collected, parameters
from drrkit.cli.train import SubjectOptions
from drrkit.similarity import load_similarity
from drrkit.training import load_checkpoint
from tests.support.commands import run, succeed, write_data

SMALL = ["--network", "prost-2020-small", "--size", "32x32", "--batch", "1", "--quiet"]
PHANTOMS = ["--phantoms", "3", "--voxels", "12"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def similarity(folder: Path, *arguments: object) -> Path:
    """Trains by the command line; the network's file."""
    succeed("train", "similarity", *SMALL, "--out", folder, *arguments)
    return folder / "similarity.pt"


def state(path: Path) -> torch.Tensor:
    return torch.cat([v.flatten().double() for v in load_similarity(path).state_dict().values()])


def last(folder: Path) -> torch.Tensor:
    """The weights at the end, not the best."""
    model = load_checkpoint(folder / "last.pt").model
    return torch.cat([v.flatten().double() for v in model.values()])


def test_a_similarity_is_trained_on_phantoms_resumed_and_repeated(tmp_path: Path) -> None:
    constant = [*PHANTOMS, "--schedule", "constant", "--validate-every", "2"]
    whole, parts, again = (tmp_path / name for name in ("whole", "parts", "again"))
    similarity(whole, *constant, "--steps", 4)
    similarity(parts, *constant, "--steps", 1)
    assert not torch.equal(last(whole), last(parts))
    similarity(parts, *constant, "--steps", 4)
    assert torch.equal(last(whole), last(parts))
    found = load_checkpoint(whole)
    assert found.config["options"]["network"] == "prost-2020-small"
    assert found.config["split"]["validation"] and not found.config["split"]["test"]
    best = torch.cat([v.flatten().double() for v in found.model.values()])
    assert torch.equal(best, state(whole / "similarity.pt"))
    options = ["--config", whole / "config.json", "--out", again, "--validate-every", 2, "--quiet"]
    told = json.loads(succeed("train", "similarity", *options, "--json").stdout)
    assert told["step"] == 4 and told["written"] == str(again / "similarity.pt")
    assert torch.equal(last(whole), last(again))


@pytest.mark.parametrize("network", ["cdreg-small", "sopi-small"])
def test_other_similarities_train(network: str, tmp_path: Path) -> None:
    few = ["--phantoms", "2", "--voxels", "12", "--batch", "1", "--quiet", "--steps", "1"]
    looks = ["--xrays", "full", "--randomise", "cdreg"]
    succeed("train", "similarity", "--network", network, *few, *looks, "--out", tmp_path)
    loaded = load_similarity(tmp_path / "similarity.pt")
    assert loaded.kind == network.split("-")[0]
    assert loaded.notes["pixel_mm"] == pytest.approx(2.176 * 2 * 800 / 1020)
    assert loaded.notes["voxel_mm"] == pytest.approx(288 / 12)
    assert ("decomposition" in (tmp_path / "log.csv").read_text()) == (network == "cdreg-small")


def test_a_regressor_trains_and_registers(tmp_path: Path) -> None:
    few = ["--phantoms", "2", "--voxels", "16", "--batch", "2", "--rounds", "2", "--quiet"]
    few += ["--steps", "2", "--poses", "narrow"]
    succeed("train", "regressor", "--network", "deepim-small", *few, "--out", tmp_path / "it")
    header = (tmp_path / "it" / "validation.csv").read_text().splitlines()[0]
    assert header == "step,loss,start_mtre,mtre,median_mtre"
    assert load_similarity(tmp_path / "it" / "regressor.pt").kind == "deepim"
    write_data(tmp_path)
    inputs = [tmp_path / "ct.nii.gz", tmp_path / "xray.npy", "--init", tmp_path / "start.json"]
    result = tmp_path / "result.json"
    succeed("register", *inputs, "-o", result, "--similarity", tmp_path / "it", "--quiet")
    stages = json.loads(result.read_text())["settings"]["stages"]
    assert stages[0]["optimiser"]["network"] == "DeepIM" and "network" not in stages[1]["optimiser"]


def test_a_trained_similarity_may_follow_a_search(tmp_path: Path) -> None:
    path = similarity(tmp_path / "it", *PHANTOMS, "--steps", 1)
    write_data(tmp_path)
    result = tmp_path / "result.json"
    inputs = [tmp_path / "ct.nii.gz", tmp_path / "xray.npy", "--init", tmp_path / "start.json"]
    words = ["register", *inputs, "-o", result, "--quiet", "--similarity"]
    done = run(*words, path, "--stages", "global")
    assert done.exit_code in (0, 1), done.output  # found, and accepted or not
    stages = json.loads(result.read_text())["settings"]["stages"]
    assert "optimiser" not in stages[0] and stages[2]["similarity"] == "EncoderProST"
    assert stages[2]["optimiser"]["name"] == "directions"
    for similarity_, others in (("mi", "global"), (path, "ncc:4:10")):
        refused = run(*words, similarity_, "--stages", others)
        assert refused.exit_code == 2 and "changes the stages of auto" in refused.stderr


def test_a_training_batch_is_shown_and_tools_are_added(tmp_path: Path) -> None:
    from PIL import Image

    few = [*PHANTOMS, "--steps", 1]
    looks = {"plain": [], "tools": ["--tools"], "cdreg": ["--randomise", "cdreg"]}
    seen = {}
    for name, options in looks.items():
        shown = tmp_path / f"{name}.png"
        similarity(tmp_path / name, *few, *options, "--show", shown)
        with Image.open(shown) as picture:
            seen[name] = torch.tensor(list(picture.convert("L").tobytes()))
            # Four image pairs: X-ray, bone at the true pose, bone at the moving pose.
            assert picture.size == (3 * 32 * 3, 4 * 32 * 3)
    xray, bones = (seen["plain"] != seen["tools"]).reshape(384, 3, 96).split((1, 2), 1)
    assert bool(xray.any()) and not bool(bones.any())
    assert not torch.equal(seen["plain"], seen["cdreg"])
    similarity(tmp_path / "plain", *few)  # the same run without its picture


def test_a_run_with_other_options_is_not_resumed(tmp_path: Path) -> None:
    similarity(tmp_path, *PHANTOMS, "--steps", 1)
    result = run("train", "similarity", *SMALL, *PHANTOMS, "--out", tmp_path, "--rate", 0.1)
    assert result.exit_code == 2
    assert "holds a run with other config" in result.stderr
    result = run("train", "similarity", *SMALL, *PHANTOMS, "--out", tmp_path, "--steps", 9)
    assert result.exit_code == 2 and "steps was 1, now 9" in result.stderr  # the cosine's


@pytest.fixture(scope="module")
def cts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans of five patients with label maps."""
    folder = tmp_path_factory.mktemp("cts")
    for number, name in enumerate(("a", "b", "c", "d", "e1", "e2")):
        ct = drrkit.phantoms.random_anatomy("spine", number, shape=10)
        drrkit.write_volume(ct, folder / f"{name}.nii.gz", labels=folder / f"{name}_bones.nii.gz")
    return folder


def options(**given: Any) -> SubjectOptions:
    """The options of twenty small phantoms, changed."""
    command = click.Command("train", params=parameters(SubjectOptions))
    usual = collected(SubjectOptions, command.make_context("train", []).params)
    return replace(usual, **{"phantoms": 20, "voxels": 10, **given})


LABELLED = {"labels": "_bones", "select": (2,)}


def test_a_similarity_is_trained_on_cts_with_label_maps(cts: Path, tmp_path: Path) -> None:
    pattern = [cts / "[abc].nii.gz", "--labels", "_bones", "--select", "2"]
    path = similarity(tmp_path, "--subjects", *pattern, "--steps", 2, "--voxel-mm", 20)
    split = load_checkpoint(tmp_path).config["split"]
    assert sorted(split["train"] + split["validation"]) == ["a", "b", "c"]
    assert len(split["validation"]) == 1
    assert bool(state(path).isfinite().all())


def test_scans_of_one_patient_stay_together(cts: Path) -> None:
    for fold in range(5):
        whose = options(
            subjects=(str(cts),), subject_pattern=r"([a-e])\d?\.nii", folds=5, fold=fold, **LABELLED
        )
        cohort = whose.cohort(seed=3)
        assert len(cohort.train + cohort.validation + cohort.test) == 6
        for part in cohort:
            assert ("e1" in [s.name for s in part]) == ("e2" in [s.name for s in part])
    assert {s.labels.name for s in cohort.train if s.labels} <= {p.name for p in cts.iterdir()}


def test_folds_of_the_command_test_every_patient_once(cts: Path) -> None:
    cohorts = [options(folds=4, fold=fold, validation=1).cohort(0) for fold in range(4)]
    assert sorted(s.name for c in cohorts for s in c.test) == sorted(
        f"pelvis-{n}" for n in range(20)
    )
    assert [len(part) for part in cohorts[0]] == [14, 1, 5]


def test_folders_of_folders_are_patients(cts: Path, tmp_path: Path) -> None:
    for patient in ("one", "two"):
        (tmp_path / patient).mkdir()
        for visit in ("ap", "late"):
            shutil.copy(cts / "a.nii.gz", tmp_path / patient / f"{visit}.nii.gz")
    cohort = options(subjects=(str(tmp_path),)).cohort(0)
    assert {s.subject for s in cohort.train + cohort.validation} == {"one", "two"}
    assert len({s.name for s in cohort.train + cohort.validation}) == 4
    assert len(cohort.validation) == 2


def test_scans_load_with_labels_and_voxels(cts: Path) -> None:
    whose = options(subjects=(str(cts),), voxel_mm=25.0, **LABELLED)
    ct = whose.load(whose.cohort(0).train[0])
    assert ct.unit == "HU" and ct.labels is not None and ct.spacing == (25.0,) * 3
    assert whose.bones == (2,)
    phantom = options()
    scan = phantom.cohort(0).train[0]
    expected = drrkit.phantoms.random_anatomy("pelvis", int(scan.name.split("-")[1]), shape=10)
    assert torch.equal(phantom.load(scan).values, expected.values)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"subjects": ("no/such/*.nii",)}, "no CTs"),
        ({"subjects": ("CTS",), "labels": "_bones"}, "--labels and --select belong together"),
        ({"subjects": ("CTS",), "labels": "_x", "select": (1,)}, "there is no .*_x.nii.gz"),
        ({"subjects": ("CTS",), "subject_pattern": r"(zz)"}, "finds no patient in"),
        ({"subjects": ("CTS",), "subject_pattern": r"a("}, "--subject-pattern: expected one group"),
        ({"subjects": ("CTS",), "subject_pattern": r"a"}, "--subject-pattern: expected one group"),
        ({"phantoms": 2, "validation": 2}, "validation: expected less than the 2"),
        ({"phantoms": 3, "folds": 5}, "folds: expected 2 to 3"),
        ({"folds": 3, "fold": 3}, "--fold: expected 0 to 2, got 3"),
    ],
)
def test_wrong_subjects_are_told(given: dict[str, Any], message: str, cts: Path) -> None:
    if "CTS" in given.get("subjects", ()):
        given = {**given, "subjects": (str(cts / "a.nii.gz"),)}
    with pytest.raises((ValueError, click.UsageError), match=message):
        options(**given).cohort(0)
