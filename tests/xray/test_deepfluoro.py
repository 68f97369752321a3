"""DeepFluoro's HDF5 layout: a file written and drawn here by the rules of its documentation.

The file's frame has x along columns, y along rows and z from the detector to the source; its
pixels are drawn by rays through balls, with chords from their equation.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.spatial.transform import Rotation

import drrkit
from drrkit.cli import main
from drrkit.xray import deepfluoro_contents, read_deepfluoro_specimen, read_deepfluoro_xray

pytestmark = pytest.mark.io

ROWS, COLS, PITCH, FOCAL = 80, 96, (3.1, 2.9), 1020.0
GRID, SPACING, ORIGIN = (50, 70, 90), (1.5, 1.5, 1.5), (-60.0, -75.0, -920.0)  # z, y, x of the grid
MU = 0.02
BALLS = {  # landmark: centre (LPS mm), radius
    "FH-l": ((30.0, -20.0, -890.0), 14.0),
    "FH-r": ((-35.0, -30.0, -880.0), 14.0),
    "ASIS-l": ((10.0, -50.0, -875.0), 9.0),
    "MOF-r": ((-20.0, 0.0, -895.0), 11.0),
    "SPS-l": ((40.0, 10.0, -865.0), 10.0),
    "GSN-r": ((0.0, -25.0, -870.0), 8.0),
}
OUTSIDE = {"far": (400.0, 400.0, -890.0)}
K = np.array(
    [[-FOCAL / PITCH[1], 0, (COLS - 1) / 2], [0, -FOCAL / PITCH[0], (ROWS - 1) / 2], [0, 0, 1]]
)


def rigid(angles: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


EXTRINSIC = rigid((3.0, -2.0, 5.0), (4.0, -6.0, 8.0))


def cam_to_volume(
    angles: tuple[float, float, float], off: tuple[float, float, float]
) -> np.ndarray:
    """A pose that puts the middle of the balls some 800 mm before the source, a little off."""
    turn = rigid(angles, (0.0, 0.0, 0.0))
    middle = np.array([0.0, -22.0, -880.0, 1.0])
    in_camera = turn @ middle
    to_projective = turn.copy()
    to_projective[:3, 3] = np.array([off[0], off[1], -800.0 + off[2]]) - in_camera[:3]
    return np.linalg.inv(np.linalg.inv(EXTRINSIC) @ to_projective)


POSES = [
    cam_to_volume((90.0, 0.0, 180.0), (0.0, 0.0, 0.0)),
    cam_to_volume((75.0, 12.0, 10.0), (8.0, -10.0, 30.0)),
]


def drawn(pose: np.ndarray) -> np.ndarray:
    """exp(-integral) at every pixel: rays from the source to the pixel's place in the volume."""
    to_volume = pose @ np.linalg.inv(EXTRINSIC)
    col, row = np.meshgrid(np.arange(COLS), np.arange(ROWS))
    on_detector = np.stack((col, row, np.ones_like(col)), -1) @ (-FOCAL * np.linalg.inv(K)).T
    end = on_detector @ to_volume[:3, :3].T + to_volume[:3, 3]
    start = to_volume[:3, 3]
    direction = (end - start) / np.linalg.norm(end - start, axis=-1, keepdims=True)
    total = np.zeros((ROWS, COLS))
    for center, radius in BALLS.values():
        offset = np.array(center) - start
        along = direction @ offset
        square = radius**2 - (offset @ offset - along**2)
        total += 2 * np.sqrt(np.clip(square, 0, None))
    return np.exp(-MU * total)


def pixel(pose: np.ndarray, point: tuple[float, float, float]) -> np.ndarray:
    """(column, row) by P = K E inv(cam to volume)."""
    x = K @ (EXTRINSIC @ np.linalg.inv(pose) @ np.array([*point, 1.0]))[:3]
    return x[:2] / x[2]


