"""X-rays as hospitals and other programs write them: what is read, refused and said."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, RLELossless

import drrkit
from drrkit.xray import read_xray
from tests.support.ct_files import item
from tests.support.xray_files import carm_tags, write_dicom

pytestmark = pytest.mark.io

SIZE = (24, 32)
PIXELS = np.random.default_rng(0).integers(0, 4096, SIZE).astype(np.uint16)


def said(path: Path, **options: object) -> str:
    """All warnings of an X-ray."""
    return "; ".join(read_xray(path, **options).warnings)


# ---- optional fields that mean nothing

MALFORMED = {
    "DistanceSourceToDetector": ["-1", "1200 mm", "1200,5", "NaN", "inf", "1\\2"],
    "ImagerPixelSpacing": ["0.2", "a\\b", "-1\\-1", "0\\0", "0.2,0.2", "nan\\0.2"],
    "PositionerPrimaryAngle": ["LAO 10", "NaN", "1\\2"],
    "PositionerSecondaryAngle": ["CRA", "--1"],
    "DistanceSourceToPatient": ["80 cm", "-800"],
    "EstimatedRadiographicMagnificationFactor": ["1,2", "-1"],
    "FieldOfViewOrigin": ["left\\top", "1"],
    "FieldOfViewRotation": ["ninety"],
}
ASKED = [name for name in MALFORMED if not name.startswith(("Field", "Estimated"))]
CASES = [(name, value) for name, values in MALFORMED.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_malformed_optional_fields_are_unknown_with_a_warning(
    tmp_path: Path, name: str, value: str
) -> None:
    tags = carm_tags(DetectorActiveDimensions=["60", "72"], DetectorElementSpacing=["2.5", "2.25"])
    tags |= {"FieldOfViewOrigin": ["0", "0"], name: value.encode()}
    if name == "EstimatedRadiographicMagnificationFactor":
        tags = {**tags, "ImagerPixelSpacing": None, "PixelSpacing": ["2.5", "2.25"]}
        tags.pop("ImagerPixelSpacing")
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **tags)
    xray = read_xray(file)
    tag = pydicom.datadict.tag_for_keyword(name)
    assert f"({tag >> 16:04X},{tag & 0xFFFF:04X}): expected" in "; ".join(xray.warnings)
    assert torch.equal(xray.image[0, 0].flip(-1), torch.from_numpy(PIXELS.astype(np.float32)))
    assert (xray.camera is None) == (name in ("DistanceSourceToDetector", "ImagerPixelSpacing"))
    assert (xray.primary_deg is None) == (name == "PositionerPrimaryAngle")
    assert (xray.secondary_deg is None) == (name == "PositionerSecondaryAngle")
    assert xray.sod == (None if name == "DistanceSourceToPatient" else 800.0)
    given_too = read_xray(file, sdd=1020.0, pixel_spacing=(2.5, 2.25), principal_point=(1.0, 2.0))
    expected = drrkit.CArm(1020.0, SIZE, (2.5, 2.25), (1.0, 2.0))
    torch.testing.assert_close(given_too.camera.K, expected.K)
    if name in ("DistanceSourceToDetector", "ImagerPixelSpacing", "FieldOfViewOrigin"):
        assert not any("sdd" in text or "pixel_spacing" in text for text in given_too.warnings)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(ASKED),
    value=st.binary(max_size=14),
)
def test_any_bytes_in_a_field_give_an_error_a_warning_or_numbers(
    tmp_path: Path, name: str, value: bytes
) -> None:
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags(**{name: value}))
    xray = read_xray(file)
    if xray.camera is not None:
        assert bool(xray.camera.K.isfinite().all()) and float(xray.camera.sdd) > 0
    # A field of blanks, or of values that are all empty, is an empty one, which is no mistake.
    words = [c for c in value.decode("latin-1") if not c.isspace() and c not in "\0\\"]
    usual = read_xray(write_dicom(tmp_path / "y.dcm", PIXELS, **carm_tags()))
    if words and not any(c.isdigit() for c in words):
        assert len(xray.warnings) > len(usual.warnings)


@pytest.mark.parametrize(
    ("tag", "length", "message"),
    [
        (b"\x08\0\x60\0", 5000, r"without pixels \(\(UNREADABLE\)\)"),  # read when asked for
        (b"\xe0\x7f\x10\0", 5000, r"truncated or damaged: no pixels"),
        (b"\x02\0\x10\0", 20, "not a DICOM file, or a damaged one"),
    ],
)
def test_fields_of_no_known_representation_are_no_crash(
    tmp_path: Path, tag: bytes, length: int, message: str
) -> None:
    file = write_dicom(tmp_path / "x.dcm", np.tile(PIXELS, (4, 4)), **carm_tags())
    whole = file.read_bytes()
    at = whole.index(tag) + 4
    file.write_bytes(whole[:at] + b"S\2" + struct.pack("<H", length) + whole[at + 4 :])
    with pytest.raises(ValueError, match=rf"x\.dcm: .*{message}"):
        read_xray(file)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"DistanceSourceToPatient": "1100"}, "isocentre, 1100 mm .* behind the detector at 1020"),
        (
            {"DistanceSourceToDetector": "102", "DistanceSourceToPatient": "80"},
            r"102 mm: .*in cm: 1020 mm.*80 mm: .*in cm: 800 mm",
        ),
        ({"DistanceSourceToDetector": "1.02"}, r"1\.02 mm: .*\(in m: 1020 mm\)"),
        ({"ImagerPixelSpacing": ["0.0025", "0.00225"]}, "image is 0.06 x 0.072 mm large"),
        ({"ImagerPixelSpacing": ["250", "225"]}, "image is 6000 x 7200 mm large"),
    ],
)
def test_lengths_that_cannot_be_are_said(tmp_path: Path, tags: dict, message: str) -> None:
    assert re.search(message, said(write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags(**tags))))


def test_lengths_of_the_caller_and_of_other_files_are_said_too(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags())
    np.save(tmp_path / "x.npy", PIXELS)
    assert "1.02 mm: is it in another unit (in m: 1020 mm)" in said(file, sdd=1.02)
    assert "isocentre, 800 mm from the source, lies behind" in said(file, sdd=700.0)
    assert "image is 0.006 x 0.008 mm large" in said(file, pixel_spacing=0.00025)
    assert "102 mm: is it" in said(tmp_path / "x.npy", sdd=102.0, pixel_spacing=2.5)
    pose = {"K": [[400, 0, 15.5], [0, 400, 11.5], [0, 0, 1]], "R": [0, 0, 0], "t": [0, 0, 0.8]}
    (tmp_path / "k.json").write_text(json.dumps({**pose, "sdd": 1.02}))
    assert "in m: 1020 mm" in said(tmp_path / "x.npy", calibration=tmp_path / "k.json")
    with pytest.warns(drrkit.volume.FileWarning, match="isocentre, 1100 mm .* detector at 1020 mm"):
        read_xray(file).start(drrkit.phantoms.torso(spacing=20.0), sod=1100.0)


MIRRORED = {"PatientOrientation": ["L", "F"]}
OFF_CENTRE = {
    "DetectorActiveDimensions": ["200", "180"],
    "DetectorElementSpacing": ["2.5", "2.25"],
    "FieldOfViewOrigin": ["6", "2"],
    **MIRRORED,
}


@pytest.mark.parametrize("which", ["field of view", "RT image"])
@pytest.mark.parametrize("orient", [True, False])
def test_a_number_given_replaces_that_number_alone(
    tmp_path: Path, which: str, orient: bool
) -> None:
    """What else the file says stays: the foot of the source, a distance, a spacing."""
    tags, sdd, pitch = carm_tags(**OFF_CENTRE), 1020.0, (2.5, 2.25)
    if which == "RT image":
        tags, sdd, pitch = rt_tags(), 1500.0, (8.0, 7.5)
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **tags)
    whole = read_xray(file, orient=orient)
    assert whole.camera is not None and whole.camera.origin == "header"
    foot = whole.camera.K[:2, 2]
    assert not torch.allclose(foot, torch.tensor([15.5, 11.5], dtype=torch.float64))
    for options in ({"sdd": sdd}, {"pixel_spacing": pitch}, {"sdd": sdd, "pixel_spacing": pitch}):
        again = read_xray(file, orient=orient, **options)
        torch.testing.assert_close(again.camera.K, whole.camera.K)
        assert (again.camera.sdd, again.pixel_spacing) == (sdd, pitch)
        assert again.warnings == whole.warnings and again.camera.origin == "user"
    longer = read_xray(file, orient=orient, sdd=2 * sdd).camera
    torch.testing.assert_close(longer.K[:2, 2], foot)
    torch.testing.assert_close(longer.K.diag()[:2], 2 * whole.camera.K.diag()[:2])
    finer = read_xray(file, orient=orient, pixel_spacing=(pitch[0] / 2, pitch[1])).camera
    assert float(finer.sdd) == sdd and float(finer.K[0, 2]) == pytest.approx(float(foot[0]))
    moved = read_xray(file, orient=orient, principal_point=(3.0, 4.0)).camera
    assert moved.K[:2, 2].tolist() == [3.0, 4.0] and float(moved.sdd) == sdd


@pytest.mark.parametrize(
    "options", [{"sdd": 0.0}, {"sdd": math.nan}, {"pixel_spacing": 0.0}, {"pixel_spacing": (1, -1)}]
)
def test_numbers_of_the_caller_that_cannot_be_are_refused(tmp_path: Path, options: dict) -> None:
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags(**OFF_CENTRE))
    with pytest.raises(ValueError, match=rf"{next(iter(options))}: expected a finite number > 0"):
        read_xray(file, **options)


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": 1}, "display"),
        ({"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": -1}, "intensity"),
        ({"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": 1}, "line"),
        ({"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": -1}, "inverted"),
    ],
)
def test_the_kind_follows_the_rescaled_values(tmp_path: Path, tags: dict, kind: str) -> None:
    more = {"RescaleSlope": "-1", "RescaleIntercept": "4095"}
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags(**tags, **more))
    xray = read_xray(file, orient=False)
    assert xray.kind == kind
    np.testing.assert_array_equal(xray.image[0, 0].numpy(), 4095.0 - PIXELS)


def test_relations_in_small_letters_count_and_other_signs_are_said(tmp_path: Path) -> None:
    tags = {"PixelIntensityRelationship": b"lin ", "PixelIntensityRelationshipSign": -1}
    assert read_xray(write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags(**tags))).kind == "display"
    for sign in (0, 2):
        tags["PixelIntensityRelationshipSign"] = sign
        xray = read_xray(write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags(**tags)))
        assert xray.kind == "intensity"  # MONOCHROME2 of an XA that is linear
        assert f"(0028,1041): expected 1 or -1, got {sign}; taken as unknown" in xray.warnings[0]


@pytest.mark.parametrize(("slope", "kind"), [(2.0, "intensity"), (-1.0, None)])
def test_each_frame_has_its_own_slope(tmp_path: Path, slope: float, kind: str | None) -> None:
    frames = [
        item(PixelValueTransformationSequence=[item(RescaleSlope=str(s), RescaleIntercept=str(i))])
        for s, i in ((1.0, 0), (slope, 7))
    ]
    tags = {"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": 1}
    tags = carm_tags(PerFrameFunctionalGroupsSequence=frames, **tags)
    run = np.stack((PIXELS, PIXELS))
    xray = read_xray(write_dicom(tmp_path / "x.dcm", run, **tags), orient=False)
    np.testing.assert_array_equal(xray.image[0, 0].numpy(), PIXELS)
    np.testing.assert_array_equal(xray.image[1, 0].numpy(), slope * PIXELS + 7)
    assert xray.kind == kind
    assert any("negative in some frames" in text for text in xray.warnings) == (kind is None)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (
            {"ShutterLeftVerticalEdge": 30, "ShutterRightVerticalEdge": 3},
            "shutters or collimators leave nothing",
        ),
        (
            {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [12, 16]},
            "a circular shutter without centre or radius is not masked",
        ),
        (
            {"CollimatorShape": "POLYGONAL", "VerticesOfThePolygonalCollimator": [4, 4, 4, 28]},
            "a polygonal collimator without three corners is not masked",
        ),
        ({"PositionerPrimaryAngle": "400"}, r"\(0018,1510\): expected degrees, got \[400.0\]"),
        ({"NumberOfFrames": "0"}, r"\(0028,0008\): expected a whole number > 0, got 0"),
        ({"PixelAspectRatio": ["2", "1"]}, r"\(0028,0034\) is 2:1, not that of the pixel spacing"),
        (OFF_CENTRE | {"FieldOfViewRotation": "45"}, "expected quarter turns, got 45 degrees"),
        ({"PixelData": 2 * PIXELS.tobytes()}, "more pixels than the header says, 24 x 32"),
    ],
)
def test_what_cannot_be_meant_is_left_out_and_said(
    tmp_path: Path, tags: dict, message: str
) -> None:
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags(ShutterShape="RECTANGULAR") | tags)
    xray = read_xray(file, orient=False)
    assert re.search(message, "; ".join(xray.warnings)) and xray.mask is None
    np.testing.assert_array_equal(xray.image[0, 0].numpy(), PIXELS)
    assert (xray.primary_deg is None) == ("PositionerPrimaryAngle" in tags)


def test_geometry_that_changes_within_a_run_is_said(tmp_path: Path) -> None:
    frames = [
        item(XRayGeometrySequence=[item(DistanceSourceToDetector=s, DistanceSourceToIsocenter=800)])
        for s in (1000.0, 1100.0)
    ]
    tags = carm_tags(PerFrameFunctionalGroupsSequence=frames, DistanceSourceToDetector=None)
    file = write_dicom(tmp_path / "x.dcm", np.stack((PIXELS, PIXELS)), **tags)
    assert float(read_xray(file).camera.sdd) == 1000.0
    assert "(0018,1110) differs from frame to frame" in said(file)
    assert "(0018,9402)" not in said(file)


def test_a_pitch_of_one_that_nobody_measured_is_said(tmp_path: Path) -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(PIXELS)
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    assert "pixels of 1 x 1 mm, which programs write" in said(tmp_path / "x.mha")
    image.SetSpacing((2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "y.mha"))
    assert said(tmp_path / "y.mha") == "" and read_xray(tmp_path / "y.mha").pixel_spacing == (3, 2)


def test_pitches_in_other_units_are_converted(tmp_path: Path) -> None:
    import nibabel
    import nrrd
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(PIXELS)
    image.SetSpacing((0.03, 0.04))
    sitk.WriteImage(image, str(tmp_path / "x.mha"))
    whole = (tmp_path / "x.mha").read_bytes()
    (tmp_path / "x.mha").write_bytes(whole.replace(b"NDims", b"DistanceUnits = cm\nNDims", 1))
    nrrd.write(str(tmp_path / "x.nrrd"), PIXELS.T, {"spacings": [3e2, 4e2], "units": ["um", "um"]})
    metres = nibabel.Nifti1Image(PIXELS.T, np.diag((3e-4, 4e-4, 1e-3, 1)))
    metres.header.set_xyzt_units("meter")
    nibabel.save(metres, tmp_path / "x.nii")
    for suffix in ("mha", "nrrd", "nii"):
        assert read_xray(tmp_path / f"x.{suffix}").pixel_spacing == pytest.approx((0.4, 0.3))


def test_a_foot_of_the_source_far_from_the_image_is_said(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags())
    assert "column 1555, row 11.5, far from the image" in said(file, principal_point=(1555, 11.5))


def test_a_magnification_below_one_is_unknown(tmp_path: Path) -> None:
    tags = {"DistanceSourceToPatient": None, "EstimatedRadiographicMagnificationFactor": "0.8"}
    xray = read_xray(write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags(**tags)))
    assert xray.sod is None and "expected a number >= 1, got 0.8" in xray.warnings[0]


def test_an_inverse_presentation_swaps_the_kind(tmp_path: Path) -> None:
    tags = {"Modality": "DX", "PresentationLUTShape": "INVERSE"}
    assert read_xray(write_dicom(tmp_path / "x.dcm", PIXELS, **tags)).kind == "inverted"


@pytest.mark.parametrize("modality", ["MR", "US", "PT", "RTDOSE", "NM", "OT"])
def test_other_modalities_are_refused_by_name(tmp_path: Path, modality: str) -> None:
    file = write_dicom(tmp_path / "x.dcm", PIXELS, Modality=modality)
    with pytest.raises(ValueError, match=rf"x\.dcm: expected an X-ray .* got modality {modality}$"):
        read_xray(file)


def test_cts_are_refused_with_where_they_belong(tmp_path: Path) -> None:
    slice_ = write_dicom(tmp_path / "a.dcm", PIXELS, Modality="CT")
    with pytest.raises(ValueError, match="a slice of a CT, whose folder read_volume reads"):
        read_xray(slice_)
    image_type = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout = write_dicom(tmp_path / "b.dcm", PIXELS, Modality="CT", ImageType=image_type)
    with pytest.raises(ValueError, match="a localizer, whose rays are a fan"):
        read_xray(scout)


def test_colours_of_a_dicom_file_are_grey_and_said(tmp_path: Path) -> None:
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[..., 0], colours[..., 1] = 200, 100
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    depth = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": colours.tobytes()}
    xray = read_xray(write_dicom(tmp_path / "x.dcm", PIXELS, **tags, **depth))
    assert float(xray.image[0, 0, 0, 0]) == pytest.approx(0.299 * 200 + 0.587 * 100)
    assert any("have a colour: taken as grey" in text for text in xray.warnings)


@pytest.mark.parametrize("width", [31, 32])
def test_rle_of_any_width_is_decoded(tmp_path: Path, width: int) -> None:
    values = np.ascontiguousarray(PIXELS[:, :width])
    data = pydicom.dcmread(write_dicom(tmp_path / "x.dcm", values))
    data.compress(RLELossless)
    data.save_as(tmp_path / "x.dcm")
    seen = read_xray(tmp_path / "x.dcm", orient=False).image[0, 0].numpy()
    np.testing.assert_array_equal(seen, values)


def test_big_endian_icons_and_no_preamble(tmp_path: Path) -> None:
    icon = item(Rows=2, Columns=2, BitsAllocated=8, PixelData=b"\1\2\3\4")
    icon["PixelData"].VR = "OB"
    file = write_dicom(tmp_path / "x.dcm", PIXELS, **carm_tags(IconImageSequence=[icon]))
    expected = torch.from_numpy(PIXELS.astype(np.float32))
    assert torch.equal(read_xray(file, orient=False).image[0, 0], expected)
    data = pydicom.Dataset()
    for element in pydicom.dcmread(file):
        data.add(element)
    data.file_meta = pydicom.dcmread(file).file_meta
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    data.PixelData = PIXELS.astype(">u2").tobytes()
    data.save_as(tmp_path / "big.dcm", enforce_file_format=True)
    big = read_xray(tmp_path / "big.dcm", orient=False)
    assert torch.equal(big.image[0, 0], expected) and float(big.camera.sdd) == 1020.0
    bare = pydicom.dcmread(file)
    del bare.file_meta
    bare.preamble = None
    bare.save_as(tmp_path / "bare", implicit_vr=True, little_endian=True)
    found = read_xray(tmp_path / "bare", orient=False)
    assert torch.equal(found.image[0, 0], expected) and float(found.camera.sdd) == 1020.0


def test_what_pydicom_ships(tmp_path: Path) -> None:
    """Files of every coding, relabelled as X-rays, as pydicom itself decodes them."""
    from pydicom.data import get_testdata_file

    lossless = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    for name in (
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
        "MR_small_implicit.dcm",
        "MR_small_padded.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ):
        whole = Path(get_testdata_file(name)).read_bytes()
        assert whole.count(b"MR") > 0
        path = tmp_path / name
        place = whole.find(b"\x08\x00\x60\x00")
        place = place if place >= 0 else whole.find(b"\x00\x08\x00\x60")
        at = whole.find(b"MR", place)
        path.write_bytes(whole[:at] + b"DX" + whole[at + 2 :])
        seen = read_xray(path, orient=False).image[0, 0].numpy()
        np.testing.assert_array_equal(seen, lossless, err_msg=name)
    with pytest.raises(ValueError, match="truncated"):
        whole = Path(get_testdata_file("MR_truncated.dcm")).read_bytes()
        at = whole.find(b"MR", whole.find(b"\x08\x00\x60\x00"))
        (tmp_path / "cut.dcm").write_bytes(whole[:at] + b"DX" + whole[at + 2 :])
        read_xray(tmp_path / "cut.dcm")


# ---- localizers


def test_a_localizer_is_where_its_header_says(tmp_path: Path) -> None:
    """Pixel (row, col) at the isocentre is the patient's point of position and orientation."""
    tags = {
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "DistanceSourceToDetector": "1000",
        "DistanceSourceToPatient": "500",
        "ImagePositionPatient": ["-40", "10", "300"],
        "ImageOrientationPatient": ["1", "0", "0", "0", "0", "-1"],
        "PixelSpacing": ["2", "2.5"],
        "RescaleSlope": "2",
        "RescaleIntercept": "-7",
    }
    file = write_dicom(tmp_path / "scout.dcm", PIXELS, **tags)
    scan = drrkit.xray.read_localizer(file)
    np.testing.assert_array_equal(scan.image[0, 0].numpy(), 2.0 * PIXELS - 7)
    point = torch.tensor([-40 + 5 * 2.5, 10.0, 300 - 8 * 2.0, 1.0], dtype=torch.float64)
    x, y, z = (scan.world_to_camera @ point)[:3].tolist()
    (fx, _, cx), (_, fy, cy), _ = scan.camera.K.tolist()
    # A fan magnifies along its row, and the table's way counts as it is: sdd / fy mm per row.
    assert (fx * x / z + cx, y * fy / 1000 + cy, z) == pytest.approx((5.0, 8.0, 500.0), abs=1e-9)
    tags |= {"RescaleSlope": b"2,0", "RescaleIntercept": "0"}
    with pytest.warns(drrkit.volume.FileWarning, match=r"\(0028,1053\): expected a number, got '2"):
        scan = drrkit.xray.read_localizer(write_dicom(file, PIXELS, **tags))
    np.testing.assert_array_equal(scan.image[0, 0].numpy(), PIXELS)
    for name in ("DistanceSourceToDetector", "PixelSpacing", "ImageOrientationPatient"):
        with pytest.raises(ValueError, match=r"scout\.dcm: .* got nothing"):
            drrkit.xray.read_localizer(write_dicom(file, PIXELS, **{**tags, name: None}))


