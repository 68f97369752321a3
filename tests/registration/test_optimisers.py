"""The optimisers of a batch of poses: CMA-ES, trust region, halving, candidates."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drrkit import Stage, perturb, register
from drrkit.registration import CmaEs, Descent, Levenberg, Optimiser, Search, TrustRegion
from drrkit.registration.optimisers.optimiser import Expansion, PoseEngine, PoseProblem
from drrkit.registration.optimisers.trust_region import box_minimum
from drrkit.registration.presets import resolve_stages
from drrkit.registration.problem.motion import distinct_poses, motion_between
from drrkit.registration.problem.rendering import SceneRenderer
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


def run(settings: Optimiser, start: Tensor, units: Tensor = UNITS, **problem: Any) -> PoseEngine:
    """The engine of these settings at its end."""
    given = PoseProblem(center=ORIGIN, units=units, **problem)
    engine = settings.begin(given, start)
    while not engine.finished:
        engine.step()
    return engine


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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

    settings = CmaEs((0.2, 8.0), 20, final_step=1e-3)
    search = run(settings, identity(3), objective=measured, iterations=150, generator=seeded(0))
    assert (search.best_loss < 1e-4).all()
    # One call a generation: twenty poses and the mean of every start that still moves.
    assert len(sizes) == search.steps and sizes[0] == 3 * 21
    assert search.stop_reason == "converged" and set(sizes) <= {21, 42, 63}


@pytest.mark.io
def test_cma_es_repeats_itself_and_leaves_numpys_generator_alone():
    settings = CmaEs((0.02, 2.0), 8, final_step=0.05)
    found = []
    for seed in (1, 1, 2):
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        given = {"objective": bowl, "iterations": 8, "generator": seeded(seed)}
        search = run(settings, identity(2), **given)
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
        found.append(torch.stack(search.trace))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][1:, 0], found[0][1:, 1])


@pytest.mark.io
def test_cma_es_ranks_losses_that_are_no_numbers_last():
    def broken(pose: Tensor) -> Tensor:
        return torch.where(pose[:, 0, 3] > 0.0, torch.nan, bowl(pose))

    settings = CmaEs((0.2, 8.0), 16, final_step=0.05)
    search = run(settings, identity(1), objective=broken, iterations=30, generator=seeded(0))
    assert search.best_loss.isfinite().all() and (search.best_pose[:, 0, 3] <= 0).all()


@pytest.mark.io
def test_cma_es_goes_on_with_its_distributions_in_a_stage_without_a_spread():
    """As long as the objective is the same, two stages are one."""

    def searched(*lengths: int) -> PoseEngine:
        found, settings = None, CmaEs((0.2, 8.0), 12, final_step=0.05)
        for length in lengths:
            given = {"iterations": length, "generator": seeded(3), "previous": found}
            found = run(settings, identity(2), objective=bowl, **given)
            settings = replace(settings, sigma=None)
        assert found is not None
        return found

    whole, parts = searched(30), searched(18, 12)
    assert parts.steps == 12
    torch.testing.assert_close(torch.stack(whole.trace[18:]), torch.stack(parts.trace))


@pytest.mark.io
def test_a_pipeline_hands_the_distribution_of_cma_es_on_to_finer_pixels():
    first = Stage(
        "ncc",
        optimiser=CmaEs(sigma=(0.1, 15.0), population=24),
        downsample=2,
        iterations=12,
        mm=True,
    )
    ends = []
    for sigma in (None, (0.1, 15.0)):
        second = replace(first, downsample=1, iterations=6, optimiser=CmaEs(sigma, 24))
        ends.append(register(attenuation(), CAMERA, drr(), off(4.0, 10.0), stages=(first, second)))
    fine = ends[0].history[1]
    assert fine.downsample == 1 and len(fine.loss) == 6
    # A new distribution is as wide as the first was; its mean has to find the valley again.
    assert float(fine.loss[-1]) < 0.5 * float(ends[1].history[1].loss[-1])


@pytest.mark.parametrize(
    "before", [Search(), Stage(), Stage(optimiser=CmaEs(), keep=1), Stage(optimiser=CmaEs())]
)
def test_a_cma_es_without_deviations_needs_another_to_go_on_with(before):
    going_on = Stage(optimiser=CmaEs(None, 30))
    for stages in ((going_on,), (before, going_on)):
        with pytest.raises(ValueError, match=r"stages: CmaEs\(sigma=None\) expects a CmaEs stage"):
            resolve_stages(stages)
    fitting = Stage(optimiser=CmaEs(population=30))
    assert resolve_stages((fitting, going_on)) == (fitting, going_on)
    with pytest.raises(ValueError, match="one start of its own"):
        resolve_stages((fitting, replace(going_on, starts=2)))


# ---- the trust region


def test_the_trust_region_solves_a_quadratic_to_the_last_digits_it_asks_for():
    def quadratic(pose: Tensor) -> Tensor:
        x = place(pose) * torch.tensor([50.0, 50.0, 50.0, 1.0, 1.0, 0.3], dtype=torch.float64)
        return (x - 1.5).square().sum(-1) + x[:, 0] * x[:, 1]

    units = torch.tensor([0.02, 0.02, 0.02, 1.0, 1.0, 3.0], dtype=torch.float64)
    settings = TrustRegion(3.0, (1, 50), final_step=1e-3)
    found = run(settings, identity(2), units, objective=quadratic, iterations=30)
    # Minimum over x0, x1: each (2/3) 1.5, value 2 (0.5)^2 + 1.
    torch.testing.assert_close(found.best_loss, torch.full((2,), 1.5).double(), rtol=0, atol=1e-3)


def test_the_trust_region_never_leaves_its_bounds_and_finds_minima_on_them():
    seen = []

    def sloped(pose: Tensor) -> Tensor:
        x = place(pose)
        seen.append(x)
        return x[:, 3] + (x[:, 4] - 1.0).square() + 100 * x[:, :3].square().sum(-1)

    settings = TrustRegion(2.0, (0.1, 4), final_step=0.01)
    found = run(settings, identity(1), objective=sloped, iterations=40, generator=seeded(0))
    visited = torch.cat(seen)
    assert (visited[:, :3].abs() <= 0.1 + 1e-9).all() and (visited[:, 3:].abs() <= 4.7).all()
    assert found.best_loss.item() == pytest.approx(-4.0, abs=0.02)


def test_the_trust_region_works_on_a_noisy_staircase_that_has_no_derivatives():
    def staircase(pose: Tensor) -> Tensor:
        x = place(pose) * torch.tensor([30.0] * 3 + [1.0] * 3, dtype=torch.float64)
        return (20 * (x - 2.0).square().sum(-1)).round() / 20

    settings = TrustRegion(2.0, (0.3, 9), final_step=0.1)
    units = torch.tensor([1 / 30] * 3 + [1.0] * 3, dtype=torch.float64)
    found = run(settings, identity(2), units, objective=staircase, iterations=40)
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
    "settings, steps",
    [
        (Levenberg(20.0), 12),
        (TrustRegion(3.0, (0.2, 15.0)), 12),
        (CmaEs((0.03, 4.0), 24), 25),
    ],
)
def test_every_optimiser_improves_a_pose_through_register(settings, steps):
    volume, image, start = attenuation().to(torch.float32), drr().float(), off(2.0, 5.0, seed=3)
    stage = Stage("ncc", optimiser=settings, iterations=steps, mm=True)
    result = register(volume, CAMERA, image, start, stages=stage)
    assert error(result.world_to_camera).item() < 0.35 * error(start).item()
    assert result.history[0].optimiser == settings.name
    again = register(volume, CAMERA, image, start, stages=stage)
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

    places = torch.zeros(9, 6, dtype=torch.float64)
    places[:, 3] = torch.tensor([9.0, 1, 8, 2, 7, 3, 6, 4, 5])
    levenberg = run(
        Levenberg(1.0, final_step=1e-9),
        perturb(identity(9), places, ORIGIN),
        expand=expand,
        iterations=12,
        halve_every=3,
        keep=2,
    )
    assert moving == [9] * 3 + [5] * 3 + [3] * 3 + [2] * 3
    assert levenberg.active.tolist() == [1, 3]


def test_a_stage_keeps_the_best_poses_that_differ():
    places = torch.zeros(5, 6, dtype=torch.float64)
    places[:, 3] = torch.tensor([0.0, 0.4, 30.0, 60.0, 60.5])
    pose, loss = perturb(identity(5), places, ORIGIN), torch.tensor([2.0, 1.0, 5.0, 3.0, math.nan])
    assert distinct_poses(pose, loss, ORIGIN, UNITS, 1.0, 9).tolist() == [1, 3, 2]
    assert distinct_poses(pose, loss, ORIGIN, UNITS, 1.0, 2).tolist() == [1, 3]
    starts = off(1.0, 2.0, seed=4, count=3)
    stage = Stage("ncc", optimiser=Levenberg(20.0, final_step=1e-3), keep=2, apart=1.0, mm=True)
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
    drawn = SceneRenderer(attenuation())
    assert drawn.at_voxels(None) is attenuation() and drawn.at_voxels(4.0) is attenuation()
    assert drawn.at_voxels(7.0) is attenuation()  # hardly smaller
    coarse = drawn.at_voxels(12.0)
    assert coarse.spacing == (12.0, 12.0, 12.0) and drawn.at_voxels(12.0) is coarse
    long = replace(attenuation(), spacing=(6.0, 6.0, 20.0))
    assert SceneRenderer(long).at_voxels(12.0).spacing == (12.0, 12.0, 20.0)


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (CmaEs, {"population": 3}, r"population: expected an integer >= 4, got 3"),
        (CmaEs, {"sigma": (0.0, 1.0)}, r"sigma: expected \(rad, length\).* all positive"),
        (TrustRegion, {"bounds": (0.1,) * 5}, r"bounds: expected \(rad, length\)"),
        (Descent, {"patience": 0}, r"patience: expected a positive integer, got 0"),
        (Stage, {"halve_every": -1}, r"halve_every: expected an integer >= 0, got -1"),
        (Stage, {"keep": 0}, r"keep: expected a positive integer, got 0"),
        (Stage, {"apart": 0.0}, r"apart: expected a positive length, got 0.0"),
        (Stage, {"voxel": math.nan}, r"voxel: expected a positive length, got nan"),
        (Stage, {"spread": (0.1,) * 5}, r"spread: expected \(rad, length\)"),
    ],
)
def test_settings_out_of_bounds_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_lengths_are_shares_of_the_extent_unless_they_are_mm():
    stage = Stage("ncc", pixel=0.02, optimiser=Levenberg(0.1), spread=(0.3, 0.1), voxel=0.01)
    found = stage.in_mm(200.0)
    assert (found.pixel, found.voxel, found.apart) == (4.0, 2.0, pytest.approx(2 / 3))
    assert found.optimiser == Levenberg(20.0, final_step=200.0 / 6000)
    assert found.spread == (0.3, 20.0) and found.mm
    # Defaults stay shares where a stage counts in mm.
    fixed = Stage("ncc", pixel=2.0, optimiser=TrustRegion(3.0), mm=True).in_mm(30.0)
    assert (fixed.pixel, fixed.optimiser.step) == (2.0, 3.0)
    assert fixed.optimiser.bounds == (0.3, pytest.approx(4.0))
    assert fixed.in_mm(500.0) == fixed
    search = Search(depth=0.5, mm=False).in_mm(300.0)
    assert (search.depth, search.apart, search.shift) == (150.0, pytest.approx(30.0), None)
