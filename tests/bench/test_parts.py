"""The benchmark's parts: scenes, the stopwatch, floors, comparisons, stubs."""

from __future__ import annotations

import gc
import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from bench.projectors import floors
from bench.projectors.compare import differences, fine_integrals, relative
from bench.projectors.peers.stubs import Stub, stubbed
from bench.projectors.plan import SECTIONS, Workload, effort, workloads
from bench.projectors.scene import VIEWS, Scene, find_scene, load_scene, synthetic
from bench.projectors.timing import Stopwatch, peak_bytes, statistics_of
from drrkit.geometry import view_frames, volume_center

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return synthetic((20, 32, 32), spacing=8.0)


def box(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Scene:
    """Uniform voxels (z, y, x)."""
    return Scene(drrkit.Volume(torch.ones(shape), spacing, unit="mu"), "box")


# ---- scenes


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (12.0, 30.0, 9.0)])
def test_source_and_detector_stay_outside_the_volume(view: str, spacing: tuple) -> None:
    scene = box((40, 30, 50), spacing)
    corners = torch.cartesian_prod(*(torch.tensor([-1.0, float(n)]) for n in (50, 30, 40)))
    world = scene.volume.index_to_world(corners.double())
    for pose in scene.poses(view, 8):
        depth = world @ pose[2, :3] + pose[2, 3]
        assert depth.min() > 0.1 * scene.sod and depth.max() < scene.sdd


@pytest.mark.parametrize("view", ["AP", "lateral", "orbit"])
def test_every_ray_of_a_named_view_meets_the_volume(view: str) -> None:
    scene = box((133, 128, 128), (2.8, 2.8, 2.5))  # the chest CT's extent
    image = drrkit.render(scene.volume, scene.camera(24), scene.poses(view, 4))
    assert image.min() > 0.3 * min(scene.extent)


def test_the_chest_ct_gets_the_geometry_that_is_documented() -> None:
    scene = box((133, 512, 512), (0.703125, 0.703125, 2.5))
    assert (scene.sod, scene.sdd, scene.samples) == (800.0, 1200.0, 500)
    pitch = scene.camera(200).pixel_spacing[0]
    assert 200 * pitch * scene.sod / scene.sdd == pytest.approx(314, abs=0.5)


def test_poses_repeat_and_differ_between_inputs(scene: Scene) -> None:
    for view in ("AP", "lateral", "random"):
        assert torch.equal(scene.poses(view, 3, 1), scene.poses(view, 3, 1))
        assert not torch.allclose(scene.poses(view, 3, 0), scene.poses(view, 3, 1))
    assert torch.equal(scene.poses("orbit", 3, 0), scene.poses("orbit", 3, 1))


def test_named_views_look_where_they_say(scene: Scene) -> None:
    towards = {"AP": (0.0, 1.0, 0.0), "lateral": (1.0, 0.0, 0.0)}
    for view, direction in towards.items():
        for count, most in ((1, 3.5), (16, 35.0)):
            axes = scene.poses(view, count)[:, 2, :3] @ torch.tensor(direction).double()
            assert math.degrees(float(axes.min().clamp(max=1).acos())) < most


def test_another_grid_holds_the_same_body_in_cubic_voxels(scene: Scene) -> None:
    finer = scene.on_grid(48)
    assert max(finer.volume.shape_xyz) == 48 and len(set(finer.volume.spacing)) == 1
    torch.testing.assert_close(volume_center(finer.volume), volume_center(scene.volume))
    mass = [float(s.volume.values.mean()) * math.prod(s.extent) for s in (scene, finer)]
    assert mass[1] == pytest.approx(mass[0], rel=0.03)


def test_a_scene_survives_the_way_to_a_worker(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path)
    found = load_scene(tmp_path)
    assert torch.equal(found.volume.values, scene.volume.values)
    assert torch.equal(found.volume.affine, scene.volume.affine) and found.volume.unit == "mu"


@pytest.mark.io
def test_a_ct_in_hu_becomes_a_scene_in_mu(tmp_path: Path) -> None:
    ct = drrkit.phantoms.torso(16.0)
    drrkit.write_volume(ct, tmp_path / "ct.nii.gz")
    found = find_scene(tmp_path / "ct.nii.gz")
    assert found.volume.unit == "mu" and found.name == "ct.nii.gz"
    torch.testing.assert_close(found.volume.affine, ct.affine, atol=1e-4, rtol=0)


# ---- the measuring core


def test_inputs_take_turns_and_nothing_is_collected_meanwhile() -> None:
    seen: list[tuple[int, bool]] = []
    calls = [lambda k=k: seen.append((k, gc.isenabled())) for k in range(3)]
    found = Stopwatch(calls, CPU).samples(7)
    assert [k for k, _ in seen] == [0, 1, 2, 0, 1, 2, 0]
    assert not any(enabled for _, enabled in seen) and gc.isenabled()
    assert len(found) == 7