# ---- RT images


def rt_tags(**more: object) -> dict[str, object]:
    return {
        "Modality": "RTIMAGE",
        "RTImageSID": "1500",
        "RadiationMachineSAD": "1000",
        "ImagePlanePixelSpacing": ["8", "7.5"],
        "RTImagePosition": ["-100", "110"],
        "GantryAngle": "0",
        "PatientPosition": "HFS",
        **more,
    }


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 180.0, 315.0])
def test_rt_images_have_the_geometry_of_iec_61217(tmp_path: Path, angle: float) -> None:
    file = write_dicom(tmp_path / "rt.dcm", PIXELS, **rt_tags(GantryAngle=str(angle)))
    xray = read_xray(file)
    assert xray.warnings == () and xray.sod == 1000.0 and float(xray.camera.sdd) == 1500.0
    assert torch.equal(xray.image[0, 0], torch.from_numpy(PIXELS.astype(np.float32)))
    ct = drrkit.phantoms.torso(spacing=20.0)
    center, pose = drrkit.volume_center(ct), xray.start(ct)[0]
    source = -pose[:3, :3].T @ pose[:3, 3]
    turn = math.radians(angle)
    # At zero in front of the patient, at 90 degrees on the left.
    expected = center + 1000 * torch.tensor(
        [math.sin(turn), -math.cos(turn), 0.0], dtype=torch.float64
    )
    torch.testing.assert_close(source, expected, rtol=0, atol=1e-6)
    # The isocentre is seen at IEC's origin: x from -100 in steps of 7.5, y from 110 down.
    row, col = drrkit.project_points(xray.camera, pose, center[None])[0, 0].tolist()
    assert (row, col) == pytest.approx((110 / 8, 100 / 7.5), abs=1e-6)
    # 100 mm to the patient's left are to the right at zero, magnified by 1.5.
    if angle == 0.0:
        left = center + torch.tensor([100.0, 0, 0], dtype=torch.float64)
        head = center + torch.tensor([0.0, 0, 100], dtype=torch.float64)
        points = drrkit.project_points(xray.camera, pose, torch.stack((left, head)))[0]
        assert points[0].tolist() == pytest.approx((row, col + 150 / 7.5), abs=1e-5)
        assert points[1].tolist() == pytest.approx((row - 150 / 8, col), abs=1e-5)


