"""Two calibrated views of one patient: a registration that knows depth.

Run it: python examples/biplane.py
"""

from __future__ import annotations

import math

import torch

import drrkit


def register_biplane(spacing: float = 5.0, size: int = 96) -> dict[str, list[float]]:
    """With one view and with both: mTRE, and the standard deviation of depth, in mm."""
    ct = drrkit.phantoms.torso(spacing=spacing)
    exact = drrkit.geometry.CameraSigma(0.0, 0.0, 0.0)  # what is shown is what the images know
    camera = drrkit.CArm(1020, (size, size), 350.0 / size, sigma=exact)
    front = drrkit.view_carm(ct, 800.0, 0.0, 0.0)
    side = drrkit.view_carm(ct, 800.0, math.pi / 2, 0.0)
    # The C-arms are fixed to each other: what the first camera sees, the second sees from the side.
    rig_to_camera = torch.cat((torch.eye(4, dtype=torch.float64)[None], side @ front.inverse()))
    center = drrkit.volume_center(ct)
    off = torch.tensor([0.08, -0.06, 0.05, 8.0, -6.0, 25.0], dtype=torch.float64)
    truth = drrkit.perturb(front, off, center)
    views = rig_to_camera @ truth
    xrays = [drrkit.simulate_xray(ct, camera, view[None], seed=k) for k, view in enumerate(views)]
    volume = ct.to_mu()
    single = drrkit.register(volume, camera, xrays[0], front)
    both = drrkit.register(volume, [camera, camera], xrays, front, rig_to_camera=rig_to_camera)
    generator = torch.Generator().manual_seed(0)
    points = center + 60.0 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    results = (single, both)
    return {
        "mtre": [
            float(drrkit.metrics.mtre(result.world_to_camera[None], truth, points))
            for result in results
        ],
        "depth sigma": [float(result.covariance[5, 5].sqrt()) for result in results],
    }


if __name__ == "__main__":
    for name, (one, two) in register_biplane().items():
        print(f"{name}: {one:.3f} mm with one view, {two:.3f} mm with two")
