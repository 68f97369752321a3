// Prepared volumes: what an op may read beside the values that it is given, and the handles that
// name them. Ops stay functions of the values: a handle that names nothing, or something made from
// other values, is the same as none.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "../params.h"

namespace drrkit {

// The tensor that something was made from. As long as that tensor's memory is kept alive, no other
// one has its address, and torch counts each write in place up in its version.
struct Origin {
  const void* data = nullptr;
  int64_t version = 0;
  int device = -1;  // index of a CUDA device, -1: CPU
  VoxelType voxel = VoxelType::kFloat32;
  std::array<int64_t, 5> shape = {};  // [N, C, nz, ny, nx]

  bool operator==(const Origin& o) const {
    return data == o.data && version == o.version && device == o.device && voxel == o.voxel &&
           shape == o.shape;
  }
};

// What kernels can read instead of the values, in the memory of their device.
struct PackedArrays {
  const unsigned long long* textures = nullptr;  // [N C, 3] layered textures, one for each dominant
                                                 // axis; null: there are none
  const float* scale = nullptr;                  // [N C] value of a texel that reads 1
  // CUDA: [N C, nx, nz, ny] voxels, x slowest. CPU: [N C, nz, ny, nx] texels of that type. Or null.
  const void* copy = nullptr;
  VoxelType texel = VoxelType::kInt16;
};

struct Packed {
  Origin origin;
  EmptySpace empty;
  PackedArrays arrays;
  std::shared_ptr<const void> memory;          // keeps what the pointers show alive
  std::shared_ptr<std::atomic<int64_t>> uses;  // ops that went by it
};
using PackedPtr = std::shared_ptr<const Packed>;

// Handles count from 1; the lowest free one is taken, so that one projector after the other has the
// same and compiled functions that hold it as a constant need no second compilation.
class Handles {
 public:
  static Handles& all() {
    static Handles* handles = new Handles;  // never destroyed: threads may outlive main
    return *handles;
  }
  int64_t reserve() {
    std::lock_guard<std::mutex> lock(mutex_);
    size_t free = 0;
    while (free < slots_.size() && slots_[free].taken) ++free;
    if (free == slots_.size()) slots_.emplace_back();
    slots_[free].taken = true;
    return static_cast<int64_t>(free) + 1;
  }
  void publish(int64_t handle, PackedPtr packed) {
    std::lock_guard<std::mutex> lock(mutex_);
    slots_[static_cast<size_t>(handle) - 1].packed.swap(packed);
  }
  void release(int64_t handle) {
    PackedPtr last;  // destroyed after the lock is given back
    std::lock_guard<std::mutex> lock(mutex_);
    Slot& slot = slots_[static_cast<size_t>(handle) - 1];
    last.swap(slot.packed);
    slot.taken = false;
  }
  // What the handle names, or null.
  PackedPtr find(int64_t handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (handle < 1 || handle > static_cast<int64_t>(slots_.size())) return nullptr;
    return slots_[static_cast<size_t>(handle) - 1].packed;
  }

 private:
  struct Slot {
    bool taken = false;
    PackedPtr packed;
  };
  std::mutex mutex_;
  std::vector<Slot> slots_;
};

// A handle, for as long as its owner lives.
class Handle {
 public:
  Handle() : number_(Handles::all().reserve()), uses_(std::make_shared<std::atomic<int64_t>>(0)) {}
  ~Handle() { Handles::all().release(number_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  int64_t number() const { return number_; }
  int64_t uses() const { return *uses_; }
  // From now on the handle names this.
  void publish(Packed packed) const {
    packed.uses = uses_;
    Handles::all().publish(number_, std::make_shared<const Packed>(std::move(packed)));
  }

 private:
  int64_t number_;
  std::shared_ptr<std::atomic<int64_t>> uses_;
};

// On the CPU: what is known of a volume tensor's zeros, and its values stored in another way.
class PackedVolume {
 public:
  // bricks: along x, y, z.
  PackedVolume(const std::array<int64_t, 5>& shape, VoxelType voxel,
               const std::array<int32_t, 3>& bricks)
      : bricks_(bricks) {
    origin_.voxel = voxel;
    origin_.shape = shape;
  }

  int64_t handle() const { return handle_.number(); }
  int64_t uses() const { return handle_.uses(); }
  int64_t bytes() const {
    return static_cast<int64_t>(sizeof(Occupied)) * origin_.shape[0] + cells() + texel_bytes_;
  }

  // Lets ops find it as made from `data` in that version. Copied: occupied [N], distance, texels
  // [N, C, nz, ny, nx] (null: none) and scale [N C].
  void publish(const void* data, int64_t version, const Occupied* occupied, const uint8_t* distance,
               const uint8_t* texels, const float* scale, VoxelType texel) {
    struct Memory {
      std::vector<Occupied> occupied;
      std::vector<uint8_t> distance, texels;
      std::vector<float> scale;
    };
    const auto& [n, channels, nz, ny, nx] = origin_.shape;
    const int64_t images = texels ? n * channels : 0;
    texel_bytes_ = images * nz * ny * nx * voxel_bytes(texel);
    auto memory = std::make_shared<const Memory>(Memory{{occupied, occupied + n},
                                                        {distance, distance + cells()},
                                                        {texels, texels + texel_bytes_},
                                                        {scale, scale + images}});
    Packed packed;
    packed.origin = origin_;
    packed.origin.data = data;
    packed.origin.version = version;
    packed.empty = {memory->occupied.data(), memory->distance.data(), bricks_[0], bricks_[1],
                    bricks_[2]};
    if (texels) packed.arrays = {nullptr, memory->scale.data(), memory->texels.data(), texel};
    packed.memory = memory;
    handle_.publish(std::move(packed));
  }

 private:
  int64_t cells() const { return origin_.shape[0] * bricks_[0] * bricks_[1] * bricks_[2]; }

  Handle handle_;
  Origin origin_;
  std::array<int32_t, 3> bricks_;
  int64_t texel_bytes_ = 0;
};

}  // namespace drrkit
