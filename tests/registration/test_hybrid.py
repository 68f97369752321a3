"""Pipelines that begin with a learned similarity, in Python and on the command line."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit.evaluation import PROTOCOLS, Subject
from drrkit.losses import ncc
from drrkit.metrics import mtre
from drrkit.registration import AUTO, hybrid
from drrkit.similarity import build, load_similarity, save_similarity
from drrkit.training import load_checkpoint
from tests.support.commands import ROOT, run, small_camera, small_ct, succeed, write_data


class TwoChannels:
    """Compares bone and all of the patient in two channels, as a learned similarity would."""

    def __init__(self) -> None:
        self.notes = {"pixel_mm": 9.0, "voxel_mm": 8.0}

    def prepare(self, scene: drrkit.Volume) -> drrkit.Volume:
        self.spacing = scene.spacing
        bone = (scene.values - 0.025).clamp_min(0)
        return replace(scene, values=torch.stack((bone, scene.values)), labels=None)

    def __call__(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
        assert moving.shape[1] == 2
        self.pixels = tuple(moving.shape[-2:])
        return sum(ncc(moving[:, c : c + 1], fixed, mask) for c in (0, 1)) / 2


def test_the_stages_are_learned_then_cmaes_then_levenberg() -> None:
    stages = hybrid(TwoChannels())
    assert [stage.optimiser.name for stage in stages] == [
        "directions",
        "cmaes",
        "levenberg",
        "levenberg",
    ]
    assert stages[2:] == AUTO[1:]
    assert (stages[0].pixel, stages[0].voxel) == (9.0, 8.0)  # as it was trained
    assert hybrid(TwoChannels(), pixel_mm=4.0)[0].pixel == 4.0
    assert [s.optimiser.name for s in hybrid("mi", generations=0)][:2] == ["gradient", "levenberg"]
    with pytest.raises(TypeError, match="similarity: expected a name or a callable"):
        hybrid(3)  # type: ignore[arg-type]


def test_a_hybrid_pipeline_finds_a_pose_from_afar() -> None:
    ct, similarity = small_ct(), TwoChannels()
    case = PROTOCOLS["narrow"].case(Subject.of("torso", ct), 1)
    stages = hybrid(similarity, population=16, generations=10, spread=(0.1, 20.0))
    found = drrkit.register(ct.to_mu(), case.camera, case.xray, case.start, stages=stages)
    assert similarity.spacing == (8.0,) * 3 and similarity.pixels == (25, 25)
    points = Subject.of("torso", ct).points
    assert float(mtre(case.start, case.truth, points)) > 15
    assert float(mtre(found.world_to_camera, case.truth, points)) < 2
    assert found.history[0].similarity == "TwoChannels"


def test_a_regressor_may_come_first() -> None:
    stages = hybrid(build("dmw-small"), pixel_mm=9.0)
    assert [s.optimiser.name for s in stages[:2]] == ["regressor", "cmaes"]
    assert stages[0].pixel == 9.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was not trained, in a folder as drrkit train leaves it."""
    folder = tmp_path_factory.mktemp("network")
    save_similarity(build("prost-2020-small"), folder / "similarity.pt", pixel_mm=9.0, voxel_mm=8.0)
    return folder


def test_a_loaded_network_knows_what_was_noted(network: Path) -> None:
    loaded = load_similarity(network / "similarity.pt")
    assert loaded.notes == {"pixel_mm": 9.0, "voxel_mm": 8.0}
    assert hybrid(loaded)[0].pixel == 9.0


