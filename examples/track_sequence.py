"""A moving patient in a fluoroscopic sequence: every frame from where the last one ended.

Between two frames the patient is pushed 70 mm aside, farther than the following reaches: that
frame is found again by the wider stages. Run it: python examples/track_sequence.py
"""

from __future__ import annotations

import math

import torch

import drrkit
from drrkit.registration import register_sequence


def track(frames: int = 8, spacing: float = 6.0, size: int = 80) -> dict[str, list]:
    """mTRE (mm) and confidence of every frame, how many attempts it took, whether it is lost."""
    ct = drrkit.phantoms.torso(spacing=spacing)
    camera = drrkit.CArm(sdd=1020, size=(size, size), pixel_spacing=350.0 / size)
    center = drrkit.volume_center(ct)
    front = drrkit.view_ap(ct, sod=800.0)
    # Breathing moves the patient to and fro, and a C-arm's turn goes on steadily.
    time = torch.arange(frames, dtype=torch.float64)
    xi = torch.zeros(frames, 6, dtype=torch.float64)
    xi[:, 1] = 0.02 * time
    xi[:, 4] = 5.0 * torch.sin(2 * math.pi * time / 6)
    xi[frames // 2 :, 3] += 70.0
    truth = drrkit.perturb(front, xi, center)
    movie = torch.cat(
        [drrkit.simulate_xray(ct, camera, pose[None], seed=k) for k, pose in enumerate(truth)]
    )
    start = drrkit.perturb(front, torch.tensor([[0.05, -0.04, 0.03, 6.0, -5.0, 12.0]]), center)
    found = register_sequence(ct.to_mu(), camera, movie, start)
    generator = torch.Generator().manual_seed(0)
    points = center + 60.0 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    return {
        "mtre": drrkit.metrics.mtre(found.world_to_camera, truth, points).tolist(),
        "confidence": found.confidence,
        "attempts": found.attempts,
        "lost": found.lost,
    }


if __name__ == "__main__":
    told = track()
    for number, row in enumerate(zip(*told.values(), strict=True)):
        error, confidence, attempts, lost = row
        words = f"frame {number}: {error:5.2f} mm, confidence {confidence:.3f}"
        print(words + (f", {attempts} attempts" if attempts > 1 else "") + (", lost" * lost))
