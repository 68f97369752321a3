"""The global search: its grid, the matching of templates, its candidates, the whole pipeline."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import drrkit
from drrkit import CArm, Stage, perturb, register, render, simulate_xray, view_ap
from drrkit.geometry import Camera, project_points, so3_exp, volume_center
from drrkit.losses import sobel
from drrkit.metrics import rotation_error
from drrkit.registration import GLOBAL, Search, pipeline
from drrkit.registration.certainty import Agreement
from drrkit.registration.lengths import motion_units
from drrkit.registration.problem.rendering import SceneRenderer
from drrkit.registration.problem.views import View
from drrkit.registration.search.matching import fast_size, make_templates
from drrkit.registration.search.search import GlobalSearch, largest_roll, view_directions
from tests.support.registered_torso import attenuation, box_mtre, phantom

CAMERA = CArm(1020.0, (64, 64), 4.352)


def center() -> Tensor:
    return volume_center(phantom())


def turned(x: float, y: float, z: float, shift: tuple[float, float, float]) -> Tensor:
    """An AP pose turned by these degrees about the camera's axes and shifted, [4, 4]."""
    xi = torch.tensor([math.radians(a) for a in (x, y, z)] + [0.0] * 3, dtype=torch.float64)
    pose = perturb(view_ap(phantom(), 800.0), xi, center())[0]
    pose[:3, 3] += torch.tensor(shift, dtype=torch.float64)
    return pose


def error(world_to_camera: Tensor, truth: Tensor) -> Tensor:
    """mTRE [B] mm over a box about the volume's centre."""
    return box_mtre(world_to_camera, truth, center())


def searched(
    xray: Tensor, start: Tensor, search: Search, camera: Camera = CAMERA, mask: Tensor | None = None
) -> GlobalSearch:
    view = View(camera, xray, mask, None)
    units = motion_units(camera, 800.0)
    return GlobalSearch(SceneRenderer(attenuation()), view, start, center(), units, search)


def finished(search: GlobalSearch) -> GlobalSearch:
    while not search.finished:
        search.step()
    return search


# ---- the grid of directions and rolls


@pytest.mark.parametrize("step, half", [(15.0, 85.0), (10.0, 30.0), (20.0, 180.0)])
def test_every_direction_of_the_cone_has_one_of_the_grid_nearby(step, half):
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    grid = so3_exp(view_directions(math.radians(step), math.radians(half))) @ axis
    assert torch.equal(grid[0], axis)
    assert torch.rad2deg(torch.acos(grid[:, 2].clamp(-1, 1))).max() <= half + 1e-6
    generator = torch.Generator().manual_seed(0)
    wanted = functional.normalize(torch.randn(4000, 3, generator=generator).double(), dim=1)
    wanted = wanted[wanted[:, 2] > math.cos(math.radians(half - 0.8 * step))]
    nearest = torch.rad2deg(torch.acos((wanted @ grid.mT).amax(1).clamp(-1, 1)))
    assert nearest.max() < 0.85 * step and nearest.mean() < 0.45 * step
    # As many as the cone's share of the sphere, one for every step squared.
    area = 2 * math.pi * (1 - math.cos(math.radians(half)))
    assert len(grid) == pytest.approx(area / math.radians(step) ** 2, rel=0.1, abs=2)


def test_directions_are_reached_the_shortest_way_even_the_opposite_one():
    grid = view_directions(math.radians(25.0), math.pi)
    tilt = so3_exp(grid)[:, 2, 2].clamp(-1, 1).acos()
    torch.testing.assert_close(grid.norm(dim=1), tilt, atol=1e-6, rtol=0)
    assert (grid[:, 2] == 0).all() and tilt.max() == pytest.approx(math.pi, abs=1e-6)


def test_the_largest_roll_makes_the_whole_turn_as_large_as_allowed():
    for tilt, most in ((0.0, 1.2), (0.5, 1.2), (1.0, 1.2)):
        roll = largest_roll(tilt, most)
        tilted, rolled = so3_exp(torch.tensor([[tilt, 0, 0], [0, 0, roll]], dtype=torch.float64))
        whole = tilted @ rolled
        assert math.acos((float(whole.trace()) - 1) / 2) == pytest.approx(most, abs=1e-9)
    assert largest_roll(1.3, 1.2) == 0.0 and largest_roll(0.3, 4.0) == math.pi


