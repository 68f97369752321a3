"""Small whole files of every format that is read, and what damage to them may lead to.

Run as a program it reads damaged files, so that a crash of native code is seen as one:
python damaged_files.py FOLDER reads the names on stdin and prints one line per answer.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import drrkit
from drrkit import conversions, fields
from drrkit.cli.io import read_pose, write_pose
from drrkit.registration import Landmarks
from drrkit.similarity import construct, load_similarity, save_similarity
from drrkit.training import Checkpoint, load_checkpoint
from drrkit.training.checkpoints import save_checkpoint
from drrkit.xray import read_deepfluoro_xray
from drrkit.xray.read.calibration import read_calibration
from tests.support.ct_files import write_enhanced
from tests.support.xray_files import carm_tags, write_dicom

SIZE = (8, 9)
PIXELS = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)
CAMERA = drrkit.CArm(1020.0, SIZE, (2.5, 2.25))


def volume() -> drrkit.Volume:
    values = torch.arange(4 * 5 * 6, dtype=torch.float32).reshape(4, 5, 6)
    return drrkit.Volume(values, (1.0, 1.5, 2.0), (3.0, 4.0, 5.0))


def pose() -> Tensor:
    return drrkit.view_carm(volume(), 800.0, 0.3, -0.1)


# ---- writers


def write_picture(path: Path) -> None:
    import SimpleITK

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(PIXELS), str(path))


def write_storage(path: Path) -> None:
    parts = zip("KRt", conversions.to_opencv(CAMERA, pose()), strict=True)
    matrices = {name: part[0] for name, part in parts}
    numbers = {name: matrix.flatten().tolist() for name, matrix in matrices.items()}
    if path.suffix == ".json":
        content = {name: matrix.tolist() for name, matrix in matrices.items()}
        path.write_text(json.dumps({**content, "sdd": 1020.0}))
    elif path.suffix == ".yml":
        lines = [
            f"{name}: !!opencv-matrix\n   rows: {len(v) // 3 if len(v) > 3 else 3}\n"
            f"   cols: {3 if len(v) > 3 else 1}\n   dt: d\n   data: {v}"
            for name, v in numbers.items()
        ]
        path.write_text("\n".join(["%YAML:1.0", "---", *lines, "sdd: 1020."]) + "\n")
    else:
        entries = [
            f"<{name}><rows>{len(v) // 3 if len(v) > 3 else 3}</rows>"
            f"<cols>{3 if len(v) > 3 else 1}</cols><data>{' '.join(map(repr, v))}</data></{name}>"
            for name, v in numbers.items()
        ]
        content = "".join([*entries, "<sdd>1020.</sdd>"])
        path.write_text(f'<?xml version="1.0"?>\n<opencv_storage>{content}</opencv_storage>')


def write_landmarks(path: Path) -> None:
    table = np.random.default_rng(0).uniform(1, 100, (8, 5)).tolist()
    names = ("x", "y", "z", "row", "col")
    if path.suffix == ".json":
        path.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in table]))
    else:
        lines = [",".join(map(repr, row)) for row in table]
        path.write_text("\n".join([",".join(names), *lines]) + "\n")


def write_markups(path: Path) -> None:
    """3D Slicer's points, with their pixels as descriptions."""
    table = np.random.default_rng(0).uniform(1, 100, (8, 5)).round(3).tolist()
    if path.suffix == ".json":
        points = [{"position": row[:3], "description": f"{row[3]}, {row[4]}"} for row in table]
        path.write_text(json.dumps({"markups": [{"type": "Fiducial", "controlPoints": points}]}))
    else:
        lines = ["# CoordinateSystem = LPS", "# columns = id,x,y,z,label,desc"]
        lines += [f'{k},{x},{y},{z},P{k},"{row}, {c}"' for k, (x, y, z, row, c) in enumerate(table)]
        path.write_text("\n".join(lines) + "\n")


def write_geometry(path: Path) -> None:
    conversions.write_rtk_geometry(path, conversions.to_rtk(CAMERA, pose()))


def write_field(path: Path) -> None:
    fields.save_field(fields.NeTT(), path)


def write_network(path: Path) -> None:
    network = construct("dmw", {"image": 32, "stem": 4, "layers": (1, 1), "growth": 2})
    save_similarity(network, path)


def write_checkpoint(path: Path) -> None:
    save_checkpoint(Checkpoint(3, {"weight": torch.arange(6.0)}), path)


