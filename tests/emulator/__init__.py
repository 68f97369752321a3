"""Runs the CUDA kernels of csrc/cuda on the CPU: the same sources, compiled with a C++ compiler.

`include/` holds a `cuda_runtime.h` whose kernels' threads are fibers (see launch.h there), so the
tests cover what would otherwise need a GPU: indexing, tiles that hang over, shuffles and barriers,
textures, atomics, errors. A kernel that deadlocks, misuses a collective or touches memory that is
not there fails its launch with a description. It cannot show speed, races between blocks that run
at the same time, and rounding to the last bit; `make device-arithmetic` runs the kernels' tests in
a build with the lines that only a GPU executes, contracted, at the largest errors PTX allows.

    ops = emulated_ops()                   the products, with the signatures of torch.ops.drrkit.*
    with emulated_ops().in_place(): ...    drrkit itself on them: project(), Projector, autograd
    emulated_ops().options(seed=3)         blocks and threads in an order drawn from the seed

Every .cu file of csrc/cuda and every .cpp file of this folder is compiled into one library; what
products.cpp does for the products, a file of its own can do for any other launcher.
"""

from __future__ import annotations

from .build import EmulatorBuildError, library
from .products import EmulatedOps, emulated_ops

__all__ = ["EmulatedOps", "EmulatorBuildError", "emulated_ops", "library"]
