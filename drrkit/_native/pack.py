"""Prepared volumes: what a Projector derives once from values that do not change.

For images without derivatives, the values stored in another way: on CUDA, for Joseph's method, as
layered 2D textures, one set for each dominant axis (one layer per plane, one bilinear fetch per
plane, zero outside the volume), on the CPU, where asked for, as they lie. For images with
derivatives, which stay exact: on CUDA a copy with x slowest. On both devices: which bricks of 8 x 8
x 8 cells are empty, and the box that holds every voxel that is not zero, so that marches skip the
rest (csrc/packed/empty_space.h).

All of it lives in objects of csrc (drrkit._C.PackedVolume, CudaPackedVolume), owned by a `Pack` and
named by a handle, an integer. An op gets the values and a handle, and uses what the handle names
only if that was made from this memory in this version: a handle may be stale, freed or another
process's, and the image is still that of the values. An address identifies the values because the
memory that something was made from is kept alive with it.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from drrkit import _C
from drrkit._native.ops import VOXELS

KINDS = ("auto", "int16", "float16", "float32")
CUDA_METHODS = ("joseph",)
"""The methods whose marches on CUDA read what is prepared; on the CPU all of them do."""

MOST_LAYERS = 2048  # of layered textures, which bounds the other sides as well
BRICK = _C.BRICK  # cells per side
FARTHEST = 15  # bricks: distances beyond are not told apart
SPARSE = {"cpu": 0.3, "cuda": 0.55}
"""The share of empty bricks from which it pays to look them up. Measured on a CPU; on CUDA
estimated from the branch's 354 instructions for runs of about 8 samples, not measured."""


class Occupancy(NamedTuple):
    """Where volumes are zero; the memory layout of csrc/packed/empty_space.h."""

    occupied: Tensor  # [N, 8] int32: first and last voxel x, y, z that is not zero; sparse; unused
    distance: Tensor  # [N, bricks z, y, x] uint8: to the nearest brick that is not empty