def test_the_receptors_translation_moves_the_principal_point(tmp_path: Path) -> None:
    tags = rt_tags(XRayImageReceptorTranslation=["15", "-16", "-500"])
    K = read_xray(write_dicom(tmp_path / "rt.dcm", PIXELS, **tags)).camera.K
    assert (float(K[0, 2]), float(K[1, 2])) == pytest.approx((85 / 7.5, 94 / 8))


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientSupportAngle": "30"},
        {"PatientPosition": "FFS"},
        {"XRayImageReceptorAngle": "90"},
        {"GantryPitchAngle": 3.0},
        {"RTImageOrientation": [0, 1, 0, 1, 0, 0]},
    ],
)
def test_rt_images_of_turned_couches_have_no_start_and_say_so(tmp_path: Path, tags: dict) -> None:
    xray = read_xray(write_dicom(tmp_path / "rt.dcm", PIXELS, **rt_tags(**tags)))
    assert xray.primary_deg is None and xray.camera is not None
    assert any("where to start is not known" in text for text in xray.warnings)


def test_rt_images_without_a_patient_position_say_what_is_assumed(tmp_path: Path) -> None:
    xray = read_xray(write_dicom(tmp_path / "rt.dcm", PIXELS, **rt_tags(PatientPosition=None)))
    assert float(xray.primary_deg) == -180.0
    assert xray.warnings == (
        "Patient Position (0018,5100) is not in the file: head first, supine is assumed",
    )


