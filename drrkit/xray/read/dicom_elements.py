"""What ITK does not pass on of a DICOM file: its transfer syntax, and what stands in sequences.

Source: DICOM PS3.5, chapter 7. Only little-endian files that are not deflated are looked into;
damaged ones give what stands before the damage.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

__all__ = ["Elements", "read_elements"]

Value = str | list[dict[str, "Value"]]

PIXELS = "7fe0|0010"
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
UNDEFINED = 0xFFFFFFFF
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Value representations with a length of four bytes."""
NUMBERS = {b"FD": "d", b"FL": "f", b"SL": "i", b"SS": "h", b"UL": "I", b"US": "H"}
FLOATS = ("0018|9402", "0018|9463", "0018|9464")
"""Of representation FL, where the file does not say it (implicit transfer syntax)."""
IMPLICIT = "1.2.840.10008.1.2"
CLOSED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
"""Deflated, and big endian."""
SMALL = 4096
"""Longer values are passed over."""
DEEPEST = 8


class Elements(NamedTuple):
    """Texts and sequences by "gggg|eeee"; numbers are texts, too, several parted by backslashes."""

    transfer_syntax: str
    values: dict[str, Value]

    def within(self, name: str) -> list[dict[str, Value]]:
        """The items of a sequence, none where it is not there."""
        found = self.values.get(name)
        return found if isinstance(found, list) else []


def read_elements(path: Path) -> Elements:
    """The elements of a DICOM file up to its pixels; nothing where it cannot be looked into."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(132)
        meta = _Reader(file, end, explicit=True, until_group=0x0002).dataset()
        syntax = meta.get("0002|0010", "")
        if not isinstance(syntax, str) or not syntax or syntax in CLOSED:
            return Elements(syntax if isinstance(syntax, str) else "", meta)
        body = _Reader(file, end, explicit=syntax != IMPLICIT).dataset()
        return Elements(syntax, {**meta, **body})


class _Reader:
    """Elements of an open file from where it stands."""

    def __init__(
        self, file: BinaryIO, end: int, *, explicit: bool, until_group: int | None = None
    ) -> None:
        self.file, self.end, self.explicit, self.group = file, end, explicit, until_group

    def dataset(self, end: int | None = None, depth: int = 0) -> dict[str, Value]:
        found: dict[str, Value] = {}
        end = self.end if end is None else end
        try:
            while self.file.tell() + 8 <= end:
                tag = self._unpack("HH")
                if self.group is not None and tag[0] > self.group:
                    self.file.seek(-4, 1)
                    break
                if tag in (ITEM_END, SEQUENCE_END):
                    self.file.seek(4, 1)
                    break
                key = f"{tag[0]:04x}|{tag[1]:04x}"
                if key == PIXELS:
                    break
                value = self._value(key, end, depth)
                if value is not None:
                    found[key] = value
        except (struct.error, _Damaged):
            pass
        return found

    def _value(self, key: str, end: int, depth: int) -> Value | None:
        kind = self.file.read(2) if self.explicit else b""
        if not self.explicit:
            (length,) = self._unpack("I")
        elif kind in LONG:
            _, length = self._unpack("HI")
        else:
            (length,) = self._unpack("H")
        start = self.file.tell()
        if length != UNDEFINED and length > end - start:
            raise _Damaged
        first = self.file.read(4)
        self.file.seek(start)
        if length == UNDEFINED or first == struct.pack("<HH", *ITEM):
            return list(self._items(end if length == UNDEFINED else start + length, depth))
        if length > SMALL:
            self.file.seek(length, 1)
            return None
        return _text(key, kind, self.file.read(length))

    def _items(self, end: int, depth: int) -> Iterator[dict[str, Value]]:
        if depth >= DEEPEST:
            raise _Damaged
        while self.file.tell() + 8 <= end:
            tag = self._unpack("HH")
            (length,) = self._unpack("I")
            if tag == SEQUENCE_END:
                return
            if tag != ITEM:
                raise _Damaged
            start = self.file.tell()
            stop = end if length == UNDEFINED else min(end, start + length)
            yield self.dataset(stop, depth + 1)
            if length != UNDEFINED:
                self.file.seek(stop)

    def _unpack(self, form: str) -> tuple[int, ...]:
        form = "<" + form
        return struct.unpack(form, self.file.read(struct.calcsize(form)))


class _Damaged(Exception):
    """A length or a tag that cannot be."""


def _text(key: str, kind: bytes, value: bytes) -> str:
    form = NUMBERS.get(kind) or ("f" if key in FLOATS and not kind else None)
    if form is None:
        return value.decode("latin-1").strip(" \0")
    count = len(value) // struct.calcsize(form)
    numbers = struct.unpack_from(f"<{count}{form}", value)
    return "\\".join(repr(number) for number in numbers)
