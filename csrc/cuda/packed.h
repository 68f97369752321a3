// Prepared volumes in device memory, and the products that read them. No torch and no CUDA headers
// in here.
#pragma once

#include "../packed/handles.h"

namespace drrkit {
namespace cuda {

class DeviceArrays;

// What one volume tensor [N, C, nz, ny, nx] was prepared to: layered 2D textures for every dominant
// axis (a layer a plane, the two other axes ascending as the texture's x and y), a copy with x
// slowest, and the bricks. Shapes are fixed, contents can be filled again in place, so that CUDA
// graphs that read them see the new ones. Throws std::bad_alloc where the device has no memory
// left, std::runtime_error with CUDA's words else. Copies are asynchronous on the stream they are
// given.
class CudaPackedVolume {
 public:
  CudaPackedVolume(int device, const std::array<int64_t, 5>& shape, VoxelType voxel,
                   VoxelType texel, const std::array<int32_t, 3>& bricks);
  ~CudaPackedVolume();
  CudaPackedVolume(const CudaPackedVolume&) = delete;
  CudaPackedVolume& operator=(const CudaPackedVolume&) = delete;

  int64_t handle() const { return handle_.number(); }
  int64_t uses() const { return handle_.uses(); }
  int64_t bytes() const;

  // texels: [layers, rows, columns] of the image (volume, channel) for one dominant axis, device
  // memory.
  void fill_texture(int64_t image, int axis, const void* texels, void* stream);
  // scale: [N C]; copy: [N, C, nx, nz, ny] voxels; occupied: [N]; distance: [N, bricks z, y, x].
  void fill(const float* scale, const void* copy, const Occupied* occupied, const uint8_t* distance,
            void* stream);
  // Lets ops find it. textures false: the values are such that the texels cannot hold them.
  void publish(const void* data, int64_t version, bool textures);

 private:
  Handle handle_;
  Origin origin_;
  std::array<int32_t, 3> bricks_;
  std::shared_ptr<DeviceArrays> arrays_;
};

// P with Joseph's method from a prepared volume, images by textures, derivatives by the values
// themselves. False where it holds nothing for this product. `error` as of the other launchers.
bool project_packed(const ProjectParams& params, const PackedPtr& packed, void* stream,
                    const char** error);

// A launch that reads `packed` stands between these two. It waits for a filling on another stream,
// and what it reads is neither filled anew nor freed before it has ended. Where a graph is captured
// on the stream, the graph, and whatever is instantiated from it, keeps `packed`; replays are
// ordered with fillings by their streams alone.
const char* begin_read(const PackedPtr& packed, void* stream);
const char* end_read(const PackedPtr& packed, void* stream);

}  // namespace cuda
}  // namespace drrkit
