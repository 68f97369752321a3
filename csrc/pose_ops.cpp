// The torch boundary of the maps of poses: schemas, allocation and dispatch, as in ops.cpp.
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

#include <optional>
#include <tuple>

#include "cpu/kernels.h"
#include "params.h"
#if defined(DRRKIT_CUDA)
#include "cuda/kernels.h"
#endif

namespace drrkit {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Cotangents = std::tuple<Tensor, Tensor, Tensor>;

struct Cpu {
  explicit Cpu(const Tensor&) {}

  template <class Map> void run(const MapParams& p, bool derivative) const {
    torch::stable::parallel_for(0, p.n_views, 256, [&](int64_t begin, int64_t end) {
      cpu::map_poses<Map>(p, derivative, begin, end);
    });
  }
};

#if defined(DRRKIT_CUDA)
// Guards the tensor's device and launches on torch's current stream.
struct Cuda {
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;

  explicit Cuda(const Tensor& t) : guard(t.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  }
  template <class Map> void run(const MapParams& p, bool derivative) const {
    const char* error = cuda::map_poses<Map>(p, derivative, stream);
    STD_TORCH_CHECK(error == nullptr, "drrkit: CUDA launch failed: ", error);
  }
};
#endif

struct Arguments {
  const Tensor* x[kMapInputs];
  const Tensor* g;              // null: no cotangents are wanted
  const Tensor* d[kMapInputs];  // directions; null: zero
};

const Tensor* given(const Optional& t) { return t ? &*t : nullptr; }

Operand operand_of(const Tensor* t, int64_t n_views, const Tensor& like) {
  if (t == nullptr) return {};
  STD_TORCH_CHECK(t->scalar_type() == ScalarType::Double, "drrkit: poses are computed in float64");
  STD_TORCH_CHECK(t->get_device_index() == like.get_device_index(),
                  "drrkit: expected all tensors on one device");
  const int64_t items = t->size(0);
  STD_TORCH_CHECK(items == 1 || items == n_views, "drrkit: expected one item, or one a view");
  return {t->const_data_ptr<double>(), items == 1 ? 0 : t->stride(0), t->stride(1),
          t->dim() > 2 ? t->stride(2) : 0};
}

MapParams params_of(const Arguments& a) {
  MapParams p = {};
  p.n_views = 1;
  for (const Tensor* t : {a.x[0], a.x[1], a.x[2], a.g, a.d[0], a.d[1], a.d[2]})
    if (t != nullptr && t->size(0) != 1) p.n_views = t->size(0);
  for (int i = 0; i < kMapInputs; ++i)
    p.inputs[i] = {operand_of(a.x[i], p.n_views, *a.x[0]), operand_of(a.d[i], p.n_views, *a.x[0])};
  p.g = operand_of(a.g, p.n_views, *a.x[0]);
  return p;
}

void set_flags(MapParams&) {}
void set_flags(MapParams& p, bool extend, bool parallel) {
  p.extend = extend;
  p.parallel = parallel;
}

Tensor cotangent_of(const Tensor& x, int64_t n_views) {
  return x.dim() > 2 ? torch::stable::new_empty(x, {n_views, x.size(1), x.size(2)})
                     : torch::stable::new_empty(x, {n_views, x.size(1)});
}

// The map, or its derivative along d.
template <class Device, class Map, class... Flags>
Tensor result(const Arguments& a, bool derivative, Flags... flags) {
  const Device device(*a.x[0]);
  MapParams p = params_of(a);
  set_flags(p, flags...);
  Tensor out = torch::stable::new_empty(*a.x[0], {p.n_views, Map::kRows, Map::kCols});
  p.out = out.mutable_data_ptr<double>();
  if (p.n_views > 0) device.template run<Map>(p, derivative);
  return out;
}

// The cotangents of x for g, or their derivatives along d.
template <class Device, class Map, class... Flags>
Cotangents cotangents(const Arguments& a, bool derivative, Flags... flags) {
  const Device device(*a.x[0]);
  MapParams p = params_of(a);
  set_flags(p, flags...);
  Tensor on[kMapInputs];
  for (int i = 0; i < kMapInputs; ++i) {
    on[i] = cotangent_of(*a.x[i], p.n_views);
    p.on[i] = on[i].mutable_data_ptr<double>();
  }
  if (p.n_views > 0) device.template run<Map>(p, derivative);
  return {on[0], on[1], on[2]};
}

// ---- ops

template <class Device, class Map, class... Flags>
Tensor value(const Tensor& x0, const Tensor& x1, const Tensor& x2, Flags... flags) {
  return result<Device, Map>({{&x0, &x1, &x2}, nullptr, {}}, false, flags...);
}

template <class Device, class Map, class... Flags>
Cotangents vjp(const Tensor& x0, const Tensor& x1, const Tensor& x2, const Tensor& g,
               Flags... flags) {
  return cotangents<Device, Map>({{&x0, &x1, &x2}, &g, {}}, false, flags...);
}

template <class Device, class Map, class... Flags>
Tensor jvp(const Tensor& x0, const Tensor& x1, const Tensor& x2, Optional d0, Optional d1,
           Optional d2, Flags... flags) {
  return result<Device, Map>({{&x0, &x1, &x2}, nullptr, {given(d0), given(d1), given(d2)}}, true,
                             flags...);
}

template <class Device, class Map, class... Flags>
Cotangents second(const Tensor& x0, const Tensor& x1, const Tensor& x2, const Tensor& g,
                  Optional d0, Optional d1, Optional d2, Flags... flags) {
  return cotangents<Device, Map>({{&x0, &x1, &x2}, &g, {given(d0), given(d1), given(d2)}}, true,
                                 flags...);
}

template <class Device> void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("perturb", TORCH_BOX((&value<Device, Perturb>)));
  m.impl("perturb_vjp", TORCH_BOX((&vjp<Device, Perturb>)));
  m.impl("perturb_jvp", TORCH_BOX((&jvp<Device, Perturb>)));
  m.impl("perturb_second", TORCH_BOX((&second<Device, Perturb>)));
  m.impl("frames", TORCH_BOX((&value<Device, Frames, bool, bool>)));
  m.impl("frames_vjp", TORCH_BOX((&vjp<Device, Frames, bool, bool>)));
  m.impl("frames_jvp", TORCH_BOX((&jvp<Device, Frames, bool, bool>)));
  m.impl("frames_second", TORCH_BOX((&second<Device, Frames, bool, bool>)));
}

}  // namespace

