// How every kernel is launched.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

namespace drrkit {
namespace cuda {

constexpr int kLogWarp = 5, kWarp = 1 << kLogWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// kernel<<<grid, block, 0, stream>>>(arguments...), written as a call: plain C++, which any
// compiler takes that has a cuda_runtime.h, and the error is this launch's own. Null on success,
// else CUDA's words, its sticky error cleared.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                   Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  const cudaError_t error =
      cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

// What CUDA takes: 2^31 - 1 blocks along x, 65535 along y and z.
constexpr int64_t kMostAlongX = 0x7fffffff, kMostAlongY = 65535;

inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A grid of at least so many blocks; y takes what x cannot. CudaKernels ask whether their thread
// counts.
inline dim3 linear_grid(int64_t blocks) {
  const int64_t along_y = quotient_up(blocks, kMostAlongX);
  return dim3(static_cast<unsigned>(quotient_up(blocks, along_y)), static_cast<unsigned>(along_y));
}
inline dim3 threads_grid(int64_t threads, int a_block) {
  return linear_grid(quotient_up(threads, a_block));
}
__device__ inline int64_t thread_of_grid() {
  return (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
}

// So many blocks for each view, whose number goes along y and z; again, at least.
inline dim3 views_grid(int64_t blocks, int64_t views) {
  const int64_t along_z = quotient_up(views, kMostAlongY);
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(quotient_up(views, along_z)),
              static_cast<unsigned>(along_z));
}
__device__ inline int64_t view_of_block() {
  return static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
}

// Of the current device; CUDA keeps it at hand, there is nothing to remember here.
inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

}  // namespace cuda
}  // namespace drrkit
