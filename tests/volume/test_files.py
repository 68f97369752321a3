"""Volumes from and to single files, and what every format shares."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from drrkit.volume import Volume, read_volume, write_volume
from tests.support.volumes import ORIGIN, oblique, random_volume

FORMATS = ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.mha", "ct.mhd", "ct_dicom"]


def sitk_image(path: Path):
    """The image as SimpleITK alone reads it."""
    import SimpleITK as sitk

    if path.is_dir():
        return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    return sitk.ReadImage(str(path))


@pytest.mark.io
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("left_handed", [False, True])
def test_every_format_keeps_values_and_their_place_and_simpleitk_agrees(
    tmp_path, name, left_handed
):
    import SimpleITK as sitk

    volume = random_volume(left_handed=left_handed)
    path = tmp_path / name
    write_volume(volume, path)
    back = read_volume(path)
    image = sitk_image(path)
    assert torch.equal(back.values, torch.from_numpy(sitk.GetArrayFromImage(image)).float())
    assert image.GetPixelID() == sitk.sitkInt16
    for corner in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (0, 0, 4), (6, 5, 4)):
        index = torch.tensor(corner, dtype=torch.float64)
        world = volume.index_to_world(index)
        # NIfTI keeps its affine in float32.
        place = torch.tensor(image.TransformIndexToPhysicalPoint(corner), dtype=torch.float64)
        assert torch.allclose(back.index_to_world(index), place, atol=1e-4)
        there = back.world_to_index(world)
        assert torch.allclose(there, there.round(), atol=1e-3)
        x, y, z = there.round().long().tolist()
        assert back.values[z, y, x] == volume.values[corner[2], corner[1], corner[0]]
    if not (left_handed and name == "ct_dicom"):
        assert torch.equal(back.values, volume.values)
        assert torch.allclose(back.affine, volume.affine, atol=1e-4)
    assert back.unit == "HU" and back.values.dtype == torch.float32
    beside = {"ct.raw"} if name == "ct.mhd" else set()
    assert {p.name for p in tmp_path.iterdir()} == {name} | beside


@pytest.mark.io
@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nrrd", "ct.mha"])
def test_fractions_doubles_and_channels_survive_the_round_trip(tmp_path, name):
    for volume in (
        random_volume(whole=False),
        random_volume((3, 5, 6, 7), whole=False),
        random_volume(whole=False, dtype=torch.float64),
    ):
        write_volume(volume, tmp_path / name)
        back = read_volume(tmp_path / name, dtype=volume.values.dtype)
        assert torch.equal(back.values, volume.values)
    mu = random_volume().to_mu()
    write_volume(mu, tmp_path / name)
    assert torch.equal(read_volume(tmp_path / name, unit="mu").values, mu.values)


@pytest.mark.io
def test_nifti_is_written_in_ras_and_read_back_to_lps(tmp_path):
    volume = random_volume()
    write_volume(volume, tmp_path / "ct.nii")
    header = (tmp_path / "ct.nii").read_bytes()[:348]
    sform = torch.tensor(struct.unpack_from("<12f", header, 280)).double().reshape(3, 4)
    flip = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    assert torch.allclose(sform, flip @ volume.affine[:3], atol=1e-4)


@pytest.mark.io
@pytest.mark.parametrize("name", ["ct.nrrd", "ct.nhdr"])
def test_nrrd_in_ras_with_a_separate_data_file_reads_to_lps(tmp_path, name):
    pixels = torch.arange(24, dtype=torch.int16).reshape(2, 3, 4)
    fields = {
        "type": "short",
        "dimension": "3",
        "space": "right-anterior-superior",
        "sizes": "4 3 2",
        "space directions": "(0.5,0,0) (0,2,0) (0,0,3)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(5,6,7)",
    }
    if name == "ct.nhdr":
        fields["data file"] = "ct.raw"
    text = "NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in fields.items()) + "\n"
    data = pixels.numpy().tobytes()
    (tmp_path / name).write_bytes(text.encode() + (b"" if name == "ct.nhdr" else data))
    (tmp_path / "ct.raw").write_bytes(data)
    volume = read_volume(tmp_path / name)
    assert torch.equal(volume.values, pixels.float())
    assert volume.spacing == (0.5, 2.0, 3.0) and volume.origin == (-5.0, -6.0, 7.0)
    assert volume.direction.tolist() == [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]


@pytest.mark.io
def test_dimensions_other_than_three_are_refused_unless_the_fourth_is_single(tmp_path):
    import numpy as np
    import SimpleITK as sitk

    block = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for name in ("a.nii", "a.nrrd", "a.mha"):
        path = str(tmp_path / name)
        sitk.WriteImage(sitk.GetImageFromArray(block[None], isVector=False), path)
        assert read_volume(path).values.shape == (2, 3, 4)
        sitk.WriteImage(sitk.GetImageFromArray(np.stack([block] * 5), isVector=False), path)
        with pytest.raises(ValueError, match="got 4D with 5 time points"):
            read_volume(path)
        sitk.WriteImage(sitk.GetImageFromArray(block[0]), path)
        with pytest.raises(ValueError, match="expected a 3D image, got 2D"):
            read_volume(path)
    sitk.WriteImage(sitk.GetImageFromArray(block.astype(np.complex64)), str(tmp_path / "c.nii"))
    with pytest.raises(ValueError, match="expected real values"):
        read_volume(tmp_path / "c.nii")


@pytest.mark.io
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.mha", "ct.mhd"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, name, share):
    write_volume(random_volume((20, 20, 20)), tmp_path / name)
    data = tmp_path / ("ct.raw" if name == "ct.mhd" else name)
    os.truncate(data, int(data.stat().st_size * share))
    with pytest.raises(ValueError, match=r"truncated or damaged|cut off|not an image"):
        read_volume(tmp_path / name)


@pytest.mark.io
def test_a_gzip_file_of_several_streams_is_whole_and_reads(tmp_path):
    volume = random_volume((20, 20, 20))
    write_volume(volume, tmp_path / "ct.nii")
    data = (tmp_path / "ct.nii").read_bytes()
    joined = gzip.compress(data[:5000]) + gzip.compress(data[5000:])
    (tmp_path / "ct.nii.gz").write_bytes(joined)
    assert torch.equal(read_volume(tmp_path / "ct.nii.gz").values, volume.values)
    (tmp_path / "ct.nii.gz").write_bytes(joined[:-3000])
    with pytest.raises(ValueError, match="truncated"):
        read_volume(tmp_path / "ct.nii.gz")


@pytest.mark.io
def test_files_that_are_not_images_are_refused_with_their_name(tmp_path):
    for suffix in ("nii", "nii.gz", "nrrd", "mha"):
        path = tmp_path / f"letter.{suffix}"
        path.write_text("Dear colleague,\n" * 40)
        with pytest.raises(ValueError, match=rf"letter\.{suffix}: .*not"):
            read_volume(path)
    (tmp_path / "empty.nii.gz").touch()
    with pytest.raises(ValueError, match=r"empty\.nii\.gz: not a NIfTI file"):
        read_volume(tmp_path / "empty.nii.gz")
    (tmp_path / "slice.dcm").write_text("x")
    with pytest.raises(ValueError, match="the folder of a DICOM series"):
        read_volume(tmp_path / "slice.dcm")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_volume(tmp_path / "nowhere.nii")
    with pytest.raises(TypeError, match="path: expected a file name"):
        read_volume(7)


NIFTI_EDITS = {
    "zero spacing": ([(80, "<f", 0.0)], "spacing"),
    "NaN spacing": ([(80, "<f", math.nan)], "spacing"),
    "singular axes": ([(252, "<2h", 0, 1), (280, "<8f", 1, 0, 0, 0, 1, 0, 0, 0)], "orthonormal"),
    "NaN axes": ([(280, "<f", math.nan)], "sform .* not finite"),
    "NaN origin": ([(254, "<h", 0), (268, "<f", math.nan)], "qform .* not finite"),
    "other scales": ([(280, "<12f", -2, 0, 0, 0, 0, -2, 0, 0, 0, 0, 3, 0)], "contradicts itself"),
}


@pytest.mark.io
@pytest.mark.parametrize("case", NIFTI_EDITS)
def test_nifti_headers_that_mean_nothing_are_refused(tmp_path, case):
    edits, message = NIFTI_EDITS[case]
    path = tmp_path / "ct.nii"
    write_volume(Volume(torch.ones(2, 3, 4), (1, 2, 3)), path)
    data = bytearray(path.read_bytes())
    for offset, layout, *numbers in edits:
        struct.pack_into(layout, data, offset, *numbers)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"ct\.nii: .*{message}"):
        read_volume(path)


@pytest.mark.io
@pytest.mark.parametrize(
    "field, value, message",
    [
        ("ElementSpacing", "0 2 3", "spacing"),
        ("TransformMatrix", "1 0 0 1 0 0 0 0 1", "singular"),
        ("TransformMatrix", "1 0 0 0.5 1 0 0 0 1", "direction: expected orthonormal"),
        ("DimSize", "0 3 2", "at least one voxel"),
    ],
)
def test_metaimage_headers_that_mean_nothing_are_refused(tmp_path, field, value, message):
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 2 3",
        "DimSize": "4 3 2",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    path = tmp_path / "ct.mha"
    for changed in (fields, fields | {field: value}):
        text = "".join(f"{k} = {v}\n" for k, v in changed.items())
        path.write_bytes(text.encode() + bytes(48))
        if changed is fields:
            assert read_volume(path).spacing == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match=rf"ct\.mha: .*{message}"):
        read_volume(path)


@pytest.mark.io
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.mha"])
def test_values_that_are_not_finite_in_a_file_are_refused_with_its_name(tmp_path, name, dtype, bad):
    import numpy as np
    import SimpleITK as sitk

    pixels = np.zeros((3, 5, 7), dtype)  # an odd number of them
    pixels[1, 2, 0] = pixels[-1, -1, -1] = bad
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / name))
    message = rf"{re.escape(name)}: values: .* got 2 that are not, the first at index \(1, 2, 0\)"
    with pytest.raises(ValueError, match=message):
        read_volume(tmp_path / name)


@pytest.mark.io
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_voxels_that_are_not_finite_are_found_wherever_they_stand(tmp_path, name):
    import SimpleITK as sitk

    values = random_volume((3, 5, 7), whole=False)
    write_volume(values, tmp_path / name)
    assert torch.equal(read_volume(tmp_path / name).values, values.values)
    image = sitk.ReadImage(str(tmp_path / name))
    image[6, 4, 2] = math.nan
    sitk.WriteImage(image, str(tmp_path / name))
    with pytest.raises(ValueError, match=r"got 1 that are not, the first at index \(2, 4, 6\)"):
        read_volume(tmp_path / name)


# Label maps in files


@pytest.mark.io
@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.nrrd", "labels.mha"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_label_maps_are_written_and_read_with_the_volume(tmp_path, name, dtype):
    volume = random_volume(labels=True)
    volume = replace(volume, labels=volume.labels.to(dtype) * 40)
    write_volume(volume, tmp_path / "ct.nii.gz", labels=tmp_path / name)
    back = read_volume(tmp_path / "ct.nii.gz", labels=tmp_path / name)
    assert back.labels.dtype == dtype and torch.equal(back.labels, volume.labels)


@pytest.mark.io
def test_label_maps_of_whole_floats_are_read_and_others_refused(tmp_path):
    volume = random_volume(labels=True)
    marks = replace(volume, values=volume.labels.double() + 40000)
    write_volume(volume, tmp_path / "ct.nrrd")
    write_volume(marks, tmp_path / "labels.nrrd")
    back = read_volume(tmp_path / "ct.nrrd", labels=tmp_path / "labels.nrrd")
    assert torch.equal(back.labels, volume.labels.int() + 40000)
    write_volume(replace(marks, values=marks.values + 0.25), tmp_path / "labels.nrrd")
    with pytest.raises(ValueError, match="expected whole numbers as labels"):
        read_volume(tmp_path / "ct.nrrd", labels=tmp_path / "labels.nrrd")


@pytest.mark.io
def test_label_maps_on_another_grid_are_refused(tmp_path):
    volume = random_volume()
    write_volume(volume, tmp_path / "ct.nrrd")
    others = {
        "apart": replace(volume, origin=(ORIGIN[0] + 900.0, *ORIGIN[1:])),
        "origin": replace(volume, origin=(ORIGIN[0] + 0.1, *ORIGIN[1:])),
        "spacing": replace(volume, spacing=(0.71, 1.25, 2.5)),
        "direction": replace(volume, direction=oblique(True)),
    }
    for other in others.values():
        write_volume(other, tmp_path / "labels.nrrd")
        with pytest.raises(ValueError, match=r"labels\.nrrd: .*(differs|expected labels of shape)"):
            read_volume(tmp_path / "ct.nrrd", labels=tmp_path / "labels.nrrd")


# Writing


@pytest.mark.io
@pytest.mark.parametrize("name", FORMATS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, name, monkeypatch):
    import SimpleITK as sitk

    if name != "ct_dicom":
        write_volume(random_volume(), tmp_path / name)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    original = sitk.ImageFileWriter.Execute

    def fail(self, *arguments):
        original(self, *arguments)
        raise RuntimeError("no space left")

    def fail_function(image, file, *arguments):
        Path(file).write_bytes(b"half")
        raise RuntimeError("no space left")

    def no_space(file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(sitk.ImageFileWriter, "Execute", fail)
    monkeypatch.setattr(sitk, "WriteImage", fail_function)
    monkeypatch.setattr("nibabel.Nifti1Image.to_filename", lambda image, file: no_space(file))
    with pytest.raises(OSError, match="no space left"):
        write_volume(random_volume(whole=False), tmp_path / name)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.io
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_is_an_error_in_every_format(tmp_path, name):
    import resource
    import signal

    volume = random_volume((4, 100, 100))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12000, limits[1]))
    try:
        with pytest.raises(OSError, match="disk may be full"):
            write_volume(volume, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.io
def test_writing_replaces_an_older_file_and_its_data(tmp_path):
    for volume in (random_volume(), random_volume((3, 4, 5), whole=False)):
        for name in FORMATS[:-1]:
            write_volume(volume, tmp_path / name)
            assert torch.equal(read_volume(tmp_path / name).values, volume.values)


@pytest.mark.io
def test_places_that_cannot_be_written_to_are_refused(tmp_path):
    volume = random_volume()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_volume(volume, tmp_path / "nowhere" / "ct.nii")
    with pytest.raises(ValueError, match=r"expected one of \.nii\.gz"):
        write_volume(volume, tmp_path / "ct.png")
    (tmp_path / "a.nii").mkdir()
    with pytest.raises(IsADirectoryError, match="a folder has this name"):
        write_volume(volume, tmp_path / "a.nii")
    with pytest.raises(FileExistsError, match="needs a new folder"):
        write_volume(volume, tmp_path)
    with pytest.raises(ValueError, match='hold "HU", this volume is in "mu"'):
        write_volume(volume.to_mu(), tmp_path / "ct")
    with pytest.raises(ValueError, match="one channel"):
        write_volume(random_volume((2, 5, 6, 7)), tmp_path / "ct")
    with pytest.raises(ValueError, match="no label map to write"):
        write_volume(volume, tmp_path / "ct.nii", labels=tmp_path / "labels.nii")
    with pytest.raises(TypeError, match="volume: expected a Volume"):
        write_volume(volume.values, tmp_path / "ct.nii")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii"]
