"""Charts as SVG: lines over an axis, and maps of two. They take their ink from the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drrkit.report.pictures import data_uri

__all__ = ["Line", "heat_map", "line_chart"]

LEFT, RIGHT, TOP, BOTTOM = 76, 14, 22, 42  # margins

ANCHORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Viridis at five equal distances."""


@dataclass(frozen=True)
class Line:
    """Points of a curve; where y is NaN it is interrupted."""

    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    points: bool = False,
    whole: bool = False,
    size: tuple[int, int] = (420, 220),
) -> str:
    """Curves with axes, ticks and labels.

    Args:
        lines: one curve or more, on the same axes.
        title: for those who cannot see it, and above the chart.
        x_label, y_label: what the axes mean, with units.
        log: y is logarithmic; what is not above 0 is left out.
        marks: (x, words) of vertical lines.
        points: mark each point, too.
        whole: x counts something: no ticks between whole numbers.
        size: (width, height) in CSS pixels.

    Raises:
        ValueError: there is no finite point.
    """
    usable = [
        (x, y)
        for line in lines
        for x, y in zip(line.x, line.y, strict=True)
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)
    ]
    if not usable:
        raise ValueError("lines: expected at least one finite point, got none")
    width, height = size
    across = _Axis([x for x, _ in usable], LEFT, width - RIGHT)
    up = _Axis([y for _, y in usable], height - BOTTOM, TOP, log=log, slack=0.06)
    parts = [_frame(across, up, x_label, y_label, size, whole=whole), _title(title)]
    for x, words in marks:
        at = across.at(x)
        parts.append(f'<line class="mark" x1="{at}" x2="{at}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{at + 3}" y="{TOP + 9}">{html.escape(words)}</text>')
    for line in lines:
        for piece in _pieces(line, log):
            told = " ".join(f"{across.at(x)},{up.at(y)}" for x, y in piece)
            parts.append(f'<polyline class="curve" points="{told}"/>')
            shown = piece if points or len(piece) == 1 else ()
            parts += [
                f'<circle class="dot" cx="{across.at(x)}" cy="{up.at(y)}" r="2.5"/>'
                for x, y in shown
            ]
    return _svg(parts, title, size)


def heat_map(
    values: Tensor,
    x: Sequence[float],
    y: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str,
    value_label: str,
    size: tuple[int, int] = (340, 300),
) -> str:
    """A map of two axes with a colour bar, dark where values are low; a cross marks (0, 0).

    Args:
        values: [Y, X] finite.
        x, y: where its columns and rows lie, ascending, at equal distances.
        title, x_label, y_label, value_label: words, with units.
        size: (width, height) in CSS pixels.

    Raises:
        ValueError: the shape is not that of x and y, or a value is not finite.
    """
    if values.shape != (len(y), len(x)) or not bool(values.isfinite().all()):
        raise ValueError(
            f"values: expected finite numbers [{len(y)}, {len(x)}], got {tuple(values.shape)}"
        )
    width, height = size
    bar = 64  # for the colours' scale
    across = _Axis(x, LEFT, width - RIGHT - bar)
    up = _Axis(y, height - BOTTOM, TOP)
    low, high = float(values.min()), float(values.max())
    shares = (values.double() - low) / ((high - low) or 1.0)
    plot = (LEFT, TOP, width - RIGHT - bar - LEFT, height - BOTTOM - TOP)
    ramp = torch.linspace(1, 0, 64, dtype=torch.float64)[:, None]
    edge = width - RIGHT - bar + 12
    parts = [
        _title(title),
        _picture(_coloured(shares.flip(0)), *plot),
        _frame(across, up, x_label, y_label, (width - bar, height), grid=False),
        _picture(_coloured(ramp), edge, TOP, 10, plot[3]),
    ]
    for value, at in ((high, TOP + 4), (low, TOP + plot[3])):
        parts.append(f'<text class="tick" x="{edge + 13}" y="{at}">{_number(value)}</text>')
    parts.append(
        f'<text class="tick" transform="translate({edge + 22},{TOP + plot[3] / 2}) rotate(90)" '
        f'text-anchor="middle">{html.escape(value_label)}</text>'
    )
    cx, cy = across.at(0.0), up.at(0.0)
    parts.append(f'<path class="cross" d="M{cx - 6} {cy}h12M{cx} {cy - 6}v12"/>')
    return _svg(parts, title, size)


class _Axis:
    """From numbers to places between two pixels, and round numbers to label.

    Args:
        values: that it must hold.
        start, end: pixels of the lowest and the highest.
        log: logarithmic.
        slack: share of the range left free at both ends.
    """

    def __init__(
        self,
        values: Sequence[float],
        start: float,
        end: float,
        log: bool = False,
        slack: float = 0.0,
    ) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = (self._scaled(v) for v in (min(values), max(values)))
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            low, high = low - 0.5, high + 0.5
        room = slack * (high - low)
        self.low, self.high = low - room, high + room

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else float(value)

    def at(self, value: float) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int) -> list[float]:
        """Round numbers within the axis: 1, 2, 5 times a power of ten, or powers of ten."""
        if self.log:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            found = [10.0**power for power in powers]
            if len(found) >= 2:
                return found[:: -(-len(found) // most)]
            # Within a decade: the numbers themselves.
            spread = _Axis([10**self.low, 10**self.high], 0, 1)
            return [value for value in spread.ticks(most) if value > 0]
        rough = (self.high - self.low) / max(1, most - 1)
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def _pieces(line: Line, log: bool) -> list[list[tuple[float, float]]]:
    """The curve between its interruptions."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y) and (y > 0 or not log):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _frame(
    across: _Axis,
    up: _Axis,
    x_label: str,
    y_label: str,
    size: tuple[int, int],
    grid: bool = True,
    whole: bool = False,
) -> str:
    width, height = size
    foot, right = height - BOTTOM, width - RIGHT
    parts = []
    for value in up.ticks(5):
        at = up.at(value)
        look, end = ("grid", right) if grid else ("axis", LEFT - 4)
        parts.append(f'<line class="{look}" x1="{LEFT}" x2="{end}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at + 3.5}" text-anchor="end">'
            f"{_number(value)}</text>"
        )
    for value in across.ticks(7):
        if whole and value != round(value):
            continue
        at = across.at(value)
        parts.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{foot}" y2="{foot + 4}"/>')
        parts.append(
            f'<text class="tick" x="{at}" y="{foot + 16}" text-anchor="middle">'
            f"{_number(value)}</text>"
        )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{foot}H{right}"/>')
    parts.append(
        f'<text x="{(LEFT + right) / 2}" y="{height - 8}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    parts.append(
        f'<text transform="translate(11,{(TOP + foot) / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>"
    )
    return "".join(parts)


def _title(words: str) -> str:
    return f'<text class="title" x="{LEFT}" y="13">{html.escape(words)}</text>'


def _svg(parts: Sequence[str], title: str, size: tuple[int, int]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" width="{size[0]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" aria-label="{html.escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def _picture(picture: Tensor, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<image href="{data_uri(picture)}" x="{x}" y="{y}" width="{width}" height="{height}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
    )


def _coloured(shares: Tensor) -> Tensor:
    """Shares [rows, cols] from 0 to 1 as colours [rows, cols, 3] uint8."""
    anchors = torch.tensor(ANCHORS, dtype=torch.float64)
    place = shares.clamp(0, 1) * (len(anchors) - 1)
    below = place.floor().long().clamp(max=len(anchors) - 2)
    part = (place - below)[..., None]
    return ((1 - part) * anchors[below] + part * anchors[below + 1]).round().to(torch.uint8)


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")
