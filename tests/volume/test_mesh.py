"""Closed surfaces as volumes: volumes known in closed form, hard cases for columns, bad files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import drrkit
from drrkit.volume import mesh_volume, read_mesh

pytestmark = pytest.mark.io
trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")


def filled(volume: drrkit.Volume) -> float:
    """The sum of a volume's values times the voxels' size, mm^2."""
    return float(volume.values.double().sum()) * math.prod(volume.spacing)


def test_a_box_on_the_grid_s_planes_is_exact() -> None:
    """Every edge and corner lies on columns or between voxels: none is missed or counted twice."""
    box = trimesh.creation.box((10, 20, 30))
    for spacing in (1.0, 2.5, 10 / 3):
        volume = mesh_volume(box.vertices, box.faces, 0.5, spacing=spacing)
        assert filled(volume) == pytest.approx(0.5 * 6000, rel=1e-6)
        assert float(volume.values.max()) == 0.5
        for face in (0, -1):
            assert volume.values[face].abs().max() == 0


@pytest.mark.parametrize("turned", [False, True])
def test_a_sphere_has_its_volume_and_its_chords(turned: bool) -> None:
    ball = trimesh.creation.icosphere(5, radius=20.0)
    faces = ball.faces[:, ::-1] if turned else ball.faces
    volume = mesh_volume(ball.vertices + (3.0, -2.0, 5.0), faces, 0.1)
    assert filled(volume) == pytest.approx(0.1 * ball.volume, rel=1e-4)
    camera = drrkit.CArm(1020.0, (65, 65), 0.9)
    pose = drrkit.view_ap(volume, 800.0)
    image = drrkit.render(volume, camera, pose, supersample=3)
    assert float(image.max()) == pytest.approx(0.1 * 40.0, rel=0.01)
    center = volume.index_to_world((torch.tensor(volume.shape_xyz) - 1.0)[None] / 2)[0]
    assert torch.allclose(center, torch.tensor((3.0, -2.0, 5.0), dtype=center.dtype), atol=0.05)


def test_edges_are_smooth() -> None:
    """Moving a surface by a part of a voxel moves the voxels' sum of moments by as much."""
    ball = trimesh.creation.icosphere(4, radius=10.0)
    for axis in range(3):
        shift = np.zeros(3)
        shift[axis] = 0.3
        one = mesh_volume(ball.vertices, ball.faces, 1.0, spacing=1.0)
        other = mesh_volume(ball.vertices + shift, ball.faces, 1.0, spacing=1.0)
        centers = [
            float(
                (
                    v.values.double().sum([k for k in range(3) if k != 2 - axis])
                    * torch.arange(v.shape_xyz[axis])
                ).sum()
                / v.values.double().sum()
            )
            * v.spacing[axis]
            + v.origin[axis]
            for v in (one, other)
        ]
        assert centers[1] - centers[0] == pytest.approx(0.3, abs=0.01)


def test_a_hole_and_an_island_count_by_their_winding() -> None:
    shell = trimesh.creation.box((20, 20, 20))
    hole = trimesh.creation.box((10, 10, 10))
    vertices = np.concatenate([shell.vertices, hole.vertices])
    faces = np.concatenate([shell.faces, hole.faces[:, ::-1] + len(shell.vertices)])
    assert filled(mesh_volume(vertices, faces, 1.0, spacing=1.0)) == pytest.approx(7000, rel=1e-6)


@pytest.mark.parametrize("suffix", ["stl", "ply", "obj"])
def test_files_are_read_with_their_units_and_space(tmp_path: Path, suffix: str) -> None:
    box = trimesh.creation.box((10, 20, 30))
    box.apply_translation((1.0, 2.0, 3.0))
    path = tmp_path / f"box.{suffix}"
    box.export(path)
    for options, scale, sign in (
        ({"spacing": 1.0}, 1.0, 1.0),
        ({"units": "cm", "spacing": 5.0}, 10.0, 1.0),
        ({"space": "RAS", "spacing": 1.0}, 1.0, -1.0),
    ):
        volume = read_mesh(path, 1.0, **options)
        assert filled(volume) == pytest.approx(6000 * scale**3, rel=1e-4)
        center = volume.index_to_world((torch.tensor(volume.shape_xyz) - 1.0)[None] / 2)[0]
        expected = torch.tensor((sign * 1.0, sign * 2.0, 3.0), dtype=center.dtype) * scale
        assert torch.allclose(center, expected, atol=1e-4)


def test_a_comment_names_the_space(tmp_path: Path) -> None:
    box = trimesh.creation.box((10, 20, 30))
    box.apply_translation((1.0, 2.0, 3.0))
    path = tmp_path / "box.stl"
    text = trimesh.exchange.stl.export_stl_ascii(box)
    path.write_text(text.replace("solid", "solid 3D Slicer output. SPACE=RAS", 1))
    assert read_mesh(path, 1.0).origin[0] < read_mesh(path, 1.0, space="LPS").origin[0]


def test_bad_surfaces_are_named(tmp_path: Path) -> None:
    box = trimesh.creation.box((10, 20, 30))
    cases = {
        "closed surface, got 3 of": (box.vertices, box.faces[1:], {}),
        "positive attenuation": (box.vertices, box.faces, {"mu": -1.0}),
        "at most 256": (box.vertices, box.faces, {"spacing": 0.1}),
        "spacing": (box.vertices, box.faces, {"spacing": 0.0}),
    }
    for message, (vertices, faces, options) in cases.items():
        with pytest.raises(ValueError, match=message):
            mesh_volume(vertices, faces, **{"mu": 1.0, **options})
    path = tmp_path / "box.stl"
    trimesh.creation.box((0.01, 0.02, 0.03)).export(path)
    with pytest.raises(ValueError, match=r"box\.stl: is 0\.01 x 0\.02 x 0\.03 if its unit is mm"):
        read_mesh(path, 1.0)
    path.write_text("no surface")
    with pytest.raises(ValueError, match="box"):
        read_mesh(path, 1.0)
    with pytest.raises(ValueError, match="units"):
        box.export(path)
        read_mesh(path, 1.0, units="feet")
    with pytest.raises(FileNotFoundError):
        read_mesh(tmp_path / "none.stl", 1.0)
