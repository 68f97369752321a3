"""The geometry that DICOM writes beside an X-ray (XA, RF, DX, CR).

Sources: DICOM PS3.3, X-Ray Positioner, XA Positioner, DX Detector, Display Shutter and X-Ray
Collimator modules.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from drrkit.geometry import Camera, CArm
from drrkit.xray.read.dicom_elements import Elements

MODALITIES = ("XA", "RF", "DX", "CR", "RG", "PX", "IO")

SHARED, PER_FRAME = "5200|9229", "5200|9230"
"""Functional groups of enhanced objects."""

_LETTERS = {
    "L": (1.0, 0.0, 0.0),
    "R": (-1.0, 0.0, 0.0),
    "P": (0.0, 1.0, 0.0),
    "A": (0.0, -1.0, 0.0),
    "H": (0.0, 0.0, 1.0),
    "F": (0.0, 0.0, -1.0),
}
"""Patient Orientation's letters in LPS."""


class Header:
    """Fields of a DICOM file by their "gggg|eeee", as text or numbers; None where absent.

    What an enhanced object (Enhanced XA, XRF) says in its functional groups counts, too: of all
    frames, or else of the first.
    """

    def __init__(self, source: Path, image: Any, elements: Elements) -> None:
        self.source, self.image, self.elements = source, image, elements

    def text(self, key: str) -> str | None:
        if self.image.HasMetaDataKey(key):
            return self.image.GetMetaData(key).strip().strip("\0").strip() or None
        groups = [*self.elements.within(SHARED)[:1], *self.elements.within(PER_FRAME)[:1]]
        return next((text for group in groups if (text := _inside(group, key))), None)

    def numbers(self, key: str, count: int | None = None) -> list[float] | None:
        """Raises ValueError when there are other than `count` finite numbers."""
        text = self.text(key)
        return None if text is None else self._parsed(key, text, count)

    def per_frame(self, key: str) -> list[float] | None:
        """The number that the functional groups of each frame say; None where one says nothing."""
        texts = [_inside(group, key) for group in self.elements.within(PER_FRAME)]
        if not texts or None in texts:
            return None
        return [self._parsed(key, text, 1)[0] for text in texts if text is not None]

    def _parsed(self, key: str, text: str, count: int | None) -> list[float]:
        try:
            values = [float(word) for word in text.split("\\")]
        except ValueError:
            values = []
        wrong = count is not None and len(values) != count
        if not values or wrong or not all(map(math.isfinite, values)):
            wanted = "numbers" if count is None else f"{count} numbers"
            raise ValueError(
                f"{self.source}: ({key.replace('|', ',')}): expected {wanted}, got {text[:60]!r}"
            )
        return values

    def positive(self, key: str) -> float | None:
        """A number; zero, which many machines write for unknown, is None."""
        values = self.numbers(key, 1)
        if values is None or values[0] == 0.0:
            return None
        if values[0] < 0:
            raise ValueError(
                f"{self.source}: ({key.replace('|', ',')}): expected a number > 0, got {values[0]}"
            )
        return values[0]


class Description(NamedTuple):
    """What a header says; fields as drrkit.xray.Xray's."""

    kind: Literal["line", "intensity", "display", "inverted"] | None
    camera: Camera | None
    pixel_spacing: tuple[float, float] | None
    mask: Tensor | None
    primary_deg: Tensor | None
    secondary_deg: Tensor | None
    sod: float | None
    flip: tuple[int, ...]
    warnings: tuple[str, ...]


def _inside(group: Any, key: str) -> str | None:
    """The first text of a field in nested sequences."""
    found = group.get(key)
    if isinstance(found, str):
        return found or None
    items = [item for value in group.values() if isinstance(value, list) for item in value]
    return next((text for item in items if (text := _inside(item, key))), None)


