"""The command line: what it refuses, how it says so, and what it leaves behind."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch

import drrkit
from drrkit.cli.io import refuse_overwriting, write_json, write_pose
from drrkit.cli.options import OutputFile
from drrkit.report import save_image
from tests.support.commands import CAMERA, python, run, small_camera, succeed


def not_json(folder: Path) -> None:
    (folder / "p.json").write_text("{'world_to_camera': }")


def pose_with(folder: Path, **changes: object) -> None:
    matrix = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 800], [0, 0, 0, 1]]
    (folder / "p.json").write_text(json.dumps({"world_to_camera": matrix, **changes}))


def truncated(source: Path, target: Path) -> None:
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])


REFLECTION = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 800], [0, 0, 0, 1]]
TRANSPOSED = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 800, 1]]
SHEAR = [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 800], [0, 0, 0, 1]]

# Options after the CT (and an X-ray), what to do in the folder first, words of the message.
RENDER_ERRORS = {
    "unknown suffix": (["-o", "a.jpg"], None, ["--output", ".nii.gz", "a.jpg"]),
    "no folder": (["-o", "none/a.png"], None, ["--output", "none", "does not exist"]),
    "a file as folder": (["-o", "text.nii.gz/a.png"], None, ["--output", "does not exist"]),
    "a folder as file": (["-o", "d.png"], lambda f: (f / "d.png").mkdir(), ["--output", "folder"]),
    "overwrites the CT": (["-o", "ct.nii.gz"], None, ["ct.nii.gz", "overwrite"]),
    "size": (["--size", "0x3"], None, ["--size", "256x256", "0x3"]),
    "pixel spacing": (["--pixel-spacing", "1,-1"], None, ["--pixel-spacing", "positive", "1,-1"]),
    "xi": (["--xi", "1,2,3"], None, ["--xi", "6 numbers", "1,2,3"]),
    "not a number": (["--xi", "1,2,3,4,5,nan"], None, ["--xi", "6 numbers", "nan"]),
    "sdd": (["--sdd", "-5"], None, ["sdd", "> 0", "-5"]),
    "sod": (["--sod", "0"], None, ["sod", "> 0", "0"]),
    "energy": (["--energy", "500"], None, ["energy_kev", "40 to 120", "500"]),
    "energy for mu": (["--unit", "mu", "--energy", "70"], None, ["--energy", "--unit mu"]),
    "mu where HU are meant": (["--unit", "mu"], None, ["1/mm", "-1000", "--unit mu"]),
    "select alone": (["--select", "1"], None, ["--labels", "--select"]),
    "labels alone": (["--labels", "labels.nii.gz"], None, ["--labels", "--select"]),
    "no such label": (
        ["--labels", "labels.nii.gz", "--select", "77"], None, ["labels", "77", "not in"],
    ),
    "labels that are no numbers": (["--select", "a"], None, ["--select", "whole numbers"]),
    "step for joseph": (["--step", "1"], None, ["step", "trilinear", "joseph"]),
    "view and pose": (["--view", "PA", "--pose", "p.json"], pose_with, ["--view", "--pose"]),
    "angle of a lateral": (
        ["--view", "left-lateral", "--primary", "3"], None, ["--primary", "AP or PA"],
    ),
    "sod of a pose": (["--pose", "p.json", "--sod", "700"], pose_with, ["--sod", "named view"]),
    "display of numbers": (["--display", "line", "-o", "a.npy"], None, ["--display", "a.npy"]),
    "an angle that is none": (["--primary", "nan"], None, ["--primary", "finite", "nan"]),
    "an angle of many turns": (["--secondary", "1e9"], None, ["--secondary", "-360<=x<=360"]),
    "infinite distance": (["--sod", "inf"], None, ["--sod", "finite", "inf"]),
    "an empty pose": (
        ["--pose", "p.json"], lambda f: (f / "p.json").write_text(""), ["p.json", "empty file"],
    ),
    "window": (["--window", "90,10"], None, ["window", "percentiles", "90"]),
    "device": (["--device", "tpu"], None, ["--device", "cuda:N", "tpu"]),
    "no such device": (["--device", "cuda:99"], None, ["--device", "CUDA"]),
    "no pose": (["--pose", "none.json"], None, ["--pose", "none.json", "does not exist"]),
    "pose that is no JSON": (["--pose", "p.json"], not_json, ["p.json", "JSON", "line 1"]),
    "pose that is binary": (["--pose", "ct.nii.gz"], None, ["ct.nii.gz", "JSON", "binary"]),
    "pose without a matrix": (
        ["--pose", "p.json"],
        lambda f: (f / "p.json").write_text('{"pose": 1}'),
        ["p.json", "world_to_camera", "pose"],
    ),
}  # fmt: skip


UPSIDE_DOWN = {"K": [[1, 0, 0], [0, -1, 0], [0, 0, 1]], "size": [4, 4], "sdd": 9}
POSE_ERRORS = {
    "of 3 rows": ({"world_to_camera": TRANSPOSED[:3]}, ["world_to_camera", "4 rows"]),
    "NaN": ({"world_to_camera": [[math.nan] * 4] * 4}, ["world_to_camera", "finite"]),
    "words": ({"world_to_camera": [["a"] * 4] * 4}, ["world_to_camera", "finite"]),
    "reflects": ({"world_to_camera": REFLECTION}, ["rotation", "reflection"]),
    "shears": ({"world_to_camera": SHEAR}, ["rotation", "off by 0.2"]),
    "transposed": ({"world_to_camera": TRANSPOSED}, ["0, 0, 0, 1", "transposed"]),
    "from the future": ({"schema_version": 99}, ["schema_version 1", "99"]),
    "half a camera": ({"camera": {"sdd": 3}}, ["camera", "K, size"]),
    "a bad camera": ({"camera": UPSIDE_DOWN}, ["camera", "fy > 0"]),
}
"""What makes a pose file mean nothing, and words of the message."""


@pytest.fixture
def folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good and bad files."""
    for name in ("ct.nii.gz", "mu.nii.gz", "labels.nii.gz", "xray.npy", "start.json"):
        (tmp_path / name).symlink_to(data / name)
    (tmp_path / "text.nii.gz").write_text("this is not an image\n" * 50)
    truncated(data / "ct.nii.gz", tmp_path / "cut.nii.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(folder: Path, arguments: list[str], words: list[str]) -> None:
    before = sorted(folder.rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    shown = " ".join(result.output.split())
    for word in words:
        assert word in shown, f"{word!r} is not in {shown!r}"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.io
@pytest.mark.parametrize("case", RENDER_ERRORS)
def test_render_refuses_with_a_sentence_and_writes_nothing(folder: Path, case: str) -> None:
    options, prepare, words = RENDER_ERRORS[case]
    if prepare is not None:
        prepare(folder)
    output = [] if "-o" in options else ["-o", "a.png"]
    refused(folder, ["render", "ct.nii.gz", *output, *options], words)


@pytest.mark.io
@pytest.mark.parametrize("case", POSE_ERRORS)
def test_a_pose_file_that_means_nothing_is_refused(folder: Path, case: str) -> None:
    changes, words = POSE_ERRORS[case]
    pose_with(folder, **changes)
    refused(folder, ["render", "ct.nii.gz", "-o", "a.png", "--pose", "p.json"], ["p.json", *words])


@pytest.mark.io
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.nii.gz", ["'CT'", "none.nii.gz", "does not exist"]),
        ("text.nii.gz", ["text.nii.gz", "not a NIfTI file"]),
        ("cut.nii.gz", ["cut.nii.gz", "truncated"]),
        ("start.json", ["start.json", ".nii.gz", "DICOM"]),
        ("mu.nii.gz", ["mu.nii.gz", "Hounsfield", "--unit mu"]),
        (".", ["DICOM"]),
    ],
)
def test_a_ct_that_is_none_is_refused(folder: Path, name: str, words: list[str]) -> None:
    refused(folder, ["render", name, "-o", "a.png"], words)
    refused(
        folder, ["register", name, "xray.npy", "--init", "start.json", "-o", "r.json", "-q"], words
    )


