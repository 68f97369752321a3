"""What a Projector prepares: what it knows of zeros, handles that may be dead, values that change.

Every test of a change runs on the CPU and on the emulated CUDA kernels, whose textures show what
they were made from; `device` adds a real GPU where there is one.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from cuda_emulation.packed import emulated_packs
from scenes import SPACING, oblique, rand, relative
from torch import Tensor, nn

import drrkit
from drrkit import _C, _ops, _pack
from drrkit._pack import Pack, occupancy, quantised

SHAPE = (9, 12, 10)
SIZE = (4, 6)


@pytest.fixture(params=["cpu", "emulated"])
def where(request) -> Iterator[str]:
    """Prepared by the CPU, or by the CUDA kernels on the emulator."""
    with emulated_packs() if request.param == "emulated" else nullcontext():
        yield request.param


def volume_of(values: Tensor) -> drrkit.Volume:
    return drrkit.Volume(values, SPACING, unit="mu")


def camera() -> drrkit.Camera:
    return drrkit.CArm(90.0, SIZE, pixel_spacing=1.9)


def poses(device: torch.device | str = "cpu") -> Tensor:
    volume = volume_of(torch.zeros(SHAPE))
    views = [drrkit.view_carm(volume, 50.0, a, b) for a, b in ((0.4, -0.3), (1.4, 0.2))]
    return torch.cat(views).to(device)


def values_of(seed: int = 1) -> Tensor:
    """A smooth blob, float32: 8 fraction bits show little."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    distance = sum((a - 0.1 * seed) ** 2 for a in axes)
    return 0.3 * (1 - distance).clamp(min=0) ** 2


def agrees(project: drrkit.Projector, expected: Tensor | None = None) -> bool:
    """Whether the image is that of the values as they are now."""
    with torch.no_grad():
        if expected is None:
            expected = drrkit.render(volume_of(project.values), project.camera, poses())
        return relative(project(poses()), expected) <= 4e-3


# ---- what is known of zeros