def write_data_set(path: Path) -> None:
    """DeepFluoro's layout, one projection."""
    import h5py

    def put(group: Any, values: np.ndarray) -> None:
        group["pixels"] = values
        axes = values.ndim
        group["spacing"], group["origin"] = np.ones((axes, 1)), np.zeros((axes, 1))
        group["dir-mat"] = np.eye(axes)

    with h5py.File(path, "w") as file:
        matrix = np.array([[-500.0, 0, 100], [0, -500, 100], [0, 0, 1]])
        for name, value in {
            "intrinsic": matrix,
            "extrinsic": np.eye(4),
            "num-rows": 200,
            "num-cols": 200,
            "pixel-row-spacing": 2.0,
            "pixel-col-spacing": 2.0,
        }.items():
            file[f"proj-params/{name}"] = value
        specimen = file.create_group("17-1882")
        put(specimen.create_group("vol"), np.zeros((3, 4, 5), np.float32))
        projection = specimen.create_group("projections/000")
        put(projection.create_group("image"), np.ones((200, 200), np.float32))
        away = np.eye(4)
        away[2, 3] = -700.0
        for bone in ("pelvis", "left-femur", "right-femur"):
            projection[f"gt-poses/cam-to-{bone}-vol"] = away
            projection[f"gt-poses/{bone}-good-fov"] = 1
        projection["rot-180-for-up"] = 0


# ---- formats


class Format(NamedTuple):
    """How a whole file is made, how it is read, and how many bytes from its start are damaged."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    header: int = 1 << 20


def _volume(path: Path) -> None:
    drrkit.write_volume(volume(), path)


def _dicom(path: Path) -> None:
    write_dicom(path, PIXELS, **carm_tags(PatientOrientation=["L", "F"]))


def _coded(path: Path) -> None:
    """An X-ray as RLE, or as what SimpleITK calls the file's name."""
    import pydicom
    import SimpleITK as sitk
    from pydicom.uid import RLELossless

    _dicom(path)
    data = pydicom.dcmread(path)
    if path.stem.endswith("rle"):
        data.compress(RLELossless)
    else:
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor(path.stem.rpartition("-")[2].upper())
        writer.Execute(sitk.GetImageFromArray(PIXELS[None]))
        coded = pydicom.dcmread(path)
        data.PixelData = coded.PixelData
        data.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
        data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.save_as(path)


def _coloured(path: Path) -> None:
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    depth = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    colours = np.arange(PIXELS.size * 3, dtype=np.uint8).tobytes()
    write_dicom(path, PIXELS, **carm_tags(**tags, **depth, PixelData=colours))


def _photograph(path: Path) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(PIXELS.astype(np.uint8)), str(path))


def _calibration(path: Path) -> Any:
    return read_calibration(path, SIZE, 1020.0).view.world_to_camera


def _mayacam(version: int) -> Callable[[Path], None]:
    camera = drrkit.CArm(1020.0, SIZE, 2.5)  # square pixels: version 1 knows no others
    return lambda path: conversions.write_mayacam(path, camera, pose(), version)


