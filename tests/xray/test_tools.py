"""Metal tools: chords of solids of revolution, voxels, poses."""

from __future__ import annotations

import math

import pytest
import torch

from drrkit import CArm, Volume, render, view_ap
from drrkit.xray import PlacedTool, Tool, k_wire, random_tool_pose, rod, screw


def pose_of(axis: tuple[float, float, float], tip: tuple[float, float, float]) -> torch.Tensor:
    """tool_to_camera [1, 4, 4] whose z axis is `axis`."""
    z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    other = torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
    x = torch.nn.functional.normalize(torch.linalg.cross(other, z), dim=0)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.stack([x, torch.linalg.cross(z, x), z], dim=1)
    pose[:3, 3] = torch.tensor(tip, dtype=torch.float64)
    return pose[None]


def sampled_chords(tool: Tool, camera, pose: torch.Tensor, samples: int = 8001) -> torch.Tensor:
    """The chords by brute force: how many of many points along each ray lie inside."""
    frame = camera.pixel_rays()
    rows, cols = camera.size
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    offset = j[..., None] * frame[2] + i[..., None] * frame[3]
    start = (frame[0] + (offset if camera.beam == "parallel" else 0 * offset)).reshape(-1, 1, 3)
    end = (frame[1] + offset).reshape(-1, 1, 3)
    t = torch.linspace(0, 1, samples, dtype=torch.float64)[None, :, None]
    points = (start + t * (end - start) - pose[0, :3, 3]) @ pose[0, :3, :3]
    radius, z = points[..., :2].norm(dim=-1), points[..., 2]
    inside = torch.zeros_like(z, dtype=torch.bool)
    for (z0, r0), (z1, r1) in zip(tool.profile, tool.profile[1:], strict=False):
        if z1 > z0:
            inside |= (z >= z0) & (z < z1) & (radius <= r0 + (r1 - r0) * (z - z0) / (z1 - z0))
    return (inside.double().mean(1) * (end - start).norm(dim=-1)[:, 0]).reshape(1, 1, rows, cols)


@pytest.mark.parametrize("beam", ["cone", "parallel"])
@pytest.mark.parametrize(
    "axis", [(1.0, 0.0, 0.0), (0.2, 0.9, 0.1), (0.1, -0.2, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)]
)
@pytest.mark.parametrize("tool", [k_wire(8.0, 60.0), rod(20.0, 30.0), screw(14.0, 60.0, 9.0)])
def test_chords_are_those_of_points_along_the_rays(beam: str, axis: tuple, tool: Tool) -> None:
    camera = CArm(400.0, (7, 9), 6.3, principal_point=(4.2, 2.9), beam=beam)
    pose = pose_of(axis, (3.0, -4.0, 250.0))
    found = tool.chords(camera, pose)
    expected = sampled_chords(tool, camera, pose)
    assert expected.max() > 2.0
    torch.testing.assert_close(found, expected, rtol=0, atol=0.15)  # samples are 50 um apart


def test_a_rod_across_the_beam_is_as_thick_as_it_is() -> None:
    camera = CArm(1000.0, (1, 1), 1.0, beam="parallel")
    chord = rod(10.0, 80.0).chords(camera, pose_of((1.0, 0.0, 0.0), (-40.0, 3.0, 500.0)))
    assert float(chord) == pytest.approx(2.0 * math.sqrt(25.0 - 9.0), rel=1e-12)
    along = rod(10.0, 80.0).chords(camera, pose_of((0.0, 0.0, 1.0), (2.0, 1.0, 500.0)))
    assert float(along) == pytest.approx(80.0, rel=1e-9)
    half = rod(10.0, 80.0).chords(camera, pose_of((0.0, 0.0, 1.0), (2.0, 1.0, -30.0)))
    assert float(half) == pytest.approx(50.0, rel=1e-9)  # what lies behind the source is not seen


@pytest.mark.parametrize("tool", [k_wire(10.0, 60.0), rod(12.0, 40.0), screw(14.0, 50.0, 8.0)])
def test_all_chords_together_are_the_volume(tool: Tool) -> None:
    camera = CArm(1000.0, (160, 160), 0.5, beam="parallel")
    pose = pose_of((0.4, 0.9, 0.3), (-8.0, -25.0, 400.0))
    total = float(tool.chords(camera, pose).sum()) * 0.25
    assert total == pytest.approx(tool.volume, rel=2e-3)


