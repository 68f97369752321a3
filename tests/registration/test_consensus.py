"""Searches in several views: which matches agree, and what they make of each other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import CArm, perturb, register, simulate_xray
from drrkit.geometry import so3_exp, volume_center
from drrkit.registration import GLOBAL, Levenberg, Search, Stage, rig_of
from drrkit.registration.search.consensus import Matches, _apart, agreeing
from tests.support.registered_torso import attenuation, box_mtre, phantom

CENTER = torch.tensor([5.0, -3.0, 2.0], dtype=torch.float64)


def matches(turns: Tensor, places: Tensor, score: Tensor, source: Tensor) -> Matches:
    pose = torch.eye(4, dtype=torch.float64).repeat(len(places), 1, 1)
    pose[:, :3, :3] = so3_exp(turns.double())
    pose[:, :3, 3] = places - pose[:, :3, :3] @ CENTER
    return Matches(pose, score.double(), CENTER, source.double(), 0.2, 0.02, 0.1)


def drawn(count: int, seed: int, source: Tensor) -> Matches:
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randn(count, 3, generator=generator)
    places = torch.tensor([0.0, 0.0, 800.0]) + 60 * torch.randn(count, 3, generator=generator)
    return matches(turns, places.double(), torch.rand(count, generator=generator), source)


def test_the_distance_between_places_is_that_of_their_covariances():
    one, other = both_views = (
        drawn(7, 0, torch.zeros(3)),
        drawn(5, 1, torch.tensor([-800.0, 0, 800.0])),
    )
    covariance = [torch.linalg.inv(part.information) for part in both_views]
    wanted = torch.zeros(7, 5, dtype=torch.float64)
    for i in range(7):
        for j in range(5):
            apart = one.place[i] - other.place[j]
            both = covariance[0][i] + covariance[1][j]
            wanted[i, j] = apart @ torch.linalg.solve(both, apart)
    torch.testing.assert_close(_apart(one, other), wanted)
    deviation = covariance[0][0].diagonal().sqrt()  # its ray is about along z
    assert float(deviation[2]) == pytest.approx(0.1 * float(one.distance[0]), rel=0.05)


def test_two_views_that_agree_tell_the_depth_that_neither_knows():
    truth, turn = torch.tensor([[10.0, -20.0, 800.0]]).double(), torch.tensor([[0.1, 0.2, -0.1]])
    side = torch.tensor([-800.0, 0.0, 800.0])
    near, far = (truth + torch.tensor([[0.0, 0.0, z]]) * truth / 800 for z in (60.0, -60.0))
    ray = truth - side
    beside = side + ray * 0.93
    stray = torch.tensor([[200.0, 0.0, 800.0]]).double()
    first = matches(turn.repeat(3, 1), torch.cat((near, far, stray)), torch.ones(3) * 0.5, side * 0)
    second = matches(turn + 0.05, beside, torch.tensor([0.6]), side)
    pose, loss = agreeing([first, second])
    place = pose[:, :3, :3] @ CENTER + pose[:, :3, 3]
    found = (place - truth).norm(dim=-1)
    assert found[[0, 1, 3]].max() < 12.0 < 50.0 < (second.place - truth).norm()
    assert (loss[[0, 1, 3]] < 0.6).all() and loss[2] == pytest.approx(0.75, abs=1e-3)
    rotation = pose[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand(4, 3, 3))
    assert (torch.linalg.det(rotation) > 0).all()


def test_matches_that_turn_the_volume_otherwise_do_not_agree():
    place = torch.tensor([[0.0, 0.0, 800.0]]).double()
    one = matches(torch.zeros(1, 3), place, torch.tensor([0.5]), torch.zeros(3))
    for angle, wanted in ((0.0, 0.5), (0.2, 0.25 + 0.25 * math.exp(-0.25)), (1.5, 0.25)):
        turned = torch.tensor([[0.0, angle, 0.0]])
        other = matches(turned, place, torch.tensor([0.5]), torch.tensor([-800.0, 0.0, 800.0]))
        loss = agreeing([one, other])[1]
        assert float(1.0 - loss[0]) == pytest.approx(wanted, abs=1e-3)


# ---- in a registration

CAMERA = CArm(1020.0, (64, 64), 4.352)


def truth() -> Tensor:
    return drrkit.view_carm(phantom(), 780.0, primary=0.2, secondary=-0.15)


def rig() -> Tensor:
    views = [drrkit.view_carm(phantom(), 780.0, primary=p)[0] for p in (0.0, math.pi / 2)]
    return rig_of(torch.stack(views))


def error(found: Tensor) -> float:
    return float(box_mtre(found[None], truth(), volume_center(phantom())))


def start() -> Tensor:
    xi = torch.tensor([0.5, -0.4, 0.5, 120.0, -80.0, 150.0])
    return perturb(truth(), xi, volume_center(phantom()))


def seen() -> list[Tensor]:
    return [simulate_xray(phantom(), CAMERA, turn @ truth(), seed=1) for turn in rig()]


def test_a_search_finds_in_the_second_view_what_the_first_does_not_show():
    window = torch.zeros(64, 64)
    window[10:30, 10:30] = 1.0
    once = (Search(repeats=0, keep=10), *GLOBAL[1:])
    found = register(
        attenuation(),
        [CAMERA] * 2,
        seen(),
        start(),
        stages=once,
        mask=[window, None],
        rig_to_camera=rig(),
    )
    assert error(found.world_to_camera) < 1.0


@pytest.mark.parametrize("inverted", [False, True])
def test_candidates_of_two_views_are_nearer_than_those_of_one(inverted):
    xrays = [-xray if inverted else xray for xray in seen()]
    search = Search(inverted=None, step=0.35, keep=1, repeats=0)
    few = (
        search,
        replace(GLOBAL[1], iterations=1, optimiser=Levenberg(1e-6, final_step=1e-9)),
    )
    views = {"rig_to_camera": rig(), "stages": few}
    both = register(attenuation(), [CAMERA] * 2, xrays, start(), **views)
    one = register(attenuation(), CAMERA, xrays[0], start(), stages=few)
    assert error(both.world_to_camera) < error(one.world_to_camera)
    assert error(both.world_to_camera) < 40.0


def test_a_watcher_of_several_searches_is_told_poses_of_the_first_camera():
    told = []

    def watch(pose: Tensor, loss: float) -> None:
        told.append(pose)

    coarse = Search(step=0.5, pixels=16, keep=2, repeats=0)
    stages = (coarse, Stage("ncc", optimiser=Levenberg(), iterations=1))
    register(
        attenuation(),
        [CAMERA] * 2,
        seen(),
        truth(),
        stages=stages,
        rig_to_camera=rig(),
        progress=watch,
    )
    axis = torch.stack([pose[2, :3] for pose in told])
    # Both cameras look at the volume from within 0.6 of a right angle of the first one's truth.
    assert float((axis @ truth()[0, 2, :3]).min()) > 0.0


def test_a_view_that_cannot_be_searched_is_left_out_but_not_all_of_them():
    parallel = drrkit.Camera(CAMERA.K, CAMERA.size, CAMERA.sdd, beam="parallel")
    xrays = seen()
    xrays[1] = drrkit.render(attenuation(), parallel, rig()[1] @ truth())
    coarse = (Search(step=0.4, keep=4, repeats=0), *GLOBAL[1:])
    found = register(
        attenuation(), [CAMERA, parallel], xrays, truth(), stages=coarse, rig_to_camera=rig()
    )
    assert found.history[0].stop_reason == "converged"
    with pytest.raises(ValueError, match="camera: a search needs a cone beam"):
        register(attenuation(), [parallel] * 2, xrays, truth(), stages=coarse, rig_to_camera=rig())
