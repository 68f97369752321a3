"""Every Python block of the documentation runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DATA = {"real_xrays.md"}  # pages that read files of DRRKIT_DATA


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.data] if p.name in DATA else [], id=p.name) for p in PAGES],
)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert blocks, f"{page.name} has no Python block"
    scope: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page.name, "exec"), scope)
