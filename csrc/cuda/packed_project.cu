// Launches of the products that read a prepared volume.
#include "packed.cuh"

namespace drrkit {
namespace cuda {

namespace {

const char* launch_textures(const ProjectParams& p, const Packed& packed, cudaStream_t stream) {
  const Tiles tiles = Tiles::of(p.scene);
  return launch(textures_kernel, tiles.grid(), kThreads, stream, p, packed.arrays, tiles);
}

template <class Voxel>
const char* launch_copy(const ProjectParams& p, const Packed& packed, cudaStream_t stream) {
  const Tiles tiles = Tiles::of(p.scene);
  if (small(p.scene.grid))
    return launch(copy_kernel<Voxel, int32_t>, tiles.grid(), kThreads, stream, p, packed.arrays,
                  tiles);
  return launch(copy_kernel<Voxel, int64_t>, tiles.grid(), kThreads, stream, p, packed.arrays,
                tiles);
}

}  // namespace

bool project_packed(const ProjectParams& p, const Packed& packed, void* stream,
                    const char** error) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (p.scene.method != Method::kJoseph || p.scene.voxel == Voxel::kFloat64) return false;
  if (!p.rays) {
    if (!packed.arrays.textures) return false;
    *error = launch_textures(p, packed, s);
    return true;
  }
  if (!packed.arrays.copy) return false;
  switch (p.scene.voxel) {
    case Voxel::kFloat16: *error = launch_copy<Half>(p, packed, s); break;
    case Voxel::kBFloat16: *error = launch_copy<BFloat16>(p, packed, s); break;
    default: *error = launch_copy<float>(p, packed, s); break;
  }
  return true;
}

}  // namespace cuda
}  // namespace drrkit
