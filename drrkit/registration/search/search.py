"""Global search: the pose of a volume in an X-ray without a start anywhere near it.

A pose has six numbers, but an X-ray depends on three of them, the place of the source in the
patient, in ways that only rendering tells. The other three turn the camera about its source, which
turns and shifts the picture. And the distance of the source, to a good approximation, scales it.
So the search renders one wide image for every direction from which the source may look at the
volume, at few distances, and finds roll, scale and shift by matching the turned and scaled X-ray
with it. The best matches that differ are the candidates for batched refinement; of several
cameras, those of all views that agree (`consensus`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from drrkit.geometry import Camera, CArm, so3_exp
from drrkit.registration.problem.motion import distinct_poses
from drrkit.registration.problem.rendering import SceneRenderer
from drrkit.registration.problem.views import View
from drrkit.registration.search.consensus import Matches, agreeing
from drrkit.registration.search.matching import Peaks, Templates, make_templates
from drrkit.registration.stages import Search

__all__ = ["GlobalSearch", "largest_roll", "matched", "view_directions", "viewed_alike"]

# Depths rendered are this ratio apart: between them a change of scale stands for one of distance.
_RENDERED_RATIO = 1.4

# Pixels of a wide image times templates that are matched at once, by kind of device.
_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}

# Searches whose wide images are kept: one per view of a rig and both densities.
_KEPT = 4

# Matches kept while the search runs, for each candidate wanted.
_MATCHES = 50

# Matches of a view that are compared with those of others, and standard deviations of a match: of
# its turn in steps of the grid, of the centre's place in pixels across the ray and in steps of the
# ratio of distances along it. A wrong turn shows a right place moved by more than a pixel.
_COMPARED = 600
_TURN, _ACROSS, _ALONG = 0.7, 2.5, 1.0


class GlobalSearch:
    """A search under way: a step renders some wide images and matches the X-ray with them.

    Args:
        drawn: the scene.
        view: the X-ray to match, cone beam.
        world_to_camera: [4, 4] float64, the start, of the first camera where the view is one of
            several; so are all poses that are found.
        center: [3] float64 world mm, the volume's centre.
        units: [6] the change of xi (rad, mm) that counts as one mm of motion.
        search: ranges and steps, lengths in mm.

    Raises:
        ValueError: the beam is parallel, or the ranges leave no distance to search.
    """

    def __init__(
        self,
        drawn: SceneRenderer,
        view: View,
        world_to_camera: Tensor,
        center: Tensor,
        units: Tensor,
        search: Search,
    ) -> None:
        if view.camera.beam != "cone":
            raise ValueError(f"camera: a search needs a cone beam, got {view.camera.beam!r}")
        self.search, self.center, self.units = search, center, units
        self.view, self.start = view, view.pose(world_to_camera)
        self.focal = _focal_length(view.camera, search.pixels)
        distances, scales = self._distances(float(torch.as_tensor(view.camera.sdd).mean()))
        self.directions = view_directions(search.step, search.rotation).to(self.start)
        self.templates = self._templates(view, scales, min(distances))
        wide = _wide_camera(view.camera, self.focal, self.templates.image_size)
        self.render, self.wide, self.cut = drawn.renderer(wide, search.voxel), wide, drawn.cut
        # Every rendered pose: turned from the start, its source at one of the distances.
        turned = so3_exp(self.directions) @ self.start[:3, :3]
        self.rotations = turned.repeat(len(distances), 1, 1)
        self.distances = turned.new_tensor(distances).repeat_interleave(len(turned))
        self.tilts = self.directions.norm(dim=-1).repeat(len(distances))
        self.batches = self._batches(view.xray.device)
        self.images = _kept_images(drawn, self.render, self.rotations, self.distances, self.batches)
        self.peaks: Peaks | None = None
        self._best: tuple[float, Tensor] | None = None  # its loss and pose
        self.steps = 0
        self.trace: list[Tensor] = []  # [1] one minus the best score after every step

    @property
    def finished(self) -> bool:
        """Whether all wide images are rendered."""
        return self.steps >= len(self.batches)

    @property
    def stop_reason(self) -> str:
        """Always "converged": the grid has an end."""
        return "converged"

    @property
    def best_loss(self) -> Tensor:
        """[1] one minus the best score so far."""
        return self.trace[-1] if self.trace else self.start.new_full((1,), torch.inf)

    @property
    def best_pose(self) -> Tensor:
        """[1, 4, 4] the pose of the best match so far, the start before there is one."""
        if self.peaks is None or self.peaks.score.numel() == 0:
            return self._of_first_camera(self.start[None])
        lowest = float(self.trace[-1])
        if self._best is None or lowest < self._best[0]:  # asked for after every step
            self._best = lowest, self._poses(self.peaks.best(1))
        return self._best[1]

    def step(self) -> None:
        """Render a batch of wide images and match the templates with them."""
        batch = self.batches[self.steps]
        pose = _looking_at(self.rotations[batch], self.distances[batch], self.center)
        least = float(self.tilts[batch].min())
        count = self.templates.first(largest_roll(least, self.search.rotation))
        with torch.no_grad():
            if self.steps not in self.images:
                self.images[self.steps] = self.render(pose).sum(1), self.cut.rays(self.wide, pose)
            image, known = self.images[self.steps]
            found = self.templates.peaks(image, count, self.search.inverted is None, known)
        found = replace(found, image=batch[found.image])
        limit = _MATCHES * self.search.keep
        self.peaks = (found if self.peaks is None else self.peaks.joined(found)).best(limit)
        best = self.peaks.score[:1].double()
        self.trace.append(1.0 - (best if best.numel() else best.new_zeros(1)))
        self.steps += 1

    @property
    def inverted(self) -> bool:
        """Whether the best match is with the X-ray's negative."""
        return self.peaks is not None and bool((self.peaks.sign[:1] < 0).any())

    def candidates(self) -> tuple[Tensor, Tensor]:
        """The best poses that differ: [K, 4, 4] float64 and their losses [K], one minus score.

        Those of the best match's sign only.
        """
        if self.peaks is None or self.peaks.score.numel() == 0:
            return self._of_first_camera(self.start[None]), self.start.new_full((1,), torch.inf)
        peaks = self.peaks.chosen(self.peaks.sign == self.peaks.sign[0])
        pose = self._poses(peaks)
        loss = 1.0 - peaks.score.to(pose)
        chosen = distinct_poses(
            pose, loss, self.center, self.units, self.search.apart, self.search.keep
        )
        return pose[chosen], loss[chosen]

    def best_score(self, sign: float) -> float:
        """The highest score of matches of one sign, 0 without any."""
        if self.peaks is None:
            return 0.0
        return float(self.peaks.score[self.peaks.sign == sign][:1].sum())

    def matches(self, sign: float) -> Matches:
        """The best matches of one sign, to be compared with those of other views."""
        assert self.peaks is not None  # a search that has begun
        peaks = self.peaks.chosen(self.peaks.sign == sign).best(_COMPARED)
        across = _ACROSS / self.focal
        return Matches(
            self._poses(peaks),
            peaks.score.double(),
            self.center,
            self._of_first_camera(torch.eye(4).to(self.start))[:3, 3],
            _TURN * self.search.step,
            across,
            max(across, _ALONG * math.log(self.search.depth_step)),
        )

    def _of_first_camera(self, pose: Tensor) -> Tensor:
        """Poses [..., 4, 4] of the view's camera as those of the first camera."""
        rig = self.view.rig_to_camera
        return pose if rig is None else torch.linalg.inv(rig) @ pose

    def _distances(self, sdd: float) -> tuple[list[float], Tensor]:
        """Distances to render at, and the scales [N] of the templates between them."""
        search = self.search
        depth = float(self.start[2, :3] @ self.center + self.start[2, 3])
        nearest = max(depth - search.depth, search.between[0] * sdd)
        farthest = min(depth + search.depth, search.between[1] * sdd)
        if not nearest < farthest:
            raise ValueError(
                f"init: expected the volume's centre within {search.depth:g} mm of distances "
                f"between {search.between[0] * sdd:.0f} and {search.between[1] * sdd:.0f} mm "
                f"from the source, got {depth:.0f} mm"
            )
        span = math.log(farthest / nearest)
        count = max(1, math.ceil(span / math.log(_RENDERED_RATIO)))
        finer = max(1, math.ceil(span / count / math.log(search.depth_step)))
        distances = [nearest * math.exp(span * (i + 0.5) / count) for i in range(count)]
        part = torch.arange(finer, dtype=torch.float64)
        return distances, torch.exp(span / count * ((part + 0.5) / finer - 0.5))

    def _templates(self, view: View, scales: Tensor, nearest: float) -> Templates:
        most = math.ceil(min(self.search.rotation, math.pi) / self.search.step)
        rolls = torch.arange(-most, most + 1, dtype=torch.float64) * self.search.step
        rolls = rolls[(rolls > 1e-9 - math.pi) & (rolls < 1e-9 + math.pi)]
        rolls = rolls[rolls.abs().argsort(stable=True)]
        pairs = torch.cartesian_prod(rolls, scales)
        reach = None if self.search.shift is None else self.search.shift * self.focal / nearest
        return make_templates(
            view, self.focal, pairs[:, 0].contiguous(), pairs[:, 1].contiguous(), reach
        )

    def _batches(self, device: torch.device) -> tuple[Tensor, ...]:
        """Indices of the wide images, similar tilts together: they share their largest roll."""
        work = self.templates.image_size**2 * len(self.templates.roll)
        size = max(1, _AT_ONCE.get(device.type, _AT_ONCE["cuda"]) // work)
        return self.tilts.argsort(stable=True).split(size)

    def _poses(self, peaks: Peaks) -> Tensor:
        """world_to_camera [N, 4, 4] of matches.

        A template's centre shows the patient where the wide image's ray through it passes the plane
        of the volume's centre, at X. The camera looks at X along that ray, turned by the roll, from
        a distance that gives the template its scale. A flat image magnifies by 1 / cos^2 and
        1 / cos of the angle off its axis; their geometric mean comes off the scale.
        """
        templates = self.templates
        ray = peaks.offset.to(self.start) / self.focal
        ray = torch.cat((ray, torch.ones_like(ray[:, :1])), 1)
        length = ray.norm(dim=-1, keepdim=True)
        roll = templates.roll.to(ray)[peaks.template]
        about_axis = so3_exp(roll[:, None] * ray.new_tensor((0.0, 0.0, 1.0)))
        wide_from_camera = so3_exp(_turn_to(ray / length)) @ about_axis
        rotation = wide_from_camera.mT @ self.rotations[peaks.image]
        distance = self.distances[peaks.image, None]
        scale = templates.scale.to(ray)[peaks.template, None] / length**1.5
        target = distance * ray  # X in the wide image's camera
        middle = distance * ray.new_tensor((0.0, 0.0, 1.0)) - target + scale * target
        middle = (wide_from_camera.mT @ middle[..., None])[..., 0]
        pose = torch.eye(4).to(rotation).repeat(rotation.shape[0], 1, 1)
        pose[:, :3, :3] = rotation
        pose[:, :3, 3] = middle - rotation @ self.center
        return self._of_first_camera(pose)


def _kept_images(
    drawn: SceneRenderer,
    render: Any,
    rotations: Tensor,
    distances: Tensor,
    batches: Sequence[Tensor],
) -> dict[int, tuple[Tensor, Tensor | None]]:
    """The wide images of an earlier search like this one, by batch; one that is to be filled."""
    key = (
        id(render),
        tuple(rotations.flatten().tolist()),
        tuple(distances.tolist()),
        tuple(map(len, batches)),
    )
    if key not in drawn.wide_images:
        while len(drawn.wide_images) >= _KEPT:
            drawn.wide_images.pop(next(iter(drawn.wide_images)))
        drawn.wide_images[key] = {}
    return drawn.wide_images[key]


def viewed_alike(searches: Sequence[GlobalSearch], inverted: bool) -> tuple[Tensor, Tensor]:
    """Poses [N, 4, 4] of the first camera and losses [N] that searches in several views agree on.

    Args:
        searches: that have begun; those of one view have the same `view`.
        inverted: whether the matches with negatives count, or the others.
    """
    views: dict[int, list[Matches]] = {}
    for search in searches:
        found = search.matches(-1.0 if inverted else 1.0)
        if len(found.score):
            views.setdefault(id(search.view), []).append(found)
    if not views:
        return searches[0].candidates()
    return agreeing([Matches.joined(of_view) for of_view in views.values()])


def view_directions(step: float, half_angle: float) -> Tensor:
    """Rotation vectors [N, 3] float64 that tilt the z axis to directions about `step` rad apart.

    The directions are those within `half_angle` of the z axis on a Fibonacci lattice, which covers
    the sphere evenly; the axis itself comes first. The rotations turn about axes in the x-y plane.
    """
    count = max(1, round(4.0 * math.pi / step**2))
    index = torch.arange(count, dtype=torch.float64)
    z = 1.0 - 2.0 * index / max(count - 1, 1)
    angle = index * math.pi * (1.0 + math.sqrt(5.0))
    radius = (1.0 - z.square()).clamp_min(0.0).sqrt()
    lattice = torch.stack((radius * angle.cos(), radius * angle.sin(), z), -1)
    return _turn_to(lattice[torch.acos(z.clamp(-1.0, 1.0)) <= half_angle + 1e-9])


def largest_roll(tilt: float, rotation: float) -> float:
    """The largest roll about the axis that a tilt of it leaves for a rotation of at most this.

    A tilt by a and a roll by b turn by c in all, cos(c / 2) = cos(a / 2) cos(b / 2).
    """
    if rotation >= math.pi:
        return math.pi
    ratio = math.cos(rotation / 2) / max(math.cos(tilt / 2), 1e-9)
    return 2.0 * math.acos(min(ratio, 1.0))


def _turn_to(direction: Tensor) -> Tensor:
    """Rotation vectors [N, 3] that turn the z axis to unit vectors [N, 3] the shortest way."""
    x, y, z = direction.unbind(-1)
    sine = torch.hypot(x, y)
    angle = torch.atan2(sine, z)
    # Opposite to the axis every way is shortest; about x is one.
    along = sine > 1e-12
    safe = torch.where(along, sine, 1.0)
    axis = torch.stack((torch.where(along, -y / safe, 1.0), x / safe, torch.zeros_like(x)), -1)
    return axis * angle[:, None]


def _looking_at(rotation: Tensor, distance: Tensor, center: Tensor) -> Tensor:
    """Poses [B, 4, 4] of these rotations with the centre on the axis at these distances."""
    pose = torch.eye(4).to(rotation).repeat(rotation.shape[0], 1, 1)
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = -rotation @ center
    pose[:, 2, 3] += distance
    return pose


def _focal_length(camera: Camera, pixels: int) -> float:
    """In pixels such that the X-ray's longer side has `pixels` of them."""
    rows, cols = camera.size
    K = camera.K.reshape(-1, 3, 3)[0]
    return pixels / max(cols / float(K[0, 0]), rows / float(K[1, 1]))


def _wide_camera(camera: Camera, focal: float, size: int) -> Camera:
    sdd = float(torch.as_tensor(camera.sdd).mean())
    middle = (float(size // 2), float(size // 2))
    return CArm(sdd, (size, size), sdd / focal, middle)


def matched(searches: Sequence[GlobalSearch]) -> tuple[Tensor, Tensor, bool]:
    """Poses [N, 4, 4] and losses [N] of searches, and whether they are of negative X-rays."""
    if len({id(search.view) for search in searches}) > 1:
        scores = [sum(search.best_score(sign) for search in searches) for sign in (1.0, -1.0)]
        inverted = scores[1] > scores[0]
        return *viewed_alike(searches, inverted), inverted
    inverted = min(searches, key=lambda search: float(search.best_loss)).inverted
    alike = [search.candidates() for search in searches if search.inverted == inverted]
    pose, loss = (torch.cat(part) for part in zip(*alike, strict=True))
    return pose, loss, inverted
