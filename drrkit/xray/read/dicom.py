"""DICOM X-rays (XA, RF, DX, CR, RTIMAGE): pixels, and the geometry that the header says.

Sources: DICOM PS3.3, X-Ray Positioner, XA Positioner, DX Detector, Display Shutter and X-Ray
Collimator modules; C.8.8.2 RT Image, whose angles are IEC 61217's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drrkit.geometry import Camera, CArm
from drrkit.volume import DicomFile, check_size, named, readable_errors, stored_pixels
from drrkit.xray.read.pictures import grey
from drrkit.xray.read.xray import Kind, Xray, xray_image

__all__ = ["flipped_camera", "read_dicom_xray"]

MODALITIES = ("XA", "RF", "DX", "CR", "RG", "PX", "IO", "RTIMAGE")
MOSTLY = 0.9
"""A padding value that more of the image has is none."""

_LETTERS = {
    "L": (1.0, 0.0, 0.0),
    "R": (-1.0, 0.0, 0.0),
    "P": (0.0, 1.0, 0.0),
    "A": (0.0, -1.0, 0.0),
    "H": (0.0, 0.0, 1.0),
    "F": (0.0, 0.0, -1.0),
}
"""Patient Orientation's letters in LPS."""


def read_dicom_xray(source: Path, given: Mapping[str, Any], orient: bool) -> Xray:
    """Pixels, kind, camera, angles and mask of a DICOM X-ray.

    given   of "sdd", "pixel_spacing" (row, col) and "principal_point", what the caller knows: taken
            in place of what the file says, which is not asked for; all else follows from them
    orient  whether to mirror the image so that it is seen from the source

    Optional fields that mean nothing are unknown, with a warning. Raises ValueError for
    a file of another modality and pixels that cannot be read.
    """
    file = DicomFile(source)
    modality = file.text("Modality")
    _check_modality(file, modality)
    pixels, padded = _pixels(file)
    frames, rows, cols = pixels.shape
    sdd, spacing, camera = _camera(file, given, (rows, cols))
    if modality == "RTIMAGE":
        primary, secondary, sod = _gantry(file, frames)
        flip: tuple[int, ...] = ()
    else:
        sod = _sod(file, sdd) if modality in ("XA", "RF") else None
        primary = _angles(file, "PositionerPrimaryAngle", frames)
        secondary = _angles(file, "PositionerSecondaryAngle", frames)
        flip = _flip(file, primary, secondary)
    mask = _shutter(file, (rows, cols))
    facts = {
        "format": "DICOM",
        "modality": modality or "not said",
        "photometric": file.text("PhotometricInterpretation") or "not said",
        "patient orientation": file.text("PatientOrientation") or "not said",
        "padding": "none" if padded is None else f"{int(padded.sum())} pixels are masked",
        "shutters": "none" if mask is None else "masked",
        "image": "kept" if orient else "as stored",
    }
    if padded is not None:
        seen = torch.from_numpy(~padded).float()[None, None]
        mask = seen if mask is None else mask * seen
    image, kind = xray_image(source, pixels), _kind(file, modality)
    if orient and flip:
        facts["image"] = "mirrored to be seen from the source"
        image, mask = image.flip(flip), None if mask is None else mask.flip(flip)
        camera = None if camera is None else flipped_camera(camera, flip)
    return Xray(
        image,
        kind,
        camera,
        spacing,
        mask,
        primary_deg=primary,
        secondary_deg=secondary,
        sod=sod,
        warnings=tuple(file.notes),
        facts=facts,
    )


