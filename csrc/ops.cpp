// The torch boundary: schemas, allocation, dispatch by device, threads. The only file that sees
// torch headers, and of those only the stable ABI (torch >= 2.10), so that one binary serves every
// later torch.
#if defined(DRRKIT_CUDA)
#define USE_CUDA  // shim.h declares the current stream only then
#endif
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <atomic>
#include <optional>
#include <tuple>

#include "cpu/kernels.h"
#include "packed.h"
#include "params.h"
#if defined(DRRKIT_CUDA)
#include "cuda/kernels.h"
#include "cuda/packed.h"
#endif

namespace drrkit {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

Voxel voxel_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half: return Voxel::kFloat16;
    case ScalarType::BFloat16: return Voxel::kBFloat16;
    case ScalarType::Float: return Voxel::kFloat32;
    case ScalarType::Double: return Voxel::kFloat64;
    default: STD_TORCH_CHECK(false, "drrkit: volumes are float16, bfloat16, float32 or float64");
  }
  return Voxel::kFloat32;
}

ScalarType scalar_of(Voxel voxel) {
  return voxel == Voxel::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

void check_scalar(const Tensor& t, ScalarType expected, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == expected, "drrkit: ", name, " has an unexpected dtype");
}

// Layout of `mode`, as composed in _ops.py: method (2 bits), parallel, line, foot.
struct Mode {
  Method method;
  bool parallel, line, foot;

  explicit Mode(int64_t bits)
      : method(static_cast<Method>(bits & 3)),
        parallel(bits & 4),
        line(bits & 8),
        foot(bits & 16) {}
};

Views views_of(const Tensor& geometry, int64_t rows, int64_t cols, const Mode& mode) {
  check_scalar(geometry, ScalarType::Double, "geometry");
  STD_TORCH_CHECK(geometry.is_contiguous(), "drrkit: geometry must be contiguous");
  const bool endpoints = geometry.dim() == 4;
  return {geometry.const_data_ptr<double>(), endpoints, mode.parallel, cols,
          endpoints ? geometry.size(1) : rows * cols};
}

Scene scene_of(const Tensor& geometry, int64_t n_volumes, int64_t n_channels,
               const int64_t (&size)[3], Voxel voxel, int64_t rows, int64_t cols,
               const double (&spacing)[3], int64_t bits, double step) {
  const Mode mode(bits);
  Scene scene;
  scene.grid = {size[2], size[1], size[0], {spacing[0], spacing[1], spacing[2]}};
  scene.views = views_of(geometry, rows, cols, mode);
  scene.n_views = geometry.size(0);
  scene.n_channels = n_channels;
  scene.n_volumes = n_volumes;
  scene.method = mode.method;
  scene.voxel = voxel;
  scene.trilinear = {step, mode.foot, mode.line};
  STD_TORCH_CHECK(n_volumes > 0 && scene.n_views % n_volumes == 0,
                  "drrkit: volumes must divide views");
  return scene;
}

// ---- prepared volumes

// [N, C, nz, ny, nx] of values of 3, 4 or 5 dimensions.
std::array<int64_t, 5> volume_shape(const Tensor& values) {
  std::array<int64_t, 5> shape = {1, 1, 1, 1, 1};
  const int64_t dims = values.dim();
  STD_TORCH_CHECK(dims >= 3 && dims <= 5, "drrkit: values have 3, 4 or 5 dimensions");
  for (int64_t i = 0; i < dims; ++i) shape[static_cast<size_t>(5 - dims + i)] = values.size(i);
  return shape;
}