# ---- matching


def random_view(mask: bool, seed: int = 0) -> View:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 1, 9, 11, generator=generator, dtype=torch.float64)
    weight = torch.rand(1, 1, 9, 11, generator=generator, dtype=torch.float64) if mask else None
    return View(CArm(1000.0, (9, 11), 10.0, (4.0, 5.0)), image, weight, None)


@pytest.mark.parametrize("mask", [False, True])
def test_scores_are_the_normalised_gradient_correlations_of_every_offset(mask):
    roll, scale = torch.tensor([0.0, 0.3, 0.3]).double(), torch.tensor([1.0, 1.0, 1.2]).double()
    templates = make_templates(random_view(mask), 100.0, roll, scale, 4.0)
    generator = torch.Generator().manual_seed(5)
    size, reach = templates.image_size, templates.reach
    images = torch.rand(2, size, size, generator=generator, dtype=torch.float64)
    scores = templates.scores(images, 3)
    half = templates.weight.shape[-1] // 2
    for image, template, y, x in ((0, 0, 0, 0), (1, 1, -3, 2), (1, 2, 4, 4), (0, 2, -4, 1)):
        row, col = size // 2 + y, size // 2 + x
        window = images[image, row - half - 1 : row + half + 2, col - half - 1 : col + half + 2]
        h = torch.stack(sobel(window))
        weight = templates.weight[template]
        # The template's own energy is one, weighed by the mask once.
        expected = (templates.gradient[template] * h).sum() / (weight * h.square()).sum().sqrt()
        own = templates.gradient[template].square() / weight.clamp_min(1e-6)
        assert float(own.sum()) == pytest.approx(1.0)
        found = scores[image, template, y + reach, x + reach]
        assert float(found) == pytest.approx(float(expected), abs=1e-9)


def test_a_template_that_neither_turns_nor_scales_is_the_xrays_gradient():
    view = random_view(False)
    one = torch.ones(1, dtype=torch.float64)
    templates = make_templates(view, 100.0, 0 * one, one, 4.0)
    half = templates.weight.shape[-1] // 2
    x, y = sobel(view.xray)
    # Pixel (row 5, col 4) is the principal point; the border has no derivative.
    part = (slice(half - 4, half + 3), slice(half - 3, half + 6))
    inner = templates.weight[0][part]
    assert inner.shape == x.shape[-2:] and bool((inner == 1).all())
    assert templates.weight.sum() == inner.sum()
    found = torch.stack([templates.gradient[0, k][part] for k in range(2)])
    expected = torch.cat((x, y), 1)[0]
    cosine = functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert float(cosine) > 0.9  # three by three samples smooth random pixels a little


