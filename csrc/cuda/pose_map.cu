// The maps of poses on the GPU: one thread per view, so that a registration step launches three
// small kernels where the formulas in torch launch hundreds.
#include "kernels.h"

#include "launch.cuh"

namespace drrkit {
namespace cuda {

namespace {

constexpr int kMapThreads = 64;

template <class Map, class S> __global__ void map_poses_kernel(MapParams params) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kMapThreads + threadIdx.x;
  if (b < params.n_views) Map::template view<S>(params, b);
}

}  // namespace

template <class Map> const char* map_poses(const MapParams& params, void* stream) {
  const unsigned blocks = static_cast<unsigned>((params.n_views + kMapThreads - 1) / kMapThreads);
  return launch(params.derivative ? map_poses_kernel<Map, Dual> : map_poses_kernel<Map, double>,
                dim3(blocks), dim3(kMapThreads), static_cast<cudaStream_t>(stream), params);
}

template const char* map_poses<Perturb>(const MapParams&, void*);
template const char* map_poses<Frames>(const MapParams&, void*);

}  // namespace cuda
}  // namespace drrkit
