"""Calibration files as OpenCV, XMALab and Autoscoper write them, and lens distortion taken out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import fsolve
from torch import Tensor

import drrkit
from drrkit import conversions
from drrkit.xray import read_xray
from drrkit.xray.read.calibration import read_calibration
from drrkit.xray.read.distortion import distorted_pixels, undistorted
from tests.support.xray_files import carm_tags, write_dicom

SIZE = (24, 32)


def camera(square: bool = False) -> drrkit.Camera:
    pitch = 2.5 if square else (2.5, 2.25)
    return drrkit.CArm(1020.0, SIZE, pitch, (14.0, 11.0))


def pose() -> Tensor:
    ct = drrkit.phantoms.torso(spacing=20.0)
    xi = torch.tensor([0.2, -0.1, 0.3, 10.0, -20.0, 30.0], dtype=torch.float64)
    start = drrkit.view_carm(ct, 800.0, 0.3, -0.1)
    return drrkit.perturb(start, xi, drrkit.volume_center(ct))[0]


# ---- OpenCV's FileStorage, written here letter by letter as OpenCV does


def lines_of(values: np.ndarray) -> str:
    """Numbers as OpenCV breaks them over lines: `1.`, `2.5000000000000000e-01`, three a line."""
    words = [f"{v:.0f}." if v == int(v) else f"{v:.16e}" for v in values.flatten()]
    rows = [", ".join(words[i : i + 3]) for i in range(0, len(words), 3)]
    return ",\n       ".join(rows)


def yaml(entries: dict[str, np.ndarray | int | str]) -> str:
    text = ["%YAML:1.0", "---", 'calibration_time: "Sat Nov 21 2026"', "nested:", "   camera: 3"]
    for name, value in entries.items():
        if isinstance(value, np.ndarray):
            rows, cols = value.reshape(value.shape[0], -1).shape
            text += [f"{name}: !!opencv-matrix", f"   rows: {rows}", f"   cols: {cols}", "   dt: d"]
            text += [f"   data: [ {lines_of(value)} ]"]
        else:
            text.append(f"{name}: {value}")
    return "\n".join(text) + "\n"


def xml(entries: dict[str, np.ndarray | int | str]) -> str:
    text = ['<?xml version="1.0"?>', "<opencv_storage>", "<flags>0</flags>"]
    for name, value in entries.items():
        if isinstance(value, np.ndarray):
            rows, cols = value.reshape(value.shape[0], -1).shape
            data = lines_of(value).replace(",", "")
            text += [f'<{name} type_id="opencv-matrix">', f"  <rows>{rows}</rows>"]
            text += [f"  <cols>{cols}</cols>", "  <dt>d</dt>", f"  <data>\n    {data}</data>"]
            text += [f"</{name}>"]
        else:
            text.append(f"<{name}>{value}</{name}>")
    return "\n".join([*text, "</opencv_storage>"])


def storage_json(entries: dict[str, np.ndarray | int | str]) -> str:
    found = {}
    for name, value in entries.items():
        if isinstance(value, np.ndarray):
            rows, cols = value.reshape(value.shape[0], -1).shape
            data = value.flatten().tolist()
            value = {
                "type_id": "opencv-matrix",
                "rows": rows,
                "cols": cols,
                "dt": "d",
                "data": data,
            }
        found[name] = value
    return json.dumps(found)


WRITERS = {".yml": yaml, ".yaml": yaml, ".xml": xml, ".json": storage_json}


def entries(vector: bool = False) -> dict[str, np.ndarray | int | str]:
    K, R, t = (part[0] for part in conversions.to_opencv(camera(), pose()))
    turn = drrkit.so3_log(R[None])[0][:, None] if vector else R
    return {
        "image_width": SIZE[1],
        "image_height": SIZE[0],
        "Camera_Matrix": K.numpy(),
        "rvec" if vector else "R": turn.numpy(),
        "tvec" if vector else "T": t.numpy()[:, None],
    }


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("vector", [False, True])
def test_what_file_storage_writes_is_read(tmp_path: Path, suffix: str, vector: bool) -> None:
    file = tmp_path / f"camera{suffix}"
    file.write_text(WRITERS[suffix](entries(vector)))
    for size in (SIZE, None):
        found, distortion = read_calibration(file, size, 1020.0)
        torch.testing.assert_close(found.world_to_camera[0], pose(), rtol=0, atol=1e-9)
        torch.testing.assert_close(found.camera.K, camera().K, rtol=0, atol=1e-9)
        assert found.camera.size == SIZE and distortion is None
    with pytest.raises(ValueError, match="calibrated for images of 24x32"):
        read_calibration(file, (30, 30), 1020.0)


def test_a_file_without_the_image_size_needs_it(tmp_path: Path) -> None:
    told = {name: v for name, v in entries().items() if not name.startswith("image_")}
    (tmp_path / "a.yml").write_text(yaml(told))
    assert read_calibration(tmp_path / "a.yml", SIZE, 1020.0).view.camera.size == SIZE
    with pytest.raises(ValueError, match="does not say rows and columns"):
        read_calibration(tmp_path / "a.yml", None, 1020.0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yml", "hello", "no entries"),
        ("a.yml", "K: !!opencv-matrix\n   rows: 3\n   cols: 3\n", "K: expected|missing"),
        ("a.yml", "K: [1, 2]\nR: [0, 0, 0]\nt: [0, 0, 0]\nsdd: 9.\n", "K: expected"),
        ("a.xml", "hello", "as XML"),
        ("a.xml", "<opencv_storage></opencv_storage>", "no entries"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "definitions"),
        ("a.json", '{"K": {"rows": 3, "cols": 3}, "R": 1, "t": 1}', "K: expected|R as 9"),
        ("a.json", '{"image_width": "x", "image_height": 3, "K": 1, "R": 1, "t": 1}', "expected"),
        ("a.csv", "1,2,3\n4,5,6\n", "five lines"),
        ("a.csv", "1,2,3\n" * 3 + "1,2,0\n1,2,3\n", "focal length"),
        ("a.csv", "1,2,3\n" * 4 + "1,2.5,3\n", "whole numbers"),
        ("a.csv", "1,2,nan\n" * 5, "finite"),
    ],
)
def test_broken_files_are_told(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_calibration(tmp_path / name, SIZE, 1020.0)


# ---- what cannot be meant


def calibration(path: Path, **changes: object) -> Path:
    """K, R and t of the camera as JSON."""
    K, R, t = (part[0].tolist() for part in conversions.to_opencv(camera(), pose()))
    path.write_text(json.dumps({"K": K, "R": R, "t": t, "sdd": 1020.0, **changes}))
    return path


def test_calibrations_that_do_not_fit_the_image_are_said(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random(SIZE, np.float32))
    in_mm = [[1020.0, 0, 14.0], [0, 1020.0, 11.0], [0, 0, 1]]
    binned = [[227.0, 0, 7.0], [0, 204.0, 5.5], [0, 0, 1]]
    for changes, message in (
        ({}, None),
        ({"K": in_mm}, "K's focal length is 1020, the detector's distance in mm: is it in pixels"),
        ({"K": binned}, "at 23% of the image's width and 25% of its height: is K in pixels, and o"),
    ):
        file = calibration(tmp_path / "k.json", **changes)
        told = read_xray(tmp_path / "x.npy", calibration=file).warnings
        assert told == () if message is None else len(told) == 1 and message in told[0]


def test_a_calibration_and_the_pitch_of_the_header_are_compared(tmp_path: Path) -> None:
    """The calibration is used; 2 % are how well a distance is known."""
    pixels, file = np.arange(24 * 32).reshape(SIZE), calibration(tmp_path / "k.json")
    for pitch, said in ((["2.5", "2.25"], False), (["2.45", "2.2"], False), (["1.25", "2"], True)):
        tags = carm_tags(ImagerPixelSpacing=pitch, DistanceSourceToPatient=None)
        xray = read_xray(write_dicom(tmp_path / "x.dcm", pixels, **tags), calibration=file)
        torch.testing.assert_close(xray.camera.K, camera().K)
        assert xray.pixel_spacing == pytest.approx((2.5, 2.25))
        told = "; ".join(xray.warnings)
        assert ("says pixels of 1.25 x 2 mm, the calibration those of 2.5 x 2.25" in told) == said
        assert "the image has been mirrored, and the calibration is taken for that of" in told
        assert "give" not in told and "sdd=" not in told
    stored = read_xray(tmp_path / "x.dcm", calibration=file, orient=False)
    assert "mirrored" not in "; ".join(stored.warnings)


def test_a_calibrated_pose_that_does_not_show_the_volume_is_said(tmp_path: Path) -> None:
    ct = drrkit.phantoms.torso(spacing=20.0)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random(SIZE, np.float32))
    back = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    turn, shift = (back @ pose()[:3, :3]).tolist(), (back @ pose()[:3, 3]).tolist()
    file = calibration(tmp_path / "k.json", R=turn, t=shift)
    xray = read_xray(tmp_path / "x.npy", calibration=file)
    with pytest.warns(drrkit.volume.FileWarning, match="from the source, behind it: is the pose"):
        xray.start(ct)
    right = read_xray(tmp_path / "x.npy", calibration=calibration(file))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(right.start(ct)[0], pose(), rtol=0, atol=1e-9)


def test_a_pose_file_keeps_its_beam_and_where_its_numbers_come_from(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(SIZE, np.float32))
    entry = {"K": camera().K.tolist(), "size": list(SIZE), "sdd": 1020.0, "beam": "parallel"}
    content = {"world_to_camera": pose().tolist(), "camera": {**entry, "origin": "header"}}
    (tmp_path / "pose.json").write_text(json.dumps(content))
    found = read_xray(tmp_path / "x.npy", calibration=tmp_path / "pose.json").camera
    assert (found.beam, found.origin) == ("parallel", "header")
    content["camera"]["beam"] = "fan"
    (tmp_path / "pose.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"pose\.json: beam: expected one of"):
        read_xray(tmp_path / "x.npy", calibration=tmp_path / "pose.json")


# ---- MayaCam 1.0


def test_mayacam_1_is_what_xmalab_computes(tmp_path: Path) -> None:
    """Its five lines by the steps of XMALab: x and z turned round, inverted, angles by atan2."""
    conversions.write_mayacam(tmp_path / "cam.csv", camera(square=True), pose(), version=1)
    table = [[float(w) for w in r.split(",")] for r in (tmp_path / "cam.csv").read_text().split()]
    K, R, t = (p[0].numpy() for p in conversions.to_opencv(camera(square=True), pose()))
    turned = R.copy()
    turned[[0, 2]] *= -1
    shift = t * [-1, 1, -1]
    back = np.linalg.inv(turned)
    source = -back @ shift
    angles = np.degrees(
        [
            np.arctan2(-back[2, 1], back[2, 2]),
            np.arctan2(back[2, 0], np.hypot(back[2, 1], back[2, 2])),
            np.arctan2(-back[1, 0], -back[0, 0]),
        ]
    )
    cx, cy = K[0, 2], SIZE[0] - 1 - K[1, 2]
    np.testing.assert_allclose(table[0], source, atol=1e-9)
    np.testing.assert_allclose(table[1], angles, atol=1e-9)
    film = [0.1 * (SIZE[1] / 2 - (cx + 1)), 0.1 * (SIZE[0] / 2 - (cy + 1)), -0.1 * K[0, 0]]
    np.testing.assert_allclose(table[2], film, atol=1e-9)
    np.testing.assert_allclose(table[3], [cx + 1, cy + 1, -K[0, 0]], atol=1e-9)
    assert table[4] == [0.1, SIZE[1], SIZE[0]]


def test_mayacam_1_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "cam.csv"
    conversions.write_mayacam(file, camera(square=True), pose(), version=1)
    found = conversions.read_mayacam(file, 1020.0)
    torch.testing.assert_close(found.world_to_camera[0], pose(), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.camera.K, camera(square=True).K, rtol=0, atol=1e-9)
    assert found.camera.size == SIZE
    lines = file.read_text().splitlines()
    file.write_text("\r\n".join([*lines[:4], "0.1,0,0"]))  # as older programs leave it
    assert conversions.read_mayacam(file, 1020.0).camera.size == (1024, 1024)
    with pytest.raises(ValueError, match="one focal length"):
        conversions.write_mayacam(file, camera(), pose(), version=1)
    with pytest.raises(ValueError, match="version: expected"):
        conversions.write_mayacam(file, camera(), pose(), version=3)


def test_a_calibration_in_centimetres_is_taken_to_millimetres(tmp_path: Path) -> None:
    in_cm = pose().clone()
    in_cm[:3, 3] /= 10
    for version in (1, 2):
        conversions.write_mayacam(tmp_path / "cam.txt", camera(square=True), in_cm, version=version)
        found = conversions.read_mayacam(tmp_path / "cam.txt", 1020.0, unit_mm=10.0)
        torch.testing.assert_close(found.world_to_camera[0], pose(), rtol=0, atol=1e-9)


# ---- distortion

COEFFICIENTS = {
    4: (-0.3, 0.1, 0.002, -0.003),
    5: (-0.3, 0.1, 0.002, -0.003, 0.05),
    8: (-0.3, 0.1, 0.002, -0.003, 0.05, 0.02, -0.03, 0.01),
    12: (-0.3, 0.1, 0.002, -0.003, 0.05, 0.02, -0.03, 0.01, 0.004, -0.002, 0.003, 0.001),
}


def wide_camera() -> Tensor:
    """A view of some 60 degrees, where distortion is seen."""
    return torch.tensor([[62.0, 0, 36.5], [0, 60.0, 29.0], [0, 0, 1]], dtype=torch.float64)


def by_hand(K: np.ndarray, k: tuple[float, ...], pixel: np.ndarray) -> np.ndarray:
    """OpenCV's documentation, term by term, for one pixel."""
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = (*k, *(0.0,) * (12 - len(k)))
    x, y = (pixel[0] - K[0, 2]) / K[0, 0], (pixel[1] - K[1, 2]) / K[1, 1]
    r = np.sqrt(x**2 + y**2)
    ratio = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
    u = x * ratio + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2) + s1 * r**2 + s2 * r**4
    v = y * ratio + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y + s3 * r**2 + s4 * r**4
    return np.array([K[0, 0] * u + K[0, 2], K[1, 1] * v + K[1, 2]])


