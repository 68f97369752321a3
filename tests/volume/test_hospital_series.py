"""CT series as hospitals have them: what is read has the right values at the right place."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

import drrkit
from drrkit.volume import FileWarning, Volume, inspect_volume, read_volume, write_volume
from tests.support.ct_files import (
    COLS,
    CT,
    ORIGIN,
    ROWS,
    SLICES,
    SPACING,
    STEP,
    dataset,
    hu,
    item,
    set_tags,
    stored,
    write_enhanced,
    write_series,
)

pytestmark = pytest.mark.io

STORAGE = "1.2.840.10008.5.1.4.1.1"
"""What the classes of stored images begin with."""


def check_usual(volume: Volume, values: np.ndarray | None = None) -> None:
    """The stack that write_series writes, where it stands."""
    np.testing.assert_array_equal(volume.values.numpy(), hu() if values is None else values)
    assert volume.spacing == pytest.approx((SPACING[1], SPACING[0], STEP), abs=1e-6)
    assert volume.origin == pytest.approx(ORIGIN, abs=1e-6)


def code(data: Dataset, plane: np.ndarray, coding: str, scratch: Path) -> None:
    """Puts a plane into a data set as SimpleITK codes it: "JPEG" (lossless) or "JPEG2000"."""
    import SimpleITK as sitk

    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(scratch))
    writer.UseCompressionOn()
    writer.SetCompressor(coding)
    writer.Execute(sitk.GetImageFromArray(plane[None]))
    coded = pydicom.dcmread(scratch)
    data.PixelData = coded.PixelData
    data.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True


# ---- padding, bits, polarity: the values


@pytest.mark.parametrize(
    ("dtype", "value", "written", "limit"),
    [
        (np.uint16, 63536, 63536, None),
        (np.uint16, 65535, 65535, None),
        (np.uint16, 32768, 32768, None),
        (np.int16, -2000, -2000, None),
        (np.int16, -32768, -32768, None),
        (np.int16, -2000, 63536, None),  # signed pixels whose padding is written unsigned
        (np.uint16, 63536, -2000, None),  # and the reverse
        (np.uint16, 60001, 60000, 60010),
        (np.int16, -1999, -2000, -1990),
        (np.int16, -1999, -1990, -2000),  # limits the wrong way round
        (np.uint16, 0, 0, None),  # a value of stored air
    ],
)
def test_padding_is_air(tmp_path: Path, dtype: type, value: int, written: int, limit: int) -> None:
    pixels = (stored() + 1).astype(dtype)
    pixels[:, :2, :3] = value
    signed = dtype is np.int16

    def padded(data: pydicom.Dataset, k: int) -> None:
        data.PixelRepresentation = int(signed)
        for name, number in (("0120", written), ("0121", limit)):
            if number is not None:
                data.add_new(int(f"0028{name}", 16), "SS" if number < 0 else "US", number)

    volume = read_volume(write_series(tmp_path / "ct", padded, pixels=pixels))
    expected = hu() + 1
    expected[:, :2, :3] = -1000.0
    check_usual(volume, expected)
    mu = read_volume(tmp_path / "ct", unit="mu")
    assert bool((mu.values[:, :2, :3] == 0).all())


def test_padding_is_found_slice_by_slice_and_beyond_the_bits_stored(tmp_path: Path) -> None:
    pixels = stored()
    pixels[0, 0, 0], pixels[1, 0, 0] = 63536, 2096  # 2096 is 63536 in its lower twelve bits

    def change(data: pydicom.Dataset, k: int) -> None:
        data.BitsStored, data.HighBit = 12, 11
        if k == 0:
            data.PixelPaddingValue = 63536

    expected = pixels.astype(np.float64) - 1024
    expected[0, 0, 0] = -1000
    check_usual(read_volume(write_series(tmp_path / "ct", change, pixels=pixels)), expected)


def test_padding_with_the_value_of_tissue_is_said(tmp_path: Path) -> None:
    pixels = stored()
    pixels[pixels == 1064] = 1065
    pixels[2, 0, :3] = 1064  # 40 HU
    folder = write_series(tmp_path / "ct", pixels=pixels, PixelPaddingValue=1064)
    with pytest.warns(FileWarning, match="padding .* has values of tissue in 3 voxels"):
        read_volume(folder)


def test_padding_that_no_header_names_is_said(tmp_path: Path) -> None:
    pixels = stored()
    pixels[:, 0, 0] = 65535
    with pytest.warns(FileWarning, match="values of 64511 HU: padding"):
        read_volume(write_series(tmp_path / "ct", pixels=pixels))


@pytest.mark.parametrize(
    ("dtype", "value", "slope"),
    [
        (np.int16, -2000, "1"),
        (np.int16, -32768, "1"),
        (np.uint16, 65535, "1"),
        (np.uint16, 63536, "1"),
        (np.uint16, 65535, "0.25"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".nii.gz", ".nrrd", ".mha"])
def test_a_plateau_outside_of_the_field_is_air(
    tmp_path: Path, dtype: type, value: int, slope: str, suffix: str
) -> None:
    """Padding that no header names: in DICOM, and in what was converted from it."""
    pixels = stored().astype(dtype)
    expected = pixels * float(slope) - 1024
    expected[:, :2, :3] = -1000
    pixels[:, :2, :3] = value
    tags = {"PixelRepresentation": int(dtype is np.int16), "RescaleSlope": slope}
    folder = write_series(tmp_path / "ct", pixels=pixels, **tags)
    if suffix:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            usual = read_volume(folder)
        values = torch.from_numpy(pixels * float(slope) - 1024.0).float()
        folder = tmp_path / f"ct{suffix}"
        write_volume(replace(usual, values=values), folder)
    with pytest.warns(FileWarning, match="0.4% of the voxels have .* taken for padding"):
        check_usual(read_volume(folder), expected)


def test_metal_and_noise_are_no_padding(tmp_path: Path) -> None:
    """Metal at the end of the scale inside of the field; single voxels that are far too low."""
    pixels = stored().astype(np.int32)
    pixels[:, 10:20, 10:20] = 31734  # 30710 HU, where extended scales end
    values = pixels - 1024.0
    with pytest.warns(FileWarning, match="values of 30710 HU"):
        check_usual(read_volume(write_series(tmp_path / "a", pixels=pixels.astype("u2"))), values)
    pixels = stored().astype(np.int16)
    pixels[2, 0, 0] = -400
    check_usual(
        read_volume(write_series(tmp_path / "b", pixels=pixels, PixelRepresentation=1)),
        pixels - 1024.0,
    )


@pytest.mark.parametrize(("value", "limit"), [(-2000, 0), (-2000, 32767), (-32768, -700)])
def test_a_padding_range_that_covers_tissue_ends_at_its_value(
    tmp_path: Path, value: int, limit: int
) -> None:
    pixels = (stored().astype(np.int32) - 1024).astype(np.int16)
    pixels[:, :2, :3] = value
    expected = pixels.astype(np.float64)
    expected[:, :2, :3] = -1000

    def change(data: pydicom.Dataset, k: int) -> None:
        data.RescaleIntercept, data.PixelRepresentation = "0", 1
        data.add_new(0x00280120, "SS", value)
        data.add_new(0x00280121, "SS", limit)

    folder = write_series(tmp_path / "ct", change, pixels=pixels)
    with pytest.warns(FileWarning, match=rf"\(0028,0121\): {limit} would make tissue padding"):
        check_usual(read_volume(folder), expected)


@pytest.mark.parametrize(("kind", "bits"), [("Float", 32), ("DoubleFloat", 64)])
def test_padding_of_float_pixels_is_air(tmp_path: Path, kind: str, bits: int) -> None:
    """Here the pixels are HU as they are; padding of 40.5 HU, which none has, is said."""
    expected = hu()
    expected[:, :2, :3] = -1000

    def folder(value: float) -> Path:
        pixels = hu().astype(f"f{bits // 8}")
        pixels[:, :2, :3] = value

        def change(data: pydicom.Dataset, k: int) -> None:
            del data.PixelData
            set_tags(data, {f"{kind}PixelData": pixels[k].tobytes(), "BitsAllocated": bits})
            set_tags(data, {f"{kind}PixelPaddingValue": value, "RescaleIntercept": "0"})

        return write_series(tmp_path / str(value), change)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_usual(read_volume(folder(-3e4)), expected)
    with pytest.warns(FileWarning, match="padding .* has values of tissue in 30 voxels"):
        check_usual(read_volume(folder(40.5)), expected)


def test_monochrome1_says_how_to_show_and_not_what_is_there(tmp_path: Path) -> None:
    check_usual(read_volume(write_series(tmp_path / "a", PhotometricInterpretation="MONOCHROME1")))


def test_bits_that_begin_higher_are_shifted_or_refused(tmp_path: Path) -> None:
    twelve = {"BitsStored": 12, "HighBit": 15}
    check_usual(read_volume(write_series(tmp_path / "a", pixels=stored() << 4, **twelve)))
    with pytest.raises(ValueError, match=r"000\.dcm: High Bit .* bits below are used too"):
        read_volume(write_series(tmp_path / "b", pixels=stored() | 1, **twelve))
    with pytest.raises(ValueError, match="contradict each other"):
        read_volume(write_series(tmp_path / "c", BitsStored=12, HighBit=7))
    with pytest.warns(FileWarning, match="bits above the 8 stored"):
        low = read_volume(write_series(tmp_path / "d", BitsStored=8, HighBit=7))
    check_usual(low, stored() % 256 - 1024.0)
    metal = stored()
    metal[:, 9, 9] = 6000
    tags = {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": 63536}
    with pytest.warns(FileWarning, match="bits above the 12 stored"):
        low = read_volume(write_series(tmp_path / "e", pixels=metal, **tags))
    check_usual(low, metal % 4096 - 1024.0)


def test_rle_has_the_bits_that_its_header_says(tmp_path: Path) -> None:
    """Odd widths; values shifted up as HighBit says; 12 signed bits without copies of the sign."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.encoders import RLELosslessEncoder

    def write(name: str, pixels: np.ndarray, **tags: object) -> Path:
        folder = write_series(tmp_path / name, pixels=pixels, **tags)
        size = {
            "rows": ROWS,
            "columns": pixels.shape[2],
            "samples_per_pixel": 1,
            "number_of_frames": 1,
        }
        bits = {"bits_allocated": 16, "bits_stored": 16, "pixel_representation": 0}
        kind = {"photometric_interpretation": "MONOCHROME2", "encoding_plugin": "pydicom"}
        for plane, path in zip(pixels, sorted(folder.iterdir()), strict=True):
            data = pydicom.dcmread(path)
            coded = RLELosslessEncoder.encode(plane.copy(), **size, **bits, **kind)
            data.PixelData = encapsulate([coded])
            data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
            data.file_meta.TransferSyntaxUID = RLELossless
            data.save_as(path, enforce_file_format=True)
        return folder

    odd = np.ascontiguousarray(stored()[:, :, :-1])
    found = read_volume(write("odd", odd)).values.numpy()
    np.testing.assert_array_equal(found, hu()[:, :, :-1])
    check_usual(read_volume(write("a", stored() << 4, BitsStored=12, HighBit=15)))
    signed = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1, "RescaleIntercept": "-24"}
    twelve = ((stored().astype(int) - 1000) & 0xFFF).astype(np.uint16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_usual(read_volume(write("b", twelve, **signed)))


@pytest.mark.parametrize("coding", ["JPEG", "JPEG2000"])
def test_jpeg_has_the_bits_that_its_header_says(tmp_path: Path, coding: str) -> None:
    """Values shifted up as HighBit says or not; 12 signed bits; padding above the bits stored."""
    signed = {"PixelRepresentation": 1, "RescaleIntercept": "-24"}
    padded = stored()
    padded[:, :2, :3] = 63536
    expected = hu()
    expected[:, :2, :3] = -1000
    for name, pixels, tags, values in (
        ("a", stored() << 4, {"HighBit": 15}, hu()),
        ("b", stored(), {"HighBit": 15}, hu()),
        ("c", stored(), {"HighBit": None}, hu()),
        ("d", (stored() - np.uint16(1000)) & 0xFFF, signed, hu()),
        ("e", padded, {"PixelPaddingValue": 63536}, expected),
    ):
        tags = {"BitsStored": 12, "HighBit": 11, **tags}
        folder = write_series(tmp_path / name, pixels=pixels, **tags)
        for plane, path in zip(pixels, sorted(folder.iterdir()), strict=True):
            data = pydicom.dcmread(path)
            code(data, plane, coding, tmp_path / "itk.dcm")
            data.save_as(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_usual(read_volume(folder), values)
    wrong = write_series(tmp_path / "f", pixels=stored() * 31, BitsStored=12, HighBit=15)
    for path in wrong.iterdir():
        data = pydicom.dcmread(path)
        code(data, stored()[0] * 31, coding, tmp_path / "itk.dcm")
        data.save_as(path)
    with pytest.raises(ValueError, match=r"000\.dcm: High Bit .* bits below are used too"):
        read_volume(wrong)


def test_every_slice_has_its_own_slope(tmp_path: Path) -> None:
    def change(data: pydicom.Dataset, k: int) -> None:
        data.RescaleSlope, data.RescaleIntercept = str(k + 1), str(-100 * k)

    slopes = np.arange(1, SLICES + 1)[:, None, None]
    expected = stored() * slopes - 100.0 * (slopes - 1)
    check_usual(read_volume(write_series(tmp_path / "ct", change)), expected)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"RescaleSlope": "0"}, r"000\.dcm: Rescale Slope \(0028,1053\) is 0"),
        ({"RescaleSlope": b"1,5"}, r"Rescale Slope \(0028,1053\): expected a number, got '1,5'"),
        ({"PixelSpacing": None}, r"000\.dcm: Pixel Spacing \(0028,0030\): .* got nothing"),
        ({"PixelSpacing": ["0", "1"]}, r"Pixel Spacing .* expected two numbers > 0"),
        ({"PixelSpacing": ["0.8"]}, r"Pixel Spacing .* expected 2 numbers, got '0.8'"),
        ({"PixelSpacing": b"0.8\\nan"}, r"Pixel Spacing .* expected 2 numbers"),
        ({"ImagePositionPatient": None}, r"Image Position \(Patient\) .* got nothing"),
        ({"ImageOrientationPatient": None}, r"Image Orientation \(Patient\) .* got nothing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, r"two unit vectors at right angles"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]}, r"two unit vectors at right angles"),
        ({"Modality": "MR"}, r"expected a CT .* got MR"),
        ({"Modality": "PT"}, r"expected a CT .* got PT"),
        ({"Modality": "CR"}, r"expected a CT .* got CR"),
        ({"Modality": "US"}, r"expected a CT .* got US"),
        ({"Modality": "RTDOSE"}, r"expected a CT .* got RTDOSE"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "got a localizer"),
        ({"BitsAllocated": 64}, "64 bits per pixel"),
        ({"PixelRepresentation": None, "Rows": 99}, rf"truncated.* of the {99 * COLS * 2} bytes"),
        ({"Rows": 0}, r"Rows \(0028,0010\): expected a whole number > 0"),
    ],
)
def test_what_is_missing_or_means_nothing_is_named(
    tmp_path: Path, tags: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_volume(write_series(tmp_path / "ct", **tags))


def test_colours_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((SLICES, ROWS, COLS, 3), np.uint16)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    with pytest.raises(ValueError, match=r"expected grey pixels, got colours \(RGB\)"):
        read_volume(write_series(tmp_path / "ct", pixels=pixels, **tags))
    with pytest.raises(ValueError, match=r"got colours \(PALETTE COLOR\)"):
        read_volume(write_series(tmp_path / "lut", PhotometricInterpretation=b"palette color"))


@pytest.mark.parametrize("sop_class", [f"{STORAGE}.4", f"{STORAGE}.20", f"{STORAGE}.30"])
def test_classes_that_contradict_the_modality_are_refused(tmp_path: Path, sop_class: str) -> None:
    name = pydicom.uid.UID(sop_class).name
    with pytest.raises(ValueError, match=rf"expected a CT .*, got CT, {name} \(CT, 5 files"):
        read_volume(write_series(tmp_path / "ct", SOPClassUID=sop_class))


def test_modalities_in_small_letters_and_captures_are_read(tmp_path: Path) -> None:
    check_usual(read_volume(write_series(tmp_path / "a", Modality=b"ct")))
    check_usual(read_volume(write_series(tmp_path / "b", SOPClassUID=f"{STORAGE}.7")))


@pytest.mark.parametrize("kind", ["LOCALIZER", "SCOUT", "TOPOGRAM"])
def test_localizers_by_any_name_are_no_ct(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="got a localizer"):
        read_volume(write_series(tmp_path / "ct", ImageType=["ORIGINAL", "PRIMARY", kind]))


@pytest.mark.parametrize("kind", ["AXIAL\\PERFUSION_CBF", "MIP", "AXIAL\\IODINE", "SCREEN SAVE"])
def test_maps_and_projections_of_a_ct_are_said(tmp_path: Path, kind: str) -> None:
    image_type = ["DERIVED", "SECONDARY", *kind.split("\\")]
    with pytest.warns(FileWarning, match=r"\(0008,0008\) is DERIVED.*: a map or a projection"):
        check_usual(read_volume(write_series(tmp_path / "ct", ImageType=image_type)))


@pytest.mark.parametrize("spacing", [("0.0008", "0.0007"), ("800", "700"), ("0.008", "0.007")])
def test_pixels_of_another_unit_are_said(tmp_path: Path, spacing: tuple[str, str]) -> None:
    with pytest.warns(FileWarning, match=r"voxels of .* x 2.5 mm: is the unit of length"):
        read_volume(write_series(tmp_path / "ct", PixelSpacing=list(spacing)))


def test_what_does_not_fit_together_is_said(tmp_path: Path) -> None:
    def frames(data: Dataset, k: int) -> None:
        data.FrameOfReferenceUID = f"1.2.{k // 3}"

    def kernels(data: Dataset, k: int) -> None:
        data.ConvolutionKernel = ("B30f", "B70f")[k % 2]

    def none(data: Dataset, k: int) -> None:
        data.NumberOfFrames = 0

    def twice(data: Dataset, k: int) -> None:
        data.PixelData *= 2

    def unscaled(data: Dataset, k: int) -> None:
        data.RescaleIntercept = "0"

    for change, message, values in (
        (frames, r"Frame of Reference UID \(0020,0052\): 2 different ones", hu()),
        (kernels, r"Convolution Kernel \(0018,1210\): 2 different ones: several scans", hu()),
        (none, r"Number of Frames \(0028,0008\): expected a whole number > 0, got 0", hu()),
        (twice, "more pixels than the header says, 36 x 40", hu()),
        (unscaled, "values from 0 to 1999, though air has -1000 HU", hu() + 1024),
    ):
        with pytest.warns(FileWarning, match=message):
            check_usual(read_volume(write_series(tmp_path / change.__name__, change)), values)


def test_slices_that_differ_are_named(tmp_path: Path) -> None:
    def spacing(data: pydicom.Dataset, k: int) -> None:
        if k >= 3:
            data.PixelSpacing = ["0.8", "0.75"]

    def size(data: pydicom.Dataset, k: int) -> None:
        if k == 3:
            data.Rows, data.Columns = COLS, ROWS

    def turn(data: pydicom.Dataset, k: int) -> None:
        if k == 4:
            data.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]

    for change, message in (
        (spacing, r"003\.dcm: Pixel Spacing .* is \[0.8, 0.75\], of 000.dcm \[0.8, 0.7\]"),
        (size, r"003\.dcm: Rows x Columns .* are 40 x 36, of the other slices 36 x 40"),
        (turn, r"different orientations: 004\.dcm"),
    ):
        with pytest.raises(ValueError, match=message):
            read_volume(write_series(tmp_path / change.__name__, change))


