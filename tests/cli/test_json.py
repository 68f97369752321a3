"""Every command answers with one JSON document, errors included, and can be repeated from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

import drrkit
from drrkit.cli import main
from drrkit.cli.configuration import recorded_options
from drrkit.cli.io import read_pose, write_pose
from drrkit.evaluation import METHODS
from tests.support.commands import CAMERA, QUICK, python, run, small_camera, small_ct, write_data

pytestmark = pytest.mark.io


def leaves(command: click.Command, ctx: click.Context, way: str = "") -> Iterator[str]:
    """All commands that do something, as they are called."""
    if not isinstance(command, click.Group):
        yield way
        return
    for name in command.list_commands(ctx):
        _, found, _ = command.resolve_command(ctx, [name])
        assert found is not None
        inner = click.Context(found, ctx, name)
        yield from leaves(found, inner, f"{way} {name}".strip())


VERBS = sorted(leaves(main, click.Context(main, info_name="drrkit", **main.context_settings)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data"))
    camera = small_camera()
    write_pose(folder / "pose.json", drrkit.view_ap(small_ct(), 800.0), camera)
    return folder


TINY = ["--steps", 1, "--device", "cpu", "-q"]
PAIRS = ["--phantoms", 2, "--voxels", 12, "--views", 3, "--pixels", 16, "--depth", 2, *TINY]
REGISTER = ["ct.nii.gz", "xray.npy", "--init", "start.json", "--stages", "ncc:4:2", "-q"]
SMALL = ["--phantoms", 2, "--voxels", 12, "--size", "32x32", "--batch", 1, *TINY]

CALLS: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "bench": (["ct.nii.gz", "--size", "8x8", "--rounds", 1], ("machine", "rows")),
    "convert": (["pose.json", "--to", "opencv", "-o", "OUT.json"], ("written", "flip")),
    "demo": (["--out", "OUT", "-q"], ("succeeded", "before", "after")),
    "doctor": ([], ("healthy", "findings")),
    "evaluate": (
        ["ct.nii.gz", "--registration", "auto", "--cases", 1, "--out", "OUT"],
        ("complete", "summary"),
    ),
    "info": (["pose.json", "--ct", "ct.nii.gz", "--scene", "OUT.svg"], ("geometry", "sentence")),
    "register": (
        [*REGISTER, "--min-confidence", 0, "-o", "OUT.json"], ("world_to_camera", "accepted"),
    ),
    "render": (["ct.nii.gz", *CAMERA, "-o", "OUT.npy"], ("written", "line_integrals")),
    "report": (["result.json", "-o", "OUT.html"], ("written",)),
    "simulate": (["ct.nii.gz", *CAMERA, "-o", "OUT.png"], ("written", "values", "camera")),
    "track": (
        ["ct.nii.gz", "xray.npy", "--init", "pose.json", *REGISTER[4:], "-o", "OUT.csv"],
        ("world_to_camera", "lost"),
    ),
    "train mnerf": ([*PAIRS, "--held-out", 1, "--out", "OUT"], ("step", "written")),
    "train nett": ([*PAIRS, "--out", "OUT"], ("step", "written")),
    "train regressor": (
        [*SMALL, "--network", "deepim-small", "--rounds", 1, "--out", "OUT"], ("step", "written"),
    ),
    "train similarity": (
        [*SMALL, "--network", "prost-2020-small", "--out", "OUT"], ("step", "metrics"),
    ),
    "view": (["--no-browser", "--device", "cpu"], ("address",)),
}  # fmt: skip
"""For every command: a small real call (OUT is what it writes), and keys of its document."""


def words(verb: str, data: Path, out: Path) -> list[str]:
    """The small call of a command, with the names of files in full."""
    found = []
    for word in map(str, CALLS[verb][0]):
        if word.startswith("OUT"):
            word = f"{out}{word[3:]}"
        elif (data / word).exists() or word == "result.json":
            word = str(data / word)
        found.append(word)
    return [*verb.split(), *found]


@pytest.fixture(autouse=True)
def small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phantoms of fewer voxels, fewer iterations; a page that is not opened."""
    from drrkit.viewer import server

    def serve(session: object, announce: Callable[[str], None], **_: object) -> None:
        announce("http://127.0.0.1:1/secret/")

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr("drrkit.cli.demo.torso", lambda _: small_ct())
    monkeypatch.setitem(METHODS, "auto", QUICK)


@pytest.fixture(scope="module")
def result(data: Path) -> Path:
    """A result of register, for report."""
    path = data / "result.json"
    run(*words("register", data, path.with_suffix("")))
    assert path.exists()
    return path


