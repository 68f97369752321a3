"""DICOM X-rays as machines write them: bits, signs, codings, padding, missing fields, runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

import drrkit
from drrkit.volume import DicomFile
from drrkit.xray import read_xray
from tests.support.xray_files import carm_tags, write_dicom

pytestmark = pytest.mark.io

SIZE = (24, 32)


def pixels(bits: int = 12, signed: bool = False, frames: int | None = None) -> np.ndarray:
    """Random pixels that use all the bits."""
    shape = SIZE if frames is None else (frames, *SIZE)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    values = np.random.default_rng(bits).integers(low, high, shape)
    values.flat[:2] = low, high - 1
    return values.astype(np.int16 if signed else np.uint16)


def write(path: Path, values: np.ndarray, bits: int = 12, **tags: object) -> Path:
    """An X-ray of some bits; signed if the values are."""
    signed = values.dtype == np.int16
    raw = values.astype(np.uint16) & np.uint16(2**bits - 1) if signed else values
    depth = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(signed)}
    return write_dicom(path, raw, **carm_tags(**{**depth, **tags}))


def seen(path: Path) -> np.ndarray:
    """What drrkit reads, as stored: from the detector's side."""
    image = read_xray(path, orient=False).image[:, 0]
    return image.numpy().squeeze()


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_pixels_of_every_depth_come_back(
    tmp_path: Path, bits: int, signed: bool, photometric: str
) -> None:
    values = pixels(bits, signed)
    file = write(tmp_path / "x.dcm", values, bits, PhotometricInterpretation=photometric)
    np.testing.assert_array_equal(seen(file), values)
    # pydicom, which shares no code with the reader, agrees.
    np.testing.assert_array_equal(pydicom.dcmread(file).pixel_array, values)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
def test_slope_and_intercept_are_applied(tmp_path: Path, photometric: str, signed: bool) -> None:
    values = pixels(16, signed)
    tags = {"RescaleSlope": "0.5", "RescaleIntercept": "-7", "RescaleType": "US"}
    file = write(tmp_path / "x.dcm", values, 16, PhotometricInterpretation=photometric, **tags)
    np.testing.assert_array_equal(seen(file), 0.5 * values - 7.0)


def test_bytes_are_read(tmp_path: Path) -> None:
    values = (pixels(8) & 255).astype(np.uint8)
    depth = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        tags = carm_tags(PixelData=values.tobytes(), PhotometricInterpretation=photometric, **depth)
        np.testing.assert_array_equal(seen(write_dicom(tmp_path / "x.dcm", values, **tags)), values)


