// Where a kernel runs, and how its work is dealt out: threads on the CPU, a stream on a GPU.
#pragma once

#if defined(DRRKIT_CUDA)
#define USE_CUDA  // shim.h declares the current stream only then
#endif
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <vector>

#include "cpu/kernels.h"
#include "packed/handles.h"
#include "params.h"
#if defined(DRRKIT_CUDA)
#include "cuda/kernels.h"
#include "cuda/packed.h"
#endif

namespace drrkit {

using torch::stable::Tensor;

// Tasks are taken one by one, since rays that miss the volume cost nothing: static shares would
// leave threads idle.
template <class Task> void deal(int64_t tasks, const Task& task) {
  if (tasks == 0) return;
  std::atomic<int64_t> next(0);
  const int64_t threads = minimum<int64_t>(torch::stable::get_num_threads(), tasks);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread)
      for (int64_t i = next++; i < tasks; i = next++) task(i);
  });
}

template <class Range> void deal_ranges(int64_t total, int64_t grain, const Range& range) {
  deal((total + grain - 1) / grain,
       [&](int64_t i) { range(i * grain, minimum((i + 1) * grain, total)); });
}

struct Cpu {
  // Every sum is already made in a fixed order, and volumes are zeroed as they are summed.
  static constexpr bool kNeedsFixedPoint = false, kNeedsZeros = false;
  static int64_t workspace(const BackprojectParams&, bool) { return 0; }

  explicit Cpu(const Tensor&) {}

  void project(const ProjectParams& params, const PackedPtr& packed) const {
    ProjectParams p = params;
    if (packed && packed->arrays.copy && !p.six) {  // derivatives are those of the values
      p.values = packed->arrays.copy;
      p.scale = packed->arrays.scale;
      p.scene.voxel = packed->arrays.texel;
    }
    deal_panels(p.scene, [&](int64_t b, int64_t e) { cpu::project(p, b, e); });
  }
  void second(const SecondParams& p) const {
    deal_panels(p.scene, [&](int64_t b, int64_t e) { cpu::second(p, b, e); });
  }
  // Slabs of planes, a few for each thread: each voxel is summed in one order by one thread.
  void backproject(const BackprojectParams& params) const {
    const Scene& scene = params.scene;
    std::vector<uint8_t> touched(scene.n_volumes * scene.n_channels * scene.grid.nz *
                                 scene.grid.ny);
    BackprojectParams p = params;
    p.touched = touched.data();
    const int64_t threads = torch::stable::get_num_threads(), nz = p.scene.grid.nz;
    const int64_t slabs = threads == 1 ? 1 : minimum<int64_t>(nz, 2 * threads);
    deal(p.scene.n_volumes * slabs, [&](int64_t i) {
      const int64_t slab = i % slabs;
      cpu::backproject(p, i / slabs, {slab * nz / slabs, (slab + 1) * nz / slabs});
    });
  }
  template <class S> void reduce(const ReduceParams<S>& p) const {
    if (p.views.endpoints) {
      deal_ranges(p.n_views * p.views.n_rays, 4096,
                  [&](int64_t b, int64_t e) { cpu::reduce_rays(p, b, e); });
      return;
    }
    const int64_t chunks = (p.views.n_rays + kReduceChunk - 1) / kReduceChunk;
    deal_ranges(p.n_views * chunks, 4, [&](int64_t b, int64_t e) { cpu::reduce_chunks(p, b, e); });
    for (int64_t view = 0; view < p.n_views; ++view)
      for (int64_t i = 0; i < 12; ++i) {
        double sum = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
          sum += p.partial[12 * (view * chunks + chunk) + i];
        p.out[12 * view + i] = sum;
      }
  }
  template <class S> void tangent(const TangentParams<S>& p) const {
    deal_ranges(p.n_views * p.tangents.n_rays, 4096,
                [&](int64_t b, int64_t e) { cpu::tangent(p, b, e); });
  }
  template <class Map> void map(const MapParams& p) const {
    deal_ranges(p.n_views, 256, [&](int64_t b, int64_t e) { cpu::map_poses<Map>(p, b, e); });
  }

 private:
  // A thread takes one panel of several views, which read much the same voxels, where that leaves
  // enough for the others.
  template <class Range> static void deal_panels(const Scene& scene, const Range& range) {
    const int64_t panels = cpu::panels(scene), shares = 16 * torch::stable::get_num_threads();
    deal_ranges(panels, maximum<int64_t>(1, minimum(panels / shares, scene.n_views)), range);
  }
};

#if defined(DRRKIT_CUDA)
// Guards the tensor's device and launches on torch's current stream.
struct Cuda {
  static constexpr bool kNeedsFixedPoint = true, kNeedsZeros = true;  // atomics, in any order
  static int64_t workspace(const BackprojectParams& p, bool fixed_order) {
    return cuda::gather_workspace(p, fixed_order);
  }

  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;

  explicit Cuda(const Tensor& t) : guard(t.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  }
  static void check(const char* error) {
    STD_TORCH_CHECK(error == nullptr, "drrkit: CUDA launch failed: ", error);
  }

  void project(const ProjectParams& p, const PackedPtr& packed) const {
    const char* error = nullptr;
    if (!packed || !cuda::project_packed(p, packed, stream, &error))
      error = cuda::project(p, stream);
    check(error);
  }
  void second(const SecondParams& p) const { check(cuda::second(p, stream)); }
  void backproject(const BackprojectParams& p) const { check(cuda::backproject(p, stream)); }
  template <class S> void reduce(const ReduceParams<S>& p) const { check(cuda::reduce(p, stream)); }
  template <class S> void tangent(const TangentParams<S>& p) const {
    check(cuda::tangent(p, stream));
  }
  template <class Map> void map(const MapParams& p) const {
    check(cuda::map_poses<Map>(p, stream));
  }
};
#endif

}  // namespace drrkit