def _camera(
    file: DicomFile, given: Mapping[str, Any], size: tuple[int, int]
) -> tuple[float | None, tuple[float, float] | None, Camera | None]:
    """Source-to-detector distance, pixel spacing, and the camera where both are known."""
    rt = file.text("Modality") == "RTIMAGE"
    what = "RTImageSID" if rt else "DistanceSourceToDetector"
    sdd = given["sdd"] if "sdd" in given else file.positive(what)
    if "pixel_spacing" not in given:
        spacing = _pixel_spacing(file, rt)
    else:  # of a calibrated image the file's is compared with the calibration's
        spacing = given["pixel_spacing"] or _pair(file, _pitch_keyword(rt))
    principal_point = None
    if "principal_point" not in given and spacing is not None:
        principal_point = (_rt_principal_point if rt else _principal_point)(file, size, spacing)
    if sdd is None and "sdd" not in given:
        file.note(f"the source-to-detector distance, {named(what)}, is not known: give sdd=")
    _note_contradictions(file, what, spacing)
    if sdd is None or spacing is None:
        return sdd, spacing, None
    origin = "header" if given.keys().isdisjoint(("sdd", "pixel_spacing")) else "user"
    return sdd, spacing, CArm(sdd, size, spacing, principal_point, origin=origin)


def _note_contradictions(
    file: DicomFile, distance: str, spacing: tuple[float, float] | None
) -> None:
    """What the file says beside what was taken."""
    for name in (distance, "ImagerPixelSpacing", "DistanceSourceToIsocenter"):
        if file.kinds(name) > 1:
            file.note(f"{named(name)} differs from frame to frame: the first is taken")
    ratio = _pair(file, "PixelAspectRatio")
    if spacing and ratio and abs(spacing[0] * ratio[1] / (spacing[1] * ratio[0]) - 1) > 0.01:
        file.note(
            f"{named('PixelAspectRatio')} is {ratio[0]:g}:{ratio[1]:g}, not that of the pixel "
            f"spacing {spacing[0]:g}, {spacing[1]:g} mm"
        )
    if "ModalityLUTSequence" in file.dataset:
        file.note("the Modality LUT (0028,3000) is not applied: pixels are the stored ones")


def _check_modality(file: DicomFile, modality: str | None) -> None:
    """Raises ValueError for what is no X-ray, saying what it is."""
    if not file.has_pixels:
        raise ValueError(
            f"{file.source}: expected an X-ray, got a DICOM file without pixels ("
            f"{modality or 'no modality'}): truncated, damaged, or another kind of object"
        )
    if modality is None or modality in MODALITIES:
        return
    advice = ""
    if modality == "CT":
        advice = (
            ": a localizer, whose rays are a fan that moves along with the table: "
            "drrkit.xray.read_localizer reads it"
            if file.is_localizer()
            else ": a slice of a CT, whose folder read_volume reads"
        )
    raise ValueError(
        f"{file.source}: expected an X-ray (Modality (0008,0060) {', '.join(MODALITIES[:4])} or "
        f"RTIMAGE), got modality {modality}{advice}"
    )


def _pixels(file: DicomFile) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels [frames, rows, cols] with slope and intercept, and the padding of all frames."""
    samples = file.count("SamplesPerPixel", 1)
    if samples != 1:
        shared = file.text("PhotometricInterpretation") == "YBR_FULL_422"  # colours of two pixels
        width = (2 if shared else samples) * (file.count("BitsAllocated") // 8)
        check_size(file, (file.frames, file.count("Rows"), file.count("Columns")), width)
        import SimpleITK as sitk

        with readable_errors(file.source, "read"):
            image = sitk.ReadImage(os.fspath(file.source))
        pixels, note = grey(sitk.GetArrayFromImage(image))
        file.notes += note
        return pixels.reshape(-1, *pixels.shape[-2:]), None
    stored = stored_pixels(file)
    slopes, intercepts = (_of_frames(file, name) for name in ("RescaleSlope", "RescaleIntercept"))
    values = stored.values
    if (slopes != 1.0).any() or (intercepts != 0.0).any():
        values = slopes * values.astype(np.float64) + intercepts
    padded = None if stored.padded is None else np.asarray(stored.padded.all(axis=0))
    if padded is not None and not 0.0 < float(padded.mean()) <= MOSTLY:
        padded = None
    return values, padded


def _of_frames(file: DicomFile, keyword: str) -> np.ndarray:
    """Slope or intercept of each frame, [frames, 1, 1]."""
    found = [(file.numbers(keyword, 1, k) or [None])[0] for k in range(file.frames)]
    if keyword == "RescaleSlope" and 0.0 in found:
        file.note(f"{named(keyword)} is 0; taken as 1")
    unit = 1.0 if keyword == "RescaleSlope" else 0.0
    return np.array([value or unit for value in found])[:, None, None]


def flipped_camera(camera: Camera, flip: tuple[int, ...]) -> Camera:
    """The camera of the image flipped along -1 (columns) or -2 (rows)."""
    matrix = camera.K.clone()
    for dim in flip:
        axis = 0 if dim == -1 else 1
        matrix[axis, 2] = camera.size[dim] - 1 - matrix[axis, 2]
    return replace(camera, K=matrix)


def _sod(file: DicomFile, sdd: float | None) -> float | None:
    """Source to isocentre; a radiograph's (0018,1111) would be that to the table."""
    sod = file.positive("DistanceSourceToPatient") or file.positive("DistanceSourceToIsocenter")
    magnification = _magnification(file)
    if sod is None and sdd is not None and magnification > 1.0:
        file.note(
            "source-to-isocentre distance from (0018,1110) over the magnification (0018,1114): "
            "(0018,1111) is not in the file"
        )
        return sdd / magnification
    return sod


