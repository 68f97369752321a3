"""Networks of every kind that are small enough for tests, and tasks that train them on a torso."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from drrkit import Camera, CArm, render
from drrkit.phantoms import torso
from drrkit.similarity import (
    NETWORKS,
    REGRESSOR_RECIPES,
    CDRegTask,
    PoseRegressor,
    PoseSampling,
    RegressorTask,
    SimilarityTask,
    TrainingPatient,
    TrainingRecipe,
    construct,
)
from drrkit.volume import Volume

SIZE = 32
CAMERA = CArm(1020.0, (SIZE, SIZE), 280.0 / SIZE)
SIMILARITIES = ("prost-small", "prost-2020-small", "cdreg-small", "sopi-small")
REGRESSORS = ("deepim-small", "dmw-small", "sopi-initialiser-small")
_TINY: dict[str, dict[str, Any]] = {
    "prost-small": {
        "expansion": (2, 2),
        "images": (16, 16),
        "patches": (4, 8),
        "dims": (8, 12),
        "heads": (2, 2),
        "depth": (1, 1),
        "stages": 1,
        "moving_scale": "none",
        "fixed_scale": "unit",
    },
    "prost-2020-small": {"expansion": (2, 2), "widths": (4, 8, 4)},
    "cdreg-small": {"image": SIZE, "features": (8, 16, 32), "score_side": 4},
    "sopi-small": {"image": SIZE},
    "deepim-small": {"image": SIZE},
    "dmw-small": {"image": SIZE},
    "sopi-initialiser-small": {"image": SIZE, "localisation": (16,)},
}


@cache
def ct() -> Volume:
    """A torso in HU."""
    return torso(10.0)


def tiny(name: str, seed: int = 0, **changes: Any) -> Any:
    """A small network for images of 32 x 32."""
    configuration = NETWORKS[name].but(**{**_TINY[name], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return construct(configuration.kind, configuration.settings)


def shaken(network: nn.Module, by: float = 0.02) -> Any:
    """The same with random weights instead of zeros in its last layers."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += by * torch.randn(parameter.shape, generator=torch.manual_seed(1))
    return network


def image_pair(
    network: nn.Module, count: int, size: tuple[int, int] = (SIZE, SIZE)
) -> list[Tensor]:
    """Random channels [count, C, rows, cols] and X-rays [count, 1, rows, cols] for a similarity."""
    like = next(network.parameters())
    random = torch.Generator().manual_seed(0)
    channels = network.channels(torch.zeros(2, 2, 2).to(like)).shape[0]
    return [torch.rand(count, c, *size, generator=random).to(like) for c in (channels, 1)]


def parameters(module: nn.Module) -> int:
    """The number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())


def plain(volume: Volume, camera: Camera, world_to_camera: Tensor, seed: int) -> Tensor:
    """X-rays without noise: line integrals."""
    return render(volume.to_mu(), camera, world_to_camera)


def task_for(network: Any, volume: Volume, **recipe: Any) -> Any:
    """The task that trains a network on one patient."""
    patient = TrainingPatient.of("torso", volume, network)
    if isinstance(network, PoseRegressor):
        regressor = replace(REGRESSOR_RECIPES[network.kind], cycle=None, **recipe)
        return RegressorTask(network, [patient], [], CAMERA, regressor, synthesise=plain)
    kind = CDRegTask if network.kind == "cdreg" else SimilarityTask
    sampling = PoseSampling(target=(15.0,) * 3 + (25.0,) * 3, moving=(25.0,) * 5 + (60.0,))
    options = TrainingRecipe(**{"schedule": "constant", "rate": 1e-3, **recipe})
    return kind(network, [patient], [], CAMERA, sampling, options, synthesise=plain)
