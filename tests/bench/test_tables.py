"""What is made of the benchmark's records: text, pictures, the README's tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.projectors import readme, table
from bench.projectors.plots import draw, ratios, scaling
from tests.bench.records import example

ROOT = Path(__file__).resolve().parents[2]


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table_shows_times_ratios_memory_differences_and_floors() -> None:
    text = table.text(example())
    start = text.index("forward, AP 1 x 100²\n")
    block = text[start : text.index("\n\n", start)].splitlines()
    assert block[1].split("  ")[-1].strip() == "x load bound"
    own, rival = block[2].split(), block[4].split()
    assert own[2:] == ["10.0", "ms", "9.50-11.0", "1.00x", "2.5", "4.00", "8.00"]
    assert rival[2:] == ["100", "ms", "95.0-110", "10.0x", "10.0x", "2.5", "1.2e-04"]
    assert block[5].split()[5:7] == ["5.00x", "2.50x"]  # of joseph; of siddon
    assert block[6].split()[:4] == ["other", "exact", "5.00", "ms"]


def test_columns_that_have_nothing_to_say_are_left_out() -> None:
    text = table.text(example())
    block = text[text.index("forward + pose gradient, AP") :].splitlines()
    assert "to reference" not in block[1] and "in a graph" not in block[1]
    assert "in a graph" in table.text(example("cuda"))


def test_curves_run_over_what_changes() -> None:
    text = table.text(example())
    views = text[text.index("views (forward, AP)") :].splitlines()
    assert views[1].split() == ["1", "4", "16"]
    assert views[2].split() == ["drrkit", "joseph", "16.4", "ms", "65.5", "ms", "262", "ms"]
    threads = text[text.index("threads (forward, AP)") :].splitlines()
    assert threads[2].split() == ["drrkit", "joseph", "10.0", "ms", "5.00", "ms"]


def test_the_table_says_what_is_missing_and_where_numbers_come_from() -> None:
    text = table.text(example())
    for words in (
        "third: absent (not installed)",
        "left out: rival siddon in volume AP 4 x 100²: too large",
        "other exact: its own clock",
        "20.0 GB/s copied, 100 G loads/s (magic)",
        "a CPU, 2 of 2 cores",
        "rival 7",
        "bench.projectors --quick",
    ):
        assert words in text


@pytest.mark.parametrize(
    "seconds, shown",
    [
        (1.234, "1.23 s"),
        (0.0321, "32.1 ms"),
        (4.56e-4, "456 us"),
        (123.4, "123 s"),
        (1e-9, "0.00 us"),
    ],
)
def test_durations_have_three_digits_and_a_unit(seconds: float, shown: str) -> None:
    assert table.duration(seconds) == shown


# ---- pictures


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pictures_are_written_and_have_something_on_them(device: str, tmp_path: Path) -> None:
    from matplotlib.image import imread

    written = draw(example(device), tmp_path, "x")
    assert [p.name for p in written] == ["x_ratios.png", "x_scaling.png"]
    for path in written:
        pixels = imread(path)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 500
        assert 0.01 < (pixels[..., :3].min(-1) < 0.9).mean() < 0.6


def test_bars_are_the_fastest_method_of_every_other_tool() -> None:
    figure = ratios(example())
    assert figure is not None
    (axes,) = figure.axes
    shown = [text.get_text() for text in axes.texts]
    # AP and lateral forward, pose, volume; rival's siddon is its fastest, other has no gradients
    assert shown == ["5.00x", "0.50x"] * 2 + ["5.00x"] * 2
    assert next(t.get_text() for t in axes.get_yticklabels()) == "AP 1 x 100²  forward"


def test_curves_have_a_line_for_every_case() -> None:
    figure = scaling(example())
    assert figure is not None and len(figure.axes) == 2
    assert all(len(axes.lines) == 5 for axes in figure.axes)
    x, y = figure.axes[0].lines[0].get_data()
    assert list(x) == [1, 4, 16] and list(y) == pytest.approx([16.384, 65.536, 262.144])


def test_records_with_nothing_to_draw_give_no_pictures(tmp_path: Path) -> None:
    rows = [r for r in example()["rows"] if r["case"].startswith("drrkit")]
    alone = example(rows=[r for r in rows if r["section"] == "main"])
    assert draw(alone, tmp_path, "x") == []


# ---- the README


def test_the_readme_says_what_the_results_say() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.block(readme.results(ROOT / "bench" / "results"))
    assert readme.replaced(text, block) == text, "run python -m bench.projectors.readme"


def test_the_readmes_tables() -> None:
    block = readme.block({"x.json": example()})
    rows = [line for line in block.splitlines() if line.startswith("|")]
    own = "| **drrkit joseph** | 10.0 ms / 10.0 ms | 10.0 ms |  |  | 1.00x / 1.00x | 2.5 MB |  |"
    assert own in rows
    other = "| other exact | 5.00 ms / 5.00 ms |  |  |  | 0.50x / 0.50x |  | 1e-04 / 1e-04 |"
    assert other in rows
    bounds = "4.00x the memory-bandwidth bound and 8.00x the load bound (AP 1 x 100²)"
    assert f"Measured time of drrkit joseph is {bounds}." in block
    assert "one view of 100 x 100 pixels of a box (64 x 64 x 16 voxels)" in block
    assert "`bench/results/x.json`, 2030-01-02" in block


def test_a_gpus_tables_come_first_and_hold_cuda_graphs() -> None:
    block = readme.block({"a.json": example(), "b.json": example("cuda")})
    assert block.index("A Card 100") < block.index("a CPU")
    assert "| other exact | 5.00 ms [2.50 ms] / 5.00 ms [2.50 ms] |" in block


def test_only_the_marked_part_of_the_readme_is_replaced() -> None:
    begin, end = readme.BEGIN, readme.END
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    assert readme.replaced(text, "new") == f"before\n{begin}\n\nnew\n{end}\nafter\n"
    for wrong in ("nothing", text + begin, begin + text):
        with pytest.raises(ValueError, match="expected one line"):
            readme.replaced(wrong, "new")


def test_results_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": 1}')
    assert readme.results(tmp_path) == {}
