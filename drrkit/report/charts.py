"""Tables and charts of the page: matplotlib's SVG, its colours left to the style sheet."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor

COLOURS = {"#010203": "--ink", "#010204": "--quiet", "#010205": "--line", "#010206": "--accent"}
"""What is drawn in these colours follows the page's variables: light, dark or printed."""

INK, QUIET, LINE, ACCENT = COLOURS
PIXELS_PER_INCH = 72  # of an SVG


class Markup(str):
    """HTML, which is not to be escaped."""


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows whose first cell names them, as HTML; cells are text unless they are Markup."""

    def cells(row: Sequence[str]) -> list[str]:
        return [cell if isinstance(cell, Markup) else html.escape(cell) for cell in row]

    top = "".join(f'<th scope="col">{cell}</th>' for cell in cells(head))
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for name, *rest in map(cells, rows)
    )
    caption = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{caption}<tbody>{body}</tbody></table></div>'


def can_draw() -> bool:
    """Whether matplotlib, of the extra `plots`, is installed."""
    return find_spec("matplotlib") is not None


def line_chart(
    x: Sequence[float],
    y: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    whole: bool = False,
    size: tuple[int, int] = (420, 220),
) -> str:
    """A curve as an SVG element.

    Args:
        x, y: its points; where y is NaN the curve is interrupted.
        title, x_label, y_label: words, with units.
        log: y is logarithmic; what is not above 0 is left out.
        marks: (x, words) of vertical lines.
        whole: x counts something: ticks are whole numbers.
        size: (width, height) in CSS pixels.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there is no finite point.
    """
    shown = [v if math.isfinite(v) and (v > 0 or not log) else math.nan for v in y]
    if not any(map(math.isfinite, shown)):
        raise ValueError("y: expected at least one value that can be drawn, got none")
    figure, plot = _figure(title, x_label, y_label, size)
    few = "o" if len(shown) <= 40 else ""
    plot.plot(x, shown, color=ACCENT, linewidth=1.6, marker=few, markersize=4, gid="curve")
    plot.grid(axis="y", color=LINE, linewidth=0.7)
    if log:
        plot.set_yscale("log")
        plot.yaxis.set_major_formatter("{x:g}")
    if whole:
        plot.xaxis.get_major_locator().set_params(integer=True)
    for at, words in marks:
        plot.axvline(at, color=QUIET, linestyle=":", linewidth=1)
        plot.annotate(words, (at, 1), xycoords=("data", "axes fraction"), color=QUIET, va="top")
    return _svg(figure, title, size)


def heat_map(
    values: Tensor,
    x: Sequence[float],
    y: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str,
    value_label: str,
    size: tuple[int, int] = (360, 290),
) -> str:
    """A map of two axes with a colour bar as an SVG element; a cross marks (0, 0).

    Args:
        values: [Y, X].
        x, y: where its columns and rows lie, ascending, at equal distances.
        title, x_label, y_label, value_label: words, with units.
        size: (width, height) in CSS pixels.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure, plot = _figure(title, x_label, y_label, size)
    # Rows and columns lie in the middle of their cells.
    across, up = ((v[-1] - v[0]) / (len(v) - 1) / 2 for v in (x, y))
    extent = (x[0] - across, x[-1] + across, y[0] - up, y[-1] + up)
    image = plot.imshow(values.numpy(), origin="lower", aspect="auto", extent=extent)
    bar = figure.colorbar(image)
    bar.set_label(value_label, color=INK)
    bar.ax.tick_params(color=QUIET, labelcolor=QUIET)
    bar.outline.set_edgecolor(QUIET)
    plot.plot(0.0, 0.0, "+", color="white", markersize=12)
    return _svg(figure, title, size)


def _figure(title: str, x_label: str, y_label: str, size: tuple[int, int]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    inches = size[0] / PIXELS_PER_INCH, size[1] / PIXELS_PER_INCH
    figure = Figure(figsize=inches, layout="constrained", facecolor="none")
    plot = figure.add_subplot(facecolor="none")
    plot.set_title(title, loc="left", color=INK, fontweight="bold", fontsize=11)
    plot.set_xlabel(x_label, color=INK)
    plot.set_ylabel(y_label, color=INK)
    plot.tick_params(which="both", color=QUIET, labelcolor=QUIET)
    for side in plot.spines.values():
        side.set_color(QUIET)
    plot.spines[["top", "right"]].set_visible(False)
    return figure, plot


def _svg(figure: Any, title: str, size: tuple[int, int]) -> str:
    """The figure as one element whose names are its own within a page."""
    import matplotlib

    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", metadata=nothing)
    drawing = stream.getvalue().partition("<svg ")[2].partition(">")[2]
    for colour, variable in COLOURS.items():
        drawing = drawing.replace(colour, f"var({variable})")
    # A style sheet would hold for the whole page; groups are numbered alike in every chart.
    drawing = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawing, count=1, flags=re.DOTALL)
    drawing = re.sub(r"font-family: [^;]*;", "", drawing)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing.replace('<g id="curve"', '<g class="curve"'))
    width, height = size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'class="chart" role="img" aria-label="{html.escape(title, quote=True)}" '
        f'width="{width}" viewBox="0 0 {width} {height}">{drawing}'
    )