// One item a view, or one for all: pose [B, 4, 4], xi [B, 6], center [B, 3], rays [B, 4, 3], grid
// [B, 8, 3] (see frames.h), all float64. g is a cotangent of the result, d_* are directions.
STABLE_TORCH_LIBRARY_FRAGMENT(drrkit, m) {
  m.def("perturb(Tensor pose, Tensor xi, Tensor center) -> Tensor");
  m.def("perturb_vjp(Tensor pose, Tensor xi, Tensor center, Tensor g) -> (Tensor, Tensor, Tensor)");
  m.def(
      "perturb_jvp(Tensor pose, Tensor xi, Tensor center, Tensor? d_pose, Tensor? d_xi, Tensor? "
      "d_center) -> Tensor");
  m.def(
      "perturb_second(Tensor pose, Tensor xi, Tensor center, Tensor g, Tensor? d_pose, Tensor? "
      "d_xi, Tensor? d_center) -> (Tensor, Tensor, Tensor)");
  m.def("frames(Tensor pose, Tensor rays, Tensor grid, bool extend, bool parallel) -> Tensor");
  m.def(
      "frames_vjp(Tensor pose, Tensor rays, Tensor grid, Tensor g, bool extend, bool parallel) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "frames_jvp(Tensor pose, Tensor rays, Tensor grid, Tensor? d_pose, Tensor? d_rays, Tensor? "
      "d_grid, bool extend, bool parallel) -> Tensor");
  m.def(
      "frames_second(Tensor pose, Tensor rays, Tensor grid, Tensor g, Tensor? d_pose, Tensor? "
      "d_rays, Tensor? d_grid, bool extend, bool parallel) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(drrkit, CPU, m) { implement<Cpu>(m); }
#if defined(DRRKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(drrkit, CUDA, m) { implement<Cuda>(m); }
#endif

}  // namespace drrkit
