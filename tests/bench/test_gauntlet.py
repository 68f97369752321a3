"""The gauntlet's own chain against closed forms, and that its scores say what they claim."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit

if not (Path(__file__).resolve().parents[2] / "bench/studies/gauntlet").is_dir():
    pytest.skip("the bench is not part of an installed package", allow_module_level=True)

from bench.studies.gauntlet import (
    cases,
    conditions,
    leaving_out,
    physics,
    projector,
    running,
    scenes,
    tables,
)
from bench.studies.gauntlet.cases import Case, Recipe, moved, simulate
from bench.studies.gauntlet.conditions import CONDITIONS
from bench.studies.gauntlet.projector import Grid, Pinhole, area_densities, detector_positions
from bench.studies.gauntlet.solids import Box, Cylinder, Ellipsoid, Piece, add_areas
from bench.studies.gauntlet.subjects import BREATHING, JOINTS, SPINE_BENDS, Subject, phantom

AP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 800], [0, 0, 0, 1]])


def rays(count, seed=0, spread=0.15):
    rng = np.random.default_rng(seed)
    directions = np.array([0.0, 1.0, 0.0]) + spread * rng.normal(size=(count, 3))
    return np.array([3.0, -500.0, 7.0]), directions / np.linalg.norm(directions, axis=1)[:, None]


def walked(inside, source, directions, step=0.02, reach=1200.0):
    """Length inside a solid by counting points, the slow way."""
    t = step * (np.arange(int(reach / step)) + 0.5)
    return np.array([step * inside(source + t[:, None] * d).sum() for d in directions])


def turned():
    return projector.rotation_matrix(np.array([0.4, -0.7, 0.3]))


# Solids -------------------------------------------------------------------------------------------


def test_a_ball_has_the_chord_of_a_ball():
    source, directions = rays(500)
    center, radius = np.array([10.0, 20.0, -5.0]), 80.0
    along = directions @ (center - source)
    apart2 = ((center - source) ** 2).sum() - along**2
    expected = 2 * np.sqrt(np.maximum(radius**2 - apart2, 0.0))
    ball = Ellipsoid(center, turned(), np.full(3, radius))
    assert (expected > 0).sum() > 100
    np.testing.assert_allclose(ball.chords(source, directions), expected, atol=1e-5)


def test_solids_have_the_lengths_that_counting_points_finds():
    source, directions = rays(40, seed=1)
    axes, center = turned(), np.array([0.0, 30.0, 0.0])
    ellipsoid = Ellipsoid(center, axes, np.array([60.0, 90.0, 120.0]))
    box = Box(center, axes, np.array([50.0, 70.0, 90.0]))
    rod = Cylinder(center - 80 * axes[0], center + 60 * axes[0], 45.0)

    def in_ellipsoid(points):
        return (((points - center) @ axes.T / ellipsoid.radii) ** 2).sum(1) <= 1

    def in_box(points):
        return (np.abs((points - center) @ axes.T) <= box.half).all(1)

    def in_rod(points):
        local = (points - center) @ axes.T
        flat = (local[:, 1] ** 2 + local[:, 2] ** 2) <= rod.radius**2
        return flat & (local[:, 0] >= -80) & (local[:, 0] <= 60)

    for solid, inside in ((ellipsoid, in_ellipsoid), (box, in_box), (rod, in_rod)):
        expected = walked(inside, source, directions)
        assert (expected > 10).sum() > 5
        np.testing.assert_allclose(solid.chords(source, directions), expected, atol=0.05)


def test_rays_along_and_beside_a_box_and_behind_the_source():
    box = Box(np.zeros(3), np.eye(3), np.array([10.0, 20.0, 30.0]))
    along = np.array([[0.0, 1.0, 0.0]])
    assert box.chords(np.array([0.0, -50.0, 0.0]), along) == pytest.approx([40.0])
    assert box.chords(np.array([10.1, -50.0, 0.0]), along) == pytest.approx([0.0])
    assert box.chords(np.array([0.0, 5.0, 0.0]), along) == pytest.approx([15.0])
    assert box.chords(np.array([0.0, 50.0, 0.0]), along) == pytest.approx([0.0])


def test_pieces_add_up_and_never_leave_less_than_nothing():
    source, directions = rays(50, seed=2)
    ball = Ellipsoid(np.zeros(3), np.eye(3), np.full(3, 100.0))
    there = {"muscle": np.full(50, 3.0)}
    areas = add_areas(
        there, [Piece(ball, "steel", 7.9), Piece(ball, "muscle", -1.0)], source, directions
    )
    chord = ball.chords(source, directions)
    np.testing.assert_allclose(areas["steel"], 0.79 * chord)
    np.testing.assert_allclose(areas["muscle"], np.maximum(3.0 - 0.1 * chord, 0.0))


# Projector ----------------------------------------------------------------------------------------


def grid_of(hu, spacing, edge):
    """A CT by formula hu(x, y, z) on voxels of this size, on the gauntlet's own grid."""
    places = np.arange(-edge, edge + 1e-6, spacing)
    z, y, x = np.meshgrid(places, places, places, indexing="ij")
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -edge
    return Grid.of(hu(x, y, z).astype(np.float32), affine, np.full(3, -edge), np.full(3, edge))


