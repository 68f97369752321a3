"""Neural scene representations: image formations of DiffProj, tuned CT (NeTT), masked NeRF (mNeRF).

Every scene renders through `scene.render(camera, world_to_camera, **options)` and can be registered
by `drrkit.register`. docs/fields.md is the tour.
"""

from drrkit.fields.formation import (
    FORMATIONS,
    VolumeRendered,
    absorption,
    ray_casting,
    volume_rendering,
)
from drrkit.fields.masks import body_mask
from drrkit.fields.mnerf import MNeRF
from drrkit.fields.ndc import DIFFPROJ_SDD, DIFFPROJ_SOD, NDC
from drrkit.fields.nett import LOCAL_FEATURES, NeTT, TunedCT
from drrkit.fields.networks import Perceptron, positional_encoding
from drrkit.fields.scenes import CT, Scene, as_scene

__all__ = [
    "CT",
    "DIFFPROJ_SDD",
    "DIFFPROJ_SOD",
    "FORMATIONS",
    "LOCAL_FEATURES",
    "NDC",
    "MNeRF",
    "NeTT",
    "Perceptron",
    "Scene",
    "TunedCT",
    "VolumeRendered",
    "absorption",
    "as_scene",
    "body_mask",
    "positional_encoding",
    "ray_casting",
    "volume_rendering",
]
