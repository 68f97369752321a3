// Prepared volumes for ctypes. What throws returns an error's text instead, "no memory" for
// bad_alloc.
#include "../../csrc/cuda/packed.h"

#include <new>
#include <string>

#include "emulation.h"
#include "scene.h"

using namespace drrkit;

namespace {

std::string trouble;

template <class Body> const char* caught(const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::bad_alloc&) {
    trouble = "no memory";
  } catch (const std::exception& error) {
    trouble = error.what();
  }
  return trouble.c_str();
}

}  // namespace

extern "C" {

const char* emulated_packed_new(cuda::CudaPackedVolume** made, const int64_t* shape, int voxel,
                                int texel, const int32_t* bricks) {
  return caught([&] {
    *made = new cuda::CudaPackedVolume(0, {shape[0], shape[1], shape[2], shape[3], shape[4]},
                                       static_cast<VoxelType>(voxel), static_cast<VoxelType>(texel),
                                       {bricks[0], bricks[1], bricks[2]});
  });
}
void emulated_packed_delete(cuda::CudaPackedVolume* packed) { delete packed; }
int64_t emulated_packed_handle(const cuda::CudaPackedVolume* packed) { return packed->handle(); }
int64_t emulated_packed_uses(const cuda::CudaPackedVolume* packed) { return packed->uses(); }
int64_t emulated_packed_bytes(const cuda::CudaPackedVolume* packed) { return packed->bytes(); }

const char* emulated_packed_fill_texture(cuda::CudaPackedVolume* packed, int64_t image, int axis,
                                         const void* texels, void* stream) {
  return caught([&] { packed->fill_texture(image, axis, texels, stream); });
}
const char* emulated_packed_fill(cuda::CudaPackedVolume* packed, const float* scale,
                                 const void* copy, const Occupied* occupied,
                                 const uint8_t* distance, void* stream) {
  return caught([&] { packed->fill(scale, copy, occupied, distance, stream); });
}
void emulated_packed_publish(cuda::CudaPackedVolume* packed, const void* data, int64_t version,
                             bool textures) {
  packed->publish(data, version, textures);
}

// What the op's CUDA kernel does once it has its tensors: true if the handle served.
bool emulated_project_packed(const SceneNumbers* n, const double* geometry, const void* values,
                             int64_t version, int64_t handle, void* image, void* six, void* stream,
                             const char** error) {
  *error = nullptr;
  const PackedPtr packed = Handles::all().find(handle);
  if (!packed) return false;
  Origin now;
  now.data = values;
  now.version = version;
  now.device = 0;
  now.voxel = static_cast<VoxelType>(n->voxel);
  now.shape = {n->n_volumes, n->n_channels, n->nz, n->ny, n->nx};
  if (!(now == packed->origin)) return false;
  ++*packed->uses;
  const ProjectParams p = {scene_of(*n, geometry), values, image, six, packed->empty};
  return cuda::project_packed(p, packed, stream, error);
}
}
