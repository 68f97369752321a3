"""Sequences: frames that follow each other, tracks that are lost and found, interruption."""

from __future__ import annotations

import math
import sys
import warnings
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import CArm, Stage, losses, perturb, simulate_xray
from drrkit.geometry import volume_center
from drrkit.registration import (
    Bodies,
    Levenberg,
    PosePrior,
    register_sequence,
    rig_of,
    smooth_poses,
)
from tests.registration.test_formation import implant
from tests.registration.test_part import scene, truth
from tests.support.registered_torso import attenuation, box_mtre, phantom

CAMERA = CArm(1020.0, (64, 64), 4.352)
FOLLOWING = Stage("gradient_ncc", optimiser=Levenberg(8.0, final_step=0.02), iterations=10, mm=True)


def frontal() -> Tensor:
    return drrkit.view_ap(phantom(), 780.0).reshape(4, 4)


def breathing(frames: int) -> Tensor:
    """Poses [T, 4, 4]: 12 mm up and down along the patient and a turn of 3 degrees a frame."""
    time = torch.arange(frames, dtype=torch.float64)
    xi = torch.zeros(frames, 6, dtype=torch.float64)
    xi[:, 1] = math.radians(3.0) * time
    xi[:, 4] = 12.0 * torch.sin(2 * math.pi * time / 8)
    xi[:, 5] = 4.0 * torch.sin(2 * math.pi * time / 8)
    return perturb(frontal(), xi, volume_center(phantom()))


@lru_cache
def movie(frames: int = 8) -> Tensor:
    poses = enumerate(breathing(frames))
    return torch.cat([simulate_xray(phantom(), CAMERA, pose, seed=i) for i, pose in poses])


def errors(found: Tensor, truth: Tensor) -> list[float]:
    return box_mtre(found, truth, volume_center(phantom())).tolist()


def test_every_frame_of_a_breathing_turning_patient_is_followed():
    result = register_sequence(attenuation(), CAMERA, movie(), frontal())
    assert result.world_to_camera.shape == (8, 4, 4) and len(result.frames) == 8
    assert max(errors(result.world_to_camera, breathing(8))) < 1.0
    assert result.attempts == [1] * 8 and not any(result.lost)
    assert result.stop_reason == "finished" and min(result.confidence) > 0.9
    assert 0 < sum(frame.seconds for frame in result.frames) <= result.seconds


def test_constant_velocity_is_extrapolated_from_two_frames():
    stage = Stage("gradient_ncc", optimiser=Levenberg(), iterations=1)
    truth = breathing(3)
    for extrapolate, expected in ((True, [1, 1, 2]), (False, [1, 1, 1])):
        result = register_sequence(
            attenuation(),
            CAMERA,
            movie()[:3],
            truth[0],
            first=stage,
            follow=stage,
            recover=(),
            extrapolate=extrapolate,
            lost_below=0.0,
        )
        starts = [frame.history[0].loss for frame in result.frames]
        assert [loss.shape[1] for loss in starts] == expected
    # Frames 7 to 9 move alike: there constant velocity leads closer than standing still.
    result = register_sequence(
        attenuation(), CAMERA, movie(10)[7:], breathing(10)[7], first=FOLLOWING, follow=FOLLOWING
    )
    still, led = result.frames[-1].history[0].loss[0].tolist()
    assert led < 0.2 * still


def test_a_lost_track_is_noticed_and_searched_again():
    truth = breathing(4)
    jump = torch.tensor([0.0, 0.5, 0.15, 30.0, -25.0, 40.0], dtype=torch.float64)
    truth[2:] = perturb(truth[2:], jump, volume_center(phantom()))
    xrays = torch.cat([simulate_xray(phantom(), CAMERA, pose, seed=9) for pose in truth])
    arguments = (attenuation(), CAMERA, xrays, frontal())
    left = register_sequence(*arguments, recover=())
    assert left.lost[2] and left.attempts[2] == 1 and errors(left.world_to_camera, truth)[2] > 10.0
    found = register_sequence(*arguments, recover=("auto", "global"))
    assert found.attempts[2] > 1 and found.attempts[3] == 1 and not any(found.lost)
    assert max(errors(found.world_to_camera, truth)) < 2.5


def test_a_frame_without_a_patient_stays_lost_and_does_not_guide_the_next():
    xrays = movie()[:4].clone()
    generator = torch.Generator().manual_seed(0)
    xrays[2] = torch.rand(1, 64, 64, generator=generator)
    result = register_sequence(attenuation(), CAMERA, xrays, frontal(), recover=())
    assert result.lost == [False, False, True, False]
    found = errors(result.world_to_camera, breathing(4))
    assert max(found[i] for i in (0, 1, 3)) < 1.0


