"""Named views and C-arm angles, against positions of source and detector in the patient."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from drrkit.geometry import (
    CArm,
    project_points,
    view_ap,
    view_carm,
    view_left_lateral,
    view_pa,
    view_right_lateral,
    volume_center,
)
from tests.support.geometries import (
    F64,
    LEFT,
    POSTERIOR,
    SDD,
    SOD,
    SUPERIOR,
    VOLUMES,
    detector_of,
    left_handed,
    make_volume,
    oblique,
    source_of,
    tensor,
    to_world,
)


@pytest.mark.parametrize(
    "view, towards, right",
    [
        (view_ap, POSTERIOR, LEFT),
        (view_pa, -POSTERIOR, -LEFT),
        (view_left_lateral, LEFT, -POSTERIOR),
        (view_right_lateral, -LEFT, POSTERIOR),
    ],
)
@pytest.mark.parametrize("grid", VOLUMES)
def test_named_views_look_where_their_names_say(view, towards, right, grid):
    volume = VOLUMES[grid]()
    pose, center = view(volume, SOD), volume_center(volume)
    assert pose.shape == (1, 4, 4) and pose.dtype == F64
    assert torch.equal(pose[0, 3], tensor(0, 0, 0, 1))
    assert torch.equal(pose[0, :3, :3], torch.stack((right, -SUPERIOR, towards)))
    assert torch.linalg.det(pose[0, :3, :3]) == 1.0
    assert torch.allclose(source_of(pose[0]), center - SOD * towards, atol=1e-10)
    assert torch.allclose(detector_of(pose[0], SDD), center + (SDD - SOD) * towards, atol=1e-10)
    camera = CArm(SDD, (101, 101), 1.0)
    points = center + torch.stack((torch.zeros(3, dtype=F64), 10 * right, 10 * SUPERIOR))
    pixels = project_points(camera, pose, points)[0]
    shift = 10 * SDD / SOD
    expected = tensor([50.0, 50.0], [50.0, 50.0 + shift], [50.0 - shift, 50.0])
    assert torch.allclose(pixels, expected, atol=1e-9)


def test_the_center_of_a_volume_is_the_mean_of_its_corner_voxels():
    volume = make_volume(left_handed())
    corners = torch.cartesian_prod(tensor(0, 39), tensor(0, 29), tensor(0, 19))
    assert torch.allclose(volume_center(volume), to_world(volume, corners).mean(0), atol=1e-12)


@pytest.mark.parametrize(
    "base, primary, secondary, detector",
    [
        ("PA", 30, 0, (0.5, -math.sqrt(3) / 2, 0)),  # LAO 30: left anterior
        ("PA", -30, 0, (-0.5, -math.sqrt(3) / 2, 0)),  # RAO 30: right anterior
        ("PA", 0, 30, (0, -math.sqrt(3) / 2, 0.5)),  # CRA 30: towards the head
        ("PA", 0, -30, (0, -math.sqrt(3) / 2, -0.5)),  # CAU 30: towards the feet
        ("PA", 30, 60, (0.25, -math.sqrt(3) / 4, math.sqrt(3) / 2)),  # primary first
        ("AP", 30, 0, (-0.5, math.sqrt(3) / 2, 0)),  # the source is the end that goes left
        ("AP", 0, 30, (0, math.sqrt(3) / 2, 0.5)),  # the detector goes to the head here, too
        ("AP", 30, 60, (-0.25, math.sqrt(3) / 4, math.sqrt(3) / 2)),
    ],
)
def test_carm_angles_move_detector_and_source_as_dicom_says(base, primary, secondary, detector):
    volume = make_volume(oblique())
    angles = math.radians(primary), math.radians(secondary)
    pose, center = view_carm(volume, SOD, *angles, base=base)[0], volume_center(volume)
    direction = tensor(*detector)
    assert torch.allclose(detector_of(pose, SDD), center + (SDD - SOD) * direction, atol=1e-9)
    assert torch.allclose(source_of(pose), center - SOD * direction, atol=1e-9)
    assert abs(float(torch.linalg.det(pose[:3, :3])) - 1) < 1e-14
    # Columns stay in the transverse plane: no roll about the central ray.
    assert abs(float(pose[0, 2])) < 1e-15


@pytest.mark.parametrize(
    "base, primary, view",
    [
        ("AP", 0, view_ap),
        ("PA", 0, view_pa),
        ("PA", 90, view_left_lateral),
        ("PA", -90, view_right_lateral),
        ("AP", 90, view_right_lateral),
    ],
)
def test_carm_views_at_right_angles_are_the_named_views(base, primary, view):
    volume = make_volume()
    found = view_carm(volume, SOD, math.radians(primary), base=base)
    assert torch.allclose(found, view(volume, SOD), rtol=0, atol=1e-12)


def test_the_ap_base_is_the_pa_base_half_a_turn_on():
    volume = make_volume()
    ap = view_carm(volume, SOD, 0.4, -0.3, base="AP")
    pa = view_carm(volume, SOD, 0.4 + math.pi, -0.3, base="PA")
    assert torch.allclose(ap, pa, rtol=0, atol=1e-11)


def test_a_tensor_of_angles_gives_a_batch_of_differentiable_views():
    volume = make_volume()
    primary = tensor(0.1, 0.2, 0.3).requires_grad_()
    secondary = tensor(-0.2)[0].requires_grad_()
    poses = view_carm(volume, SOD, primary, secondary)
    assert poses.shape == (3, 4, 4)
    assert torch.allclose(poses[1:2], view_carm(volume, SOD, 0.2, -0.2), atol=1e-12)
    assert gradcheck(lambda p, s: view_carm(volume, SOD, p, s), (primary, secondary))
