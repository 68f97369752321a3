// The device memory of prepared volumes, and how long it lives.
#include "packed.h"

#include <cuda_runtime.h>

#include <map>
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

cudaChannelFormatDesc channel_of(VoxelType texel) {
  switch (texel) {
    case VoxelType::kInt16: return cudaCreateChannelDesc(16, 0, 0, 0, cudaChannelFormatKindSigned);
    case VoxelType::kFloat16: return cudaCreateChannelDesc(16, 0, 0, 0, cudaChannelFormatKindFloat);
    default: return cudaCreateChannelDesc(32, 0, 0, 0, cudaChannelFormatKindFloat);
  }
}

cudaError_t captures(cudaStream_t stream, bool& capturing, cudaGraph_t* graph = nullptr) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
#if CUDART_VERSION >= 13000
  const cudaError_t error =
      cudaStreamGetCaptureInfo(stream, &status, nullptr, graph, nullptr, nullptr, nullptr);
#else
  const cudaError_t error =
      cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, graph, nullptr, nullptr);
#endif
  capturing = status == cudaStreamCaptureStatusActive;
  return error;
}

// What has to be given back to CUDA, and what has to end before.
struct Holdings {
  int device = 0;
  std::vector<cudaArray_t> layers;           // [N C, 3]
  std::vector<unsigned long long> textures;  // [N C, 3]
  void *block = nullptr, *copy = nullptr;
  cudaEvent_t filled = nullptr;               // the last filling, once there is one
  std::map<cudaStream_t, cudaEvent_t> reads;  // the last launch on each stream that reads it

  // Waits for the fillings and launches that are known, and for nothing else: a wait for the whole
  // device would end every capture that is going on. False where that fails; nothing is freed then.
  bool release() {
    const OnDevice on(device);
    const BesideCapture beside;
    bool ended = !filled || cudaEventSynchronize(filled) == cudaSuccess;
    for (const auto& read : reads)
      ended = cudaEventSynchronize(read.second) == cudaSuccess && ended;
    if (ended) {
      for (unsigned long long texture : textures)
        if (texture) cudaDestroyTextureObject(texture);
      for (cudaArray_t layer : layers)
        if (layer) cudaFreeArray(layer);
      cudaFree(block);
      cudaFree(copy);
      if (filled) cudaEventDestroy(filled);
      for (const auto& read : reads) cudaEventDestroy(read.second);
    }
    cudaGetLastError();  // when the process ends CUDA may be gone already
    return ended;
  }
};

// What could not be freed where it was let go, tried again when the next packed volume is made or
// let go: what a graph kept (CUDA calls back from a thread that must not call CUDA), and what could
// not be waited for.
class Graveyard {
 public:
  static Graveyard& one() {
    static Graveyard* graveyard = new Graveyard;
    return *graveyard;
  }
  void add(PackedPtr packed) {
    std::lock_guard<std::mutex> lock(mutex_);
    kept_.push_back(std::move(packed));
  }
  void add(Holdings holdings) {
    std::lock_guard<std::mutex> lock(mutex_);
    held_.push_back(std::move(holdings));
  }
  void clear() {
    std::vector<PackedPtr> kept;  // destroyed after the lock is given back, as they may come here
    std::vector<Holdings> held;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      kept.swap(kept_);
      held.swap(held_);
    }
    for (Holdings& holdings : held)
      if (!holdings.release()) add(std::move(holdings));
  }

 private:
  std::mutex mutex_;
  std::vector<PackedPtr> kept_;
  std::vector<Holdings> held_;
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
  DeviceArrays(int device, const std::array<int64_t, 5>& shape, VoxelType voxel, VoxelType texel,
               const std::array<int32_t, 3>& bricks);
  ~DeviceArrays() { destroy(); }
  DeviceArrays(const DeviceArrays&) = delete;

  int device() const { return device_; }
  int64_t bytes() const { return bytes_; }
  PackedArrays arrays(bool textures) const {
    return {textures ? table_ : nullptr, scale_, held_.copy};
  }
  EmptySpace empty(const std::array<int32_t, 3>& n) const {
    return {occupied_, distance_, n[0], n[1], n[2]};
  }

  void fill_texture(int64_t image, int axis, const void* texels, cudaStream_t stream);
  void fill(const float* scale, const void* copy, const Occupied* occupied, const uint8_t* distance,
            cudaStream_t stream);
  // Before and after a launch on a stream that is not being captured.
  cudaError_t begin_read(cudaStream_t stream) const;
  cudaError_t end_read(cudaStream_t stream) const;

 private:
  void create();
  void wait_for_reads(cudaStream_t stream);
  void create_texture(int axis);
  cudaExtent extent_of(int axis) const;
  template <class T> T* part(int64_t& offset, int64_t bytes) const;
  void destroy();

  int device_;
  std::array<int64_t, 5> shape_;  // [N, C, nz, ny, nx]
  VoxelType voxel_, texel_;
  int64_t images_, voxels_, bytes_ = 0, occupied_bytes_, distance_bytes_;
  mutable std::mutex mutex_;  // of `held_`, which launches of many threads note themselves in
  mutable Holdings held_;     // its block holds all that follows
  unsigned long long* table_ = nullptr;
  float* scale_ = nullptr;
  Occupied* occupied_ = nullptr;
  uint8_t* distance_ = nullptr;
};

DeviceArrays::DeviceArrays(int device, const std::array<int64_t, 5>& shape, VoxelType voxel,
                           VoxelType texel, const std::array<int32_t, 3>& bricks)
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
  held_.device = device;
  try {
    create();
  } catch (...) {
    destroy();
    throw;
  }
}

