"""What every pose regressor is: a module that looks at two images and says where to move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from drrkit.geometry import Camera, volume_center
from drrkit.similarity.networks.learned import LearnedSimilarity
from drrkit.volume import Volume

__all__ = ["Pairs", "PoseRegressor"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Poses with their true ones, to learn from.

    Attributes:
        volume: the prepared volume of one patient.
        camera: of all images.
        fixed: [B, 1, rows, cols] X-rays at the targets.
        world_to_camera: [B, 4, 4] float64 poses to improve.
        target: [B, 4, 4] float64 true poses.
        points: [P, 3] float64 world mm, of the bones.
    """

    volume: Volume
    camera: Camera
    fixed: Tensor
    world_to_camera: Tensor
    target: Tensor
    points: Tensor

    @property
    def center(self) -> Tensor:
        """The volume's centre, [3] world mm: what poses turn about."""
        return volume_center(self.volume)


class PoseRegressor(nn.Module):
    """A network that predicts better poses from renderings at poses and an X-ray.

        prepare(scene)      the volume that is rendered: bone, as for learned similarities
        predict(...)        what the network says, [B, n] numbers
        apply(...)          the poses that these numbers mean
        update(...)         both of these
        loss(...)           how wrong predictions are, to be minimised in training

    A subclass defines `predict`, `apply` and `loss`. Its constructor takes settings by name only,
    as a LearnedSimilarity does; `build`, `save_similarity` and `load_similarity` serve it, too.

    Args:
        threshold_hu, voxel_mm: of the volume that is rendered, see LearnedSimilarity.
    """

    kind: str
    """Name of the class in `KINDS`, set by `construct`."""
    settings: dict[str, Any]
    """What the constructor was given, set by `construct`."""

    def __init__(
        self, *, threshold_hu: float | None = 150.0, voxel_mm: float | None = None
    ) -> None:
        super().__init__()
        self._scenes = LearnedSimilarity(threshold_hu=threshold_hu, voxel_mm=voxel_mm)

    def moving(self, scene: Volume) -> Volume:
        """The volume to render: bone, [D, H, W]; arguments and errors of LearnedSimilarity's."""
        return self._scenes.moving(scene)

    def prepare(self, scene: Volume) -> Volume:
        """The same, by the name that registration uses."""
        return self.moving(scene)

    def predict(self, moving: Tensor, fixed: Tensor, volume: Volume) -> Tensor:
        """What the network says: [B, n], differentiable.

        Args:
            moving: [B, 1, rows, cols] renderings of `volume` at the poses to improve.
            fixed: [B or 1, 1, rows, cols] X-rays on the scale of line integrals.
            volume: the prepared volume.
        """
        raise NotImplementedError

    def apply(self, prediction: Tensor, world_to_camera: Tensor, center: Tensor) -> Tensor:
        """The poses that predictions [B, n] mean: [B, 4, 4] float64, differentiable.

        Args:
            prediction: of `predict`.
            world_to_camera: [B, 4, 4] poses of the moving images.
            center: [3] world mm, the volume's centre.
        """
        raise NotImplementedError

    def loss(self, prediction: Tensor, pairs: Pairs) -> Tensor:
        """How far predictions [B, n] for pairs are off, [], differentiable."""
        raise NotImplementedError

    def update(
        self, moving: Tensor, fixed: Tensor, world_to_camera: Tensor, volume: Volume
    ) -> Tensor:
        """Better poses: [B, 4, 4] float64, differentiable. Arguments as above."""
        prediction = self.predict(moving, fixed, volume)
        return self.apply(prediction, world_to_camera.double(), volume_center(volume))
