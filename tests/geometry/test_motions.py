"""Exponential, logarithm and perturbed poses, against series, torch.linalg.matrix_exp and roma."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap

from drrkit.geometry import (
    CArm,
    perturb,
    project_points,
    se3_exp,
    se3_log,
    so3_exp,
    so3_log,
    view_ap,
    volume_center,
)
from tests.support.geometries import (
    F64,
    SDD,
    SOD,
    make_volume,
    random,
    some_poses,
    tensor,
)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-6, 1e-3, 0.0316, 0.0317, 0.5, 2.0, 3.1, 7.0])
def test_the_exponential_is_the_matrix_exponential(angle):
    axis = torch.nn.functional.normalize(random(5, 3, seed=2), dim=-1)
    tau = random(5, 3, seed=3)
    xi = torch.cat((angle * axis, tau), -1)
    generator = torch.zeros(5, 4, 4, dtype=F64)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        generator[:, j, i], generator[:, i, j] = angle * axis[:, k], -angle * axis[:, k]
    generator[:, :3, 3] = tau
    oracle = torch.linalg.matrix_exp(generator)
    assert torch.allclose(se3_exp(xi), oracle, rtol=0, atol=1e-12)
    assert torch.allclose(so3_exp(xi[:, :3]), oracle[:, :3, :3], rtol=0, atol=1e-12)


def test_the_exponential_of_a_quarter_turn_about_x_sends_y_to_z():
    turned = so3_exp(tensor(math.pi / 2, 0, 0)) @ tensor(0, 1, 0)
    assert torch.allclose(turned, tensor(0, 0, 1), atol=1e-15)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 1e-3, 0.0316, 0.0317, 0.19, 0.21, 1.0, 3.0])
def test_the_logarithm_undoes_the_exponential(angle):
    axis = torch.nn.functional.normalize(random(200, 3, seed=4), dim=-1)
    xi = torch.cat((angle * axis, random(200, 3, seed=5, scale=5.0)), -1)
    back = se3_log(se3_exp(xi))
    assert torch.allclose(back[:, :3], xi[:, :3], rtol=1e-12, atol=1e-15)
    assert torch.allclose(back[:, 3:], xi[:, 3:], rtol=0, atol=2e-13)


def test_a_microradian_with_five_millimetres_comes_back_to_all_digits():
    xi = tensor(1e-6, -0.5e-6, 0.3e-6, 5.0, -3.0, 1.0)
    assert torch.allclose(se3_log(se3_exp(xi)), xi, rtol=1e-10, atol=0)
    assert torch.allclose(se3_exp(xi)[:3, 3], xi[3:] + torch.linalg.cross(xi[:3], xi[3:]) / 2)


@pytest.mark.parametrize("short", [1e-3, 1e-6, 1e-9, 1e-12])
def test_the_logarithm_keeps_its_digits_near_half_a_turn(short):
    axis = torch.nn.functional.normalize(random(200, 3, seed=6), dim=-1)
    axis = torch.cat((axis, torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)))
    omega = (math.pi - short) * axis
    assert torch.allclose(so3_log(so3_exp(omega)), omega, rtol=0, atol=1e-14)
    xi = torch.cat((omega, random(len(omega), 3, seed=7)), -1)
    assert torch.allclose(se3_log(se3_exp(xi)), xi, rtol=0, atol=1e-13)


def test_the_logarithm_of_half_a_turn_is_a_vector_of_length_pi_that_gives_it_back():
    for axis in torch.cat((torch.eye(3, dtype=F64), random(3, 3, seed=8))):
        axis = axis / axis.norm()
        rotation = 2 * axis.outer(axis) - torch.eye(3, dtype=F64)
        omega = so3_log(rotation)
        assert abs(float(omega.norm()) - math.pi) < 1e-14
        assert torch.allclose(so3_exp(omega), rotation, atol=1e-14)


@pytest.mark.parametrize("start", ["zero", "tiny", "seam", "large"])
@pytest.mark.parametrize("function", [so3_exp, se3_exp])
def test_the_exponential_passes_gradcheck_and_gradgradcheck(function, start):
    size = 3 if function is so3_exp else 6
    xi = random(size, seed=9)
    scale = {"zero": 0.0, "tiny": 1e-7, "seam": math.sqrt(1e-3) * 1.0001, "large": 2.0}[start]
    xi[:3] = xi[:3] / xi[:3].norm() * scale
    if start == "zero":
        xi.zero_()
    xi.requires_grad_()
    assert gradcheck(function, xi, check_forward_ad=True)
    assert gradgradcheck(function, xi, check_fwd_over_rev=True)


@pytest.mark.parametrize("function, log", [(so3_exp, so3_log), (se3_exp, se3_log)])
@pytest.mark.parametrize("scale", [0.0, 1e-7, 0.03, 0.2, 1.0, 2.9])
def test_the_logarithm_passes_gradcheck_and_gradgradcheck(function, log, scale):
    xi = random(3 if function is so3_exp else 6, seed=10)
    xi[:3] = xi[:3] / xi[:3].norm() * scale
    matrix = function(xi).requires_grad_()
    assert gradcheck(log, matrix, check_forward_ad=True)
    assert gradgradcheck(log, matrix)


def test_second_derivatives_at_the_identity_are_those_of_the_power_series():
    # exp X = I + X + X^2 / 2: the entry (0, 1) has -omega_z + omega_x omega_y / 2.
    found = hessian(lambda xi: se3_exp(xi))(torch.zeros(6, dtype=F64))
    expected = torch.zeros(6, 6, dtype=F64)
    expected[0, 1] = expected[1, 0] = 0.5
    assert torch.equal(found[0, 1], expected)
    expected = torch.zeros(6, 6, dtype=F64)  # entry (0, 3): tau_x + (omega x tau)_x / 2
    expected[1, 5] = expected[5, 1] = 0.5
    expected[2, 4] = expected[4, 2] = -0.5
    assert torch.equal(found[0, 3], expected)


def test_both_branches_of_every_series_agree_with_their_derivatives_at_the_seam():
    axis = torch.nn.functional.normalize(random(6, seed=11)[:3], dim=-1)
    tau = random(3, seed=12)

    def exponential(angle):
        return se3_exp(torch.cat((angle * axis, tau)))

    def logarithm(angle):
        return se3_log(exponential(angle))[3:].sum() + so3_log(exponential(angle)[:3, :3]).sum()

    for function, seam in (
        (exponential, math.sqrt(1e-3)),
        (logarithm, math.sqrt(1e-3)),
        (logarithm, 2 * math.atan(0.1)),
    ):
        # Far enough to change the branch, near enough to change nothing else.
        low, high = tensor(seam - 1e-15, seam + 1e-15)
        first, second = jacfwd(function), jacfwd(jacrev(function))
        assert torch.allclose(function(low), function(high), rtol=0, atol=1e-14)
        assert torch.allclose(first(low), first(high), rtol=0, atol=1e-12)
        assert torch.allclose(second(low), second(high), rtol=0, atol=1e-10)


def test_the_rotation_functions_take_any_leading_batch_vmap_and_float32():
    xi = random(2, 3, 6, seed=13)
    motion = se3_exp(xi)
    assert motion.shape == (2, 3, 4, 4)
    assert torch.equal(vmap(vmap(se3_exp))(xi), motion)
    assert torch.allclose(vmap(vmap(se3_log))(motion), se3_log(motion), atol=1e-15)
    assert torch.equal(vmap(so3_exp, in_dims=1)(xi[..., :3]).transpose(0, 1), so3_exp(xi[..., :3]))
    single = se3_log(se3_exp(xi.float()))
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), se3_log(motion), atol=2e-5)
    assert se3_exp(torch.zeros(0, 6)).shape == (0, 4, 4)
    assert se3_log(torch.zeros(0, 4, 4)).shape == (0, 6)


def test_jacobians_of_batches_agree_in_forward_and_reverse_mode():
    xi = random(6, seed=14)
    for function in (se3_exp, lambda x: se3_log(se3_exp(x))):
        assert torch.allclose(jacfwd(function)(xi), jacrev(function)(xi), atol=1e-13)
    chain = jacrev(lambda x: se3_log(se3_exp(x)))
    assert torch.allclose(chain(xi), torch.eye(6, dtype=F64), atol=1e-12)
    assert torch.equal(chain(torch.zeros(6, dtype=F64)), torch.eye(6, dtype=F64))
    # exp is no chart far beyond half a turn, but its derivative stays finite everywhere.
    assert jacrev(se3_exp)(1e100 * xi).isfinite().all()


@pytest.mark.io
def test_so3_agrees_with_roma():
    import roma

    omega = random(500, 3, seed=15, scale=1.2)
    assert torch.allclose(so3_exp(omega), roma.rotvec_to_rotmat(omega), atol=1e-14)
    rotation = roma.random_rotmat(500, dtype=F64)
    assert torch.allclose(so3_log(rotation), roma.rotmat_to_rotvec(rotation), atol=1e-12)


def test_a_turn_keeps_the_center_and_a_positive_tau_moves_it_along_the_camera_axes():
    volume, camera = make_volume(), CArm(SDD, (101, 101), 2.0)
    pose, center = some_poses(volume, 3), volume_center(volume)
    turns = torch.cat((random(3, 3, seed=16), torch.zeros(3, 3, dtype=F64)), 1)
    turned = perturb(pose, turns, center)
    for start, end in zip(pose, turned, strict=True):
        places = [(p[:3, :3] @ center) + p[:3, 3] for p in (start, end)]
        assert torch.allclose(*places, atol=1e-11)
    pose = view_ap(volume, SOD)
    for axis, (row, col) in enumerate(((50.0, 52.55), (52.55, 50.0), (50.0, 50.0))):
        xi = torch.zeros(6, dtype=F64)
        xi[3 + axis] = 4.0  # 4 mm times sdd / sod = 5.1 mm at the detector, 2.55 pixels
        pixel = project_points(camera, perturb(pose, xi, center), center[None])[0, 0]
        assert torch.allclose(pixel, tensor(row, col), atol=1e-9)


def test_perturb_broadcasts_and_takes_the_wider_dtype():
    volume = make_volume()
    pose, center = view_ap(volume, SOD), volume_center(volume)
    xi = random(5, 6, seed=17)
    many = perturb(pose[0], xi, center)
    assert many.shape == (5, 4, 4)
    assert torch.equal(many[3:4], perturb(pose, xi[3], center))
    assert perturb(pose[0], xi[0], center).shape == (1, 4, 4)
    assert perturb(pose.float(), xi.float(), center).dtype == torch.float32
    assert perturb(pose.float(), xi, center).dtype == F64
    assert torch.allclose(perturb(pose, torch.zeros(6), center), pose, rtol=0, atol=1e-12)


def test_perturb_passes_gradcheck_at_zero_in_all_arguments():
    volume = make_volume()
    pose = some_poses(volume, 2, seed=18).requires_grad_()
    xi = torch.zeros(2, 6, dtype=F64, requires_grad=True)
    center = volume_center(volume).requires_grad_()
    assert gradcheck(perturb, (pose, xi, center))
    assert gradgradcheck(lambda x: perturb(pose.detach(), x, center.detach()), xi)
