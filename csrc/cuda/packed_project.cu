// Launches of the products that read a prepared volume.
#include "packed.cuh"

namespace drrkit {
namespace cuda {

namespace {

constexpr int kLanesOfFew = 8;

// Whether one lane a ray would leave much of the device idle: half of its threads, if it has 2048 a
// multiprocessor.
bool few(const Scene& scene) {
  int device = 0, multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) !=
          cudaSuccess)
    cudaGetLastError();
  return scene.n_views * scene.views.rays < int64_t(1024) * multiprocessors;
}

template <int kLanes>
const char* launch_textures(const ProjectParams& p, const Packed& packed, cudaStream_t stream) {
  const Tiles tiles = Sharing<kLanes>::tiles(p.scene);
  return launch(textures_kernel<kLanes>, tiles.blocks(), kPackedThreads, stream, p, packed.arrays,
                tiles);
}

template <class Voxel, class Index, int kLanes>
const char* launch_copy(const ProjectParams& p, const Packed& packed, cudaStream_t stream) {
  const Tiles tiles = Sharing<kLanes>::tiles(p.scene);
  return launch(copy_kernel<Voxel, Index, kLanes>, tiles.blocks(), kPackedThreads, stream, p,
                packed.arrays, tiles);
}

template <class Voxel, class Index>
const char* copy_lanes(const ProjectParams& p, const Packed& packed, cudaStream_t stream) {
  if (few(p.scene)) return launch_copy<Voxel, Index, kLanesOfFew>(p, packed, stream);
  return launch_copy<Voxel, Index, 1>(p, packed, stream);
}

template <class Voxel>
const char* copy_index(const ProjectParams& p, const Packed& packed, cudaStream_t stream) {
  if (small(p.scene.grid)) return copy_lanes<Voxel, int32_t>(p, packed, stream);
  return copy_lanes<Voxel, int64_t>(p, packed, stream);
}

}  // namespace

bool project_packed(const ProjectParams& p, const Packed& packed, void* stream,
                    const char** error) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (p.scene.method != Method::kJoseph || p.scene.voxel == Voxel::kFloat64) return false;
  if (!p.rays) {
    if (!packed.arrays.textures) return false;
    *error = few(p.scene) ? launch_textures<kLanesOfFew>(p, packed, s)
                          : launch_textures<1>(p, packed, s);
    return true;
  }
  if (!packed.arrays.copy) return false;
  switch (p.scene.voxel) {
    case Voxel::kFloat16: *error = copy_index<Half>(p, packed, s); break;
    case Voxel::kBFloat16: *error = copy_index<BFloat16>(p, packed, s); break;
    default: *error = copy_index<float>(p, packed, s); break;
  }
  return true;
}

}  // namespace cuda
}  // namespace drrkit
