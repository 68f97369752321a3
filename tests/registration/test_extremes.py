"""What registrations do with arguments at the edge of sense, and beyond."""

from __future__ import annotations

import warnings
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import CArm, Stage, Volume, perturb, register, simulate_xray
from drrkit.geometry import Camera, CameraSigma, volume_center
from drrkit.phantoms import TORSO_LABELS, torso
from drrkit.registration import (
    Bodies,
    Levenberg,
    PosePrior,
    refine_intrinsics,
    register_sequence,
)
from drrkit.registration.certainty import UNSEEN_MM

CAMERA = CArm(1020.0, (48, 40), 6.0, sigma=CameraSigma(0.0, 0.0, 0.0))
STAGES = (
    Stage("ncc", optimiser=Levenberg(), iterations=4, starts=4, keep=1),
    Stage("gradient_ncc", optimiser=Levenberg(), iterations=4),
)


@lru_cache
def phantom() -> Volume:
    return torso(8.0)


@lru_cache
def attenuation() -> Volume:
    return phantom().to_mu()


def truth() -> Tensor:
    return drrkit.view_ap(phantom(), 800.0).reshape(4, 4)


def start() -> Tensor:
    xi = torch.tensor([0.05, 0.0, 0.05, 5.0, 0.0, 10.0])
    return perturb(truth(), xi, volume_center(phantom()))[0]


@lru_cache
def seen() -> Tensor:
    return simulate_xray(phantom(), CAMERA, truth(), seed=1)


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_a_constant_xray_tells_nothing_and_the_result_says_so(level):
    blank = torch.full_like(seen(), level)
    with pytest.warns(UserWarning, match="depth is not observable"):
        found = register(attenuation(), CAMERA, blank, start(), stages=STAGES)
    assert found.confidence is None and found.reasons == ("little_evidence",)
    assert not found.accepted and found.depth_observable is False
    assert float(found.sigma[3:].min()) >= UNSEEN_MM


def test_a_start_that_does_not_show_the_volume_is_returned_without_confidence():
    aside = perturb(truth(), torch.tensor([0, 0, 0, 2000.0, 0, 0]), volume_center(phantom()))
    with pytest.warns(UserWarning, match="depth is not observable"):
        found = register(attenuation(), CAMERA, seen(), aside, stages=STAGES)
    assert found.confidence is None and bool(found.world_to_camera.isfinite().all())


def test_a_blank_second_view_leaves_the_first_ones_certainty():
    rig = drrkit.registration.rig_of(torch.stack([truth(), start()]))
    views = {"rig_to_camera": rig, "stages": STAGES[1]}
    one = register(attenuation(), CAMERA, seen(), truth(), stages=STAGES[1])
    both = register(
        attenuation(), [CAMERA] * 2, [seen(), torch.zeros_like(seen())], truth(), **views
    )
    torch.testing.assert_close(both.sigma, one.sigma, rtol=0.2, atol=0.0)


def test_a_body_that_a_prior_holds_leaves_the_others_their_certainty():
    femurs = [TORSO_LABELS[name] for name in ("femur_left", "femur_right")]
    rest = [label for label in TORSO_LABELS.values() if label not in femurs]
    bodies = Bodies.from_labels(attenuation(), [rest, *femurs])
    xray = bodies.render(CAMERA, truth().expand(3, 4, 4))
    sigmas = []
    for tight in (1e-9, 1e-3):
        prior = PosePrior(sigma=(tight,) * 6 + (0.1, 0.1, 0.1, 20.0, 20.0, 20.0) * 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the depth of a femur, of about 10 mm
            found = register(bodies, CAMERA, xray, truth(), stages=STAGES[1], prior=prior)
        held = found.sigma[:6]
        assert float((held / tight - 1.0).abs().max()) < 0.1
        sigmas.append(found.sigma[6:])
    torch.testing.assert_close(*sigmas, rtol=0.05, atol=0.0)
    assert float(sigmas[0].max()) < 20.0


def skewed() -> Tensor:
    rig = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    rig[1, 0, 1] = 0.3
    return rig


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"xray": 1e30 * torch.ones(48, 40)}, ValueError, r"xray: expected values up to 1e\+12"),
        ({"camera": "carm"}, TypeError, "camera: expected a Camera or a list of them, got str"),
        ({"camera": []}, TypeError, "camera: .*got an empty list"),
        ({"camera": [CAMERA, 3]}, TypeError, "camera: .*got int"),
        (
            {"camera": Camera(CAMERA.K.repeat(2, 1, 1), CAMERA.size, 1020.0)},
            ValueError,
            r"camera: expected a single one, got a batch with K \(2, 3, 3\)",
        ),
        (
            {"camera": CArm(1020.0, (2, 40), 6.0), "xray": torch.ones(2, 40)},
            ValueError,
            r"camera: expected at least 3 rows and columns, got \(2, 40\)",
        ),
        ({"seed": 1.5}, TypeError, "seed: expected an integer, got float"),
        ({"prior": "wide"}, TypeError, "prior: expected a PosePrior or None, got str"),
        ({"progress": "yes"}, TypeError, "progress: expected True, False or a function, got str"),
        (
            {"center": torch.tensor([0.0, 0.0, torch.nan])},
            ValueError,
            "center: expected finite numbers",
        ),
        (
            {"camera": [CAMERA] * 2, "xray": [torch.ones(48, 40)] * 2, "rig_to_camera": skewed()},
            ValueError,
            "rig_to_camera: expected rotations, got matrices off by 0.3",
        ),
    ],
)
def test_registrations_name_the_argument_that_makes_no_sense(changes, error, message):
    good = {"camera": CAMERA, "xray": seen(), "init": start(), "stages": STAGES}
    with pytest.raises(error, match=message):
        register(attenuation(), **{**good, **changes})


