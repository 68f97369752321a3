"""CT series as folders of DICOM slices."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydicom.datadict import tag_for_keyword

import drrkit
from drrkit.volume import read_volume, write_volume
from tests.support.volumes import SPACING, random_volume


@pytest.mark.io
@pytest.mark.parametrize("offset, scale", [(0.0, 1.0), (40000.0, 1.0), (0.0, 30.0), (0.0, 0.01)])
def test_dicom_rounds_fractions_to_half_a_step_of_the_slope(tmp_path, offset, scale):
    base = random_volume(whole=False)
    volume = replace(base, values=base.values * scale + offset)
    write_volume(volume, tmp_path / "ct")
    back = read_volume(tmp_path / "ct")
    spread = float(volume.values.max() - volume.values.min())
    error = float((back.values - volume.values).abs().max())
    assert 0 < error <= spread / 65000
    assert torch.allclose(back.affine, volume.affine, atol=1e-6)


@pytest.mark.io
def test_dicom_slices_are_ct_image_storage_in_one_series_with_ascending_positions(tmp_path):
    import SimpleITK as sitk

    volume = random_volume(left_handed=True, labels=True)
    write_volume(volume, tmp_path / "ct", labels=tmp_path / "labels.nii.gz")
    positions, shared, instances = [], set(), set()
    for file in sorted((tmp_path / "ct").iterdir()):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        tag = {key: reader.GetMetaData(key).strip() for key in reader.GetMetaDataKeys()}
        assert (tag["0008|0016"], tag["0008|0060"]) == ("1.2.840.10008.5.1.4.1.1.2", "CT")
        assert [float(tag[k]) for k in ("0028|1052", "0028|1053", "0028|0103")] == [0, 1, 1]
        assert tag["0028|1054"] == "HU"
        assert [float(v) for v in tag["0028|0030"].split("\\")] == [SPACING[1], SPACING[0]]
        shared.add(tuple(tag[k] for k in ("0020|000d", "0020|000e", "0020|0052")))
        instances.add(tag["0008|0018"])
        positions.append([float(v) for v in tag["0020|0032"].split("\\")])
    normal = torch.linalg.cross(volume.direction[:, 0], volume.direction[:, 1])
    steps = (torch.tensor(positions, dtype=torch.float64) @ normal).diff()
    assert torch.allclose(steps, torch.tensor(2.5, dtype=torch.float64), atol=1e-6)
    assert len(shared) == 1 and len(instances) == 5
    back = read_volume(tmp_path / "ct", labels=tmp_path / "labels.nii.gz")
    assert torch.equal(back.labels, volume.labels.flip(0))


@pytest.mark.io
def test_dicom_slope_and_intercept_are_applied(tmp_path):
    import SimpleITK as sitk

    volume = random_volume()
    write_volume(volume, tmp_path / "ct")
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for file in (tmp_path / "ct").iterdir():
        image = sitk.ReadImage(str(file))
        image.SetMetaData("0028|1052", "-1024")
        image.SetMetaData("0028|1053", "2")
        writer.SetFileName(str(file))
        # GDCM stores (HU + 1024) / 2, rounded: at most 2048, half the range of HU.
        writer.Execute(image)
        stored = int.from_bytes(file.read_bytes()[-2:], "little")
        assert stored == pytest.approx((sitk.GetArrayFromImage(image)[0, -1, -1] + 1024) / 2, abs=1)
    back = read_volume(tmp_path / "ct")
    assert 0 < float((back.values - volume.values).abs().max()) <= 1.0


@pytest.mark.io
def test_a_folder_with_two_series_names_them_and_reads_the_chosen_one(tmp_path):
    import SimpleITK as sitk

    first, second = random_volume(), replace(random_volume(), values=random_volume().values.flip(0))
    write_volume(first, tmp_path / "both")
    write_volume(second, tmp_path / "other")
    uid = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(tmp_path / "other"))[0]
    for file in (tmp_path / "other").iterdir():
        shutil.copy(file, tmp_path / "both" / f"b{file.name}")
    with pytest.raises(ValueError, match=rf"holds 2 series.*{uid} \(CT, 5 files\)"):
        read_volume(tmp_path / "both")
    with pytest.raises(ValueError, match=r"series: '1.2.3' is not in .*holds 2 series"):
        read_volume(tmp_path / "both", series="1.2.3")
    assert torch.equal(read_volume(tmp_path / "both", series=uid).values, second.values)
    write_volume(first, tmp_path / "ct.nii")
    with pytest.raises(ValueError, match="only a DICOM folder holds series"):
        read_volume(tmp_path / "ct.nii", series=uid)


@pytest.mark.io
def test_dicom_stacks_that_are_not_whole_and_straight_are_refused(tmp_path):
    write_volume(random_volume(), tmp_path / "ct")
    files = sorted((tmp_path / "ct").iterdir())

    def copy_of(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "ct", tmp_path / name))

    missing = copy_of("missing")
    (missing / files[2].name).unlink()
    with pytest.raises(ValueError, match=r"distances from 2.5 to 5 mm.*missing"):
        read_volume(missing)
    for keep in (300, files[-1].stat().st_size - 20):
        cut = copy_of(f"cut{keep}")
        os.truncate(cut / files[-1].name, keep)
        with pytest.raises(ValueError, match=rf"{files[-1].name}: a CT slice that cannot be read"):
            read_volume(cut)


@pytest.mark.io
def test_other_files_in_a_dicom_folder_do_not_disturb(tmp_path):
    write_volume(random_volume(), tmp_path / "ct")
    (tmp_path / "ct" / "notes.txt").write_text("supine")
    (tmp_path / "ct" / "sub").mkdir()
    assert torch.equal(read_volume(tmp_path / "ct").values, random_volume().values)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("supine")
    with pytest.raises(ValueError, match="no DICOM series in this folder"):
        read_volume(tmp_path / "none")


@pytest.fixture
def pelvis_file() -> Path:
    folder = os.environ.get("DRRKIT_DATA")
    if not folder:
        pytest.skip("set DRRKIT_DATA to the folder that holds pelvis_2mm.nii.gz")
    return Path(folder) / "pelvis_2mm.nii.gz"


@pytest.mark.io
@pytest.mark.data
def test_the_pelvis_ct_has_its_known_grid_and_range_and_survives_dicom(tmp_path, pelvis_file):
    volume = read_volume(pelvis_file)
    assert volume.shape_xyz == (237, 203, 240)
    assert volume.spacing == (2.0, 2.0, 2.0)
    assert torch.equal(volume.direction, torch.eye(3, dtype=torch.float64))
    assert float(volume.values.min()) == -1024 and 2000 < float(volume.values.max()) <= 3071
    soft = ((volume.values > -100) & (volume.values < 150)).float().mean()
    assert 0.2 < float(soft) < 0.7
    write_volume(volume, tmp_path / "ct")
    back = read_volume(tmp_path / "ct")
    assert torch.equal(back.values, volume.values)
    assert torch.allclose(back.affine, volume.affine, atol=1e-5)


@pytest.mark.io
def test_every_attribute_that_is_read_stands_in_the_docs():
    """docs/files.md names each by its tag, alone or as one of a range."""
    root = Path(drrkit.__file__).parents[1]
    docs = (root / "docs" / "files.md").read_text(encoding="utf-8")
    tag = r"\((\w{4}),(\w{4})\)"
    told = {int("".join(pair), 16) for pair in re.findall(tag, docs)}
    ranges = [
        (int(a + b, 16), int(c + d, 16)) for a, b, c, d in re.findall(f"{tag} to {tag}", docs)
    ]
    files = [*(root / "drrkit" / "volume").glob("dicom_*.py")]
    files += [root / "drrkit" / "xray" / "read" / name for name in ("dicom.py", "localizer.py")]
    text = "".join(f.read_text() for f in files if f.stem != "dicom_writing")
    text = text.replace("{kind}Pixel", "Pixel").replace("{end}", "Detector")
    words = set(re.findall(r'"([A-Za-z]{4,})"', text))
    read = {word: number for word in words if (number := tag_for_keyword(word))}
    assert len(read) > 60
    missing = {
        word
        for word, number in read.items()
        if number not in told and not any(low <= number <= high for low, high in ranges)
    }
    assert missing == set()
