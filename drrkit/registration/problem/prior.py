"""Pose priors: how far from a start a pose is expected, as a term of the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from drrkit.registration.problem.motion import motion_of, moved_by

__all__ = ["PosePrior", "PriorTerm"]


@dataclass(frozen=True, eq=False)
class PosePrior:
    """Normal distributions of xi about a start, in a compromise with the similarity.

    The loss of every stage becomes (1 - weight) * similarity + weight * sum (xi / sigma)^2 / 2: xi
    (rad, mm) is the motion from the start to the pose about the volume's centre, in camera axes,
    the sum the negative logarithm of its distribution without the constant. The form is that of
    xreg (Grupp et al. 2020), there on Euler angles.

    Attributes:
        sigma: standard deviations: (rad, mm), six of xi's components, or 6 n for n bodies; inf
            leaves a component free.
        weight: of the prior, in (0, 1). 0.1, as in xreg, steers wide stages, but pulls the end
            towards the start: in a simulated X-ray of a phantom by 13 mm, 1e-3 by less than 1.
        world_to_camera: the expected pose, [4, 4], or [n, 4, 4] for n bodies; None: the start of
            the registration, of which there may be only one then.

    Raises:
        ValueError: a number is out of bounds.
    """

    sigma: tuple[float, ...] = (math.radians(10.0), 30.0)
    weight: float = 1e-3
    world_to_camera: Tensor | None = None

    def __post_init__(self) -> None:
        usable = all(value > 0 for value in self.sigma)
        if not usable or (len(self.sigma) != 2 and (len(self.sigma) % 6 or not self.sigma)):
            raise ValueError(
                "sigma: expected (rad, mm), or six a body (rad, mm), all positive, got "
                f"{self.sigma!r}"
            )
        if not 0 < self.weight < 1:
            raise ValueError(f"weight: expected a number between 0 and 1, got {self.weight!r}")

    def term(self, start: Tensor, center: Tensor) -> PriorTerm:
        """The prior's part of the loss.

        Args:
            start: [K, 4, 4] or [K, n, 4, 4] float64, the starts of the registration.
            center: [3] or [n, 3] world mm.

        Raises:
            TypeError, ValueError: no expected pose and several starts, or shapes that do not fit.
        """
        expected = self.world_to_camera
        if expected is None:
            if len(start) != 1:
                raise ValueError(
                    "prior: expected world_to_camera, the pose that it is about, as there are "
                    f"{len(start)} starts"
                )
            expected = start[0]
        if not isinstance(expected, Tensor) or expected.numel() != start[0].numel():
            found = tuple(getattr(expected, "shape", ())) or type(expected).__name__
            raise ValueError(
                f"prior: expected world_to_camera of shape {tuple(start.shape[1:])}, got {found}"
            )
        bodies = start[0].numel() // 16
        sigma = torch.tensor(self.sigma, dtype=torch.float64)
        if len(sigma) == 2:
            sigma = sigma.repeat_interleave(3)
        if len(sigma) not in (6, 6 * bodies):
            raise ValueError(f"prior: expected 2, 6 or {6 * bodies} sigmas, got {len(sigma)}")
        if len(sigma) < 6 * bodies:
            sigma = sigma.repeat(bodies)
        pose = expected.detach().to(start).reshape(start.shape[1:])
        return PriorTerm(pose, center, sigma.to(start), self.weight)


@dataclass(frozen=True, eq=False)
class PriorTerm:
    """A prior about a pose: weight * sum (xi / sigma)^2 / 2, and what goes with it."""

    pose: Tensor
    center: Tensor
    sigma: Tensor
    weight: float

    def __call__(self, world_to_camera: Tensor) -> Tensor:
        """The term of poses [B, ...]: [B] float64, differentiable."""
        xi = motion_of(self.pose, world_to_camera, self.center)
        return 0.5 * self.weight * (xi / self.sigma).square().sum(-1)

    def expand(self, world_to_camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value [B], gradient [B, D] and Gauss-Newton matrix [B, D, D] in a further motion."""
        count, size = len(world_to_camera), self.sigma.numel()
        step = torch.zeros(count, size, dtype=torch.float64, device=self.sigma.device)
        step.requires_grad_()
        with torch.enable_grad():
            pose = moved_by(world_to_camera.detach().double(), step, self.center)
            residual = motion_of(self.pose, pose, self.center) / self.sigma
            rows = [
                torch.autograd.grad(residual[:, i].sum(), step, retain_graph=i + 1 < size)[0]
                for i in range(size)
            ]
        jacobian, residual = torch.stack(rows, 1), residual.detach()
        gradient = (jacobian.mT @ residual[..., None])[..., 0]
        value = 0.5 * residual.square().sum(-1)
        return self.weight * value, self.weight * gradient, self.weight * jacobian.mT @ jacobian