def test_a_wrong_first_frame_is_lost_and_the_next_is_a_first_one():
    """It agrees better than no patient would, but not well enough to be what others are measured
    by."""
    xrays = movie()[:3].clone()
    far = torch.tensor([0.0, 0.4, 0.0, 40.0, -30.0, 40.0], dtype=torch.float64)
    xrays[0] = simulate_xray(phantom(), CAMERA, perturb(frontal(), far, volume_center(phantom())))
    result = register_sequence(attenuation(), CAMERA, xrays, frontal(), first=FOLLOWING, recover=())
    assert result.lost == [True, False, False] and result.frames[0].agreement > 0.1
    assert max(errors(result.world_to_camera, breathing(3))[1:]) < 1.0


# ---- parts of a scene: one bone or implant among others that stay where they are

SMALL = CArm(1000.0, (110, 120), 2.0)


def moving_part(*motions: tuple[float, ...]) -> Tensor:
    """Poses [T, 4, 4]: from beside its neighbours by xi."""
    xi = torch.tensor([(0.0, 0.0, 0.0, -13.0, 0.0, 0.0), *motions], dtype=torch.float64)
    xi[1:, 3] -= 13.0
    return perturb(truth().expand(len(xi), 4, 4), xi, volume_center(implant()))


def follow_part(poses: Tensor, metal: float = 0.05, gone: int | None = None, **options):
    """The sequence of a part, from a start 4 degrees off; in the frame `gone` it is not there."""
    volume, center = implant(metal).to(torch.float32), volume_center(implant())
    xrays = torch.cat([scene(metal, pose[None], SMALL) for pose in poses]).float()
    if gone is not None:
        xrays[gone] -= drrkit.render(volume, SMALL, poses[gone], supersample=3)[0]
    off = torch.tensor([0.05, -0.05, 0.04, 2.0, -2.0, 5.0], dtype=torch.float64)
    start = perturb(poses[:1], off, center)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one view: no depth
        return register_sequence(volume, SMALL, xrays, start, **options)


def part_errors(found: Tensor, truth: Tensor) -> list[float]:
    """How far the middle and points 20 mm about it are off across the beam, mm."""
    points = volume_center(implant()) + 20.0 * torch.cat((torch.zeros(1, 3), torch.eye(3))).double()
    seen = [pose[:, :2, :3] @ points.mT + pose[:, :2, 3:] for pose in (found, truth)]
    return (seen[0] - seen[1]).norm(dim=1).amax(1).tolist()


@pytest.mark.parametrize(("metal", "first"), [(0.05, "part"), (0.6, "auto")])
def test_parts_are_followed_as_parts(metal: float, first: str):
    """Frames that are alike agree alike: what is beside the part counts in none of them."""
    poses = moving_part((0.0,) * 6, (0.05, 0.1, -0.05, -4.0, 3.0, 4.0))
    result = follow_part(poses, metal, first=first)
    assert result.attempts == [2, 1, 1] and not any(result.lost)
    assert max(part_errors(result.world_to_camera, poses)) < 1.0
    used = {record.similarity for frame in result.frames for record in frame.history}
    assert used == {"gradient_ncc"}
    assert result.frames[1].agreement == pytest.approx(result.frames[0].agreement, rel=0.01)


def test_a_part_that_jumped_is_found_by_its_own_search():
    poses = moving_part((-0.25, 0.3, 0.25, 6.0, -6.0, 0.0), (-0.25, 0.3, 0.25, 6.0, -6.0, 0.0))
    result = follow_part(poses, first="part")
    assert result.attempts[1] == 2 and not any(result.lost)
    assert max(part_errors(result.world_to_camera, poses)) < 1.0
    left = follow_part(poses, first="part", recover=())
    assert left.lost[1] and left.attempts[1] == 1


def test_a_first_frame_without_the_part_is_judged_on_its_own():
    """Two searches of it do not end at one pose, so that no frame is measured by it."""
    poses = moving_part((0.02, 0.1, -0.05, -4.0, 1.0, 5.0))
    result = follow_part(poses, first="part", gone=0)
    assert result.lost == [True, False] and result.attempts == [2, 2]
    assert part_errors(result.world_to_camera, poses)[1] < 0.5


