"""Patients as training uses them, and the X-rays and poses that are drawn of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drrkit.geometry import Camera, GridConstants, grid_constants, project_points, view_ap
from drrkit.projector import render
from drrkit.similarity.networks import BoneNetwork
from drrkit.similarity.poses import PoseChart, PoseSampling
from drrkit.training import drawn_integer, generator
from drrkit.volume import Volume
from drrkit.xray import simulate_xray

Synthesis = Callable[[Volume, Camera, Tensor, int], Tensor]
"""synthesise(ct in HU, camera, world_to_camera [B, 4, 4], seed) -> X-rays [B, 1, rows, cols] on the
scale of line integrals, without gradient."""

Randomise = Callable[[Tensor, int], Tensor]
"""randomise(images [B, 1, rows, cols], seed) -> images, changed at random."""

LEAST_IN_VIEW, ENOUGH_IN_VIEW = 0.10, 2 / 3
"""Mean shares of the bone in view: below the first training is refused, below the second warned."""


def simulated(ct: Volume, camera: Camera, world_to_camera: Tensor, seed: int) -> Tensor:
    """The default synthesis: `simulate_xray` with a 90 kV spectrum and 4 rays per pixel."""
    return simulate_xray(ct, camera, world_to_camera, supersample=2, seed=seed)


def bone_center(moving: Volume) -> Tensor:
    """The centre of the box of a moving volume's voxels that are not 0: [3] float64 world mm.

    Raises:
        ValueError: all are 0.
    """
    index = moving.values.nonzero().flip(-1).double()
    if len(index) == 0:
        raise ValueError("moving: expected a volume with bone, got one without")
    return moving.index_to_world((index.amin(0) + index.amax(0)) / 2)


class TrainingPatient(NamedTuple):
    """A CT as training uses it.

    Attributes:
        name: for splits and reports.
        ct: in HU, from which X-rays are synthesised.
        moving: what the network reads of it (`BoneNetwork.moving`), on one device.
        grid: of `moving`.
        chart: theta <-> poses.
    """

    name: str
    ct: Volume
    moving: Volume
    grid: GridConstants
    chart: PoseChart

    @staticmethod
    def of(
        name: str,
        ct: Volume,
        network: BoneNetwork,
        *,
        sod: float = 800.0,
        bones: Sequence[int] | None = None,
        center: Tensor | None = None,
    ) -> TrainingPatient:
        """A CT in HU, made ready for a network.

        Args:
            sod: distance of `center` from the source in the reference view, an AP view.
            bones: labels of `ct` that the moving volume shows; None: by the network's threshold.
            center: [3] world mm that views are centred on and poses turn about; default
                `bone_center` of what moves. Registration with the network turns about it best, too.

        Raises:
            ValueError: no voxel of the moving volume is bone.
        """
        scene = (ct if bones is None else ct.select(bones)).to_mu()
        moving = network.moving(scene)
        if center is None:
            try:
                center = bone_center(moving)
            except ValueError:
                raise ValueError(f"patients: expected bone in all, got none in {name!r}") from None
        reference = view_ap(ct, sod)[0]
        ahead = reference.new_tensor((0.0, 0.0, sod))
        reference[:3, 3] = ahead - reference[:3, :3] @ center.to(reference)
        chart = PoseChart(ct, reference, center)
        return TrainingPatient(name, ct, moving, grid_constants(moving), chart)

    def share_in_view(self, camera: Camera, theta: Tensor) -> Tensor:
        """The share of the bone's voxels that poses theta [B, 6] show on the detector: [B]."""
        pose = self.chart.world_to_camera(theta)
        place = project_points(camera, pose, self.bone_points(500)) + 0.5
        size = place.new_tensor(camera.size)
        return ((place >= 0) & (place < size)).all(-1).double().mean(-1)

    def bone_points(self, count: int) -> Tensor:
        """Up to `count` random voxels of bone: [P, 3] float64 world mm."""
        index = self.moving.values.nonzero().flip(-1)
        chosen = torch.randperm(len(index), generator=generator(0))[:count].to(index.device)
        return self.moving.index_to_world(index[chosen].double())