def ball_values(fine: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """HU and labels [z, y, x] of the balls, smoothed over a voxel by sampling it finely."""
    depth, height, width = GRID
    mu_water = 0.019286
    hu, labels = np.zeros(GRID), np.zeros(GRID, np.uint8)
    steps = (np.arange(fine) + 0.5) / fine - 0.5
    axes = [
        o + s * (np.arange(n)[:, None] + steps).reshape(-1)
        for o, s, n in zip(ORIGIN, SPACING, (width, height, depth), strict=True)
    ]
    for number, (center, radius) in enumerate(BALLS.values(), 1):
        x, y, z = (axis - c for axis, c in zip(axes, center, strict=True))
        inside = z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None] ** 2 <= radius**2
        share = inside.reshape(depth, fine, height, fine, width, fine).mean((1, 3, 5))
        hu += share
        labels[share > 0.5] = number
    return (hu * MU / mu_water - 1.0) * 1000.0, labels


def put_image(group: h5py.Group, pixels: np.ndarray, spacing: tuple, origin: tuple) -> None:
    group["pixels"] = pixels
    group["spacing"] = np.array(spacing)[:, None]
    group["origin"] = np.array(origin)[:, None]
    group["dir-mat"] = np.eye(len(spacing))


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deepfluoro") / "full_res.h5"
    hu, labels = ball_values()
    with h5py.File(path, "w") as file:
        parameters = {
            "intrinsic": K,
            "extrinsic": EXTRINSIC,
            "num-rows": ROWS,
            "num-cols": COLS,
            "pixel-row-spacing": PITCH[0],
            "pixel-col-spacing": PITCH[1],
        }
        for name, value in parameters.items():
            file[f"proj-params/{name}"] = value
        file.create_group("18-0725/projections")
        specimen = file.create_group("17-1882")
        put_image(specimen.create_group("vol"), hu.astype(np.float32), SPACING, ORIGIN)
        put_image(specimen.create_group("vol-seg/image"), labels, SPACING, ORIGIN)
        for number, name in enumerate(BALLS, 1):
            letters = np.frombuffer(f"ball {name}".encode(), np.int8)
            specimen[f"vol-seg/labels-def/{number}"] = letters if number % 2 else f"ball {name}"
        for name, (center, _) in BALLS.items():
            specimen[f"vol-landmarks/{name}"] = np.array(center)[:, None]
        specimen["vol-landmarks/far"] = np.array(OUTSIDE["far"])[:, None]
        for number, pose in enumerate(POSES):
            projection = specimen.create_group(f"projections/{number:03d}")
            image = 4000.0 * drawn(pose)
            put_image(projection.create_group("image"), image.astype(np.float32), PITCH, (0.0, 0.0))
            seg = (image < 3990.0).astype(np.uint8)
            put_image(projection.create_group("gt-seg"), seg, PITCH, (0.0, 0.0))
            for bone in ("pelvis", "left-femur", "right-femur"):
                projection[f"gt-poses/cam-to-{bone}-vol"] = pose
            projection["gt-poses/left-femur-good-fov"] = 0
            projection["gt-poses/right-femur-good-fov"] = 1
            projection["rot-180-for-up"] = number
            points = {**{n: c for n, (c, _) in BALLS.items()}, **OUTSIDE}
            for name, center in points.items():
                projection[f"gt-landmarks/{name}"] = pixel(pose, center)[:, None]
    return path


def test_specimens_and_projections_are_listed(data_set: Path) -> None:
    assert deepfluoro_contents(data_set) == {"17-1882": (0, 1), "18-0725": ()}


def test_the_ct_stands_where_its_landmarks_are(data_set: Path) -> None:
    found = read_deepfluoro_specimen(data_set, "17-1882")
    volume = found.volume
    assert tuple(volume.values.shape) == GRID and volume.unit == "HU"
    assert (volume.spacing, volume.origin) == (SPACING, ORIGIN)
    assert volume.labels is not None
    for number, (name, (center, _)) in enumerate(BALLS.items(), 1):
        assert found.landmarks[name].tolist() == list(center)
        index = volume.world_to_index(found.landmarks[name]).round().long().tolist()
        assert int(volume.labels[index[2], index[1], index[0]]) == number
        assert found.label_names[number] == f"ball {name}"


