"""Stages of a registration: batches of starts, history, interruption, progress."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from torch import Tensor

from drrkit import Stage, losses, register
from drrkit.registration import Descent
from drrkit.registration.optimisers.optimiser import PoseProblem
from tests.support.registered_torso import CAMERA, attenuation, error, off, target, truth

QUICK = (
    Stage("ncc", optimiser=Descent(4.0, final_step=0.5), downsample=2, iterations=50, mm=True),
    Stage("gradient_ncc", optimiser=Descent(1.0, final_step=0.1), iterations=40, mm=True),
)


# ---- batches, stages, history


def test_starts_are_optimised_independently_and_the_best_one_is_returned():
    starts = torch.cat([off(8.0, 15.0, seed=6), off(1.0, 2.0, seed=7), off(5.0, 9.0, seed=8)])
    together = register(attenuation(), CAMERA, target(), starts, stages=QUICK)
    assert together.all_world_to_camera.shape == (3, 4, 4) and together.all_loss.shape == (3,)
    best = int(together.all_loss.argmin())
    assert torch.equal(together.world_to_camera, together.all_world_to_camera[best])
    assert together.loss == float(together.all_loss[best])
    for index in range(3):
        alone = register(attenuation(), CAMERA, target(), starts[index], stages=QUICK)
        # The trajectories differ by rounding alone, which a hundred steps may amplify.
        ends = alone.world_to_camera, together.all_world_to_camera[index]
        assert float((error(ends[0]) - error(ends[1])).abs()) < 0.3


def test_the_same_seed_gives_the_same_result_and_another_one_other_neighbours():
    stage = Stage("ncc", optimiser=Descent(2.0), downsample=4, iterations=6, starts=4, mm=True)
    runs = [
        register(attenuation(), CAMERA, target(), off(9.0, 15.0), stages=stage, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0].world_to_camera, runs[1].world_to_camera)
    assert torch.equal(runs[0].history[0].loss, runs[1].history[0].loss)
    first, other = runs[0].history[0].loss[0], runs[2].history[0].loss[0]
    assert first.shape == (4,)
    assert first[0] == other[0]  # the start itself is always among them
    assert not torch.equal(first[1:], other[1:])


def test_several_starts_lead_every_pose_to_its_best_neighbour():
    stage = Stage("ncc", optimiser=Descent(2.0), downsample=4, iterations=8, starts=6, mm=True)
    inits = off(12.0, 25.0, seed=9, count=2)
    result = register(attenuation(), CAMERA, target(), inits, stages=stage)
    lowest = result.history[0].loss.nan_to_num(nan=math.inf).amin(dim=0).reshape(2, 6)
    assert result.all_world_to_camera.shape == (2, 4, 4)
    torch.testing.assert_close(
        result.all_loss, lowest.amin(dim=1), rtol=0, atol=stage.optimiser.tolerance
    )


def test_a_stage_never_returns_a_pose_worse_than_its_start():
    wild = Stage(
        "ncc", optimiser=Descent(200.0, final_step=100.0), downsample=2, iterations=10, mm=True
    )
    result = register(attenuation(), CAMERA, target(), truth(), stages=wild)
    assert result.loss <= result.history[0].loss[0, 0]
    assert error(result.world_to_camera).item() < 1e-6


def test_the_history_holds_every_loss_and_fits_into_json():
    result = register(attenuation(), CAMERA, target(), off(3.0, 5.0, count=2), stages=QUICK)
    assert [record.downsample for record in result.history] == [2, 1]
    for record in result.history:
        assert record.loss.shape[1] == 2 and record.loss.shape[0] >= 5
        assert record.seconds > 0
    last = result.history[-1].loss.nan_to_num(nan=math.inf)
    # Losses lower by less than the tolerance are no new best.
    torch.testing.assert_close(
        last.amin(dim=0), result.all_loss, rtol=0, atol=QUICK[1].optimiser.tolerance
    )
    assert 0 < sum(record.seconds for record in result.history) <= result.seconds
    stored = json.loads(json.dumps(result.as_dict()))
    assert stored["schema_version"] == 1
    assert stored["world_to_camera"] == result.world_to_camera.tolist()
    assert [stage["steps"] for stage in stored["stages"]] == [
        record.loss.shape[0] for record in result.history
    ]


def test_a_converged_pose_rests_while_the_others_go_on():
    centre, units = torch.zeros(3, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    seen = []

    def bowl(pose: Tensor) -> Tensor:
        seen.append(pose.shape[0])
        return pose[:, :3, 3].square().sum(dim=1)

    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[1, :3, 3] = 30.0
    problem = PoseProblem(center=centre, units=units, objective=bowl, iterations=200)
    descent = Descent(2.0, patience=3, final_step=0.5).begin(problem, poses)
    while not descent.finished:
        descent.step()
    assert descent.stop_reason == "converged"
    assert seen[0] == 2 and seen[-1] == 1
    assert (descent.best_pose[:, :3, 3].norm(dim=1) < 1.5).all()
    assert torch.stack(descent.trace)[-1, 0].isnan()


def test_a_loss_that_is_not_a_number_stops_its_own_pose_only():
    def broken(pose: Tensor) -> Tensor:
        factor = torch.where(pose[:, 0, 3].detach() > 50.0, torch.nan, 1.0)
        return factor * pose[:, :3, 3].square().sum(dim=1)

    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[0, 0, 3], poses[1, 0, 3] = 10.0, 100.0
    centre, units = torch.zeros(3, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    problem = PoseProblem(center=centre, units=units, objective=broken, iterations=40)
    descent = Descent(2.0, final_step=0.05).begin(problem, poses)
    while not descent.finished:
        descent.step()
    assert descent.best_pose.isfinite().all()
    assert descent.best_loss[0] < 1.0 and descent.best_loss[1] == math.inf


# ---- interruption and progress


@pytest.mark.parametrize("calls", [0, 1, 7])
def test_an_interruption_returns_the_best_pose_so_far(calls):
    count = 0

    def interrupted(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
        nonlocal count
        count += 1
        if count > calls:
            raise KeyboardInterrupt
        return losses.ncc(moving, fixed, mask)

    start = off(6.0, 10.0, seed=12)
    stages = [
        Stage(interrupted, optimiser=Descent(3.0), downsample=2, iterations=40, mm=True),
        QUICK[1],
    ]
    result = register(attenuation(), CAMERA, target(), start, stages=stages)
    assert result.stop_reason == "interrupted" and len(result.history) == 1
    assert result.history[0].loss.shape == (calls, 1)
    if calls < 2:
        assert torch.equal(result.world_to_camera, start[0])
    else:
        assert error(result.world_to_camera).item() < error(start).item()


def test_an_interruption_before_the_first_step_of_a_later_stage_keeps_the_earlier_result():
    def interrupted(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
        raise KeyboardInterrupt

    start = off(6.0, 10.0, seed=12)
    first = register(attenuation(), CAMERA, target(), start, stages=QUICK[0])
    both = register(attenuation(), CAMERA, target(), start, stages=[QUICK[0], Stage(interrupted)])
    assert torch.equal(both.world_to_camera, first.world_to_camera)
    assert both.loss == first.loss and both.stop_reason == "interrupted"


def test_progress_is_shown_when_wanted_and_when_tqdm_is_there(capsys, monkeypatch):
    stage = Stage("ncc", downsample=4, iterations=3)
    arguments = (attenuation(), CAMERA, target(), truth())
    register(*arguments, stages=stage)
    assert capsys.readouterr().err == ""
    register(*arguments, stages=stage, progress=True)
    assert "stage 1/1 ncc" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    register(*arguments, stages=stage, progress=True)
    assert capsys.readouterr().err == ""


def test_a_watcher_is_told_every_step_and_may_end_the_registration():
    start, told = off(6.0, 10.0, seed=12), []

    def watch(world_to_camera: Tensor, loss: float) -> None:
        told.append((world_to_camera, loss))
        if len(told) == 9:
            raise KeyboardInterrupt

    result = register(attenuation(), CAMERA, target(), start, stages=QUICK[0], progress=watch)
    assert result.stop_reason == "interrupted" and len(told) == 9 == len(result.history[0].loss)
    assert torch.equal(result.world_to_camera, told[-1][0]) and result.loss == told[-1][1]
    losses_told = [loss for _, loss in told]
    assert losses_told == sorted(losses_told, reverse=True) and losses_told[-1] < losses_told[0]
