"""perturb and view_frames are one native op each: the same numbers as their formulas in torch, and
the same derivatives of every kind and composition."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

from drrkit._native import ops as _ops
from drrkit._native.pose_maps import apply_map
from drrkit.geometry import (
    Camera,
    grid_constants,
    perturb,
    se3_exp,
    view_ap,
    view_frames,
    volume_center,
)
from tests.emulator.pose_maps import emulated_map
from tests.support.geometries import (
    DEVICES,
    F64,
    SDD,
    SOD,
    VOLUMES,
    left_handed,
    make_volume,
    random,
    skewed_camera,
    some_poses,
    tensor,
)

FAR = 400.0  # mm towards the detector: rays must be extended
FLAGS = [(False, False), (True, False), (True, True)]  # extend, parallel


# ---- the formulas, in torch


def moved_pose(pose, xi, center):
    """Trans(c) exp(xi) Trans(-c) M for [B, 4, 4], [B, 6], [B, 3]."""
    c = (pose[:, :3, :3] @ center[..., None] + pose[:, :3, 3:])[..., 0]

    def shift(vector):
        upper = torch.cat((torch.eye(3, dtype=F64).expand(len(vector), 3, 3), vector[..., None]), 2)
        return torch.cat((upper, tensor(0, 0, 0, 1).expand(len(vector), 1, 4)), 1)

    size = torch.broadcast_shapes(pose.shape[:1], xi.shape[:1], center.shape[:1])
    c = c.expand(*size, 3)
    # The last row of M goes through unchanged, whatever it is.
    upper = torch.cat((pose[:, :3], tensor(0, 0, 0, 1).expand(len(pose), 1, 4)), 1)
    whole = shift(c) @ se3_exp(xi) @ shift(-c) @ upper
    return torch.cat((whole[:, :3], pose[:, 3:].expand(*size, 1, 4)), 1)


def frames_of(pose, rays, grid, extend, parallel):
    """(r - t) R A + offset, rays extended to the farthest of the grid's eight corners."""
    if extend:
        signs = torch.cartesian_prod(*[tensor(-1, 1)] * 3)
        corners = grid[:, 4:5] + signs @ grid[:, 5:]
        z = (corners @ pose[:, 2, :3, None])[..., 0] + pose[:, 2, 3:]
        factor = (z.amax(1) / rays[:, 1, 2]).clamp(min=1).detach()[:, None, None]
        one = torch.ones_like(factor)
        rays = rays * torch.cat((one, one, factor) if parallel else (factor,) * 3, -1)
    ahead = tensor(1, 1, 0, 0)[:, None]
    points = rays - ahead * pose[:, None, :3, 3]
    return points @ pose[:, :3, :3] @ grid[:, :3] + ahead * grid[:, 3:4]


def perturb_arguments(count=2, angle=0.7, seed=0):
    """Poses that are no rotations (the formulas ask for none), twists of an angle, centres."""
    pose = random(count, 4, 4, seed=seed)
    xi = random(count, 6, seed=seed + 1)
    xi[:, :3] *= angle / xi[:, :3].norm(dim=1, keepdim=True)
    return pose, xi, random(count, 3, seed=seed + 2, scale=3.0)


def frames_arguments(count=2, seed=0, beam="cone", shape=(20, 30, 40)):
    volume = make_volume(left_handed(), shape)
    poses = some_poses(volume, count, seed=seed)
    poses[:, 2, 3] += FAR * torch.arange(count)  # the first needs no extension
    rays = skewed_camera(beam).pixel_rays().expand(count, 4, 3).clone()
    return poses, rays, grid_constants(volume).grid.expand(count, 8, 3).clone()


def bits(flags):
    """The op's `flags` for (extend, parallel), or for a map that has none."""
    return _ops.map_flags("parallel" if flags[1] else "cone", flags[0]) if flags else 0