# ---- pictures


def tiff(
    path: Path,
    pixels: np.ndarray,
    order: str = "<",
    deflate: bool = False,
    big: bool = False,
    **tags: int,
) -> Path:
    """A TIFF or BigTIFF of one strip, with its samples and tags as they are."""
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflate else data
    start, word, count = (16, "Q", "Q") if big else (8, "I", "H")
    fields = {256: pixels.shape[1], 257: pixels.shape[0], 258: 8 * pixels.itemsize}
    fields |= {259: 8 if deflate else 1, 262: 1, 273: start, 277: 1, 278: pixels.shape[0]}
    fields |= {279: len(data), 339: kind} | {int(name[1:]): v for name, v in tags.items()}
    data += b"\0" * (len(data) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HH", 8, 0) if big else b""
    head += struct.pack(order + word, start + len(data))
    entries = b"".join(
        struct.pack(f"{order}HH{word}", tag, 4 if tag in (273, 279) else 3, 1)
        + struct.pack(order + ("I" if tag in (273, 279) else "H"), value).ljust(
            struct.calcsize("<" + word), b"\0"
        )
        for tag, value in sorted(fields.items())
    )
    path.write_bytes(head + data + struct.pack(order + count, len(fields)) + entries + bytes(8))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64, np.int64, np.uint64])