def cut_npy(folder: Path) -> None:
    truncated(folder / "xray.npy", folder / "cut.npy")


REGISTER_ERRORS = {
    "the CT instead": ("ct.nii.gz", [], None, ["ct.nii.gz", "a run of", "the CT, it comes first"]),
    "a start twice": (
        "xray.npy", ["--landmarks", "start.json"], None, ["either --init or --landmarks"],
    ),
    "a stage without numbers": (
        "xray.npy", ["--stages", "ncc"], None, ["--stages", "'ncc' has not one or two numbers"],
    ),
    "a seed too large": ("xray.npy", ["--seed", "9" * 30], None, ["--seed", "range"]),
    "a network that is none": (
        "xray.npy", ["--similarity", "text.nii.gz"], None, ["text.nii.gz", "no file of torch"],
    ),
    "no X-ray": ("none.png", [], None, ["'XRAY'", "none.png", "does not exist"]),
    "no image": ("start.json", [], None, ["start.json", ".png"]),
    "not an array": (
        "t.npy", [], lambda f: (f / "t.npy").write_text("text"), ["t.npy", "not a NumPy array"],
    ),
    "objects": (
        "o.npy", [], lambda f: np.save("o.npy", np.array([{}, 1], object), allow_pickle=True),
        ["o.npy", "not a NumPy array"],
    ),
    "truncated array": ("cut.npy", [], cut_npy, ["cut.npy", "truncated"]),
    "no PNG": (
        "t.png", [], lambda f: (f / "t.png").write_text("text"), ["t.png", "not an image"],
    ),
    "slices": (
        "s.npy", [], lambda f: np.save("s.npy", np.ones((3, 48, 64))), ["s.npy", "a run of 3"],
    ),
    "NaN": (
        "n.npy", [], lambda f: np.save("n.npy", np.full((48, 64), math.nan)), ["n.npy", "finite"],
    ),
    "one value": (
        "z.npy", [], lambda f: np.save("z.npy", np.zeros((48, 64))), ["z.npy", "all 0"],
    ),
    "another size": (
        "b.npy", [], lambda f: np.save("b.npy", np.eye(20)), ["b.npy", "48x64", "20x20"],
    ),
    "a folder": ("d.npy", [], lambda f: (f / "d.npy").mkdir(), ["d.npy", "folder", "CT"]),
    "negative intensities": (
        "m.npy", ["--xray-kind", "intensity"], lambda f: np.save("m.npy", -np.eye(48, 64)),
        ["m.npy", "intensities", "-1", "--xray-kind line"],
    ),
    "no pitch": ("xray.npy", ["--init", "AP"], None, ["--pixel-spacing", "xray.npy"]),
    "no start": ("xray.npy", ["--init", "up"], None, ["--init", "AP", "'up'"]),
    "mask of another size": (
        "xray.npy", ["--mask", "k.npy"], lambda f: np.save("k.npy", np.eye(5)),
        ["k.npy", "48x64", "5x5"],
    ),
    "mask of nothing": (
        "xray.npy", ["--mask", "k.npy"], lambda f: np.save("k.npy", np.zeros((48, 64))),
        ["k.npy", "positive", "0 to 0"],
    ),
    "i0 of line integrals": ("xray.npy", ["--i0", "3"], None, ["--i0", "intensity"]),
    "i0": ("xray.npy", ["--i0", "0", "--xray-kind", "intensity"], None, ["--i0", "positive"]),
    "similarity": ("xray.npy", ["--similarity", "ssd"], None, ["--similarity", "ncc", "ssd"]),
    "stages": ("xray.npy", ["--stages", "ssd:4"], None, ["--stages", "SIMILARITY", "ssd"]),
    "stages of zero": ("xray.npy", ["--stages", "ncc:0"], None, ["--stages", "downsample", "0"]),
    "too coarse": ("xray.npy", ["--stages", "ncc:64"], None, ["downsample", "48", "64"]),
    "both": (
        "xray.npy", ["--similarity", "mi", "--stages", "ncc:2"], None, ["--similarity", "--stages"],
    ),
    "result that is no JSON": ("xray.npy", ["-o", "r.txt"], None, ["--output", ".json", "r.txt"]),
    "two outputs in one": (
        "xray.npy", ["-o", "start.json"], None, ["start.json", "overwrite"],
    ),
}  # fmt: skip


