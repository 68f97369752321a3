"""Every raw op keeps torch's contract: schema, fake kernel (shape, dtype, strides), tracing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from drrkit._native import ops as _ops
from drrkit._native.pack import Pack
from tests.support.scenes import BEAMS, SPACING, endpoints, oblique, rand, randn

SIZE = (3, 2)
SHAPE = (4, 3, 5)
VIEWS, VOLUMES, CHANNELS = 4, 2, 3
RAYS = SIZE[0] * SIZE[1]
SCALARS = (torch.float32, torch.float64)
VOXELS = (torch.float16, torch.bfloat16, *SCALARS)


def scalar_of(voxel: torch.dtype) -> torch.dtype:
    return torch.float64 if voxel == torch.float64 else torch.float32


def spec_of(method: str = "joseph", beam: str = "cone", line: bool = False, foot: bool = False):
    return _ops.Spec(SHAPE, SIZE, SPACING, _ops.flags_of(method, beam, line=line, foot=foot), 0.4)


def geometry(kind: str, beam: str = "cone", seed: int = 0) -> Tensor:
    frames = oblique(VIEWS, seed=seed)
    return frames if kind == "frames" else endpoints(frames, SIZE, beam)[:, :5].contiguous()


def values(dtype: torch.dtype) -> Tensor:
    return rand(VOLUMES, CHANNELS, *SHAPE, seed=1).to(dtype)


def images(dtype: torch.dtype, rays: int) -> Tensor:
    return randn(VIEWS, CHANNELS, rays, seed=2).to(dtype)


def check(product: Callable, op: str, *arguments: object) -> None:
    """opcheck on the very call that `product` of drrkit._native.ops makes."""
    calls = []
    original = getattr(_ops._torch_ops, op)

    class Recorder:
        def __getattr__(self, name: str) -> Callable:
            assert name == op
            return lambda *args: calls.append(args) or original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ops, "_torch_ops", Recorder())
        product(*arguments)
    (call,) = calls
    torch.library.opcheck(original, call)


def every_call(
    dtype: torch.dtype, kind: str, device: torch.device, spec: _ops.Spec
) -> list[tuple[str, tuple]]:
    """The products with arguments of every form, but for project_packed."""
    volume, ends = values(dtype).to(device), kind == "endpoints"
    where, along = geometry(kind).to(device), geometry(kind, seed=5).to(device)
    rays = where.shape[1] if ends else RAYS
    weights = images(scalar_of(dtype), rays).to(device)
    six = randn(VIEWS, CHANNELS, 6, rays, seed=3).to(device, scalar_of(dtype))
    return [
        ("project", (volume, where, False, spec)),
        ("project", (volume, where, True, spec)),
        ("backproject", (weights, where, None, VOLUMES, spec)),
        ("backproject", (weights, where, along, VOLUMES, spec)),
        ("reduce", (six, weights, ends, spec)),
        ("reduce", (six, None, ends, spec)),
        ("tangent", (six, along, spec)),
        ("second", (volume, where, weights, along, spec)),
    ]


@pytest.mark.parametrize("kind", ["frames", "endpoints"])
@pytest.mark.parametrize("dtype", VOXELS)
def test_every_product_passes_opcheck(dtype, kind, device) -> None:
    for name, arguments in every_call(dtype, kind, device, spec_of()):
        check(getattr(_ops, name), name, *arguments)


@pytest.mark.parametrize("beam", BEAMS)
@pytest.mark.parametrize("method", ["siddon", "trilinear"])
def test_every_product_of_the_other_methods_passes_opcheck(method, beam, device) -> None:
    for name, arguments in every_call(torch.float64, "frames", device, spec_of(method, beam)):
        check(getattr(_ops, name), name, *arguments)


@pytest.mark.parametrize("kind", ["frames", "endpoints"])
@pytest.mark.parametrize("with_six", [False, True])
@pytest.mark.parametrize("dims", [3, 4, 5])
@pytest.mark.parametrize("dtype", VOXELS)
def test_project_packed_passes_opcheck(dtype, dims, with_six, kind, device) -> None:
    volume = values(dtype)[(0,) * (5 - dims)].to(device)
    pack = Pack("auto", "joseph")  # alive while its handle is used
    for handle in (pack.handle_of(volume), 0, 10**6):
        arguments = (volume, geometry(kind).to(device), handle, with_six, spec_of())
        check(_ops.project_packed, "project_packed", *arguments)


@pytest.mark.parametrize("kind", ["frames", "endpoints"])
def test_ops_read_tensors_of_any_strides(kind, device) -> None:
    def strided(t: Tensor) -> Tensor:
        return t.mT.contiguous().mT

    for name, arguments in every_call(torch.float64, kind, device, spec_of("trilinear")):
        moved = tuple(strided(a) if isinstance(a, Tensor) else a for a in arguments)
        assert not any(a.is_contiguous() for a in moved if isinstance(a, Tensor))
        found, expected = (getattr(_ops, name)(*given) for given in (moved, arguments))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["joseph", "siddon", "trilinear"])
def test_sums_in_any_order_agree_to_rounding(method, device) -> None:
    """On CUDA atomic sums, which the fixture `device` switches off for all other tests."""
    torch.use_deterministic_algorithms(False)
    where, along = geometry("frames").to(device), geometry("frames", seed=5).to(device)
    weights = images(torch.float64, RAYS).to(device)
    for tangent in (None, along):
        arguments = where, tangent, VOLUMES, spec_of(method)
        found = _ops.backproject(weights.float(), *arguments).double()
        expected = _ops.backproject(weights, *arguments)
        assert float((found - expected).norm() / expected.norm()) <= 1e-4


def test_arguments_on_two_devices_are_refused_by_every_product() -> None:
    """Before anything reads them: the other device's memory may not be readable at all."""
    volume, where, spec = values(torch.float32), geometry("frames"), spec_of()
    image, six = _ops.project(volume, where, True, spec)
    size, spacing, flags, step = spec[1:]
    cpu, ops = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), torch.ops.drrkit
    there = where.to("meta")  # stands for a device that this machine lacks
    calls = (
        (ops.project, (volume, there, size, spacing, flags, step, False)),
        (ops.project_packed, (volume, there, 0, size, spacing, flags, step, False)),
        (ops.backproject, (image, there, None, (VOLUMES, *SHAPE), *spec[1:], False)),
        (ops.backproject, (image, where, there, (VOLUMES, *SHAPE), *spec[1:], False)),
        (ops.reduce, (six, image.to("meta"), size[1], False, flags)),
        (ops.tangent, (six, there, size, flags)),
        (ops.second, (volume, where, image, there, size, spacing, flags, step)),
    )
    for op, arguments in calls:
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            op.default.redispatch(cpu, *arguments)


