"""`drrkit convert`: every format there and back, and what it says of what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import drrkit
from drrkit.cli.convert import FILES, FORMATS
from drrkit.cli.io import read_pose, write_pose
from tests.support.commands import run

pytestmark = pytest.mark.io

SIZE = (20, 24)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CT and a pose file."""
    folder = tmp_path_factory.mktemp("convert")
    ct = drrkit.phantoms.torso(spacing=20.0)
    drrkit.write_volume(ct, folder / "ct.nii.gz")
    camera = drrkit.CArm(1020.0, SIZE, (2.0, 2.0), (10.0, 11.5))
    xi = torch.tensor([0.1, 0.2, -0.1, 5.0, -8.0, 20.0], dtype=torch.float64)
    start = drrkit.view_carm(ct, 800.0, 0.3, -0.2)
    write_pose(folder / "pose.json", drrkit.perturb(start, xi, drrkit.volume_center(ct)), camera)
    return folder


def convert(*words: object) -> tuple[int, str]:
    result = run("convert", *words)
    return result.exit_code, result.output


EVERYTHING = ("--size", "20x24", "--sdd", 1020, "--sod", 800, "--pixel-spacing", 2)
CENTRED = ("slicer", "dicom", "prost")
"""Formats that hold no principal point: it comes back as the detector's middle."""


@pytest.mark.parametrize("tool", [*FORMATS, *FILES])
def test_every_format_goes_there_and_back(place: Path, tool: str) -> None:
    suffix = {"slicer": ".tfm", "mayacam": ".txt", "mayacam1": ".csv"}.get(tool, ".json")
    there, back = place / f"{tool}{suffix}", place / f"{tool}_back.json"
    options = ("--ct", place / "ct.nii.gz", *EVERYTHING)
    assert convert(place / "pose.json", "--to", tool, "-o", there, *options)[0] == 0
    assert convert(there, "--from", tool, "-o", back, *options)[0] == 0
    found, expected = read_pose(back), read_pose(place / "pose.json")
    torch.testing.assert_close(found.world_to_camera, expected.world_to_camera, rtol=0, atol=1e-9)
    if tool not in CENTRED:
        torch.testing.assert_close(found.camera.K, expected.camera.K, rtol=0, atol=1e-9)


def test_missing_options_are_named(place: Path) -> None:
    code, text = convert(place / "pose.json", "--to", "astra", "-o", place / "a.json")
    assert code == 2
    assert "this format needs --ct" in text
    code, text = convert(place / "pose.json", "-o", place / "a.json")
    assert code == 2
    assert "give --from or --to" in text


@pytest.mark.parametrize("content", ["hello", "[]", "{}", '{"K": 1}'])
def test_files_of_another_format_are_refused(place: Path, content: str) -> None:
    broken = place / "broken.json"
    broken.write_text(content)
    code, text = convert(broken, "--from", "opencv", "-o", place / "b.json", *EVERYTHING)
    assert code == 2
    assert "broken.json" in text
    assert not (place / "b.json").exists()


def test_rtks_own_file_goes_there_and_back(place: Path) -> None:
    """A detector with the foot of the source in its middle, as the file cannot say otherwise."""
    stored = read_pose(place / "pose.json")
    centred = drrkit.CArm(1020.0, SIZE, 2.0)
    write_pose(place / "centred.json", stored.world_to_camera, centred)
    options = ("--ct", place / "ct.nii.gz", "--size", "20x24", "--pixel-spacing", 2)
    there, back = place / "rtk.xml", place / "rtk_file_back.json"
    assert convert(place / "centred.json", "--to", "rtk", "-o", there, *options)[0] == 0
    assert convert(there, "--from", "rtk", "-o", back, *options)[0] == 0
    found = read_pose(back)
    torch.testing.assert_close(found.world_to_camera, stored.world_to_camera, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.camera.K, centred.K, rtol=0, atol=1e-9)
    code, text = convert(there, "--from", "rtk", "-o", back)
    assert code == 2 and "--size, --pixel-spacing" in text


def test_rtk_says_that_rows_are_flipped(place: Path) -> None:
    options = ("--ct", place / "ct.nii.gz", *EVERYTHING)
    convert(place / "pose.json", "--to", "rtk", "-o", place / "r.json", *options)
    assert len(json.loads((place / "r.json").read_text())["gantry_angle"]) == 1
    back = ("--from", "rtk", "-o", place / "r2.json")
    assert "flip the rows" in convert(place / "r.json", *back, *options)[1]


def test_lengths_of_another_unit_are_said(place: Path) -> None:
    convert(place / "pose.json", "--to", "opencv", "-o", place / "metres.json")
    back = ("--from", "opencv", "-o", place / "mm.json", "--size", "20x24", "--sdd", 1.02)
    code, text = convert(place / "metres.json", *back)
    assert code == 0 and "distance is 1.02 mm: is it in another unit (in m: 1020 mm)?" in text


def test_views_that_cannot_be_meant_are_said(place: Path) -> None:
    """K in mm; a camera that looks along -z, as its pose has it in other programs."""
    convert(place / "pose.json", "--to", "opencv", "-o", place / "cv.json")
    view = json.loads((place / "cv.json").read_text())
    K, R, t = (view[name][0] for name in "KRt")
    back = ("--from", "opencv", "--size", "20x24", "--sdd", 1020, "--ct", place / "ct.nii.gz")
    flipped = [R[0], [-x for x in R[1]], [-x for x in R[2]]], [t[0], -t[1], -t[2]]
    for content, message in (
        ({"K": K, "R": R, "t": t}, None),
        ({"K": [[1020, 0, 11.5], [0, 1020, 9.5], [0, 0, 1]], "R": R, "t": t}, "is it in pixels?"),
        ({"K": K, "R": flipped[0], "t": flipped[1]}, "from the source, behind it: is the pose of"),
    ):
        (place / "k.json").write_text(json.dumps(content))
        code, text = convert(place / "k.json", *back, "-o", place / "back.json")
        lines = [line for line in text.splitlines() if line.startswith("Warning: ")]
        assert code == 0 and len(lines) == (0 if message is None else 1)
        assert message is None or message in lines[0]


@pytest.mark.parametrize(
    "row, read", [((0.0, -2e-19, 3e-18, 1 - 1e-16), True), ((0, 0, 1e-3, 1), False)]
)
def test_a_last_row_off_by_rounding_is_read_as_exact(
    row: tuple[float, ...], read: bool, tmp_path: Path
) -> None:
    """Which inverse gives 0 0 0 1 to the bit depends on the BLAS that made it."""
    file = tmp_path / "pose.json"
    file.write_text(json.dumps([[1.0, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 800], list(row)]))
    if read:
        assert read_pose(file).world_to_camera[3].tolist() == [0.0, 0.0, 0.0, 1.0]
    else:
        with pytest.raises(ValueError, match="0, 0, 0, 1"):
            read_pose(file)
