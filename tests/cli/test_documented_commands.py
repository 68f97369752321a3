"""Every `drrkit ...` line of the README and of the pages about the command line runs, in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

import drrkit
from drrkit.cli.io import write_pose
from drrkit.conversions import write_mayacam
from drrkit.geometry import volume_center
from drrkit.report import save_image, to_display
from tests.support.commands import run, small_ct
from tests.support.xray_files import write_carm_xray

pytestmark = pytest.mark.io

ROOT = Path(drrkit.__file__).parents[1]
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("command_line", "tour", "pictures", "viewer")),
)
SIZE, PITCH = (100, 110), 2.8


def shown_commands(page: str) -> list[str]:
    """The indented lines of a page that call drrkit, without their comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [line.split("  #")[0].strip() for line in re.findall(r"^    (drrkit .*)", text, re.M)]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name: a CT as a file and as a series, its X-ray in two formats."""
    folder = tmp_path_factory.mktemp("documented")
    ct = small_ct()
    drrkit.write_volume(ct, folder / "ct.nii.gz")
    for name in ("ct_folder", "ct"):
        drrkit.write_volume(ct, folder / name)
    camera = drrkit.CArm(1020.0, SIZE, PITCH)
    off = [0.03, -0.02, 0.04, 5.0, -4.0, 6.0]
    write_carm_xray(folder / "xray.dcm", ct, SIZE, PITCH, off)
    frontal = drrkit.view_ap(ct, 800.0)
    png = drrkit.simulate_xray(ct, drrkit.CArm(1020.0, (200, 220), 1.4), frontal, seed=3)
    save_image(to_display(png), folder / "xray.png")
    write_pose(folder / "start.json", frontal, camera)
    side = drrkit.perturb(
        frontal, torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]]), volume_center(ct)
    )
    for name, film, pose in (("ap", "film_a", frontal), ("side", "film_b", side)):
        write_mayacam(folder / f"{name}.txt", camera, pose)
        line = drrkit.simulate_xray(ct, camera, pose, seed=4)
        save_image(to_display(line), folder / f"{name}.png")
        (folder / film).mkdir()
        for number in range(2):
            save_image(line, folder / film / f"{number}.npy")
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_in_order(page: str, hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drrkit.viewer import server

    monkeypatch.chdir(hospital)
    monkeypatch.setattr("drrkit.cli.demo.torso", lambda _: small_ct())
    monkeypatch.setattr(server, "serve", lambda session, announce, **_: announce("http://"))
    if page != "README.md":  # what the pages take up is what the README's first command leaves
        run(*shlex.split(shown_commands("README.md")[0])[1:], "-q")
    commands = shown_commands(page)
    assert len(commands) >= 2
    for command in commands:
        result = run(*shlex.split(command)[1:])
        # 1: an X-ray from in front, registered as one from behind, is not accepted.
        allowed = (0, 1) if "--init PA" in command or " demo" in command else (0,)
        assert result.exit_code in allowed, f"{command}\n{result.output}\n{result.exception!r}"