def map_of(name, flags=()):
    """(function of three tensors, its formula, arguments of two views)."""
    if name == "perturb":
        return (lambda *x: apply_map("perturb", 0, *x)), moved_pose, perturb_arguments()
    return (
        lambda *x: apply_map("frames", bits(flags), *x),
        lambda *x: frames_of(*x, *flags),
        frames_arguments(beam="parallel" if flags[1] else "cone"),
    )


MAPS = [pytest.param("perturb", (), id="perturb")]
MAPS += [pytest.param("frames", flags, id=f"frames{flags}") for flags in FLAGS]
every_map = pytest.mark.parametrize("name, flags", MAPS)


def close(found, expected, digits=1e-11):
    """Equal to `digits` of the largest number."""
    if isinstance(found, (tuple, list)):
        return all(close(a, b, digits) for a, b in zip(found, expected, strict=True))
    return (found - expected).abs().max() <= digits * expected.abs().max().clamp(min=1e-3)


# ---- values


@pytest.mark.parametrize(
    "angle", [0.0, 1e-12, 1e-6, 1e-3, 0.03, 0.5, 0.9999, 1.0001, 3.1, 7.0, 60.0]
)
def test_perturb_is_its_formula_at_every_angle(angle):
    arguments = perturb_arguments(5, angle)
    assert close(apply_map("perturb", 0, *arguments), moved_pose(*arguments), 1e-13)
    if angle == 0:
        still = torch.cat((torch.zeros(5, 3, dtype=F64), random(5, 3)), 1)
        moved = apply_map("perturb", 0, arguments[0], still, arguments[2])
        assert torch.equal(moved[:, :3, :3], arguments[0][:, :3, :3])


@pytest.mark.parametrize("grid", VOLUMES)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_frames_are_their_formula(flags, grid):
    poses, rays, _ = frames_arguments(4, beam="parallel" if flags[1] else "cone")
    grid = grid_constants(VOLUMES[grid]()).grid
    found = apply_map("frames", bits(flags), poses, rays, grid)
    assert close(found, frames_of(poses, rays, grid, *flags), 1e-13)
    plain = apply_map("frames", bits((False, flags[1])), poses, rays, grid)
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1:], plain[1:]) != flags[0]  # the extension had work to do


@every_map
def test_one_item_serves_all_views(name, flags):
    function, formula, arguments = map_of(name, flags)
    for shared in (0, 1, 2):
        few = [x[:1] if i == shared else x for i, x in enumerate(arguments)]
        many = [x[:1].expand_as(x) if i == shared else x for i, x in enumerate(arguments)]
        assert torch.equal(function(*few), function(*many))
        assert close(jacrev(function, (0, 1, 2))(*few), jacrev(formula, (0, 1, 2))(*few))
        assert close(jacfwd(function, (0, 1, 2))(*few), jacrev(formula, (0, 1, 2))(*few))
    assert function(*(x[:0] for x in arguments)).shape[0] == 0
    assert function(arguments[0][:0], *(x[:1] for x in arguments[1:])).shape[0] == 0


@every_map
def test_tensors_of_any_strides_are_read_where_they_are(name, flags):
    function, _, arguments = map_of(name, flags)
    strided = [torch.stack((x, x), -1)[..., 0].mT.contiguous().mT for x in arguments]
    assert not any(x.is_contiguous() for x in strided)
    assert torch.equal(function(*strided), function(*arguments))
    g = random(*function(*arguments).shape, seed=5)
    for along in ((None, None, None), strided):
        dense = [None if d is None else d.contiguous() for d in along]
        found = _ops.map_vjp(name, bits(flags), strided, g.mT.contiguous().mT, along)
        expected = _ops.map_vjp(name, bits(flags), arguments, g, dense)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_is_made_up_for_poses_that_are_not_finite():
    volume, camera = make_volume(), skewed_camera()
    for bad in (float("nan"), float("inf")):
        pose = view_ap(volume, SOD).clone()
        pose[0, 2, 3] = bad
        for extend in (False, True):
            frames = view_frames(volume, camera, pose, extend=extend)
            assert not frames[:, :2].isfinite().any()
        assert not perturb(pose, tensor(0.1, 0, 0, 0, 0, 0), tensor(0, 0, 0)).isfinite().all()
    xi = tensor(float("nan"), 0, 0, 0, 0, 0)
    assert perturb(view_ap(volume, SOD), xi, tensor(0, 0, 0))[0, :3, :3].isnan().all()