// How often a tensor has been written to in place.
int64_t version_of(const Tensor& t) {
  StableIValue stack[1] = {torch::stable::detail::from(t)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_version", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<int64_t>(stack[0]);
}

// What a handle names, if it was made from these very values as they are now; else null.
PackedPtr packed_from(const Tensor& values, int64_t handle) {
  const PackedPtr packed = Handles::all().find(handle);
  if (!packed || !values.is_contiguous()) return nullptr;
  Origin now;
  now.data = values.const_data_ptr();
  now.version = packed->origin.version;
  now.device = values.is_cuda() ? values.get_device_index() : -1;
  now.voxel = voxel_of(values);
  now.shape = volume_shape(values);
  const bool same = now == packed->origin && version_of(values) == packed->origin.version;
  if (!same) return nullptr;
  ++*packed->uses;
  return packed;
}

// ---- devices: where a kernel runs, and how its work is dealt out

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
  // Every sum is already made in a fixed order.
  static constexpr bool kNeedsFixedPoint = false;
  static int64_t workspace(const BackprojectParams&, bool) { return 0; }

  explicit Cpu(const Tensor&) {}

  void project(const ProjectParams& p, const PackedPtr&) const {
    deal_ranges(cpu::panels(p.scene), 1, [&](int64_t b, int64_t e) { cpu::project(p, b, e); });
  }
  void second(const SecondParams& p) const {
    deal_ranges(cpu::panels(p.scene), 1, [&](int64_t b, int64_t e) { cpu::second(p, b, e); });
  }
  // Slabs of planes, a few for each thread: each voxel is summed in one order by one thread.
  void backproject(const BackprojectParams& p) const {
    const int64_t threads = torch::stable::get_num_threads(), nz = p.scene.grid.nz;
    const int64_t slabs = threads == 1 ? 1 : minimum<int64_t>(nz, 2 * threads);
    deal(p.scene.n_volumes * slabs, [&](int64_t i) {
      const int64_t slab = i % slabs;
      cpu::backproject(p, i / slabs, {slab * nz / slabs, (slab + 1) * nz / slabs});
    });
  }
  template <class S> void reduce(const ReduceParams<S>& p) const {
    if (p.views.endpoints) {
      deal_ranges(p.n_views * p.views.rays, 4096,
                  [&](int64_t b, int64_t e) { cpu::reduce_rays(p, b, e); });
      return;
    }
    const int64_t chunks = (p.views.rays + kReduceChunk - 1) / kReduceChunk;
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
    deal_ranges(p.n_views * p.tangents.rays, 4096,
                [&](int64_t b, int64_t e) { cpu::tangent(p, b, e); });
  }
};

#if defined(DRRKIT_CUDA)
// Guards the tensor's device and launches on torch's current stream.
struct Cuda {
  static constexpr bool kNeedsFixedPoint = true;  // atomics come in any order
  static int64_t workspace(const BackprojectParams& p, bool fixed_order) {
    return cuda::backproject_workspace(p, fixed_order);
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
    if (!packed || !cuda::project_packed(p, *packed, stream, &error))
      return check(cuda::project(p, stream));
    check(error);
    check(cuda::keep_for_graph(packed, stream));
  }
  void second(const SecondParams& p) const { check(cuda::second(p, stream)); }
  void backproject(const BackprojectParams& p) const { check(cuda::backproject(p, stream)); }
  template <class S> void reduce(const ReduceParams<S>& p) const { check(cuda::reduce(p, stream)); }
  template <class S> void tangent(const TangentParams<S>& p) const {
    check(cuda::tangent(p, stream));
  }
};
#endif

// ---- ops

// `values` are dense, of 3, 4 or 5 dimensions.
template <class Device>
std::tuple<Tensor, Tensor> march(const Device& device, const Tensor& values,
                                 const Tensor& geometry_, int64_t rows, int64_t cols,
                                 const double (&spacing)[3], int64_t mode, double step,
                                 bool with_rays, const PackedPtr& packed) {
  const Tensor geometry = dense(geometry_);
  const std::array<int64_t, 5> shape = volume_shape(values);
  const Voxel voxel = voxel_of(values);
  const int64_t channels = shape[1], views = geometry.size(0);
  ProjectParams p;
  p.scene = scene_of(geometry, shape[0], channels, {shape[2], shape[3], shape[4]}, voxel, rows,
                     cols, spacing, mode, step);
  const int64_t n = p.scene.views.rays;
  Tensor image = torch::stable::new_empty(values, {views, channels, n}, scalar_of(voxel));
  Tensor rays = with_rays
                    ? torch::stable::new_empty(values, {views, channels, 6, n}, scalar_of(voxel))
                    : torch::stable::new_empty(values, {0}, scalar_of(voxel));
  p.values = values.const_data_ptr();
  p.image = image.mutable_data_ptr();
  p.rays = with_rays ? rays.mutable_data_ptr() : nullptr;
  if (packed) p.bricks = packed->bricks;
  if (image.numel() > 0) device.project(p, packed);
  return {image, rays};
}

template <class Device>
std::tuple<Tensor, Tensor> project(const Tensor& values, const Tensor& geometry, int64_t rows,
                                   int64_t cols, double sx, double sy, double sz, int64_t mode,
                                   double step, bool with_rays) {
  const Device device(values);
  return march(device, dense(values), geometry, rows, cols, {sx, sy, sz}, mode, step, with_rays,
               nullptr);
}

template <class Device>
std::tuple<Tensor, Tensor> project_packed(const Tensor& values, const Tensor& geometry,
                                          int64_t handle, int64_t rows, int64_t cols, double sx,
                                          double sy, double sz, int64_t mode, double step,
                                          bool with_rays) {
  const Device device(values);
  return march(device, dense(values), geometry, rows, cols, {sx, sy, sz}, mode, step, with_rays,
               packed_from(values, handle));
}