def test_tiffs_of_64_bits_are_read(
    tmp_path: Path, dtype: type, big: bool, deflate: bool, order: str
) -> None:
    """64 bits per sample, or per address as in a BigTIFF, or both."""
    values = PIXELS.astype(dtype)
    file = tiff(tmp_path / "x.tif", values, order, deflate, big)
    np.testing.assert_array_equal(read_xray(file).image[0, 0].numpy(), values)


def shown(pixels: np.ndarray, turn: int) -> np.ndarray:
    """EXIF's table: where the 0th row and the 0th column of the stored picture are shown."""
    rows, cols = pixels.shape
    r, c = np.mgrid[:rows, :cols]
    at = {
        1: (r, c),
        2: (r, cols - 1 - c),
        3: (rows - 1 - r, cols - 1 - c),
        4: (rows - 1 - r, c),
        5: (c, r),
        6: (c, rows - 1 - r),
        7: (cols - 1 - c, rows - 1 - r),
        8: (cols - 1 - c, r),
    }[turn]
    result = np.empty((rows, cols) if turn < 5 else (cols, rows), pixels.dtype)
    result[at] = pixels
    return result


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_tags_are_followed(tmp_path: Path, turn: int) -> None:
    import SimpleITK as sitk

    for big in (False, True):
        xray = read_xray(tiff(tmp_path / "x.tif", PIXELS, big=big, t274=turn))
        np.testing.assert_array_equal(xray.image[0, 0].numpy(), shown(PIXELS, turn))
        assert any("orientation tag" in text for text in xray.warnings) == (turn != 1)
    grey = (np.arange(48 * 64).reshape(48, 64) // 16).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(grey), str(tmp_path / "x.jpg"))
    plain = read_xray(tmp_path / "x.jpg").image[0, 0].numpy()
    directory = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 274, 3, 1, turn, 0) + bytes(4)
    segment = b"Exif\0\0" + directory
    whole = (tmp_path / "x.jpg").read_bytes()
    exif = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    (tmp_path / "y.jpg").write_bytes(whole[:2] + exif + whole[2:])
    seen = read_xray(tmp_path / "y.jpg").image[0, 0].numpy()
    np.testing.assert_array_equal(seen, shown(plain, turn))
    sitk.WriteImage(sitk.GetImageFromArray(grey), str(tmp_path / "x.png"))
    whole, crc = (tmp_path / "x.png").read_bytes(), zlib.crc32(b"eXIf" + directory)
    exif = struct.pack(">I", len(directory)) + b"eXIf" + directory + struct.pack(">I", crc)
    (tmp_path / "y.png").write_bytes(whole[:33] + exif + whole[33:])
    seen = read_xray(tmp_path / "y.png").image[0, 0].numpy()
    np.testing.assert_array_equal(seen, shown(grey, turn))


