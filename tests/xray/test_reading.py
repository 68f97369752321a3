"""X-rays from files: pixels, cameras, angles, masks, and errors that name what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit import conversions
from drrkit.xray import read_xray
from tests.support.xray_files import carm_tags, write_dicom

pytestmark = pytest.mark.io

SIZE = (24, 32)


def pixels(frames: int | None = None) -> np.ndarray:
    shape = SIZE if frames is None else (frames, *SIZE)
    return np.random.default_rng(0).integers(0, 4096, shape).astype(np.uint16)


def test_a_carm_image_says_its_geometry(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "xray.dcm", pixels(), **carm_tags())
    xray = read_xray(file)
    assert xray.camera is not None
    assert (xray.camera.size, float(xray.camera.sdd)) == (SIZE, 1020.0)
    assert xray.pixel_spacing == (2.5, 2.25)
    assert (xray.sod, float(xray.primary_deg), float(xray.secondary_deg)) == (800.0, 30.0, -10.0)
    assert xray.kind == "inverted"  # fluoroscopy: bone dark
    # Stored images are seen from the detector, drrkit's from the source.
    assert torch.equal(xray.image[0, 0].flip(-1), torch.from_numpy(pixels().astype(np.float32)))
    assert torch.equal(read_xray(file, orient=False).image, xray.image.flip(-1))


def test_the_start_is_the_carm_at_its_angles(tmp_path: Path) -> None:
    ct = drrkit.phantoms.torso(spacing=20.0)
    xray = read_xray(write_dicom(tmp_path / "xray.dcm", pixels(), **carm_tags()))
    expected = drrkit.view_carm(ct, 800.0, math.radians(30), math.radians(-10), base="PA")
    torch.testing.assert_close(xray.start(ct), expected, rtol=0, atol=1e-9)
    nothing = read_xray(write_dicom(tmp_path / "bare.dcm", pixels()))
    with pytest.raises(ValueError, match="does not say where the C-arm stood"):
        nothing.start(ct)


@pytest.mark.parametrize(
    ("orientation", "flip"),
    [("L\\F", (-1,)), ("R\\F", ()), ("L\\H", (-2, -1)), ("R\\H", (-2,)), ("LA\\F", (-1,))],
)
def test_patient_orientation_says_how_the_image_is_seen(
    tmp_path: Path, orientation: str, flip: tuple[int, ...]
) -> None:
    tags = carm_tags(PatientOrientation=orientation.split("\\"), PositionerPrimaryAngle="0")
    xray = read_xray(write_dicom(tmp_path / "xray.dcm", pixels(), **tags))
    stored = torch.from_numpy(pixels().astype(np.float32))
    assert torch.equal(xray.image[0, 0], stored.flip(list(flip)) if flip else stored)
    assert xray.warnings == ()


def test_an_orientation_that_does_not_fit_the_angles_is_told(tmp_path: Path) -> None:
    tags = carm_tags(PatientOrientation=["F", "L"])
    xray = read_xray(write_dicom(tmp_path / "xray.dcm", pixels(), **tags))
    assert any("does not fit the positioner angles" in text for text in xray.warnings)


def test_a_simulated_film_read_back_registers_at_its_own_pose(tmp_path: Path) -> None:
    """The whole chain: a posterior-anterior DRR, stored as a C-arm stores it, is seen as it was."""
    ct = drrkit.phantoms.torso(spacing=8.0)
    camera = drrkit.CArm(1020.0, SIZE, (12.0, 11.0))
    pose = drrkit.view_carm(ct, 700.0, 0.5, 0.2, base="PA")
    line = drrkit.render(ct.to_mu(), camera, pose)[0, 0]
    film = (60000 * torch.exp(-line)).round().numpy().astype(np.uint16)[:, ::-1]
    tags = carm_tags(
        DistanceSourceToPatient="700",
        ImagerPixelSpacing=["12", "11"],
        PositionerPrimaryAngle=f"{math.degrees(0.5):.10f}",
        PositionerSecondaryAngle=f"{math.degrees(0.2):.10f}",
        PixelIntensityRelationship="LIN",
        PixelIntensityRelationshipSign=1,
    )
    xray = read_xray(write_dicom(tmp_path / "film.dcm", film.copy(), **tags))
    assert xray.kind == "intensity"
    seen = -(xray.image.clamp_min(1) / 60000).log()
    ours = drrkit.render(ct.to_mu(), xray.camera, xray.start(ct))
    torch.testing.assert_close(seen, ours, rtol=0, atol=0.05)


def test_runs_of_images_have_an_angle_a_frame(tmp_path: Path) -> None:
    tags = carm_tags(PositionerPrimaryAngleIncrement=["0", "2", "4"])
    file = write_dicom(tmp_path / "run.dcm", pixels(3), **tags)
    xray = read_xray(file)
    assert xray.image.shape == (3, 1, *SIZE)
    assert xray.primary_deg.tolist() == [30.0, 32.0, 34.0]
    assert xray.secondary_deg.tolist() == [-10.0] * 3
    last = read_xray(file, frames=-1)
    assert torch.equal(last.image, xray.image[2:])
    assert last.primary_deg.tolist() == [34.0]
    assert read_xray(file, frames=slice(1, None)).primary_deg.tolist() == [32.0, 34.0]
    with pytest.raises(ValueError, match="expected an index below 3"):
        read_xray(file, frames=3)


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({"Modality": "DX"}, "display"),
        ({"Modality": "DX", "PhotometricInterpretation": "MONOCHROME1"}, "inverted"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "display"),
        (
            {
                "PhotometricInterpretation": "MONOCHROME1",
                "BitsStored": 12,
                "HighBit": 11,
                "RescaleSlope": "1",
                "RescaleIntercept": "0",
            },
            "display",
        ),
        ({"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": -1}, "line"),
        ({"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": 1}, "intensity"),
    ],
)
def test_the_header_says_what_pixels_mean(tmp_path: Path, tags: dict, kind: str) -> None:
    xray = read_xray(write_dicom(tmp_path / "xray.dcm", pixels(), **carm_tags(**tags)))
    assert xray.kind == kind
    # MONOCHROME1 says how to show the pixels; it must not change them.
    stored = torch.from_numpy(pixels().astype(np.float32))
    assert torch.equal(xray.image[0, 0].flip(-1), stored)


def test_pixel_spacing_of_the_patient_is_taken_back_to_the_detector(tmp_path: Path) -> None:
    tags = carm_tags(
        ImagerPixelSpacing=None,
        PixelSpacing=["2", "1.8"],
        EstimatedRadiographicMagnificationFactor="1.25",
    )
    tags = {name: value for name, value in tags.items() if value is not None}
    xray = read_xray(write_dicom(tmp_path / "xray.dcm", pixels(), **tags))
    assert xray.pixel_spacing == pytest.approx((2.5, 2.25))
    assert any("magnification" in text for text in xray.warnings)
    del tags["EstimatedRadiographicMagnificationFactor"]
    xray = read_xray(write_dicom(tmp_path / "xray.dcm", pixels(), **tags))
    assert xray.pixel_spacing == (2.0, 1.8)
    assert any("Imager Pixel Spacing (0018,1164) is not in the file" in t for t in xray.warnings)


def test_what_the_file_does_not_say_can_be_said(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "bare.dcm", pixels())
    bare = read_xray(file)
    assert bare.camera is None
    assert len(bare.warnings) == 2
    told = read_xray(file, sdd=900.0, pixel_spacing=0.5, principal_point=(3.0, 4.0))
    expected = drrkit.CArm(900.0, SIZE, 0.5, (3.0, 4.0))
    torch.testing.assert_close(told.camera.K, expected.K)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("flipped", ["NO", "YES"])
def test_the_principal_point_moves_with_the_field_of_view(
    tmp_path: Path, turn: int, flipped: str
) -> None:
    """A picture of the whole detector with one bright element in its middle, cut as DICOM says."""
    detector = np.zeros((41, 61), np.uint16)
    detector[20, 30] = 1  # the middle
    top, left, rows, cols = 8, 5, 27, 35
    field = np.rot90(detector[top : top + rows, left : left + cols], -turn // 90)
    field = field[:, ::-1] if flipped == "YES" else field
    tags = carm_tags(
        ImagerPixelSpacing=["0.5", "0.5"],
        DetectorElementSpacing=["0.5", "0.5"],
        DetectorActiveDimensions=["20.5", "30.5"],
        DetectorActiveOrigin=["0", "0"],
        FieldOfViewOrigin=[str(top), str(left)],
        FieldOfViewRotation=str(turn),
        FieldOfViewHorizontalFlip=flipped,
    )
    xray = read_xray(write_dicom(tmp_path / "xray.dcm", field.copy(), **tags))
    row, col = np.argwhere(xray.image[0, 0].numpy() == 1)[0].tolist()
    K = xray.camera.K
    assert (float(K[0, 2]), float(K[1, 2])) == pytest.approx((col, row))
    assert any("off the detector's middle" in text for text in xray.warnings)


def test_shutters_become_masks(tmp_path: Path) -> None:
    tags = carm_tags(
        ShutterShape=["RECTANGULAR", "CIRCULAR"],
        ShutterLeftVerticalEdge=4,
        ShutterRightVerticalEdge=30,
        ShutterUpperHorizontalEdge=3,
        ShutterLowerHorizontalEdge=22,
        CenterOfCircularShutter=[12, 16],
        RadiusOfCircularShutter=9,
    )
    mask = read_xray(write_dicom(tmp_path / "xray.dcm", pixels(), **tags), orient=False).mask
    for row in range(1, SIZE[0] + 1):
        for col in range(1, SIZE[1] + 1):
            box = 4 < col < 30 and 3 < row < 22
            disc = (row - 12) ** 2 + (col - 16) ** 2 <= 81
            assert bool(mask[0, 0, row - 1, col - 1]) == (box and disc)


def test_polygons_become_masks(tmp_path: Path) -> None:
    tags = carm_tags(
        CollimatorShape="POLYGONAL", VerticesOfThePolygonalCollimator=[4, 4, 4, 28, 20, 16]
    )
    mask = read_xray(write_dicom(tmp_path / "xray.dcm", pixels(), **tags), orient=False).mask
    assert bool(mask[0, 0, 9, 15])
    assert not bool(mask[0, 0, 18, 5])
    assert float(mask.sum()) == pytest.approx(0.5 * 24 * 16, rel=0.1)


def test_pictures_and_arrays_are_read(tmp_path: Path) -> None:
    import SimpleITK as sitk

    for suffix in (".png", ".tif", ".mha", ".nii.gz"):
        file = tmp_path / f"xray{suffix}"
        image = sitk.GetImageFromArray(pixels())
        image.SetSpacing((0.25, 0.5))
        sitk.WriteImage(image, str(file))
        xray = read_xray(file, sdd=1000.0)
        assert torch.equal(xray.image[0, 0], torch.from_numpy(pixels().astype(np.float32)))
        known = suffix in (".mha", ".nii.gz")
        assert xray.pixel_spacing == ((0.5, 0.25) if known else None)
        assert (xray.camera is not None) == known
    np.save(tmp_path / "run.npy", pixels(2))
    assert read_xray(tmp_path / "run.npy").image.shape == (2, 1, *SIZE)


def test_calibrations_give_camera_and_pose(tmp_path: Path) -> None:
    np.save(tmp_path / "xray.npy", pixels())
    ct = drrkit.phantoms.torso(spacing=20.0)
    camera = drrkit.CArm(1020.0, SIZE, (2.5, 2.25), (14.0, 11.0))
    pose = drrkit.view_carm(ct, 800.0, 0.3, -0.1)
    conversions.write_mayacam(tmp_path / "maya.txt", camera, pose)
    K, R, t = (part[0] for part in conversions.to_opencv(camera, pose))
    matrix = {"type_id": "opencv-matrix", "rows": 3, "cols": 3, "dt": "d"}
    files = {
        "cv.json": {"K": K.tolist(), "R": R.tolist(), "t": t.tolist(), "sdd": 1020.0},
        "samples.json": {
            "camera_matrix": {**matrix, "data": K.flatten().tolist()},
            "rvec": drrkit.so3_log(R[None])[0].tolist(),
            "tvec": t[:, None].tolist(),
            "dist_coeffs": [0, 0, 0, 0, 0],
        },
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    for name in ("maya.txt", *files):
        xray = read_xray(tmp_path / "xray.npy", calibration=tmp_path / name, sdd=1020.0)
        torch.testing.assert_close(xray.camera.K, camera.K)
        torch.testing.assert_close(xray.start(ct), pose, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="does not hold the source-to-detector distance"):
        read_xray(tmp_path / "xray.npy", calibration=tmp_path / "maya.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello", "as JSON"),
        ("[]", "a JSON object"),
        ("{}", "K, R, t missing"),
        ('{"K": [[1]], "R": [0, 0, 0], "t": [0, 0, 0], "sdd": 1}', "K: expected"),
    ],
)
def test_broken_calibrations_say_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    np.save(tmp_path / "xray.npy", pixels())
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_xray(tmp_path / "xray.npy", calibration=tmp_path / "c.json")


def test_files_that_are_no_xrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_xray(tmp_path / "missing.dcm")
    (tmp_path / "text.dcm").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.dcm"):
        read_xray(tmp_path / "text.dcm")
    with pytest.raises(ValueError, match="modality CT"):
        read_xray(write_dicom(tmp_path / "ct.dcm", pixels(), Modality="CT"))
    (tmp_path / "a.xyz").write_text("hello")
    with pytest.raises(ValueError, match="expected a DICOM file or one of"):
        read_xray(tmp_path / "a.xyz")
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="4 that are not"):
        read_xray(tmp_path / "nan.npy")