class PatientTask:
    """The part that trainings of similarities and of regressors share: patients and their X-rays.

    Args:
        model: the network, on the patients' device.
        patients: to train on, made for this network (`TrainingPatient.of`).
        held_out: to validate on, none of them in `patients`.
        camera: of all images.
        sampling: of the poses.
        recipe: how to train.
        synthesise: makes the X-rays; default `simulated`.
        randomise: domain randomisation of X-rays; not used in validation.

    Raises:
        ValueError: no patients, one that is trained and validated on, or one of whose bone the
            drawn poses show less than 10 % on average; below two thirds there is a warning.
    """

    stream: int
    """Keeps the random numbers of validation apart from those of training."""

    def __init__(
        self,
        model: BoneNetwork,
        patients: Sequence[TrainingPatient],
        held_out: Sequence[TrainingPatient],
        camera: Camera,
        sampling: PoseSampling,
        recipe: Any,
        *,
        synthesise: Synthesis | None = None,
        randomise: Randomise | None = None,
    ) -> None:
        if not patients:
            raise ValueError("patients: expected at least one, got none")
        shared = {p.name for p in patients} & {p.name for p in held_out}
        if shared:
            raise ValueError(f"held_out: {sorted(shared)} are trained on, too")
        self.model: Any = model
        self.patients, self.held_out = list(patients), list(held_out)
        self.camera, self.sampling, self.recipe = camera, sampling, recipe
        self.synthesise = simulated if synthesise is None else synthesise
        self.randomise = randomise
        self._check_views()

    def _check_views(self) -> None:
        shares: dict[str, float] = {}
        for patient in (*self.patients, *self.held_out):
            theta = torch.cat(self.sampling.draw(patient.chart, 32, generator(0)))
            shares[patient.name] = float(patient.share_in_view(self.camera, theta).mean())
        worst = min(shares, key=shares.__getitem__)
        share = 100 * shares[worst]
        said = f"{share:.0f} % of the bone of {worst!r} is in view on average over the drawn poses"
        if shares[worst] < LEAST_IN_VIEW:
            raise ValueError(
                f"patients: {said}, expected at least {100 * LEAST_IN_VIEW:.0f} %; select a "
                "smaller bone, or use a larger detector"
            )
        if shares[worst] < ENOUGH_IN_VIEW:
            warnings.warn(f"patients: only {said}", stacklevel=4)

    def example(self, count: int = 4) -> Tensor:
        """A training batch to look at: images [count, 3, rows, cols].

        Channels: the X-ray as the network is trained on it; the bone at its true pose; the bone at
        the moving pose.
        """
        draw = generator(0)
        patient = self.drawn_patient(draw)
        theta, target, xray = self.views(patient, count, draw, randomised=True)
        with torch.no_grad():
            bones = [
                render(patient.moving, self.camera, patient.chart.world_to_camera(t))
                for t in (target, theta)
            ]
        return torch.cat((xray, *(bone.to(xray) for bone in bones)), 1)

    def weights(self) -> list[torch.nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def drawn_patient(self, draw: torch.Generator) -> TrainingPatient:
        """One of the patients to train on."""
        return self.patients[drawn_integer(draw, len(self.patients))]

    def validation_draw(self, number: int) -> torch.Generator:
        """The random numbers of the held-out patient of this number."""
        return generator(self.recipe.seed + self.stream, number, 0)

    def views(
        self, patient: TrainingPatient, count: int, draw: torch.Generator, randomised: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moving and true poses theta [count, 6], and X-rays [count, 1, r, c] at the true ones."""
        theta, target = self.sampling.draw(patient.chart, count, draw)
        device = patient.moving.values.device
        with torch.no_grad():
            pose = patient.chart.world_to_camera(target).to(device)
            xray = self.synthesise(patient.ct, self.camera, pose, drawn_integer(draw)).float()
        if randomised and self.randomise is not None:
            xray = self.randomise(xray, drawn_integer(draw))
        return theta.to(device), target.to(device), xray