# ---- first and second derivatives


@every_map
def test_first_derivatives_are_those_of_the_formula_in_both_modes(name, flags):
    function, formula, arguments = map_of(name, flags)
    expected = jacrev(formula, (0, 1, 2))(*arguments)
    assert close(jacrev(function, (0, 1, 2))(*arguments), expected)
    assert close(jacfwd(function, (0, 1, 2))(*arguments), expected)


@every_map
def test_second_derivatives_are_those_of_the_formula_in_every_composition(name, flags):
    function, formula, arguments = map_of(name, flags)
    everything = (0, 1, 2)
    weight = random(*formula(*arguments).shape, seed=7)
    expected = jacrev(jacrev(lambda *x: (formula(*x) * weight).sum(), everything), everything)(
        *arguments
    )

    def loss(*x):
        return (function(*x) * weight).sum()

    for outer, inner in ((jacrev, jacrev), (jacfwd, jacrev), (jacrev, jacfwd)):
        found = outer(inner(loss, everything), everything)(*arguments)
        assert all(close(a, b) for a, b in zip(found, expected, strict=True)), (outer, inner)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 0.3, 1 - 1e-9, 1 + 1e-9, 2.0, 3.1])
def test_derivatives_of_perturb_in_the_twist_are_those_of_the_power_series(angle):
    pose, xi, center = perturb_arguments(1, angle)
    weight = random(4, 4, seed=8)

    def by_series(x):
        """The same with exp as the sum of 40 powers, which no seam and no root disturbs."""
        wx, wy, wz, *tau = x[0].unbind()
        zero = torch.zeros((), dtype=F64)
        rows = [zero, -wz, wy, tau[0], wz, zero, -wx, tau[1], -wy, wx, zero, tau[2]]
        generator = torch.stack([*rows, zero, zero, zero, zero]).reshape(4, 4)
        power = whole = torch.eye(4, dtype=F64)
        for k in range(1, 40):
            power = power @ generator / k
            whole = whole + power
        pivot = torch.eye(4, dtype=F64)
        pivot[:3, 3] = (pose[0, :3, :3] @ center[0]) + pose[0, :3, 3]
        upper = torch.cat((pose[0, :3], tensor(0, 0, 0, 1)[None]))
        return (pivot @ whole @ torch.linalg.inv(pivot) @ upper)[:3].mul(weight[:3]).sum()

    def native(x):
        return (perturb(pose, x, center)[0, :3] * weight[:3]).sum()

    assert close(jacrev(native)(xi), jacrev(by_series)(xi), 1e-12)
    assert close(hessian(native)(xi), hessian(by_series)(xi), 1e-12)
    assert close(jacrev(jacrev(native))(xi), hessian(by_series)(xi), 1e-12)


@every_map
def test_create_graph_gives_the_second_derivatives_of_the_formula(name, flags):
    function, formula, arguments = map_of(name, flags)

    def gradient_of_gradient(map_, wanted):
        leaves = [x.clone().requires_grad_() for x in arguments]
        inner = torch.autograd.grad(map_(*leaves).square().sum(), leaves, create_graph=True)
        total = sum(weight * g.square().sum() for weight, g in zip((1, 2, 3), inner, strict=True))
        return torch.autograd.grad(total, [leaves[i] for i in wanted])

    for wanted in ((0,), (1,), (0, 1, 2)):
        found = gradient_of_gradient(function, wanted)
        assert close(found, gradient_of_gradient(formula, wanted), 1e-10)


