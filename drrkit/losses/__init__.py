"""Similarity losses between a rendered (moving) and an acquired (fixed) X-ray image.

Every loss has one shape: ``loss(moving, fixed, mask=None) -> [B]``, to be minimised.

    moving  [B, C, rows, cols], float32 or float64; usually carries the gradient
    fixed   [B or 1, C or 1, rows, cols], same dtype and device; one image may serve all views
    mask    [B or 1, 1, rows, cols] float weights >= 0 (their values are not checked), or None

Correlations and other similarities are returned as 1 - similarity, mutual information as minus MI
in nats. Channels are compared one by one and averaged. Only the proportions of the mask's weights
matter. Constant images and empty masks give finite losses and gradients: a constant image
correlates with nothing. Every loss raises TypeError or ValueError, naming the argument, for images
or a mask of other shapes, dtypes or devices; what else it raises is said in its docstring.

Large batches are compared a few views at a time, and the backward pass repeats a comparison instead
of keeping its intermediate results: hundreds of candidate poses need the memory of their images and
a few more. All losses are twice differentiable in the images wherever their formula is; the
docstrings say what is held constant (intensity ranges, focal weights).

intensity, correlation, patches, information: the losses. arguments: checks and masks of all.
batches: groups of views. stencils: boxes, Gaussians, Sobel.
"""

from drrkit.losses.correlation import gradient_difference, gradient_ncc, local_ncc, ncc
from drrkit.losses.information import (
    mattes_mutual_information,
    mutual_information,
    normalized_mutual_information,
)
from drrkit.losses.intensity import focal_frequency, l1, mse, soft_dice, ssim, ssim_dice_l1
from drrkit.losses.patches import patch_curvature, patch_gradient_ncc, patch_radius
from drrkit.losses.stencils import box, sobel

LOSSES = {
    loss.__name__: loss
    for loss in (
        focal_frequency,
        gradient_difference,
        gradient_ncc,
        l1,
        local_ncc,
        mattes_mutual_information,
        mse,
        mutual_information,
        ncc,
        normalized_mutual_information,
        patch_gradient_ncc,
        soft_dice,
        ssim,
        ssim_dice_l1,
    )
}
"""All losses by name."""

__all__ = [
    "LOSSES",
    "box",
    "focal_frequency",
    "gradient_difference",
    "gradient_ncc",
    "l1",
    "local_ncc",
    "mattes_mutual_information",
    "mse",
    "mutual_information",
    "ncc",
    "normalized_mutual_information",
    "patch_curvature",
    "patch_gradient_ncc",
    "patch_radius",
    "sobel",
    "soft_dice",
    "ssim",
    "ssim_dice_l1",
]