def brick_of(filled: Tensor, z: int, y: int, x: int) -> bool:
    """Whether a brick's voxels, and one more on every side, are filled anywhere."""
    low = [max(8 * b - 2, 0) for b in (z, y, x)]
    high = [8 * b + 9 for b in (z, y, x)]
    return bool(filled[low[0] : high[0], low[1] : high[1], low[2] : high[2]].any())


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 8, 9), (15, 16, 17), (40, 23, 31), (3, 200, 5)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_bricks_and_their_distances_are_those_of_a_search(shape, count, device) -> None:
    filled = torch.zeros(shape, dtype=torch.bool)
    for i in range(count):
        filled[
            tuple(int(n * u) for n, u in zip(shape, rand(3, seed=7 * i + count), strict=True))
        ] = 1
    values = torch.where(filled, -1.5, 0.0)
    _, distance = occupancy(values[None, None].to(device))
    counts = tuple(n // 8 + 1 for n in shape)
    assert distance.shape == (1, *counts) and distance.dtype == torch.uint8
    bricks = [
        (z, y, x) for z in range(counts[0]) for y in range(counts[1]) for x in range(counts[2])
    ]
    full = [b for b in bricks if brick_of(filled, *b)]
    for brick in bricks:
        steps = (max(abs(p - q) for p, q in zip(brick, other, strict=True)) for other in full)
        assert int(distance[0][brick]) == min([*steps, 15])


def test_the_box_holds_what_is_not_zero_in_any_channel(device) -> None:
    values = torch.zeros(3, 2, 12, 20, 30)
    values[0, 0, 3:5, 6:9, 10] = 1.0
    values[0, 1, 4:7, 5, 10:29] = -1.0
    values[2, 1, 11, 19, 29] = torch.nan
    occupied = occupancy(values.to(device)).occupied.cpu()
    assert occupied.dtype == torch.int32 and occupied.shape == (3, 8)
    assert occupied[0, :6].tolist() == [10, 5, 3, 28, 8, 6]
    assert (occupied[1, :3] > occupied[1, 3:6]).all()
    assert occupied[2, :6].tolist() == [29, 19, 11] * 2


def test_bricks_are_looked_up_where_enough_of_them_are_empty(device) -> None:
    full = torch.ones(64, 64, 64)
    volumes = []
    for hollow in (0, 4, 5, 6, 7):  # bricks along each side, of the nine that there are
        volumes.append(full.clone())
        volumes[-1][6 : 8 + 8 * hollow, 6 : 8 + 8 * hollow, 6 : 8 + 8 * hollow] *= hollow == 0
    volumes.append(torch.zeros_like(full))
    volumes[-1][20:30, 20:30, 20:30] = 1  # full, within its own box
    sparse = occupancy(torch.stack(volumes)[:, None].to(device)).occupied[:, 6]
    assert sparse.tolist() == [0] + [int(n**3 > 0.3 * 9**3) for n in (4, 5, 6, 7)] + [0]


@pytest.mark.parametrize("peak", [3e-3, 1.0, 65000.0, 1e-38, 3e38])
@pytest.mark.parametrize("kind", ["int16", "float16", "float32"])
def test_texels_are_off_by_no_more_than_is_said(kind, peak, device) -> None:
    values = ((2 * rand(2, 3, 4, 5, 6) - 1).float() * peak).to(device)
    values[:, :, 1:3] = 0
    values[1, 2] = 0
    largest = values.flatten(2).abs().amax(2)
    texels, scale = quantised(values, kind, largest)
    found = texels.double() * scale.double()[:, :, None, None, None]
    if kind == "int16":
        found = found / 32767  # normalised: 32767 reads 1
        off = largest.double()[:, :, None, None, None] / 65534
    elif kind == "float16":
        off = torch.maximum(2.0**-11 * values.double().abs(), peak * torch.tensor(2.0**-35))
    else:
        off = torch.zeros(())
    assert ((found - values.double()).abs() <= off * 1.0001).all()
    assert (found[values == 0] == 0).all()


def test_float16_values_are_stored_exactly(device) -> None:
    values = (rand(1, 1, 5, 6, 7) * 3000).half().to(device)
    texels, scale = quantised(values, "float16", values.flatten(2).amax(2))
    assert torch.equal(texels.float() * scale.view(1, 1, 1, 1, 1), values.float())


# ---- handles


def launch(values: Tensor, handle: int, **options: bool) -> Tensor:
    spec = _ops.Spec(*SHAPE, *SIZE, *SPACING, 0, 0.4)
    frames = oblique(2, seed=3).to(values.device)
    return _ops.project_packed(values, frames, handle, options.get("rays", False), spec)[0]


def uses(pack: Pack) -> int:
    assert pack.prepared is not None
    return pack.prepared.uses


def test_a_handle_serves_the_values_that_it_was_made_from_and_no_others(device) -> None:
    values = values_of().to(device)
    pack = Pack("auto", "joseph")
    handle = pack.handle_of(values)
    assert handle > 0 and launch(values, handle).any() and uses(pack) == 1
    launch(values[None], handle)  # a view of the same numbers
    assert uses(pack) == 2
    others = {
        "a copy": values.clone(),
        "another shape": values.reshape(12, 9, 10),
        "another layout": values.mT.contiguous().mT,
        "part of it": values[1:],
        "another dtype": values.view(torch.int16).view(torch.float16),
    }
    for what, other in others.items():
        spec = _ops.Spec(*other.shape[-3:], *SIZE, *SPACING, 0, 0.4)
        frames = oblique(2, seed=3).to(device)
        image = _ops.project_packed(other, frames, handle, False, spec)[0]
        volumes = other.reshape(1, 1, *other.shape[-3:])
        assert torch.equal(
            image.nan_to_num(), _ops.project(volumes, frames, False, spec)[0].nan_to_num()
        )
        assert uses(pack) == 2, what
    values.add_(1)
    launch(values, handle)
    assert uses(pack) == 2
    assert pack.handle_of(values) == handle
    launch(values, handle)
    assert uses(pack) == 3


@pytest.mark.parametrize("handle", [0, -1, 10**9, 2**62, -(2**63)])
def test_a_handle_of_nothing_is_none(handle, device) -> None:
    values = values_of().to(device)
    assert torch.equal(launch(values, handle), launch(values, 0))


def test_a_handle_outlives_its_projector_and_may_come_again(device) -> None:
    values, other = values_of().to(device), values_of(2).to(device)
    pack = Pack("auto", "joseph")
    handle = pack.handle_of(values)
    del pack
    gc.collect()
    expected = launch(values, 0)
    assert torch.equal(launch(values, handle), expected)
    successor = Pack("auto", "joseph")
    assert successor.handle_of(other) == handle  # the lowest free one
    assert torch.equal(launch(values, handle), expected)
    assert uses(successor) == 0


def test_handles_are_reserved_and_released_by_many_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def work(seed: int) -> bool:
        for _ in range(20):
            pack, values = Pack("auto", "joseph"), rand(*SHAPE, seed=seed).float()
            image = launch(values, pack.handle_of(values))
            if not torch.equal(image, launch(values, 0)) or uses(pack) != 1:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


# ---- values that change


def by_state_dict(project: drrkit.Projector) -> None:
    project.load_state_dict({"values": 2 * project.values})


def by_assigned_state_dict(project: drrkit.Projector) -> None:
    project.load_state_dict({"values": 2 * project.values}, assign=True)


def by_attribute(project: drrkit.Projector) -> None:
    project.values = 2 * project.values


def by_voxel(project: drrkit.Projector) -> None:
    project.values[4, 5:9, 3:6] = 4.0


def by_base(project: drrkit.Projector) -> None:
    project.values.view(-1)[300:500].fill_(2.0)


def by_inference_mode(project: drrkit.Projector) -> None:
    with torch.inference_mode():
        project.values.mul_(3)


def by_dtype(project: drrkit.Projector) -> None:
    project.values.mul_(2)
    project.to(torch.float16)


CHANGES: list[Callable[[drrkit.Projector], None]] = [
    lambda project: project.values.mul_(2),
    lambda project: project.values.zero_(),
    lambda project: project.values.copy_(values_of(4)),
    by_state_dict,
    by_assigned_state_dict,
    by_attribute,
    by_voxel,
    by_base,
    by_inference_mode,
    by_dtype,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_values_are_never_rendered_as_they_were(change, where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    assert project._pack.handle and agrees(project)
    change(project)
    assert agrees(project) and agrees(project)
    assert project._pack.handle
    before = uses(project._pack)
    project(poses())
    assert uses(project._pack) == before + 1


def test_a_frozen_parameter_whose_data_is_replaced_is_rendered_anew(where) -> None:
    parameter = nn.Parameter(values_of(), requires_grad=False)
    project = drrkit.Projector(volume_of(parameter), camera())
    assert project._pack.handle and agrees(project)
    parameter.data = values_of(3)
    assert agrees(project)
    parameter.data = parameter.data.clone().mul_(2)
    assert agrees(project)


def test_a_freed_tensors_address_does_not_bring_its_image_back(where) -> None:
    for seed in range(8):  # the allocator gives the same memory again
        project = drrkit.Projector(volume_of(values_of(seed % 5)), camera())
        assert agrees(project)
        project.values = values_of((seed + 2) % 5)
        assert agrees(project)
        del project


def test_prepare_takes_in_what_torch_does_not_count(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    project(poses())
    project.values.data.mul_(2)
    assert project.prepare() is project
    assert agrees(project)


def test_other_values_by_functional_call_are_rendered(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    for values in (values_of(4), values_of(2)):
        image = torch.func.functional_call(project, {"values": values}, (poses(),))
        assert relative(image, drrkit.render(volume_of(values), camera(), poses())) <= 4e-3
    assert agrees(project)


def test_copies_prepare_for_themselves(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    expected = project(poses())
    stream = io.BytesIO()
    torch.save(project, stream)
    stream.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(project),
        "pickle": pickle.loads(pickle.dumps(project)),
        "save": torch.load(stream, weights_only=False),
    }
    project.values.zero_()
    for how, other in copies.items():
        assert torch.equal(other(poses()), expected), how
        assert other._pack.handle not in (0, project._pack.handle), how


# ---- values that take part in derivatives, transforms, modes


def test_values_that_require_a_gradient_take_the_plain_path(where) -> None:
    parameter = nn.Parameter(values_of())
    project = drrkit.Projector(volume_of(parameter), camera())
    plain = drrkit.Projector(volume_of(parameter), camera(), pack=None)
    image, expected = project(poses()), plain(poses())
    assert torch.equal(image, expected) and project._pack.handle == 0
    found = torch.autograd.grad(image.square().sum(), parameter)[0]
    assert torch.equal(found, torch.autograd.grad(expected.square().sum(), parameter)[0])
    parameter.requires_grad_(False)
    assert agrees(project) and project._pack.handle
    parameter.requires_grad_(True)
    before = uses(project._pack)
    assert project(poses()).requires_grad and uses(project._pack) == before


def derivatives(project: drrkit.Projector) -> dict[str, Tensor]:
    """Derivatives of every mode in the pose."""
    func, weights = torch.func, rand(2, 1, *SIZE, seed=5).float()
    along = 0.1 * rand(2, 4, 4, seed=6)

    def loss(where: Tensor) -> Tensor:
        return (project(where).square() * weights).sum()

    leaf = poses().requires_grad_()
    first = torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0]
    return {
        "backward": first.detach(),
        "double backward": torch.autograd.grad((first * along).sum(), leaf)[0],
        "grad": func.grad(loss)(poses()),
        "jvp": func.jvp(project, (poses(),), (along,))[1],
        "jacrev": func.jacrev(lambda where: project(where).sum((1, 2, 3)))(poses()),
        "jacfwd": func.jacfwd(project)(poses()),
        "hessian": func.hessian(loss)(poses()),
        "vmap of grad": func.vmap(func.grad(loss))(torch.stack([poses(), poses() + 0.01])),
    }


def test_derivatives_in_the_pose_are_those_of_the_values(where) -> None:
    values = values_of()
    found = derivatives(drrkit.Projector(volume_of(values), camera()))
    expected = derivatives(drrkit.Projector(volume_of(values), camera(), pack=None))
    for name, value in found.items():
        # Where only the image's own factor comes from a texture, that is as near as textures are.
        assert relative(value, expected[name]) <= (1e-5 if where == "cpu" else 4e-3), name


def test_vmap_over_poses_is_one_launch_by_the_handle(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    many = torch.stack([poses(), poses() + 0.01, poses() - 0.02])
    before = uses(project._pack)
    found = torch.func.vmap(project)(many)
    assert uses(project._pack) == before + 1
    assert relative(found, torch.stack([project(p) for p in many])) <= 1e-5


def test_vmap_over_values_renders_each(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())
    many = torch.stack([values_of(2), values_of(3)])

    def image(values: Tensor) -> Tensor:
        return torch.func.functional_call(project, {"values": values}, (poses(),))

    expected = torch.stack([drrkit.render(volume_of(v), camera(), poses()) for v in many])
    assert relative(torch.func.vmap(image)(many), expected) <= 1e-5


def test_tangents_of_values_are_followed(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera())

    def image(values: Tensor) -> Tensor:
        return torch.func.functional_call(project, {"values": values}, (poses(),))

    _, tangent = torch.func.jvp(image, (values_of(),), (values_of(2),))
    assert relative(tangent, drrkit.render(volume_of(values_of(2)), camera(), poses())) <= 1e-5


def test_tensors_of_inference_mode_have_no_versions_and_are_rendered_as_they_are(where) -> None:
    with torch.inference_mode():
        project = drrkit.Projector(volume_of(values_of()), camera())
        assert project._pack.handle == 0 and agrees(project)
        project.values.mul_(2)
        assert agrees(project)


def test_pack_none_prepares_nothing(where) -> None:
    project = drrkit.Projector(volume_of(values_of()), camera(), pack=None)
    expected = drrkit.render(volume_of(values_of()), camera(), poses())
    assert torch.equal(project(poses()), expected) and project._pack.prepared is None
    project.prepare()
    assert project._pack.prepared is None


def test_methods_that_read_nothing_prepared_prepare_nothing(where) -> None:
    for method in ("siddon", "trilinear"):
        project = drrkit.Projector(volume_of(values_of()), camera(), method=method)
        assert project._pack.handle_of(project.values) == 0
        with pytest.raises(
            ValueError, match=f"'int16' serves method 'joseph' only, got '{method}'"
        ):
            drrkit.Projector(volume_of(values_of()), camera(), method=method, pack="int16")


@pytest.mark.parametrize("wrong", ["int8", "Auto", "", 16, True, ("int16",)])
def test_other_words_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="pack: expected one of 'auto', 'int16', 'float16'"):
        drrkit.Projector(volume_of(values_of()), camera(), pack=wrong)


def test_a_build_without_cuda_refuses_textures_by_name(monkeypatch) -> None:
    monkeypatch.setattr(_pack._C, "has_cuda", False)
    for kind in ("int16", "float16", "float32"):
        with pytest.raises(ValueError, match=f"pack: '{kind}' stores CUDA textures, and this drr"):
            drrkit.Projector(volume_of(values_of()), camera(), pack=kind)


def test_the_owner_of_a_handle_is_what_counts_its_uses() -> None:
    native = _C.PackedVolume((1, 1, 8, 8, 8), 2, (2, 2, 2))
    assert native.handle > 0 and native.uses == 0 and native.bytes == 32 + 8


# ---- compiled


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_a_compiled_projector_goes_by_its_handle_until_the_values_change(backend, device) -> None:
    project = drrkit.Projector(volume_of(values_of().to(device)), camera())
    run = torch.compile(lambda p: project(p) * 2, backend=backend, fullgraph=True)
    where = poses(device)
    before = uses(project._pack)
    assert torch.equal(run(where), 2 * project(where))
    assert uses(project._pack) == before + 2
    for _ in range(2):
        project.values.mul_(2)  # compiled code cannot prepare again, and renders the values
        expected = 2 * drrkit.render(volume_of(project.values), project.camera, where)
        assert torch.equal(run(where), expected)
        assert uses(project._pack) == before + 2
    project.prepare()
    run(where)
    assert uses(project._pack) == before + 3


@pytest.mark.parametrize(
    "backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_a_compiled_pose_gradient_is_that_of_eager_mode(backend, device) -> None:
    project = drrkit.Projector(volume_of(values_of().to(device)), camera())

    def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = poses(device).requires_grad_()
        return torch.autograd.grad(run(leaf).square().sum(), leaf)[0]

    run = torch.compile(lambda p: project(p) * 2, backend=backend, fullgraph=True)
    before = uses(project._pack)
    found = gradient(run)
    assert uses(project._pack) == before + 1
    assert relative(found, gradient(lambda p: project(p) * 2)) <= 1e-6


def test_compiled_code_survives_its_projector(device) -> None:
    project = drrkit.Projector(volume_of(values_of().to(device)), camera())
    handle, values, where = project._pack.handle, project.values, poses(device)
    spec, frames = project._spec, oblique(2, seed=3).to(device)
    run = torch.compile(
        lambda v, f: _ops.project_packed(v, f, handle, False, spec)[0],
        fullgraph=True,
        backend="aot_eager",
    )
    expected = run(values, frames)
    del project
    gc.collect()
    assert relative(run(values, frames), expected) <= 4e-3 and where is not None


def test_one_projector_after_the_other_needs_no_second_compilation(device) -> None:
    def image(project: drrkit.Projector, where: Tensor) -> Tensor:
        return project(where) * 2

    run = torch.compile(image, backend="eager", fullgraph=True)
    for seed in range(12):  # more than recompile_limit
        project = drrkit.Projector(volume_of(values_of(seed % 4).to(device)), camera())
        assert torch.equal(run(project, poses(device)), 2 * project(poses(device)))
        assert uses(project._pack) == 2
        del project