@every_map
def test_mapped_arguments_are_folded_into_the_views(name, flags):
    function, formula, (x0, x1, x2) = map_of(name, flags)
    many = [torch.stack((x, 1.01 * x, 0.99 * x)) for x in (x0, x1, x2)]
    for dims in ((0, None, None), (None, 0, None), (None, None, 0), (0, 0, None), (0, 0, 0)):
        arguments = [m if d == 0 else m[0] for m, d in zip(many, dims, strict=True)]
        assert close(vmap(function, dims)(*arguments), vmap(formula, dims)(*arguments), 1e-13)
        gradients = [
            vmap(jacrev(lambda *x, m=m: m(*x).square().sum(), (0, 1, 2)), dims)(*arguments)
            for m in (function, formula)
        ]
        assert close(*gradients)
    last = [m.movedim(0, -1) for m in many]
    assert torch.equal(vmap(function, (-1, -1, -1), 1)(*last), vmap(function, 0, 1)(*many))
    single = [m[:, :1] for m in many[:1]] + [x1[:1], x2]  # one item each: shared by two views
    assert close(
        vmap(function, (0, None, None))(*single), vmap(formula, (0, None, None))(*single), 1e-13
    )
    curvature = vmap(hessian(lambda x: function(x, x1, x2).square().sum()))
    expected = vmap(hessian(lambda x: formula(x, x1, x2).square().sum()))
    assert close(curvature(many[0]), expected(many[0]))


@every_map
def test_forward_mode_follows_any_of_the_arguments(name, flags):
    function, formula, arguments = map_of(name, flags)
    along = [random(*x.shape, seed=i + 30) for i, x in enumerate(arguments)]
    for chosen in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):

        def through(map_, chosen=chosen):
            def of_chosen(*given):
                x = list(arguments)
                for i, t in zip(chosen, given, strict=True):
                    x[i] = t
                return map_(*x)

            return jvp(
                of_chosen, tuple(arguments[i] for i in chosen), tuple(along[i] for i in chosen)
            )

        assert close(through(function), through(formula))


