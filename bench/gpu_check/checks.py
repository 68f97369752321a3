"""The kernels against the CPU's, and what graphs and streams may do to prepared volumes."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import torch
from torch import Tensor

import drrkit
from drrkit._native import ops as _ops
from tests.emulator import test_kernels as kernels
from tests.emulator import test_pack as packs
from tests.support.scenes import SPACING, endpoints, oblique, rand, six_views

from .machines import Emulated, Findings, Gpu

SUMS_IN_ANY_ORDER = ("adjoint", "tangent's adjoint")  # where deterministic algorithms are off


def smoke(machine: Gpu | Emulated) -> Findings:
    """Every product twice, from poisoned memory; prepared volumes; large volumes."""
    findings = Findings()
    _products(machine, findings)
    _prepared(machine, findings)
    _large(machine, findings)
    return findings


def _products(machine: Gpu | Emulated, findings: Findings) -> None:
    dtypes = (torch.float32,) if machine.dry else _ops.VOXELS
    frames, along = oblique(kernels.VIEWS), 0.1 * oblique(kernels.VIEWS, seed=5)
    geometries = {
        "frames": (frames, along),
        "rays": tuple(endpoints(f, kernels.SIZE, "cone") for f in (frames, along)),
    }
    for method in kernels.METHODS:
        spec = kernels.spec_of(method)
        for dtype in dtypes:
            for kind, geometry in geometries.items():
                cpu = (kernels.volume(dtype), *geometry)
                expected = kernels.products(*cpu, spec)
                for fixed in (True, False):
                    name = f"{method} {dtype} {kind}{' deterministic' if fixed else ''}"
                    with findings.case(name), machine.here():
                        torch.use_deterministic_algorithms(fixed, warn_only=True)
                        here = [machine.put(t) for t in cpu]
                        first = kernels.products(*here, spec)
                        machine.poison(list(first.values()))
                        second = kernels.products(*here, spec)
                        for product, value in first.items():
                            kernels.agree(value.cpu(), expected[product], product)
                            if fixed or product not in SUMS_IN_ANY_ORDER:
                                assert torch.equal(value, second[product]), f"{product} repeats"
                torch.use_deterministic_algorithms(False)


def _prepared(machine: Gpu | Emulated, findings: Findings) -> None:
    values, frames = packs.smooth(), packs.all_around(pitch=1.7)
    expected, six = packs.exact(values, frames, packs.spec_of())
    for kind in packs.KINDS:
        with findings.case(f"prepared {kind}"), machine.here():
            here = machine.put(values), machine.put(frames), packs.spec_of(), kind
            image = packs.packed(*here)[0]
            assert torch.equal(image, packs.packed(*here)[0]), "the image repeats"
            for view in range(len(frames)):
                error = packs.distance(image[view].cpu(), expected[view])
                assert error <= 5e-4, f"view {view}: relative L2 {error:.2e}"
            found = packs.packed(*here, rays=True)[1].cpu()
            assert packs.distance(found, six) <= 1e-5, "six-vectors"


def _large(machine: Gpu | Emulated, findings: Findings) -> None:
    """A volume as large as a CT, and one whose voxels no 32-bit integer counts."""
    shape, size = ((14, 40, 41), (4, 5)) if machine.dry else ((133, 512, 512), (48, 48))
    spec = _ops.Spec(shape, size, SPACING, _ops.flags_of("joseph", "cone"), 0.4)
    values = rand(1, 1, *shape).float()
    frames = six_views(shape=shape, size=size, pitch=0.7 * max(shape) / max(size))
    with findings.case(f"volume of {shape}"), machine.here():
        found, _ = _ops.project(machine.put(values), machine.put(frames), False, spec)
        by_texture, _ = packs.packed(
            machine.put(values[0, 0]), machine.put(frames), spec, "float32"
        )
    with findings.case(f"volume of {shape} agrees"):
        expected, _ = _ops.project(values, frames, False, spec)
        assert packs.distance(found.cpu(), expected.double()) <= 1e-5, "values"
        assert packs.distance(by_texture.cpu(), expected.double()) <= 5e-4, "textures"
    side = 13 if machine.dry else 1300  # 1300^3 > 2^31
    if not machine.dry and torch.cuda.mem_get_info()[0] < 24 * 2**30:
        print("skipped: the volume past 2^31 voxels needs 24 GiB")
        return
    spec = _ops.Spec((side,) * 3, (1, 1), (1.0,) * 3, _ops.flags_of("joseph", "parallel"), 0.4)
    with findings.case(f"{side}^3 voxels"), machine.here():
        ones = machine.put(torch.ones(1)).half().expand(1, 1, *spec.grid).contiguous()
        frames = machine.put(_through_the_last_voxels(side))
        image, _ = _ops.project(ones, frames, False, spec)
        assert torch.allclose(image.cpu(), torch.tensor(float(side))), image.flatten().tolist()
        del ones
        volume = _ops.backproject(image / side, frames, None, 1, spec)
        total = float(volume.sum(dtype=torch.float64))
        assert abs(total - 3 * side) <= 1e-3 * side, total


def _through_the_last_voxels(side: int) -> Tensor:
    """Frames [3, 4, 3] for one parallel ray along each axis, through the far corner's voxels."""
    frames = torch.full((3, 4, 3), side - 2.5, dtype=torch.float64)
    frames[:, 2:] = 0.0
    for axis in range(3):
        frames[axis, 0, axis], frames[axis, 1, axis] = -2.0, side + 1.0
        frames[axis, 2, (axis + 1) % 3] = frames[axis, 3, (axis + 2) % 3] = 1.0
    return frames