def test_a_slab_of_water_is_as_thick_as_it_is():
    def hu(x, y, z):
        return np.where(np.abs(y) < 40.0, 0.0, -1000.0)

    grid = grid_of(hu, 2.0, 70.0)  # voxels at even places: 39 of them, 78 mm
    source, directions = rays(2000, spread=0.03)
    found = area_densities(grid, source, directions, np.random.default_rng(0))
    expected = 7.8 * physics.CT_WATER / physics.CT_MUSCLE / directions[:, 1]
    assert found["muscle"].mean() == pytest.approx(expected.mean(), rel=2e-3)
    np.testing.assert_allclose(found["muscle"], expected, rtol=0.03)  # a step is 2.7 % of it
    assert found["bone mineral"].max() < 0.02


def test_a_soft_ball_of_bone_has_the_areas_of_its_formula():
    def share(radius2):
        return np.clip(1.0 - radius2 / 50.0**2, 0.0, None) ** 2

    grid = grid_of(lambda x, y, z: 1500.0 * share(x * x + y * y + z * z) - 0.0, 2.0, 70.0)
    source, directions = rays(400, seed=3, spread=0.05)
    found = area_densities(grid, source, directions, np.random.default_rng(1))
    t = 0.05 * (np.arange(16000) + 0.5) + 200.0
    limit = physics.CT_WATER * 1.12
    for k in range(0, 400, 25):
        points = source + t[:, None] * directions[k]
        values = 1500.0 * share((points**2).sum(1))
        values[(np.abs(points) > 70).any(1)] = 0.0
        mu = physics.CT_WATER * (1 + values / 1000)
        mineral = np.clip((mu - limit) / (3.1 * physics.CT_MINERAL - limit), 0, 1) * 3.1
        expected = 0.005 * mineral.sum()
        assert found["bone mineral"][k] == pytest.approx(expected, rel=0.01, abs=0.02)


def test_what_goes_on_beyond_the_last_slice_is_that_slice():
    def hu(x, y, z):
        return np.where(x * x + y * y < 30.0**2, 40.0, -1000.0)

    places = np.arange(-60.0, 61.0, 2.0)
    z, y, x = np.meshgrid(np.arange(-20.0, 21.0, 2.0), places, places, indexing="ij")
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-60.0, -60.0, -20.0)
    grid = Grid.of(hu(x, y, z).astype(np.float32), affine, np.full(3, -60.0), np.full(3, 60.0))
    source = np.array([0.0, -500.0, 50.0])
    across = np.array([[0.0, 1.0, 0.0]])
    areas = area_densities(grid, source, across, np.random.default_rng(0))["muscle"]
    assert areas[0] == pytest.approx(6.0 * 1.04 * physics.CT_WATER / physics.CT_MUSCLE, rel=0.05)