def test_every_command_has_a_call_here() -> None:
    assert set(CALLS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_names_the_options_that_all_commands_have(verb: str) -> None:
    shown = run(*verb.split(), "--help")
    assert shown.exit_code == 0 and f" {verb} " in shown.output.splitlines()[0]
    assert "--json" in shown.output and "--config FILE" in shown.output


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_answers_with_one_document_that_repeats_it(
    verb: str, data: Path, result: Path, tmp_path: Path
) -> None:
    told = run(*words(verb, data, tmp_path / "out"), "--json")
    assert told.exit_code == 0 or (verb == "demo" and told.exit_code == 1), told.stderr
    content = json.loads(told.stdout)
    assert set(CALLS[verb][1]) <= set(content)
    record = content["run"]
    assert record["command"] == verb
    assert record["versions"]["drrkit"] == drrkit.__version__
    assert record["versions"]["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["seed"] == record["options"].get("seed")
    # Read again, the document gives the options that it was made with, one and all.
    (tmp_path / "again.json").write_text(told.stdout)
    with parsed(verb, ["--config", str(tmp_path / "again.json")]) as ctx:
        assert recorded_options(ctx) == record["options"]


def parsed(verb: str, arguments: list[str]) -> click.Context:
    """The context of a command that is not run."""
    ctx = click.Context(main, info_name="drrkit", **main.context_settings)
    for name in verb.split():
        assert isinstance(ctx.command, click.Group)
        _, found, _ = ctx.command.resolve_command(ctx, [name])
        assert found is not None
        ctx = click.Context(found, ctx, name)
    return ctx.command.make_context(ctx.info_name, arguments, ctx.parent)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_tells_wrong_usage_as_a_document(verb: str) -> None:
    told = run(*verb.split(), "--json", "--no-such-option")
    error = json.loads(told.stdout)["error"]
    assert told.exit_code == error["exit_code"] == 2 and error["kind"] == "usage"
    assert "--no-such-option" in error["message"] and "--no-such-option" in told.stderr


def test_people_get_no_document(data: Path, tmp_path: Path) -> None:
    told = run(*words("render", data, tmp_path / "out"))
    assert told.stdout.startswith(str(tmp_path / "out.npy")) and "{" not in told.stdout


def test_errors_of_every_kind_are_documents(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*words("render", data, tmp_path / "out"), "--json"]

    def told(error: BaseException) -> tuple[str, int]:
        def fails(*_: object, **__: object) -> None:
            print("something else")
            raise error

        monkeypatch.setattr("drrkit.cli.render.render", fails)
        ended = run(*arguments)
        found = json.loads(ended.stdout)["error"]
        assert found["exit_code"] == ended.exit_code and found["message"] in ended.stderr
        assert "something else" in ended.stderr and list(tmp_path.iterdir()) == []
        return found["kind"], ended.exit_code

    assert told(ValueError("no")) == ("input", 2)
    assert told(FileNotFoundError(2, "No such file", "a.nii")) == ("input", 2)
    assert told(EOFError("short")) == ("input", 2)
    assert told(RuntimeError("broken")) == ("failure", 1)
    assert told(RuntimeError("DefaultCPUAllocator: can't allocate memory")) == ("memory", 1)
    assert told(MemoryError()) == ("memory", 1)
    assert told(KeyError("bug")) == ("internal", 1)
    assert told(KeyboardInterrupt()) == ("interrupted", 130)


def test_unknown_commands_and_missing_ones_are_documents() -> None:
    for arguments in (["rendre", "--json"], ["train", "--json"], ["--json"]):
        told = run(*arguments)
        assert told.exit_code == json.loads(told.stdout)["error"]["exit_code"] == 2


def test_help_stays_text() -> None:
    assert run("render", "--json", "--help").stdout.startswith("Usage:")


def test_a_fresh_process_prints_nothing_but_the_document(data: Path, tmp_path: Path) -> None:
    told = python("-m", "drrkit", *words("simulate", data, tmp_path / "out"), "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["run"]["options"]["size"] == [48, 64]
    assert told.stderr == ""


# ---- repeating


def registered(*arguments: object) -> dict[str, Any]:
    told = run("register", *arguments, "--json")
    assert told.exit_code == 0, told.stderr
    return json.loads(told.stdout)


def test_a_registration_repeats_itself_bit_for_bit_from_its_result(
    data: Path, tmp_path: Path
) -> None:
    drawn = ["--stages", "gradient_ncc:2:8,mi:2:4", "--mask", data / "mask.npy", "--seed", 5]
    np.save(data / "mask.npy", np.ones((48, 64)))
    start = [data / "ct.nii.gz", data / "xray.npy", "--init", data / "start.json", "-q"]
    first = registered(*start, *drawn, "--min-confidence", 0, "-o", tmp_path / "a.json")
    again = registered("--config", tmp_path / "a.json", "-o", tmp_path / "b.json")
    stored = [json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json")]
    for one in (first, again, *stored):
        assert one["world_to_camera"] == first["world_to_camera"]
        assert one["confidence"] == first["confidence"]
        assert one["stages"][0]["best_loss"] == first["stages"][0]["best_loss"]
    options = [dict(one["run"]["options"]) for one in stored]
    assert options[0].pop("output") != options[1].pop("output")
    assert options[0] == options[1] and options[0]["seed"] == 5
    # Without an output the result is written again where it was, and is the same.
    registered("--config", tmp_path / "a.json")
    over = json.loads((tmp_path / "a.json").read_text())
    assert over["world_to_camera"] == first["world_to_camera"]


@pytest.mark.parametrize("verb", ["render", "simulate"])
def test_a_saved_pose_repeats_the_image(verb: str, data: Path, tmp_path: Path) -> None:
    saved, out = tmp_path / "pose.json", tmp_path / "a.npy"
    how = ["--xi", "1,2,3,4,5,6.25", "--sdd", "987.5", "--method", "siddon"]
    run(verb, data / "ct.nii.gz", *CAMERA, *how, "-o", out, "--save-pose", saved)
    again = run(verb, "--config", saved, "-o", tmp_path / "b.npy")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert read_pose(saved).camera is not None


def test_toml_and_json_give_defaults_that_the_command_line_overrides(
    data: Path, tmp_path: Path
) -> None:
    toml = f"""
        ct = "{data / "ct.nii.gz"}"
        size = [20, 30]
        pixel-spacing = 9
        xi = [1, 2.5, 0, 0, 0, 0]
        invert = true
        view = "pa"
    """
    (tmp_path / "c.toml").write_text(toml)
    told = run(
        "render", "--config", tmp_path / "c.toml", "--size", "24x32", "-o", tmp_path / "a.png",
        "--json",
    )  # fmt: skip
    assert told.exit_code == 0, told.stderr
    options = json.loads(told.stdout)["run"]["options"]
    assert options["size"] == [24, 32] and options["pixel_spacing"] == [9.0, 9.0]
    assert options["xi"] == [1.0, 2.5, 0.0, 0.0, 0.0, 0.0]
    assert options["invert"] is True and options["view"].upper() == "PA"
    assert options["method"] == "joseph" and options["sdd"] is None
    (tmp_path / "c.json").write_text(json.dumps({"cases": 3, "protocol": ["narrow", "prost"]}))
    with parsed("evaluate", ["--config", f"{tmp_path / 'c.json'}", "--out", "x"]) as ctx:
        assert ctx.params["protocols"] == ("narrow", "prost") and ctx.params["cases"] == 3
        assert ctx.params["cts"] == ()
    cts = [str(data / "ct.nii.gz"), str(data / "mu.nii.gz")]
    (tmp_path / "c.json").write_text(json.dumps({"cts": cts, "out": "x"}))
    with parsed("evaluate", ["--config", f"{tmp_path / 'c.json'}"]) as ctx:
        assert [str(path) for path in ctx.params["cts"]] == cts


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "pixel-spaceing = 2", "'pixel-spaceing' is no option of drrkit render"),
        ("c.toml", "pixel-spaceing = 2", "the nearest option is 'pixel_spacing'"),
        ("c.toml", "[render]\nsize = 3", "'render' is no option"),
        ("c.json", '{"zzz": 1}', "the nearest option is"),
        ("c.toml", "size = ", "does not parse"),
        ("c.json", "{", "does not parse"),
        ("c.json", "3", "expected a table of options, got int"),
        ("c.yaml", "size: 3", "expected a .toml or .json file"),
        ("c.toml", "size = true", "size: expected a word or a number, got True"),
        ("c.toml", 'invert = "yes"', "invert: expected true or false, got 'yes'"),
        ("c.toml", "sdd = {a = 1}", "sdd: expected a word or a number"),
        ("c.toml", "sdd = [1, 2]", "sdd: expected a word or a number, got [1, 2]"),
        ("c.toml", "size = [0, 3]", "expected ROWSxCOLS pixels such as 256x256, got '0x3'"),
        ("c.toml", "pixel-spacing = 1\npixel_spacing = 2", "'pixel_spacing' is there twice"),
        ("c.json", '{"run": {"command": "demo", "options": {}}}', "is of drrkit demo"),
        ("c.toml", 'ct = "none.nii.gz"', "Path 'none.nii.gz' does not exist"),
        ("c.toml", "config = 3", "'config' is no option"),
    ],
)
def test_a_configuration_that_is_none_is_told(
    name: str, text: str, message: str, data: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    ct = [] if "ct =" in text else [data / "ct.nii.gz"]
    told = run("render", *ct, "-o", tmp_path / "a.npy", "--config", tmp_path / name)
    assert told.exit_code == 2 and message in " ".join(told.stderr.split()), told.stderr
    assert not (tmp_path / "a.npy").exists()


def test_keys_are_the_long_names_of_options() -> None:
    with parsed("view", []) as ctx:
        keys = recorded_options(ctx)
    assert {"ct", "xray", "init", "output", "no_browser", "xray_kind"} <= set(keys)
    assert not {"json", "config", "help", "as_json"} & set(keys)
