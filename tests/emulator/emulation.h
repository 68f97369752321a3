// The emulator's own switches and counters, which no kernel sees.
#pragma once

#include <cuda_runtime.h>

namespace emulated {

struct Options {
  uint64_t seed = 0;       // not 0: blocks, and the threads of each, run in an order drawn from it
  bool backwards = false;  // or from the last to the first
  int multiprocessors = 132;  // what cudaDeviceGetAttribute tells
};
Options& options();

struct Counts {
  uint64_t launches = 0, blocks = 0;
  int64_t allocations = 0, arrays = 0, textures = 0, surfaces = 0;  // that exist now
};
Counts& counts();

// Makes the launch that runs now fail with this description.
std::nullptr_t stop(const char* description);

}  // namespace emulated