def _magnification(file: DicomFile) -> float:
    """sdd / sod; 1 where it is not known."""
    keyword = "EstimatedRadiographicMagnificationFactor"
    found = file.positive(keyword) or 1.0
    if found < 1.0:
        file.note(f"{named(keyword)}: expected a number >= 1, got {found:g}; taken as unknown")
    return max(found, 1.0)


def _pair(file: DicomFile, keyword: str) -> tuple[float, float] | None:
    """Two numbers above zero."""
    found = file.numbers(keyword, 2)
    if found is None:
        return None
    if min(found) <= 0:
        file.note(
            f"{named(keyword)}: expected two numbers > 0, got {found[0]:g}, {found[1]:g}; taken as "
            "unknown"
        )
        return None
    return found[0], found[1]


def _pitch_keyword(rt: bool) -> str:
    return "ImagePlanePixelSpacing" if rt else "ImagerPixelSpacing"


def _pixel_spacing(file: DicomFile, rt: bool) -> tuple[float, float] | None:
    """(row, col) mm at the detector; of an RT image, at its SID."""
    keyword = _pitch_keyword(rt)
    spacing = _pair(file, keyword)
    if rt and spacing is None:
        file.note(f"{named(keyword)} is not known: give pixel_spacing=")
    if rt or spacing is not None:
        return spacing
    element, binning = (_pair(file, k) for k in ("DetectorElementSpacing", "DetectorBinning"))
    if element is not None and binning is not None:
        file.note(
            "pixel spacing from the detector's elements (0018,7022) and their binning (0018,701A): "
            "Imager Pixel Spacing (0018,1164) is not in the file"
        )
        return element[0] * binning[0], element[1] * binning[1]
    spacing = _pair(file, "PixelSpacing")
    if spacing is None:
        file.note("the pixel spacing at the detector (0018,1164) is not known: give pixel_spacing=")
        return None
    # Pixel Spacing may be calibrated to the patient: then the magnification takes it back.
    magnification = _magnification(file)
    calibrated = file.text("PixelSpacingCalibrationType")
    if magnification == 1.0:
        note = f", calibrated by {calibrated}," if calibrated else ""
        file.note(
            f"pixel spacing from (0028,0030){note} taken as that of the detector: "
            "Imager Pixel Spacing (0018,1164) is not in the file"
        )
        return spacing
    file.note("pixel spacing at the detector from (0028,0030) times the magnification (0018,1114)")
    return spacing[0] * magnification, spacing[1] * magnification