def brick_counts(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Bricks along each axis: cells are counted from -1 to n - 1."""
    return tuple(n // BRICK + 1 for n in shape)


def occupancy(values: Tensor) -> Occupancy:
    """Where volumes [N, C, D, H, W] are zero in all their channels. Nothing waits for a GPU."""
    filled = values[:, 0] != 0
    for channel in values.unbind(1)[1:]:
        filled |= channel != 0
    by_z = _into_bricks(filled, 1)
    bricks = _into_bricks(_into_bricks(by_z, 2), 3)
    extents = [  # x, y, z
        _extent(by_z.any(1).any(1)),
        _extent(by_z.any(1).any(2)),
        _extent(filled.view(torch.uint8).flatten(2).amax(2).bool()),  # any() takes ten times longer
    ]
    lo, hi = (torch.stack(ends, 1) for ends in zip(*extents, strict=True))
    last = lo.new_tensor([n - 1 for n in brick_counts(values.shape[:1:-1])])
    in_box = torch.minimum((hi + 2) // BRICK, last) - ((lo - 1) // BRICK).clamp(min=0) + 1
    boxed = in_box.clamp(min=0).double().prod(1)
    sparse = bricks.flatten(1).sum(1) < (1 - SPARSE["cuda" if _is_cuda(values) else "cpu"]) * boxed
    rest = lo.new_zeros(len(lo), _C.OCCUPIED - 6)
    rest[:, 0] = sparse
    return Occupancy(torch.cat((lo, hi, rest), 1).to(torch.int32), _distance(bricks))


def _into_bricks(filled: Tensor, axis: int) -> Tensor:
    """Whether a brick's voxels along one axis, 8 B - 2 ... 8 B + 8, are filled anywhere."""
    (count,) = brick_counts((filled.shape[axis],))
    shape = list(filled.shape)
    shape[axis] = BRICK * count + 3
    padded = filled.new_zeros(shape)
    padded.narrow(axis, 2, filled.shape[axis]).copy_(filled)
    last = BRICK * (count - 1) + 1
    every_eighth = (slice(None),) * axis + (slice(None, None, BRICK),)
    result = padded.narrow(axis, 0, last)[every_eighth].clone()
    for first in range(1, BRICK + 3):
        result |= padded.narrow(axis, first, last)[every_eighth]
    return result


def _extent(filled: Tensor) -> tuple[Tensor, Tensor]:
    """First and last true of each row [N, n]; where there is none, the first after the last."""
    far = 1 << 30
    some, numbers = filled.any(1), filled.to(torch.uint8)
    first = numbers.argmax(1)
    last = filled.shape[1] - 1 - numbers.flip(1).argmax(1)
    return torch.where(some, first, far), torch.where(some, last, -far)


def _distance(bricks: Tensor) -> Tensor:
    """Steps of a chess king from each brick to the nearest true one, FARTHEST at most."""
    reached, distance = bricks.clone(), torch.zeros_like(bricks, dtype=torch.uint8)
    for _ in range(FARTHEST):
        distance += ~reached
        for axis in (1, 2, 3):
            before = reached.clone()
            n = reached.shape[axis] - 1
            reached.narrow(axis, 1, n).logical_or_(before.narrow(axis, 0, n))
            reached.narrow(axis, 0, n).logical_or_(before.narrow(axis, 1, n))
    return distance


def quantised(values: Tensor, kind: str, peak: Tensor) -> tuple[Tensor, Tensor]:
    """Texels of volumes [N, C, D, H, W] and what one that reads 1 is worth [N, C] float32.

    Zero stays zero, as the border of a texture is. peak [N, C]: largest magnitudes.

    int16    steps of peak / 32767, which reads 1: off by half a step, 1.5e-5 of the peak, at most
    float16  scaled by a power of two: off by 2^-11 of the value, exact for values in float16
    float32  as they are
    """
    peak = peak.float()
    each = peak[:, :, None, None, None]
    if kind == "int16":
        shares = values.float() / each.where(each > 0, 1.0)
        return shares.mul_(32767).round_().to(torch.int16), peak
    if kind == "float16":
        exponent = (15 - torch.frexp(peak).exponent).clamp(max=126)
        scaled = torch.ldexp(values.float(), exponent[:, :, None, None, None])
        return scaled.half(), torch.ldexp(torch.ones_like(peak), -exponent)
    return values.float().contiguous(), torch.ones_like(peak)


def _texels(values: Tensor, kind: str) -> tuple[Tensor, Tensor, bool]:
    """`quantised` of volumes [N, C, D, H, W], and whether the volumes are finite: texels are."""
    least, largest = torch.aminmax(values.flatten(2), dim=2)
    peak = torch.maximum(-least, largest)
    finite = bool(torch.isfinite(peak).all())
    return *quantised(values, kind, peak if finite else torch.ones_like(peak)), finite


def in_layers(volume: Tensor, axis: int) -> Tensor:
    """[D, H, W] as the layers of one dominant axis (0: x): [layer, second lateral, first]."""
    return volume.permute(((2, 0, 1), (1, 0, 2), (0, 1, 2))[axis]).contiguous()


def _shape(values: Tensor) -> tuple[int, ...]:
    return ((1, 1) + tuple(values.shape))[-5:]


class _OnCpu:
    """Empty bricks, and where a kind is named that the values are not of, texels as they lie."""

    def __init__(self, values: Tensor, kind: str) -> None:
        self.kind, shape = kind, _shape(values)
        bricks = brick_counts(shape[:1:-1])
        self.native = _C.PackedVolume(shape, VOXELS.index(values.dtype), bricks)

    def fill(self, values: Tensor, version: int) -> None:
        volumes = values.reshape(_shape(values))
        where, texel, finite = [t.contiguous() for t in occupancy(volumes)], 0, False
        if self.kind != "auto" and values.dtype != getattr(torch, self.kind):
            texel = _C.VOXELS.index(self.kind)
            texels, scale, finite = _texels(volumes, self.kind)
            where += [texels, scale / 32767 if self.kind == "int16" else scale]
        addresses = [t.data_ptr() for t in (where if finite else where[:2])]
        self.native.publish(values.data_ptr(), version, *(addresses + [0, 0])[:4], texel)


class _OnCuda:
    """Textures, the copy with x slowest, and empty bricks, 3 t + v bytes per voxel: t of a texel
    (2, 2 or 4), v of a value. All of it at once: which axis a frame needs only the GPU knows.
    """

    def __init__(self, values: Tensor, kind: str) -> None:
        self.kind, shape = kind, _shape(values)
        bricks = brick_counts(shape[:1:-1])
        voxel, texel = VOXELS.index(values.dtype), _C.VOXELS.index(kind)
        device = values.device.index or 0
        self.native = _C.CudaPackedVolume(device, shape, voxel, texel, bricks)

    def fill(self, values: Tensor, version: int) -> None:
        """Fill again in place: a CUDA graph that reads this memory sees the new values."""
        volumes = values.reshape(_shape(values))
        stream = _stream(values.device)
        texels, scale, finite = _texels(volumes, self.kind)
        if finite:
            for image, volume in enumerate(texels.flatten(0, 1)):
                for axis in range(3):
                    layers = in_layers(volume, axis)
                    self.native.fill_texture(image, axis, layers.data_ptr(), stream)
        del texels
        copy = volumes.permute(0, 1, 4, 2, 3).contiguous()
        where = [t.contiguous() for t in (scale, copy, *occupancy(volumes))]
        self.native.fill(*(t.data_ptr() for t in where), stream)
        self.native.publish(values.data_ptr(), version, finite)


def _is_cuda(values: Tensor) -> bool:
    return values.is_cuda


def _is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _on_cuda(values: Tensor, kind: str) -> _OnCuda:
    try:
        return _OnCuda(values, kind)
    except MemoryError:  # torch may keep memory that it does not use: textures are not torch's
        torch.cuda.empty_cache()
        return _OnCuda(values, kind)


def _free_bytes(device: torch.device) -> int:
    """Of a GPU's memory, what torch keeps without using it included."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


class Prepared:
    """What was made from one tensor; Projectors of the same tensor share it."""

    def __init__(self, values: Tensor, on_device: _OnCpu | _OnCuda) -> None:
        self.values = values
        self.memory = values.detach()  # keeps the address taken
        self.address = values.data_ptr()
        self.on_device = on_device
        self.version = -1  # nothing is in it yet

    @property
    def handle(self) -> int:
        return self.on_device.native.handle

    @property
    def bytes(self) -> int:
        return self.on_device.native.bytes

    @property
    def uses(self) -> int:
        """How many ops went by it."""
        return self.on_device.native.uses

    def is_of(self, values: Tensor) -> bool:
        """Whether `values` is the tensor, in the memory that it had."""
        return values is self.values and values.data_ptr() == self.address

    def refresh(self) -> None:
        """Take in what has been written into the tensor since."""
        version = self.values._version
        if version != self.version:
            with torch.no_grad():
                self.on_device.fill(self.memory, version)
            self.version = version


_shared: weakref.WeakValueDictionary[tuple[int, str], Prepared] = weakref.WeakValueDictionary()
_building = threading.RLock()


class Pack:
    """The `pack` of a Projector: what it wants prepared, and what there is."""

    def __init__(self, kind: str | None, method: str) -> None:
        if kind is not None and kind not in KINDS:
            choices = ", ".join(repr(k) for k in KINDS)
            raise ValueError(f"pack: expected one of {choices} or None, got {kind!r}")
        self.kind, self.method = kind, method
        self.prepared: Prepared | None = None
        self.handle = 0  # what `prepared` is called, for compiled code
        self._refused: weakref.ref[Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Pack, (self.kind, self.method)  # a copy prepares for itself

    def handle_of(self, values: Tensor) -> int:
        """The handle to render `values` with, prepared where need be; 0: the values alone.

        Raises ValueError where a kind that was asked for by name cannot be had.
        """
        if self.kind is None or values.requires_grad:
            return 0
        if torch.compiler.is_compiling():
            return self.handle  # constant in the graph: the op looks whether it fits
        prepared = self.prepared
        if prepared is not None and prepared.is_of(values) and prepared.version == values._version:
            return self.handle
        if self._refused is not None and self._refused() is values:
            return 0
        return self.prepare(values)

    def prepare(self, values: Tensor) -> int:
        """Prepare `values` as they are now, unless they take part in a derivative."""
        if self.kind is None or not _is_constant(values):
            return 0
        with _building:
            error = self._attempt(values)
            if error is not None:
                self.clear()
                if self.kind != "auto":
                    raise error
                self._refused = weakref.ref(values)
        return self.handle

    def follow(self, values: Tensor) -> None:
        """Prepare new values, or moved ones on their new device, if it can hold them."""
        if self.prepared is None or not self.prepared.is_of(values):
            self.clear()
        self.prepare(values)

    def renew(self, values: Tensor) -> None:
        """Prepare `values` again, even if no change was counted."""
        self._refused = None
        if self.prepared is not None:
            self.prepared.version = -1
        self.prepare(values)

    def clear(self) -> None:
        """Drop what is prepared."""
        self.prepared, self.handle, self._refused = None, 0, None

    def _attempt(self, values: Tensor) -> Exception | None:
        reason = self._obstacle(values)
        if reason is not None:
            return ValueError(f"pack: {self.kind!r} {reason}")
        try:
            if self.prepared is None or not self.prepared.is_of(values):
                self.clear()
                self.prepared = self._shared_or_made(values)
            self.prepared.refresh()
        except (MemoryError, torch.OutOfMemoryError) as full:
            return torch.OutOfMemoryError(f"pack: no memory left for {self.kind!r} ({full})")
        self.handle = self.prepared.handle
        return None

    def _shared_or_made(self, values: Tensor) -> Prepared:
        kind = str(self.kind)
        if kind == "auto" and _is_cuda(values):
            kind = "float16" if values.dtype == torch.float16 else "int16"
        key = (values.data_ptr(), kind)
        prepared = _shared.get(key)
        if prepared is None or not prepared.is_of(values):
            on_device = _on_cuda(values, kind) if _is_cuda(values) else _OnCpu(values, kind)
            prepared = _shared[key] = Prepared(values, on_device)
        return prepared

    def _obstacle(self, values: Tensor) -> str | None:
        """Why nothing can be prepared, to be read after the kind; None if it can."""
        if not values.is_contiguous():
            return f"needs values that are contiguous, got strides {values.stride()}"
        if values.dtype == torch.float64 and (self.kind != "auto" or _is_cuda(values)):
            return "is float32 at best, and float64 volumes are projected in float64"
        if not _is_cuda(values):
            return None
        if self.method not in CUDA_METHODS:
            return (
                f"serves method 'joseph' only on CUDA, got {self.method!r}; 'auto' prepares what "
                "the method can use"
            )
        sides = values.shape[-3:]
        if max(sides) > MOST_LAYERS:
            return f"needs sides of at most {MOST_LAYERS} voxels, got {tuple(sides)}"
        held = self.prepared is not None and self.prepared.is_of(values)
        if self.kind == "auto" and not held:
            needed = (3 * 2 + values.element_size()) * values.numel()
            if 2 * needed > _free_bytes(values.device):
                return "would take more than half of the memory that is free"
        return None


def _is_constant(values: Tensor) -> bool:
    """Whether this is a plain tensor that no derivative, transform or capture looks at."""
    if type(values) not in (Tensor, nn.Parameter) or values.device.type not in ("cpu", "cuda"):
        return False
    if values.requires_grad or values.is_inference() or values.numel() == 0:
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack() or values.layout != torch.strided:
        return False
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(values).tangent is not None:
        return False
    return not (_is_cuda(values) and _is_capturing())