def test_the_camera_is_the_one_that_the_user_declares():
    camera = Pinhole(1020.0, (128, 100), 2.176, (40.0, 70.0))
    user = drrkit.CArm(1020.0, (128, 100), 2.176, (40.0, 70.0))
    points = np.random.default_rng(0).uniform(-60, 60, (20, 3))
    theirs = drrkit.project_points(user, torch.from_numpy(AP)[None], torch.from_numpy(points))
    pixels = camera.pixels(points, AP)
    np.testing.assert_allclose(pixels, theirs[0].numpy()[:, ::-1], atol=1e-4)
    source, directions = camera.rays(AP, pixels[:, 0], pixels[:, 1])
    np.testing.assert_allclose(source, [0.0, -800.0, 0.0], atol=1e-9)
    towards = points - source
    towards /= np.linalg.norm(towards, axis=1)[:, None]
    np.testing.assert_allclose(directions, towards, atol=1e-9)


def test_distortion_moves_the_middle_of_an_edge_by_its_share():
    plain = detector_positions((128, 128), np.random.default_rng(0))
    bent = detector_positions((128, 128), np.random.default_rng(0), 0.04)
    cols, rows = (np.reshape(p, (256, 256)) for p in plain)
    bent_cols = bent[0].reshape(256, 256)
    assert (cols.min() >= -0.5) and (cols.max() <= 127.5) and abs(cols.mean() - 63.5) < 0.01
    off = cols[128, 0] - bent_cols[128, 0]
    x, y = cols[128, 0] - 63.5, rows[128, 0] - 63.5
    assert off == pytest.approx(0.04 * x * (x * x + y * y) / 64.0**2)
    assert off == pytest.approx(-0.04 * 64.0, rel=0.03)


# Physics ------------------------------------------------------------------------------------------


def test_materials_attenuate_as_their_ct_number_says():
    hu = torch.linspace(-1000.0, 3000.0, 401, dtype=torch.float64)
    tissue, mineral = physics.tissue_and_mineral(hu)
    mu = tissue * physics.CT_MUSCLE + mineral * physics.CT_MINERAL
    torch.testing.assert_close(mu, physics.CT_WATER * (1 + hu / 1000))
    assert (mineral[hu <= 120] == 0).all() and (tissue >= 0).all()


@pytest.mark.parametrize(
    ("material", "kev", "value"),  # Hubbell and Seltzer, NIST
    [
        ("water", 40, 0.2683),
        ("water", 100, 0.1707),
        ("muscle", 60, 0.2048),
        ("adipose", 80, 0.1800),
        ("cortical bone", 50, 0.4242),
        ("aluminium", 60, 0.2778),
        ("titanium", 60, 0.7661),
        ("steel", 80, 0.5952),
        ("copper", 100, 0.4584),
        ("iodine", 40, 22.10),
    ],
)
def test_tables_agree_with_those_of_nist(material, kev, value):
    index = list(physics.ENERGIES_KEV).index(kev)
    assert physics.MASS_ATTENUATION[material][index] == pytest.approx(value, rel=5e-3)


def test_a_spectrum_ends_at_its_voltage_and_hardens():
    for kilovolt in (70.0, 90.0, 110.0):
        photons = physics.spectrum(kilovolt)
        assert photons.sum() == pytest.approx(1.0)
        assert (photons[kilovolt <= physics.ENERGIES_KEV] == 0).all()
        mean = (photons * physics.ENERGIES_KEV).sum()
        assert 0.4 * kilovolt < mean < 0.65 * kilovolt
    water = np.linspace(0.01, 40.0, 50)
    line = -np.log(physics.transmitted({"water": water}, 90.0))
    first = (physics.detected(90.0) * np.array(physics.MASS_ATTENUATION["water"])).sum()
    assert line[0] / water[0] == pytest.approx(first, rel=1e-3)
    assert (np.diff(line / water) < 0).all()  # beam hardening
    assert 0.18 < (line[-1] - line[-2]) / (water[-1] - water[-2]) < 0.21


