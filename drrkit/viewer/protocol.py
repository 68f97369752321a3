"""Messages between page and server: small JSON objects, and grey pictures as binary frames.

A message has a `type` and the keys of that type, no others. Angles are degrees here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.registration import SIMILARITIES
from drrkit.report import edge_letters
from drrkit.viewer.session import PLANES, STRATEGIES, Look, Picture, Session

LARGEST_MESSAGE = 2048  # characters
KINDS = ("xray", "drr", *PLANES)
"""What a binary frame may show, in the order of their numbers."""

_HEADER = struct.Struct("<BBHIIIff")  # kind, fine, 0, pose version, rows, cols, row mm, col mm


class Message(NamedTuple):
    """A message of the page: its type, and its values by key."""

    type: str
    values: dict[str, Any]


def parse(text: Any) -> Message:
    """A message as the protocol allows it. Raises ValueError: the reason why it does not."""
    if not isinstance(text, str):
        raise ValueError("expected text, got a binary message")
    if len(text) > LARGEST_MESSAGE:
        raise ValueError(f"expected at most {LARGEST_MESSAGE} characters, got {len(text)}")
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {_short(content)}")
    kind = content.pop("type", None)
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ValueError(f"type: expected one of {', '.join(_KEYS)}, got {_short(kind)}")
    wanted = _KEYS[kind]
    if set(content) != set(wanted):
        expected, found = (", ".join(sorted(keys)) or "no keys" for keys in (wanted, content))
        raise ValueError(f"{kind}: expected {expected}, got {_short(found)}")
    return Message(kind, {key: check(key, content[key]) for key, check in wanted.items()})


def hello(session: Session, title: str) -> str:
    """The first message of the server: sizes, and the choices of the page."""
    rows, cols = session.xray.pixels.shape
    return json.dumps(
        {
            "type": "hello",
            "title": title,
            "rows": rows,
            "cols": cols,
            "similarities": list(SIMILARITIES),
            "strategies": STRATEGIES,
            "planes": list(PLANES),
            "kinds": list(KINDS),
            "can_save": session.can_save,
        }
    )


def state(session: Session, look: Look) -> str:
    """All numbers that the page shows; the DRR follows as a frame of the same version."""
    left_out = ("picture",) if look.fine else ("picture", "geometry", "drawing")
    content: dict[str, Any] = {k: v for k, v in vars(look).items() if k not in left_out}
    content |= {"type": "state", "pixel_mm": session.pixel_mm}
    content["xi"] = [*map(math.degrees, look.xi[:3]), *look.xi[3:]]
    if look.fine:
        pose = torch.tensor(look.world_to_camera, dtype=torch.float64)
        content["letters"] = edge_letters(pose)
    return json.dumps(content, allow_nan=False)


def error(text: str) -> str:
    """A message that was refused, or work that failed."""
    return json.dumps({"type": "error", "text": text})


def frame(kind: str, picture: Picture, *, version: int = 0, fine: bool = True) -> bytes:
    """A picture as a binary message: 24 bytes of header, then one byte per pixel, row by row."""
    rows, cols = picture.pixels.shape
    sizes = (version & 0xFFFFFFFF, rows, cols, picture.row_mm, picture.col_mm)
    head = _HEADER.pack(KINDS.index(kind), int(fine), 0, *sizes)
    return head + picture.pixels.contiguous().numpy().tobytes()


# ---- values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _short(value: Any) -> str:
    return repr(value)[:80]


def _is_number(value: Any) -> bool:
    # Python's integers are unbounded: converting one to float may overflow.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= 1e9


def _motion(key: str, value: Any) -> Tensor:
    """Six numbers, degrees and mm, as xi [6] in rad and mm; the session knows its bounds."""
    if not isinstance(value, list) or len(value) != 6 or not all(map(_is_number, value)):
        raise ValueError(f"{key}: expected six numbers, got {_short(value)}")
    return torch.tensor([*map(math.radians, value[:3]), *value[3:]], dtype=torch.float64)


def _share(key: str, value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{key}: expected a number from 0 to 1, got {_short(value)}")
    return float(value)


def _one_of(*names: str) -> Callable[[str, Any], str]:
    def check(key: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{key}: expected one of {', '.join(names)}, got {_short(value)}")
        return value

    return check


_KEYS: dict[str, dict[str, Callable[[str, Any], Any]]] = {
    "place": {"xi": _motion},
    "nudge": {"xi": _motion},
    "reset": {},
    "choose": {"similarity": _one_of(*SIMILARITIES)},
    "register": {"strategy": _one_of(*STRATEGIES)},
    "stop": {},
    "save": {},
    "slice": {"plane": _one_of(*PLANES), "share": _share},
    "drawn": {},
}