def test_a_watchers_own_errors_pass_through_and_what_it_returns_does_not_count():
    def fails(pose: Tensor, loss: float) -> None:
        raise RuntimeError("the watcher's")

    with pytest.raises(RuntimeError, match="the watcher's"):
        register(attenuation(), CAMERA, seen(), start(), stages=STAGES, progress=fails)
    told = register(
        attenuation(), CAMERA, seen(), start(), stages=STAGES, progress=lambda pose, loss: False
    )
    assert told.stop_reason != "interrupted" and len(told.history) == len(STAGES)


# ---- intrinsics


def test_intrinsics_that_a_blank_xray_does_not_show_keep_their_priors():
    with pytest.warns(UserWarning, match="focal of camera 0, col of camera 0, row of camera 0"):
        found = refine_intrinsics(attenuation(), CAMERA, torch.zeros_like(seen()), truth())
    torch.testing.assert_close(found.sigma[6:], torch.tensor([0.02, 5.0, 5.0]).double())
    assert not bool(found.observable.any())


def test_one_view_says_that_focal_length_and_depth_are_nearly_one():
    with pytest.warns(UserWarning, match="not observable: focal of camera 0"):
        found = refine_intrinsics(attenuation(), CAMERA, seen(), truth())
    fixed = register(attenuation(), CAMERA, seen(), truth(), stages=STAGES[1])
    assert not bool(found.observable[0, 0]) and float(found.sigma[5]) > 5 * float(fixed.sigma[5])


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"volume": "bodies"}, TypeError, "volume: expected a Volume in mu, got Bodies"),
        ({"sigma_focal": float("inf")}, ValueError, "sigma_focal: expected a positive number"),
        ({"sigma_focal": "wide"}, ValueError, "sigma_focal: expected a positive number"),
        ({"sigma_principal_px": [1, "b"]}, ValueError, "sigma_principal_px: expected a positive"),
        ({"progress": print}, TypeError, "progress: expected True or False"),
    ],
)
def test_refinement_names_the_argument_that_makes_no_sense(changes, error, message):
    if "volume" in changes:
        changes = {"volume": Bodies([attenuation()])}
    good = {"volume": attenuation(), "camera": CAMERA, "xray": seen(), "init": truth()}
    with pytest.raises(error, match=message):
        refine_intrinsics(**{**good, **changes})


# ---- sequences


def test_a_first_frame_that_shows_nothing_is_lost_and_the_others_are_not():
    movie = torch.cat((torch.zeros_like(seen()), seen(), seen()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the depth of the first
        track = register_sequence(
            attenuation(), CAMERA, movie, start(), first=STAGES, recover=[STAGES]
        )
    assert track.lost == [True, False, False] and track.attempts[0] == 2


def test_a_sequence_names_its_broken_frames_before_it_begins():
    movie = seen().repeat(3, 1, 1, 1)
    movie[1, 0, 2, 2] = torch.nan
    with pytest.raises(ValueError, match=r"xrays: expected finite values, .*frames \[1\]"):
        register_sequence(attenuation(), CAMERA, movie, start())
    with pytest.raises(TypeError, match="progress: expected True or False, got builtin_function"):
        register_sequence(attenuation(), CAMERA, seen(), start(), progress=print)