def test_a_picture_is_what_it_contains_whatever_its_name(tmp_path: Path) -> None:
    import SimpleITK as sitk

    grey = (np.arange(48 * 64).reshape(48, 64) // 16).astype(np.uint8)
    for suffix in (".jpg", ".png", ".tif", ".bmp"):
        sitk.WriteImage(sitk.GetImageFromArray(grey), str(tmp_path / f"x{suffix}"))
        content = (tmp_path / f"x{suffix}").read_bytes()
        expected = read_xray(tmp_path / f"x{suffix}").image
        other = tmp_path / ("y.tif" if suffix == ".png" else "y.png")
        other.write_bytes(content)
        found = read_xray(other)
        assert torch.equal(found.image, expected)
        assert any("the file is named" in text for text in found.warnings)
    (tmp_path / "z.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"z\.png: not an image"):
        read_xray(tmp_path / "z.png")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".mha", ".npy"])
def test_tinted_and_annotated_pictures_are_grey_and_say_so(tmp_path: Path, suffix: str) -> None:
    import SimpleITK as sitk

    grey = (np.arange(48 * 64).reshape(48, 64) // 16).astype(np.uint8)
    annotated = np.repeat(grey[..., None], 3, -1)
    annotated[2:5, 2:12] = (255, 255, 0)
    for colours in (annotated, annotated * np.array((1, 0.9, 0.7)).reshape(1, 1, 3)):
        colours = colours.astype(np.uint8)
        if suffix == ".npy":
            np.save(tmp_path / "x.npy", colours)
        else:
            image = sitk.GetImageFromArray(colours, isVector=True)
            sitk.WriteImage(image, str(tmp_path / f"x{suffix}"))
        xray = read_xray(tmp_path / f"x{suffix}")
        expected = colours @ np.array((0.299, 0.587, 0.114))
        np.testing.assert_allclose(xray.image[0, 0].numpy(), expected, rtol=1e-5)
        assert any("taken as grey" in text for text in xray.warnings)


def test_arrays_of_colours_are_one_image_and_runs_are_runs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.repeat(PIXELS[..., None], 3, -1))
    xray = read_xray(tmp_path / "x.npy")
    assert xray.image.shape == (1, 1, *SIZE)
    assert torch.equal(xray.image[0, 0], torch.from_numpy(PIXELS.astype(np.float32)))
    assert any("channels" in text for text in xray.warnings)
    np.save(tmp_path / "run.npy", np.stack([PIXELS] * 3))
    assert read_xray(tmp_path / "run.npy").image.shape == (3, 1, *SIZE)


