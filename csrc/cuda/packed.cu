// The device memory of prepared volumes, and how long it lives.
#include "packed.h"

#include <cuda_runtime.h>

#include <new>
#include <stdexcept>
#include <string>

namespace drrkit {
namespace cuda {

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears CUDA's sticky error
  if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string("drrkit: ") + what + ": " + cudaGetErrorString(error));
}

// Makes a device the current one of this thread for a while.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess || cudaSetDevice(device) != cudaSuccess)
      cudaGetLastError();
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

// Lets this thread allocate and free while a graph is being captured, in this thread or another.
class BesideCapture {
 public:
  BesideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCapture(const BesideCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

int64_t voxel_bytes(VoxelType voxel) {
  return voxel == VoxelType::kFloat64 ? 8 : voxel == VoxelType::kFloat32 ? 4 : 2;
}

cudaChannelFormatDesc channel_of(Texel texel) {
  switch (texel) {
    case Texel::kInt16: return cudaCreateChannelDesc(16, 0, 0, 0, cudaChannelFormatKindSigned);
    case Texel::kFloat16: return cudaCreateChannelDesc(16, 0, 0, 0, cudaChannelFormatKindFloat);
    default: return cudaCreateChannelDesc(32, 0, 0, 0, cudaChannelFormatKindFloat);
  }
}

// What a graph kept and no longer needs. CUDA calls back from a thread that must not call CUDA, so
// it waits here until the next packed volume is made or let go.
class Graveyard {
 public:
  static Graveyard& one() {
    static Graveyard* graveyard = new Graveyard;
    return *graveyard;
  }
  void add(PackedPtr packed) {
    std::lock_guard<std::mutex> lock(mutex_);
    dead_.push_back(std::move(packed));
  }
  void clear() {
    std::vector<PackedPtr> dead;
    std::lock_guard<std::mutex> lock(mutex_);
    dead.swap(dead_);
  }

 private:
  std::mutex mutex_;
  std::vector<PackedPtr> dead_;
};

void graph_is_gone(void* kept) {
  PackedPtr* packed = static_cast<PackedPtr*>(kept);
  Graveyard::one().add(std::move(*packed));
  delete packed;
}

// Makes the graph an owner.
cudaError_t retain(cudaGraph_t graph, const PackedPtr& packed) {
  cudaUserObject_t object = nullptr;
  PackedPtr* kept = new PackedPtr(packed);
  cudaError_t error =
      cudaUserObjectCreate(&object, kept, graph_is_gone, 1, cudaUserObjectNoDestructorSync);
  if (error != cudaSuccess) {
    delete kept;
    return error;
  }
  error = cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove);
  if (error != cudaSuccess) cudaUserObjectRelease(object);
  return error;
}

}  // namespace

class DeviceArrays {
 public:
  DeviceArrays(int device, const std::array<int64_t, 5>& shape, VoxelType voxel, Texel texel,
               const std::array<int32_t, 3>& bricks);
  ~DeviceArrays() { destroy(); }
  DeviceArrays(const DeviceArrays&) = delete;

  int device() const { return device_; }
  int64_t bytes() const { return bytes_; }
  PackedArrays arrays(bool textures) const { return {textures ? table_ : nullptr, scale_, copy_}; }
  EmptySpace empty(const std::array<int32_t, 3>& n) const {
    return {occupied_, distance_, n[0], n[1], n[2]};
  }

  void fill_texture(int64_t image, int axis, const void* texels, cudaStream_t stream);
  void fill(const float* scale, const void* copy, const Occupied* occupied, const uint8_t* distance,
            cudaStream_t stream);

 private:
  void create();
  void create_texture(int axis);
  cudaExtent extent_of(int axis) const;
  template <class T> T* part(int64_t& offset, int64_t bytes) const;
  void destroy();

