"""plastimatch: exact (Siddon) and uniform DRRs, as a program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.projectors.peers.peer import Cannot, Peer, upright
from bench.projectors.scene import Scene
from drrkit.conversions import PlastimatchView, to_plastimatch
from drrkit.geometry import Camera
from drrkit.volume import write_volume

TIMES = re.compile(r"I/O time: ([\d.]+) sec.*?Total time: ([\d.]+) sec", re.DOTALL)


class Plastimatch(Peer):
    """`plastimatch drr`, a process per view.

    Its "Total time" begins when the volume has been read and ends when the image has been written;
    the image's "I/O time" is subtracted. Starting the program and reading the volume do not count.
    """

    name = "plastimatch"
    package = "plastimatch"
    methods = ("exact", "uniform")
    integral: ClassVar[dict[str, str]] = {"exact": "siddon", "uniform": "trilinear"}
    note = "its own clock: total less output, without starting and reading"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        if device.type != "cpu":
            return "measured on the CPU only"
        return None if program() else "plastimatch is not installed"

    def prepare(self, scene: Scene) -> None:
        self.volume, _ = upright(scene.volume)
        self.folder = tempfile.TemporaryDirectory(prefix="drrkit_bench_")
        self.file = Path(self.folder.name) / "volume.mha"
        write_volume(self.volume, self.file)

    def views(self, camera: Camera, world_to_camera: Tensor) -> list[list[str]]:
        seen = to_plastimatch(camera, world_to_camera, self.volume)
        return [self._command(view) for view in seen]

    def forward(self, views: list[list[str]]) -> np.ndarray:
        self.seconds, images = 0.0, []
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        for command in views:
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            times = TIMES.search(done.stdout)
            if done.returncode or times is None:
                raise Cannot(f"plastimatch failed: {(done.stdout + done.stderr)[-300:]}")
            self.seconds += float(times[2]) - float(times[1])
            images.append(read_pfm(Path(self.folder.name) / "drr_0000.pfm"))
        return np.stack(images)

    def answer(self, operation: str, views: list[list[str]], result: np.ndarray) -> np.ndarray:
        return 10.0 * result  # it divides by 10 on the way out

    def _command(self, view: PlastimatchView) -> list[str]:
        command = [program() or "", "drr", "-A", "cpu", "-i", self.method, "-P", "none"]
        command += ["-t", "pfm", "-a", "1", *view.arguments()]
        return [*command, "-O", str(Path(self.folder.name) / "drr_"), str(self.file)]


def program() -> str | None:
    """The executable itself: that of the Python package, not its start script, else the PATH's."""
    spec = find_spec("plastimatch")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "bin" / "plastimatch"
        if os.access(path, os.X_OK):
            return str(path)
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("plastimatch", path=search)


def read_pfm(path: Path) -> np.ndarray:
    """A one-channel portable float map as plastimatch writes it: top row first."""
    kind, size, scale, pixels = path.read_bytes().split(b"\n", 3)
    if kind != b"Pf":
        raise Cannot(f"plastimatch wrote {kind!r} instead of a float map")
    cols, rows = (int(n) for n in size.split())
    order = "<f4" if float(scale) < 0 else ">f4"
    return np.frombuffer(pixels, order).reshape(rows, cols).astype(np.float32)