def smooth_body(size=256):
    row, col = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    return np.exp(-3.0 * np.clip(1.0 - 0.4 * col**2 - 0.2 * row**2, 0, 1))


def test_a_detector_of_many_photons_gives_back_the_lines():
    primary = smooth_body()
    clean = physics.Detector(scatter=0.0, photons=1e9, blur_px=0.0)
    lines = clean.lines(primary, 2, np.ones((128, 128)), np.random.default_rng(0))
    expected = -np.log(primary.reshape(128, 2, 128, 2).mean((1, 3)))
    np.testing.assert_allclose(lines, expected, atol=5e-4)


@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_scatter_is_the_stated_ratio_behind_the_body(ratio):
    primary = smooth_body()
    pixels = primary.reshape(128, 2, 128, 2).mean((1, 3))
    detector = physics.Detector(scatter=ratio, photons=1e9, blur_px=0.0)
    lines = detector.lines(primary, 2, np.ones((128, 128)), np.random.default_rng(0))
    scatter = np.exp(-lines) - pixels
    assert np.median(scatter) / np.median(pixels) == pytest.approx(ratio, rel=0.01)
    assert scatter.std() / scatter.mean() < 0.5 * pixels.std() / pixels.mean()


@pytest.mark.parametrize("photons", [50.0, 2000.0])
def test_noise_is_that_of_so_many_photons(photons):
    primary = np.full((256, 256), 0.05)
    detector = physics.Detector(scatter=0.0, photons=photons, blur_px=0.0)
    lines = detector.lines(primary, 2, np.ones((128, 128)), np.random.default_rng(0))
    signal = np.exp(-lines)
    assert signal.mean() == pytest.approx(0.05, rel=0.01)
    assert signal.std() / signal.mean() == pytest.approx(photons**-0.5, rel=0.03)


# What moves ---------------------------------------------------------------------------------------


def deformations():
    generator = np.random.default_rng(5)
    for kind, angle in (("pelvis", 12.0), ("chest", 14.0)):
        for name, center, capsules in JOINTS[kind]:
            axis = torch.from_numpy(generator.normal(size=3)).float()
            turn = conditions.Turn(
                torch.tensor(center), axis / axis.norm(), math.radians(angle), capsules
            )
            yield f"{kind} {name}", turn, torch.tensor(center)
    center, z0, z1 = SPINE_BENDS["pelvis"]
    axis = torch.tensor([0.6, 0.8, 0.0])
    bend = conditions.Bend(torch.tensor(center), axis, math.radians(12.0), z0, z1)
    yield "spine", bend, torch.tensor(center)
    for kind, (still, front) in BREATHING.items():
        breath = conditions.Breath(still, front, torch.tensor([0.0, -10.8, 14.4]))
        yield f"breath {kind}", breath, torch.tensor([0.0, (still + front) / 2, 0.0])


@pytest.mark.parametrize(("name", "deformation", "center"), list(deformations()))
def test_deformations_do_not_fold(name, deformation, center):
    generator = torch.Generator().manual_seed(0)
    points = center + 160.0 * (2 * torch.rand(4000, 3, generator=generator) - 1)
    step = 0.25
    columns = [
        (deformation(points + step * e) - deformation(points - step * e)) / (2 * step)
        for e in torch.eye(3)
    ]
    volume = torch.linalg.det(torch.stack(columns, -1))
    assert volume.min() > 0.0, name
    assert (deformation(points) - points).norm(dim=-1).max() > 2.0