def scene(pixel: np.ndarray) -> np.ndarray:
    """A smooth picture (col, row) as a camera without distortion takes it."""
    return 5 + np.sin(pixel[..., 0] / 7.0) + np.cos(pixel[..., 1] / 6.0)


@pytest.mark.parametrize("count", COEFFICIENTS)
def test_distorted_pixels_are_those_of_the_documentation(count: int) -> None:
    K, k = wide_camera(), COEFFICIENTS[count]
    pixels = torch.tensor([[0.0, 0.0], [70.0, 3.0], [36.5, 29.0], [11.0, 55.0]]).double()
    found = distorted_pixels(K, torch.tensor(k, dtype=torch.float64), pixels).numpy()
    expected = [by_hand(K.numpy(), k, pixel) for pixel in pixels.numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("count", [5, 12])
def test_a_distorted_picture_becomes_the_straight_one(count: int) -> None:
    """Every distorted pixel shows the straight place that a root finder takes it back to."""
    K, k, (rows, cols) = wide_camera(), COEFFICIENTS[count], (60, 74)
    image = np.empty((rows, cols))
    for row in range(rows):
        for col in range(cols):
            at = np.array([col, row], dtype=float)
            straight = fsolve(lambda p, at=at: by_hand(K.numpy(), k, p) - at, at, xtol=1e-8)
            image[row, col] = scene(straight)
    moved, seen = undistorted(
        torch.from_numpy(image)[None, None], K, torch.tensor(k, dtype=torch.float64)
    )
    col, row = np.meshgrid(np.arange(cols), np.arange(rows))
    truth = torch.from_numpy(scene(np.stack((col, row), -1)))[None, None]
    inside = seen > 0
    assert float(inside.double().mean()) > 0.7
    assert float((moved - truth).abs()[inside].max()) < 0.02
    assert float((torch.from_numpy(image) - truth).abs().max()) > 0.3


def test_a_distorted_x_ray_is_straightened_on_reading(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random(SIZE, np.float32))
    plain = {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in entries().items()}
    for name, k in (("none", [0.0] * 5), ("some", [-0.5, 0.0, 0.0, 0.0, 0.0])):
        (tmp_path / f"{name}.json").write_text(json.dumps({**plain, "D": [k]}))
    none, some = (
        read_xray(tmp_path / "x.npy", calibration=tmp_path / f"{name}.json", sdd=1020.0)
        for name in ("none", "some")
    )
    assert none.warnings == () and none.mask is None
    assert any("straightened" in text for text in some.warnings)
    expected, _ = undistorted(none.image, none.camera.K, torch.tensor([-0.5, 0, 0, 0, 0]))
    assert torch.equal(some.image, expected) and not torch.equal(some.image, none.image)


def test_wrong_coefficients_are_told() -> None:
    with pytest.raises(ValueError, match="coefficients: expected"):
        distorted_pixels(wide_camera(), torch.ones(3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="no tilt"):
        distorted_pixels(wide_camera(), torch.ones(14), torch.zeros(1, 2))
