"""The viewer without its web part: pose, picture, loss, registration."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drrkit._arguments import check_attenuation
from drrkit.evaluation import with_similarity
from drrkit.geometry import Camera, perturb, volume_center
from drrkit.projector import Projector
from drrkit.registration import (
    AUTO,
    GLOBAL,
    SIMILARITIES,
    Search,
    Stage,
    make_views,
    mean_depth,
    motion_of,
    pixel_at,
    register,
)
from drrkit.report import placement, scene_svg, shown_confidence, to_display
from drrkit.volume import Volume

STRATEGIES = {
    "auto": "coarse to fine; the chosen loss finishes",
    "throughout": "coarse to fine with the chosen loss only",
    "global": "search all around first; the chosen loss finishes",
}
"""How to register, and what that means."""

PLANES = ("axial", "coronal", "sagittal")
LONGEST_SLICE = 512  # pixels; longer slices are thinned out
PREVIEW_PIXELS, FINE_PIXELS = 256, 1024  # along the longer side
FARTHEST_MM = 5000.0
DEFAULT_SIMILARITY = "gradient_ncc"


def strategy_stages(strategy: str, similarity: str) -> tuple[Stage | Search, ...]:
    """The stages of a registration as the viewer offers it.

    Args:
        strategy: of STRATEGIES.
        similarity: a name in drrkit.registration.SIMILARITIES.

    Raises:
        ValueError: unknown names.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    pipeline = GLOBAL if strategy == "global" else AUTO
    return with_similarity(pipeline, similarity, all_stages=strategy == "throughout")


@dataclass(frozen=True)
class Picture:
    """Grey values [rows, cols] uint8 on the CPU and the size of a row and a column in mm."""

    pixels: Tensor
    row_mm: float = 1.0
    col_mm: float = 1.0