def is_dicom(path: Path) -> bool:
    """Whether the file has the preamble of DICOM's file format."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def describe(header: Header, size: tuple[int, int], frames: int) -> Description:
    """Kind, camera, angles and mask of an X-ray's header; size (rows, cols).

    Raises ValueError for a modality that is no projection, and for fields that mean nothing.
    """
    modality = header.text("0008|0060")
    if modality is not None and modality not in MODALITIES:
        raise ValueError(
            f"{header.source}: expected an X-ray ({', '.join(MODALITIES[:4])}), got modality "
            f"{modality}; a CT is read by read_volume"
        )
    warnings: list[str] = []
    sdd = header.positive("0018|1110")
    sod = _sod(header, sdd, warnings) if modality in ("XA", "RF") else None
    spacing = _pixel_spacing(header, warnings)
    principal_point = _principal_point(header, size, spacing, warnings)
    camera = None
    if sdd is not None and spacing is not None:
        camera = CArm(sdd, size, spacing, principal_point)
    elif sdd is None:
        warnings.append(
            "the source-to-detector distance (0018,1110) is not in the file: sdd says it"
        )
    if "0028|3000" in header.elements.values:
        warnings.append("the Modality LUT (0028,3000) is not applied: pixels are the stored ones")
    primary = _angles(header, "0018|1510", "0018|1520", frames)
    secondary = _angles(header, "0018|1511", "0018|1521", frames)
    flip = _flip(header, primary, secondary, warnings)
    return Description(
        _kind(header, modality),
        camera,
        spacing,
        _shutter(header, size),
        primary,
        secondary,
        sod,
        flip,
        tuple(warnings),
    )


def flipped_camera(camera: Camera, flip: tuple[int, ...]) -> Camera:
    """The camera of the image flipped along -1 (columns) or -2 (rows)."""
    matrix = camera.K.clone()
    for dim in flip:
        axis = 0 if dim == -1 else 1
        matrix[axis, 2] = camera.size[dim] - 1 - matrix[axis, 2]
    return Camera(matrix, camera.size, camera.sdd, camera.beam)


def _sod(header: Header, sdd: float | None, warnings: list[str]) -> float | None:
    """Source to isocentre; a radiograph's (0018,1111) would be that to the table."""
    sod = header.positive("0018|1111") or header.positive("0018|9402")
    magnification = header.positive("0018|1114")
    if sod is None and sdd is not None and magnification is not None and magnification > 1.0:
        warnings.append(
            "source-to-isocentre distance from (0018,1110) over the magnification (0018,1114): "
            "(0018,1111) is not in the file"
        )
        return sdd / magnification
    return sod


def _pixel_spacing(header: Header, warnings: list[str]) -> tuple[float, float] | None:
    """(row, col) mm at the detector."""
    spacing = header.numbers("0018|1164", 2)
    if spacing is not None and min(spacing) > 0:
        return spacing[0], spacing[1]
    element, binning = header.numbers("0018|7022", 2), header.numbers("0018|701a", 2)
    if element is not None and binning is not None and min(*element, *binning) > 0:
        warnings.append(
            "pixel spacing from the detector's elements (0018,7022) and their binning (0018,701A): "
            "Imager Pixel Spacing (0018,1164) is not in the file"
        )
        return element[0] * binning[0], element[1] * binning[1]
    spacing = header.numbers("0028|0030", 2)
    if spacing is None or min(spacing) <= 0:
        warnings.append(
            "the pixel spacing at the detector (0018,1164) is not in the file: pixel_spacing "
            "says it"
        )
        return None
    # Pixel Spacing may be calibrated to the patient: then the magnification takes it back.
    magnification = header.positive("0018|1114") or 1.0
    calibrated = header.text("0028|0A02") or header.text("0028|0a02")
    if magnification == 1.0:
        note = f", calibrated by {calibrated}," if calibrated else ""
        warnings.append(
            f"pixel spacing from (0028,0030){note} taken as that of the detector: "
            "Imager Pixel Spacing (0018,1164) is not in the file"
        )
        return spacing[0], spacing[1]
    warnings.append(
        "pixel spacing at the detector from (0028,0030) times the magnification (0018,1114)"
    )
    return spacing[0] * magnification, spacing[1] * magnification