@pytest.mark.parametrize("tool", [k_wire(10.0, 60.0), rod(12.0, 40.0), screw(14.0, 50.0, 8.0)])
def test_voxels_hold_the_tool_and_render_as_its_chords(tool: Tool) -> None:
    grid = Volume(torch.zeros(80, 80, 80), (1.0, 1.0, 1.0), (-39.5, -39.5, -39.5), unit="mu")
    pose = pose_of((0.4, 0.9, 0.3), (-8.0, -25.0, -10.0))[0]
    share = tool.voxelise(grid, pose)
    assert share.shape == (80, 80, 80) and share.min() >= 0.0 and share.max() == 1.0
    assert float(share.sum()) == pytest.approx(tool.volume, rel=0.04)
    camera = CArm(1000.0, (20, 20), 5.0)
    view = view_ap(grid, 800.0)
    voxels = render(
        Volume(share, grid.spacing, grid.origin, unit="mu"), camera, view, supersample=3
    )
    fine = CArm(1000.0, (60, 60), 5.0 / 3.0)
    poses = view.reshape(-1, 4, 4) @ pose.to(view)
    exact = torch.nn.functional.avg_pool2d(tool.chords(fine, poses.double()), 3)
    assert float((voxels - exact).abs().mean()) < 0.05 * float(exact[exact > 0].mean())
    assert float((voxels - exact).abs().max()) < 0.3 * float(exact.max())


def test_area_density_is_the_chord_times_the_metal_s_density() -> None:
    camera = CArm(1000.0, (3, 3), 1.0, beam="parallel")
    pose = pose_of((1.0, 0.0, 0.0), (-40.0, 0.0, 500.0))
    placed = PlacedTool(rod(10.0, 80.0, "titanium"), pose[0])
    found = placed.area_density(camera, torch.eye(4, dtype=torch.float64)[None])
    assert float(found[0, 0, 1, 1]) == pytest.approx(1.0 * 4.506, rel=1e-9)


def test_every_view_may_have_its_own_tool() -> None:
    camera = CArm(1000.0, (5, 5), 4.0)
    poses = torch.cat(
        [pose_of((1.0, 0, 0), (-40.0, 0.0, 500.0)), pose_of((0, 1.0, 0), (0.0, -40.0, 600.0))]
    )
    identity = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    both = PlacedTool(rod(), poses).area_density(camera, identity)
    for k in range(2):
        alone = PlacedTool(rod(), poses[k]).area_density(camera, identity[:1])
        torch.testing.assert_close(both[k : k + 1], alone)


def test_random_poses_point_everywhere_near_the_place() -> None:
    center = torch.tensor([10.0, -20.0, 30.0])
    generator = torch.Generator().manual_seed(0)
    poses = random_tool_pose(center, generator, 4000, spread_mm=15.0, depth_mm=0.0)
    rotation = poses[:, :3, :3]
    identity = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, identity, rtol=0, atol=1e-12)
    assert (torch.linalg.det(rotation) > 0).all()
    axis = rotation[:, :, 2]
    assert float(axis.mean(0).norm()) < 0.05
    torch.testing.assert_close(axis.T @ axis / 4000, identity[0] / 3, rtol=0, atol=0.02)
    tips = poses[:, :3, 3]
    torch.testing.assert_close(tips.mean(0), center.double(), rtol=0, atol=1.0)
    torch.testing.assert_close(tips.std(0), torch.full((3,), 15.0).double(), rtol=0.05, atol=0)
    generator.manual_seed(0)
    again = random_tool_pose(center, generator, 4000, spread_mm=15.0, depth_mm=0.0)
    assert torch.equal(poses, again)


@pytest.mark.parametrize(
    ("profile", "material", "match"),
    [
        (((0.0, 1.0),), "steel", "profile"),
        (((0.0, 1.0), (0.0, 2.0)), "steel", "profile"),
        (((1.0, 1.0), (0.0, 1.0)), "steel", "profile"),
        (((0.0, -1.0), (1.0, 1.0)), "steel", "profile"),
        (((0.0, 1.0), (1.0, 1.0)), "wood", "material"),
    ],
)
def test_bad_tools_are_named(profile: tuple, material: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Tool(profile, material)