# ---- what is in a folder


def test_indexes_under_any_name_are_no_slices(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    for name in ("DIRFILE", "DICOMDIR", "index.dcm"):
        index = dataset(folder / name, "1.2.840.10008.1.3.10", Modality=None)
        index.DirectoryRecordSequence = [item(ReferencedSOPClassUIDInFile=CT)]
        index.save_as(folder / name, enforce_file_format=True)
    check_usual(read_volume(folder))


def test_a_class_that_cannot_be_read_is_no_crash(tmp_path: Path) -> None:
    """(0002,0002) of no known representation, where (0008,0016) is missing."""
    folder = write_series(tmp_path / "ct", SOPClassUID=None)
    for path in folder.iterdir():
        whole = path.read_bytes()
        at = whole.index(b"\2\0\2\0") + 4
        path.write_bytes(whole[:at] + b"S\2" + whole[at + 2 :])
    check_usual(read_volume(folder))


def test_structures_and_other_series_beside_a_ct_are_left_out(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    plan = dataset(folder / "rtstruct.dcm", "1.2.840.10008.5.1.4.1.1.481.3", Modality="RTSTRUCT")
    plan.SeriesInstanceUID = "1.2.4"
    plan.save_as(folder / "rtstruct.dcm", enforce_file_format=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_usual(read_volume(folder))
    write_series(folder, Modality="MR", SeriesInstanceUID="1.2.5", prefix="mr")
    with pytest.warns(FileWarning, match="other series .* left out: MR, 5 files"):
        check_usual(read_volume(folder))
    with pytest.raises(ValueError, match=r"expected a CT .* got MR"):
        read_volume(folder, series="1.2.5")


def test_localizers_of_the_same_or_another_series_are_left_out(tmp_path: Path) -> None:
    localizer = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout = {"axes": (1, 0, 0, 0, 0, -1), "ImageType": localizer, "Rows": 3, "prefix": "scout"}
    folder = write_series(tmp_path / "ct")
    write_series(folder, pixels=stored()[:2], **scout)
    with pytest.warns(FileWarning, match="2 localizer images of the series are left out"):
        check_usual(read_volume(folder))
    folder = write_series(tmp_path / "other")
    write_series(folder, pixels=stored()[:2], **scout, SeriesInstanceUID="1.2.9")
    with pytest.warns(FileWarning, match="other series"):
        check_usual(read_volume(folder))


def test_doubled_slices_are_dropped_and_contradictions_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    shutil.copy(folder / "002.dcm", folder / "again.dcm")
    with pytest.warns(FileWarning, match="1 slices are there twice"):
        check_usual(read_volume(folder))
    data = pydicom.dcmread(folder / "again.dcm")
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(folder / "again.dcm")
    with pytest.raises(ValueError, match=r"two different slices at the same place, 002.dcm and ag"):
        read_volume(folder)


def test_time_points_in_one_folder_are_refused_and_read_one_by_one(tmp_path: Path) -> None:
    """A 4D CT: the same places again, under one series or under one for each time."""
    folder = write_series(tmp_path / "ct", prefix="a", AcquisitionNumber=1)
    later = stored()[:, ::-1]
    write_series(folder, pixels=later, prefix="b", AcquisitionNumber=2)
    with pytest.raises(ValueError, match=r"a000.dcm and b000.dcm .*: several phases .*leave one"):
        read_volume(folder)
    write_series(folder, pixels=later, prefix="b", SeriesInstanceUID="1.2.9")
    with pytest.raises(ValueError, match=r"choose with series=.* 1.2.3 .*CT, 5 files.*; 1.2.9 "):
        read_volume(folder)
    check_usual(read_volume(folder, series="1.2.3"))
    values = read_volume(folder, series="1.2.9").values
    np.testing.assert_array_equal(values.numpy(), hu()[:, ::-1])


def test_a_jpeg_ls_series_is_read(tmp_path: Path) -> None:
    """Coded by another program (pydicom ships one image of it), decoded by SimpleITK."""
    coded = pydicom.dcmread(get_testdata_file("MR_small_jpeg_ls_lossless.dcm"))
    plain = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    values = np.frombuffer(plain.PixelData, "<i2").reshape(64, 64)

    def code(data: Dataset, k: int) -> None:
        data.PixelData, data.PixelRepresentation = coded.PixelData, 1
        data.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True

    folder = write_series(tmp_path / "ct", code, pixels=np.stack(3 * [values]))
    expected = np.stack(3 * [values]) - 1024.0
    np.testing.assert_array_equal(read_volume(folder).values.numpy(), expected)


def test_an_enhanced_ct_is_read_as_file_and_as_folder(tmp_path: Path) -> None:
    file = write_enhanced(tmp_path / "enhanced.dcm")
    check_usual(read_volume(file))
    (tmp_path / "folder").mkdir()
    file.rename(tmp_path / "folder" / "IM0")
    check_usual(read_volume(tmp_path / "folder"))
    folder = write_series(tmp_path / "ct")
    with pytest.raises(ValueError, match="one slice of a series: give the folder"):
        read_volume(folder / "000.dcm")
    found = inspect_volume(folder / "003.dcm")
    np.testing.assert_array_equal(found.volume.values.numpy(), hu()[3:4])
    assert found.volume.origin == (-20.0, 30.0, -92.5)


def test_frames_without_a_place_of_their_own_are_refused(tmp_path: Path) -> None:
    """Before anything is counted or allocated: a classic slice that claims many frames."""
    for frames in (5, 2_000_000_000):
        folder = write_series(tmp_path / str(frames), NumberOfFrames=frames)
        message = rf"000\.dcm: Number of Frames .* is {frames}, but where they lie is said of 0"
        with pytest.raises(ValueError, match=message):
            read_volume(folder)


ASKED = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Modality"]
ASKED += ["RescaleSlope", "RescaleIntercept", "NumberOfFrames"]


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(ASKED), value=st.binary(max_size=20), slice_=st.integers(0, 4))
def test_any_bytes_in_a_field_give_an_error_a_warning_or_what_they_say(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: bytes, slice_: int
) -> None:
    """Never a silent geometry: without numbers in the field there is an error or a warning."""

    def change(data: Dataset, k: int) -> None:
        if k == slice_:
            set_tags(data, {name: value})

    folder = write_series(tmp_path_factory.mktemp("ct") / "ct", change)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            volume = read_volume(folder)
        except ValueError as error:
            assert str(folder) in str(error)
            return
    usual = np.array_equal(volume.values.numpy(), hu()) and volume.origin == ORIGIN
    if not usual and not any(chr(byte).isdigit() for byte in value):
        assert any(issubclass(w.category, FileWarning) for w in told)


# ---- places


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    turn=arrays(float, 3, elements=st.floats(-3, 3)),
    spacing=st.tuples(*[st.floats(0.1, 5)] * 3),
    origin=st.tuples(*[st.floats(-900, 900)] * 3),
    kind=st.sampled_from(["DICOM", "MetaImage"]),
)
def test_for_random_headers_the_place_is_simpleitks(
    tmp_path_factory: pytest.TempPathFactory,
    turn: np.ndarray,
    spacing: tuple,
    origin: tuple,
    kind: str,
) -> None:
    import SimpleITK as sitk

    folder = tmp_path_factory.mktemp("ct") / "ct"
    axes = drrkit.geometry.so3_exp(torch.from_numpy(turn)[None])[0].numpy()
    if kind == "DICOM":
        places = np.array(origin) + spacing[2] * np.arange(SLICES)[:, None] * axes[:, 2]
        pitch = [f"{spacing[1]:.8g}", f"{spacing[0]:.8g}"]
        write_series(folder, places=places, axes=axes[:, :2].T.ravel(), PixelSpacing=pitch)
        image = sitk.ReadImage([str(path) for path in sorted(folder.iterdir())])
    else:
        folder = folder.with_suffix(".mha")
        image = sitk.GetImageFromArray(hu().astype(np.int16))
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(axes.ravel().tolist())
        sitk.WriteImage(image, str(folder))
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.values.numpy(), hu())
    for index in ((0, 0, 0), (COLS - 1, 0, SLICES - 1), (3, ROWS - 1, 2)):
        there = volume.index_to_world(torch.tensor(index, dtype=torch.float64))
        expected = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(there.numpy(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "axes",
    [
        (1, 0, 0, 0, 1, 0),  # head first, supine
        (-1, 0, 0, 0, -1, 0),  # prone
        (0, 1, 0, -1, 0, 0),  # decubitus
        (0, -1, 0, 1, 0, 0),
        (1, 0, 0, 0, 0, -1),  # coronal
        (0, 1, 0, 0, 0, -1),  # sagittal
        (0.8, 0.6, 0, -0.6, 0.8, 0),
    ],
)
@pytest.mark.parametrize("descending", [False, True])
def test_stored_orientations_give_one_patient(
    tmp_path: Path, axes: tuple, descending: bool
) -> None:
    """Every voxel's world place is that of Image Position and Orientation; projectors agree."""
    row, column = np.array(axes[:3], float), np.array(axes[3:], float)
    normal = np.cross(row, column)
    order = slice(None, None, -1) if descending else slice(None)
    steps = np.arange(SLICES)[order]
    places = np.array(ORIGIN) + STEP * steps[:, None] * normal
    folder = write_series(tmp_path / "ct", pixels=stored()[order], places=places, axes=axes)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.values.numpy(), hu())
    index = torch.tensor([3.0, 4.0, 2.0], dtype=torch.float64)
    expected = np.array(ORIGIN) + 3 * SPACING[1] * row + 4 * SPACING[0] * column
    expected = expected + 2 * STEP * normal
    np.testing.assert_allclose(volume.index_to_world(index).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "suffix"), [("joseph", ".nii.gz"), ("siddon", ".nrrd"), ("trilinear", ".mha")]
)
@pytest.mark.parametrize("letters", ["LPS", "RAS", "LAS", "PIR", "SLP", "ASR", "IRP"])
def test_seven_stored_orientations_project_alike(
    tmp_path: Path, letters: str, method: str, suffix: str
) -> None:
    """A file whose axes are stored in another order is the same patient for each projector."""
    ct = drrkit.phantoms.torso(spacing=16.0)
    axis = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
    order = [axis[letter] for letter in letters]
    flips = [a for a, letter in enumerate(letters) if letter in "RAI"]
    values = ct.values.permute(*(2 - order[a] for a in (2, 1, 0))).flip([2 - a for a in flips])
    turn = torch.eye(3, dtype=torch.float64)[:, order]
    turn[:, flips] *= -1
    first = torch.zeros(3, dtype=torch.float64)
    for a in flips:
        first[order[a]] = ct.shape_xyz[order[a]] - 1
    spacing = tuple(ct.spacing[a] for a in order)
    stored_as = Volume(values.contiguous(), spacing, ct.index_to_world(first).tolist(), turn)
    write_volume(stored_as, tmp_path / f"ct{suffix}")
    stored_as = read_volume(tmp_path / f"ct{suffix}")
    facts = inspect_volume(tmp_path / f"ct{suffix}").facts
    assert facts["orientation"] == " ".join(letters) and stored_as.values.shape == values.shape
    camera, pose = drrkit.CArm(1000.0, (20, 24), 16.0), drrkit.view_carm(ct, 700.0, 0.4, 0.2)
    images = [drrkit.render(v.to_mu(), camera, pose, method=method) for v in (ct, stored_as)]
    torch.testing.assert_close(images[1], images[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("position", ["HFS", "HFP", "FFS", "FFP", "HFDL", "HFDR"])
def test_patient_position_moves_nothing(tmp_path: Path, position: str) -> None:
    folder = write_series(tmp_path / "ct", PatientPosition=position)
    check_usual(read_volume(folder))
    assert inspect_volume(folder).facts["patient position"] == position


def test_positions_rounded_to_a_tenth_are_an_even_stack(tmp_path: Path) -> None:
    places = np.array(ORIGIN) + np.round(0.625 * np.arange(41), 1)[:, None] * (0, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = read_volume(write_series(tmp_path / "ct", pixels=stored(41), places=places))
    assert volume.spacing[2] == pytest.approx(0.625, abs=1e-3)
    np.testing.assert_array_equal(volume.values.numpy(), hu(41))


def test_spacing_between_slices_is_not_believed(tmp_path: Path) -> None:
    for number in ("0", "99"):
        folder = write_series(tmp_path / number, SpacingBetweenSlices=number, SliceThickness=number)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_usual(read_volume(folder))


def ramp(places: np.ndarray) -> np.ndarray:
    """Slices of a function linear in the patient, so that interpolation is exact: HU + 1024."""
    row, col = np.mgrid[:ROWS, :COLS]
    x, y = places[:, 0, None, None] + SPACING[1] * col, places[:, 1, None, None] + SPACING[0] * row
    return (1000 + 20 * x + 10 * y + 5 * places[:, 2, None, None]).round().astype(np.uint16)


def test_unequal_steps_are_resampled_and_said(tmp_path: Path) -> None:
    z = np.cumsum([0, 2, 2, 2, 2, 5, 5, 5.0])
    places = np.array(ORIGIN) + z[:, None] * (0, 0, 1)
    folder = write_series(tmp_path / "ct", pixels=ramp(places), places=places)
    with pytest.warns(FileWarning, match="from 2 to 5 mm: resampled to 2 mm"):
        volume = read_volume(folder)
    assert volume.shape_xyz == (COLS, ROWS, 12) and volume.spacing[2] == 2.0
    expected = ramp(np.array(ORIGIN) + 2.0 * np.arange(12)[:, None] * (0, 0, 1)) - 1024.0
    np.testing.assert_allclose(volume.values.numpy(), expected, atol=1.01)


def test_a_gap_that_stands_alone_is_a_missing_slice(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", pixels=stored(9))
    (folder / "004.dcm").unlink()
    with pytest.raises(ValueError, match=r"missing between 003\.dcm and 005\.dcm"):
        read_volume(folder)


@pytest.mark.parametrize("tilt", [(0.0, 0.9), (0.0, -1.3), (0.5, 0.0)])
def test_a_gantry_tilt_is_resampled_and_said(tmp_path: Path, tilt: tuple[float, float]) -> None:
    step = np.array((*tilt, STEP))
    places = np.array(ORIGIN) + np.arange(SLICES)[:, None] * step
    folder = write_series(tmp_path / "ct", pixels=ramp(places), places=places)
    with pytest.warns(FileWarning, match="gantry was tilted by"):
        volume = read_volume(folder)
    assert torch.equal(volume.direction, torch.eye(3, dtype=torch.float64))
    # Where the slices have something, the patient's function is there.
    for k in range(SLICES):
        for r, c in ((1, 1), (ROWS - 2, COLS - 2), (3, 3)):
            world = places[k] + (c * SPACING[1], r * SPACING[0], 0)
            x, y, z = volume.world_to_index(torch.tensor(world)).tolist()
            x, y, z = round(x), round(y), round(z)
            world = volume.index_to_world(torch.tensor([x, y, z], dtype=torch.float64)).numpy()
            expected = 1000 + 20 * world[0] + 10 * world[1] + 5 * world[2] - 1024
            assert float(volume.values[z, y, x]) == pytest.approx(expected, abs=1.1)


# ---- codings


@pytest.mark.parametrize(
    "coding", ["implicit", "big endian", "deflated", "RLE", "JPEG", "JPEG2000", "no preamble"]
)
@pytest.mark.parametrize("signed", [False, True])
def test_codings_change_nothing(tmp_path: Path, coding: str, signed: bool) -> None:
    folder = write_series(tmp_path / "ct", PixelRepresentation=int(signed))
    for path in sorted(folder.iterdir()):
        data = pydicom.dcmread(path)
        values = stored()[int(path.stem)]
        options = {}
        if coding == "RLE":
            data.compress(RLELossless)
        elif coding.startswith("JPEG"):
            code(data, values.astype("i2" if signed else "u2"), coding, tmp_path / "itk.dcm")
        elif coding == "big endian":
            data.PixelData = values.astype(">u2").tobytes()
            data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        elif coding != "no preamble":
            syntaxes = {"deflated": DeflatedExplicitVRLittleEndian}
            data.file_meta.TransferSyntaxUID = syntaxes.get(coding, ImplicitVRLittleEndian)
        if coding == "no preamble":
            del data.file_meta
            data.preamble = None
            options = {"implicit_vr": True, "little_endian": True}
        if coding == "big endian":
            elements, data, meta = list(data), pydicom.Dataset(), data.file_meta
            for element in elements:
                data.add(element)
            data.file_meta = meta
            options = {"enforce_file_format": True}
        data.save_as(path, **options)
    check_usual(read_volume(folder))


def test_icons_are_no_pixels(tmp_path: Path) -> None:
    icon = item(Rows=2, Columns=2, BitsAllocated=8, PixelData=b"\1\2\3\4")
    icon["PixelData"].VR = "OB"
    check_usual(read_volume(write_series(tmp_path / "ct", IconImageSequence=[icon])))


def test_a_size_that_the_coded_picture_does_not_have_is_named(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        code(data, stored()[0], "JPEG2000", tmp_path / "itk.dcm")
        data.Rows = 60000
        data.save_as(file)
    with pytest.raises(ValueError, match="say 60000 x 40 pixels, the coded picture 36 x 40"):
        read_volume(folder)


def test_what_pydicom_ships(tmp_path: Path) -> None:
    """Its own test files: a CT is read as pydicom reads it, others are refused by kind."""
    from pydicom.data import get_testdata_file

    def folder(name: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        shutil.copy(get_testdata_file(name), place / name)
        return place

    data = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    expected = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    volume = read_volume(folder("CT_small.dcm"))
    padded = expected == data.PixelPaddingValue * 1.0 + float(data.RescaleIntercept)
    expected[padded] = -1000
    np.testing.assert_array_equal(volume.values[0].numpy(), expected)
    refused = {
        "MR_small.dcm": "got MR",
        "MR_small_bigendian.dcm": "got MR",
        "rtdose.dcm": "got RTDOSE",
        "rtplan.dcm": "no DICOM series",
        "rtstruct.dcm": "no DICOM series",
        "SC_rgb_rle.dcm": "expected a CT",
        "image_dfl.dcm": "expected a CT",
        "reportsi.dcm": "no DICOM series",
    }
    for name, message in refused.items():
        with pytest.raises(ValueError, match=message):
            read_volume(folder(name))


def test_what_was_understood_can_be_asked(tmp_path: Path) -> None:
    found = inspect_volume(write_series(tmp_path / "ct", SeriesInstanceUID=generate_uid()))
    assert found.facts["modality"] == "CT" and found.facts["slices"] == "5"
    assert found.facts["orientation"] == "L P S" and found.notes == ()
    assert found.facts["rescale"] == "value = 1 x stored + -1024"