def _principal_point(
    header: Header,
    size: tuple[int, int],
    spacing: tuple[float, float] | None,
    warnings: list[str],
) -> tuple[float, float] | None:
    """(col, row): the middle of the active detector area in the stored image; None: the centre.

    DICOM does not hold the foot of the source. C-arms are built with it in the detector's middle,
    of which the field of view may be an off-centre part.
    """
    origin = header.numbers("0018|7030", 2)
    active = header.numbers("0018|7026", 2)
    element = header.numbers("0018|7022", 2)
    if origin is None or active is None or element is None or spacing is None:
        return None
    start = header.numbers("0018|7028", 2) or [0.0, 0.0]
    turn = int((header.numbers("0018|7032", 1) or [0.0])[0]) % 360
    rows, cols = size if turn in (0, 180) else size[::-1]
    pitch = spacing if turn in (0, 180) else spacing[::-1]
    offset = []
    for axis, count in ((0, rows), (1, cols)):
        middle = start[axis] * element[axis] + active[axis] / 2
        field = origin[axis] * element[axis] + count * pitch[axis] / 2
        offset.append((middle - field) / pitch[axis])
    down, right = offset  # in pixels of the field of view as it lies on the detector
    for _ in range(turn // 90):  # a turn by 90 degrees clockwise: down becomes left
        down, right = right, -down
    if (header.text("0018|7034") or "NO") == "YES":
        right = -right
    if max(abs(down), abs(right)) > 0.5:
        warnings.append(
            f"the field of view lies {right:+.1f} columns and {down:+.1f} rows off the detector's "
            "middle, where the foot of the source is assumed"
        )
    return (size[1] - 1) / 2 + right, (size[0] - 1) / 2 + down


def _angles(header: Header, first: str, increments: str, frames: int) -> Tensor | None:
    """An angle a frame, [F] degrees; runs hold the first one and each frame's difference to it."""
    own = header.per_frame(first)
    if own is not None and len(own) == frames:
        return torch.tensor(own, dtype=torch.float64)
    start = header.numbers(first, 1)
    if start is None:
        return None
    steps = header.numbers(increments)
    if steps is None or len(steps) != frames:
        steps = [0.0] * frames
    return start[0] + torch.tensor(steps, dtype=torch.float64)


def _flip(
    header: Header, primary: Tensor | None, secondary: Tensor | None, warnings: list[str]
) -> tuple[int, ...]:
    """What turns the stored image into the one seen from the source.

    Patient Orientation tells, when the angles are known; without it the image is taken to be
    displayed as DICOM means it, head up and seen from the detector.
    """
    orientation = header.text("0020|0020")
    if primary is None or secondary is None:
        return (-1,)
    p, s = float(primary[0].deg2rad()), float(secondary[0].deg2rad())
    # The camera of view_carm(base="PA"): x to the right as seen from the source, y down.
    right = torch.tensor((-math.cos(p), -math.sin(p), 0.0))
    down = torch.tensor((math.sin(p) * math.sin(s), -math.cos(p) * math.sin(s), -math.cos(s)))
    words = orientation.split("\\") if orientation else []
    if len(words) != 2 or not all(word and word[0] in _LETTERS for word in words):
        return (-1,)
    along_cols, along_rows = (torch.tensor(_LETTERS[word[0]]) for word in words)
    cols, rows = float(along_cols @ right), float(along_rows @ down)
    if min(abs(cols), abs(rows)) < 0.3:
        warnings.append(
            f"Patient Orientation {orientation} does not fit the positioner angles "
            f"({math.degrees(p):g}, {math.degrees(s):g} degrees): the image may be turned; taken "
            "as seen from the detector"
        )
        return (-1,)
    return (*((-2,) if rows < 0 else ()), *((-1,) if cols < 0 else ()))


def _kind(
    header: Header, modality: str | None
) -> Literal["line", "intensity", "display", "inverted"] | None:
    """What larger stored values mean."""
    relation, sign = header.text("0028|1040"), header.numbers("0028|1041", 1)
    if relation in ("LIN", "LOG") and sign is not None:
        if sign[0] > 0:  # larger values are more X-rays
            return "intensity" if relation == "LIN" else "inverted"
        return "display" if relation == "LIN" else "line"
    photometric = header.text("0028|0004")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    # Fluoroscopy is shown with bone dark, radiographs with bone bright; MONOCHROME1 swaps.
    bone_bright = modality not in ("XA", "RF")
    if photometric == "MONOCHROME1":
        bone_bright = not bone_bright
    if bone_bright:
        return "display"
    return "intensity" if relation == "LIN" else "inverted"


def _shutter(header: Header, size: tuple[int, int]) -> Tensor | None:
    """1 inside shutters and collimators, [1, 1, rows, cols]; None where there are none."""
    inside = torch.ones(size, dtype=torch.bool)
    row = torch.arange(1, size[0] + 1, dtype=torch.float64)[:, None]
    col = torch.arange(1, size[1] + 1, dtype=torch.float64)[None]
    for group in ("160", "170"):  # display shutter, collimator: the same fields twice
        shapes = (header.text(f"0018|{group}0") or "").split("\\")
        if "RECTANGULAR" in shapes:
            left, right, upper, lower = (
                header.numbers(f"0018|{group}{digit}", 1) for digit in "2468"
            )
            inside &= (col > left[0]) if left else True
            inside &= (col < right[0]) if right else True
            inside &= (row > upper[0]) if upper else True
            inside &= (row < lower[0]) if lower else True
        tens = group[:2] + str(int(group[2]) + 1)
        if "CIRCULAR" in shapes:
            center = header.numbers(f"0018|{tens}0", 2)
            radius = header.positive(f"0018|{tens}2")
            if center and radius:
                inside &= (row - center[0]) ** 2 + (col - center[1]) ** 2 <= radius**2
        if "POLYGONAL" in shapes:
            corners = header.numbers(f"0018|{group[:2]}{int(group[2]) + 2}0")
            if corners and len(corners) >= 6 and len(corners) % 2 == 0:
                inside &= _polygon(torch.tensor(corners, dtype=torch.float64), row, col)
    return None if bool(inside.all()) else inside.float()[None, None]


def _polygon(corners: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Which pixels lie inside the polygon of corners (row, col), by crossings to their right."""
    points = corners.reshape(-1, 2)
    inside = torch.zeros(row.shape[0], col.shape[1], dtype=torch.bool)
    for (r0, c0), (r1, c1) in zip(points, points.roll(-1, 0), strict=True):
        if r0 == r1:
            continue
        spans = (row > torch.minimum(r0, r1)) & (row <= torch.maximum(r0, r1))
        crossing = c0 + (row - r0) * (c1 - c0) / (r1 - r0)
        inside ^= spans & (col < crossing)
    return inside
