"""The Volume: geometry, units, labels, cropping."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from drrkit.volume import WATER_MU_PER_MM, Volume, water_attenuation
from tests.support.volumes import DEVICES, ORIGIN, SPACING, oblique, random_volume


def test_affine_maps_voxels_to_where_origin_spacing_and_direction_put_them():
    volume = random_volume()
    index = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    steps = index * torch.tensor(SPACING, dtype=torch.float64)
    expected = torch.tensor(ORIGIN, dtype=torch.float64) + volume.direction @ steps
    homogeneous = volume.affine @ torch.cat([index, torch.ones(1, dtype=torch.float64)])
    assert torch.allclose(homogeneous[:3], expected, atol=1e-12)
    assert torch.allclose(volume.index_to_world(index), expected, atol=1e-12)
    assert volume.shape_xyz == (7, 6, 5)
    assert volume.affine.dtype == torch.float64


@pytest.mark.parametrize("left_handed", [False, True])
def test_world_to_index_inverts_index_to_world_in_any_shape_and_keeps_dtype(left_handed):
    volume = random_volume(left_handed=left_handed)
    points = torch.randn(2, 4, 3, dtype=torch.float64) * 10
    back = volume.world_to_index(volume.index_to_world(points))
    assert torch.allclose(back, points, atol=1e-10)
    assert volume.index_to_world(points.float()).dtype == torch.float32
    assert volume.index_to_world(torch.tensor([1, 2, 3])).dtype == torch.float64


def test_index_to_world_is_differentiable_in_the_points():
    points = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(random_volume().index_to_world, (points,))


def test_affine_made_in_inference_mode_still_serves_autograd():
    with torch.inference_mode():
        volume = Volume(torch.zeros(2, 2, 2), SPACING)
        assert volume.affine.shape == (4, 4)
    points = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    volume.index_to_world(points).sum().backward()
    assert points.grad is not None


def test_direction_is_a_copy_and_defaults_to_identity():
    direction = oblique()
    volume = Volume(torch.zeros(2, 2, 2), SPACING, ORIGIN, direction)
    direction.zero_()
    assert torch.equal(volume.direction, oblique())
    assert torch.equal(
        Volume(torch.zeros(2, 2, 2), SPACING).direction, torch.eye(3, dtype=torch.float64)
    )


@pytest.mark.parametrize("device", DEVICES)
def test_to_moves_values_and_labels_and_changes_only_the_values_dtype(device):
    volume = random_volume(labels=True).to(device, torch.float64)
    assert volume.values.dtype == torch.float64 and volume.values.device.type == device
    assert volume.labels.dtype == torch.int16 and volume.labels.device.type == device
    assert volume.affine.device.type == device
    assert volume.to(torch.float16).values.dtype == torch.float16
    with pytest.raises(TypeError, match=r"floating dtype, got torch.int16"):
        volume.to(torch.int16)


ZEROS = torch.zeros(2, 3, 4)
BAD_ARGUMENTS = {
    "an array": ({"values": ZEROS.numpy()}, TypeError, "values: expected a torch tensor"),
    "integers": ({"values": ZEROS.short()}, TypeError, "values: expected a floating dtype"),
    "an image": ({"values": ZEROS[0]}, ValueError, r"values: expected shape .* got \(3, 4\)"),
    "a batch": ({"values": ZEROS[None, None]}, ValueError, "values: expected shape"),
    "no voxels": ({"values": ZEROS[:0]}, ValueError, "values: expected at least one voxel"),
    "zero spacing": ({"spacing": (1, 0, 1)}, ValueError, "spacing: expected three positive"),
    "negative spacing": ({"spacing": (1, -2, 1)}, ValueError, "spacing: expected three positive"),
    "NaN spacing": ({"spacing": (1, math.nan, 1)}, ValueError, "spacing: expected finite"),
    "two spacings": ({"spacing": (1, 1)}, ValueError, "spacing: expected three numbers"),
    "one spacing": ({"spacing": 2.0}, TypeError, "spacing: expected three numbers"),
    "infinite origin": ({"origin": (0, math.inf, 0)}, ValueError, "origin: expected finite"),
    "singular axes": ({"direction": torch.ones(3, 3)}, ValueError, "direction: .* singular"),
    "sheared axes": (
        {"direction": torch.eye(3) + torch.tensor([[0, 0.01, 0], [0, 0, 0], [0, 0, 0]])},
        ValueError,
        "direction: expected orthonormal",
    ),
    "NaN axes": ({"direction": torch.eye(3) * math.nan}, ValueError, "direction: .* finite"),
    "2x2 axes": ({"direction": torch.eye(2)}, ValueError, r"direction: expected shape \(3, 3\)"),
    "no axes": ({"direction": "axial"}, TypeError, "direction: expected a 3x3 matrix"),
    "unknown unit": ({"unit": "hu"}, ValueError, "unit: .* got 'hu'"),
    "float labels": ({"labels": ZEROS}, TypeError, "labels: expected an integer dtype"),
    "other labels": ({"labels": ZEROS[:1].int()}, ValueError, "labels: expected the shape"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_refused_by_name(case):
    changes, error, message = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=message):
        Volume(**({"values": ZEROS, "spacing": (1, 1, 1)} | changes))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_that_are_not_finite_are_counted_and_located(bad, dtype):
    values = torch.zeros(2, 3, 4, dtype=dtype)
    values[1, 0, 2] = values[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"got 2 that are not, the first at index \(1, 0, 2\)"):
        Volume(values, (1, 1, 1))


# Units and labels


def test_water_attenuation_is_the_table_and_a_power_law_between_its_entries():
    for energy, mu in WATER_MU_PER_MM.items():
        assert water_attenuation(energy) == mu
    middle = math.sqrt(60 * 70)
    assert water_attenuation(middle) == pytest.approx(math.sqrt(0.02059 * 0.01929), rel=1e-12)
    assert water_attenuation(40.0) > water_attenuation(41.0) > water_attenuation(50.0)
    for outside in (39.9, 120.1, math.nan):
        with pytest.raises(ValueError, match="energy_kev: expected 40 to 120 keV"):
            water_attenuation(outside)
    with pytest.raises(TypeError, match="energy_kev"):
        water_attenuation("70")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_to_mu_puts_air_at_zero_and_water_at_its_attenuation(dtype):
    hu = torch.tensor([-1024.0, -1000.0, 0.0, 1000.0], dtype=dtype).reshape(1, 1, 4)
    mu = Volume(hu, (1, 1, 1)).to_mu(80)
    expected = torch.tensor([0.0, 0.0, 0.01837, 0.03674], dtype=dtype).reshape(1, 1, 4)
    assert mu.unit == "mu" and mu.values.dtype == dtype
    assert torch.equal(mu.values[..., :2], expected[..., :2])
    assert torch.allclose(mu.values, expected, rtol=1e-6)
    unclamped = Volume(hu, (1, 1, 1)).to_mu(80, clamp=False)
    assert float(unclamped.values[0, 0, 0]) == pytest.approx(-0.024 * 0.01837, rel=5e-3)


def test_to_mu_refuses_a_volume_in_mu():
    with pytest.raises(ValueError, match='already in "mu"'):
        random_volume().to_mu().to_mu()


def test_gradients_flow_through_to_mu_select_crop_and_resample():
    base = random_volume((4, 4, 4), labels=True)
    tilted = replace(random_volume((3, 3, 3)), direction=torch.eye(3), origin=ORIGIN)

    def chain(values: torch.Tensor) -> torch.Tensor:
        volume = replace(base, values=values).to_mu().select([1, 2]).crop((0, 0, 0), (3, 4, 4))
        return volume.resample(1.7).values.sum() + volume.resample(like=tilted).values.sum()

    values = base.values.double().clamp(min=-900).requires_grad_()
    assert torch.autograd.gradcheck(chain, (values,))
    (gradient,) = torch.autograd.grad(chain(values), values)
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("unit, air", [("HU", -1000.0), ("mu", 0.0)])
def test_select_keeps_the_labels_and_makes_the_rest_air(device, unit, air):
    volume = replace(random_volume(labels=True), unit=unit).to(device)
    chosen = volume.select([1, 3])
    inside = (volume.labels == 1) | (volume.labels == 3)
    assert torch.equal(chosen.values[inside], volume.values[inside])
    assert bool((chosen.values[~inside] == air).all())
    assert torch.equal(volume.select(2).values, volume.select([2]).values)


def test_by_label_channels_add_up_to_select_in_mu():
    volume = random_volume(labels=True).to_mu()
    channels = volume.by_label([1, [2, 3]])
    assert channels.values.shape == (2, 5, 6, 7)
    assert torch.equal(channels.values[0], volume.select(1).values)
    assert torch.equal(channels.values.sum(0), volume.select([1, 2, 3]).values)
    assert channels.affine.equal(volume.affine)


def test_labels_that_are_absent_or_wrong_are_refused():
    volume = random_volume(labels=True)
    with pytest.raises(ValueError, match="labels: 9 is not in the label map, which has 0, 1, 2, 3"):
        volume.select([1, 9])
    with pytest.raises(ValueError, match="no label map"):
        random_volume().select(1)
    with pytest.raises(TypeError, match="labels: expected integers, got 'femur'"):
        volume.select(["femur"])
    with pytest.raises(ValueError, match="labels: expected at least one"):
        volume.by_label([])
    with pytest.raises(ValueError, match="expected values of one channel"):
        volume.by_label([1, 2]).by_label([1])


# Cropping


@pytest.mark.parametrize("channels", [(), (2,)])
def test_crop_keeps_every_voxel_at_its_world_position(channels):
    volume = random_volume((*channels, 5, 6, 7), labels=True, left_handed=True)
    part = volume.crop((2, 1, 0), (5, 6, 3))
    assert part.shape_xyz == (3, 5, 3)
    assert torch.equal(part.values, volume.values[..., 0:3, 1:6, 2:5])
    assert torch.equal(part.labels, volume.labels[0:3, 1:6, 2:5])
    here, there = torch.tensor([[0.0, 0.0, 0.0], [2.0, 4.0, 2.0]]), torch.tensor([2.0, 1.0, 0.0])
    assert torch.allclose(part.index_to_world(here), volume.index_to_world(here + there), atol=1e-4)


@pytest.mark.parametrize(
    "start, stop", [((-1, 0, 0), (2, 2, 2)), ((0, 0, 0), (8, 6, 5)), ((3, 0, 0), (3, 6, 5))]
)
def test_crop_refuses_boxes_that_are_empty_or_leave_the_volume(start, stop):
    with pytest.raises(ValueError, match="start, stop: expected 0 <= start < stop"):
        random_volume().crop(start, stop)
    with pytest.raises(TypeError, match="start: expected three integers"):
        random_volume().crop((0.5, 0, 0), (2, 2, 2))


def test_crop_world_takes_every_voxel_that_the_box_touches():
    volume = Volume(torch.zeros(10, 10, 10), (2, 2, 2), (100, 0, 0))
    part = volume.crop_world((103.0, 3.9, -50), (107.0, 4.1, 50))
    assert part.origin == (104.0, 4.0, 0.0) and part.shape_xyz == (2, 1, 10)
    assert volume.crop_world((103.5, 5, 5), (103.5, 5, 5)).shape_xyz == (1, 1, 1)
    turned = random_volume((9, 9, 9))
    centre = turned.index_to_world(torch.tensor([4.0, 4.0, 4.0]))
    part = turned.crop_world((centre - 2).tolist(), (centre + 2).tolist())
    corners = centre + 2 * torch.tensor([[1.0, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])
    inside = part.world_to_index(corners)
    assert bool((inside >= -0.5 - 1e-3).all())
    assert bool((inside <= torch.tensor(part.shape_xyz) - 0.5 + 1e-3).all())
    assert part.values.numel() < turned.values.numel()
    with pytest.raises(ValueError, match="does not touch the volume"):
        volume.crop_world((0, 0, 0), (98.0, 5, 5))
    with pytest.raises(ValueError, match="expected lower <= upper"):
        volume.crop_world((5, 0, 0), (4, 5, 5))


def test_crop_body_finds_the_box_of_what_lies_above_the_threshold():
    values = torch.full((8, 9, 10), -1000.0)
    values[2:4, 3, 5:8] = 40.0
    volume = Volume(values, (1, 2, 3))
    body = volume.crop_body()
    assert body.values.shape == (2, 1, 3) and body.origin == (5.0, 6.0, 6.0)
    assert volume.crop_body(margin=2.0).values.shape == (4, 3, 7)
    assert volume.to_mu().crop_body().values.shape == (2, 1, 3)
    assert volume.crop_body(margin=100.0).values.shape == (8, 9, 10)
    with pytest.raises(ValueError, match="no voxel lies above 500 HU; the highest value is 40"):
        volume.crop_body(500)
    with pytest.raises(ValueError, match="margin"):
        volume.crop_body(margin=-1.0)
