"""Every Python block of the documentation runs, and what it says of the build holds."""

import ast
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


def test_the_default_architectures_are_those_that_the_installation_page_names() -> None:
    setup = (ROOT / "setup.py").read_text()
    (default,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(setup).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEFAULT_ARCHITECTURES"
    )
    assert default.split(";")[0] == "7.5"  # the T4's, the oldest that CUDA 13 serves
    assert '["--compress-mode=size"]' in setup
    page = (ROOT / "docs" / "install.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith("| `TORCH_CUDA_ARCH_LIST`"))
    assert f"default `{default}`" in row and "7.5 is the oldest that CUDA 13 serves" in row
    assert re.search(r"a binary of \d+ MB \(nvcc [\d.]+, compressed\) and a wheel of \d+ MB", row)
