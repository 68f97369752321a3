"""How far the tools' answers lie from drrkit's and from a very fine reference."""

from __future__ import annotations

import numpy as np

from drrkit.bench.plan import Workload
from drrkit.bench.reference import fine_integrals
from drrkit.bench.scene import Scene

REFERENCE_RAYS = 2600
"""About as many rays of a view are computed finely."""
MOST_REFERENCE_SIZE = 512


def relative(found: np.ndarray, truth: np.ndarray, physical: bool = True) -> float:
    """Relative L2 difference; where the scale is not physical, after the best common factor."""
    found, truth = found.astype(np.float64), truth.astype(np.float64)
    if not physical:
        found = found * (float((found * truth).sum()) / max(float((found**2).sum()), 1e-300))
    return float(np.linalg.norm(found - truth) / max(np.linalg.norm(truth), 1e-300))


def differences(
    operation: str, found: np.ndarray, own: np.ndarray, physical: bool
) -> dict[str, float]:
    """Of an answer to drrkit's, by name: of images, of gradients in rotation and translation
    (over all views), of gradients in voxels (as means over blocks)."""
    if operation == "forward":
        return {"image": relative(found, own, physical)}
    if operation == "pose":
        return {
            "rotation": relative(found[:, :3], own[:, :3], physical),
            "translation": relative(found[:, 3:], own[:, 3:], physical),
        }
    return {"gradient": relative(found, own, physical)}


class Reference:
    """The fine reference of single views, computed once a view and size, on some of the rows."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], np.ndarray] = {}

    def difference(
        self, work: Workload, scene: Scene, image: np.ndarray, physical: bool
    ) -> float | None:
        """Of images [1, rows, cols]; None for workloads without a reference."""
        plain = work.section == "main" and work.operation == "forward" and work.views == 1
        if not plain or work.size > MOST_REFERENCE_SIZE:
            return None
        every = max(1, work.size**2 // REFERENCE_RAYS)
        key = (work.view, work.size)
        if key not in self.rows:
            pose, camera = scene.poses(work.view, 1), scene.camera(work.size)
            self.rows[key] = fine_integrals(scene.volume, camera, pose, every).numpy()
        return relative(image[0, ::every], self.rows[key], physical)


def comparison(
    work: Workload,
    scene: Scene,
    answer: np.ndarray,
    own: np.ndarray | None,
    physical: bool,
    reference: Reference,
) -> dict[str, float]:
    """Everything that a row says about an answer; own is drrkit's, None for that itself."""
    found = {} if own is None else differences(work.operation, answer, own, physical)
    fine = reference.difference(work, scene, answer, physical)
    return found if fine is None else found | {"image_to_fine": fine}
