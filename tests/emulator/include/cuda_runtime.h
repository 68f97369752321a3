// A CUDA runtime that runs kernels on the CPU, for the tests alone. Put this folder first on the
// include path and compile a .cu file as C++20: the very source that nvcc compiles then runs here,
// threads of a block as fibers of one thread, blocks one after the other. Offers what csrc/cuda
// uses, and refuses (at compile time, or with CUDA's error codes) what a GPU would refuse.
//
// Not offered: dynamic shared memory, __constant__ memory, cooperative groups, streams that run
// side by side (everything is finished when a call returns), graphs that can be launched.
#pragma once

#include "emulated/arithmetic.h"
#include "emulated/capture.h"
#include "emulated/errors.h"
#include "emulated/launch.h"
#include "emulated/memory.h"
#include "emulated/texture.h"
#include "emulated/vectors.h"
