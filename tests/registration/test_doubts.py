"""What speaks against a pose whose image agrees: handedness, room, and rays that a CT cut off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from drrkit import CArm, Volume, perturb, register, render, simulate_xray, view_ap
from drrkit.geometry import volume_center
from drrkit.registration.doubts import left_range, mirrored, out_of_room
from drrkit.registration.lengths import object_faces
from drrkit.registration.problem.truncation import CutFaces
from drrkit.registration.problem.views import View
from tests.support.registered_torso import attenuation, box_mtre, phantom

CAMERA = CArm(1020.0, (128, 128), 2.176)


def at(xi=(0.1, -0.2, 0.15, 12.0, -7.0, 20.0), depth: float = 800.0) -> Tensor:
    """An oblique pose [1, 4, 4] of the torso."""
    change = torch.tensor([xi], dtype=torch.float64)
    return perturb(view_ap(attenuation(), depth), change, volume_center(attenuation()))


def box(values: Tensor, spacing=(3.0, 2.0, 4.0)) -> Volume:
    return Volume(values, spacing, (-30.0, 12.0, 5.0), unit="mu")


# ---- handedness


def test_a_symmetric_volume_shows_the_mirrored_image_at_the_mirrored_pose():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(24, 20, 30, dtype=torch.float64, generator=generator) * 0.02
    volume = box(values + values.flip(2))
    camera = CArm(900.0, (40, 50), 3.0, (21.5, 18.0))
    center = volume_center(volume)
    change = torch.tensor([[0.2, -0.4, 0.3, 8.0, -5.0, 0.0]], dtype=torch.float64)
    pose = perturb(view_ap(volume, 700.0), change, center)
    rig = torch.eye(4, dtype=torch.float64)
    rig[0, 3] = 15.0
    views = [
        View(camera, render(volume, camera, pose), None, None),
        View(camera, render(volume, camera, rig @ pose), None, rig),
    ]
    for flipped, view in zip(*(both := mirrored(views, pose, center))[:1], views, strict=True):
        again = render(volume, flipped.camera, flipped.pose(both[1]))
        assert torch.equal(flipped.xray, view.xray.flip(-1))
        assert torch.allclose(again, flipped.xray, atol=1e-9)


def nearly_symmetric() -> Volume:
    """The torso with a fifth of its asymmetry."""
    values = attenuation().values
    return replace(attenuation(), values=0.6 * values + 0.4 * values.flip(-1))


def test_a_mirrored_xray_of_a_nearly_symmetric_patient_is_not_accepted():
    volume = nearly_symmetric()
    xray = render(volume, CAMERA, at())
    right = register(volume, CAMERA, xray, at((0.1, -0.2, 0.15, 18.0, 0.0, 20.0)))
    assert right.accepted and float(error(right.world_to_camera)) < 2.0
    # Where its image stands, as a user who does not know would place the start.
    _, start = mirrored([], at(), volume_center(volume))
    wrong = register(volume, CAMERA, xray.flip(-1), start)
    assert wrong.reasons == ("handedness",) and not wrong.accepted
    assert wrong.runner_up is not None and wrong.runner_up.mirrored
    assert float(error(wrong.runner_up.world_to_camera)) < 2.0


def error(pose: Tensor) -> Tensor:
    return box_mtre(pose, at(), volume_center(attenuation()))


def in_plane(pose: Tensor) -> float:
    """Mean distance across the beam, mm, of the corners of the box of `error`."""
    corner = torch.cartesian_prod(*[torch.tensor([-80.0, 80.0], dtype=torch.float64)] * 3)
    points = torch.cat((corner + volume_center(attenuation()), torch.ones(8, 1).double()), 1)
    return float((points @ (pose - at()[0])[:2].mT).norm(dim=1).mean())


# ---- room


def test_a_volume_that_would_reach_through_the_detector_is_not_accepted():
    """Pixels of 2.8 mm that are declared 2.176: the same image from a fifth farther away."""
    xray = simulate_xray(phantom(), CArm(1020.0, (128, 128), 2.8), at())
    found = register(attenuation(), CAMERA, xray, at())
    assert found.agreement > 0.85  # the image does not show it
    assert "out_of_room" in found.reasons and not found.accepted


@pytest.mark.parametrize(
    "depth, room", [(5.0, False), (15.0, True), (900.0, True), (955.0, True), (965.0, False)]
)
def test_room_is_a_quarter_of_the_shortest_side_about_the_middle(depth, room):
    """A block of 60 x 40 x 160 mm whose shortest side is 40 mm: the detector's distance is 950."""
    values = torch.zeros(60, 40, 40)
    values[10:50, 10:30, 10:30] = 0.02
    volume = Volume(values, (3.0, 2.0, 4.0), (-30.0, 12.0, 5.0), unit="mu")
    camera = replace(CArm(950.0, (32, 32), 8.0), sigma=None)
    middle = volume.index_to_world(torch.tensor([[19.5, 19.5, 29.5]], dtype=torch.float64))[0]
    pose = torch.eye(4, dtype=torch.float64)[None].clone()
    pose[0, :3, 3] = torch.tensor([0.0, 0.0, depth], dtype=torch.float64) - middle
    view = View(camera, torch.zeros(1, 1, 32, 32), None, None)
    assert out_of_room(object_faces(volume), [view], pose) is not room


