"""The adapters: what they hand to the other tools is the same volume and the same rays."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import pad

import drrkit
from bench.projectors.peers import PEERS, Cannot, load_peer
from bench.projectors.peers.own import Drrkit
from bench.projectors.peers.peer import Peer, twist_weights, upright
from bench.projectors.scene import Scene, synthetic
from drrkit.geometry import view_frames, volume_center

CPU = torch.device("cpu")
SIZE = 24
VIEWS = ("AP", "lateral", "random")


def in_air(scene: Scene) -> Scene:
    """Two voxels of air around everything: tools differ in the outermost half voxel."""
    volume = scene.volume
    x, y, z = (o - 2 * s for o, s in zip(volume.origin, volume.spacing, strict=True))
    values = pad(volume.values, (2,) * 6)
    return Scene(replace(volume, values=values, origin=(x, y, z)), "phantom in air")


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A body whose y axis runs against the world's, as in many a CT, in air."""
    scene = in_air(synthetic((20, 40, 40), spacing=8.0))
    volume = scene.volume
    last = volume.origin[1] + (volume.shape_xyz[1] - 1) * volume.spacing[1]
    flipped = replace(
        volume,
        values=volume.values.flip(1),
        origin=(volume.origin[0], last, volume.origin[2]),
        direction=torch.diag(torch.tensor([1.0, -1.0, 1.0])).double(),
    )
    return Scene(flipped, "flipped phantom")


def adapter(kind: type[Peer], method: str, scene: Scene) -> Peer:
    peer = kind(method, CPU, 1)
    peer.prepare(scene)
    return peer


def answer(peer: Peer, scene: Scene, view: str, operation: str = "forward") -> np.ndarray:
    views = peer.views(scene.camera(SIZE), scene.poses(view, 2))
    return peer.answer(operation, views, getattr(peer, operation)(views))


