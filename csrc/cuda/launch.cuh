// How every kernel is launched.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace drrkit {
namespace cuda {

// kernel<<<grid, block, 0, stream>>>(arguments...), written as a call: plain C++, which any
// compiler takes that has a cuda_runtime.h, and the error is this launch's own. Null on success,
// else CUDA's words; a failure is not left behind for whoever asks for the last error next.
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

}  // namespace cuda
}  // namespace drrkit