def test_a_beam_that_does_not_exist_is_refused() -> None:
    spec = spec_of()._replace(flags=2 << _ops._C.BEAM_SHIFT)
    with pytest.raises(RuntimeError, match="no such beam"):
        _ops.project(values(torch.float32), geometry("frames"), False, spec)


def test_every_op_of_the_library_is_checked_here() -> None:
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.split("::")[1] for s in schemas if s.name.startswith("drrkit::")}
    maps = {f"{m}{s}" for m in ("perturb", "frames") for s in ("", "_vjp")}
    products = {"project", "project_packed", "backproject", "reduce", "tangent", "second"}
    assert names == set(_ops.OPS) == products | maps  # the maps of poses: test_pose_maps.py


@pytest.mark.parametrize("dtype", VOXELS)
def test_products_return_float64_for_float64_voxels_and_float32_for_all_others(
    dtype, device
) -> None:
    volume, where = values(dtype).to(device), geometry("frames").to(device)
    image, six = _ops.project(volume, where, True, spec_of())
    assert image.dtype == six.dtype == scalar_of(dtype)
    assert image.shape == (VIEWS, CHANNELS, RAYS)
    assert six.shape == (VIEWS, CHANNELS, 6, RAYS)
    adjoint = _ops.backproject(image, where, None, VOLUMES, spec_of())
    assert adjoint.dtype == scalar_of(dtype) and adjoint.shape == volume.shape
    assert _ops.reduce(six, image, False, spec_of()).dtype == torch.float64
    assert _ops.tangent(six, where, spec_of()).dtype == scalar_of(dtype)


def test_a_march_without_rays_returns_the_same_image_and_an_empty_tensor(device) -> None:
    volume, where = values(torch.float32).to(device), geometry("frames").to(device)
    image, nothing = _ops.project(volume, where, False, spec_of())
    with_six, _ = _ops.project(volume, where, True, spec_of())
    assert nothing.shape == (0,)
    torch.testing.assert_close(image, with_six, rtol=1e-5, atol=1e-5)


if not _ops._C.has_cuda:

    @pytest.mark.parametrize("name", _ops.OPS)
    def test_a_cpu_build_refuses_cuda_tensors_in_words(name: str) -> None:
        """The dispatcher is sent to CUDA's kernel, which asks for no GPU."""
        op = getattr(torch.ops.drrkit, name).default
        given = {"Tensor": torch.zeros(1, 4, 4), "float": 1.0, "bool": False}
        given |= {"List[int]": [1] * 4, "List[float]": [1.0] * 3}
        arguments = [
            given.get(str(a.type), None if "Optional" in str(a.type) else 1)
            for a in op._schema.arguments
        ]
        cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        with pytest.raises(
            ValueError, match="got CUDA tensors: this drrkit was built without CUDA"
        ):
            op.redispatch(cuda, *arguments)
