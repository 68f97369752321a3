"""The optimisers of a batch of poses: CMA-ES, trust region, halving, candidates."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from drrkit import Stage, perturb, register
from drrkit.registration import Search
from drrkit.registration.optimisers.cmaes import CmaEs
from drrkit.registration.optimisers.levenberg import Expansion, LevenbergMarquardt
from drrkit.registration.optimisers.trust_region import TrustRegion, box_minimum
from drrkit.registration.presets import resolve_stages
from drrkit.registration.search.candidates import distinct_poses, motion_between
from tests.support.coarse_torso import (
    CAMERA,
    ORIGIN,
    UNITS,
    attenuation,
    drr,
    error,
    identity,
    off,
    place,
)

# ---- CMA-ES


def bowl(pose: Tensor) -> Tensor:
    """A curved valley with its minimum at xi = (0.1, 0, 0, 3, -2, 1)."""
    x = place(pose) - torch.tensor([0.1, 0.0, 0.0, 3.0, -2.0, 1.0], dtype=torch.float64)
    x = x * torch.tensor([30.0, 30.0, 30.0, 1.0, 1.0, 0.2], dtype=torch.float64)
    return x.square().sum(-1) + 0.05 * (x[:, 0] * x[:, 3]).square()


@pytest.mark.io
def test_cma_es_finds_the_minimum_of_a_badly_scaled_valley_from_all_starts():
    sizes = []

    def measured(pose: Tensor) -> Tensor:
        sizes.append(pose.shape[0])
        return bowl(pose)

    stage = Stage(
        optimiser="cmaes", iterations=150, population=20, spread=(0.2, 8.0), final_step=1e-3
    )
    generator = torch.Generator().manual_seed(0)
    search = CmaEs(measured, identity(3), ORIGIN, UNITS, stage, generator)
    while not search.finished:
        search.step()
    assert (search.best_loss < 1e-4).all()
    # One call a generation: twenty poses and the mean of every start that still moves.
    assert len(sizes) == search.steps and sizes[0] == 3 * 21
    assert search.stop_reason == "converged" and set(sizes) <= {21, 42, 63}


@pytest.mark.io
def test_cma_es_repeats_itself_and_leaves_numpys_generator_alone():
    stage = Stage(optimiser="cmaes", iterations=8, population=8, spread=(0.02, 2.0))
    found = []
    for seed in (1, 1, 2):
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        search = CmaEs(bowl, identity(2), ORIGIN, UNITS, stage, torch.Generator().manual_seed(seed))
        while not search.finished:
            search.step()
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
        found.append(torch.stack(search.trace))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][1:, 0], found[0][1:, 1])


@pytest.mark.io
def test_cma_es_ranks_losses_that_are_no_numbers_last():
    def broken(pose: Tensor) -> Tensor:
        return torch.where(pose[:, 0, 3] > 0.0, torch.nan, bowl(pose))

    stage = Stage(optimiser="cmaes", iterations=30, population=16, spread=(0.2, 8.0))
    search = CmaEs(broken, identity(1), ORIGIN, UNITS, stage, torch.Generator().manual_seed(0))
    while not search.finished:
        search.step()
    assert search.best_loss.isfinite().all() and (search.best_pose[:, 0, 3] <= 0).all()


@pytest.mark.io
def test_cma_es_goes_on_with_its_distributions_in_a_stage_without_a_spread():
    """As long as the objective is the same, two stages are one."""

    def searched(*lengths: int) -> CmaEs:
        found, spread = None, (0.2, 8.0)
        for length in lengths:
            stage = Stage(optimiser="cmaes", iterations=length, population=12, spread=spread)
            generator = torch.Generator().manual_seed(3)
            found = CmaEs(bowl, identity(2), ORIGIN, UNITS, stage, generator, found)
            while not found.finished:
                found.step()
            spread = None
        return found

    whole, parts = searched(30), searched(18, 12)
    assert parts.steps == 12
    torch.testing.assert_close(torch.stack(whole.trace[18:]), torch.stack(parts.trace))


@pytest.mark.io
def test_a_pipeline_hands_the_distribution_of_cma_es_on_to_finer_pixels():
    first = Stage(
        "ncc", optimiser="cmaes", downsample=2, iterations=12, population=24, spread=(0.1, 15.0)
    )
    ends = []
    for spread in (None, (0.1, 15.0)):
        second = replace(first, downsample=1, iterations=6, spread=spread)
        ends.append(register(attenuation(), CAMERA, drr(), off(4.0, 10.0), stages=(first, second)))
    fine = ends[0].history[1]
    assert fine.downsample == 1 and len(fine.loss) == 6
    # A new distribution is as wide as the first was; its mean has to find the valley again.
    assert float(fine.loss[-1]) < 0.5 * float(ends[1].history[1].loss[-1])


@pytest.mark.parametrize(
    "before", [Search(), Stage(), Stage(optimiser="cmaes", keep=1), Stage(optimiser="cmaes")]
)
def test_a_stage_without_a_spread_needs_a_cma_es_to_go_on_with(before):
    going_on = Stage(optimiser="cmaes", spread=None, population=30)
    for stages in ((going_on,), (before, going_on)):
        with pytest.raises(ValueError, match=r"stages: a 'cmaes' stage with spread None expects"):
            resolve_stages(stages)
    with pytest.raises(ValueError, match=r"spread: only a 'cmaes' stage of one start"):
        Stage(spread=None)
    with pytest.raises(ValueError, match=r"spread: expected \(rad, mm\) or six numbers"):
        assert going_on.spreads is None
    fitting = Stage(optimiser="cmaes", population=30)
    assert resolve_stages((fitting, going_on)) == (fitting, going_on)


# ---- the trust region


def test_the_trust_region_solves_a_quadratic_to_the_last_digits_it_asks_for():
    def quadratic(pose: Tensor) -> Tensor:
        x = place(pose) * torch.tensor([50.0, 50.0, 50.0, 1.0, 1.0, 0.3], dtype=torch.float64)
        return (x - 1.5).square().sum(-1) + x[:, 0] * x[:, 1]

    units = torch.tensor([0.02, 0.02, 0.02, 1.0, 1.0, 3.0], dtype=torch.float64)
    stage = Stage(
        optimiser="trust_region", iterations=30, step=3.0, final_step=1e-3, spread=(1, 50)
    )
    found = TrustRegion(quadratic, identity(2), ORIGIN, units, stage, torch.Generator())
    while not found.finished:
        found.step()
    # Minimum over x0, x1: each (2/3) 1.5, value 2 (0.5)^2 + 1.
    torch.testing.assert_close(found.best_loss, torch.full((2,), 1.5).double(), rtol=0, atol=1e-3)


def test_the_trust_region_never_leaves_its_bounds_and_finds_minima_on_them():
    seen = []

    def sloped(pose: Tensor) -> Tensor:
        x = place(pose)
        seen.append(x)
        return x[:, 3] + (x[:, 4] - 1.0).square() + 100 * x[:, :3].square().sum(-1)

    stage = Stage(
        optimiser="trust_region", iterations=40, step=2.0, final_step=0.01, spread=(0.1, 4)
    )
    start = identity(1)
    found = TrustRegion(sloped, start, ORIGIN, UNITS, stage, torch.Generator().manual_seed(0))
    while not found.finished:
        found.step()
    visited = torch.cat(seen)
    assert (visited[:, :3].abs() <= 0.1 + 1e-9).all() and (visited[:, 3:].abs() <= 4.7).all()
    assert found.best_loss.item() == pytest.approx(-4.0, abs=0.02)


def test_the_trust_region_works_on_a_noisy_staircase_that_has_no_derivatives():
    def staircase(pose: Tensor) -> Tensor:
        x = place(pose) * torch.tensor([30.0] * 3 + [1.0] * 3, dtype=torch.float64)
        return (20 * (x - 2.0).square().sum(-1)).round() / 20

    stage = Stage(
        optimiser="trust_region", iterations=40, step=2.0, final_step=0.1, spread=(0.3, 9)
    )
    units = torch.tensor([1 / 30] * 3 + [1.0] * 3, dtype=torch.float64)
    found = TrustRegion(staircase, identity(2), ORIGIN, units, stage, torch.Generator())
    while not found.finished:
        found.step()
    assert (found.best_loss < 0.2).all()


def test_the_minimum_of_a_quadratic_in_a_box_beats_every_point_of_a_grid():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(20, 3, 3, generator=generator, dtype=torch.float64)
    matrix = root @ root.mT
    gradient = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    low, high = -torch.rand(20, 3, generator=generator).double(), torch.rand(20, 3).double()
    step = box_minimum(gradient, matrix, low, high)
    assert ((step >= low) & (step <= high)).all()

    def value(s: Tensor) -> Tensor:
        return (gradient[:, None] * s).sum(-1) + 0.5 * torch.einsum("bni,bij,bnj->bn", s, matrix, s)

    axis = torch.linspace(0, 1, 9, dtype=torch.float64)
    grid = low[:, None] + torch.cartesian_prod(axis, axis, axis) * (high - low)[:, None]
    assert (value(step[:, None])[:, 0] <= value(grid).amin(1) + 1e-6).all()


# ---- through register, halving, candidates


@pytest.mark.io
@pytest.mark.parametrize(
    "options",
    [
        {"optimiser": "levenberg", "step": 20.0, "iterations": 12},
        {
            "optimiser": "trust_region",
            "step": 3.0,
            "iterations": 12,
            "spread": (
                0.2,
                15.0,
            ),
        },
        {"optimiser": "cmaes", "population": 24, "iterations": 25, "spread": (0.03, 4.0)},
    ],
)
def test_every_optimiser_improves_a_pose_through_register(options):
    volume, image, start = attenuation().to(torch.float32), drr().float(), off(2.0, 5.0, seed=3)
    result = register(volume, CAMERA, image, start, stages=Stage("ncc", **options))
    assert error(result.world_to_camera).item() < 0.35 * error(start).item()
    assert result.history[0].optimiser == options["optimiser"]
    again = register(volume, CAMERA, image, start, stages=Stage("ncc", **options))
    assert torch.equal(result.world_to_camera, again.world_to_camera)


def test_successive_halving_lets_the_worse_half_rest_until_as_many_are_left_as_kept():
    moving = []

    def expand(pose: Tensor) -> Expansion:
        moving.append(pose.shape[0])
        x = place(pose)
        # Steps far too short to converge, so that only the halving ends poses.
        return Expansion(
            x.square().sum(-1), 2 * x, 2000.0 * torch.eye(6).double().expand(len(x), 6, 6)
        )

    stage = Stage(
        optimiser="levenberg", iterations=12, step=1.0, final_step=1e-9, halve_every=3, keep=2
    )
    places = torch.zeros(9, 6, dtype=torch.float64)
    places[:, 3] = torch.tensor([9.0, 1, 8, 2, 7, 3, 6, 4, 5])
    levenberg = LevenbergMarquardt(
        expand, perturb(identity(9), places, ORIGIN), ORIGIN, UNITS, stage
    )
    while not levenberg.finished:
        levenberg.step()
    assert moving == [9] * 3 + [5] * 3 + [3] * 3 + [2] * 3
    assert levenberg.active.tolist() == [1, 3]


def test_a_stage_keeps_the_best_poses_that_differ():
    places = torch.zeros(5, 6, dtype=torch.float64)
    places[:, 3] = torch.tensor([0.0, 0.4, 30.0, 60.0, 60.5])
    pose, loss = perturb(identity(5), places, ORIGIN), torch.tensor([2.0, 1.0, 5.0, 3.0, math.nan])
    assert distinct_poses(pose, loss, ORIGIN, UNITS, 1.0, 9).tolist() == [1, 3, 2]
    assert distinct_poses(pose, loss, ORIGIN, UNITS, 1.0, 2).tolist() == [1, 3]
    starts = off(1.0, 2.0, seed=4, count=3)
    stage = Stage("ncc", optimiser="levenberg", step=20.0, final_step=1e-3, keep=2, apart=1.0)
    result = register(attenuation(), CAMERA, drr(), starts, stages=stage)
    assert result.all_world_to_camera.shape == (1, 4, 4)  # all three ended in one place


def test_motion_between_poses_counts_turns_at_the_lever_and_depth_by_its_unit():
    units = torch.tensor([0.01] * 3 + [1.0, 1.0, 4.0], dtype=torch.float64)
    moved = torch.tensor(
        [[0, 0, 0, 3.0, 4.0, 0], [0, 0, 0, 0, 0, 8.0], [0, 0, 0.02, 0, 0, 0]], dtype=torch.float64
    )
    found = motion_between(perturb(identity(3), moved, ORIGIN), identity(1), ORIGIN, units)[:, 0]
    # A turn by two units about z moves four of the six points by two mm.
    torch.testing.assert_close(found, torch.tensor([5.0, 2.0, 4 / 3]).double(), rtol=1e-3, atol=0)


def test_a_scene_is_resampled_to_a_stages_voxels_but_never_refined():
    from drrkit.registration.pipeline import Registration

    run = Registration(attenuation(), [], ORIGIN, "joseph", torch.Generator(), None)
    assert run._at_voxels(None) is attenuation() and run._at_voxels(4.0) is attenuation()
    assert run._at_voxels(7.0) is attenuation()  # hardly smaller
    coarse = run._at_voxels(12.0)
    assert coarse.spacing == (12.0, 12.0, 12.0) and run._at_voxels(12.0) is coarse
    long = replace(attenuation(), spacing=(6.0, 6.0, 20.0))
    run = Registration(long, [], ORIGIN, "joseph", torch.Generator(), None)
    assert run._at_voxels(12.0).spacing == (12.0, 12.0, 20.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"optimiser": "newton"}, r"optimiser: expected one of 'gradient', .*got 'newton'"),
        ({"population": 3}, r"population: expected an integer >= 4, got 3"),
        ({"halve_every": -1}, r"halve_every: expected an integer >= 0, got -1"),
        ({"keep": 0}, r"keep: expected a positive integer, got 0"),
        ({"apart": 0.0}, r"apart: expected a positive length in mm, got 0.0"),
        ({"voxel_mm": math.nan}, r"voxel_mm: expected a positive length in mm, got nan"),
        ({"spread": (0.1,) * 5}, r"spread: expected \(rad, mm\) or six"),
        ({"spread": (0.0, 1.0), "optimiser": "cmaes"}, r"spread: 'cmaes' needs positive ones"),
    ],
)
def test_a_stage_refuses_settings_of_its_optimiser_out_of_bounds(options, message):
    with pytest.raises(ValueError, match=message):
        Stage(**options)