FORMATS: dict[str, Format] = {
    "volume.nii": Format(_volume, drrkit.read_volume, 352),
    "volume.nii.gz": Format(_volume, drrkit.read_volume),
    "volume.mha": Format(_volume, drrkit.read_volume, 300),
    "volume.nrrd": Format(_volume, drrkit.read_volume, 300),
    "series": Format(_volume, drrkit.read_volume, 1600),
    "enhanced.dcm": Format(write_enhanced, drrkit.read_volume, 4000),
    "xray.dcm": Format(_dicom, drrkit.read_xray, 1200),
    "rle.dcm": Format(_coded, drrkit.read_xray),
    "jpeg.dcm": Format(_coded, drrkit.read_xray),
    "jpeg2000.dcm": Format(_coded, drrkit.read_xray),
    "colours.dcm": Format(_coloured, drrkit.read_xray, 1200),
    "xray.npy": Format(lambda p: np.save(p, PIXELS), drrkit.read_xray, 128),
    "xray.png": Format(write_picture, drrkit.read_xray),
    "xray.tif": Format(write_picture, drrkit.read_xray),
    "xray.jpg": Format(_photograph, drrkit.read_xray),
    "xray.bmp": Format(_photograph, drrkit.read_xray, 60),
    "xray.nrrd": Format(write_picture, drrkit.read_xray, 300),
    "mayacam.txt": Format(_mayacam(2), _calibration),
    "mayacam.csv": Format(_mayacam(1), _calibration),
    "opencv.yml": Format(write_storage, _calibration),
    "opencv.xml": Format(write_storage, _calibration),
    "opencv.json": Format(write_storage, _calibration),
    "pose.json": Format(lambda p: write_pose(p, pose(), CAMERA), lambda p: read_pose(p)[0]),
    "slicer.tfm": Format(
        lambda p: conversions.write_itk_transform(p, pose()), conversions.read_itk_transform
    ),
    "autoscoper.tra": Format(
        lambda p: conversions.write_autoscoper(p, pose()), conversions.read_autoscoper
    ),
    "rtk.xml": Format(write_geometry, lambda p: torch.stack(conversions.read_rtk_geometry(p))),
    "landmarks.csv": Format(write_landmarks, lambda p: Landmarks.read(p).points),
    "landmarks.json": Format(write_landmarks, lambda p: Landmarks.read(p).points),
    "points.fcsv": Format(write_markups, lambda p: Landmarks.read(p).points),
    "points.mrk.json": Format(write_markups, lambda p: Landmarks.read(p).points),
    "network.pt": Format(write_network, load_similarity),
    "field.pt": Format(write_field, fields.load_field),
    "checkpoint.pt": Format(write_checkpoint, load_checkpoint),
    "deepfluoro.h5": Format(write_data_set, lambda p: read_deepfluoro_xray(p, "17-1882", 0).xray),
}


# ---- damage


def damaged(whole: bytes, length: int, chance: random.Random) -> bytes:
    """The file with bits flipped, bytes replaced, a piece cut out, doubled, or its end missing."""
    content = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(length, len(content)))
        kind = chance.random()
        if kind < 0.35:
            content[at] ^= 1 << chance.randrange(8)
        elif kind < 0.6:
            content[at] = chance.choice((0, 255, 45, 48, 57, 92, chance.randrange(256)))
        elif kind < 0.75:
            size = chance.choice((1, 2, 4, 8))
            value = chance.choice((b"\xff", b"\x00", b"\x7f", b"9")) * size
            content[at : at + size] = value
        elif kind < 0.85:
            del content[at : at + chance.randint(1, 16)]
        elif kind < 0.95:
            content[at:at] = content[at : at + chance.randint(1, 16)]
        else:
            del content[chance.randrange(len(content)) :]
        if not content:
            return b""
    return bytes(content)


def damage(whole: Path, target: Path, length: int, chance: random.Random) -> None:
    """A damaged copy of a file, or of a folder with one damaged file."""
    if whole.is_file():
        target.write_bytes(damaged(whole.read_bytes(), length, chance))
        return
    target.mkdir()
    parts = sorted(whole.iterdir())
    for part in parts:
        (target / part.name).write_bytes(part.read_bytes())
    damage(part := chance.choice(parts), target / part.name, length, chance)


# ---- reading


def read_all(folder: Path) -> Iterator[str]:
    """A line per answer: the file's name, and `read`, `named` or what is wrong."""
    for line in sys.stdin:
        path = folder / line.strip()
        read = FORMATS[path.name.split("-", 1)[1]].read
        try:
            found = read(path)
        except (ValueError, TypeError, OSError) as error:
            text = str(error)
            answer = "named" if path.name in text or "frames" in text else f"unnamed {text[:200]}"
        except MemoryError:
            answer = "named"
        except Exception as error:
            answer = f"escaped {type(error).__name__}: {error}"[:300]
        else:
            answer = sense(found)
        answer = answer.replace("\n", " ")
        yield f"{path.name} {answer}"


def sense(found: object) -> str:
    """Whether what was read can be what it says it is."""
    if isinstance(found, drrkit.Volume):
        numbers = (*found.spacing, *found.origin)
        good = all(map(math.isfinite, numbers)) and min(found.spacing) > 0
        return "read" if good and found.values.numel() > 0 else f"nonsense {found!r}"[:200]
    image = getattr(found, "image", found)
    if isinstance(image, Tensor):
        good = image.dim() >= 2 and image.numel() > 0 and bool(torch.isfinite(image).all())
        return "read" if good else f"nonsense {image!r}"[:200]
    return "read"  # a network or a checkpoint: archives have checksums


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # decoders print remarks of their own
    for answer in read_all(Path(sys.argv[1])):
        print(answer, file=answers, flush=True)