def test_a_turned_bone_is_rigid_and_what_is_far_stays():
    _, center, capsules = JOINTS["pelvis"][0]
    center = torch.tensor(center)
    turn = conditions.Turn(center, torch.tensor([1.0, 0.0, 0.0]), 0.2, capsules)
    rotation = torch.from_numpy(projector.rotation_matrix(np.array([0.2, 0.0, 0.0]))).float()
    shaft = torch.tensor(capsules[3][0]) + torch.tensor([[0.0, 0, -40], [8.0, 3, -20], [-9, 4, 0]])
    there = center + (shaft - center) @ rotation.T
    torch.testing.assert_close(turn(there), shaft, atol=1e-3, rtol=0)
    far = torch.tensor([[90.0, 30.0, 1120.0], [-16.0, 120.0, 1180.0]])
    assert torch.equal(turn(far), far)


# Cases, on a small phantom ------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def coarse_steps():
    """Rays of a quarter of the samples where a scene's content, not its accuracy, is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "area_densities", coarse_area_densities)
        yield


def coarse_area_densities(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projector, "STEP_MM", 8.0)
        return area_densities(*arguments)


@pytest.fixture(scope="module")
def small():
    """A subject of coarse voxels, quick to make."""
    moving = phantom("pelvis", 3, 285.0, 5.0)
    whole = phantom("pelvis", 3, 352.0, 5.5)
    low = np.array(moving.origin)
    high = low + 5.0 * (np.array(moving.shape_xyz) - 1)
    grid = Grid.of(whole.values.numpy(), whole.affine.double().numpy(), low - 20.0, high + 20.0)
    points = drrkit.metrics.bone_points(moving, count=200).numpy()
    return Subject("random_pelvis-3", grid, moving, points, np.zeros(3), low, high)


def recipe_of(small, seed=0):
    pose = drrkit.view_ap(small.moving, 800.0)[0].double().numpy()
    camera = Pinhole.centred(1020.0, (128, 128), 2.176)
    return Recipe(np.random.default_rng(seed), small, "AP", pose, pose.copy(), camera, 90.0)


@pytest.fixture(scope="module")
def plain(small):
    return simulate(recipe_of(small), np.random.default_rng(1))


@pytest.mark.parametrize(
    "name", [n for n, c in CONDITIONS.items() if "random_pelvis" in c.kinds and n != "none"]
)
def test_every_condition_changes_what_it_says(name, small, plain, monkeypatch):
    monkeypatch.setattr(conditions, "PHANTOM_SPACING", 8.0)
    recipe = recipe_of(small)
    CONDITIONS[name].change(recipe)
    volume = small.moving
    for change in recipe.moving:
        volume = change(volume)
    user = (
        volume.shape_xyz != small.moving.shape_xyz
        or not torch.equal(volume.values, small.moving.values)
        or recipe.scale != 1.0
        or recipe.declared not in (None, recipe.camera)
    )
    scene = shows_something_else(recipe)
    if scene:
        image = simulate(recipe, np.random.default_rng(1))
        assert image.shape == (128, 128) and np.isfinite(image).all()
        assert np.abs(image - plain).max() > 0.05
    assert user or scene


def shows_something_else(recipe):
    """Whether the scene or the image is unlike the plain one."""
    added = (recipe.opening, recipe.motion, recipe.deformation)
    return (
        any(part is not None for part in added)
        or bool(recipe.pieces or recipe.processing or recipe.distortion)
        or recipe.detector != physics.Detector()
        or recipe.camera.pixel_mm != 2.176
    )


def test_a_case_is_what_the_user_has(small, monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "subject", lambda name, cache: small)
    condition = replace(CONDITIONS["rectangle_mask"], kinds=("random_pelvis",))
    first, again = (
        Case.of(condition, "develop", 3, cases.STARTS["prost"], tmp_path) for _ in range(2)
    )
    assert torch.equal(first.xray, again.xray) and torch.equal(first.start, again.start)
    assert torch.equal(first.mask, again.mask) and 0.1 < float(first.mask.mean()) < 0.7
    assert first.volume.unit == "mu" and first.xray.shape == (1, 1, 128, 128)
    for seeds in ("choose", "report"):
        other = Case.of(condition, seeds, 3, cases.STARTS["prost"], tmp_path)
        assert not np.allclose(other.truth, first.truth)
        assert not torch.allclose(other.start, first.start)


def test_a_smaller_scene_is_the_same_scene(small, monkeypatch, tmp_path):
    monkeypatch.setattr(cases, "subject", lambda name, cache: small)
    condition = replace(CONDITIONS["small"], kinds=("random_pelvis",))
    case = Case.of(condition, "develop", 0, cases.STARTS["narrow"], tmp_path)
    k = case.scale
    assert 20 / 300 <= k <= 60 / 300
    assert case.camera.sdd == pytest.approx(1020.0 * k)
    whole = small.moving.to_mu()
    pose = case.truth.copy()
    pose[:3, 3] /= k
    camera = drrkit.CArm(1020.0, (128, 128), 2.176)
    ours = drrkit.render(case.volume, case.camera, torch.from_numpy(case.truth)[None])
    theirs = drrkit.render(whole, camera, torch.from_numpy(pose)[None])
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


def test_starts_are_as_wide_as_their_protocols(small):
    recipe = recipe_of(small)
    recipe.truth = moved(recipe.truth, np.array([0.1, 0, 0, 20.0, 0, 0]), np.zeros(3))
    center = small.center
    for name, about in (("narrow", recipe.truth), ("prost", recipe.nominal)):
        start = cases.STARTS[name]
        seen = []
        for seed in range(300):
            rng = np.random.default_rng(seed)
            pose = cases.start_pose(recipe, small.moving, rng, start)
            off = (pose - about)[:3, :3] @ center + (pose - about)[:3, 3]
            seen.append(off)
        reach = np.abs(seen).max(0)
        assert (reach <= np.array(start.widths[3:]) + 1e-6).all()
        assert (reach > 0.9 * np.array(start.widths[3:])).all()


def case_with(small, **changes):
    camera = Pinhole.centred(1020.0, (128, 128), 2.176)
    case = Case(
        volume=small.moving,
        camera=drrkit.CArm(1020.0, (128, 128), 2.176),
        xray=torch.zeros(1, 1, 128, 128),
        mask=None,
        start=torch.eye(4),
        truth=AP,
        true_camera=camera,
        declared=camera,
        points=small.points,
        scale=1.0,
        subject="",
        view="",
    )
    return replace(case, **changes)


def test_errors_have_the_parts_they_are_made_of(small):
    case = case_with(small)
    pose = AP.copy()
    pose[:3, 3] += (3.0, 4.0, 12.0)
    errors = case.errors(pose)
    assert errors["mtre"] == pytest.approx(13.0)
    assert errors["in_plane"] == pytest.approx(5.0)
    assert errors["depth"] == pytest.approx(12.0)
    assert errors["degrees"] == pytest.approx(0.0, abs=1e-4)
    ours = drrkit.metrics.mtre(
        torch.from_numpy(AP), torch.from_numpy(pose), torch.from_numpy(small.points)
    )
    assert errors["mtre"] == pytest.approx(float(ours))


def test_a_pose_that_moves_with_the_principal_point_reprojects(small):
    camera = Pinhole.centred(1020.0, (128, 128), 2.176)
    col, row = camera.principal
    declared = replace(camera, principal=(col + 5.0, row - 3.0))
    case = case_with(small, declared=declared)
    assert case.errors(AP)["reprojection"] == pytest.approx(
        math.hypot(5, 3) * 2.176 * 800 / 1020, rel=0.02
    )
    pose = moved(AP, np.array([0, 0, 0, -5.0, 3.0, 0]) * 2.176 * 800 / 1020, np.zeros(3))
    turn = np.array([3.0, 5.0, 0]) * 2.176 / 1020  # and turns to be seen alike
    best = moved(pose, np.append(-turn, np.zeros(3)), np.zeros(3))
    assert case.errors(best)["reprojection"] < 1.0
    assert case.errors(pose)["in_plane"] > 8.0


def test_a_turned_image_is_that_of_the_turned_pose(small):
    points, camera = small.points[:50], Pinhole.centred(1020.0, (128, 128), 2.176)
    for seed in range(4):
        recipe = recipe_of(small, seed)
        conditions.rotated(recipe)
        pixels = camera.pixels(points, recipe.truth)
        inside = ((pixels > 2) & (pixels < 125)).all(1)
        assert inside.sum() > 10
        for point in points[inside]:
            col, row = np.round(camera.pixels(point[None], recipe.truth)[0]).astype(int)
            image = np.zeros((128, 128))
            image[row, col] = 1.0
            seen = np.argwhere(recipe.processing[0](image))[0][::-1]
            expected = camera.pixels(point[None], recipe.expected)[0]
            assert np.abs(seen - expected).max() < 1.0


@pytest.mark.parametrize(("axis", "sign"), [(2, 1.0), (2, -1.0), (0, 1.0), (0, -1.0)])
def test_a_cut_leaves_the_stated_share_of_the_field(small, axis, sign):
    recipe = recipe_of(small)
    conditions._end(recipe, axis, sign, 0.1)
    volume = recipe.moving[0](small.moving)
    edges = np.array(volume.origin), np.array(volume.origin) + 5.0 * np.array(volume.shape_xyz)
    edge = edges[1 if sign > 0 else 0][axis]
    # the field is 218.5 mm at the isocentre: the cut stands 0.4 of it from the middle
    assert sign * edge == pytest.approx(0.4 * 218.5, abs=9.0)


def test_metal_is_painted_where_it_is_meant(small):
    values = small.moving.values.clone()
    center = np.array([10.0, -20.0, 30.0])
    scenes.paint(small.moving, values, center, 20.0)
    z, y, x = np.nonzero(values.numpy() == 3071.0)
    places = np.array(small.moving.origin) + 5.0 * np.stack([x, y, z], 1)
    assert np.linalg.norm(places - center, axis=1).max() <= 20.0
    assert len(places) * 5.0**3 == pytest.approx(4 / 3 * math.pi * 20.0**3, rel=0.15)


# Rows, scores, tables -----------------------------------------------------------------------------


def row(**changes):
    known = {
        "seeds": "develop",
        "condition": "none",
        "start": "narrow",
        "number": 0,
        "mtre": 1.0,
        "in_plane": 1.0,
        "depth": 1.0,
        "reprojection": 1.0,
        "sigma_depth": 1.0,
        "confidence": 0.9,
        "accepted": True,
    }
    return running.Row(**{**known, **changes})


def test_right_and_wrong_by_condition():
    far = {"mtre": 30.0, "in_plane": 20.0, "reprojection": 1.0, "depth": 20.0}
    assert tables.right(row()) and not tables.fault(row())
    assert tables.fault(row(**far)) and not tables.right(row(**far))
    assert not tables.fault(row(**far, accepted=False))
    assert tables.fault(row(in_plane=float("nan"), mtre=float("nan")))
    assert tables.right(row(condition="principal_point", **far))
    assert not tables.fault(row(condition="principal_point", **far))
    deep = row(condition="sdd", depth=16.0, mtre=16.0)
    assert tables.right(deep) and tables.fault(deep)
    assert not tables.fault(replace(deep, sigma_depth=6.0))
    assert tables.fault(row(condition="mirrored")) and not tables.right(row(condition="mirrored"))
    assert not tables.fault(row(condition="mirrored", reasons="handedness"))
    assert tables.fault(row(condition="wrong_patient", reasons="handedness"))
    assert not tables.right(row(condition="small", scale=0.1, mtre=0.5))
    assert tables.right(row(condition="large", scale=2.0, mtre=1.9))


def test_wilson_agrees_with_the_one_for_tensors():
    for successes, total in ((0, 7), (5, 8), (20, 20)):
        errors = torch.cat([torch.zeros(successes), torch.full((total - successes,), 9.0)])
        theirs = drrkit.metrics.success_rate(errors, 2.0)
        assert tables.wilson(successes, total) == pytest.approx((theirs.low, theirs.high))


def test_a_run_goes_on_after_a_kill_in_the_middle_of_a_line(tmp_path, monkeypatch):
    wanted = running.jobs("develop", {"narrow": 3, "prost": 1}, ["none", "gas"])
    assert len(set(wanted)) == 8
    calls = []

    def measure(job, cache):
        calls.append(job)
        return row(**vars(job), mtre=job.number + 0.125, error="a, b\n'c'")

    monkeypatch.setattr(running, "measure", measure)
    runner = running.run(wanted, tmp_path, tmp_path, (0, 1))
    for _ in range(3):
        next(runner)
    runner.close()
    path = tmp_path / "rows.0-of-1.csv"
    path.write_bytes(path.read_bytes()[:-9])  # cut inside the third row
    assert [r.job for r in running.read_rows(tmp_path)] == wanted[:2]
    for shard in range(2):  # two processes go on where one stopped
        list(running.run(wanted, tmp_path, tmp_path, (shard, 2)))
    rows = {r.job: r for r in running.read_rows(tmp_path)}
    assert set(rows) == set(wanted) and len(calls) == 3 + 6
    assert rows[wanted[5]].mtre == wanted[5].number + 0.125
    assert rows[wanted[5]].accepted is True and rows[wanted[5]].error == "a, b 'c'"


def test_the_develop_run_is_as_large_as_it_is_said_to_be():
    wanted = running.develop_jobs()
    assert len(wanted) == 12 * len(CONDITIONS) == len(set(wanted))
    assert {job.seeds for job in wanted} == {"develop"}
    narrow = [job for job in wanted if job.start == "narrow"]
    assert wanted[: len(narrow)] == narrow and len(narrow) == 8 * len(CONDITIONS)
    assert 45 <= len(CONDITIONS) <= 60


def test_answers_of_results_with_and_without_acceptance():
    class Old:
        confidence = torch.tensor(0.71)
        covariance = torch.diag(torch.tensor([0.0, 0, 0, 0, 0, 9.0]))

    class New:
        confidence = None
        confidence_10mm = 0.995
        accepted = False
        reasons = ("handedness", "left_range")

    old, new = running.answer(Old()), running.answer(New())
    assert old["accepted"] is True and old["sigma_depth"] == pytest.approx(3.0)
    Old.confidence = torch.tensor(0.69)
    assert running.answer(Old())["accepted"] is False
    assert math.isnan(new["confidence"]) and new["confidence_10mm"] == 0.995
    assert new["accepted"] is False and new["reasons"] == "handedness left_range"


def test_tables_show_faults_and_runs_side_by_side():
    bad = row(number=1, mtre=50.0, in_plane=50.0)
    text = tables.markdown({"before": [row(), bad], "after": [row(), replace(bad, accepted=False)]})
    line = next(line for line in text.splitlines() if line.startswith("| none"))
    assert line == "| none | 1 / 1 / 2 / **1** of 2 | 1 / 1 / 1 / 0 of 2 |"
    assert "wrong of accepted" in text and "1 of 2, 50.0 % (9-91)" in text


@pytest.mark.parametrize("part", leaving_out.PARTS)
def test_what_is_left_out_is_gone_within_and_back_afterwards(part: str) -> None:
    def made() -> list[object]:
        pipeline, cut = drrkit.registration.pipeline, leaving_out.rendering.CutFaces
        doubts = pipeline.Registration.doubt.__code__.co_argcount
        volume = drrkit.Volume(torch.ones(1, 8, 8, 8), spacing=(1, 1, 1))
        trials = [pipeline.trials_of(name) for name in ("auto", "global")]
        return [*trials, len(cut(volume).faces), doubts]

    before = made()
    with leaving_out.without(part):
        assert made() != before
    assert made() == before
    with leaving_out.without(None):
        assert made() == before