@pytest.mark.io
@pytest.mark.parametrize("case", REGISTER_ERRORS)
def test_register_refuses_with_a_sentence_and_writes_nothing(folder: Path, case: str) -> None:
    xray, options, prepare, words = REGISTER_ERRORS[case]
    if prepare is not None:
        prepare(folder)
    defaults = [] if "-o" in options else ["-o", "r.json"]
    defaults += [] if "--init" in options else ["--init", "start.json"]
    refused(folder, ["register", "ct.nii.gz", xray, *defaults, *options, "-q"], words)


@pytest.mark.io
def test_a_place_that_cannot_be_written_to_is_a_sentence_too(data: Path) -> None:
    # A file system that refuses new files even to root; where there is none, the folder is missing.
    result = run("render", data / "ct.nii.gz", *CAMERA, "-o", "/proc/drr.npy")
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert "/proc" in result.output


@pytest.mark.io
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: object, pixels: np.ndarray) -> None:
        Path(str(file)).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(file))

    output = tmp_path / "a.npy"
    output.write_bytes(b"old")
    monkeypatch.setattr("drrkit.report.pictures.np.save", full)
    result = run("render", data / "ct.nii.gz", *CAMERA, "-o", output)
    assert result.exit_code == 2 and "No space left" in result.output
    assert output.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.npy"]