template <class Device>
Tensor backproject(const Tensor& images_, const Tensor& geometry_, std::optional<Tensor> tangent_,
                   int64_t n_volumes, int64_t nz, int64_t ny, int64_t nx, int64_t rows,
                   int64_t cols, double sx, double sy, double sz, int64_t mode, double step,
                   bool deterministic) {
  const Device device(images_);
  const Tensor images = dense(images_), geometry = dense(geometry_);
  const Tensor tangent = tangent_ ? dense(*tangent_) : geometry;
  BackprojectParams p;
  p.scene = scene_of(geometry, n_volumes, images.size(1), {nz, ny, nx}, voxel_of(images), rows,
                     cols, {sx, sy, sz}, mode, step);
  check_scalar(images, scalar_of(p.scene.voxel), "images");
  p.tangent = views_of(tangent, rows, cols, Mode(mode));
  if (!tangent_) p.tangent.geometry = nullptr;
  Tensor values = torch::stable::new_zeros(images, {n_volumes, images.size(1), nz, ny, nx});
  p.images = images.const_data_ptr();
  p.values = values.mutable_data_ptr();
  Tensor fixed, peak, workspace;
  p.fixed = p.peak = nullptr;
  const int64_t bytes = Device::workspace(p, deterministic);
  if (bytes > 0) {
    workspace = torch::stable::new_empty(values, {bytes}, ScalarType::Byte);
    p.workspace = workspace.mutable_data_ptr();
    p.workspace_bytes = bytes;
  } else if (deterministic && Device::kNeedsFixedPoint) {
    fixed = torch::stable::new_zeros(values, values.sizes(), ScalarType::Long);
    peak = torch::stable::new_zeros(values, {1}, ScalarType::Long);
    p.fixed = fixed.mutable_data_ptr<int64_t>();
    p.peak = peak.mutable_data_ptr<int64_t>();
  }
  if (images.numel() > 0 && values.numel() > 0) device.backproject(p);
  return values;
}

template <class Device, class S>
Tensor reduce_typed(const Device& device, const Tensor& rays, const Tensor* images, int64_t cols,
                    bool endpoints, bool parallel) {
  const int64_t views = rays.size(0), n = rays.size(3),
                chunks = (n + kReduceChunk - 1) / kReduceChunk;
  ReduceParams<S> p;
  p.views = {nullptr, endpoints, parallel, cols, n};
  p.n_views = views;
  p.n_channels = rays.size(1);
  Tensor out = endpoints ? torch::stable::new_empty(rays, {views, n, 2, 3}, ScalarType::Double)
                         : torch::stable::new_zeros(rays, {views, 4, 3}, ScalarType::Double);
  Tensor partial =
      torch::stable::new_empty(rays, {views, endpoints ? 0 : chunks, 12}, ScalarType::Double);
  p.rays = static_cast<const S*>(rays.const_data_ptr());
  p.images = images ? static_cast<const S*>(images->const_data_ptr()) : nullptr;
  p.partial = partial.mutable_data_ptr<double>();
  p.out = out.mutable_data_ptr<double>();
  if (rays.numel() > 0) device.reduce(p);
  return out;
}

template <class Device>
Tensor reduce_rays(const Tensor& rays_, std::optional<Tensor> images_, int64_t cols, bool endpoints,
                   bool parallel) {
  const Device device(rays_);
  const Tensor rays = dense(rays_);
  const Tensor images = images_ ? dense(*images_) : rays;
  if (images_) check_scalar(images, rays.scalar_type(), "images");
  const Tensor* weights = images_ ? &images : nullptr;
  if (rays.scalar_type() == ScalarType::Double)
    return reduce_typed<Device, double>(device, rays, weights, cols, endpoints, parallel);
  check_scalar(rays, ScalarType::Float, "rays");
  return reduce_typed<Device, float>(device, rays, weights, cols, endpoints, parallel);
}

template <class Device, class S>
Tensor tangent_typed(const Device& device, const Tensor& rays, const Views& tangents,
                     int64_t n_tangents) {
  const int64_t views = rays.size(0), channels = rays.size(1), n = rays.size(3);
  Tensor images = torch::stable::new_empty(rays, {views, channels, n_tangents, n});
  TangentParams<S> p = {tangents,
                        views,
                        channels,
                        n_tangents,
                        static_cast<const S*>(rays.const_data_ptr()),
                        static_cast<S*>(images.mutable_data_ptr())};
  if (images.numel() > 0) device.tangent(p);
  return images;
}

