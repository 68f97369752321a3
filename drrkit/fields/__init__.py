"""Neural scene representations: image formations of DiffProj, tuned CT (NeTT), masked NeRF (mNeRF).

Every scene renders through `scene.render(camera, world_to_camera, **options)` and can be registered
by `drrkit.register`. docs/fields.md is the tour.

scenes: what can be rendered. nett, mnerf: the networks, made of encodings; masks, ndc: where the
anatomy is, DiffProj's coordinates. xray_pairs, image_objective, train_fields: data, losses and
tasks of training. files: trained fields.
"""

from drrkit.fields.encodings import Perceptron, positional_encoding
from drrkit.fields.files import load_field, save_field
from drrkit.fields.image_objective import (
    IMAGE_LOSSES,
    ImageObjective,
    Normalised,
    min_max,
    psnr,
    scene_quality,
    ssim_index,
)
from drrkit.fields.masks import body_mask
from drrkit.fields.mnerf import MNeRF
from drrkit.fields.ndc import DIFFPROJ_SDD, DIFFPROJ_SOD, NDC
from drrkit.fields.nett import LOCAL_FEATURES, NeTT, TunedCT
from drrkit.fields.scenes import (
    CT,
    FORMATIONS,
    Scene,
    VolumeRendered,
    absorption,
    as_scene,
)
from drrkit.fields.train_fields import FoldResult, MNeRFTask, NeTTTask, cross_validate
from drrkit.fields.xray_pairs import Pairs, check_subjects, random_views

__all__ = [
    "CT",
    "DIFFPROJ_SDD",
    "DIFFPROJ_SOD",
    "FORMATIONS",
    "IMAGE_LOSSES",
    "LOCAL_FEATURES",
    "NDC",
    "FoldResult",
    "ImageObjective",
    "MNeRF",
    "MNeRFTask",
    "NeTT",
    "NeTTTask",
    "Normalised",
    "Pairs",
    "Perceptron",
    "Scene",
    "TunedCT",
    "VolumeRendered",
    "absorption",
    "as_scene",
    "body_mask",
    "check_subjects",
    "cross_validate",
    "load_field",
    "min_max",
    "positional_encoding",
    "psnr",
    "random_views",
    "save_field",
    "scene_quality",
    "ssim_index",
]
