"""The fields of a DICOM file, which pydicom reads, with notes on those that mean nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

INDEX_STORAGE = "1.2.840.10008.1.3.10"
"""Media Storage Directory (DICOMDIR): an index of other files."""
LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"}
"""What makers call a localizer in Image Type."""
PIXEL_KINDS = {"": "", "Float": "f4", "DoubleFloat": "f8"}
"""What the fields of pixels and of their padding begin with; of reals, their type."""
PLAIN = ("CS", "DS", "IS", "UI")
"""Value representations whose bytes are the text."""
LATER = 4096
"""Longer values are read from the file when they are asked for."""


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's preamble, or begins like a data set without one."""
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] == b"DICM":
        return True
    if head[:2] not in (b"\2\0", b"\10\0", b"\0\10") or head[3:4] not in (b"\0", b"\5", b"\6"):
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or 0 <= int.from_bytes(head[4:8], "little") < LATER


class DicomFile:
    """The fields of a DICOM file by their keywords, and notes on those that mean nothing.

    What an enhanced object says in its functional groups, of one frame or of all, counts too.

    Raises OSError, and ValueError for a file that cannot be parsed.
    """

    def __init__(self, source: Path) -> None:
        import pydicom

        self.source = source
        self.notes: list[str] = []
        try:
            with quiet_pydicom():
                self.dataset = pydicom.dcmread(source, force=True, defer_size=LATER)
        except OSError:
            raise
        except Exception as error:  # a damaged file raises what it likes
            raise ValueError(f"{source}: not a DICOM file, or a damaged one ({error})") from error
        groups = self._items("SharedFunctionalGroupsSequence")
        self._shared, self._frames = groups[:1], self._items("PerFrameFunctionalGroupsSequence")
        self._words: dict[tuple[str, int | None], list[str]] = {}

    @property
    def sop_class(self) -> str:
        """SOP Class UID; "" where the file does not say it."""
        meta = getattr(self.dataset, "file_meta", {})
        return self.text("SOPClassUID") or "".join(_texts(meta, "MediaStorageSOPClassUID"))

    @property
    def syntax(self) -> str:
        """Transfer Syntax UID; "" where the file does not say it."""
        return "".join(_texts(getattr(self.dataset, "file_meta", {}), "TransferSyntaxUID"))

    @property
    def has_pixels(self) -> bool:
        """Whether there is any kind of pixel data."""
        return any(f"{kind}PixelData" in self.dataset for kind in PIXEL_KINDS)

    def is_localizer(self, frame: int | None = None) -> bool:
        """Whether the file, or a frame of an enhanced object, is a projection to plan a CT by."""
        words = self.words("ImageType" if frame is None else "FrameType", frame)
        return not LOCALIZERS.isdisjoint(words)

    @property
    def frames(self) -> int:
        """Number of Frames, 1 where the file does not say it, or nothing that can be."""
        found = self.number("NumberOfFrames")
        if found is not None and (found < 1 or found != int(found)):
            self.note(f"{named('NumberOfFrames')}: expected a whole number > 0, got {found:g}")
            return 1
        return int(found or 1)

    @property
    def described_frames(self) -> int:
        """How many frames have functional groups of their own, as enhanced objects have."""
        return len(self._frames)

    def words(self, keyword: str, frame: int | None = None) -> list[str]:
        """The values of a field as text; of frame number `frame` in an enhanced object."""
        if (keyword, frame) not in self._words:
            self._words[keyword, frame] = self._found(keyword, frame)
        return self._words[keyword, frame]

    def _found(self, keyword: str, frame: int | None) -> list[str]:
        own = _texts(self.dataset, keyword)
        if own and frame is None:
            return own
        groups = [*self._frames[slice(frame or 0, (frame or 0) + 1)], *self._shared]
        return next((found for group in groups if (found := _inside(group, keyword))), own)

    def text(self, keyword: str, frame: int | None = None) -> str | None:
        """The values of a field, parted by backslashes; None where it is absent or empty."""
        return "\\".join(self.words(keyword, frame)) or None

    def numbers(
        self, keyword: str, count: int | None = None, frame: int | None = None
    ) -> list[float] | None:
        """`count` finite numbers; None, with a note, where the field holds something else."""
        try:
            return self.needed(keyword, count, frame) if self.words(keyword, frame) else None
        except ValueError as error:
            self.note(f"{str(error).removeprefix(f'{self.source}: ')}; taken as unknown")
            return None

    def kinds(self, keyword: str) -> int:
        """How many different values a field has in the frames of an enhanced object."""
        return len({self.text(keyword, k) for k in range(self.described_frames)} - {None})

    def number(self, keyword: str) -> float | None:
        """A finite number; None, with a note, where the field holds something else."""
        found = self.numbers(keyword, 1)
        return None if found is None else found[0]

    def positive(self, keyword: str) -> float | None:
        """A number above zero; zero, which many machines write for unknown, is None."""
        found = self.number(keyword)
        if found is not None and found < 0:
            self.note(f"{named(keyword)}: expected a number > 0, got {found:g}; taken as unknown")
        return found if found is not None and found > 0 else None

    def needed(
        self, keyword: str, count: int | None = None, frame: int | None = None
    ) -> list[float]:
        """As `numbers`; raises ValueError where they are absent or something else."""
        words = self.words(keyword, frame)
        try:
            values = [float(word) for word in words]
        except ValueError:
            values = []
        if values and count in (None, len(values)) and all(map(math.isfinite, values)):
            return values
        wanted = "numbers" if count is None else "a number" if count == 1 else f"{count} numbers"
        found = repr("\\".join(words)[:60]) if words else "nothing"
        raise ValueError(f"{self.source}: {named(keyword)}: expected {wanted}, got {found}")

    def note(self, text: str) -> None:
        """Remembers a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    def count(self, keyword: str, default: int | None = None) -> int:
        """A whole number above zero; raises ValueError for another, and where there is none."""
        if default is not None and not self.words(keyword):
            return default
        (value,) = self.needed(keyword, 1)
        if value < 1 or value != int(value):
            raise ValueError(
                f"{self.source}: {named(keyword)}: expected a whole number > 0, got {value:g}"
            )
        return int(value)

    def _items(self, keyword: str) -> list[Any]:
        try:
            return list(self.dataset.get(keyword) or [])
        except Exception:  # a damaged sequence: as if it were not there
            return []


def named(keyword: str) -> str:
    """A field as errors name it: Pixel Spacing (0028,0030)."""
    from pydicom.datadict import dictionary_description, tag_for_keyword

    tag = tag_for_keyword(keyword) or 0
    return f"{dictionary_description(tag)} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _inside(group: Any, keyword: str) -> list[str]:
    """The values of a field in a functional group's nested sequences."""
    if found := _texts(group, keyword):
        return found
    for tag in list(group.keys()):
        try:
            items = group[tag].value if group[tag].VR == "SQ" else None
        except Exception:  # damaged: as if it were not there
            continue
        for item in items or []:
            if found := _inside(item, keyword):
                return found
    return []


@cache
def _tag(keyword: str) -> tuple[Any, str]:
    """A field's tag and value representation."""
    from pydicom.datadict import dictionary_VR
    from pydicom.tag import Tag

    tag = Tag(keyword)
    return tag, dictionary_VR(tag)


def _texts(dataset: Any, keyword: str) -> list[str]:
    """A field's values as text, also where they are not what its representation allows."""
    tag, kind = _tag(keyword)
    if tag not in dataset:
        return []
    try:
        raw = dataset.get_item(tag)  # reads what is read later
    except Exception:
        return ["(UNREADABLE)"]
    value, written = raw.value, raw.VR or kind
    if isinstance(value, bytes) and written == "US" and len(value) == 2:
        value = [int.from_bytes(value, "little" if raw.is_little_endian else "big")]
    elif written not in PLAIN or not isinstance(value, bytes):
        try:
            with quiet_pydicom():
                value = dataset[tag].value
        except Exception:
            value = value if isinstance(value, (bytes, str)) else b""
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    several = isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue"
    words = [str(word).strip(" \0") for word in (value if several else [value])]
    words = [word.upper() for word in words] if kind == "CS" else words
    return words if any(word not in ("", "None") for word in words) else []


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """pydicom's remarks on values are said by this package, naming the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