def test_register_takes_the_file_of_a_similarity(network: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    result = tmp_path / "result.json"
    inputs = [tmp_path / "ct.nii.gz", tmp_path / "xray.npy", "--init", tmp_path / "start.json"]
    succeed("register", *inputs, "-o", result, "--similarity", network, "--quiet")
    told = json.loads(result.read_text())
    names = [stage["similarity"] for stage in told["settings"]["stages"]]
    assert names == ["EncoderProST", "patch_gradient_ncc", *(stage.name for stage in AUTO[1:])]
    ct, pose = small_ct(), torch.tensor(told["world_to_camera"], dtype=torch.float64)
    truth = drrkit.view_ap(ct, 800.0)[0]
    assert small_camera().size == (48, 64)
    assert float(mtre(pose, truth, drrkit.metrics.bone_points(ct))) < 2


def test_evaluate_takes_similarities_by_name_and_by_file(network: Path, tmp_path: Path) -> None:
    drrkit.write_volume(small_ct(), tmp_path / "torso.nii.gz")
    arguments = ["--similarity", "ncc", "--similarity", network / "similarity.pt", "--cases", 1]
    arguments += ["--registration", "auto"]
    succeed("evaluate", tmp_path / "torso.nii.gz", *arguments, "--out", tmp_path / "out", "-q")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    name = f"hybrid-{network.name}"
    assert sorted(summary) == sorted(
        f"{method} narrow {who}" for method in ("auto-ncc", name) for who in ("torso", "all")
    )
    assert all(math.isfinite(s["mtre"]["50 %"]) for s in summary.values())


def test_evaluate_takes_the_file_of_a_regressor(tmp_path: Path) -> None:
    save_similarity(build("dmw-small"), tmp_path / "regressor.pt", pixel_mm=9.0, voxel_mm=8.0)
    drrkit.write_volume(small_ct(), tmp_path / "torso.nii.gz")
    arguments = [tmp_path / "torso.nii.gz", "--similarity", tmp_path, "--cases", 1, "-q"]
    succeed("evaluate", *arguments, "--out", tmp_path / "out")
    described = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    stages = described["methods"][f"hybrid-{tmp_path.name}"]
    assert stages[0]["optimiser"]["network"] == "DMW"
    assert stages[1]["optimiser"]["name"] == "cmaes"


def test_what_is_no_similarity_is_told(network: Path, tmp_path: Path) -> None:
    result = run("evaluate", "--similarity", "nonsense", "--out", tmp_path)
    assert result.exit_code == 2 and "there is no nonsense" in result.stderr
    (tmp_path / "text.pt").write_text("nonsense")
    result = run("evaluate", "--similarity", tmp_path / "text.pt", "--out", tmp_path)
    assert result.exit_code == 2 and "text.pt" in result.stderr
    shutil.copytree(network, tmp_path / network.name)
    twice = ["--similarity", network, "--similarity", tmp_path / network.name]
    result = run("evaluate", *twice, "--cases", 1, "--out", tmp_path)
    assert result.exit_code == 2 and "two are called" in result.stderr


def torchrun(*arguments: object) -> str:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "drrkit"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_and_evaluate_a_similarity(tmp_path: Path) -> None:
    options = ["--network", "prost-2020-small", "--size", "32x32", "--quiet", "--steps", 3]
    options += ["--phantoms", 3, "--voxels", 12, "--batch", 1]
    torchrun("train", "similarity", *options, "--out", tmp_path / "two")
    succeed("train", "similarity", *options, "--out", tmp_path / "one", "--accumulate", 2)
    two, one = (load_checkpoint(tmp_path / name / "last.pt").model for name in ("two", "one"))
    assert all(torch.allclose(two[name], one[name], atol=1e-5) for name in one)
    drrkit.write_volume(small_ct(), tmp_path / "torso.nii.gz")
    evaluation = ["evaluate", tmp_path / "torso.nii.gz"]
    evaluation += ["--similarity", tmp_path / "two", "--cases", 2, "--quiet", "--device", "cpu"]
    told = torchrun(*evaluation, "--out", tmp_path / "by-two")
    assert "hybrid-two narrow torso: 2 cases" in told
    succeed(*evaluation, "--out", tmp_path / "by-one")
    found = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("by-two", "by-one")
    ]
    for name, summary in found[0].items():
        assert summary["mtre"] == pytest.approx(found[1][name]["mtre"], rel=1e-3)
