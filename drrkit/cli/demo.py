"""`drrkit demo`: a registration from nothing but the built-in phantom."""

from __future__ import annotations

import math
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import Tensor
from torch.nn import functional

from drrkit.cli.command import Answer, command
from drrkit.cli.io import write_pose
from drrkit.cli.options import (
    PIXEL_SPACING,
    SDD,
    SIZE,
    SOD,
    device_option,
    out_option,
    quiet_option,
    seed_option,
)
from drrkit.cli.register import INTERRUPTED, register_command
from drrkit.geometry import Camera, CArm, perturb, view_ap, volume_center
from drrkit.metrics import bone_points, mtre, rotation_error, translation_error
from drrkit.phantoms import torso
from drrkit.report import save_image, to_display
from drrkit.volume import Volume, write_volume
from drrkit.xray import simulate_xray

__all__ = ["demo_command"]

PHANTOM_MM = 3.0
SUCCESS_MM = 2.0


class PhantomScene(NamedTuple):
    """The torso in HU, its X-ray in AP (line integrals), and poses [1, 4, 4]: a start, the truth.

    The start is 10 to 15 degrees and 20 to 30 mm off.
    """

    ct: Volume
    camera: Camera
    xray: Tensor
    start: Tensor
    truth: Tensor


def phantom_scene(seed: int) -> PhantomScene:
    """What demo and view show where there are no files. seed: of the start and the noise."""
    ct, camera = torso(PHANTOM_MM), CArm(SDD, SIZE, PIXEL_SPACING)
    truth = view_ap(ct, SOD)
    xray = simulate_xray(ct, camera, truth, seed=seed)
    start = perturb(truth, random_offset(seed), volume_center(ct))
    return PhantomScene(ct, camera, xray, start, truth)


class Errors(NamedTuple):
    """How far a pose is off: points on bone, rotation, translation of the centre."""

    mtre_mm: float
    rotation_deg: float
    translation_mm: float


@command("demo")
def demo_command(
    *,
    out: Path = out_option(
        "Folder for the pictures and files; made if missing.", default=Path("demo_out")
    ),
    seed: int = seed_option("Seed of start and noise."),
    device: torch.device = device_option(),
    quiet: bool = quiet_option(),
) -> Answer:
    """Simulate an X-ray of the torso phantom, start 10-15 degrees and 20-30 mm off, register it.

    The X-ray has a spectrum, beam hardening, area pixels, photon noise and blur that the
    registration does not model. Writes the inputs of drrkit register, its result found.json and
    overlay.png (the X-ray with the edges of the rendered CT, before on the left and after on the
    right). Exit code 1 if the registration ends 2 mm or more from the truth.
    """
    out.mkdir(parents=True, exist_ok=True)
    click.echo("building the phantom and its X-ray ...", err=True)
    ct, camera, xray, start, truth = phantom_scene(seed)
    write_volume(ct, out / "ct.nii.gz")
    save_image(xray, out / "xray.nii.gz", pixel_spacing=PIXEL_SPACING)
    save_image(to_display(xray), out / "xray.png")
    write_pose(out / "start.json", start, camera)
    words = [str(out / "ct.nii.gz"), str(out / "xray.nii.gz"), "--init", str(out / "start.json")]
    found = _registered(words, out, seed, device, quiet)
    if found.code == INTERRUPTED:
        return found
    pose = torch.tensor(found.content["world_to_camera"], dtype=torch.float64)
    before, after = _errors(start[0], truth[0], ct), _errors(pose, truth[0], ct)
    succeeded = after.mtre_mm < SUCCESS_MM
    if not succeeded:
        click.echo(f"The registration failed: mTRE is not below {SUCCESS_MM:g} mm.", err=True)
    program = _program()
    content = {
        "out": str(out),
        "succeeded": succeeded,
        "before": before._asdict(),
        "after": after._asdict(),
        "seconds": found.content["seconds"],
        "report": f"{program} report {out / 'found.json'} -o {out / 'report.html'}",
        "by_hand": f"{program} register {' '.join(words)} -o {out / 'result.json'}",
    }
    rows = (
        f"{name:8}{e[0]:10.2f}{e[1]:14.2f}{e[2]:16.2f}"
        for name, e in (("before", before), ("after", after))
    )
    lines = [
        f"{'':8}{'mTRE mm':>10}{'rotation deg':>14}{'translation mm':>16}",
        *rows,
        f"registered in {content['seconds']:.1f} s; look at {out / 'overlay.png'}",
        f"next, a report: {content['report']}",
        f"the same by hand: {content['by_hand']}",
    ]
    return Answer(content, "\n".join(lines), 0 if succeeded else 1)


def _registered(
    words: list[str], out: Path, seed: int, device: torch.device, quiet: bool
) -> Answer:
    """What drrkit register answers; it leaves found.json and overlay.png."""
    words = [*words, "-o", str(out / "found.json"), "--overlay", str(out / "overlay.png")]
    words += ["--seed", str(seed), "--device", str(device), *(["-q"] if quiet else [])]
    parent = click.get_current_context().parent
    with register_command.make_context("register", words, parent) as ctx:
        found = register_command.answer(ctx)
    assert found is not None
    return found


def _program() -> str:
    """drrkit as a shell in this folder finds it: by its name, else by its path."""
    beside = Path(sys.executable).with_name("drrkit")
    return "drrkit" if shutil.which("drrkit") or not beside.exists() else os.path.relpath(beside)


def random_offset(seed: int) -> Tensor:
    """xi [1, 6] (rad, mm): 10 to 15 degrees and 20 to 30 mm in random directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    share = torch.rand(2, 1, generator=generator, dtype=torch.float64)
    least = torch.tensor([[math.radians(10.0)], [20.0]], dtype=torch.float64)
    return (functional.normalize(directions, dim=-1) * least * (1 + 0.5 * share)).reshape(1, 6)


def _errors(pose: Tensor, truth: Tensor, ct: Volume) -> Errors:
    return Errors(
        float(mtre(pose, truth, bone_points(ct))),
        math.degrees(float(rotation_error(pose, truth))),
        float(translation_error(pose, truth, volume_center(ct))),
    )