def test_the_shift_roll_and_scale_of_an_xray_within_a_wider_image_are_found():
    wide = CArm(1020.0, (96, 96), 8.704, (48.0, 48.0))
    image = render(attenuation(), wide, view_ap(phantom(), 800.0), supersample=2)
    # The X-ray: a window about pixel (row 41, col 53), turned by 20 degrees, 1.15 times smaller.
    grid = torch.arange(32, dtype=torch.float64) - 15.5
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    c, s = math.cos(math.radians(20.0)), math.sin(math.radians(20.0))
    col, row = 53 + 1.15 * (c * x - s * y), 41 + 1.15 * (s * x + c * y)
    place = torch.stack((col, row), -1)[None] / 47.5 - 1.0
    xray = functional.grid_sample(image.double(), place, align_corners=True)
    view = View(CArm(1020.0, (32, 32), 8.704), xray, None, None)
    rolls = torch.deg2rad(torch.tensor([0.0, -10.0, 10.0, -20.0, 20.0, 30.0]).double())
    pairs = torch.cartesian_prod(rolls, torch.tensor([0.87, 1.0, 1.15]).double())
    focal = float(wide.K[0, 0])
    templates = make_templates(view, focal, pairs[:, 0], pairs[:, 1], 10.0)
    size = templates.image_size
    canvas = functional.pad(image[0].double(), [size // 2 - 48, size - size // 2 - 48] * 2)
    best = templates.peaks(canvas, len(pairs)).best(1)
    assert math.degrees(float(pairs[best.template, 0])) == pytest.approx(20.0)
    assert float(pairs[best.template, 1]) == pytest.approx(1.15)
    assert best.offset[0].tolist() == [5, -7] and float(best.score) > 0.95


def test_sizes_for_the_fft_have_small_factors_only():
    assert [fast_size(n) for n in (1, 7, 17, 61, 97, 101, 131)] == [2, 8, 18, 64, 100, 108, 144]


# ---- candidates


@pytest.mark.parametrize(
    "spacing, size, foot", [(4.352, (64, 64), None), ((5.0, 4.0), (48, 72), (40.0, 20.0))]
)
def test_the_candidate_of_a_pose_on_the_grid_is_that_pose(spacing, size, foot):
    camera = CArm(1020.0, size, spacing, foot)
    start = turned(3.0, -5.0, 10.0, (0.0, 0.0, 20.0))
    search = Search(
        rotation=math.radians(40.0), step=math.radians(20.0), depth=150.0, pixels=48, voxel=None
    )
    grid = searched(torch.zeros(1, 1, *size), start, search, camera)
    # A pose whose source is where a wide image is rendered from; then turned about the source by
    # whole rolls of the grid and shifted by whole pixels of it.
    wide = 1 + int(grid.tilts[1:8].argmax())
    roll = grid.templates.roll[grid.templates.roll > 0][0]
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    about_axis = so3_exp(roll * axis)
    pointing = torch.tensor([4.0, -3.0, grid.focal], dtype=torch.float64)
    tilt = torch.linalg.cross(axis, pointing)
    angle = math.atan2(float(tilt.norm()), grid.focal)
    camera_from_wide = (so3_exp(tilt / tilt.norm() * angle) @ about_axis).mT
    truth = torch.eye(4, dtype=torch.float64)
    truth[:3, :3] = camera_from_wide @ grid.rotations[wide]
    truth[:3, 3] = grid.distances[wide] * camera_from_wide[:, 2] - truth[:3, :3] @ center()
    xray = render(attenuation(), camera, truth, supersample=2)
    pose, loss = finished(searched(xray, start, search, camera)).candidates()
    assert float(rotation_error(pose[0], truth)) < math.radians(1e-4)
    # What the true principal ray meets at the centre's depth is on the found one, too, at a
    # distance that the nearest scale of the grid leaves uncertain by half a step.
    normal, ray = grid.rotations[wide][2], truth[2, :3]
    source = -truth[:3, :3].mT @ truth[:3, 3]
    reach = (center() - source) @ normal / (ray @ normal)
    seen = pose[0, :3, :3] @ (source + reach * ray) + pose[0, :3, 3]
    assert seen[:2].abs().max() < 1e-3
    ratio = float(seen[2] / reach)
    assert abs(math.log(ratio)) < 0.6 * math.log(search.depth_step)
    assert float(loss[0]) < 0.2


def test_candidates_differ_and_come_best_first():
    truth = turned(-8.0, 6.0, -12.0, (10.0, -15.0, 20.0))
    xray = render(attenuation(), CAMERA, truth, supersample=2)
    search = Search(rotation=math.radians(50), depth=200.0, keep=12, mm=True)
    grid = finished(searched(xray, turned(5, 5, 0, (0, 0, 0)), search))
    pose, loss = grid.candidates()
    torch.testing.assert_close(grid.best_pose[0], pose[0])
    assert pose.shape == (12, 4, 4) and (loss.diff() >= 0).all()
    assert grid.trace[-1].item() == pytest.approx(loss[0].item())
    assert error(pose[:3], truth).min() < 40.0
    # Within the range that was asked for.
    turns = rotation_error(pose, grid.start)
    assert turns.max() < math.radians(50 + 15)
    depth = pose[:, 2, :3] @ center() + pose[:, 2, 3]
    assert (depth > 590).all() and (depth < 1030).all()


def test_the_volumes_centre_stays_inside_the_xray_unless_a_shift_is_given():
    start = turned(0, 0, 0, (0, 0, 0))
    truth = turned(0, 0, 0, (140.0, -20.0, 0.0))
    xray = simulate_xray(phantom(), CAMERA, truth)
    narrow = Search(rotation=math.radians(25), step=math.radians(12), depth=100.0, mm=True)
    wide = replace(narrow, shift=180.0)
    for search in (narrow, wide):
        pose, _ = finished(searched(xray, start, search)).candidates()
        place = project_points(CAMERA, pose, center()[None])[:, 0]
        outside = ((place < -2) | (place > 65)).any(1)
        assert bool(outside.any()) == (search is wide)
    result = register(attenuation(), CAMERA, xray, start, stages=(wide, *GLOBAL[1:]))
    assert error(result.world_to_camera, truth).item() < 4.0


def test_masked_pixels_do_not_count_in_a_search():
    truth = turned(0, 0, 0, (20.0, 10.0, 0.0))
    xray = render(attenuation(), CAMERA, truth, supersample=2)
    spoiled, mask = xray.clone(), torch.ones(1, 1, 64, 64)
    spoiled[..., 10:30, 30:60] = 40.0 * torch.rand(
        20, 30, generator=torch.Generator().manual_seed(0)
    )
    mask[..., 9:31, 29:61] = 0.0
    search = Search(
        rotation=math.radians(20), step=math.radians(12), depth=100.0, voxel=None, mm=True
    )
    start = turned(0, 0, 0, (0, 0, 0))
    scores = [
        1 - float(finished(searched(image, start, search, mask=weight)).candidates()[1][0])
        for image, weight in ((xray, mask), (spoiled, mask), (spoiled, None))
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6) and scores[2] < 0.6 < scores[0]


# ---- the pipeline


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_global_pipeline_ends_within_2_mm_from_far_away(seed, device):
    generator = torch.Generator().manual_seed(seed)
    draw = (2 * torch.rand(12, generator=generator, dtype=torch.float64) - 1).tolist()
    truth = turned(*(15 * a for a in draw[:3]), tuple(25 * t for t in draw[3:6]))
    start = turned(*(50 * a for a in draw[6:9]), (200 * draw[9], 200 * draw[10], 300 * draw[11]))
    xray = simulate_xray(phantom(), CAMERA, truth, seed=seed)
    result = register(
        attenuation().to(device), CAMERA, xray.to(device), start.to(device), stages="global"
    )
    assert error(start, truth).item() > 90.0
    assert error(result.world_to_camera.cpu(), truth).item() < 2.0
    assert result.confidence > 0.9
    names = ["search"] + [stage.name for stage in GLOBAL[1:]]
    assert [record.similarity for record in result.history] == names
    assert result.history[0].optimiser == "search" and result.history[0].loss.shape[1] == 1


def test_a_user_without_any_start_needs_none():
    truth = turned(20.0, -15.0, 12.0, (10.0, -15.0, -60.0))
    xray = simulate_xray(phantom(), CAMERA, truth)
    result = register(attenuation(), CAMERA, xray, stages="global")
    assert error(result.world_to_camera, truth).item() < 2.0
    again = register(attenuation(), CAMERA, xray[0, 0], init=None, stages="global")
    assert torch.equal(result.world_to_camera, again.world_to_camera)


def test_a_view_from_behind_is_found_when_all_turns_are_searched():
    truth = turned(10.0, 165.0, -130.0, (0.0, 10.0, 0.0))
    xray = simulate_xray(phantom(), CAMERA, truth)
    everywhere = (Search(rotation=math.pi, depth=120.0, keep=60, mm=True), *GLOBAL[1:])
    start = turned(0, 0, 0, (0, 0, 0))
    result = register(attenuation(), CAMERA, xray, start, stages=everywhere)
    assert error(result.world_to_camera, truth).item() < 5.0


def test_a_search_finds_out_whether_an_xray_is_inverted():
    truth, start = turned(10, -8, 5, (10, 5, 20)), turned(-20, 25, -15, (60, -40, 100))
    xray = simulate_xray(phantom(), CAMERA, truth)
    dark = torch.exp(-0.2 * xray)
    blind = register(attenuation(), CAMERA, dark, start, stages=(Search(repeats=0), *GLOBAL[1:]))
    assert error(blind.world_to_camera, truth).item() > 10.0 and blind.confidence < 0.8
    for inverted, image in ((None, dark), (None, xray), (True, dark)):
        stages = (Search(inverted=inverted), *GLOBAL[1:])
        result = register(attenuation(), CAMERA, image, start, stages=stages)
        assert error(result.world_to_camera, truth).item() < 2.0 and result.confidence > 0.9


def test_several_starts_are_all_searched_about():
    truth = turned(0.0, 40.0, 0.0, (0.0, 0.0, 0.0))
    xray = simulate_xray(phantom(), CAMERA, truth)
    starts = torch.stack([turned(0, -40, 0, (0, 0, 0)), turned(0, 60, 20, (0, 0, 30))])
    near = Search(rotation=math.radians(30), depth=80.0, keep=10, mm=True)
    result = register(attenuation(), CAMERA, xray, starts, stages=(near, *GLOBAL[1:]))
    assert error(result.world_to_camera, truth).item() < 2.0


def test_a_search_whose_outcome_is_not_trusted_is_repeated_more_densely():
    truth, start = turned(5, -5, 10, (10, -15, 20)), turned(35, -25, -30, (100, -80, 100))
    xray = simulate_xray(phantom(), CAMERA, truth)
    starved = Search(rotation=math.radians(25), step=math.radians(20), keep=1)
    once = (replace(starved, repeats=0), *GLOBAL[1:])
    failed = register(attenuation(), CAMERA, xray, start, stages=once)
    assert error(failed.world_to_camera, truth).item() > 100.0 and failed.confidence < 0.8
    found = register(attenuation(), CAMERA, xray, start, stages=(starved, *GLOBAL[1:]))
    assert error(found.world_to_camera, truth).item() < 2.0 and found.confidence > 0.95
    assert len(found.history) == 2 * len(GLOBAL)
    denser = starved.denser()
    assert denser.step < starved.step and denser.rotation > starved.rotation
    # A bar of trust that nothing reaches: the better of the two outcomes is returned.
    never = (replace(starved, trusted=1.0), *GLOBAL[1:])
    assert register(attenuation(), CAMERA, xray, start, stages=never).confidence > 0.95


def test_after_a_denser_search_that_is_rejected_the_first_one_s_records_count(monkeypatch):
    """The denser search here agrees less."""
    truth = turned(5, -5, 10, (10, -15, 20))
    xray = simulate_xray(phantom(), CAMERA, truth)
    agreed = itertools.chain((0.9, 0.5), itertools.repeat(0.1))
    monkeypatch.setattr(pipeline, "agreement", lambda *_: Agreement(next(agreed), 4096))
    first = (Search(math.radians(30), keep=20, trusted=1.0), *GLOBAL[1:])
    found = register(attenuation(), CAMERA, xray, truth, stages=first)
    assert found.agreement == 0.9 and error(found.world_to_camera, truth).item() < 2.0
    assert [record.counted for record in found.history] == [True] * 5 + [False] * 5
    assert found.stop_reason == found.history[4].stop_reason
    assert found.as_dict()["stages"][5]["counted"] is False


@pytest.mark.parametrize(
    "turn, shift, search",
    [
        ((75, -30, 20), (30, -20, 40), Search(rotation=math.radians(20), step=math.radians(10))),
        ((10, 5, -80), (-20, 30, 0), Search(rotation=math.radians(25), step=math.radians(12))),
        ((0, 12, -5), (20, 10, 30), Search(shift=15.0, rotation=math.radians(20), mm=True)),
    ],
)
def test_a_search_whose_range_is_too_small_says_so_by_its_confidence(turn, shift, search):
    truth = turned(4.0, -6.0, 8.0, (120.0, -30.0, 15.0) if search.shift else (10.0, -15.0, 20.0))
    start = turned(*turn, shift)
    xray = simulate_xray(phantom(), CAMERA, truth)
    stages = (replace(search, repeats=0, keep=5), *GLOBAL[1:])
    wrong = register(attenuation(), CAMERA, xray, start, stages=stages)
    assert error(wrong.world_to_camera, truth).item() > 50.0
    assert not wrong.accepted and wrong.confidence < 0.5
    # The same X-ray is no hard one where the range is as it should be.
    wide = Search(shift=180.0, mm=True) if search.shift else Search()
    right = register(attenuation(), CAMERA, xray, start, stages=(wide, *GLOBAL[1:]))
    assert error(right.world_to_camera, truth).item() < 4.0 and right.confidence > 0.9


def test_an_interrupted_search_returns_the_start_or_the_best_candidate_up_to_then(monkeypatch):
    truth = turned(5.0, 5.0, 5.0, (0.0, 0.0, 0.0))
    xray = render(attenuation(), CAMERA, truth)
    start = turned(0, 0, 0, (0, 0, 0))
    original = GlobalSearch.step
    for allowed in (0, 2):
        done = 0

        def step(search: GlobalSearch, allowed: int = allowed) -> None:
            nonlocal done
            if done == allowed:
                raise KeyboardInterrupt
            done += 1
            original(search)

        monkeypatch.setattr(GlobalSearch, "step", step)
        result = register(attenuation(), CAMERA, xray, start, stages="global")
        assert result.stop_reason == "interrupted" and len(result.history) == 1
        assert result.history[0].loss.shape == (allowed, 1)
        if allowed == 0:
            assert torch.equal(result.world_to_camera, start)
        else:
            assert error(result.world_to_camera, truth) < 200.0


# ---- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rotation": 0.0}, r"rotation: expected a positive length, got 0.0"),
        ({"depth": -1.0}, r"depth: expected a positive length, got -1.0"),
        ({"shift": math.nan}, r"shift: expected a positive length, got nan"),
        ({"step": 2.0}, r"step: expected less than a right angle \(rad\), got 2.0"),
        ({"depth_step": 1.0}, r"depth_step: expected a ratio above 1, got 1.0"),
        ({"pixels": 4}, r"pixels: expected an integer >= 8, got 4"),
        ({"keep": 0}, r"keep: expected a positive integer, got 0"),
        ({"inverted": "no"}, r"inverted: expected True, False or None, got 'no'"),
        ({"repeats": -1}, r"repeats: expected an integer >= 0, got -1"),
        ({"trusted": 1.5}, r"trusted: expected a number in \[0, 1\], got 1.5"),
        ({"between": (1.0, 0.4)}, r"between: expected \(nearest, farthest\) > 0"),
    ],
)
def test_a_search_refuses_settings_out_of_bounds(options, message):
    with pytest.raises(ValueError, match=message):
        Search(**options)