@pytest.mark.io
def test_debug_shows_the_error_itself(folder: Path) -> None:
    result = run("--debug", "render", "text.nii.gz", "-o", "a.png")
    assert isinstance(result.exception, ValueError)


@pytest.mark.io
def test_unsigned_values_are_warned_about_as_no_hounsfield_units(
    tmp_path: Path, ct: drrkit.Volume
) -> None:
    drrkit.write_volume(replace(ct, values=ct.values + 1024), tmp_path / "u.nii.gz")
    result = succeed("render", tmp_path / "u.nii.gz", *CAMERA, "-o", tmp_path / "a.npy")
    assert "air has -1000 HU" in result.output


@pytest.mark.io
def test_what_a_file_leaves_open_is_one_line_said_once(tmp_path: Path, ct: drrkit.Volume) -> None:
    import nibabel

    drrkit.write_volume(ct, tmp_path / "ct.nii.gz")
    image = nibabel.load(tmp_path / "ct.nii.gz")
    image.set_sform(image.affine, code=0)
    image.set_qform(image.affine, code=0)
    image.to_filename(tmp_path / "ct.nii.gz")
    result = succeed("render", tmp_path / "ct.nii.gz", *CAMERA, "-o", tmp_path / "a.npy")
    lines = [line for line in result.stderr.splitlines() if "arning" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"Warning: {tmp_path / 'ct.nii.gz'}: the file does not say how")


