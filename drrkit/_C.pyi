"""What csrc/bindings.cpp defines. Tensors come as addresses; private."""

from collections.abc import Sequence

has_cuda: bool

# What both sides agree on; the enums and constants of csrc.
METHODS: tuple[str, ...]
BEAMS: tuple[str, ...]
VOXELS: tuple[str, ...]
BEAM_SHIFT: int
LINE: int
FOOT: int
EXTEND: int
BRICK: int
OCCUPIED: int

def cpu_capability() -> str: ...

class PackedVolume:
    def __init__(self, shape: Sequence[int], voxel: int, bricks: Sequence[int]) -> None: ...
    @property
    def handle(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def uses(self) -> int: ...
    def publish(
        self,
        data: int,
        version: int,
        occupied: int,
        distance: int,
        texels: int,  # 0: none
        scale: int,
        texel: int,
    ) -> None: ...

class CudaPackedVolume:  # where has_cuda
    def __init__(
        self, device: int, shape: Sequence[int], voxel: int, texel: int, bricks: Sequence[int]
    ) -> None: ...
    @property
    def handle(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def uses(self) -> int: ...
    def fill_texture(self, image: int, axis: int, texels: int, stream: int) -> None: ...
    def fill(self, scale: int, copy: int, occupied: int, distance: int, stream: int) -> None: ...
    def publish(self, data: int, version: int, textures: bool) -> None: ...
