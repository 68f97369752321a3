"""A network that sees the patient only through X-rays: drrkit.project inside a training loop.

A small 3D network learns to turn CT values into attenuation so that its projections match X-rays
taken with another beam quality. Run it: python examples/train_through_projection.py
"""

from __future__ import annotations

import torch
from torch import nn

import drrkit


class ValueMap(nn.Module):
    """Attenuation from Hounsfield units, voxel by voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        scaled = (hu / 1000.0).unsqueeze(-1)
        # Air stays air: what is learned multiplies the clamped density of water.
        water = 0.02 * (1.0 + hu / 1000.0).clamp_min(0.0)
        return water * nn.functional.softplus(self.layers(scaled).squeeze(-1))


def train(steps: int = 60, spacing: float = 10.0, size: int = 48) -> list[float]:
    torch.manual_seed(0)
    ct = drrkit.phantoms.torso(spacing=spacing)
    camera = drrkit.CArm(sdd=1020, size=(size, size), pixel_spacing=350.0 / size)
    angles = torch.linspace(-0.6, 0.6, 8)
    poses = drrkit.view_carm(ct, 800.0, angles, 0.0)
    frames = drrkit.view_frames(ct, camera, poses, extend=True)
    xrays = drrkit.render(ct.to_mu(energy_kev=50), camera, poses)
    network = ValueMap()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        values = network(ct.values)  # [D, H, W], with a gradient
        images = drrkit.project(values, frames, camera.size, spacing=ct.spacing)
        loss = (images - xrays).square().mean() / xrays.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


if __name__ == "__main__":
    history = train()
    print(f"relative squared error {history[0]:.4f} -> {history[-1]:.6f}")