def difference(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


# ---- drrkit's own


def test_known_names_lead_to_adapters_and_others_are_refused() -> None:
    for name in PEERS:
        kind = load_peer(name)
        assert issubclass(kind, Peer) and set(kind.integral) >= set(kind.methods)
    with pytest.raises(ValueError, match="module:Class"):
        load_peer("nobody")


@pytest.mark.parametrize("method", Drrkit.methods)
def test_drrkits_adapter_gives_drrkits_images(method: str, scene: Scene) -> None:
    peer = adapter(Drrkit, method, scene)
    options = {"step": min(scene.volume.spacing)} if method == "trilinear" else {}
    truth = drrkit.render(
        scene.volume,
        scene.camera(SIZE),
        scene.poses("AP", 2),
        method=peer.integral[method],
        **options,
    )
    assert difference(answer(peer, scene, "AP"), truth[:, 0].numpy()) < 5e-4


def test_drrkits_gradients_are_those_of_its_images(scene: Scene) -> None:
    """Twists, voxels, double backward and adjoint against autograd on drrkit.render itself."""
    peer = adapter(Drrkit, "joseph", scene)
    camera, poses = scene.camera(SIZE), scene.poses("AP", 2)
    g = peer.views(camera, poses).cotangent.detach().requires_grad_()
    xi = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    values = scene.volume.values.clone().requires_grad_()
    moved = drrkit.perturb(poses, xi, volume_center(scene.volume))
    image = drrkit.render(replace(scene.volume, values=values), camera, moved)
    (twist,) = torch.autograd.grad(image, xi, g, create_graph=True)
    (voxels,) = torch.autograd.grad(image, values, g, retain_graph=True)
    (double,) = torch.autograd.grad((twist * twist_weights(2)).sum(), values)
    assert difference(answer(peer, scene, "AP", "pose"), twist.detach().numpy()) < 1e-5
    assert difference(answer(peer, scene, "AP", "volume"), voxels.numpy()) < 1e-6
    assert difference(answer(peer, scene, "AP", "adjoint"), voxels.numpy()) < 1e-6
    assert difference(answer(peer, scene, "AP", "double"), double.numpy()) < 1e-4
    assert not scene.volume.values.requires_grad


# ---- volumes along the world's axes


def test_an_upright_volume_is_the_same_body(scene: Scene) -> None:
    turned, flipped = upright(scene.volume)
    assert flipped == (1,) and torch.equal(turned.direction, torch.eye(3).double())
    camera, pose = scene.camera(SIZE), scene.poses("random", 1)
    images = [drrkit.render(v, camera, pose).numpy() for v in (scene.volume, turned)]
    assert difference(images[1], images[0]) < 1e-6
    oblique = drrkit.so3_exp(torch.tensor([0.1, 0.2, 0.3]).double())
    with pytest.raises(Cannot, match="along the world's axes"):
        upright(replace(scene.volume, direction=oblique))


# ---- tools that run on a CPU


@pytest.mark.io
@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of itk's bindings
def test_rtk_renders_and_backprojects_the_same_views(scene: Scene) -> None:
    kind = load_peer("itk-rtk")
    if kind.unavailable(CPU):
        pytest.skip(str(kind.unavailable(CPU)))
    peer, own = adapter(kind, "joseph", scene), adapter(Drrkit, "joseph", scene)
    for view in VIEWS:
        assert difference(answer(peer, scene, view), answer(own, scene, view)) < 1e-5
    # The filter survives being asked again.
    views = peer.views(scene.camera(SIZE), scene.poses("AP", 1))
    once, again = (peer.answer("forward", views, peer.forward(views)) for _ in range(2))
    assert np.array_equal(once, again)
    found = answer(peer, scene, "AP", "adjoint")[2:-2, 2:-2, 2:-2]
    assert difference(found, answer(own, scene, "AP", "adjoint")[2:-2, 2:-2, 2:-2]) < 1e-2


@pytest.mark.io
def test_plastimatch_renders_the_same_views_and_tells_its_time(scene: Scene) -> None:
    kind = load_peer("plastimatch")
    if kind.unavailable(CPU):
        pytest.skip(str(kind.unavailable(CPU)))
    own = adapter(Drrkit, "siddon", scene)
    peer = adapter(kind, "exact", scene)
    for view in VIEWS:
        assert difference(answer(peer, scene, view), answer(own, scene, view)) < 1e-4
    assert peer.seconds is not None and peer.seconds >= 0


# ---- tools that need a GPU: the geometry that they are given means the same rays


def rays_of(scene: Scene, view: str) -> tuple[np.ndarray, np.ndarray]:
    """Sources [B, 3] and pixel centres [B, rows, cols, 3] of two views, world mm."""
    frames = view_frames(scene.volume, scene.camera(SIZE), scene.poses(view, 2))
    row, col = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    source, origin, right, down = frames[:, :, None, None].unbind(1)
    pixels = origin + col[..., None] * right + row[..., None] * down
    world = scene.volume.index_to_world
    return world(source[:, 0, 0]).numpy(), world(pixels.reshape(-1, 3)).reshape(
        pixels.shape
    ).numpy()


@pytest.mark.parametrize("view", ["AP", "orbit"])
def test_leap_is_given_the_same_rays(
    view: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LEAP's modular beam: sources, detector centres, unit vectors of rows (upwards), columns."""
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "leapctype", leap_like(asked))
    cubic = in_air(synthetic((20, 40, 40), spacing=8.0).on_grid(24))
    peer = adapter(load_peer("leap"), "SF", cubic)
    views: Any = peer.views(cubic.camera(SIZE), cubic.poses(view, 2))
    sources, pixels = rays_of(cubic, view)
    centre = volume_center(cubic.volume).numpy()
    count, rows, cols, row_pitch, col_pitch, source, middle, up, right = asked["modular"]
    assert (count, rows, cols) == (2, SIZE, SIZE)
    np.testing.assert_allclose(source + centre, sources, atol=1e-3)
    steps = np.arange(SIZE) - (SIZE - 1) / 2
    for k in range(2):
        found = (
            middle[k]
            + row_pitch * steps[:, None, None] * up[k]
            + col_pitch * steps[None, :, None] * right[k]
        )
        np.testing.assert_allclose((found + centre)[::-1], pixels[k], atol=1e-3)
    nx, ny, nz = cubic.volume.shape_xyz
    assert asked["grid"][:3] == (nx, ny, nz)
    with pytest.raises(Cannot, match="zeros"):
        peer.answer("forward", views, torch.zeros(2, SIZE, SIZE))
    tall = adapter(load_peer("leap"), "SF", scene)
    with pytest.raises(Cannot, match="cubic"):
        tall.views(scene.camera(SIZE), scene.poses("AP", 1))


def leap_like(asked: dict[str, Any]) -> ModuleType:
    class Models:
        libprojectors = object()

        def set_log_error(self) -> None: ...

        def set_gpu(self, index: int) -> None:
            assert index == -1

        def set_modularbeam(self, *numbers: Any) -> None:
            asked["modular"] = numbers

        def set_volume(self, *numbers: Any) -> None:
            asked["grid"] = numbers

        def set_diameterFOV(self, diameter: float) -> None: ...

    module = ModuleType("leapctype")
    module.tomographicModels = Models  # type: ignore[attr-defined]
    return module
