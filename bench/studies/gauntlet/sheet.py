"""Contact sheets: the X-rays of every condition, to be looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bench.studies.gauntlet.cases import cached_xray, draw
from bench.studies.gauntlet.conditions import CONDITIONS

TILE = 128


def contact_sheet(
    path: Path, conditions: list[str], seeds: str, count: int, cache: Path, zoom: int = 1
) -> None:
    """A PNG: a row per condition with its name, a column per case, each on its own grey scale."""
    left = 110
    sheet = Image.new("L", (left + count * (TILE * zoom + 2), len(conditions) * (TILE * zoom + 2)))
    pen = ImageDraw.Draw(sheet)
    for i, name in enumerate(conditions):
        top = i * (TILE * zoom + 2)
        pen.text((2, top + 4), name, fill=255)
        for number in range(count):
            condition = CONDITIONS[name]
            recipe = draw(condition, seeds, number, cache)
            image = cached_xray(condition, seeds, number, cache, recipe)
            low, high = np.percentile(image, [0.5, 99.5])
            grey = np.clip(255 * (image - low) / max(high - low, 1e-9), 0, 255).astype(np.uint8)
            tile = Image.fromarray(grey).resize(
                (TILE * zoom, TILE * zoom), Image.Resampling.NEAREST
            )
            sheet.paste(tile, (left + number * (TILE * zoom + 2), top))
            label = f"{recipe.subject.name} {recipe.view}"
            pen.text((left + number * (TILE * zoom + 2) + 2, top + 1), label, fill=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