class Scene:
    """A Projector of a small volume with a pose that wants a derivative."""

    def __init__(self, machine: Gpu | Emulated) -> None:
        volume = drrkit.Volume(machine.put(packs.smooth()), SPACING, unit="mu")
        self.project = drrkit.Projector(volume, drrkit.CArm(200.0, packs.SIZE, pixel_spacing=1.9))
        self.pose = drrkit.view_carm(volume, 120.0, 0.4, -0.3)
        self.center = drrkit.volume_center(volume)
        self.xi = torch.zeros(1, 6, dtype=torch.float64, device=self.pose.device)
        values = torch.nn.Parameter(volume.values.clone())
        self.of_values = drrkit.Projector(replace(volume, values=values), self.project.camera)

    def forward(self) -> Tensor:
        return self.project(self.pose)

    def pose_step(self) -> Tensor:
        xi = self.xi.requires_grad_()
        image = self.project(drrkit.perturb(self.pose, xi, self.center))
        return torch.autograd.grad(image.square().sum(), xi)[0]

    def adjoint(self) -> Tensor:
        image = self.of_values(self.pose)
        return torch.autograd.grad(image.square().sum(), self.of_values.values)[0]


def streams(machine: Gpu | Emulated) -> Findings:
    """Graphs of three steps, Projectors let go during a capture and after it, fillings."""
    findings = Findings()
    for name in ("forward", "pose_step", "adjoint"):
        with findings.case(f"captured {name}"), machine.here():
            step = getattr(Scene(machine), name)
            expected = step().clone()
            replay, result = machine.capture(step)
            replay()
            machine.wait()
            largest = float((result - expected).abs().max() / expected.abs().max())
            assert largest <= 1e-5, f"off by {largest:.1e} of the largest"
    for who in ("the same thread", "another thread"):
        with findings.case(f"a Projector let go during a capture by {who}"), machine.here():
            _let_go(machine, other_thread=who != "the same thread")
    with findings.case("a replay after the Projector is gone"), machine.here():
        scene = Scene(machine)
        expected = scene.forward().clone()
        replay, result = machine.capture(scene.forward)
        if not machine.dry:
            del scene
            gc.collect()
        Scene(machine).forward()  # whoever comes next tidies up, and may take the memory
        replay()
        machine.wait()
        assert torch.equal(result, expected)
    with findings.case("fillings and launches on three streams"), machine.here():
        _fill_beside(machine)
    return findings


def _let_go(machine: Gpu | Emulated, other_thread: bool) -> None:
    scene, others = Scene(machine), [Scene(machine)]
    expected = scene.forward().clone()
    others[0].forward()

    def let_go() -> None:
        others.clear()
        gc.collect()

    def meanwhile() -> None:
        if other_thread:
            thread = threading.Thread(target=let_go)
            thread.start()
            thread.join()
        else:
            let_go()

    replay, result = machine.capture(scene.forward, meanwhile)
    replay()
    machine.wait()
    assert torch.equal(result, expected)


def _fill_beside(machine: Gpu | Emulated) -> None:
    scene = Scene(machine)
    base = scene.forward().clone()
    machine.wait()
    for factor in (2.0, 4.0, 8.0):
        before, filling, after = (machine.stream() for _ in range(3))
        with machine.on(before):
            old = scene.forward()
        with machine.on(filling):
            scene.project.values.mul_(2)
            scene.project.prepare()
        with machine.on(after):
            new = scene.forward()
        for stream in (after, filling, before):
            machine.wait(stream)
        assert torch.equal(old, factor / 2 * base), f"the image before filling {factor}"
        assert torch.equal(new, factor * base), f"the image after filling {factor}"