@pytest.mark.parametrize("axis", ["last", "last of a batch", "first of a batch"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_of_an_array_are_one_image(tmp_path: Path, axis: str, channels: int) -> None:
    pixels = np.repeat(PIXELS[..., None], channels, -1)
    if channels in (2, 4):
        pixels[..., -1] = 255  # opacity
    if "batch" in axis:
        pixels = pixels[None]
    np.save(tmp_path / "x.npy", np.moveaxis(pixels, -1, 1) if "first" in axis else pixels)
    image = read_xray(tmp_path / "x.npy").image
    assert torch.equal(image[0, 0], torch.from_numpy(PIXELS.astype(np.float32)))
    assert image.shape == (1, 1, *SIZE)


def test_frames_at_the_end_of_an_array_are_refused_or_said(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((*SIZE, 5)))
    with pytest.raises(ValueError, match=r"frames last\? .* of shape \(24, 32, 5\) puts them"):
        read_xray(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.zeros((100, 120, 20)))
    assert "100 frames of 120 x 20 pixels: frames last?" in said(tmp_path / "x.npy")


def test_an_nrrd_whose_colours_are_the_slowest_axis_is_one_image(tmp_path: Path) -> None:
    import nrrd

    pixels = np.stack([PIXELS.T] * 3, -1)  # cols, rows, colours
    kinds = {"kinds": ["domain", "domain", "RGB-color"]}
    nrrd.write(str(tmp_path / "x.nrrd"), pixels, kinds)
    image = read_xray(tmp_path / "x.nrrd").image
    assert image.shape == (1, 1, *SIZE)
    assert torch.equal(image[0, 0], torch.from_numpy(PIXELS.astype(np.float32)))


def test_sizes_are_checked_before_anything_is_decoded(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 10**6, 10**6) + bytes(9)
    (tmp_path / "x.png").write_bytes(png)
    with pytest.raises(ValueError, match="1000000 x 1000000 pixels are more"):
        read_xray(tmp_path / "x.png")
    for tags in ({"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": "2000000000"}):
        with pytest.raises(ValueError, match=r"truncated or damaged|more than can be meant"):
            read_xray(write_dicom(tmp_path / "x.dcm", PIXELS, **tags))
    data = pydicom.dcmread(write_dicom(tmp_path / "rle.dcm", PIXELS))
    data.compress(RLELossless)
    data.Rows = data.Columns = 9000
    data.save_as(tmp_path / "rle.dcm")
    with pytest.raises(ValueError, match="too few bytes"):
        read_xray(tmp_path / "rle.dcm")
    colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    colours |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": bytes(24 * 32 * 3)}
    for size, message in ((48, "2304 of the 4608 bytes"), (65535, "more than can be meant")):
        tags = {**colours, "Rows": size, "Columns": max(size, 64) - 32}
        with pytest.raises(ValueError, match=message):
            read_xray(write_dicom(tmp_path / "rgb.dcm", PIXELS, **tags))
    with (tmp_path / "x.npy").open("wb") as array:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
        np.lib.format.write_array_header_1_0(array, header)
        array.write(bytes(800))
    with pytest.raises(ValueError, match=r"x\.npy: not a NumPy array file, or a truncated one"):
        read_xray(tmp_path / "x.npy")