template <class T> T* DeviceArrays::part(int64_t& offset, int64_t bytes) const {
  T* start = reinterpret_cast<T*>(static_cast<char*>(held_.block) + offset);
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
  check(cudaMalloc(&held_.block, static_cast<size_t>(small)), "no memory for a prepared volume");
  int64_t offset = 0;
  table_ = part<unsigned long long>(offset, table_bytes);
  scale_ = part<float>(offset, scale_bytes);
  occupied_ = part<Occupied>(offset, occupied_bytes_);
  distance_ = part<uint8_t>(offset, distance_bytes_);
  const int64_t copy_bytes = images_ * voxels_ * voxel_bytes(voxel_);
  check(cudaMalloc(&held_.copy, static_cast<size_t>(copy_bytes)),
        "no memory for a prepared volume");
  check(cudaMemcpy(table_, held_.textures.data(), static_cast<size_t>(table_bytes),
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
  held_.layers.push_back(nullptr);
  held_.textures.push_back(0);
  check(cudaMalloc3DArray(&held_.layers.back(), &channel, extent_of(axis), cudaArrayLayered),
        "no memory for a prepared volume");
  cudaResourceDesc resource = {};
  resource.resType = cudaResourceTypeArray;
  resource.res.array.array = held_.layers.back();
  cudaTextureDesc description = {};
  for (cudaTextureAddressMode& mode : description.addressMode) mode = cudaAddressModeBorder;
  description.filterMode = cudaFilterModeLinear;
  description.readMode =
      texel_ == VoxelType::kInt16 ? cudaReadModeNormalizedFloat : cudaReadModeElementType;
  check(cudaCreateTextureObject(&held_.textures.back(), &resource, &description, nullptr),
        "a prepared volume's texture");
  bytes_ += voxels_ * voxel_bytes(texel_);
}

void DeviceArrays::fill_texture(int64_t image, int axis, const void* texels, cudaStream_t stream) {
  const OnDevice on(device_);
  wait_for_reads(stream);
  const cudaExtent extent = extent_of(axis);
  const size_t row = extent.width * voxel_bytes(texel_);
  cudaMemcpy3DParms copy = {};
  copy.srcPtr = make_cudaPitchedPtr(const_cast<void*>(texels), row, extent.width, extent.height);
  copy.dstArray = held_.layers[static_cast<size_t>(3 * image + axis)];
  copy.extent = extent;
  copy.kind = cudaMemcpyDeviceToDevice;
  check(cudaMemcpy3DAsync(&copy, stream), "filling a prepared volume");
}

void DeviceArrays::fill(const float* scale, const void* copy, const Occupied* occupied,
                        const uint8_t* distance, cudaStream_t stream) {
  const OnDevice on(device_);
  wait_for_reads(stream);
  auto move = [&](void* to, const void* from, int64_t bytes) {
    check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream),
          "filling a prepared volume");
  };
  move(scale_, scale, images_ * static_cast<int64_t>(sizeof(float)));
  move(held_.copy, copy, images_ * voxels_ * voxel_bytes(voxel_));
  move(occupied_, occupied, occupied_bytes_);
  move(distance_, distance, distance_bytes_);
  std::lock_guard<std::mutex> lock(mutex_);
  if (!held_.filled)
    check(cudaEventCreateWithFlags(&held_.filled, cudaEventDisableTiming), "a prepared volume");
  check(cudaEventRecord(held_.filled, stream), "filling a prepared volume");
}

// What is filled anew may still be read on other streams.
void DeviceArrays::wait_for_reads(cudaStream_t stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& read : held_.reads)
    check(cudaStreamWaitEvent(stream, read.second, 0), "filling a prepared volume");
}

cudaError_t DeviceArrays::begin_read(cudaStream_t stream) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return held_.filled ? cudaStreamWaitEvent(stream, held_.filled, 0) : cudaSuccess;
}

cudaError_t DeviceArrays::end_read(cudaStream_t stream) const {
  std::lock_guard<std::mutex> lock(mutex_);
  cudaEvent_t& event = held_.reads[stream];
  cudaError_t error = cudaSuccess;
  if (!event) error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  return error == cudaSuccess ? cudaEventRecord(event, stream) : error;
}

void DeviceArrays::destroy() {
  if (!held_.release()) Graveyard::one().add(std::move(held_));
}

CudaPackedVolume::CudaPackedVolume(int device, const std::array<int64_t, 5>& shape, VoxelType voxel,
                                   VoxelType texel, const std::array<int32_t, 3>& bricks)
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

namespace {

const char* words_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // clears CUDA's sticky error
  return cudaGetErrorString(error);
}

const DeviceArrays& arrays_of(const PackedPtr& packed) {
  return *static_cast<const DeviceArrays*>(packed->memory.get());
}

}  // namespace

const char* begin_read(const PackedPtr& packed, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  bool capturing = false;
  cudaError_t error = captures(s, capturing);
  // A capture cannot wait for what was not captured: it follows calls that were.
  if (error == cudaSuccess && !capturing) error = arrays_of(packed).begin_read(s);
  return words_of(error);
}

const char* end_read(const PackedPtr& packed, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  bool capturing = false;
  cudaGraph_t graph = nullptr;
  cudaError_t error = captures(s, capturing, &graph);
  if (error == cudaSuccess)
    error = capturing ? retain(graph, packed) : arrays_of(packed).end_read(s);
  return words_of(error);
}

}  // namespace cuda
}  // namespace drrkit