def test_an_end_counts_as_far_from_all_of_its_starts_only():
    center = volume_center(attenuation())
    far, near = at((0.0, 1.0, 0.0, 0.0, 0.0, 0.0)), at((0.0, 0.0, 0.0, 0.0, 90.0, 0.0))
    end = at((0.0,) * 6)
    assert left_range(far, end, center, 300.0)
    assert not left_range(torch.cat((far, near)), end, center, 300.0)
    assert left_range(near, end, center, 170.0)


# ---- cut faces


def passes(volume: Volume, camera: CArm, pose: Tensor, face: tuple[int, float]) -> Tensor:
    """Whether rays pass a side of the grid, by points that are walked along them."""
    frame = camera.pixel_rays()
    source, first, u, v = frame.unbind(0)
    rows, cols = camera.size
    ends = first + torch.arange(rows).double()[:, None, None] * v
    ends = ends + torch.arange(cols).double()[:, None] * u
    share = torch.linspace(0.0, 1.0, 20001, dtype=torch.float64)
    to_world = torch.linalg.inv(pose[0])
    hits = torch.zeros(rows, cols, dtype=torch.bool)
    axis, place = face
    size = volume.shape_xyz
    for row in range(rows):
        for col in range(cols):
            point = source + share[:, None] * (ends[row, col] - source)
            index = volume.world_to_index(point @ to_world[:3, :3].mT + to_world[:3, 3])
            side = index[:, axis] - place
            crossed = (side[1:] * side[:-1] <= 0).nonzero().flatten()
            for k in crossed.tolist():
                at = index[k]
                others = [a for a in range(3) if a != axis]
                hits[row, col] |= all(-0.5 < float(at[a]) < size[a] - 0.5 for a in others)
    return hits


def test_rays_that_pass_the_cut_faces_of_a_block_are_left_out():
    """A block that fills its grid is cut at all six faces; every ray that meets it passes two."""
    volume = box(torch.full((10, 14, 12), 0.02))
    camera = CArm(400.0, (12, 14), 12.0)
    center = volume_center(volume)
    change = torch.tensor([[0.3, -0.5, 0.2, 3.0, -2.0, 0.0]], dtype=torch.float64)
    pose = perturb(view_ap(volume, 300.0), change, center)
    faces = [(axis, end) for axis, n in enumerate(volume.shape_xyz) for end in (-0.5, n - 0.5)]
    hit = sum(passes(volume, camera, pose, face).int() for face in faces)
    assert set(hit.unique().tolist()) == {0, 2}
    left = CutFaces(volume).rays(camera, pose)[0, 0]
    grown = torch.nn.functional.max_pool2d((hit > 0).float()[None], 3, stride=1, padding=1)[0]
    assert float((left - (1.0 - grown)).abs().mean()) < 0.03  # but for the grid's own edges


def ball(cut: tuple[int, int] | None = None) -> Volume:
    """A ball of radius 24 mm in a grid of 32^3 voxels of 2 mm, without a half of it."""
    grid = torch.arange(32) * 2.0 - 31.0
    z, y, x = torch.meshgrid(grid, grid, grid, indexing="ij")
    values = ((x**2 + y**2 + z**2) < 24.0**2).float() * 0.02
    if cut is not None:
        axis, side = cut
        values = values.narrow(2 - axis, 16 if side < 0 else 0, 16)
    return Volume(values.contiguous(), (2.0,) * 3, (0.0, 0.0, 0.0), unit="mu")


def test_a_body_inside_its_grid_is_not_cut():
    assert CutFaces(ball()).rays(CAMERA, view_ap(ball(), 800.0)) is None


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_ball_is_cut_where_its_half_was_taken_away(axis, side):
    volume = ball((axis, side))
    (face,) = CutFaces(volume).faces
    assert face.axis == axis and face.place == (-0.5 if side < 0 else 15.5)
    assert float(face.tissue.mean()) == pytest.approx(torch.pi * 24**2 / 64**2, rel=0.05)


@pytest.mark.parametrize("axis, share", [(0, 1 / 8), (1, 1 / 5), (2, 1 / 8)])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_ct_that_ends_inside_the_field_is_registered(axis, share, side):
    """The X-ray shows the whole torso, the volume lacks a share of it at one of its six faces."""
    xray = simulate_xray(phantom(), CAMERA, at())
    size = attenuation().shape_xyz
    start, stop = [0, 0, 0], list(size)
    lost = round(size[axis] * share)
    start[axis], stop[axis] = (lost, size[axis]) if side < 0 else (0, size[axis] - lost)
    part = attenuation().crop(start, stop)
    place = -0.5 if side < 0 else size[axis] - lost - 0.5
    assert (axis, place) in [(face.axis, face.place) for face in CutFaces(part).faces]
    begun = at((0.15, -0.25, 0.1, 20.0, 0.0, 10.0))
    found = register(part, CAMERA, xray, begun)
    assert float(error(begun)) > 10.0
    assert found.accepted and in_plane(found.world_to_camera) < 1.0