@every_map
def test_what_does_not_exist_raises(name, flags):
    function, _, (x0, x1, x2) = map_of(name, flags)

    def loss(x):
        return function(x, x1, x2).square().sum()

    with pytest.raises(NotImplementedError, match="forward over forward"):
        jacfwd(jacfwd(loss))(x0)
    x = x0.clone().requires_grad_()
    first = torch.autograd.grad(loss(x), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(second.sum(), x)


# ---- the public functions


def test_frames_are_differentiable_in_the_grid_as_well():
    poses, camera = some_poses(make_volume(), 2, seed=3), skewed_camera()

    def frames(spacing, origin, direction):
        values = torch.zeros(20, 30, 40)
        volume = SimpleNamespace(values=values, spacing=spacing, origin=origin, direction=direction)
        return view_frames(volume, camera, poses)

    numbers = tensor(1.0, 1.5, 2.0), tensor(-31.0, 17.0, 240.0), left_handed()
    leaves = [n.requires_grad_() for n in numbers]
    assert gradcheck(frames, leaves, fast_mode=True)
    assert gradgradcheck(frames, leaves, fast_mode=True)


def test_a_twist_of_a_single_pose_makes_a_batch_and_gradients_come_back_summed():
    pose, center = view_ap(make_volume(), SOD), volume_center(make_volume())
    xi = random(5, 6, seed=40, scale=0.1)
    leaves = [t.clone().requires_grad_() for t in (pose[0], xi, center)]
    perturb(*leaves).square().sum().backward()
    again = [t.clone().requires_grad_() for t in (pose, xi, center[None])]
    moved_pose(*again).square().sum().backward()
    for leaf, other in zip(leaves, again, strict=True):
        assert close(leaf.grad, other.grad.reshape(leaf.shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_poses_of_less_precision_keep_their_dtype_and_their_gradient(dtype):
    volume = make_volume()
    pose, xi = view_ap(volume, SOD).to(dtype), torch.zeros(1, 6, dtype=dtype, requires_grad=True)
    moved = perturb(pose, xi, volume_center(volume))
    assert moved.dtype == dtype
    moved.float().sum().backward()
    assert xi.grad.dtype == dtype and xi.grad.abs().sum() > 0
    assert view_frames(volume, skewed_camera(), moved).dtype == F64


def test_batches_and_devices_that_do_not_fit_are_refused():
    pose, xi, center = torch.eye(4), torch.zeros(6), torch.zeros(3)
    with pytest.raises(ValueError, match="expected one batch size"):
        perturb(pose.expand(2, 4, 4), xi.expand(3, 6), center)
    with pytest.raises(ValueError, match=r"xi: expected shape \[6\] or \[B, 6\]"):
        perturb(pose, xi.expand(2, 2, 6), center)
    with pytest.raises(ValueError, match="xi: expected device cpu, got meta"):
        perturb(pose, xi.to("meta"), center)
    with pytest.raises(ValueError, match="volume: expected grid constants on device cpu"):
        view_frames(grid_constants(make_volume(), "meta"), skewed_camera(), pose)
    with pytest.raises(ValueError, match="one pose or 3"):
        cameras = Camera(skewed_camera().K.expand(3, 3, 3), (90, 120), SDD)
        view_frames(make_volume(), cameras, pose.expand(2, 4, 4))
    with pytest.raises(RuntimeError, match="one item, or one per view"):
        apply_map("frames", 0, *(x[: n + 1] for n, x in enumerate(frames_arguments(3))))


# ---- the raw ops


def raw(name, flags):
    """The two ops of a map with arguments of every kind: all given, shared, or left out."""
    function, _, arguments = map_of(name, flags)
    g = torch.ones_like(function(*arguments))
    along = [random(*x.shape, seed=i) for i, x in enumerate(arguments)]
    ops = torch.ops.drrkit
    shared = (arguments[0], arguments[1][:1], arguments[2][:1])
    for x, d in ((arguments, along), (shared, (along[0], None, None)), (shared, [None] * 3)):
        yield getattr(ops, name), (*x, *d, bits(flags))
        yield getattr(ops, f"{name}_vjp"), (*x, g, *d, bits(flags))


@every_map
@pytest.mark.parametrize("device", DEVICES)
def test_every_op_passes_opcheck(name, flags, device):
    for op, arguments in raw(name, flags):
        there = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
        torch.library.opcheck(op.default, there)


@every_map
@pytest.mark.parametrize("views", [1, 130])
def test_the_cuda_kernels_compute_the_same(name, flags, views):
    """On the emulator of tests/emulator: several blocks, the last of them half empty."""
    beam = "parallel" if flags and flags[1] else "cone"
    arguments = perturb_arguments(views) if name == "perturb" else frames_arguments(views, 0, beam)
    shared = [arguments[0].mT.contiguous().mT, arguments[1], arguments[2][:1]]
    along = [random(*arguments[0].shape, seed=1), None, random(*arguments[2].shape, seed=2)]
    g = random(*_ops.map_value(name, bits(flags), shared).shape, seed=3)
    for x, d in ((arguments, [random(*x.shape, seed=5) for x in arguments]), (shared, along)):
        for along in (_ops.NONE, d):
            wanted = None if along is _ops.NONE else along
            value = _ops.map_value(name, bits(flags), x, along)
            assert close(emulated_map(name, flags, x, None, wanted), value, 1e-12)
            cotangents = list(_ops.map_vjp(name, bits(flags), x, g, along))
            assert close(emulated_map(name, flags, x, g, wanted), cotangents, 1e-12)


if torch.cuda.is_available():

    @every_map
    def test_both_devices_compute_the_same(name, flags):
        for op, arguments in raw(name, flags):
            there = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
            found, expected = op(*there), op(*arguments)
            found = [t.cpu() for t in found] if isinstance(found, tuple) else [found.cpu()]
            expected = list(expected) if isinstance(expected, tuple) else [expected]
            assert close(found, expected, 1e-12)

    def test_arguments_on_two_devices_are_refused_by_the_ops():
        pose, xi, center = perturb_arguments()
        with pytest.raises(RuntimeError, match="one device"):
            _ops.map_value("perturb", 0, (pose.cuda(), xi, center.cuda()))
