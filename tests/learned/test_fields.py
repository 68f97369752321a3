"""Image formations, coordinates and scenes: CT, tuned CT, neural field, and their registration."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit import fields
from drrkit.fields.mnerf import samples_in_mask
from drrkit.registration import Levenberg
from drrkit.volume import Volume
from tests.support.volumes import oblique

CAMERA = drrkit.CArm(1020.0, (24, 20), 12.0)


def phantom(spacing: float = 8.0, dtype: torch.dtype = torch.float32) -> Volume:
    """An asymmetric soft phantom in mu, about 200 mm wide."""
    ellipsoids = drrkit.phantoms.random_soft_ellipsoids(seed=3, count=12)
    side = round(200 / spacing)
    return ellipsoids.voxelize((side, side, side), spacing, dtype=dtype)


def poses(volume: Volume, count: int, seed: int = 0, angle: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    xi = torch.rand(count, 6, generator=generator, dtype=torch.float64) * 2 - 1
    xi = xi * torch.tensor([angle] * 3 + [10.0] * 3)
    return drrkit.perturb(drrkit.view_ap(volume, 800.0), xi, drrkit.volume_center(volume))


def ball_field(dtype: torch.dtype = torch.float64, **settings: object) -> fields.MNeRF:
    """A field in an oblique, anisotropic grid whose mask is a ball of 40 mm."""
    spacing = (5.0, 6.0, 7.0)
    grid = Volume(torch.zeros(16, 18, 22), spacing, (-60.0, 11.0, 30.0), oblique(), unit="mu")
    counts = [torch.arange(n, dtype=torch.float64) for n in (16, 18, 22)]
    index = torch.stack(torch.meshgrid(*counts, indexing="ij"), -1).flip(-1)
    middle = drrkit.volume_center(grid)
    mask = (grid.index_to_world(index) - middle).norm(dim=-1) < 40.0
    torch.manual_seed(1)
    return fields.MNeRF(mask, grid, octaves=3, width=16, depth=3, **settings).to(dtype)


# ---- image formation


def test_volume_rendering_is_the_telescoped_sum_of_emission_and_absorption() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(50, 200, generator=generator, dtype=torch.float64) * 0.05
    passed = torch.exp(-torch.cat((torch.zeros(50, 1), depth.cumsum(1)[:, :-1]), 1))
    composed = (passed * (1 - torch.exp(-depth))).sum(1)
    assert torch.allclose(composed, fields.absorption(depth.sum(1)), rtol=0, atol=1e-14)


def test_volume_rendering_is_one_minus_exp_of_the_line_integrals_of_every_scene() -> None:
    volume = phantom(dtype=torch.float64)
    pose = poses(volume, 3)
    field = ball_field()
    for scene, views in (
        (volume, pose),
        (fields.TunedCT(fields.NeTT().eval(), volume), pose),
        (field, poses(field.grid, 3)),
    ):
        line = fields.as_scene(scene).render(CAMERA, views)
        absorbed = fields.VolumeRendered(scene).render(CAMERA, views)
        assert float(line.detach().max()) > 0.3
        assert float((absorbed - (1 - torch.exp(-line))).detach().abs().max()) < 1e-15
        assert torch.equal(absorbed, fields.absorption(line))


# ---- normalised coordinates


def test_the_distances_of_the_paper_are_those_of_a_256_mm_cube() -> None:
    cube = Volume(torch.zeros(64, 64, 64), (4.0, 4.0, 4.0), (3.0, 2.0, 1.0), unit="mu")
    ndc = fields.NDC.of(cube)
    assert ndc.length(1000.0) == fields.DIFFPROJ_SOD == 7.8125
    assert ndc.length(1536.0) == fields.DIFFPROJ_SDD == 12.0
    assert ndc.inverse.length(fields.DIFFPROJ_SDD) == 1536.0
    corners = cube.index_to_world(torch.tensor([[-0.5] * 3, [63.5] * 3], dtype=torch.float64))
    assert torch.allclose(ndc.points(corners), torch.tensor([[-1.0] * 3, [1.0] * 3]).double())


def test_images_in_normalised_coordinates_are_those_in_millimetres() -> None:
    volume = replace(
        phantom(dtype=torch.float64), direction=oblique(True), origin=(-30.0, 60.0, 9.0)
    )
    pose = poses(volume, 2)
    ndc = fields.NDC.of(volume)
    expected = drrkit.render(volume, CAMERA, pose)
    found = drrkit.render(ndc.volume(volume), ndc.camera(CAMERA), ndc.pose(pose))
    assert float(expected.max()) > 0.5
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    middle = ndc.pose(pose) @ torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(middle[:, 2], pose.new_full((2,), 800 * ndc.scale), rtol=0.05)


def test_normalised_coordinates_and_back_is_the_identity() -> None:
    volume = replace(phantom(dtype=torch.float64), direction=oblique(), origin=(-30.0, 60.0, 9.0))
    pose, points = poses(volume, 2), torch.randn(5, 3, dtype=torch.float64)
    ndc = fields.NDC.of(volume)
    back = ndc.inverse.volume(ndc.volume(volume))
    assert torch.allclose(back.values, volume.values, rtol=1e-14)
    assert back.spacing == pytest.approx(volume.spacing) and back.origin == pytest.approx(
        volume.origin
    )
    assert torch.allclose(ndc.inverse.pose(ndc.pose(pose)), pose, atol=1e-11)
    assert ndc.inverse.pose(ndc.pose(pose[0])).shape == (4, 4)
    assert torch.allclose(ndc.inverse.points(ndc.points(points)), points)
    assert ndc.inverse.camera(ndc.camera(CAMERA)).sdd == pytest.approx(CAMERA.sdd)


def test_bad_normalised_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match="scale: expected a positive"):
        fields.NDC(0.0)
    with pytest.raises(ValueError, match="center: expected three"):
        fields.NDC(1.0, (1.0, math.nan, 0.0))
    with pytest.raises(ValueError, match="unit 'mu'"):
        fields.NDC(1.0).volume(replace(phantom(), unit="HU"))


# ---- scenes


def test_a_ct_scene_follows_cameras_options_and_changed_values() -> None:
    volume = phantom()
    scene, pose = fields.CT(volume), poses(volume, 2)
    other = drrkit.CArm(900.0, (9, 11), 20.0)
    for camera, options in ((CAMERA, {}), (other, {}), (other, {"supersample": 2}), (CAMERA, {})):
        expected = drrkit.render(volume, camera, pose, **options)
        assert torch.allclose(scene.render(camera, pose, **options), expected, atol=1e-5)
    volume.values.mul_(2.0)
    assert torch.allclose(
        scene.render(CAMERA, pose), drrkit.render(volume, CAMERA, pose), atol=1e-5
    )
    assert isinstance(scene, fields.Scene) and isinstance(ball_field(), fields.Scene)


def test_what_is_no_scene_is_refused() -> None:
    with pytest.raises(TypeError, match="scene: expected a Volume or a scene"):
        fields.VolumeRendered(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unit 'mu'"):
        fields.CT(replace(phantom(), unit="HU"))
    with pytest.raises(TypeError, match=r"volume: expected a drrkit\.Volume"):
        fields.TunedCT(fields.NeTT(), torch.zeros(3, 3, 3))  # type: ignore[arg-type]


# ---- NeTT


@pytest.mark.parametrize("features", [(), ("gradient",), ("gradient", "neighbourhood")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nett_starts_as_the_identity_to_the_bit(features: tuple, dtype: torch.dtype) -> None:
    volume = phantom(16.0).to(dtype)
    tuned = fields.NeTT(features=features)(volume)
    assert torch.equal(tuned.values, volume.values) and tuned.values.dtype == dtype
    assert tuned.unit == "mu" and tuned.origin == volume.origin


def woken(**settings: object) -> fields.NeTT:
    """A network that no longer is the identity."""
    torch.manual_seed(5)
    nett = fields.NeTT(**settings)  # type: ignore[arg-type]
    torch.nn.init.normal_(nett.network.last.weight, std=0.2)
    return nett


def test_nett_depends_on_the_density_alone_and_leaves_air_alone() -> None:
    volume = phantom(16.0)
    nett = woken()
    tuned = nett(volume).values.detach()
    shuffled = volume.values.flatten()[torch.randperm(volume.values.numel())].reshape(2, -1, 1, 1)
    again = nett(replace(volume, values=shuffled)).values.detach()
    assert torch.allclose(again.flatten().sort().values, tuned.flatten().sort().values)
    assert torch.equal(tuned == 0, volume.values == 0) and bool((tuned >= 0).all())
    assert not torch.allclose(tuned, volume.values, rtol=0.01)
    assert torch.allclose(nett.curve(volume.values).detach(), tuned)


def test_the_table_of_densities_converges_to_the_network() -> None:
    mu = torch.linspace(1e-5, 0.09, 5000, dtype=torch.float64)
    errors = []
    for knots in (2048, 8192):
        nett = woken(knots=knots).double()
        density = (mu / nett.reference).clamp(0, 1)[:, None]
        exact = mu * nett.network(fields.positional_encoding(density, nett.octaves))[:, 0].exp()
        errors.append(float((nett.curve(mu) / exact - 1).detach().abs().max()))
    assert errors[0] < 5e-3 and errors[1] < errors[0] / 3


def test_local_features_tell_voxels_of_one_density_apart() -> None:
    values = torch.full((6, 6, 6), 0.02)
    values[:, :, 3:] = 0.04
    volume = Volume(values, (4.0, 4.0, 4.0), unit="mu")
    for features in (("gradient",), ("neighbourhood",)):
        tuned = woken(features=features)(volume).values.detach()
        assert abs(float(tuned[2, 2, 2] - tuned[2, 2, 0])) > 1e-4
    plain = woken()(volume).values.detach()
    assert float(plain[2, 2, 2]) == float(plain[2, 2, 0])
    with pytest.raises(ValueError, match="curve"):
        woken(features=("gradient",)).curve(values)


def test_the_gradient_feature_is_in_millimetres() -> None:
    nett = woken(features=("gradient",)).double()
    fine = torch.arange(0, 40, dtype=torch.float64).expand(5, 5, 40) * 0.001
    coarse = fine[..., ::2].contiguous()
    first = nett(Volume(fine, (1.0, 1.0, 1.0), unit="mu")).values[2, 2, 10]
    second = nett(Volume(coarse, (2.0, 1.0, 1.0), unit="mu")).values[2, 2, 5]
    assert first.item() == pytest.approx(second.item(), rel=1e-9)


@pytest.mark.parametrize("features", [(), ("gradient", "neighbourhood")])
def test_gradients_reach_the_weights_through_the_projector(features: tuple) -> None:
    volume = phantom(40.0, torch.float64)
    nett = woken(features=features, width=6, depth=2, octaves=2, knots=64).double()
    scene, pose = fields.TunedCT(nett, volume), poses(volume, 1)
    camera = CAMERA.rescale(6)
    weight = nett.network.last.weight

    def images(values: Tensor) -> Tensor:
        return torch.func.functional_call(
            Rendered(scene), {"scene.network.last.weight": values}, (camera, pose)
        )

    class Rendered(torch.nn.Module):
        def __init__(self, tuned: fields.TunedCT) -> None:
            super().__init__()
            self.scene, self.tuned = tuned.nett, tuned

        def forward(self, *arguments: object) -> Tensor:
            return self.tuned.render(*arguments)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(images, weight.detach().clone().requires_grad_())


def test_a_tuned_ct_keeps_its_grid_until_the_network_changes() -> None:
    volume, nett = phantom(16.0), woken().eval()
    scene, pose = fields.TunedCT(nett, volume), poses(volume, 1)
    first = scene.volume
    assert scene.volume is first
    image = scene.render(CAMERA, pose)
    assert not image.requires_grad
    with torch.no_grad():
        nett.network.last.bias += 0.5
    assert scene.volume is not first
    assert torch.allclose(scene.render(CAMERA, pose), image * math.exp(0.5), rtol=1e-4)
    nett.train()
    assert scene.render(CAMERA, pose).requires_grad
    with torch.no_grad():
        assert torch.allclose(scene.render(CAMERA, pose), image * math.exp(0.5), rtol=1e-4)


def test_bad_settings_of_nett_are_refused() -> None:
    with pytest.raises(ValueError, match="features: expected some of"):
        fields.NeTT(features=("colour",))
    with pytest.raises(ValueError, match="reference"):
        fields.NeTT(reference=0.0)
    with pytest.raises(ValueError, match="knots"):
        fields.NeTT(knots=1)
    with pytest.raises(ValueError, match="skip"):
        fields.Perceptron(3, 8, 4, skip=4)


# ---- masks


@pytest.mark.io
def test_a_body_mask_is_the_largest_piece_filled() -> None:
    values = torch.full((12, 20, 20), -1000.0)
    values[:, 4:16, 4:16] = 0.0
    values[:, 7:12, 7:12] = -900.0  # a lung, open at both ends of the volume
    values[2:4, 0:2, 0:2] = 50.0  # a table
    volume = Volume(values, (2.0, 3.0, 4.0))
    mask = fields.body_mask(volume)
    expected = torch.zeros(12, 20, 20, dtype=torch.bool)
    expected[:, 4:16, 4:16] = True
    assert torch.equal(mask, expected)
    expected[:, 2:18, 1:19] = True  # 5 mm: three voxels of 2 mm, two of 3
    assert torch.equal(fields.body_mask(volume, margin_mm=5.0), expected)
    in_mu = fields.body_mask(volume.to_mu())
    assert torch.equal(in_mu, mask)
    with pytest.raises(ValueError, match="no voxel lies above 2000 HU"):
        fields.body_mask(volume, 2000.0)
    with pytest.raises(ValueError, match="margin_mm"):
        fields.body_mask(volume, margin_mm=-1.0)


# ---- mNeRF


def nearest_in_mask(field: fields.MNeRF, points: Tensor) -> Tensor:
    """Whether the voxel nearest to world points is in the mask."""
    index = field.grid.world_to_index(points).round().long()
    shape = torch.tensor(field.mask.shape[::-1])
    within = ((index >= 0) & (index < shape)).all(-1)
    x, y, z = (index.clamp_min(0).minimum(shape - 1)).unbind(-1)
    return field.mask[z, y, x] & within


@pytest.mark.parametrize("settings", [{}, {"levels": 2, "cell": 9.0}])
def test_mnerf_is_exactly_zero_outside_its_mask_and_positive_inside(settings: dict) -> None:
    field = ball_field(**settings)
    for table in field.features.tables if field.features else ():
        torch.nn.init.normal_(table)
    generator = torch.Generator().manual_seed(0)
    points = field.center + 160 * (torch.rand(20000, 3, generator=generator).double() - 0.5)
    density = field.density(points).detach()
    inside = nearest_in_mask(field, points)
    assert int(inside.sum()) > 1000 and int((~inside).sum()) > 1000
    assert bool((density[~inside] == 0).all())
    deep = (points - field.center).norm(dim=-1) < 25.0
    assert bool((density[deep] > 0).all())
    baked = field.bake()
    assert bool((baked.values[~field.mask] == 0).all()) and float(baked.values.max()) > 0


def test_a_constant_field_is_the_interpolated_mask() -> None:
    field = ball_field(step=0.4)
    torch.nn.init.zeros_(field.network.last.weight)
    volume = replace(field.grid, values=field.scale * field.core.double())
    camera = drrkit.CArm(1020.0, (12, 14), 8.0)
    pose = poses(field.grid, 2)
    expected = drrkit.render(volume, camera, pose, method="trilinear", step=0.4)
    found = field.render(camera, pose).detach()
    assert float(expected.max()) > 1.0
    assert float((found - expected).abs().max()) < 5e-3
    fine = field.render(camera, pose, supersample=2).detach()
    expected = drrkit.render(volume, camera, pose, method="trilinear", step=0.4, supersample=2)
    assert float((fine - expected).abs().max()) < 5e-3


def test_parallel_and_short_rays_end_where_those_of_a_grid_do() -> None:
    field = ball_field(step=0.4)
    torch.nn.init.zeros_(field.network.last.weight)
    volume = replace(field.grid, values=field.scale * field.core.double())
    pose = poses(field.grid, 1)
    for camera in (
        drrkit.CArm(1020.0, (6, 7), 12.0, beam="parallel"),
        drrkit.CArm(795.0, (6, 7), 12.0),  # the detector cuts the ball
    ):
        for extend in (True, False):
            options = {"method": "trilinear", "step": 0.4, "extend": extend}
            expected = drrkit.render(volume, camera, pose, **options)
            found = field.render(camera, pose, extend=extend).detach()
            assert float((found - expected).abs().max()) < 0.02


def test_samples_stay_near_the_mask_and_share_its_length() -> None:
    occupied = torch.zeros(20, 20, 20, dtype=torch.bool)
    occupied[5:8] = occupied[14:16] = True
    origin = torch.tensor([[9.0, 9.0, -30.0], [9.0, 9.0, -30.0], [-50.0, 9.0, 10.0]]).double()
    direction = torch.tensor([[0.0, 0.0, 100.0], [3.0, 2.0, 100.0], [100.0, 0.0, 0.0]]).double()
    rays = torch.stack((origin, direction), 1)
    samples = samples_in_mask(occupied, rays, (1.0, 1.0, 2.0), 0.25)
    assert set(samples.ray.tolist()) == {0, 1}  # the third meets nothing
    z = origin[samples.ray, 2] + samples.t * direction[samples.ray, 2]
    assert bool((((z > 4) & (z < 9)) | ((z > 13) & (z < 17))).all())
    first = samples.ray == 0
    assert float(samples.share[first].sum()) * 200 == pytest.approx(10.0, abs=1e-6)
    assert 200 * float(samples.share.max()) <= 0.25 * 1.01
    assert bool((samples.t[first].diff() > 0).all())
    generator = torch.Generator().manual_seed(1)
    jittered = samples_in_mask(occupied, rays, (1.0, 1.0, 2.0), 0.25, generator=generator)
    generator.manual_seed(1)
    again = samples_in_mask(occupied, rays, (1.0, 1.0, 2.0), 0.25, generator=generator)
    assert torch.equal(jittered.t, again.t) and not torch.equal(jittered.t, samples.t)
    moved = (jittered.t - samples.t).abs() <= samples.share / 2
    assert float(moved.double().mean()) > 0.95  # all but those whose stratum spans the gap


def test_batches_of_rays_bound_the_memory_and_change_nothing() -> None:
    images, gradients = [], []
    for at_once in (1 << 18, 700):
        field = ball_field(samples_at_once=at_once)
        pose = poses(field.grid, 1).requires_grad_()
        image = field.render(drrkit.CArm(1020.0, (8, 8), 12.0), pose)
        image.square().sum().backward()
        images.append(image.detach())
        gradients.append((pose.grad, field.network.hidden[0].weight.grad))
    assert torch.allclose(*images, atol=1e-12)
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-10)
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-10)


def test_pose_derivatives_of_a_field_agree_with_differences_in_both_modes() -> None:
    field = ball_field(step=0.1)
    camera, pose = drrkit.CArm(1020.0, (4, 4), 16.0), poses(field.grid, 1)
    axes = torch.diag(torch.tensor([1e-2] * 3 + [1.0] * 3, dtype=torch.float64))

    def image(xi: Tensor) -> Tensor:
        return field.render(camera, drrkit.perturb(pose, xi, field.center))[0, 0]

    zero = torch.zeros(6, dtype=torch.float64)
    for axis in axes:
        with torch.no_grad():
            difference = 2 * (image(axis / 4) - image(-axis / 4))
        _, tangent = torch.func.jvp(image, (zero,), (axis,))
        scale = float(difference.norm())
        # A shift along the rays hardly changes integrals: what is left is the quadrature's error.
        assert float((tangent.detach() - difference).norm()) < 0.02 * scale + 6e-4
        weight = torch.randn(4, 4, dtype=torch.float64)
        xi = zero.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((image(xi) * weight).sum(), xi)
        forward = float((tangent.detach() * weight).sum())
        assert float(gradient @ axis) == pytest.approx(forward, abs=1e-9 * scale + 1e-12)


def test_a_thin_or_misplaced_mask_is_refused() -> None:
    grid = Volume(torch.zeros(5, 6, 7), (1.0, 1.0, 1.0), unit="mu")
    mask = torch.zeros(5, 6, 7, dtype=torch.bool)
    mask[2] = True
    with pytest.raises(ValueError, match="nothing is left"):
        fields.MNeRF(mask, grid)
    with pytest.raises(ValueError, match="expected the shape of the grid"):
        fields.MNeRF(mask[1:], grid)
    with pytest.raises(TypeError, match="mask: expected a bool tensor"):
        fields.MNeRF(mask.float(), grid)
    with pytest.raises(ValueError, match="step: expected a positive"):
        fields.MNeRF(~mask, grid, step=-1.0)


# ---- registration


def test_every_scene_can_be_registered() -> None:
    volume = phantom(10.0)
    truth = poses(volume, 1)[0]
    start = poses(volume, 1, seed=4, angle=0.45)[0]
    center = drrkit.volume_center(volume)
    stage = drrkit.Stage("ncc", optimiser=Levenberg(20.0, final_step=0.05), iterations=25, mm=True)
    nett = woken().eval()
    scenes = {
        "CT": fields.CT(volume),
        "tuned": fields.TunedCT(nett, volume),
        "absorption": fields.VolumeRendered(volume),
    }
    for name, scene in scenes.items():
        with torch.no_grad():
            xray = scene.render(CAMERA, truth)
        before = float(drrkit.metrics.mtre(start, truth, center[None] + 50.0))
        found = drrkit.register(scene, CAMERA, xray, start, stages=[stage]).world_to_camera
        assert float(drrkit.metrics.mtre(found, truth, center[None] + 50.0)) < 0.05 * before, name


def test_a_field_itself_can_be_registered() -> None:
    field = ball_field(torch.float32, step=1.0)
    with torch.no_grad():
        field.network.last.weight.mul_(4.0)
    camera = drrkit.CArm(1020.0, (16, 16), 9.0)
    truth = poses(field.grid, 1)[0]
    xi = torch.tensor([0.06, -0.05, 0.04, 4.0, -3.0, 8.0])
    start = drrkit.perturb(truth, xi, field.center)[0]
    with torch.no_grad():
        xray = field.render(camera, truth)
    stage = drrkit.Stage("ncc", optimiser=Levenberg(20.0), iterations=12, mm=True)
    result = drrkit.register(field, camera, xray, start, stages=[stage])
    turn = math.degrees(float(drrkit.metrics.rotation_error(result.world_to_camera, truth)))
    assert turn < 0.3