  int device_;
  std::array<int64_t, 5> shape_;  // [N, C, nz, ny, nx]
  VoxelType voxel_;
  Texel texel_;
  int64_t images_, voxels_, bytes_ = 0, occupied_bytes_, distance_bytes_;
  std::vector<cudaArray_t> layers_;           // [N C, 3]
  std::vector<unsigned long long> textures_;  // [N C, 3]
  void* block_ = nullptr;                     // holds all that follows but the copy
  unsigned long long* table_ = nullptr;
  float* scale_ = nullptr;
  Occupied* occupied_ = nullptr;
  uint8_t* distance_ = nullptr;
  void* copy_ = nullptr;
};

DeviceArrays::DeviceArrays(int device, const std::array<int64_t, 5>& shape, VoxelType voxel,
                           Texel texel, const std::array<int32_t, 3>& bricks)
    : device_(device),
      shape_(shape),
      voxel_(voxel),
      texel_(texel),
      images_(shape[0] * shape[1]),
      voxels_(shape[2] * shape[3] * shape[4]),
      occupied_bytes_(shape[0] * static_cast<int64_t>(sizeof(Occupied))),
      distance_bytes_(shape[0] * bricks[0] * bricks[1] * bricks[2]) {
  const OnDevice on(device_);
  const BesideCapture beside;
  try {
    create();
  } catch (...) {
    destroy();
    throw;
  }
}

template <class T> T* DeviceArrays::part(int64_t& offset, int64_t bytes) const {
  T* start = reinterpret_cast<T*>(static_cast<char*>(block_) + offset);
  offset += aligned(bytes);
  return start;
}

void DeviceArrays::create() {
  for (int64_t image = 0; image < images_; ++image)
    for (int axis = 0; axis < 3; ++axis) create_texture(axis);
  const int64_t table_bytes = images_ * 3 * static_cast<int64_t>(sizeof(unsigned long long));
  const int64_t scale_bytes = images_ * static_cast<int64_t>(sizeof(float));
  const int64_t small = aligned(table_bytes) + aligned(scale_bytes) + aligned(occupied_bytes_) +
                        aligned(distance_bytes_);
  check(cudaMalloc(&block_, static_cast<size_t>(small)), "no memory for a prepared volume");
  int64_t offset = 0;
  table_ = part<unsigned long long>(offset, table_bytes);
  scale_ = part<float>(offset, scale_bytes);
  occupied_ = part<Occupied>(offset, occupied_bytes_);
  distance_ = part<uint8_t>(offset, distance_bytes_);
  const int64_t copy_bytes = images_ * voxels_ * voxel_bytes(voxel_);
  check(cudaMalloc(&copy_, static_cast<size_t>(copy_bytes)), "no memory for a prepared volume");
  check(cudaMemcpy(table_, textures_.data(), static_cast<size_t>(table_bytes),
                   cudaMemcpyHostToDevice),
        "a prepared volume's textures");
  bytes_ += small + copy_bytes;
}

cudaExtent DeviceArrays::extent_of(int axis) const {
  const int64_t size[3] = {shape_[4], shape_[3], shape_[2]};
  const int a = axis == 0 ? 1 : 0, b = axis == 2 ? 1 : 2;
  return make_cudaExtent(static_cast<size_t>(size[a]), static_cast<size_t>(size[b]),
                         static_cast<size_t>(size[axis]));
}

// Bilinear in a layer, zero outside: Joseph's sample, the infinite border of zeros included.
void DeviceArrays::create_texture(int axis) {
  const cudaChannelFormatDesc channel = channel_of(texel_);
  layers_.push_back(nullptr);
  textures_.push_back(0);
  check(cudaMalloc3DArray(&layers_.back(), &channel, extent_of(axis), cudaArrayLayered),
        "no memory for a prepared volume");
  cudaResourceDesc resource = {};
  resource.resType = cudaResourceTypeArray;
  resource.res.array.array = layers_.back();
  cudaTextureDesc description = {};
  for (cudaTextureAddressMode& mode : description.addressMode) mode = cudaAddressModeBorder;
  description.filterMode = cudaFilterModeLinear;
  description.readMode =
      texel_ == Texel::kInt16 ? cudaReadModeNormalizedFloat : cudaReadModeElementType;
  check(cudaCreateTextureObject(&textures_.back(), &resource, &description, nullptr),
        "a prepared volume's texture");
  bytes_ += voxels_ * (texel_ == Texel::kFloat32 ? 4 : 2);
}

