"""CT series of DICOM slices or frames: choosing, checking, stacking, reading.

A slice's place comes from Image Position and Orientation (Patient) alone, its values from Rescale
Slope and Intercept of its own, and what its header calls padding is air.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drrkit.volume.dicom_file import INDEX_STORAGE, PIXEL_KINDS, DicomFile, is_dicom, named
from drrkit.volume.dicom_pixels import StoredPixels, is_tissue, stored_pixels
from drrkit.volume.rasters import MOST_BYTES, Raster, axes_letters

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
CT_CLASSES = (CT_IMAGE_STORAGE, f"{CT_IMAGE_STORAGE}.1", f"{CT_IMAGE_STORAGE}.2")
"""CT, Enhanced CT and Legacy Converted Enhanced CT Image Storage."""
STANDARD_IMAGE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.")
CT_OR_CAPTURE = re.compile(STANDARD_IMAGE.pattern + r"[27](\.\d+)*$")
COMPUTED = re.compile(
    "MIP|PERF|CBF|CBV|MTT|TTP|TMAX|IODINE|Z_EFF|EFF_Z|SCREEN|MAXIMUM|MINIMUM|STD_DEV|SUBTRACT|"
    "DIVISION|MULTIPLIC|QUANTITY"
)
"""Words of Image Type for maps and projections that are computed from a CT."""
SAME_MM, ROUNDED_MM, UNEVEN = 0.01, 0.11, 0.1
"""Slices nearer than the first are one; positions may be off an even stack by the second, the
rounding to 0.1 mm, or by the third part of a step."""
ONE_SLICE = "one slice of a series: give the folder that holds them all"


class Slice(NamedTuple):
    """A slice of a series: one frame of a file, with its place in LPS mm and spacing (row, col)."""

    file: DicomFile
    frame: int
    position: np.ndarray
    axes: np.ndarray
    spacing: np.ndarray


def read_series(place: Path, series: str | None, air: float, dtype: Any) -> Raster:
    """The one CT series in a folder, or the one named, or a multi-frame file.

    Args:
        place: a folder that holds the slices, directly, or one enhanced file.
        series: a Series Instance UID; may be None when the folder holds one CT series only.
        air: the value of padding.
        dtype: float32 or float64.

    Raises:
        ValueError: no CT there, several series and none chosen, an unknown one, slices without a
            place or of different sizes, slices missing, or files that cannot be read.
    """
    notes: list[str] = []
    facts = {"format": "DICOM series"}
    files = _chosen(place, series, notes)
    files = _without_localizers(place, files, notes)
    slices = [piece for file in files for piece in _slices(file)]
    if place.is_file() and len(slices) == 1:
        notes.append(ONE_SLICE)
    _check_alike(place, slices)
    normal = np.cross(*slices[0].axes)
    slices.sort(key=lambda piece: float(piece.position @ normal))
    rows, cols = (slices[0].file.count(name) for name in ("Rows", "Columns"))
    if len(slices) * rows * cols * 8 > MOST_BYTES:
        raise ValueError(f"{place}: {len(slices)} slices of {rows} x {cols} are more than is meant")
    for kind in dict.fromkeys(file.text("ImageType") or "" for file in files):
        if COMPUTED.search(kind):
            notes.append(
                f"{named('ImageType')} is {kind}: a map or a projection computed from a CT, whose "
                "values may be no Hounsfield units"
            )
    for keyword in ("FrameOfReferenceUID", "ConvolutionKernel", "KVP"):
        count = len({file.text(keyword) for file in files} - {None})
        if count > 1:
            notes.append(f"{named(keyword)}: {count} different ones: several scans in one series?")
    reader = _Values(air, dtype, notes)
    slices = _without_doubles(place, slices, reader, notes)
    pixels = np.empty((len(slices), rows, cols), dtype)
    for k, piece in enumerate(slices):
        reader.values(piece, pixels[k])
    reader.conclude(facts)
    raster = _stacked(place, slices, pixels, air, notes)
    first = slices[0].file
    facts |= {
        "modality": first.text("Modality") or "not said",
        "series": first.text("SeriesInstanceUID") or "not said",
        "slices": str(len(slices)),
        "orientation": axes_letters(raster.direction) + " (where x, y, z of the stack point)",
        "patient position": first.text("PatientPosition") or "not said",
    }
    told = dict.fromkeys((*notes, *(note for file in files for note in file.notes)))
    return raster._replace(notes=tuple(told), facts=facts)


# ---- choosing


def _chosen(place: Path, series: str | None, notes: list[str]) -> list[DicomFile]:
    """The files of the series that is wanted."""
    files = _images(place)
    found: dict[str, list[DicomFile]] = {}
    for file in files:
        found.setdefault(file.text("SeriesInstanceUID") or "without a UID", []).append(file)
    if not found:
        raise ValueError(
            f"{place}: no DICOM series in this folder (folders within it are not searched)"
        )
    listed = "; ".join(f"{uid} ({_summary(part)})" for uid, part in found.items())
    if series is not None and series not in found:
        raise ValueError(
            f"series: {series!r} is not in {place}, which holds {len(found)} series: {listed}"
        )
    if series is not None:
        return _checked_ct(place, found[series])
    scans = [
        uid for uid, part in found.items() if any(_is_ct(f) and not f.is_localizer() for f in part)
    ]
    if len(scans) > 1:
        placed = [u for u in scans if any(f.words("ImagePositionPatient", 0) for f in found[u])]
        scans = placed if len(placed) == 1 else scans
    if len(scans) > 1:
        raise ValueError(
            f"choose with series=... in {place}, which holds {len(found)} series: {listed}"
        )
    if not scans:
        return _checked_ct(place, files)
    others = [_summary(part) for uid, part in found.items() if uid != scans[0]]
    if others:
        notes.append(f"other series in the folder are left out: {'; '.join(others)}")
    return _checked_ct(place, found[scans[0]])


def _images(place: Path) -> list[DicomFile]:
    """The files with pixels; indexes and objects without pixels are none."""
    found = []
    for path in sorted(place.iterdir()) if place.is_dir() else [place]:
        if not path.is_file() or not is_dicom(path):
            continue
        file = DicomFile(path)
        kind = file.sop_class
        if kind in CT_CLASSES and not file.has_pixels:
            raise ValueError(f"{path}: a CT slice that cannot be read; it is truncated or damaged")
        if kind != INDEX_STORAGE and file.has_pixels:
            found.append(file)
    return found


def _checked_ct(place: Path, files: list[DicomFile]) -> list[DicomFile]:
    """Raises ValueError, naming the modality, for files that hold no Hounsfield units."""
    wrong = [file for file in files if not _is_ct(file)]
    if wrong:
        from pydicom.uid import UID

        kind = f", {UID(wrong[0].sop_class).name}" if wrong[0].sop_class else ""
        raise ValueError(
            f"{wrong[0].source}: expected a CT (Modality (0008,0060) CT), got "
            f"{wrong[0].text('Modality') or 'no modality'}{kind} "
            f"({_summary(wrong)} in {place}); its values are no Hounsfield units"
        )
    return files


def _is_ct(file: DicomFile) -> bool:
    modality, kind = file.text("Modality"), file.sop_class
    if STANDARD_IMAGE.match(kind) and not CT_OR_CAPTURE.match(kind):
        return False
    return modality == "CT" or (modality is None and kind in CT_CLASSES)


def _summary(files: list[DicomFile]) -> str:
    """A series in words: CT 'thorax', 300 files."""
    description = files[0].text("SeriesDescription")
    quoted = f" {description!r}" if description else ""
    return f"{files[0].text('Modality') or 'no modality'}{quoted}, {len(files)} files"


def _without_localizers(place: Path, files: list[DicomFile], notes: list[str]) -> list[DicomFile]:
    kept = [file for file in files if not file.is_localizer()]
    if not kept:
        raise ValueError(
            f"{place}: expected a CT, got a localizer (Image Type (0008,0008)): it is a projection"
        )
    if len(kept) < len(files):
        notes.append(f"{len(files) - len(kept)} localizer images of the series are left out")
    return kept


# ---- slices


def _slices(file: DicomFile) -> list[Slice]:
    """The slices of a file, one per frame."""
    found = []
    if file.frames > 1 and file.frames != file.described_frames:
        raise ValueError(
            f"{file.source}: Number of Frames (0028,0008) is {file.frames}, but where they lie is "
            f"said of {file.described_frames}"
        )
    for k in range(file.frames):
        if file.is_localizer(k):
            continue
        position = np.array(file.needed("ImagePositionPatient", 3, k))
        turn = np.array(file.needed("ImageOrientationPatient", 6, k)).reshape(2, 3)
        lengths = np.linalg.norm(turn, axis=1)
        if not np.allclose(lengths, 1.0, atol=1e-2) or abs(turn[0] @ turn[1]) > 1e-2:
            raise ValueError(
                f"{file.source}: {named('ImageOrientationPatient')}: expected two unit vectors at "
                f"right angles, got {turn.ravel().tolist()}"
            )
        row = turn[0] / lengths[0]
        column = turn[1] - (turn[1] @ row) * row
        spacing = np.array(file.needed("PixelSpacing", 2, k))
        if spacing.min() <= 0:
            raise ValueError(
                f"{file.source}: {named('PixelSpacing')}: expected two numbers > 0, got "
                f"{spacing.tolist()}"
            )
        axes = np.stack((row, column / np.linalg.norm(column)))
        found.append(Slice(file, k, position, axes, spacing))
    if not found:
        raise ValueError(f"{file.source}: expected a CT, got localizer frames only")
    return found


def _check_alike(place: Path, slices: list[Slice]) -> None:
    """Raises ValueError naming the first slice that differs from the first of all."""
    first = slices[0]
    sizes = Counter((p.file.count("Rows"), p.file.count("Columns")) for p in slices)
    usual = sizes.most_common(1)[0][0]
    for piece in slices:
        size, name = (piece.file.count("Rows"), piece.file.count("Columns")), piece.file.source
        if size != usual:
            raise ValueError(
                f"{name}: Rows x Columns (0028,0010), (0028,0011) are {size[0]} x {size[1]}, of "
                f"the other slices {usual[0]} x {usual[1]}: choose one series, or remove the file"
            )
        if not np.allclose(piece.spacing, first.spacing, rtol=3e-4):
            raise ValueError(
                f"{name}: {named('PixelSpacing')} is {piece.spacing.tolist()}, of "
                f"{first.file.source.name} {first.spacing.tolist()}: the slices differ"
            )
        if np.abs(piece.axes - first.axes).max() > 2e-3:
            raise ValueError(
                f"{place}: the slices of the series have different orientations: {name.name} "
                f"{piece.axes.ravel().tolist()}, {first.file.source.name} "
                f"{first.axes.ravel().tolist()}"
            )


class _Values:
    """Slices in HU, with what is to be said of all of them at the end."""

    def __init__(self, air: float, dtype: Any, notes: list[str]) -> None:
        self.air, self.dtype, self.notes = air, dtype, notes
        self.padded, self.tissue, self.scales = 0, 0, set()
        self._last: tuple[DicomFile, StoredPixels] | None = None

    def values(self, piece: Slice, values: np.ndarray) -> np.ndarray:
        """Fills [rows, cols] with slope and intercept of this slice, padding as air."""
        file, k = piece.file, piece.frame
        if self._last is None or self._last[0] is not file:
            try:
                self._last = file, stored_pixels(file)
            except ValueError as error:
                text = str(error)
                if "truncated" in text:
                    text = text.replace(": ", ": a CT slice that cannot be read; it is ", 1)
                raise ValueError(text) from error
            file.dataset.pop("PixelData", None)  # the header alone is kept
        stored = self._last[1]
        slope, intercept = self._rescaling(file, k)
        self.scales.add((slope, intercept))
        if slope == 1.0:
            np.add(stored.values[k], intercept, values, dtype=values.dtype, casting="unsafe")
        else:
            np.multiply(stored.values[k], slope, values, dtype=values.dtype, casting="unsafe")
            values += intercept
        if stored.padded is not None:
            padded = stored.padded[k]
            names = (f"{kind}PixelPaddingValue" for kind in PIXEL_KINDS)
            meant = slope * next(v for n in names if (v := file.number(n)) is not None) + intercept
            self.tissue += int(padded.sum()) if is_tissue(np.array(meant)) else 0
            self.padded += int(padded.sum())
            values[padded] = self.air
        return values

    def _rescaling(self, file: DicomFile, k: int) -> tuple[float, float]:
        found = []
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
            known = bool(file.words(keyword, k))
            found.append(file.needed(keyword, 1, k)[0] if known else default)
            if not known:
                self._note(f"{named(keyword)} is not in the file: {default:g} is assumed")
        if found[0] == 0.0:
            raise ValueError(f"{file.source}: {named('RescaleSlope')} is 0: no values")
        kind = file.text("RescaleType", k)
        if kind not in (None, "HU", "US"):
            self._note(f"{named('RescaleType')} is {kind}, not HU: values are taken for HU")
        if "ModalityLUTSequence" in file.dataset:
            self._note("the Modality LUT (0028,3000) is not applied")
        return found[0], found[1]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def conclude(self, facts: dict[str, str]) -> None:
        """What was found in all slices together."""
        scales = sorted(self.scales)
        one = f"value = {scales[0][0]:g} x stored + {scales[0][1]:g}"
        facts["rescale"] = one if len(scales) == 1 else f"{len(scales)} different ones"
        if self.padded:
            facts["padding"] = f"{self.padded} voxels are padding: {self.air:g}"
        if self.tissue:
            self._note(
                f"padding (0028,0120) has values of tissue in {self.tissue} voxels, which are air "
                "now"
            )


# ---- stacking


def _without_doubles(
    place: Path, slices: list[Slice], reader: _Values, notes: list[str]
) -> list[Slice]:
    """Without slices that stand at the place of another, if their pixels are the same."""
    kept = slices[:1]
    for piece in slices[1:]:
        if np.linalg.norm(piece.position - kept[-1].position) > SAME_MM:
            kept.append(piece)
        elif not np.array_equal(_alone(reader, piece), _alone(reader, kept[-1])):
            raise ValueError(
                f"{place}: two different slices at the same place, {kept[-1].file.source.name} and "
                f"{piece.file.source.name} ({piece.position.tolist()} mm): several phases or "
                "reconstructions in one series; leave one of them in the folder"
            )
    if len(kept) < len(slices):
        notes.append(f"{len(slices) - len(kept)} slices are there twice: one of each is used")
    return kept


def _alone(reader: _Values, piece: Slice) -> np.ndarray:
    """The values of a slice without a trace in what the reader concludes."""
    again = DicomFile(piece.file.source)
    values = np.empty([again.count(name) for name in ("Rows", "Columns")], reader.dtype)
    return _Values(reader.air, reader.dtype, []).values(piece._replace(file=again), values)


def _stacked(
    place: Path, slices: list[Slice], pixels: np.ndarray, air: float, notes: list[str]
) -> Raster:
    """The volume of sorted slices; resampled where they are not an even, straight stack."""
    row, column = slices[0].axes
    axes = np.stack((row, column, np.cross(row, column)))
    places = (np.array([piece.position for piece in slices]) - slices[0].position) @ axes.T
    (row_step, col_step), origin = slices[0].spacing, slices[0].position
    if len(slices) == 1:
        step = slices[0].file.positive("SliceThickness")
        if step is None:
            notes.append("a single slice without Slice Thickness (0018,0050): 1 mm is assumed")
        return _raster(pixels, (col_step, row_step, step or 1.0), origin, axes)
    along = places[:, 2]
    gaps = np.diff(along)
    step = float(along[-1]) / len(gaps)
    if gaps.min() < SAME_MM:
        raise ValueError(f"{place}: slices of the series stand at the same place")
    tolerance = min(max(UNEVEN * step, ROUNDED_MM), 0.3 * step)
    drift = places[:, :2] - np.outer(along / along[-1], places[-1, :2])
    if np.abs(drift).max() > max(tolerance, 0.1 * min(row_step, col_step)):
        k = int(np.abs(drift).max(1).argmax())
        raise ValueError(
            f"{place}: the slices are not an even, straight stack: {slices[k].file.source.name} is "
            f"{np.abs(drift).max():.3g} mm off the line of the others: slices of several series?"
        )
    if np.linalg.norm(places[-1, :2]) > max(tolerance, 1e-3 * along[-1]):
        angle = math.degrees(math.atan2(np.linalg.norm(places[-1, :2]), along[-1]))
        notes.append(f"the gantry was tilted by {angle:.3g} degrees: resampled to upright slices")
        shifts = places[:, 1::-1] / (row_step, col_step)
        pixels, corner = _slid(pixels, shifts, air)
        origin = origin + (corner * (row_step, col_step))[::-1] @ axes[:2]
    if np.abs(along - step * np.arange(len(slices))).max() > tolerance:
        _refuse_missing(place, slices, gaps)
        step = float(gaps.min())
        notes.append(
            f"slice distances from {gaps.min():g} to {gaps.max():g} mm: resampled to {step:g} mm"
        )
        pixels = _evened(place, pixels, along, step)
    return _raster(pixels, (col_step, row_step, step), origin, axes)


def _raster(pixels: np.ndarray, spacing: Iterable[float], origin: Any, axes: Any) -> Raster:
    x, y, z = (float(v) for v in spacing)
    return Raster(
        pixels, (x, y, z), (float(origin[0]), float(origin[1]), float(origin[2])), axes.T.copy()
    )


def _refuse_missing(place: Path, slices: list[Slice], gaps: np.ndarray) -> None:
    """Raises ValueError for a gap that stands alone: there, slices are missing.

    Gaps that change from one distance to another and stay there are how some scans are made.
    """
    edges = [0, *(np.nonzero(np.abs(np.diff(gaps)) > UNEVEN * gaps[:-1])[0] + 1), len(gaps)]
    runs = [(a, b, float(gaps[a:b].mean())) for a, b in pairwise(edges)]
    for k, (start, stop, gap) in enumerate(runs):
        beside = [runs[i][2] for i in (k - 1, k + 1) if 0 <= i < len(runs)]
        if stop - start == 1 and gap > 1.5 * min(beside):
            raise ValueError(
                f"{place}: the slices are not an even, straight stack: distances from "
                f"{gaps.min():g} to {gaps.max():g} mm, slices are missing between "
                f"{slices[start].file.source.name} and {slices[stop].file.source.name}"
            )


def _slid(pixels: np.ndarray, shifts: np.ndarray, air: float) -> tuple[np.ndarray, np.ndarray]:
    """Slices moved by (rows, cols) within their planes; also where the new first pixel stands."""
    corner = np.floor(shifts.min(0))
    extra = np.ceil(shifts.max(0) - corner).astype(int) + 1
    _, rows, cols = pixels.shape
    result = np.full((len(pixels), rows + extra[0], cols + extra[1]), air, pixels.dtype)
    for k, (plane, shift) in enumerate(zip(pixels, shifts - corner, strict=True)):
        (r, c), (fr, fc) = np.floor(shift).astype(int), shift - np.floor(shift)
        wide = np.pad(plane, 1, constant_values=air)
        wide = (1 - fr) * wide[1:] + fr * wide[:-1]
        result[k, r : r + rows + 1, c : c + cols + 1] = (1 - fc) * wide[:, 1:] + fc * wide[:, :-1]
    return result, corner


def _evened(place: Path, pixels: np.ndarray, along: np.ndarray, step: float) -> np.ndarray:
    """Slices at even distances, linear between those that there are."""
    count = int(along[-1] / step + 1e-3) + 1
    if count > 8 * len(along):
        raise ValueError(
            f"{place}: slice distances differ too much to be resampled: {step:g} mm at the least, "
            f"{along[-1] / (len(along) - 1):g} on average; choose one series, or resample it"
        )
    at = np.minimum(step * np.arange(count), along[-1])
    below = np.clip(np.searchsorted(along, at, side="right") - 1, 0, len(along) - 2)
    weight = ((at - along[below]) / (along[below + 1] - along[below])).astype(pixels.dtype)
    result = np.empty((count, *pixels.shape[1:]), pixels.dtype)
    for k, (b, w) in enumerate(zip(below, weight, strict=True)):
        result[k] = (1 - w) * pixels[b] + w * pixels[b + 1]
    return result
