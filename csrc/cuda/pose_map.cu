// The maps of poses on the GPU: one thread a view, so that a registration step launches three small
// kernels where the formulas in torch launch hundreds.
#include "kernels.h"

#include "launch.cuh"

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
  return launch(derivative ? map_poses_kernel<Map, Dual> : map_poses_kernel<Map, double>,
                dim3(blocks), dim3(kThreads), static_cast<cudaStream_t>(stream), params);
}

template const char* map_poses<Perturb>(const MapParams&, bool, void*);
template const char* map_poses<Frames>(const MapParams&, bool, void*);

}  // namespace cuda
}  // namespace drrkit
