"""What `pack` stores on the CPU: images by texels against the oracle, and everything else exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import drrkit
from drrkit._arguments import make_spec
from drrkit._native import ops as _ops
from drrkit._native.pack import Pack, quantised
from tests.core.test_tiles import SHAPE, SIZE, every_scene, frames_of
from tests.support import oracle, packs
from tests.support.scenes import endpoints, every_method, options_of, rand, relative

BYTES = {"int16": 2, "float16": 2, "float32": 4}
every_kind = pytest.mark.parametrize("kind", BYTES)
METHODS = ("joseph", "siddon", "trilinear")


def by_texels(values: Tensor, geometry: Tensor, kind: str, options: dict, rays=False):
    """Image and six-vectors by what is stored of `values`; nothing else will do."""
    chosen = {"step": None, "derivative": None, "anchor": None, **options}
    spec = make_spec(tuple(values.shape[-3:]), SIZE, **chosen)
    pack = Pack(kind, options["method"])
    result = _ops.project_packed(values, geometry, pack.handle_of(values), rays, spec)
    assert packs.uses(pack) == 1
    return result


def of_channels(values: Tensor) -> Tensor:
    """Two channels [2, D, H, W] float32 of different scales, with zeros and negative numbers."""
    largest = torch.tensor([0.05, -700.0]).reshape(2, 1, 1, 1)
    return (torch.stack((values, (values - 0.3).clamp(max=0))) * largest).float()


@every_method
@every_scene
def test_int16_is_off_by_half_a_step_along_the_ray_at_most(scene, method) -> None:
    values, frames = of_channels(rand(*SHAPE, seed=1)), frames_of(scene)
    options = options_of(method, "parallel" if scene == "coarse" else "cone")
    image, _ = by_texels(values, frames, "int16", options)
    peaks = values.abs().amax((1, 2, 3)).double()
    texels = quantised(values[None], "int16", peaks[None])[0][0]
    stored = texels * (peaks / 32767)[:, None, None, None]
    scenes = torch.cat((values.double(), stored, torch.ones(1, *SHAPE, dtype=torch.float64)))
    expected = oracle.project(scenes, frames, SIZE, **options).flatten(2)
    of_values, of_stored, ways = expected.split((2, 2, 1), 1)
    most = peaks[:, None] * ways
    rounding = 1e-6 * most.amax(2, keepdim=True)
    assert ((image - of_values).abs() <= most / 65534 + rounding).all()
    assert relative(image.double(), of_stored) < 3e-6


@every_method
@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_kind_holds_every_dtype(dtype, kind, method) -> None:
    values, frames = of_channels(rand(*SHAPE, seed=2)).to(dtype), frames_of("mixed")
    options = options_of(method)
    image, _ = by_texels(values, frames, kind, options)
    expected = oracle.project(values.double(), frames, SIZE, **options).flatten(2)
    for channel in range(2):
        assert relative(image[:, channel].double(), expected[:, channel]) < 2e-4
    if kind == "float32" or (kind, dtype) == ("float16", torch.float16):
        assert relative(image.double(), expected) < 3e-6  # loses nothing


@every_method
def test_rays_given_by_their_ends_and_volumes_of_their_own(method) -> None:
    values = torch.stack([of_channels(rand(*SHAPE, seed=s)) * 3.0**s for s in (3, 4)])
    frames, options = frames_of("coarse"), options_of(method)
    image, _ = by_texels(values, frames, "int16", options)
    for volume, views in enumerate((slice(0, 3), slice(3, 6))):
        assert torch.equal(
            by_texels(values[volume], frames[views], "int16", options)[0], image[views]
        )
    rays = endpoints(frames, SIZE, "cone")
    assert relative(by_texels(values, rays, "int16", options)[0], image) < 1e-6


@every_kind
@pytest.mark.parametrize("method", METHODS)
def test_images_with_derivatives_are_those_of_the_values(kind, method) -> None:
    volume, camera, pose = packs.volume_of(packs.values_of()), packs.camera(), packs.poses()
    project = drrkit.Projector(volume, camera, method=method, pack=kind)
    plain = drrkit.Projector(volume, camera, method=method, pack=None)
    results = []
    for each in (project, plain):
        leaf = pose.clone().requires_grad_()
        image = each(leaf)
        gradient = torch.autograd.grad(image.square().sum(), leaf)[0]
        results.append((image.detach(), gradient, *each.with_jacobian(pose)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert relative(project(pose), plain(pose)) <= 2e-4


@pytest.mark.parametrize("method", METHODS)
def test_an_image_reads_texels_alone_and_the_next_one_what_has_changed(method) -> None:
    values = packs.values_of()
    project, plain = (
        drrkit.Projector(packs.volume_of(values), packs.camera(), method=method, pack=kind)
        for kind in ("int16", None)
    )
    image = project(packs.poses())
    values.data.fill_(torch.nan)  # torch does not count it
    assert torch.equal(project(packs.poses()), image) and image.any()
    values.copy_(2 * packs.values_of())
    assert relative(project(packs.poses()), 2 * image) < 1e-6
    values[8:12, 11:15, 13:17] = torch.inf
    found, expected = project(packs.poses()), plain(packs.poses())
    assert torch.equal(found.isfinite(), expected.isfinite()) and not expected.isfinite().all()
    assert torch.equal(found[expected.isfinite()], expected[expected.isfinite()])


@every_kind
def test_memory_is_what_is_said(kind) -> None:
    for dtype in (torch.float16, torch.float32):
        pack = Pack(kind, "joseph")
        values = torch.ones(2, 3, 20, 26, 30, dtype=dtype)
        pack.handle_of(values)
        assert pack.prepared is not None
        bricks = 2 * (32 + 3 * 4 * 4)
        stored = 0 if dtype == getattr(torch, kind) else BYTES[kind] * values.numel()
        assert pack.prepared.bytes == bricks + stored


@every_kind
def test_float64_values_are_projected_in_float64_or_refused(kind) -> None:
    volume = packs.volume_of(packs.values_of().double())
    with pytest.raises(ValueError, match=f"pack: '{kind}' is float32 at best, and float64 volumes"):
        drrkit.Projector(volume, packs.camera(), pack=kind)
    assert drrkit.Projector(volume, packs.camera())._pack.handle
