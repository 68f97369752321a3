"""drrkit bench: what it measures and prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.commands import run, succeed

SMALL = ("--size", "12x16", "--views", 2, "--rounds", 2, "--threads", 1)


@pytest.mark.io
def test_every_method_is_measured_with_its_gradients(data: Path) -> None:
    threads = torch.get_num_threads()
    told = json.loads(succeed("bench", data / "ct.nii.gz", *SMALL, "--json").stdout)
    assert torch.get_num_threads() == threads and told["machine"]["torch_threads"] == 1
    found = {(row["method"], row["operation"]): row for row in told["rows"]}
    methods = {"joseph", "siddon", "trilinear"}
    assert {method for method, _ in found} == {*methods, "joseph packed"}
    for method in methods:
        assert {o for m, o in found if m == method} == {
            "forward",
            "+ pose gradient",
            "+ volume gradient",
        }
    assert ("joseph packed", "+ volume gradient") not in found  # of constant voxels
    for row in told["rows"]:
        assert 0 < row["least"] <= row["seconds"] <= row["greatest"] and row["calls"] >= 2
    assert told["volume"]["name"] == "ct.nii.gz" and told["versions"]["torch"]


@pytest.mark.io
def test_the_table_has_a_line_for_every_method(data: Path) -> None:
    head, names, *lines = succeed("bench", data / "ct.nii.gz", *SMALL).stdout.splitlines()
    assert "1 threads; ct.nii.gz" in head and "2 x 12x16 pixels" in head
    assert "+ pose gradient" in names
    assert [line[:14].strip() for line in lines] == [
        "joseph packed",
        "joseph",
        "siddon",
        "trilinear",
    ]
    assert all(line.count(" ms") == (2 if "packed" in line else 3) for line in lines)


@pytest.mark.parametrize("words", [("--rounds", 0), ("--size", "8by8"), ("no_such.nii.gz",)])
def test_wrong_usage_is_refused(words: tuple) -> None:
    assert run("bench", *words).exit_code == 2
