// The maps of poses on the GPU: one thread a view, so that a registration step launches three small
// kernels where the formulas in torch launch hundreds.
#include <cuda_runtime.h>

#include "kernels.h"

namespace drrkit {
namespace cuda {

namespace {

constexpr int kThreads = 64;

template <class Map, class S> __global__ void map_poses_kernel(MapParams params) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (b < params.n_views) Map::template view<S>(params, b);
}

}  // namespace

template <class Map> const char* map_poses(const MapParams& params, bool derivative, void* stream) {
  const unsigned blocks = static_cast<unsigned>((params.n_views + kThreads - 1) / kThreads);
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (derivative)
    map_poses_kernel<Map, Dual><<<blocks, kThreads, 0, s>>>(params);
  else
    map_poses_kernel<Map, double><<<blocks, kThreads, 0, s>>>(params);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template const char* map_poses<Perturb>(const MapParams&, bool, void*);
template const char* map_poses<Frames>(const MapParams&, bool, void*);

}  // namespace cuda
}  // namespace drrkit