template <class Device>
Tensor tangent(const Tensor& rays_, const Tensor& tangents_, int64_t rows, int64_t cols,
               bool parallel) {
  const Device device(rays_);
  const Tensor rays = dense(rays_), tangents = dense(tangents_);
  const bool endpoints = tangents.size(2) == 2;
  const int64_t n_tangents = endpoints ? 1 : tangents.size(1);
  check_scalar(tangents, ScalarType::Double, "tangents");
  const Views views = {tangents.const_data_ptr<double>(), endpoints, parallel, cols,
                       endpoints ? tangents.size(1) : rows * cols};
  if (rays.scalar_type() == ScalarType::Double)
    return tangent_typed<Device, double>(device, rays, views, n_tangents);
  check_scalar(rays, ScalarType::Float, "rays");
  return tangent_typed<Device, float>(device, rays, views, n_tangents);
}

template <class Device>
Tensor second(const Tensor& values_, const Tensor& geometry_, const Tensor& images_,
              const Tensor& tangent_, int64_t rows, int64_t cols, double sx, double sy, double sz,
              int64_t mode, double step) {
  const Device device(values_);
  const Tensor values = dense(values_), geometry = dense(geometry_), images = dense(images_),
               tangent = dense(tangent_);
  SecondParams p;
  p.scene = scene_of(geometry, values.size(0), values.size(1),
                     {values.size(2), values.size(3), values.size(4)}, voxel_of(values), rows, cols,
                     {sx, sy, sz}, mode, step);
  check_scalar(images, scalar_of(p.scene.voxel), "images");
  p.tangent = views_of(tangent, rows, cols, Mode(mode));
  Tensor rays = torch::stable::new_zeros(values, {geometry.size(0), 1, 6, p.scene.views.rays},
                                         ScalarType::Double);
  p.values = values.const_data_ptr();
  p.images = images.const_data_ptr();
  p.rays = rays.mutable_data_ptr<double>();
  if (rays.numel() > 0) device.second(p);
  return rays;
}

}  // namespace

// `geometry` and `tangent` are frames [B, 4, 3] or end points [B, P, 2, 3], `tangents` are frames
// [B, K, 4, 3] or end points [B, P, 2, 3] with K = 1, all float64; `rays` are
// six-vectors [B, C, 6, P]. `handle` names what a projector prepared from `values`, which may then
// have 3, 4 or 5 dimensions; one that does not fit them changes nothing. Private: no autograd here,
// drrkit.projector adds it.
STABLE_TORCH_LIBRARY(drrkit, m) {
  m.def(
      "project(Tensor values, Tensor geometry, SymInt rows, SymInt cols, float sx, float sy, float "
      "sz, "
      "int mode, float step, "
      "bool with_rays) -> (Tensor, Tensor)");
  m.def(
      "project_packed(Tensor values, Tensor geometry, SymInt handle, SymInt rows, SymInt cols, "
      "float sx, float sy, float sz, int mode, float step, bool with_rays) -> (Tensor, Tensor)");
  m.def(
      "backproject(Tensor images, Tensor geometry, Tensor? tangent, SymInt n, SymInt nz, SymInt "
      "ny, SymInt nx, "
      "SymInt rows, SymInt cols, "
      "float sx, float sy, float sz, int mode, float step, bool deterministic) -> Tensor");
  m.def(
      "reduce_rays(Tensor rays, Tensor? images, SymInt cols, bool endpoints, bool parallel) -> "
      "Tensor");
  m.def("tangent(Tensor rays, Tensor tangents, SymInt rows, SymInt cols, bool parallel) -> Tensor");
  m.def(
      "second(Tensor values, Tensor geometry, Tensor images, Tensor tangent, SymInt rows, SymInt "
      "cols, "
      "float sx, float sy, "
      "float sz, int mode, float step) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(drrkit, CPU, m) {
  m.impl("project", TORCH_BOX(&project<Cpu>));
  m.impl("project_packed", TORCH_BOX(&project_packed<Cpu>));
  m.impl("backproject", TORCH_BOX(&backproject<Cpu>));
  m.impl("reduce_rays", TORCH_BOX(&reduce_rays<Cpu>));
  m.impl("tangent", TORCH_BOX(&tangent<Cpu>));
  m.impl("second", TORCH_BOX(&second<Cpu>));
}

#if defined(DRRKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(drrkit, CUDA, m) {
  m.impl("project", TORCH_BOX(&project<Cuda>));
  m.impl("project_packed", TORCH_BOX(&project_packed<Cuda>));
  m.impl("backproject", TORCH_BOX(&backproject<Cuda>));
  m.impl("reduce_rays", TORCH_BOX(&reduce_rays<Cuda>));
  m.impl("tangent", TORCH_BOX(&tangent<Cuda>));
  m.impl("second", TORCH_BOX(&second<Cuda>));
}
#endif

}  // namespace drrkit