def _principal_point(
    file: DicomFile,
    size: tuple[int, int],
    spacing: tuple[float, float],
) -> tuple[float, float] | None:
    """(col, row): the middle of the active detector area in the stored image; None: the centre.

    DICOM does not hold the foot of the source. C-arms are built with it in the detector's middle,
    of which the field of view may be an off-centre part.
    """
    origin = file.numbers("FieldOfViewOrigin", 2)
    active = file.numbers("DetectorActiveDimensions", 2)
    element = file.numbers("DetectorElementSpacing", 2)
    if origin is None or active is None or element is None:
        return None
    start = file.numbers("DetectorActiveOrigin", 2) or [0.0, 0.0]
    turn = (file.number("FieldOfViewRotation") or 0.0) % 360
    if turn % 90 != 0:
        file.note(f"{named('FieldOfViewRotation')}: expected quarter turns, got {turn:g} degrees")
        return None
    rows, cols = size if turn in (0, 180) else size[::-1]
    pitch = spacing if turn in (0, 180) else spacing[::-1]
    offset = []
    for axis, count in ((0, rows), (1, cols)):
        middle = start[axis] * element[axis] + active[axis] / 2
        field = origin[axis] * element[axis] + count * pitch[axis] / 2
        offset.append((middle - field) / pitch[axis])
    down, right = offset  # in pixels of the field of view as it lies on the detector
    for _ in range(int(turn) // 90):  # a turn by 90 degrees clockwise: down becomes left
        down, right = right, -down
    if (file.text("FieldOfViewHorizontalFlip") or "NO") == "YES":
        right = -right
    if max(abs(down), abs(right)) > 0.5:
        file.note(
            f"the field of view lies {right:+.1f} columns and {down:+.1f} rows off the detector's "
            "middle, where the foot of the source is assumed"
        )
    return (size[1] - 1) / 2 + right, (size[0] - 1) / 2 + down


def _angles(file: DicomFile, keyword: str, frames: int) -> Tensor | None:
    """An angle per frame, [F] degrees; runs hold the first one and each frame's difference."""
    own = [file.numbers(keyword, 1, k) for k in range(frames)]
    if any(angle is None for angle in own):
        return None
    angles = torch.tensor([angle[0] for angle in own if angle is not None], dtype=torch.float64)
    if bool((angles.abs() > 360).any()):
        file.note(f"{named(keyword)}: expected degrees, got {angles.tolist()}; taken as unknown")
        return None
    steps = file.numbers(f"{keyword}Increment")
    if steps is not None and len(steps) == frames:
        return angles + torch.tensor(steps, dtype=torch.float64)
    return angles


# ---- RT images


def _rt_principal_point(
    file: DicomFile, size: tuple[int, int], spacing: tuple[float, float]
) -> tuple[float, float] | None:
    """(col, row) of the beam's axis, IEC's origin; (x, y) is the first pixel, y up."""
    corner = file.numbers("RTImagePosition", 2)
    if corner is None:
        file.note(
            f"{named('RTImagePosition')} is not known: the beam's axis is assumed in the middle"
        )
        return None
    moved = file.numbers("XRayImageReceptorTranslation", 3) or [0.0, 0.0, 0.0]
    return (-moved[0] - corner[0]) / spacing[1], (moved[1] + corner[1]) / spacing[0]


def _gantry(file: DicomFile, frames: int) -> tuple[Tensor | None, Tensor | None, float | None]:
    """Primary and secondary angle of a C-arm at a treatment machine's gantry angle, and its sod.

    At zero the source is in front of a patient who lies supine, head first; at 90 degrees on the
    patient's left. The image is seen from the source.
    """
    sod, angle = file.positive("RadiationMachineSAD"), file.number("GantryAngle")
    turned = []
    for keyword in ("GantryPitchAngle", "PatientSupportAngle", "XRayImageReceptorAngle"):
        value = file.number(keyword)
        if value is not None and abs((value + 180.0) % 360.0 - 180.0) > 1e-3:
            turned.append(f"{named(keyword)} is {value:g}")
    position = file.text("PatientPosition")
    if position not in (None, "HFS"):
        turned.append(f"{named('PatientPosition')} is {position}")
    axes = file.numbers("RTImageOrientation", 6)
    if axes is not None and not np.allclose(axes, (1, 0, 0, 0, -1, 0), atol=1e-3):
        turned.append(f"{named('RTImageOrientation')} is {axes}")
    if (file.text("RTImagePlane") or "NORMAL") != "NORMAL":
        turned.append(f"{named('RTImagePlane')} is {file.text('RTImagePlane')}")
    if turned:
        file.note(f"{'; '.join(turned)}: not supported, so where to start is not known")
        return None, None, sod
    if angle is None:
        return None, None, sod
    if position is None:
        file.note(f"{named('PatientPosition')} is not in the file: head first, supine is assumed")
    primary = angle % 360.0 - 180.0
    return (
        torch.full((frames,), primary, dtype=torch.float64),
        torch.zeros(frames, dtype=torch.float64),
        sod,
    )


# ---- how the image is seen


def _flip(file: DicomFile, primary: Tensor | None, secondary: Tensor | None) -> tuple[int, ...]:
    """What turns the stored image into the one seen from the source.

    Patient Orientation tells, when the angles are known; without it the image is taken to be
    displayed as DICOM means it, head up and seen from the detector.
    """
    orientation = file.text("PatientOrientation")
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
        file.note(
            f"Patient Orientation {orientation} does not fit the positioner angles "
            f"({math.degrees(p):g}, {math.degrees(s):g} degrees): the image may be turned; taken "
            "as seen from the detector"
        )
        return (-1,)
    return (*((-2,) if rows < 0 else ()), *((-1,) if cols < 0 else ()))


def _kind(file: DicomFile, modality: str | None) -> Kind | None:
    """What larger values mean, after slope and intercept."""
    falling = set((_of_frames(file, "RescaleSlope") < 0).ravel().tolist())
    if len(falling) == 2:
        file.note(f"{named('RescaleSlope')} is negative in some frames: what values mean differs")
        return None
    relation, name = file.text("PixelIntensityRelationship"), "PixelIntensityRelationshipSign"
    sign = file.number(name)
    if sign is not None and abs(sign) != 1.0:
        file.note(f"{named(name)}: expected 1 or -1, got {sign:g}; taken as unknown")
    elif relation in ("LIN", "LOG") and sign is not None:
        # The sign is that of the stored values, which a negative slope turns round.
        if (sign > 0) != (True in falling):  # larger values are more X-rays
            return "intensity" if relation == "LIN" else "inverted"
        return "display" if relation == "LIN" else "line"
    photometric = file.text("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or modality == "RTIMAGE":
        return None
    # Fluoroscopy is shown with bone dark, radiographs with bone bright; MONOCHROME1 swaps.
    bone_bright = modality not in ("XA", "RF")
    if photometric == "MONOCHROME1" or file.text("PresentationLUTShape") == "INVERSE":
        bone_bright = not bone_bright
    if bone_bright:
        return "display"
    return "intensity" if relation == "LIN" else "inverted"


def _shutter(file: DicomFile, size: tuple[int, int]) -> Tensor | None:
    """1 inside shutters and collimators, [1, 1, rows, cols]; None where there are none."""
    inside = torch.ones(size, dtype=torch.bool)
    row = torch.arange(1, size[0] + 1, dtype=torch.float64)[:, None]
    col = torch.arange(1, size[1] + 1, dtype=torch.float64)[None]
    for kind in ("Shutter", "Collimator"):  # the same fields twice
        shapes = file.words(f"{kind}Shape")
        if "RECTANGULAR" in shapes:
            sides = ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
            left, right, upper, lower = (file.number(f"{kind}{side}Edge") for side in sides)
            inside &= (col > left) if left is not None else True
            inside &= (col < right) if right is not None else True
            inside &= (row > upper) if upper is not None else True
            inside &= (row < lower) if lower is not None else True
        if "CIRCULAR" in shapes:
            center = file.numbers(f"CenterOfCircular{kind}", 2)
            radius = file.positive(f"RadiusOfCircular{kind}")
            if center and radius:
                inside &= (row - center[0]) ** 2 + (col - center[1]) ** 2 <= radius**2
            else:
                file.note(f"a circular {kind.lower()} without centre or radius is not masked")
        if "POLYGONAL" in shapes:
            corners = file.numbers(f"VerticesOfThePolygonal{kind}")
            if corners and len(corners) >= 6 and len(corners) % 2 == 0:
                inside &= _polygon(torch.tensor(corners, dtype=torch.float64), row, col)
            else:
                file.note(f"a polygonal {kind.lower()} without three corners is not masked")
    if not bool(inside.any()):
        file.note("shutters or collimators leave nothing of the image: nothing is masked")
    return inside.float()[None, None] if 0 < int(inside.sum()) < inside.numel() else None


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