@pytest.mark.parametrize("projection", [0, 1])
@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("border", [0, 7])
def test_a_projection_is_what_its_camera_sees(
    data_set: Path, projection: int, upright: bool, border: int
) -> None:
    """drrkit's render of the CT at the true pose is the drawn image, pixel by pixel."""
    specimen = read_deepfluoro_specimen(data_set, "17-1882")
    found = read_deepfluoro_xray(data_set, "17-1882", projection, border=border, upright=upright)
    xray = found.xray
    assert xray.camera is not None and xray.world_to_camera is not None
    assert xray.kind == "intensity" and xray.pixel_spacing == pytest.approx(PITCH)
    assert xray.camera.size == (ROWS - 2 * border, COLS - 2 * border)
    assert float(torch.linalg.det(xray.world_to_camera[:3, :3])) == pytest.approx(1.0)
    line = -(xray.image / 4000.0).log()
    ours = drrkit.render(specimen.volume.to_mu(), xray.camera, xray.world_to_camera)
    assert float((ours - line).norm() / line.norm()) < 0.06  # voxels are no balls
    # A pixel off would be seen: the balls' edges are a few pixels wide.
    assert float((ours.roll(1, -1) - line).norm() / line.norm()) > 0.2
    assert found.labels is not None
    assert torch.equal(found.labels > 0, xray.image[0, 0] < 3990.0)
    names = list(found.landmarks)
    points = torch.stack([specimen.landmarks[name] for name in names])
    pixels = torch.stack([found.landmarks[name] for name in names])
    seen = drrkit.project_points(xray.camera, xray.world_to_camera, points)[0]
    torch.testing.assert_close(pixels, seen, rtol=0, atol=1e-6)
    for name, (_, radius) in BALLS.items():
        row, col = found.landmarks[name].round().long().tolist()
        assert float(line[0, 0, row, col]) > 1.9 * MU * radius


def test_images_marked_so_are_turned_head_up(data_set: Path) -> None:
    turned, stored = (
        read_deepfluoro_xray(data_set, "17-1882", 1, border=0, upright=u).xray.image
        for u in (True, False)
    )
    assert torch.equal(turned, stored.flip(-2, -1)) and not torch.equal(turned, stored)
    first = [
        read_deepfluoro_xray(data_set, "17-1882", 0, border=0, upright=u).xray.image
        for u in (True, False)
    ]
    assert torch.equal(*first)


def test_the_half_voxel_moves_the_ct_by_half_a_millimetre(data_set: Path) -> None:
    plain, moved = (
        read_deepfluoro_xray(data_set, "17-1882", 1, border=0, half_voxel=h).xray.world_to_camera
        for h in (False, True)
    )
    between = torch.linalg.inv(moved) @ plain
    expected = torch.eye(4, dtype=torch.float64)
    expected[:3, 3] = -0.5
    torch.testing.assert_close(between, expected, rtol=0, atol=1e-9)


def test_femurs_hardly_in_view_are_told(data_set: Path) -> None:
    left = read_deepfluoro_xray(data_set, "17-1882", 0, bone="left-femur", border=5)
    right = read_deepfluoro_xray(data_set, "17-1882", 0, bone="right-femur", border=5)
    assert "hardly in view" in left.xray.warnings[0] and right.xray.warnings == ()