def test_shifted_bits_are_refused_and_overlays_in_high_bits_left_out(tmp_path: Path) -> None:
    shifted = write(tmp_path / "x.dcm", pixels(12), 12, HighBit=15)
    with pytest.raises(ValueError, match="High Bit"):
        read_xray(shifted)
    values = pixels(12)
    with_overlay = values | np.uint16(1 << 14)
    file = write_dicom(tmp_path / "y.dcm", with_overlay, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(seen(file), values)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("coding", ["RLE", "JPEG", "JPEG2000", "deflated", "implicit"])
def test_lossless_codings_are_decoded(tmp_path: Path, coding: str, photometric: str) -> None:
    import SimpleITK as sitk

    values = pixels(16)
    plain = write(tmp_path / "plain.dcm", values, 16, PhotometricInterpretation=photometric)
    file, data = tmp_path / "coded.dcm", pydicom.dcmread(plain)
    if coding == "RLE":
        data.compress(RLELossless)
    elif coding.startswith("JPEG"):
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(tmp_path / "itk.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor(coding)
        writer.Execute(sitk.GetImageFromArray(values[None]))
        coded = pydicom.dcmread(tmp_path / "itk.dcm")
        data.PixelData = coded.PixelData
        data.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
    else:
        syntaxes = {"deflated": DeflatedExplicitVRLittleEndian, "implicit": ImplicitVRLittleEndian}
        data.file_meta.TransferSyntaxUID = syntaxes[coding]
    data.save_as(file)
    np.testing.assert_array_equal(seen(file), values)
    assert DicomFile(file).syntax == data.file_meta.TransferSyntaxUID


def test_what_cannot_be_decoded_names_the_coding_and_what_helps(tmp_path: Path) -> None:
    data = pydicom.dcmread(write(tmp_path / "plain.dcm", pixels()))
    data.compress(RLELossless)
    data.file_meta.TransferSyntaxUID = MPEG4HP41
    data.save_as(tmp_path / "film.dcm")
    with pytest.raises(ValueError, match=r"film\.dcm: .*4\.102.*gdcmconv --raw"):
        read_xray(tmp_path / "film.dcm")


def test_signed_pixels_shown_inverted_are_read(tmp_path: Path) -> None:
    """SimpleITK refuses these below 16 bits."""
    values = pixels(12, True)
    file = write(tmp_path / "x.dcm", values, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(seen(file), values)


def test_padding_is_masked(tmp_path: Path) -> None:
    values = pixels(12) // 2 + 10
    values[:, :5] = 0
    values[3] = 2
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        tags = {"PhotometricInterpretation": photometric, "RescaleSlope": "2"}
        tags["RescaleIntercept"] = "-3"
        one = read_xray(write(tmp_path / "a.dcm", values, PixelPaddingValue=0, **tags))
        assert one.mask is not None
        np.testing.assert_array_equal(one.mask[0, 0].numpy()[:, ::-1] == 0, values == 0)
        tags["PixelPaddingRangeLimit"] = 2
        two = read_xray(write(tmp_path / "b.dcm", values, PixelPaddingValue=0, **tags))
        assert two.mask is not None
        np.testing.assert_array_equal(two.mask[0, 0].numpy()[:, ::-1] == 0, values <= 2)
    none = read_xray(write(tmp_path / "c.dcm", values, PixelPaddingValue=4095))
    assert none.mask is None


def test_negative_padding_is_masked(tmp_path: Path) -> None:
    values = np.abs(pixels(12, True)) // 2
    values[:4] = -2000
    xray = read_xray(write(tmp_path / "a.dcm", values, PixelPaddingValue=-2000))
    assert xray.mask is not None
    np.testing.assert_array_equal(xray.mask[0, 0].numpy() == 0, values == -2000)


def test_padding_and_shutters_share_a_mask(tmp_path: Path) -> None:
    values = pixels(12) // 2 + 10
    values[:2] = 0
    tags = {"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 6}
    xray = read_xray(write(tmp_path / "a.dcm", values, PixelPaddingValue=0, **tags), orient=False)
    expected = np.ones(SIZE)
    expected[:2], expected[:, :6] = 0, 0
    assert xray.mask is not None
    np.testing.assert_array_equal(xray.mask[0, 0].numpy(), expected)


def test_a_modality_lut_is_told(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [16, 0, 16], "US"
    table.LUTData = np.arange(1000, 1016).astype("<u2").tobytes()
    values = pixels(4)
    file = write(tmp_path / "a.dcm", values, ModalityLUTSequence=Sequence([table]))
    xray = read_xray(file)
    assert any("Modality LUT" in text for text in xray.warnings)
    np.testing.assert_array_equal(seen(file), values)


# ---- geometry


def without(*names: str, **more: object) -> dict[str, object]:
    return {name: value for name, value in carm_tags(**more).items() if name not in names}


def test_binned_elements_stand_in_for_the_imager_pixel_spacing(tmp_path: Path) -> None:
    tags = without(
        "ImagerPixelSpacing",
        DetectorElementSpacing=["0.154", "0.15"],
        DetectorBinning=["2", "3"],
        PixelSpacing=["9", "9"],
    )
    xray = read_xray(write_dicom(tmp_path / "a.dcm", pixels(), **tags))
    assert xray.pixel_spacing == pytest.approx((0.308, 0.45))
    assert any("binning" in text for text in xray.warnings)
    # What the imager itself says comes first.
    tags = carm_tags(DetectorElementSpacing=["0.154", "0.15"], DetectorBinning=["2", "3"])
    xray = read_xray(write_dicom(tmp_path / "b.dcm", pixels(), **tags))
    assert xray.pixel_spacing == (2.5, 2.25) and xray.warnings == ()


def test_the_isocentre_follows_from_the_magnification_or_can_be_given(tmp_path: Path) -> None:
    ct = drrkit.phantoms.torso(spacing=20.0)
    expected = drrkit.view_carm(ct, 816.0, math.radians(30), math.radians(-10), base="PA")
    tags = without("DistanceSourceToPatient", EstimatedRadiographicMagnificationFactor="1.25")
    xray = read_xray(write_dicom(tmp_path / "a.dcm", pixels(), **tags))
    torch.testing.assert_close(xray.start(ct), expected, rtol=0, atol=1e-9)
    assert any("over the magnification" in text for text in xray.warnings)
    bare = read_xray(
        write_dicom(tmp_path / "b.dcm", pixels(), **without("DistanceSourceToPatient"))
    )
    assert bare.sod is None
    with pytest.raises(ValueError, match="give sod="):
        bare.start(ct)
    torch.testing.assert_close(bare.start(ct, sod=816.0), expected, rtol=0, atol=1e-9)


def test_a_radiograph_without_geometry_says_what_to_give(tmp_path: Path) -> None:
    file = write_dicom(tmp_path / "dx.dcm", pixels(), Modality="DX")
    xray = read_xray(file)
    assert xray.camera is None and xray.pixel_spacing is None
    assert any(text.endswith("give sdd=") for text in xray.warnings)
    assert any(text.endswith("give pixel_spacing=") for text in xray.warnings)
    told = read_xray(file, sdd=1800.0, pixel_spacing=0.139)
    assert told.camera is not None and float(told.camera.sdd) == 1800.0


def test_a_radiographs_distance_to_the_table_is_no_isocentre(tmp_path: Path) -> None:
    xray = read_xray(write_dicom(tmp_path / "dx.dcm", pixels(), **carm_tags(Modality="DX")))
    assert xray.sod is None


def test_two_planes_see_one_patient(tmp_path: Path) -> None:
    """Biplane: a file a plane; a point has its own place in both, and both give it back."""
    ct = drrkit.phantoms.torso(spacing=20.0)
    planes = []
    for name, angle in (("a", "-5"), ("b", "85")):
        tags = carm_tags(PositionerPrimaryAngle=angle, PositionerSecondaryAngle="0")
        planes.append(read_xray(write_dicom(tmp_path / f"{name}.dcm", pixels(), **tags)))
    poses = [plane.start(ct)[0] for plane in planes]
    turn = poses[1][:3, :3] @ poses[0][:3, :3].T
    assert math.degrees(math.acos((float(turn.trace()) - 1) / 2)) == pytest.approx(90.0)
    center = drrkit.volume_center(ct)
    point = center + torch.tensor([20.0, -30.0, 10.0], dtype=torch.float64)
    equations, sides = [], []
    for plane, pose in zip(planes, poses, strict=True):
        row, col = drrkit.project_points(plane.camera, pose, point[None])[0, 0]
        ray = torch.linalg.inv(plane.camera.K) @ torch.stack((col, row, torch.ones(()))).double()
        source, along = -pose[:3, :3].T @ pose[:3, 3], pose[:3, :3].T @ ray
        off = torch.eye(3) - torch.outer(along, along) / (along @ along)
        equations.append(off)
        sides.append(off @ source)
    found = torch.linalg.lstsq(torch.cat(equations), torch.cat(sides)).solution
    torch.testing.assert_close(found, point, rtol=0, atol=1e-8)


# ---- enhanced objects


def item(**tags: object) -> Dataset:
    found = Dataset()
    for name, value in tags.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_enhanced_objects_say_their_geometry_in_functional_groups(
    tmp_path: Path, syntax: str | None, undefined: bool
) -> None:
    """Enhanced XA: distances and spacing for all frames, angles for each."""
    shared = item(
        XRayGeometrySequence=Sequence(
            [item(DistanceSourceToDetector="1100", DistanceSourceToIsocenter=750.0)]
        ),
        FramePixelDataPropertiesSequence=Sequence(
            [item(ImagerPixelSpacing=["0.5", "0.4"], PixelIntensityRelationship="LOG")]
        ),
    )
    frames = [
        item(
            PositionerPositionSequence=Sequence(
                [item(PositionerPrimaryAngle=str(angle), PositionerSecondaryAngle="4")]
            )
        )
        for angle in (0, 10, 20)
    ]
    file = write_dicom(tmp_path / "run.dcm", pixels(frames=3), Modality="XA")
    data = pydicom.dcmread(file)
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for sequence in (data["SharedFunctionalGroupsSequence"], shared["XRayGeometrySequence"]):
        sequence.is_undefined_length = undefined
    for entry in frames:
        entry.is_undefined_length_sequence_item = undefined
    if syntax:
        data.file_meta.TransferSyntaxUID = syntax
    data.save_as(file)
    xray = read_xray(file)
    assert xray.camera is not None and float(xray.camera.sdd) == 1100.0
    assert (xray.sod, xray.pixel_spacing) == (750.0, (0.5, 0.4))
    assert xray.primary_deg is not None and xray.secondary_deg is not None
    assert xray.primary_deg.tolist() == [0.0, 10.0, 20.0]
    assert xray.secondary_deg.tolist() == [4.0] * 3
    assert read_xray(file, frames=1).primary_deg.tolist() == [10.0]


def test_damaged_elements_end_the_look_without_an_error(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [16, 0, 16], "US"
    table.LUTData = bytes(32)
    whole = write(tmp_path / "a.dcm", pixels(), ModalityLUTSequence=Sequence([table])).read_bytes()
    generator, broken = np.random.default_rng(1), tmp_path / "b.dcm"
    for _ in range(300):
        content = bytearray(whole[: generator.integers(0, 1200)])
        for place in generator.integers(0, max(1, len(content)), 4):
            content[place : place + 1] = bytes(generator.integers(0, 256, 1).astype(np.uint8))
        broken.write_bytes(content)
        try:
            found = DicomFile(broken)
        except ValueError as error:
            assert "b.dcm" in str(error)
        else:
            assert isinstance(found.words("Modality"), list)