def test_a_tools_own_clock_replaces_wall_time_where_it_has_one() -> None:
    watch = Stopwatch([lambda: None], CPU)
    assert watch.samples(2, reported=lambda: 12.5) == [12.5, 12.5]
    assert watch.samples(1, reported=lambda: None) != [12.5]


def test_on_a_gpu_a_sample_is_a_lap_and_graphs_replay_every_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With torch.cuda played by stand-ins: what is called, in which order, how it is divided."""
    events: list[str] = []

    class Graph:
        def replay(self) -> None:
            events.append("replay")

    class Context:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> None:
            events.append("begin")

        def __exit__(self, *_: object) -> None:
            events.append("end")

        def wait_stream(self, other: object) -> None: ...

    for name, stand_in in {
        "synchronize": lambda device: events.append("wait"),
        "Stream": Context,
        "current_stream": Context,
        "stream": Context,
        "CUDAGraph": Graph,
        "graph": Context,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    ticks = iter(range(100))
    monkeypatch.setattr("bench.projectors.timing.time.perf_counter", lambda: float(next(ticks)))
    calls = [lambda k=k: events.append(f"call {k}") for k in range(4)]
    watch = Stopwatch(calls, torch.device("cuda"))
    assert watch.samples(2) == [0.25, 0.25]  # a tick a lap, four calls a lap
    lap = ["wait", *(f"call {k}" for k in range(4)), "wait"]
    assert events == lap * 2
    events.clear()
    watch.capture()
    warm = ["begin", *(f"call {k}" for k in range(4)), "end"]
    assert events == warm + [e for k in range(4) for e in ("begin", f"call {k}", "end")]
    events.clear()
    watch.samples(1, graphs=True)
    assert events == ["wait", *["replay"] * 4, "wait"]


def test_statistics() -> None:
    found = statistics_of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found == {
        "median": 3.0,
        "quartiles": [2.0, 4.0],
        "least": 1.0,
        "greatest": 5.0,
        "samples": 5,
    }
    assert statistics_of([2.0])["quartiles"] == [2.0, 2.0]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peak_memory_counts_what_a_call_allocates_and_no_more() -> None:
    held = np.ones(1 << 22)  # 32 MiB before the call

    def call() -> float:
        return float(np.ones(1 << 23).sum() + held[0])  # 64 MiB

    call()
    found = peak_bytes(call)
    assert found is not None and 60 * 2**20 < found < 80 * 2**20


# ---- floors


LIMITS = {"copy_bytes_per_s": 1e9, "fetches_per_s": 1e8}


def test_samples_of_rays_along_an_axis_are_the_voxels_that_they_cross() -> None:
    scene = box((30, 50, 40), (2.0, 2.0, 2.0))
    work = Workload("main", "orbit", 1, 1, "forward")  # one ray along y, through the centre
    poses = scene.poses("orbit", 1)
    found = {m: floors.samples(scene, work, poses, m) for m in floors.TAPS}
    assert found == pytest.approx({"joseph": 50, "siddon": 50, "trilinear": 50}, rel=1e-6)


def test_samples_scale_with_views_and_pixels_and_order_the_methods() -> None:
    scene = box((30, 50, 40), (2.0, 2.0, 2.0))
    small, large = (Workload("main", "AP", n, 64 * n, "forward") for n in (1, 2))
    one = {m: floors.samples(scene, small, scene.poses("AP", 1), m) for m in floors.TAPS}
    two = floors.samples(scene, large, scene.poses("AP", 2), "joseph")
    assert 7 < two / one["joseph"] < 9  # 8 times the rays
    assert one["joseph"] <= one["trilinear"] < one["siddon"]


def test_floors_count_what_an_operation_must_move() -> None:
    scene = box((30, 50, 40), (2.0, 2.0, 2.0))
    voxels, rays = 30 * 50 * 40, 64 * 64
    counted = floors.Floors(LIMITS)

    def of(operation: str, integral: str = "joseph") -> dict:
        work = Workload("main", "AP", 1, 64, operation)
        found = counted.of(work, scene, integral)
        assert found is not None
        return found

    forward, volume, adjoint = of("forward"), of("volume"), of("adjoint")
    seen = forward["bytes"] / 4 - rays
    assert 0.3 * voxels < seen < voxels  # the cone leaves corners out
    assert volume["bytes"] / 4 == pytest.approx(seen + 2 * rays + voxels)
    assert adjoint["bytes"] == 4 * (rays + voxels)
    assert volume["fetches"] == 2 * forward["fetches"] == 2 * adjoint["fetches"]
    assert forward["bytes_s"] == forward["bytes"] / 1e9
    assert forward["fetches_s"] == forward["fetches"] / 1e8
    assert forward["fetches"] == pytest.approx(4 * 50 * rays, rel=0.2)
    few = counted.of(Workload("main", "AP", 1, 8, "forward"), scene, "siddon")
    assert few and few["bytes"] == pytest.approx(4 * (few["fetches"] + 64))  # rays far apart
    double = Workload("main", "AP", 1, 64, "double")
    assert counted.of(double, scene, "joseph") is None


def test_packed_volumes_on_a_gpu_are_held_against_texture_lookups() -> None:
    scene, work = box((30, 50, 40), (2.0, 2.0, 2.0)), Workload("main", "AP", 1, 40, "forward")
    counted = floors.Floors(LIMITS | {"lookups_per_s": 1e7})
    plain, packed = (counted.of(work, scene, "joseph", texel) for texel in (None, 2))
    assert plain and packed and packed["fetch"] == "texture lookup"
    assert plain["fetches"] == 4 * packed["fetches"]
    assert packed["fetches_s"] == packed["fetches"] / 1e7
    image = 4 * 40 * 40
    assert packed["bytes"] - image == pytest.approx((plain["bytes"] - image) / 2)
    pose = Workload("main", "AP", 1, 40, "pose")  # exact: from plain values
    assert counted.of(pose, scene, "joseph", 2) == counted.of(pose, scene, "joseph")


# ---- comparisons


def test_relative_differences_and_scales() -> None:
    truth = np.array([[3.0, 4.0]])
    assert relative(truth * 1.1, truth) == pytest.approx(0.1)
    assert relative(truth * 1.1, truth, physical=False) == pytest.approx(0.0, abs=1e-12)
    twist = np.array([[1.0, 0, 0, 0, 2.0, 0]])
    moved = twist + np.array([[0, 0.1, 0, 0, 0, 0.4]])
    found = differences("pose", moved, twist, True)
    assert found == pytest.approx({"rotation": 0.1, "translation": 0.2})
    assert set(differences("volume", truth, truth, True)) == {"gradient"}


def test_the_fine_reference_is_what_drrkit_converges_to(scene: Scene) -> None:
    camera, pose = scene.camera(24), scene.poses("AP", 1)
    fine = fine_integrals(scene.volume, camera, pose, every=5)
    own = drrkit.render(scene.volume, camera, pose, method="trilinear", step=0.1, anchor="foot")
    assert fine.shape == (5, 24)
    assert relative(own[0, 0, ::5].numpy(), fine.numpy()) < 1e-4


# ---- plans


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_plans_ask_for_each_thing_once(device: str, quick: bool) -> None:
    plan = workloads(device, quick, 2)
    assert len(plan) == len(set(plan)) > 8
    assert {w.section for w in plan} <= set(SECTIONS)
    assert {"forward", "pose", "volume", "adjoint"} <= {w.operation for w in plan}
    assert {w.view for w in plan if w.section == "main"} >= {"AP", "lateral"}
    assert plan[0].views == 1 and plan[0].operation == "forward"
    for section in ("views", "detector", "volume"):  # one thing changes along a curve
        curve = [w for w in plan if w.section == section]
        kinds = {(w.view, w.operation) for w in curve}
        changing = {(w.views, w.size, w.edge) for w in curve}
        assert len(curve) > 1 and len(kinds) == 1 and len(changing) == len(curve)
        assert [len(set(values)) > 1 for values in zip(*changing, strict=True)].count(True) == 1
    assert effort(device, quick).minutes <= 10


def test_the_long_plans_hold_the_promised_cases() -> None:
    gpu = {(w.view, w.views, w.size, w.operation) for w in workloads("cuda", False, 16)}
    for view in ("AP", "lateral"):
        for views, size in ((1, 200), (16, 200), (1, 1024), (300, 128), (1, 512), (16, 512)):
            assert (view, views, size, "forward") in gpu
        assert {(view, 16, 200, "pose"), (view, 16, 200, "volume")} <= gpu
    assert {("orbit", 360, 512, "forward"), ("orbit", 360, 512, "adjoint")} <= gpu
    cpu = workloads("cpu", False, 2)
    assert {w.threads for w in cpu} == {None, 1, 2}
    assert {w.section for w in cpu} == set(SECTIONS)


# ---- stubs


def test_a_package_that_is_missing_can_be_imported_but_not_used() -> None:
    with stubbed(("no_such_package", "json")):
        module = importlib.import_module("no_such_package.inner.part")
        from json import dumps

        module.folder("of what")  # at import a call gives something
        assert module.Image | None  # an annotation
    assert isinstance(module, Stub) and dumps([]) == "[]"  # what is there is the real one
    with pytest.raises(ImportError, match="no_such_package"):
        module.anything(1)
    assert not [name for name in sys.modules if name.startswith("no_such_package")]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_package")


def test_frames_of_a_scene_are_those_of_its_camera(scene: Scene) -> None:
    """The C-arm's numbers mean what geometry means by them."""
    frames = view_frames(scene.volume, scene.camera(32), scene.poses("orbit", 1))
    source = scene.volume.index_to_world(frames[0, :1])
    expected = volume_center(scene.volume) - torch.tensor([0.0, scene.sod, 0.0]).double()
    torch.testing.assert_close(source[0], expected)