def test_smoothed_poses_keep_constant_velocity_and_fill_gaps():
    center, start = volume_center(phantom()), frontal()
    steps = torch.arange(9, dtype=torch.float64)[:, None]
    steady = perturb(start, steps * torch.tensor([0.02, 0.05, -0.03, 2.0, 4.0, 1.0]), center)
    torch.testing.assert_close(smooth_poses(steady, center, 1.5), steady, atol=0.02, rtol=0.0)
    noise = torch.randn(9, 6, generator=torch.manual_seed(0), dtype=torch.float64)
    shaken = perturb(steady, noise * torch.tensor([0.02] * 3 + [1.0] * 3), center)
    shaken[4] = start
    known = torch.arange(9) != 4
    found = smooth_poses(shaken, center, 3.0, known)
    before, after = (box_mtre(one, steady, center) for one in (shaken, found))
    assert float(after[known].mean()) < 0.7 * float(before[known].mean()) and after[4] < 2.0
    with pytest.raises(ValueError, match="frames: expected a positive number"):
        smooth_poses(steady, center, 0.0)


def test_two_cameras_and_a_prior_about_the_last_frame():
    poses = [drrkit.view_carm(phantom(), 780.0, primary=p)[0] for p in (0.0, math.pi / 2)]
    rig, truth = rig_of(torch.stack(poses)), breathing(3)
    xrays = [
        torch.cat([simulate_xray(phantom(), CAMERA, turn @ pose, seed=5) for pose in truth])
        for turn in rig
    ]
    result = register_sequence(
        attenuation(),
        [CAMERA] * 2,
        [xrays[0], xrays[1][:, 0]],
        frontal(),
        rig_to_camera=rig,
        prior=PosePrior((0.5, 100.0), weight=1e-3),
    )
    assert max(errors(result.world_to_camera, truth)) < 0.5


def test_bodies_are_followed_with_poses_of_their_own():
    bodies = Bodies.from_labels(attenuation(), ([*range(18)], (18, 19)))
    poses = frontal().expand(2, 2, 4, 4).clone()
    motion = torch.tensor([[0.05, 0, 0, 2.0, 0, 0], [0.1, 0, 0, 4.0, 0, 0]], dtype=torch.float64)
    poses[:, 1] = perturb(poses[:, 1], motion, bodies.center[1])
    xrays = bodies.render(CAMERA, poses)
    result = register_sequence(bodies, CAMERA, xrays, frontal(), first=FOLLOWING, follow=FOLLOWING)
    assert result.world_to_camera.shape == (2, 2, 4, 4)
    difference = (result.world_to_camera - poses)[..., :3, :3]
    assert float(difference.abs().max()) < 0.01


def test_an_interruption_returns_the_frames_so_far():
    count = 0

    def interrupted(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
        nonlocal count
        count += 1
        if count > 9:
            raise KeyboardInterrupt
        return losses.gradient_ncc(moving, fixed, mask)

    stage = Stage(interrupted, optimiser=Levenberg(5.0, final_step=1e-6), iterations=4, mm=True)
    result = register_sequence(
        attenuation(), CAMERA, movie(), frontal(), first=stage, follow=stage, recover=()
    )
    assert result.stop_reason == "interrupted"
    assert 1 <= len(result.frames) < 8 and result.world_to_camera.shape[0] == len(result.frames)


def test_progress_is_shown_over_frames(capsys):
    arguments = (attenuation(), CAMERA, movie()[:2], frontal())
    stage = Stage("ncc", downsample=4, iterations=2)
    options = {"first": stage, "follow": stage, "recover": ()}
    register_sequence(*arguments, **options)
    assert capsys.readouterr().err == ""
    register_sequence(*arguments, **options, progress=True)
    assert "frame 2/2" in capsys.readouterr().err
    assert "tqdm" in sys.modules


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"xrays": torch.zeros(64, 64)}, ValueError, r"xrays: expected shape \[T, rows"),
        ({"xrays": [torch.zeros(64, 64)]}, TypeError, r"xrays: expected a tensor .*got list"),
        ({"camera": [CAMERA]}, TypeError, "xrays: expected a list of tensors, one a camera"),
        (
            {"camera": [CAMERA] * 2, "xrays": [torch.zeros(2, 64, 64), torch.zeros(3, 64, 64)]},
            ValueError,
            r"xrays: expected as many frames of every camera, got \[2, 3\]",
        ),
        ({"lost_below": 2.0}, ValueError, r"lost_below: expected a number in \[0, 1\], got 2.0"),
        ({"follow": "best"}, ValueError, "stages: expected 'auto'"),
    ],
)
def test_bad_sequences_raise_errors_that_name_the_argument(changes, error, message):
    good = {"camera": CAMERA, "xrays": torch.zeros(2, 64, 64), "init": frontal()}
    with pytest.raises(error, match=message):
        register_sequence(attenuation(), **{**good, **changes})
