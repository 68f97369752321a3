"""Projectors that behave, misbehave and crash, for the benchmark's tests."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

import drrkit
from bench.projectors.peers import Cannot, Peer
from bench.projectors.scene import Scene
from drrkit.geometry import Camera

SLEEP = 0.05  # s that Honest takes besides


class Honest(Peer):
    """drrkit's siddon in a scale of its own; prints where answers are expected.

    "chords" takes its time, "samples" declines, "clock" tells its own time, "raising" fails.
    """

    name = "honest"
    package = "numpy"
    methods: tuple[str, ...] = ("chords", "samples", "clock", "raising")
    integral: ClassVar[dict[str, str]] = dict.fromkeys(methods, "siddon")
    physical = False
    note = "not a projector"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        print('{"error": "this is no answer"}')
        return None

    def prepare(self, scene: Scene) -> None:
        if self.method == "samples":
            raise Cannot("it takes no samples")
        self.volume = scene.volume

    def views(self, camera: Camera, world_to_camera: Tensor) -> Any:
        return camera, world_to_camera

    def forward(self, views: Any) -> Tensor:
        print("working")
        if self.method == "raising":
            raise ZeroDivisionError("of all things")
        if self.method == "clock":
            self.seconds = 0.25
        else:
            time.sleep(SLEEP)
        return 7.0 * drrkit.render(self.volume, *views, method="siddon")

    def answer(self, operation: str, views: Any, result: Tensor) -> np.ndarray:
        return result[:, 0].numpy()


class Crashing(Honest):
    """Ends its process when it should project."""

    name = "crashing"
    methods = ("chords",)

    def forward(self, views: Any) -> Tensor:
        ctypes.CDLL(None).fflush(None)
        os.abort()


class Hanging(Honest):
    """Never comes back."""

    name = "hanging"
    methods = ("chords",)

    def forward(self, views: Any) -> Tensor:
        time.sleep(3600)
        raise AssertionError("nobody waited")


class Missing(Honest):
    """Not installed."""

    name = "missing"

    @classmethod
    def unavailable(cls, device: torch.device) -> str | None:
        return "it was never written"