void DeviceArrays::fill_texture(int64_t image, int axis, const void* texels, cudaStream_t stream) {
  const OnDevice on(device_);
  const cudaExtent extent = extent_of(axis);
  const size_t row = extent.width * (texel_ == Texel::kFloat32 ? 4 : 2);
  cudaMemcpy3DParms copy = {};
  copy.srcPtr = make_cudaPitchedPtr(const_cast<void*>(texels), row, extent.width, extent.height);
  copy.dstArray = layers_[static_cast<size_t>(3 * image + axis)];
  copy.extent = extent;
  copy.kind = cudaMemcpyDeviceToDevice;
  check(cudaMemcpy3DAsync(&copy, stream), "filling a prepared volume");
}

void DeviceArrays::fill(const float* scale, const void* copy, const Occupied* occupied,
                        const uint8_t* distance, cudaStream_t stream) {
  const OnDevice on(device_);
  auto move = [&](void* to, const void* from, int64_t bytes) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
          "filling a prepared volume");
  };
  move(scale_, scale, images_ * static_cast<int64_t>(sizeof(float)));
  move(copy_, copy, images_ * voxels_ * voxel_bytes(voxel_));
  move(occupied_, occupied, occupied_bytes_);
  move(distance_, distance, distance_bytes_);
}

// Launches that read what is destroyed here may not have ended: nobody waited for them.
void DeviceArrays::destroy() {
  const OnDevice on(device_);
  const BesideCapture beside;
  cudaDeviceSynchronize();
  for (unsigned long long texture : textures_)
    if (texture) cudaDestroyTextureObject(texture);
  for (cudaArray_t layers : layers_)
    if (layers) cudaFreeArray(layers);
  cudaFree(block_);
  cudaFree(copy_);
  cudaGetLastError();  // when the process ends CUDA may be gone already
}

CudaPackedVolume::CudaPackedVolume(int device, const std::array<int64_t, 5>& shape, VoxelType voxel,
                                   Texel texel, const std::array<int32_t, 3>& bricks)
    : bricks_(bricks) {
  Graveyard::one().clear();
  origin_.device = device;
  origin_.voxel = voxel;
  origin_.shape = shape;
  arrays_ = std::make_shared<DeviceArrays>(device, shape, voxel, texel, bricks);
}

CudaPackedVolume::~CudaPackedVolume() { Graveyard::one().clear(); }

int64_t CudaPackedVolume::bytes() const { return arrays_->bytes(); }

void CudaPackedVolume::fill_texture(int64_t image, int axis, const void* texels, void* stream) {
  arrays_->fill_texture(image, axis, texels, static_cast<cudaStream_t>(stream));
}

void CudaPackedVolume::fill(const float* scale, const void* copy, const Occupied* occupied,
                            const uint8_t* distance, void* stream) {
  arrays_->fill(scale, copy, occupied, distance, static_cast<cudaStream_t>(stream));
}

void CudaPackedVolume::publish(const void* data, int64_t version, bool textures) {
  Origin origin = origin_;
  origin.data = data;
  origin.version = version;
  handle_.publish({origin, arrays_->empty(bricks_), arrays_->arrays(textures), arrays_, nullptr});
}

const char* retain_for_graph(const PackedPtr& packed, void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  cudaStream_t s = static_cast<cudaStream_t>(stream);
#if CUDART_VERSION >= 13000
  cudaError_t error =
      cudaStreamGetCaptureInfo(s, &status, nullptr, &graph, nullptr, nullptr, nullptr);
#else
  cudaError_t error = cudaStreamGetCaptureInfo_v2(s, &status, nullptr, &graph, nullptr, nullptr);
#endif
  if (error == cudaSuccess && status != cudaStreamCaptureStatusActive) return nullptr;
  if (error == cudaSuccess) error = retain(graph, packed);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace cuda
}  // namespace drrkit