class Slices:
    """Slices of a CT through its voxels, as radiologists look at them.

    Axial: patient's left on the right, front up. Coronal: left on the right, head up. Sagittal:
    back on the right, head up. An oblique CT is cut along its own axes, each named after the
    nearest one of the patient.

    Args:
        volume: single-channel; black is its lowest value, white the 99.9th percentile.
    """

    def __init__(self, volume: Volume) -> None:
        values = volume.values.detach()
        # world axis -> index axis; a world axis is taken by the index axis that runs along it most
        direction = volume.direction.abs().clone()
        along = [0, 0, 0]
        for _ in range(3):
            world, index = divmod(int(direction.argmax()), 3)
            along[world] = index
            direction[world], direction[:, index] = -1.0, -1.0
        signs = [float(volume.direction[world, along[world]]) for world in range(3)]
        # [D, H, W] is (z, y, x): index axis i is dimension 2 - i.
        values = values.permute(*(2 - along[world] for world in (2, 1, 0)))
        flipped = [2 - world for world in range(3) if signs[world] < 0]
        self._values = values.flip(flipped) if flipped else values
        self._spacing = tuple(volume.spacing[along[world]] for world in range(3))
        thinned = self._values[tuple(slice(None, None, 1 + n // 64) for n in self._values.shape)]
        numbers = thinned.float().cpu().numpy()
        self._black, self._white = float(numbers.min()), float(np.percentile(numbers, 99.9))
        if self._white <= self._black:
            self._white = self._black + 1.0

    def cut(self, plane: str, share: float) -> Picture:
        """A slice.

        Args:
            plane: of PLANES.
            share: where, from 0 (foot, front, right) to 1 (head, back, left).
        """
        dim = PLANES.index(plane)  # of (z, y, x)
        number = round(share * (self._values.shape[dim] - 1))
        image = self._values.select(dim, number)
        x, y, z = self._spacing
        row_mm, col_mm = ((y, x), (z, x), (z, y))[dim]
        if plane != "axial":
            image = image.flip(0)  # head up
        step = 1 + (max(image.shape) - 1) // LONGEST_SLICE
        image = image[::step, ::step].float().cpu()
        grey = (image - self._black) * (255.0 / (self._white - self._black))
        return Picture(grey.clamp(0, 255).round().to(torch.uint8), row_mm * step, col_mm * step)


@dataclass(frozen=True)
class State:
    """What a session is doing.

    Attributes:
        version: counts the session's changes; a state of a lower version is outdated.
        pose_version: counts the pose's changes only.
        similarity: that is shown and registered with.
        running: whether a registration is under way.
        steps: how many steps it has made.
        message: what happened last.
    """

    version: int = 0
    pose_version: int = 0
    similarity: str = DEFAULT_SIMILARITY
    running: bool = False
    steps: int = 0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Look(State):
    """What the page shows at one moment.

    Attributes:
        picture: the DRR.
        fine: whether the DRR has all its pixels and the geometry is given, not a preview only.
        xi: [6] the motion from the start, rad and mm, in camera axes about the volume's centre.
        loss: of the similarity on the preview's pixels; None where it cannot be computed.
        world_to_camera: [4][4].
        geometry: where source and detector stand, in a sentence; None in a preview.
        drawing: the same as an SVG picture; None in a preview.
    """

    picture: Picture
    fine: bool
    xi: tuple[float, ...]
    loss: float | None
    world_to_camera: tuple[tuple[float, ...], ...]
    geometry: str | None = None
    drawing: str | None = None


class Session:
    """A CT, an X-ray and a pose between them that is moved, registered, reset and saved.

    Methods may be called from any thread; those that change something call the listeners.

    Args:
        volume: in mu.
        camera: the X-ray's.
        xray: [1, 1, rows, cols] or [rows, cols], bone bright.
        start: [4, 4] or [1, 4, 4] world_to_camera.
        mask: float weights of the X-ray's shape, or None.
        method: projector method, as in `render`.
        save: is called with world_to_camera [4, 4] and what is known about it when the pose is to
            be saved; None where nothing can be.

    Raises:
        TypeError, ValueError: an argument is not what is described here.
    """

    def __init__(
        self,
        volume: Volume,
        camera: Camera,
        xray: Tensor,
        start: Tensor,
        *,
        mask: Tensor | None = None,
        method: str = "joseph",
        save: Callable[[Tensor, dict[str, Any]], str] | None = None,
    ) -> None:
        check_attenuation(volume)
        if volume.values.dim() != 3:
            channels = volume.values.shape[0]
            raise ValueError(f"volume: expected a single channel, got {channels} channels")
        if start.numel() != 16:
            raise ValueError(f"start: expected one pose [4, 4], got {tuple(start.shape)}")
        self.volume, self.camera, self.method, self._save = volume, camera, method, save
        self.center = volume_center(volume)
        self.start = start.detach().reshape(4, 4).to(self.center)
        self.slices = Slices(volume)
        view = make_views(camera, xray, mask, None, volume.values)[0]
        self._xray, self._mask = view.xray, view.mask
        factors = [-(-max(camera.size) // pixels) for pixels in (PREVIEW_PIXELS, FINE_PIXELS)]
        self._preview = view.downsampled(factors[0])
        self.has_preview = factors[0] != factors[1]
        fine = view.downsampled(factors[1]) if self.has_preview else self._preview
        self.xray = Picture(to_display(fine.xray))
        self._coarse = Projector(volume, self._preview.camera, method=method)
        self._fine = Projector(volume, fine.camera, method=method)
        self._lock, self._drawing = threading.RLock(), threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._pose, self._state = self.start.clone(), State()
        self._made: dict[Any, Any] = {}  # from the pose of version _made_at
        self._made_at = -1
        self._worker: threading.Thread | None = None
        self._stopping = False

    # ---- what is shown

    @property
    def version(self) -> int:
        """Counts the changes of everything that a look shows."""
        return self._state.version

    @property
    def running(self) -> bool:
        """Whether a registration is under way."""
        return self._state.running

    @property
    def can_save(self) -> bool:
        """Whether a place to save the pose was named."""
        return self._save is not None

    @property
    def world_to_camera(self) -> Tensor:
        """The pose, [4, 4] float64."""
        with self._lock:
            return self._pose.clone()

    @property
    def xi(self) -> Tensor:
        """[6] float64, rad and mm: the motion from the start to the pose, as `perturb` takes it."""
        return motion_of(self.start, self.world_to_camera[None], self.center)[0]

    @property
    def pixel_mm(self) -> float:
        """The width of the shown X-ray's pixels at the volume's centre."""
        depth = mean_depth(self.world_to_camera[None], self.center)
        return pixel_at(self.camera, depth) * max(self.camera.size) / max(self.xray.pixels.shape)

    def look(self, fine: bool = True) -> Look:
        """The scene now; fine: with all pixels and the drawing, not only a preview's."""
        with self._drawing:  # one at a time: two would only compete for the cores
            with self._lock:
                state, pose = self._state, self._pose
            once, similarity = partial(self._once, state.pose_version), state.similarity
            # The loss is that of the preview's pixels.
            preview = once("preview", lambda: self._coarse(pose[None]))
            loss = once(similarity, lambda: self._loss(similarity, preview))
            if fine and self.has_preview:
                picture = once("fine", lambda: Picture(to_display(self._fine(pose[None]))))
            else:
                picture = once("coarse", lambda: Picture(to_display(preview)))
            svg = sentence = None
            if fine:
                svg = scene_svg(self.volume, self.camera, [self.start.cpu(), pose.cpu()])
                sentence = placement(self.volume, self.camera, pose).sentence()
        xi = motion_of(self.start, pose[None], self.center)[0]
        return Look(
            **vars(state),
            picture=picture,
            fine=fine,
            xi=tuple(xi.tolist()),
            loss=loss,
            world_to_camera=tuple(tuple(row) for row in pose.tolist()),
            geometry=sentence,
            drawing=svg,
        )

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls a function after every change, in any thread, until the returned one is called."""
        with self._lock:
            self._listeners.append(listener)

        def end() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return end

    # ---- what is done

    def place(self, xi: Tensor) -> None:
        """Put the patient xi [6] (rad, mm) away from the start. Raises ValueError: out of reach."""
        self._move(perturb(self.start, self._checked(xi), self.center)[0])

    def nudge(self, xi: Tensor) -> None:
        """Move the patient on by xi [6] (rad, mm, camera axes). Raises ValueError: out of reach."""
        with self._lock:
            self._move(perturb(self._pose, self._checked(xi), self.center)[0])

    def reset(self) -> None:
        """Back to the start."""
        self._move(self.start.clone())

    def choose(self, similarity: str) -> None:
        """The loss to show and to register with. Raises ValueError: an unknown name."""
        if similarity not in SIMILARITIES:
            raise ValueError(
                f"similarity: expected one of {', '.join(SIMILARITIES)}, got {similarity!r}"
            )
        with self._lock:
            self._refuse_while_running()
            self._set(similarity=similarity)
        self._tell()

    def register(self, strategy: str = "auto") -> None:
        """Register from the pose as it is; returns at once, `wait` waits for the end.

        Raises ValueError: an unknown strategy, or a registration is under way.
        """
        with self._lock:
            self._refuse_while_running()
            stages = strategy_stages(strategy, self._state.similarity)
            self._stopping = False
            self._set(running=True, steps=0, message="registering")
            arguments = (stages, self._pose.clone())
            self._worker = threading.Thread(target=self._register, args=arguments, daemon=True)
            self._worker.start()
        self._tell()

    def stop(self) -> None:
        """End a registration after its present step; the best pose so far stays."""
        with self._lock:
            self._stopping = True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of a registration, seconds at most; whether none is under way."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout)
        return not self.running

    def save(self) -> str:
        """Saves the pose and returns the file's name.

        Raises:
            ValueError: no place was named.
            OSError: it cannot be written to.
        """
        if self._save is None:
            raise ValueError("nothing to save into: start drrkit view with --output FILE.json")
        look = self.look(fine=False)
        pose = torch.tensor(look.world_to_camera, dtype=torch.float64)
        place = self._save(pose, {"similarity": look.similarity, "loss": look.loss})
        self._set(message=f"saved {place}")
        self._tell()
        return place

    # ---- inside

    def _move(self, pose: Tensor) -> None:
        middle = pose[:3, :3] @ self.center + pose[:3, 3]
        if not bool(pose.isfinite().all()) or float(middle.norm()) > 2 * FARTHEST_MM:
            raise ValueError(f"xi: expected a pose within {2 * FARTHEST_MM:g} mm of the source")
        with self._lock:
            self._refuse_while_running()
            self._set(pose, message="")
        self._tell()

    def _checked(self, xi: Tensor) -> Tensor:
        xi = torch.as_tensor(xi, dtype=torch.float64, device=self.center.device)
        if xi.shape != (6,):
            raise ValueError(f"xi: expected six numbers, got shape {tuple(xi.shape)}")
        if not bool(xi.isfinite().all()) or float(xi[:3].abs().max()) > 2 * math.pi:
            raise ValueError(f"xi: expected turns within a full one, got {xi.tolist()}")
        if float(xi[3:].abs().max()) > FARTHEST_MM:
            raise ValueError(f"xi: expected shifts within {FARTHEST_MM:g} mm, got {xi.tolist()}")
        return xi

    def _refuse_while_running(self) -> None:
        if self.running:
            raise ValueError("a registration is running: stop it first")

    def _set(self, pose: Tensor | None = None, **changes: Any) -> None:
        """Changes the state, and the pose where one is given; `_tell` follows, without the lock."""
        with self._lock:
            version, pose_version = self._state.version + 1, self._state.pose_version
            if pose is not None:
                self._pose, pose_version = pose, pose_version + 1
            counts = {"version": version, "pose_version": pose_version}
            self._state = replace(self._state, **counts, **changes)

    def _tell(self) -> None:
        """Calls the listeners."""
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def _once(self, pose_version: int, key: Any, make: Callable[[], Any]) -> Any:
        """The result of `make` for the pose of this version, called only once per key."""
        if self._made_at != pose_version:
            self._made, self._made_at = {}, pose_version
        if key not in self._made:
            with torch.no_grad():
                self._made[key] = make()
        return self._made[key]

    def _loss(self, similarity: str, drr: Tensor) -> float | None:
        view = self._preview
        try:
            loss = float(SIMILARITIES[similarity](drr, view.xray, view.mask))
        except (ValueError, RuntimeError):  # an image too small for its windows, for example
            return None
        return loss if math.isfinite(loss) else None

    def _register(self, stages: tuple[Stage | Search, ...], start: Tensor) -> None:
        try:
            result = register(
                self.volume,
                self.camera,
                self._xray,
                start,
                stages=stages,
                mask=self._mask,
                method=self.method,
                progress=self._watch,
            )
            message = (
                f"{result.stop_reason} after {result.seconds:.1f} s, confidence "
                f"{shown_confidence(result.confidence)}"
            )
            if result.depth_observable is False:
                message += "; the image hardly shows the depth"
            self._follow(result.world_to_camera)
        except Exception as error:
            message = f"the registration failed: {error}"
        self._set(running=False, message=message)
        self._tell()

    def _watch(self, world_to_camera: Tensor, loss: float) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._follow(world_to_camera, steps=self._state.steps + 1)

    def _follow(self, world_to_camera: Tensor, **changes: Any) -> None:
        self._set(world_to_camera.detach().reshape(4, 4).to(self.center), **changes)
        self._tell()