def test_wrong_names_and_files_are_told(data_set: Path, tmp_path: Path) -> None:
    for call, message in (
        (lambda: read_deepfluoro_specimen(data_set, "1"), r"has 17-1882, 18-0725; got '1'"),
        (lambda: read_deepfluoro_xray(data_set, "17-1882", 7), r"2 of 17-1882, 000 to 001; got 7"),
        (lambda: read_deepfluoro_xray(data_set, "17-1882", 0, bone="hip"), "bone: expected"),
        (lambda: read_deepfluoro_xray(data_set, "17-1882", 0, border=40), "border: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.h5: expected DeepFluoro's"):
        deepfluoro_contents(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = 1
    with pytest.raises(ValueError, match="no group 'proj-params'"):
        deepfluoro_contents(tmp_path / "other.h5")
    with h5py.File(tmp_path / "thin.h5", "w") as file:
        file["proj-params/intrinsic"] = K
        file["a/projections/000/image/pixels"] = np.zeros((2, 2))
        file["a/vol"] = 3
    with pytest.raises(ValueError, match=r"thin\.h5: expected DeepFluoro's"):
        read_deepfluoro_xray(tmp_path / "thin.h5", "a", 0)
    with pytest.raises(ValueError, match=r"thin\.h5: expected DeepFluoro's"):
        read_deepfluoro_specimen(tmp_path / "thin.h5", "a")
    with pytest.raises(FileNotFoundError):
        deepfluoro_contents(tmp_path / "missing.h5")
    (tmp_path / "dark.h5").write_bytes(data_set.read_bytes())
    with h5py.File(tmp_path / "dark.h5", "r+") as file:
        file["17-1882/projections/000/image/pixels"][1, 1] = np.nan
    with pytest.raises(ValueError, match=r"dark\.h5: 17-1882/000: expected finite pixels"):
        read_deepfluoro_xray(tmp_path / "dark.h5", "17-1882", 0)


def test_the_documentation_reads_a_case(data_set: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "files.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "_case(" in b)
    scope: dict = {"torch": torch}
    exec(block, scope)
    volume, xray, pixels = scope["deepfluoro_case"](data_set, "17-1882", 0, border=5)
    assert tuple(volume.values.shape) == GRID and xray.camera.size == (ROWS - 10, COLS - 10)
    assert pixels.shape == (len(BALLS) + 1, 2)


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(map(str, words)))
    return result.exit_code, result.output


def test_a_case_becomes_plain_files_that_register(data_set: Path, tmp_path: Path) -> None:
    code, text = run("info", data_set)
    assert code == 0 and "17-1882  2 projections" in text
    listing = json.loads(run("info", data_set, "--json")[1])
    assert listing["specimens"] == {"17-1882": 2, "18-0725": 0}
    options = ("convert", data_set, "--from", "deepfluoro", "-o", tmp_path / "case")
    code, text = run(*options)
    assert code == 2 and "17-1882 (0 to 1)" in text
    # A border of 50 pixels, as of the data set, leaves nothing of the small image drawn here.
    code, text = run(*options, "--specimen", "17-1882", "--projection", 1)
    assert code == 2 and "border" in text and not (tmp_path / "case").exists()
    options = (*options, "--specimen", "17-1882", "--projection", 1, "--border", 0)
    code, text = run(*options)
    assert code == 0, text
    case = tmp_path / "case"
    names = {"ct.nii.gz", "labels.nii.gz", "xray.mha", "landmarks.csv", "pose.json"}
    assert {file.name for file in case.iterdir()} == names
    assert run(*options)[0] == 2  # never over an old folder
    truth = torch.tensor(json.loads((case / "pose.json").read_text())["world_to_camera"])
    found = tmp_path / "found.json"
    code, text = run(
        "register", case / "ct.nii.gz", case / "xray.mha", "--init", case / "pose.json",
        "--xi", "2,0,0,4,-3,0", "--stages", "ncc:2:40", "-o", found, "-q",
    )  # fmt: skip
    assert found.exists(), text
    moved = torch.tensor(json.loads(found.read_text())["world_to_camera"])
    center = torch.tensor([0.0, -22.0, -880.0, 1.0])
    assert float(((moved - truth) @ center)[:2].norm()) < 1.0
    rows = (case / "landmarks.csv").read_text().splitlines()
    assert rows[0] == "name,x,y,z,row,col" and len(rows) == 1 + len(BALLS) + 1
    assert rows[[r.split(",")[0] for r in rows].index("far")].endswith(",,")