def test_a_search_says_where_it_cannot_search():
    xray, start = torch.rand(64, 64), turned(0, 0, 0, (0, 0, 0))
    parallel = Camera(CAMERA.K, CAMERA.size, CAMERA.sdd, "parallel")
    with pytest.raises(ValueError, match=r"camera: a search needs a cone beam, got 'parallel'"):
        register(attenuation(), parallel, xray, start, stages="global")
    far = turned(0, 0, 0, (0.0, 0.0, 2000.0))
    with pytest.raises(ValueError, match=r"init: expected the volume's centre .* got 2800 mm"):
        register(attenuation(), CAMERA, xray, far, stages="global")
    with pytest.raises(TypeError, match=r"init: expected a tensor .* no Search to find one"):
        register(attenuation(), CAMERA, xray)
    with pytest.raises(ValueError, match=r"stages: expected a Search to be the first stage"):
        register(attenuation(), CAMERA, xray, start, stages=[Stage(), Search()])

    class Scene:
        def render(self, camera: Camera, world_to_camera: Tensor) -> Tensor:
            return drrkit.render(attenuation(), camera, world_to_camera)

    with pytest.raises(TypeError, match=r"init: expected a tensor .* for a scene"):
        register(Scene(), CAMERA, xray, stages="global", center=center())