@pytest.mark.io
def test_a_start_that_does_not_show_the_ct_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pose file of a camera that looks along -z, its K in mm; nothing is said of a right one."""
    stored = json.loads((data / "start.json").read_text())
    pose = np.array(stored["world_to_camera"])
    stored["world_to_camera"] = (np.diag((1.0, -1.0, -1.0, 1.0)) @ pose).tolist()
    stored["camera"]["K"] = [[1020, 0, 31.5], [0, 1020, 23.5], [0, 0, 1]]
    del stored["schema"]
    (tmp_path / "back.json").write_text(json.dumps(stored))

    def stop(*_: object, **__: object) -> None:
        raise ValueError("far enough")

    monkeypatch.setattr("drrkit.cli.register.register", stop)
    for pose_file, count in ((tmp_path / "back.json", 2), (data / "start.json", 0)):
        files = ("register", data / "ct.nii.gz", data / "xray.npy", "--init", pose_file)
        result = run(*files, "-q", "-o", tmp_path / "r.json")
        lines = [line for line in result.output.splitlines() if line.startswith("Warning")]
        assert "far enough" in result.output and len(lines) == count, result.output
    result = run(
        "render", data / "ct.nii.gz", "--pose", tmp_path / "back.json", "-o", tmp_path / "a.npy"
    )
    assert "back.json: K's focal length is 1020" in result.output
    assert "no ray meets the CT" in result.output


@pytest.mark.io
@pytest.mark.parametrize(
    "dark, options, polarity_is_wrong, code",
    [
        (True, [], True, 0),  # nobody said what the pixels are: the negative is taken, and said
        (True, ["--stages", "gradient_ncc:2"], True, 1),
        (True, ["--xray-kind", "inverted"], False, 0),
        (True, ["--xray-kind", "display"], True, 1),
        (False, ["--xray-kind", "line"], False, 0),
        (False, ["--xray-kind", "intensity"], True, 1),
        (True, ["--preprocess"], False, 0),
        (True, ["--preprocess", "--xray-kind", "line"], True, 1),
    ],
)
def test_a_wrong_polarity_is_warned_about_and_a_right_one_is_not(
    data: Path, tmp_path: Path, dark: bool, options: list, polarity_is_wrong: bool, code: int
) -> None:
    xray = np.load(data / "xray.npy")
    np.save(tmp_path / "x.npy", xray.max() - xray if dark else xray - xray.min())
    files = [data / "ct.nii.gz", tmp_path / "x.npy", "--init", data / "start.json"]
    result = run("register", *files, *options, "-q", "-o", tmp_path / "r.json")
    assert ("bone looks dark" in result.stderr) == polarity_is_wrong
    assert result.exit_code == code
    found = json.loads((tmp_path / "r.json").read_text())
    named = "--stages" not in options
    assert ("negative" in found["inferred"]) == (named and polarity_is_wrong)
    assert ("polarity" in found["reasons"]) == (named and code == 1)


@pytest.mark.io
def test_a_polarity_that_preprocessing_guesses_wrongly_is_warned_about(
    data: Path, tmp_path: Path, ct: drrkit.Volume
) -> None:
    xray = torch.from_numpy(np.load(data / "xray.npy"))[..., :24, :32]
    assert not drrkit.xray.bone_is_bright(xray)  # the patient is at the rim of this quarter
    save_image(xray[None, None], tmp_path / "x.npy")
    camera = small_camera().crop(0, 0, 24, 32)
    write_pose(tmp_path / "start.json", drrkit.view_ap(ct, 800.0)[0], camera)
    files = [data / "ct.nii.gz", tmp_path / "x.npy", "--init", tmp_path / "start.json"]
    options = ["--preprocess", "-q", "-o", tmp_path / "r.json"]
    guessed = run("register", *files, *options).stderr
    assert "taken for intensity; --xray-kind line converts" in guessed, guessed
    assert "looks dark" not in run("register", *files, *options, "--xray-kind", "line").stderr


@pytest.mark.io
def test_a_distance_that_is_assumed_is_told(data: Path, tmp_path: Path) -> None:
    files = [data / "ct.nii.gz", data / "xray.npy", "--init", "AP", "--pixel-spacing", "6,5.5"]
    options = ["--stages", "ncc:4:1", "--min-confidence", 0, "-q", "-o", tmp_path / "r.json"]
    told = succeed("register", *files, *options).stderr
    assert "--sdd" in told and "1020 mm is assumed" in told
    assert "assumed" not in succeed("register", *files, *options, "--sdd", 1020).stderr


@pytest.mark.io
@pytest.mark.parametrize("stages, words", [("ncc:4:1", "--stages global"), ("global", "--init PA")])
def test_a_result_that_is_not_accepted_says_what_to_look_at(
    data: Path, tmp_path: Path, stages: str, words: str
) -> None:
    files = [data / "ct.nii.gz", data / "xray.npy", "--init", data / "start.json"]
    options = ["--stages", stages, "--min-confidence", 1, "-q", "-o", tmp_path / "r.json"]
    result = run("register", *files, *options)
    assert result.exit_code == 1
    for word in ("Not accepted", words, "--xray-kind", "mirrored", "--pixel-spacing", "--mask"):
        assert word in result.stderr


@pytest.mark.io
@pytest.mark.parametrize("verb", ["render", "simulate"])
def test_what_does_not_fit_into_memory_is_a_sentence(data: Path, tmp_path: Path, verb: str) -> None:
    output = tmp_path / "a.npy"
    result = run(verb, data / "ct.nii.gz", "--size", "999999x999999", "-o", output)
    assert result.exit_code == 1 and "not enough memory" in result.output
    assert "aten" not in result.output and os.listdir(tmp_path) == []


@pytest.mark.io
def test_an_address_space_that_is_too_small_is_a_sentence(data: Path, tmp_path: Path) -> None:
    # The limit is set once everything is loaded, 600 MB above what that takes.
    code = (
        "import resource, sys, torch, SimpleITK\n"
        "from drrkit.cli import main\n"
        "import drrkit.cli.simulate\n"
        "torch.set_num_threads(1)\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 600 * 2**20,) * 2)\n"
        "main(sys.argv[1:])\n"
    )
    words = ["simulate", data / "ct.nii.gz", "--size", "6000x6000", "-o", tmp_path / "a.npy"]
    told = python("-c", code, *words, "--json")
    assert told.returncode == 1, told.stderr
    assert json.loads(told.stdout)["error"]["kind"] == "memory"
    assert "Traceback" not in told.stderr and os.listdir(tmp_path) == []


@pytest.mark.io
def test_ctrl_c_ends_a_process_with_130_and_without_a_file(data: Path, tmp_path: Path) -> None:
    # Interrupted where the file is being written: what is half there must not stay.
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # not in background jobs\n"
        "import drrkit.report.pictures as pictures\n"
        "from drrkit.cli import main\n"
        "def save(file, pixels):\n"
        "    open(file, 'wb').write(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    raise AssertionError('not interrupted')\n"
        "pictures.np.save = save\n"
        "main(sys.argv[1:])\n"
    )
    words = ["render", data / "ct.nii.gz", *CAMERA, "-o", tmp_path / "a.npy"]
    told = python("-c", code, *words, "--json")
    assert told.returncode == 130 and told.stderr == "Interrupted.\n"
    assert json.loads(told.stdout)["error"]["kind"] == "interrupted"
    assert os.listdir(tmp_path) == []


def test_an_output_may_not_be_an_input_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    with pytest.raises(ValueError, match="overwrite"):
        refuse_overwriting([tmp_path / "link.json"], [tmp_path / "a.json"])
    with pytest.raises(ValueError, match="overwrite"):
        refuse_overwriting([tmp_path / "b.png", tmp_path / "b.png"], [])
    refuse_overwriting([tmp_path / "b.png", None], [tmp_path / "a.json", None])


def test_a_relative_output_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert OutputFile(".png").convert("A.PNG", None, None) == Path("A.PNG")
    with pytest.raises(click.BadParameter, match="does not exist"):
        OutputFile(".png").convert("no/a.png", None, None)


def test_json_keeps_rows_on_a_line_and_has_no_number_that_json_lacks(tmp_path: Path) -> None:
    content = {"a": [[1.0, 2.5e-3], [3.0, -4.0]], "b": math.inf, "c": "[\n1,  2]", "d": (1, 2)}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text()
    assert "[ 1.0, 0.0025 ]" in text
    assert json.loads(text) == {**content, "b": None, "d": [1, 2]}
