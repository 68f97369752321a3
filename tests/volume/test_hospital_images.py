"""NIfTI, NRRD and MetaImage as other programs write them: right values at the right place."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drrkit.volume import FileWarning, Volume, inspect_volume, read_volume, write_volume
from tests.support.volumes import random_volume

pytestmark = pytest.mark.io

SHAPE = (4, 5, 6)  # x, y, z
PIXELS = np.arange(120, dtype=np.int16).reshape(SHAPE)
RAS = np.diag((-1.0, -1.0, 1.0, 1.0))
AFFINE = np.array([[0.0, -0.8, 0, 10], [0.7, 0, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
"""Index to RAS, a quarter turn about z."""


def nifti(path: Path, sform=AFFINE, qform=AFFINE, codes=(1, 1), kind=nibabel.Nifti1Image, **fields):
    """A NIfTI file; header fields by name."""
    image = kind(PIXELS, None)
    image.header.set_sform(sform, codes[0])
    image.header.set_qform(qform, codes[1])
    image.header["pixdim"][1:4] = np.linalg.norm(AFFINE[:3, :3], axis=0)
    image.header.set_xyzt_units("mm")
    offset = 352 if kind is nibabel.Nifti1Image else 544
    image.header["vox_offset"], image.header["scl_slope"] = offset, 1
    image.header["scl_inter"] = 0
    for name, value in fields.items():
        image.header[name] = value
    data = image.header.binaryblock + bytes(4) + PIXELS.tobytes(order="F")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def place_of(volume: Volume) -> np.ndarray:
    """Index to RAS mm."""
    return RAS @ volume.affine.numpy()


# ---- NIfTI


@pytest.mark.parametrize("codes", [(s, q) for s in (1, 2, 3, 4) for q in (0, 1, 2, 3, 4)])
def test_the_sform_comes_first_as_in_nibabel(tmp_path: Path, codes: tuple[int, int]) -> None:
    moved = AFFINE + np.array([[0, 0, 0, 9], [0, 0, 0, 12], [0, 0, 0, 0], [0, 0, 0, 0]])
    path = nifti(tmp_path / "a.nii", AFFINE, moved, codes)
    np.testing.assert_allclose(nibabel.load(path).affine, AFFINE, atol=1e-5)
    if codes[1] == 0:
        volume = read_volume(path)
    else:
        with pytest.warns(FileWarning, match="sform and qform differ by up to 15 mm"):
            volume = read_volume(path)
    np.testing.assert_allclose(place_of(volume), AFFINE, atol=1e-5)
    np.testing.assert_array_equal(volume.values.numpy(), PIXELS.T)


def test_a_label_map_with_the_affine_of_the_volume_fits(tmp_path: Path) -> None:
    """Its own two forms, or those that nibabel writes for the affine that it reads."""
    moved = AFFINE + np.array([[0, 0, 0, 9], [0, 0, 0, 12], [0, 0, 0, 0], [0, 0, 0, 0]])
    path = nifti(tmp_path / "a.nii", AFFINE, moved, (2, 1))
    nibabel.save(nibabel.Nifti1Image(PIXELS, nibabel.load(path).affine), tmp_path / "labels.nii")
    for labels in (path, tmp_path / "labels.nii"):
        with pytest.warns(FileWarning):
            volume = read_volume(path, labels=labels)
        np.testing.assert_array_equal(volume.labels.numpy(), PIXELS.T)


def test_the_qform_alone_is_used_and_neither_is_said(tmp_path: Path) -> None:
    alone = read_volume(nifti(tmp_path / "q.nii", codes=(0, 1)))
    np.testing.assert_allclose(place_of(alone), AFFINE, atol=1e-5)
    path = nifti(tmp_path / "none.nii", codes=(0, 0))
    with pytest.warns(FileWarning, match="does not say how the image lies"):
        neither = read_volume(path)
    np.testing.assert_allclose(place_of(neither), nibabel.load(path).affine, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "codes", "message"),
    [
        ({"quatern_b": 0.9, "quatern_c": 0.9, "quatern_d": 0.9}, (1, 1), "qform .* is damaged"),
        ({"pixdim": (0, 0.7, 0.8, 2.5, 0, 0, 0, 0)}, (0, 1), "qfac .* is 0: taken as 1"),
        ({"pixdim": (0, 0.7, 0.8, 2.5, 0, 0, 0, 0)}, (1, 1), "qfac .* is 0: taken as 1"),
    ],
)
def test_what_is_damaged_beside_a_good_place_is_said(
    tmp_path: Path, fields: dict, codes: tuple, message: str
) -> None:
    path = nifti(tmp_path / "a.nii", codes=codes, **fields)
    with pytest.warns(FileWarning, match=message):
        np.testing.assert_allclose(place_of(read_volume(path)), AFFINE, atol=1e-4)
    with pytest.raises(ValueError, match="qform in its header"):
        read_volume(nifti(path, codes=(0, 1), quatern_b=0.9, quatern_c=0.9, quatern_d=0.9))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"scl_slope": 0, "scl_inter": 5}, PIXELS),
        ({"scl_slope": 2, "scl_inter": 5}, 2.0 * PIXELS + 5),
        ({"scl_slope": np.nan, "scl_inter": 5}, PIXELS),
        ({"scl_slope": 1, "scl_inter": -1024}, PIXELS - 1024.0),
    ],
)
def test_slopes_are_those_of_the_standard(
    tmp_path: Path, fields: dict, expected: np.ndarray
) -> None:
    volume = read_volume(nifti(tmp_path / "a.nii.gz", **fields))
    np.testing.assert_array_equal(volume.values.numpy(), expected.T)


def test_units_of_length_are_converted(tmp_path: Path) -> None:
    for code, factor in ((1, 1000.0), (2, 1.0), (3, 1e-3), (0, 1.0)):
        scaled = AFFINE / np.array([[factor], [factor], [factor], [1]])
        pixdim = np.array([1, *np.linalg.norm(scaled[:3, :3], axis=0), 0, 0, 0, 0])
        path = nifti(tmp_path / "a.nii", scaled, scaled, xyzt_units=code, pixdim=pixdim)
        np.testing.assert_allclose(place_of(read_volume(path)), AFFINE, rtol=1e-5, atol=1e-4)
    metres = nifti(tmp_path / "b.nii", xyzt_units=1)
    with pytest.warns(FileWarning, match=r"voxels of 700 x 800 x 2500 mm: is the unit"):
        read_volume(metres)


def test_nifti_2_and_what_nibabel_ships(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", kind=nibabel.Nifti2Image)
    np.testing.assert_allclose(place_of(read_volume(path)), AFFINE, atol=1e-6)
    folder = Path(nibabel.__file__).parent / "tests" / "data"
    for name in ("anatomical.nii", "reoriented_anat_moved.nii"):
        image = nibabel.load(folder / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FileWarning)
            volume = read_volume(folder / name)
        np.testing.assert_allclose(place_of(volume), image.affine, atol=1e-4)
        np.testing.assert_allclose(volume.values.numpy(), image.get_fdata().T, rtol=1e-6)
    for name, message in (
        ("example_nifti2.nii.gz", "4D with 2 time points"),
        ("example4d.nii.gz", "4D with 2 time points"),
        ("functional.nii", "4D with 20 time points"),
        ("resampled_anat_moved.nii", "got 153 that are not"),
    ):
        with pytest.raises(ValueError, match=message):
            read_volume(folder / name)
    whole = nibabel.load(folder / "example_nifti2.nii.gz")
    nibabel.save(whole.slicer[..., 0], tmp_path / "first.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FileWarning)
        first = read_volume(tmp_path / "first.nii.gz")
    np.testing.assert_allclose(place_of(first), whole.affine, atol=1e-4)
    np.testing.assert_array_equal(first.values.numpy(), whole.get_fdata()[..., 0].T)


@pytest.mark.parametrize("shear", ["hundredth of a degree", "three digits"])
def test_axes_that_rounding_sheared_are_straightened(tmp_path: Path, shear: str) -> None:
    turn = nibabel.quaternions.quat2mat((0.9, 0.2, -0.3, 0.1))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag((0.7, 0.8, 2.5))
    exact = affine.copy()
    if shear == "three digits":
        affine[:3, :3] = np.round(turn, 3) @ np.diag((0.7, 0.8, 2.5))
    else:
        affine[:3, 1] += np.radians(0.01) * affine[:3, 0]
    volume = read_volume(nifti(tmp_path / "a.nii", affine, affine, (1, 0)))
    np.testing.assert_allclose(place_of(volume), exact, atol=2e-3)
    affine[:3, 1] += np.radians(10) * affine[:3, 0]
    pixdim = np.array([1, *np.linalg.norm(affine[:3, :3], axis=0), 0, 0, 0, 0])
    path = nifti(tmp_path / "b.nii", affine, affine, (1, 0), pixdim=pixdim)
    with pytest.raises(ValueError, match=r"affine, such as gantry tilt\): give the folder"):
        read_volume(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datatype": 128, "bitpix": 24}, "colours|promises|truncated"),
        ({"datatype": 999}, "header is damaged"),
        ({"dim": (3, 30000, 30000, 30000, 1, 1, 1, 1)}, "promises"),
        ({"dim": (3, -4, 5, 6, 1, 1, 1, 1)}, "at least one voxel"),
        ({"dim": (9, 4, 5, 6, 1, 1, 1, 1)}, "damaged"),
        ({"vox_offset": np.inf}, "damaged"),
        ({"pixdim": (1, 0.7, -0.8, 2.5, 0, 0, 0, 0)}, "positive and finite"),
        ({"pixdim": (1, 0.7, 0.8, 25, 0, 0, 0, 0)}, "contradicts itself"),
        ({"srow_x": (np.nan, 0, 0, 0)}, "sform .* not finite"),
        ({"srow_x": (0, 0, 0, 0)}, "orthonormal|contradicts"),
    ],
)
def test_headers_that_mean_nothing_are_refused(tmp_path: Path, fields: dict, message: str) -> None:
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(ValueError, match=rf"{name}: .*({message})"):
            read_volume(nifti(tmp_path / name, **fields))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    turn=arrays(float, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1),
    spacing=st.tuples(*[st.floats(0.01, 20)] * 3),
    origin=st.tuples(*[st.floats(-1e3, 1e3)] * 3),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    left=st.booleans(),
)
def test_for_random_headers_the_place_is_nibabels(
    tmp_path: Path, turn: np.ndarray, spacing: tuple, origin: tuple, codes: tuple, left: bool
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = nibabel.quaternions.quat2mat(turn / np.linalg.norm(turn)) @ np.diag(spacing)
    affine[:3, 0] *= -1 if left else 1
    affine[:3, 3] = origin
    image = nibabel.Nifti1Image(PIXELS, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header["pixdim"][1:4] = spacing
    nibabel.save(image, tmp_path / "a.nii")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        volume = read_volume(tmp_path / "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").affine
    np.testing.assert_allclose(place_of(volume), expected, rtol=1e-4, atol=1e-3)
    assert (codes == (0, 0)) == any("does not say how" in str(w.message) for w in told)


# ---- NRRD

FIELDS = {
    "type": "int16",
    "dimension": 3,
    "space": "left-posterior-superior",
    "kinds": ["domain"] * 3,
    "space directions": np.diag((0.7, 0.8, 2.5)),
    "space origin": np.array((1.0, 2.0, 3.0)),
}


def write_nrrd(path: Path, pixels: np.ndarray = PIXELS, **changes: object) -> Path:
    """An NRRD file; None leaves a field out."""
    fields = {**FIELDS, **{k.replace("_", " "): v for k, v in changes.items()}}
    fields = {k: v for k, v in fields.items() if v is not None}
    nrrd.write(str(path), pixels, fields)
    return path


@pytest.mark.parametrize(
    ("unit", "factor"), [("mm", 1), ("um", 1e-3), ("cm", 10), ("m", 1000), ("µm", 1e-3), ("", 1)]
)
def test_space_units_are_converted(tmp_path: Path, unit: str, factor: float) -> None:
    directions, origin = np.diag((0.7, 0.8, 2.5)) / factor, np.array((1.0, 2.0, 3.0)) / factor
    path = write_nrrd(
        tmp_path / "a.nrrd",
        space_units=[unit.replace("µ", "u")] * 3,
        space_directions=directions,
        space_origin=origin,
    )
    if "µ" in unit:
        path.write_bytes(path.read_bytes().replace(b'"um"', '"µm"'.encode()))
    volume = read_volume(path)
    assert volume.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert volume.origin == pytest.approx((1.0, 2.0, 3.0))
    np.testing.assert_array_equal(volume.values.numpy(), PIXELS.T)


def test_fields_in_capitals_and_units_of_axes_count(tmp_path: Path) -> None:
    directions, origin = np.diag((0.07, 0.08, 0.25)), np.array((0.1, 0.2, 0.3))
    fields = {"space_directions": directions, "space_origin": origin, "encoding": "raw"}
    whole = write_nrrd(tmp_path / "a.nrrd", **fields).read_bytes()
    for name in (b"space units", b"Space Units", b"units"):
        capitals = whole.replace(b"kinds:", name + b': "cm" "CM" "cm"\nKinds:')
        capitals = capitals.replace(b"space origin:", b"Space Origin:")
        (tmp_path / "a.nrrd").write_bytes(capitals)
        volume = read_volume(tmp_path / "a.nrrd")
        assert volume.spacing == pytest.approx((0.7, 0.8, 2.5))
        assert volume.origin == pytest.approx((1.0, 2.0, 3.0))


def test_other_units_and_spaces_are_refused_or_said(tmp_path: Path) -> None:
    for units in (["furlong"] * 3, ["mm", "mm", "cm"], ["cm", "cm", ""]):
        with pytest.raises(ValueError, match="space units: expected one of mm, cm, m, um"):
            read_volume(write_nrrd(tmp_path / "a.nrrd", space_units=units))
    with pytest.warns(FileWarning, match="does not say how the patient lies"):
        read_volume(write_nrrd(tmp_path / "b.nrrd", space="3D-right-handed"))
    with pytest.warns(FileWarning, match="no space origin"):
        read_volume(write_nrrd(tmp_path / "c.nrrd", space_origin=None))
    bare = {"space": None, "space_directions": None, "space_origin": None}
    with pytest.warns(FileWarning, match="no space directions"):
        volume = read_volume(write_nrrd(tmp_path / "d.nrrd", **bare, spacings=[0.7, 0.8, 2.5]))
    assert volume.spacing == pytest.approx((0.7, 0.8, 2.5))
    with pytest.warns(FileWarning, match="old min and old max are not applied"):
        read_volume(write_nrrd(tmp_path / "g.nrrd", old_min=-1024.0))
    with pytest.warns(FileWarning, match="nor how large its voxels are"):
        read_volume(write_nrrd(tmp_path / "e.nrrd", **bare))
    with pytest.raises(ValueError, match="orthonormal"):
        read_volume(write_nrrd(tmp_path / "f.nrrd", space_directions=np.ones((3, 3))))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    turn=arrays(float, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1),
    spacing=st.tuples(*[st.floats(0.01, 20)] * 3),
    origin=st.tuples(*[st.floats(-1e3, 1e3)] * 3),
    space=st.sampled_from(
        [
            "left-posterior-superior",
            "right-anterior-superior",
            "LPS",
            "RAS",
            "left-anterior-superior",
        ]
    ),
    encoding=st.sampled_from(["raw", "gzip", "bzip2", "ascii"]),
)
def test_for_random_headers_the_place_is_simpleitks(
    tmp_path: Path, turn: np.ndarray, spacing: tuple, origin: tuple, space: str, encoding: str
) -> None:
    import SimpleITK as sitk

    directions = (nibabel.quaternions.quat2mat(turn / np.linalg.norm(turn)) * spacing).T
    fields = {"space_directions": directions, "space_origin": np.array(origin)}
    path = write_nrrd(tmp_path / "a.nrrd", space=space, encoding=encoding, **fields)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.values.numpy(), PIXELS.T)
    if encoding == "bzip2" or len(space) == 3:
        return  # ITK knows neither
    image = sitk.ReadImage(str(path))
    for index in ((0, 0, 0), (3, 4, 5)):
        there = volume.index_to_world(torch.tensor(index, dtype=torch.float64))
        expected = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(there.numpy(), expected, rtol=1e-6, atol=1e-4)


def test_large_headers_of_segmentations_are_read(tmp_path: Path) -> None:
    fields = {f"Segment{k}_{part}": "x" * 60 for k in range(40) for part in "ABCDEFG"}
    fields |= {f"Segment{k}_LabelValue": str(k + 1) for k in range(40)}
    path = tmp_path / "bones.seg.nrrd"
    nrrd.write(str(path), PIXELS, {**FIELDS, **fields, "Segment0_Tags": "y" * 3000})
    write_nrrd(tmp_path / "ct.nrrd")
    volume = read_volume(tmp_path / "ct.nrrd", labels=path)
    np.testing.assert_array_equal(volume.labels.numpy(), PIXELS.T)
    directions = np.vstack((np.full(3, np.nan), FIELDS["space directions"]))
    kinds = ["list", *["domain"] * 3]
    layers = write_nrrd(
        tmp_path / "layers.seg.nrrd",
        np.stack((PIXELS, PIXELS)),
        dimension=4,
        space_directions=directions,
        kinds=kinds,
    )
    with pytest.raises(ValueError, match="overlap are stored in layers"):
        read_volume(tmp_path / "ct.nrrd", labels=layers)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"sizes: 4 5 6", b"sizes: 4 5 60000000"),
        (b"sizes: 4 5 6", b"sizes: 4 5"),
        (b"sizes: 4 5 6", b"sizes: 4 5 -6"),
        (b"type: int16", b"type: block"),
        (b"encoding: raw", b"encoding: hex"),
        (b"dimension: 3", b"dimension: 4"),
        (b"NRRD000", b"NRRD00x"),
        (b"space origin", b"space origin: (1,2,3)\nspace origin"),
        (b"space directions: (", b"space directions: (nan"),
    ],
)
def test_nrrd_headers_that_mean_nothing_are_refused(
    tmp_path: Path, before: bytes, after: bytes
) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", encoding="raw")
    whole = path.read_bytes()
    assert before in whole
    path.write_bytes(whole.replace(before, after, 1))
    with pytest.raises(ValueError, match=r"a\.nrrd"):
        read_volume(path)


# ---- MetaImage

META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
    "Offset": "1 2 3",
    "ElementSpacing": "0.7 0.8 2.5",
    "DimSize": "4 5 6",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def meta(path: Path, data: bytes = PIXELS.tobytes(order="F"), **changes: str | None) -> Path:
    """A MetaImage; None leaves a field out."""
    last = META["ElementDataFile"]
    fields = {**META, **changes}
    last = fields.pop("ElementDataFile")
    fields = {k: v for k, v in fields.items() if v is not None} | {"ElementDataFile": last}
    path.write_bytes("".join(f"{k} = {v}\n" for k, v in fields.items()).encode() + data)
    return path


@pytest.mark.parametrize(
    ("unit", "factor"), [("mm", 1), ("um", 1e-3), ("cm", 10), ("m", 1000), (None, 1), ("?", 1)]
)
def test_distance_units_are_converted(tmp_path: Path, unit: str | None, factor: float) -> None:
    def words(*numbers: float) -> str:
        return " ".join(repr(n / factor) for n in numbers)

    places = {"ElementSpacing": words(0.7, 0.8, 2.5), "Offset": words(1, 2, 3)}
    volume = read_volume(meta(tmp_path / "a.mha", DistanceUnits=unit, **places))
    assert volume.spacing == pytest.approx((0.7, 0.8, 2.5))
    assert volume.origin == pytest.approx((1.0, 2.0, 3.0))
    names = {"distanceunits": unit, **{name.lower(): value for name, value in places.items()}}
    dropped = dict.fromkeys(places)
    assert read_volume(meta(tmp_path / "c.mha", **dropped, **names)).spacing == volume.spacing
    with pytest.raises(ValueError, match="DistanceUnits: expected mm, cm, m or um, got 'inch'"):
        read_volume(meta(tmp_path / "b.mha", DistanceUnits="inch"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"TransformMatrix": None, "Orientation": META["TransformMatrix"]},
        {"Offset": None, "Position": "4 5 6"},
        {"ElementSpacing": None, "ElementSize": "0.5 0.5 1"},
        {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"},
        {"Comment": "a = b"},
        {"Offset": "-1e2 .5 3"},
    ],
)
def test_metaimages_are_read_as_simpleitk_reads_them(tmp_path: Path, changes: dict) -> None:
    import SimpleITK as sitk

    path = meta(tmp_path / "a.mha", **changes)
    volume, image = read_volume(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.values.numpy(), sitk.GetArrayFromImage(image))
    for index in ((0, 0, 0), (3, 4, 5)):
        there = volume.index_to_world(torch.tensor(index, dtype=torch.float64))
        expected = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(there.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ElementSpacing": None}, "does not say how large"),
        ({"ElementToIntensityFunctionSlope": "2"}, "not applied"),
        ({"TransformMatrix": None}, "how the image lies: no TransformMatrix$"),
        ({"Offset": None, "TransformMatrix": None}, "lies: no TransformMatrix, Offset$"),
    ],
)
def test_what_a_metaimage_leaves_open_is_said(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.warns(FileWarning, match=message):
        read_volume(meta(tmp_path / "a.mha", **changes))


def test_metaimages_as_text_and_beside_their_header(tmp_path: Path) -> None:
    text = " ".join(str(n) for n in PIXELS.ravel(order="F")).encode()
    volume = read_volume(meta(tmp_path / "a.mha", text, BinaryData="False"))
    np.testing.assert_array_equal(volume.values.numpy(), PIXELS.T)
    (tmp_path / "a.raw").write_bytes(b"head" + PIXELS.tobytes(order="F"))
    for skip in ("4", "-1"):
        path = meta(tmp_path / "a.mhd", b"", ElementDataFile="a.raw", HeaderSize=skip)
        np.testing.assert_array_equal(read_volume(path).values.numpy(), PIXELS.T)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_colours_are_no_ct_and_other_scales_are_said(tmp_path: Path, suffix: str) -> None:
    import SimpleITK as sitk

    path = tmp_path / f"a{suffix}"
    colours = np.stack((PIXELS.T, PIXELS.T, 2 * PIXELS.T), -1).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(path))
    with pytest.raises(ValueError, match="expected a single-channel image, got colours"):
        read_volume(path)
    assert read_volume(path, unit="mu").values.shape[0] == 3
    for values in (PIXELS.T / 5000, PIXELS.T / 60 - 1):
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.float32)), str(path))
        with pytest.warns(FileWarning, match=r'is this attenuation \(unit="mu"\), or another sc'):
            read_volume(path)


# ---- label maps on the lattice of the volume


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("letters", ["LPS", "RAS", "LAS", "PIR", "SLP", "ASR"])
def test_label_maps_in_another_order_are_put_in_place(
    tmp_path: Path, letters: str, suffix: str
) -> None:
    volume = random_volume(labels=True)
    axis = {"L": 0, "R": 0, "P": 1, "A": 1, "S": 2, "I": 2}
    order = [axis[letter] for letter in letters]
    flips = [a for a, letter in enumerate(letters) if letter in "RAI"]
    values = volume.labels.permute(*(2 - order[a] for a in (2, 1, 0))).flip([2 - a for a in flips])
    turn = volume.direction[:, order].clone()
    turn[:, flips] *= -1
    first = torch.zeros(3, dtype=torch.float64)
    for a in flips:
        first[order[a]] = volume.shape_xyz[order[a]] - 1
    spacing = tuple(volume.spacing[a] for a in order)
    origin = tuple(volume.index_to_world(first).tolist())
    stored = Volume(values.float().contiguous(), spacing, origin, turn)
    write_volume(volume, tmp_path / "ct.nrrd")
    write_volume(stored, tmp_path / f"labels{suffix}")
    found = read_volume(tmp_path / "ct.nrrd", labels=tmp_path / f"labels{suffix}")
    assert torch.equal(found.labels, volume.labels)


def test_label_maps_of_a_part_are_padded_and_of_more_cut(tmp_path: Path) -> None:
    volume = random_volume(labels=True)
    part = volume.crop((1, 2, 0), (5, 6, 4))
    write_volume(volume, tmp_path / "ct.nrrd", labels=tmp_path / "whole.nrrd")
    write_volume(part, tmp_path / "part.nrrd", labels=tmp_path / "labels.nrrd")
    found = read_volume(tmp_path / "ct.nrrd", labels=tmp_path / "labels.nrrd").labels
    expected = torch.zeros_like(volume.labels)
    expected[0:4, 2:6, 1:5] = volume.labels[0:4, 2:6, 1:5]
    assert torch.equal(found, expected)
    with pytest.warns(FileWarning, match="labelled voxels lie outside the volume"):
        cut = read_volume(tmp_path / "part.nrrd", labels=tmp_path / "whole.nrrd")
    assert torch.equal(cut.labels, part.labels)


def test_what_was_understood_of_an_image(tmp_path: Path) -> None:
    found = inspect_volume(nifti(tmp_path / "a.nii"))
    assert found.facts["place from"] == "sform" and found.facts["unit"] == "mm"
    assert found.facts["orientation"] == "A L S" and found.facts["size"] == "4 x 5 x 6"
