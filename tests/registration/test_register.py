"""Registration: accuracy on a phantom, masks, scenes, views, bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import CArm, Stage, Volume, losses, perturb, register, render, simulate_xray, view_ap
from drrkit.geometry import Camera, volume_center
from drrkit.metrics import bone_points, mtre
from drrkit.registration import Descent
from drrkit.registration.lengths import motion_units
from drrkit.registration.problem.views import View, downsampling, make_views
from drrkit.registration.trials import trials_of
from tests.support.registered_torso import CAMERA, attenuation, error, off, phantom, target, truth

QUICK = (
    Stage("ncc", optimiser=Descent(4.0, final_step=0.5), downsample=2, iterations=50, mm=True),
    Stage("gradient_ncc", optimiser=Descent(1.0, final_step=0.1), iterations=40, mm=True),
)


class Scene:
    """A volume that renders itself, as tuned volumes and fields do; counts its renderings."""

    def __init__(self) -> None:
        self.calls = 0

    def render(self, camera: Camera, world_to_camera: Tensor) -> Tensor:
        self.calls += 1
        return render(attenuation(), camera, world_to_camera)


# ---- what it is for


@pytest.mark.parametrize("seed", [0, 1])
def test_the_automatic_pipeline_ends_within_2_mm_from_10_degrees_and_20_mm(seed, device):
    start = off(10.0, 20.0, seed)
    volume, xray = attenuation().to(device), target().to(device)
    result = register(volume, CAMERA, xray, start.to(device))
    assert result.world_to_camera.device.type == device.type
    assert error(start).item() > 15.0
    assert error(result.world_to_camera.cpu()).item() < 2.0
    assert result.confidence > 0.9
    assert result.stop_reason in ("converged", "iterations")
    # An X-ray that shows what the volume shows is trusted after the first trial.
    stages = trials_of("auto")[0].stages
    assert [record.similarity for record in result.history] == [stage.name for stage in stages]


def test_the_unit_of_the_xray_changes_nothing():
    """Image files of a floating type have values of any size."""
    start = off(4.0, 8.0, seed=0)
    one, *others = (
        register(attenuation(), CAMERA, gain * target(), start)
        for gain in (1.0, 2.0**-20, 1e-6, 1e6)
    )
    assert one.agreement > 0.9
    for other in others:
        assert other.agreement == pytest.approx(one.agreement, abs=1e-4)
        apart = mtre(other.world_to_camera, one.world_to_camera, bone_points(phantom()))
        assert apart.item() < 0.02


@pytest.mark.parametrize("similarity", ["mse", "ncc", "gradient_ncc", "local_ncc", "mi"])
def test_every_named_similarity_improves_a_pose_that_is_slightly_off(similarity):
    drr = render(attenuation(), CAMERA, truth(), supersample=2)
    start = off(1.5, 3.0, seed=2)
    stage = Stage(similarity, optimiser=Descent(0.5, final_step=0.05), iterations=50, mm=True)
    result = register(attenuation(), CAMERA, drr, start, stages=stage)
    assert error(result.world_to_camera).item() < 0.4 * error(start).item()


def test_mutual_information_registers_an_inverted_and_remapped_xray():
    inverted = torch.exp(-0.4 * target())
    start = off(2.0, 4.0, seed=2)
    stage = Stage("mi", optimiser=Descent(1.0, final_step=0.05), iterations=60, mm=True)
    result = register(attenuation(), CAMERA, inverted, start, stages=stage)
    assert error(result.world_to_camera).item() < 0.5 * error(start).item()
    assert result.agreement == 0.0  # the gradients run the other way
    assert result.confidence_10mm < 0.01 and not result.accepted


def test_a_second_camera_fixes_the_depth_that_one_leaves_open():
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = drrkit.so3_exp(torch.tensor([0.0, math.pi / 2, 0.0], dtype=torch.float64))
    isocentre = torch.tensor([0.0, 0.0, 800.0], dtype=torch.float64)
    turn[:3, 3] = isocentre - turn[:3, :3] @ isocentre
    rig = torch.stack([torch.eye(4, dtype=torch.float64), turn])
    xrays = [target(), simulate_xray(phantom(), CAMERA, turn @ truth())]
    start = off(4.0, 10.0, seed=3)
    stages = Stage("gradient_ncc", optimiser=Descent(2.0, final_step=0.1), iterations=50, mm=True)
    both = register(attenuation(), [CAMERA, CAMERA], xrays, start, stages=stages, rig_to_camera=rig)
    assert error(both.world_to_camera).item() < 0.5
    z = truth()[0, 2] @ torch.cat([volume_center(phantom()), torch.ones(1)]).double()
    found = both.world_to_camera[2] @ torch.cat([volume_center(phantom()), torch.ones(1)]).double()
    assert abs(float(found - z)) < 0.3


def test_a_mask_leaves_out_what_the_volume_does_not_have():
    spoiled, mask = target(), torch.ones(1, 1, 64, 64)
    spoiled[..., 20:45, 22:40] = 12.0  # a metal plate
    mask[..., 19:46, 21:41] = 0.0
    start = off(3.0, 6.0, seed=4)
    with_mask = register(attenuation(), CAMERA, spoiled, start, stages=QUICK, mask=mask)
    without = register(attenuation(), CAMERA, spoiled, start, stages=QUICK)
    assert error(with_mask.world_to_camera).item() < 1.5
    assert with_mask.confidence > 0.9 > without.confidence


def test_the_confidence_tells_a_wrong_end_from_a_right_one():
    other = simulate_xray(phantom(), CAMERA, off(40.0, 0.0, seed=5))
    stage = Stage("gradient_ncc", optimiser=Descent(0.5), iterations=15, mm=True)
    right = register(attenuation(), CAMERA, target(), truth(), stages=stage)
    wrong = register(attenuation(), CAMERA, other, truth(), stages=stage)
    assert right.confidence > 0.95 and wrong.confidence < 0.6


# ---- resolutions, scenes, similarities


def test_a_downsampled_view_shows_the_same_scene_without_a_shift():
    drr = render(attenuation(), CAMERA, truth(), supersample=4)
    view = View(CAMERA, drr, torch.ones(1, 1, 64, 64), None).downsampled(4)
    again = render(attenuation(), view.camera, truth(), supersample=16)
    assert view.xray.shape == view.mask.shape == (1, 1, 16, 16)
    torch.testing.assert_close(view.xray, again, rtol=1e-4, atol=1e-4)


def test_blurring_a_view_lets_nothing_out_of_its_masked_part():
    mask = torch.ones(1, 1, 64, 64)
    mask[..., 20:30, 20:30] = 0.0
    clean, spoiled = target(), target()
    spoiled[..., 20:30, 20:30] = 1e4
    blurred = [View(CAMERA, xray, mask, None).blurred(2.0).xray for xray in (clean, spoiled)]
    torch.testing.assert_close(blurred[0] * mask, blurred[1] * mask)
    plain = View(CAMERA, clean, None, None).blurred(2.0).xray
    torch.testing.assert_close(blurred[0][..., 40:, 40:], plain[..., 40:, 40:])
    assert plain.diff(dim=-1).abs().mean() < 0.8 * clean.diff(dim=-1).abs().mean()


def test_downsampling_a_view_lets_nothing_out_of_its_masked_part():
    mask = torch.ones(1, 1, 64, 64)
    mask[..., 5:22, 21:43] = 0.0  # edges inside of pixels of 4 x 4, and whole ones between them
    clean, spoiled = target(), target()
    spoiled[mask == 0] = 1e4
    small = [View(CAMERA, xray, mask, None).downsampled(4) for xray in (clean, spoiled)]
    torch.testing.assert_close(small[0].xray, small[1].xray)
    inside = small[0].mask == 1
    plain = View(CAMERA, clean, None, None).downsampled(4).xray
    torch.testing.assert_close(small[0].xray[inside], plain[inside])
    assert inside.any() and (small[0].mask == 0).any()


def test_masked_shutters_do_not_keep_a_coarse_to_fine_registration_from_the_truth():
    spoiled, mask = target(), torch.zeros(1, 1, 64, 64)
    mask[..., 7:57, 5:54] = 1.0
    spoiled[mask == 0] = 40.0
    start = off(6.0, 15.0, seed=6)
    found = register(attenuation(), CAMERA, spoiled, start, mask=mask)
    assert error(found.world_to_camera).item() < 1.0
    assert found.confidence > 0.9


def test_a_stage_may_choose_its_resolution_by_the_pixels_width_at_the_patient():
    fine = CArm(1020.0, (512, 512), 0.5)
    for pixel_mm, factor in ((0.1, 1), (0.4, 1), (1.6, 4), (7.8, 20), (100.0, 21)):
        assert downsampling(Stage(pixel=pixel_mm, mm=True), fine, 800.0) == factor
    parallel = Camera(fine.K, fine.size, fine.sdd, "parallel")
    assert downsampling(Stage(pixel=2.0, mm=True), parallel, 800.0) == 4
    assert downsampling(Stage(downsample=3), fine, 800.0) == 3


def test_units_of_motion_move_the_visible_patient_by_about_a_millimetre():
    units = motion_units(CAMERA, 800.0)
    lever = 0.25 * math.hypot(64, 64) * 4.352 * 800 / 1020
    assert units[:3].tolist() == pytest.approx([1 / lever] * 3)
    assert units[3:5].tolist() == [1.0, 1.0]
    assert 1.0 < units[5] < 800 / lever


def test_a_scene_that_renders_itself_is_registered_about_a_given_centre():
    scene = Scene()
    start = off(3.0, 6.0, seed=10)
    centre = volume_center(phantom())
    found = register(scene, CAMERA, target(), start, stages=QUICK, center=centre)
    expected = register(attenuation(), CAMERA, target(), start, stages=QUICK)
    assert scene.calls > 10
    torch.testing.assert_close(found.world_to_camera, expected.world_to_camera)
    with pytest.raises(ValueError, match="center: expected a tensor"):
        register(scene, CAMERA, target(), start)


def test_a_similarity_may_be_a_callable_and_may_prepare_the_scene():
    class Prepared:
        prepared = 0

        def prepare(self, scene: Volume) -> Volume:
            self.prepared += 1
            return replace(scene, values=torch.stack([scene.values, 2.0 * scene.values]))

        def __call__(self, moving: Tensor, fixed: Tensor, mask: Tensor | None = None) -> Tensor:
            assert moving.shape[1] == 2
            return losses.gradient_ncc(moving, fixed, mask)

    similarity = Prepared()
    stage = Stage(similarity, optimiser=Descent(1.0), iterations=30, mm=True)
    start = off(3.0, 6.0, seed=11)
    result = register(attenuation(), CAMERA, target(), start, stages=stage)
    assert similarity.prepared == 1 and result.history[0].similarity == "Prepared"
    assert error(result.world_to_camera).item() < 0.5 * error(start).item()


def test_float64_volumes_are_registered_in_float64():
    volume = attenuation().to(dtype=torch.float64)
    dtypes = set()

    def spy(moving: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
        dtypes.update((moving.dtype, fixed.dtype))
        return losses.ncc(moving, fixed, mask)

    stage = Stage(spy, downsample=4, iterations=2)
    register(volume, CAMERA, target(), truth(), stages=stage)
    assert dtypes == {torch.float64}


def test_image_shapes_and_the_shape_of_one_start_are_free():
    drr = target()
    stage = Stage("ncc", downsample=4, iterations=3)
    results = [
        register(attenuation(), CAMERA, image, init, stages=stage).world_to_camera
        for image, init in ((drr, off(2, 2)), (drr[0], off(2, 2)[0]), (drr[0, 0], off(2, 2)))
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


# ---- bad input


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"volume": "HU"}, ValueError, r"volume: .*got unit 'HU'.*to_mu\(\)"),
        ({"volume": 3}, TypeError, r"volume: expected a Volume or a scene .*got int"),
        ({"xray": None}, TypeError, r"xray: expected a tensor .*got NoneType"),
        ({"xray": torch.zeros(1, 1, 9, 9)}, ValueError, r"xray: .*64, 64.*got \(1, 1, 9, 9\)"),
        ({"xray": torch.zeros(2, 1, 64, 64)}, ValueError, r"xray: .*got \(2, 1, 64, 64\)"),
        ({"xray": torch.zeros(64, 64).int()}, TypeError, r"xray: .*floating.*got torch.int32"),
        ({"xray": torch.full((64, 64), math.nan)}, ValueError, r"xray: .*got 4096 that are not"),
        ({"mask": torch.zeros(64, 64)}, ValueError, r"mask: expected weights >= 0, some"),
        ({"mask": -torch.ones(64, 64)}, ValueError, r"mask: expected weights >= 0, some"),
        ({"init": [1.0]}, TypeError, r"init: expected a tensor .*got list"),
        ({"init": torch.eye(3)}, ValueError, r"init: expected shape .*got \(3, 3\)"),
        ({"init": torch.full((4, 4), math.nan)}, ValueError, r"init: expected finite poses"),
        ({"init": 2.0 * torch.eye(4)}, ValueError, r"init: expected rotations, .*off by 3"),
        ({"init": torch.diag(torch.tensor([1.0, 1, -1, 1]))}, ValueError, r"init: .*determinant"),
        ({"stages": "best"}, ValueError, r"stages: expected 'auto' or 'global'.*got 'best'"),
        ({"stages": []}, ValueError, r"stages: expected at least one Stage, got none"),
        ({"stages": ["ncc"]}, TypeError, r"stages: expected Stage objects, got str"),
        ({"stages": 3}, TypeError, r"stages: expected 'auto' or 'global'.*, got int"),
        ({"stages": Stage(downsample=99)}, ValueError, r"downsample: expected at most 64.*got 99"),
        ({"center": torch.zeros(2)}, ValueError, r"center: expected a tensor \[3\].*got \(2,\)"),
        ({"rig_to_camera": torch.eye(4)}, ValueError, r"rig_to_camera: expected None"),
    ],
)
def test_bad_arguments_raise_errors_that_name_them(changes, error, message):
    good = {"camera": CAMERA, "xray": target(), "init": truth()}
    volume = {"HU": phantom()}.get(changes.get("volume"), changes.get("volume", attenuation()))
    changes = {name: value for name, value in changes.items() if name != "volume"}
    with pytest.raises(error, match=message):
        register(volume, **{**good, **changes})


def test_views_of_several_cameras_must_come_in_equal_numbers_with_a_rig():
    like, image = torch.empty(0), torch.zeros(1, 1, 64, 64)
    rig = torch.eye(4).repeat(2, 1, 1)
    two = [CAMERA, CAMERA]
    assert len(make_views(two, [image, image], None, rig, like)) == 2
    cases = [
        ((two, [image], None, rig), ValueError, r"xray: expected a list of 2.*got 1"),
        ((two, image, None, rig), ValueError, r"xray: expected a list of 2.*got Tensor"),
        ((two, [image] * 2, [None], rig), ValueError, r"mask: expected a list of 2.*got 1"),
        ((two, [image] * 2, None, None), TypeError, r"rig_to_camera: .*got NoneType"),
        ((two, [image] * 2, None, rig[:1]), ValueError, r"rig_to_camera: .*got \(1, 4, 4\)"),
        ((two, [image] * 2, None, 2 * rig), ValueError, r"rig_to_camera: expected the identity"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            make_views(*arguments, like)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"similarity": "cc"}, ValueError, r"similarity: .*'gradient_ncc'.*got 'cc'"),
        ({"similarity": 3}, TypeError, r"similarity: expected a name or a callable, got int"),
        ({"downsample": 0}, ValueError, r"downsample: expected a positive integer, got 0"),
        ({"iterations": 1.5}, ValueError, r"iterations: expected a positive integer, got 1.5"),
        ({"starts": True}, ValueError, r"starts: expected a positive integer, got True"),
        ({"optimiser": "levenberg"}, TypeError, r"optimiser: expected Levenberg.*got 'levenberg'"),
        ({"pixel": -1.0}, ValueError, r"pixel: expected a positive length, got -1.0"),
        ({"blur": -1.0}, ValueError, r"blur: expected a number >= 0, got -1.0"),
        ({"spread": (0.1,)}, ValueError, r"spread: expected \(rad, length\)"),
    ],
)
def test_a_stage_refuses_settings_out_of_bounds(options, error, message):
    with pytest.raises(error, match=message):
        Stage(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"step": 0.0}, r"step: expected a positive length, got 0.0"),
        ({"final_step": math.inf}, r"final_step: .*got inf"),
        ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ({"tolerance": -1.0}, r"tolerance: expected a number >= 0, got -1.0"),
    ],
)
def test_a_descent_refuses_settings_out_of_bounds(options, message):
    with pytest.raises(ValueError, match=message):
        Descent(**options)


# ---- real CT


@pytest.mark.slow
@pytest.mark.io
@pytest.mark.data
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_pelvis_ct_is_registered_within_2_mm_from_10_degrees_and_20_mm(data_folder, seed):
    ct = drrkit.read_volume(data_folder / "pelvis_2mm.nii.gz").to(dtype=torch.float32)
    camera = CArm(1020.0, (128, 128), 2.176)
    right = view_ap(ct, 800.0)
    xray = simulate_xray(ct, camera, right, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=1, keepdim=True)
    xi = torch.cat([direction[0] * math.radians(10.0), direction[1] * 20.0])
    start = perturb(right, xi, volume_center(ct))
    points = bone_points(ct)
    result = register(ct.to_mu(), camera, xray, start)
    assert float(mtre(start, right, points)) > 20.0
    assert float(mtre(result.world_to_camera, right, points)) < 2.0
