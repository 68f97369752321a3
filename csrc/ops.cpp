// The torch boundary: schemas, checks, allocation. This file and devices.h alone see torch headers,
// and of those only the stable ABI (torch >= 2.10), so that one binary serves every later torch.
#include "devices.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

namespace drrkit {
namespace {

using torch::headeronly::ScalarType;
using Optional = std::optional<Tensor>;
using Tensors = std::initializer_list<const Tensor*>;
using Numbers = std::vector<int64_t>;
using Lengths = std::vector<double>;

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

const Tensor* given(const Optional& t) { return t ? &*t : nullptr; }

// A kernel reads all of its tensors on one device. Null: not given.
template <class List> void check_devices(const List& tensors) {
  const Tensor* first = *tensors.begin();
  for (const Tensor* t : tensors)
    STD_TORCH_CHECK(t == nullptr || (t->is_cpu() == first->is_cpu() &&
                                     t->get_device_index() == first->get_device_index()),
                    "drrkit: expected all tensors on one device");
}

VoxelType voxel_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half: return VoxelType::kFloat16;
    case ScalarType::BFloat16: return VoxelType::kBFloat16;
    case ScalarType::Float: return VoxelType::kFloat32;
    case ScalarType::Double: return VoxelType::kFloat64;
    default: STD_TORCH_CHECK(false, "drrkit: volumes are float16, bfloat16, float32 or float64");
  }
  return VoxelType::kFloat32;
}

ScalarType scalar_of(VoxelType voxel) {
  return voxel == VoxelType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

void check_scalar(const Tensor& t, ScalarType expected, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == expected, "drrkit: ", name, " has an unexpected dtype");
}

// An image's size [rows, cols]; `flags` as in params.h.
Views views_of(const Tensor& geometry, const Numbers& size, Flags flags) {
  check_scalar(geometry, ScalarType::Double, "geometry");
  STD_TORCH_CHECK(geometry.is_contiguous(), "drrkit: geometry must be contiguous");
  STD_TORCH_CHECK(size.size() == 2, "drrkit: an image has two sides");
  STD_TORCH_CHECK(flags.beam == Beam::kCone || flags.beam == Beam::kParallel,
                  "drrkit: no such beam");
  const bool endpoints = geometry.dim() == 4;
  return {geometry.const_data_ptr<double>(), endpoints, flags.beam, size[1],
          endpoints ? geometry.size(1) : size[0] * size[1]};
}

// What a march needs to know beside its tensors, as the ops are given it.
struct Plan {
  const Numbers& size;
  const Lengths& spacing;
  Flags flags;
  double step;
};

// `shape`: [N, C, nz, ny, nx] of the volumes.
Scene scene_of(const Tensor& geometry, const std::array<int64_t, 5>& shape, VoxelType voxel,
               const Plan& plan) {
  STD_TORCH_CHECK(plan.spacing.size() == 3, "drrkit: spacing has three numbers");
  Scene scene;
  scene.grid = {shape[4], shape[3], shape[2], {plan.spacing[0], plan.spacing[1], plan.spacing[2]}};
  scene.views = views_of(geometry, plan.size, plan.flags);
  scene.n_views = geometry.size(0);
  scene.n_channels = shape[1];
  scene.n_volumes = shape[0];
  scene.method = plan.flags.method;
  scene.voxel = voxel;
  scene.trilinear = {plan.step, plan.flags.foot, plan.flags.line};
  STD_TORCH_CHECK(shape[0] > 0 && scene.n_views % shape[0] == 0,
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

// ---- the products

// `values` of 3, 4 or 5 dimensions.
template <class Device>
std::tuple<Tensor, Tensor> project_packed(const Tensor& values_, const Tensor& geometry_,
                                          int64_t handle, Numbers size, Lengths spacing,
                                          int64_t flags, double step, bool with_six) {
  check_devices(Tensors{&values_, &geometry_});
  const Device device(values_);
  const Tensor values = dense(values_), geometry = dense(geometry_);
  const PackedPtr packed = packed_from(values_, handle);
  const std::array<int64_t, 5> shape = volume_shape(values);
  const VoxelType voxel = voxel_of(values);
  ProjectParams p;
  p.scene = scene_of(geometry, shape, voxel, {size, spacing, Flags(flags), step});
  const int64_t views = p.scene.n_views, channels = shape[1], n = p.scene.views.n_rays;
  Tensor image = torch::stable::new_empty(values, {views, channels, n}, scalar_of(voxel));
  Tensor six = with_six
                   ? torch::stable::new_empty(values, {views, channels, 6, n}, scalar_of(voxel))
                   : torch::stable::new_empty(values, {0}, scalar_of(voxel));
  p.values = values.const_data_ptr();
  p.image = image.mutable_data_ptr();
  p.six = with_six ? six.mutable_data_ptr() : nullptr;
  if (packed) p.empty = packed->empty;
  if (image.numel() > 0) device.project(p, packed);
  return {image, six};
}

template <class Device>
std::tuple<Tensor, Tensor> project(const Tensor& values, const Tensor& geometry, Numbers size,
                                   Lengths spacing, int64_t flags, double step, bool with_six) {
  return project_packed<Device>(values, geometry, 0, size, spacing, flags, step, with_six);
}

template <class Device>
Tensor backproject(const Tensor& images_, const Tensor& geometry_, Optional tangent_,
                   Numbers volumes, Numbers size, Lengths spacing, int64_t flags, double step,
                   bool deterministic) {
  check_devices(Tensors{&images_, &geometry_, given(tangent_)});
  STD_TORCH_CHECK(volumes.size() == 4, "drrkit: volumes are (n, nz, ny, nx)");
  const Device device(images_);
  const Tensor images = dense(images_), geometry = dense(geometry_);
  const Tensor tangent = tangent_ ? dense(*tangent_) : geometry;
  const Plan plan = {size, spacing, Flags(flags), step};
  const std::array<int64_t, 5> shape = {volumes[0], images.size(1), volumes[1], volumes[2],
                                        volumes[3]};
  BackprojectParams p;
  p.scene = scene_of(geometry, shape, voxel_of(images), plan);
  check_scalar(images, scalar_of(p.scene.voxel), "images");
  p.tangent = views_of(tangent, size, plan.flags);
  if (!tangent_) p.tangent.geometry = nullptr;
  const bool zeros = Device::kNeedsZeros || images.numel() == 0;
  Tensor values = zeros ? torch::stable::new_zeros(images, {shape.data(), shape.size()})
                        : torch::stable::new_empty(images, {shape.data(), shape.size()});
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
Tensor reduce_typed(const Device& device, const Tensor& six, const Tensor* images, int64_t cols,
                    bool endpoints, Beam beam) {
  const int64_t views = six.size(0), n = six.size(3),
                chunks = (n + kReduceChunk - 1) / kReduceChunk;
  ReduceParams<S> p;
  p.views = {nullptr, endpoints, beam, cols, n};
  p.n_views = views;
  p.n_channels = six.size(1);
  Tensor out = endpoints ? torch::stable::new_empty(six, {views, n, 2, 3}, ScalarType::Double)
                         : torch::stable::new_zeros(six, {views, 4, 3}, ScalarType::Double);
  Tensor partial =
      torch::stable::new_empty(six, {views, endpoints ? 0 : chunks, 12}, ScalarType::Double);
  p.six = static_cast<const S*>(six.const_data_ptr());
  p.images = images ? static_cast<const S*>(images->const_data_ptr()) : nullptr;
  p.partial = partial.mutable_data_ptr<double>();
  p.out = out.mutable_data_ptr<double>();
  if (six.numel() > 0) device.reduce(p);
  return out;
}

template <class Device>
Tensor reduce(const Tensor& six_, Optional images_, int64_t cols, bool endpoints, int64_t flags) {
  check_devices(Tensors{&six_, given(images_)});
  const Device device(six_);
  const Tensor six = dense(six_);
  const Tensor images = images_ ? dense(*images_) : six;
  if (images_) check_scalar(images, six.scalar_type(), "images");
  const Tensor* weights = images_ ? &images : nullptr;
  const Beam beam = Flags(flags).beam;
  if (six.scalar_type() == ScalarType::Double)
    return reduce_typed<Device, double>(device, six, weights, cols, endpoints, beam);
  check_scalar(six, ScalarType::Float, "six");
  return reduce_typed<Device, float>(device, six, weights, cols, endpoints, beam);
}

template <class Device, class S>
Tensor tangent_typed(const Device& device, const Tensor& six, const Views& tangents,
                     int64_t n_tangents) {
  const int64_t views = six.size(0), channels = six.size(1), n = six.size(3);
  Tensor images = torch::stable::new_empty(six, {views, channels, n_tangents, n});
  TangentParams<S> p = {tangents,
                        views,
                        channels,
                        n_tangents,
                        static_cast<const S*>(six.const_data_ptr()),
                        static_cast<S*>(images.mutable_data_ptr())};
  if (images.numel() > 0) device.tangent(p);
  return images;
}

template <class Device>
Tensor tangent(const Tensor& six_, const Tensor& tangents_, Numbers size, int64_t flags) {
  check_devices(Tensors{&six_, &tangents_});
  const Device device(six_);
  const Tensor six = dense(six_), tangents = dense(tangents_);
  // Frames have four dimensions here, as end points have: the third one tells them apart.
  Views views = views_of(tangents, size, Flags(flags));
  views.endpoints = tangents.size(2) == 2;
  if (!views.endpoints) views.n_rays = size[0] * size[1];
  const int64_t n_tangents = views.endpoints ? 1 : tangents.size(1);
  if (six.scalar_type() == ScalarType::Double)
    return tangent_typed<Device, double>(device, six, views, n_tangents);
  check_scalar(six, ScalarType::Float, "six");
  return tangent_typed<Device, float>(device, six, views, n_tangents);
}

template <class Device>
Tensor second(const Tensor& values_, const Tensor& geometry_, const Tensor& images_,
              const Tensor& tangent_, Numbers size, Lengths spacing, int64_t flags, double step) {
  check_devices(Tensors{&values_, &geometry_, &images_, &tangent_});
  const Device device(values_);
  const Tensor values = dense(values_), geometry = dense(geometry_), images = dense(images_),
               tangent = dense(tangent_);
  const Plan plan = {size, spacing, Flags(flags), step};
  SecondParams p;
  p.scene = scene_of(geometry, volume_shape(values), voxel_of(values), plan);
  check_scalar(images, scalar_of(p.scene.voxel), "images");
  p.tangent = views_of(tangent, size, plan.flags);
  Tensor six = torch::stable::new_zeros(values, {geometry.size(0), 1, 6, p.scene.views.n_rays},
                                        ScalarType::Double);
  p.values = values.const_data_ptr();
  p.images = images.const_data_ptr();
  p.six = six.mutable_data_ptr<double>();
  if (six.numel() > 0) device.second(p);
  return six;
}

// ---- the maps of poses

using Cotangents = std::tuple<Tensor, Tensor, Tensor>;
// The inputs x, a cotangent g of the result, directions d of x. Null: g not given, d zero.
using MapTensors = std::array<const Tensor*, 2 * kMapInputs + 1>;

Operand operand_of(const Tensor* t, int64_t n_views) {
  if (t == nullptr) return {};
  check_scalar(*t, ScalarType::Double, "a pose");
  const int64_t items = t->size(0);
  STD_TORCH_CHECK(items == 1 || items == n_views, "drrkit: expected one item, or one per view");
  return {t->const_data_ptr<double>(), items == 1 ? 0 : t->stride(0), t->stride(1),
          t->dim() > 2 ? t->stride(2) : 0};
}

MapParams params_of(const MapTensors& tensors, int64_t bits) {
  MapParams p = {};
  p.n_views = 1;
  for (const Tensor* t : tensors)
    if (t != nullptr && t->size(0) != 1) p.n_views = t->size(0);
  for (int i = 0; i < kMapInputs; ++i) {
    const Tensor* along = tensors[kMapInputs + 1 + i];
    p.inputs[i] = {operand_of(tensors[i], p.n_views), operand_of(along, p.n_views)};
    p.derivative = p.derivative || along != nullptr;
  }
  p.g = operand_of(tensors[kMapInputs], p.n_views);
  p.extend = Flags(bits).extend;
  p.beam = Flags(bits).beam;
  return p;
}

// The map, or with directions its derivative along them.
template <class Device, class Map>
Tensor map_value(const Tensor& x0, const Tensor& x1, const Tensor& x2, Optional d0, Optional d1,
                 Optional d2, int64_t flags) {
  const MapTensors tensors = {&x0, &x1, &x2, nullptr, given(d0), given(d1), given(d2)};
  check_devices(tensors);
  const Device device(x0);
  MapParams p = params_of(tensors, flags);
  Tensor out = torch::stable::new_empty(x0, {p.n_views, Map::kRows, Map::kCols});
  p.out = out.mutable_data_ptr<double>();
  if (p.n_views > 0) device.template map<Map>(p);
  return out;
}

// The cotangents of x for g, one item per view, or with directions their derivatives along them.
template <class Device, class Map>
Cotangents map_vjp(const Tensor& x0, const Tensor& x1, const Tensor& x2, const Tensor& g,
                   Optional d0, Optional d1, Optional d2, int64_t flags) {
  const MapTensors tensors = {&x0, &x1, &x2, &g, given(d0), given(d1), given(d2)};
  check_devices(tensors);
  const Device device(x0);
  MapParams p = params_of(tensors, flags);
  Tensor on[kMapInputs];
  for (int i = 0; i < kMapInputs; ++i) {
    const Tensor& x = *tensors[i];
    on[i] = x.dim() > 2 ? torch::stable::new_empty(x, {p.n_views, x.size(1), x.size(2)})
                        : torch::stable::new_empty(x, {p.n_views, x.size(1)});
    p.on[i] = on[i].mutable_data_ptr<double>();
  }
  if (p.n_views > 0) device.template map<Map>(p);
  return {on[0], on[1], on[2]};
}

template <class Device> void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("project", TORCH_BOX(&project<Device>));
  m.impl("project_packed", TORCH_BOX(&project_packed<Device>));
  m.impl("backproject", TORCH_BOX(&backproject<Device>));
  m.impl("reduce", TORCH_BOX(&reduce<Device>));
  m.impl("tangent", TORCH_BOX(&tangent<Device>));
  m.impl("second", TORCH_BOX(&second<Device>));
  m.impl("perturb", TORCH_BOX((&map_value<Device, Perturb>)));
  m.impl("perturb_vjp", TORCH_BOX((&map_vjp<Device, Perturb>)));
  m.impl("frames", TORCH_BOX((&map_value<Device, Frames>)));
  m.impl("frames_vjp", TORCH_BOX((&map_vjp<Device, Frames>)));
}

}  // namespace

// `geometry` and `tangent` are frames [B, 4, 3] or end points [B, P, 2, 3], `tangents` are frames
// [B, K, 4, 3] or end points [B, P, 2, 3] with K = 1, all float64; `six` are six-vectors
// [B, C, 6, P]; `size` is (rows, cols), `spacing` (x, y, z) mm, `volumes` (n, nz, ny, nx), `flags`
// as in params.h. `handle` names what a projector prepared from `values`, which may then have 3, 4
// or 5 dimensions; one that does not fit them changes nothing.
//
// Maps of poses: one item per view, or one for all: pose [B, 4, 4], xi [B, 6], center [B, 3],
// camera_frame [B, 4, 3], grid [B, 8, 3] (see pose/frames.h), all float64. g is a cotangent of the
// result; where a direction d_* is given, the result is the derivative along all of them.
//
// Private: no autograd here, drrkit.projector adds it.
STABLE_TORCH_LIBRARY(drrkit, m) {
  m.def(
      "project(Tensor values, Tensor geometry, SymInt[] size, float[] spacing, int flags, float "
      "step, bool with_six) -> (Tensor, Tensor)");
  m.def(
      "project_packed(Tensor values, Tensor geometry, SymInt handle, SymInt[] size, float[] "
      "spacing, int flags, float step, bool with_six) -> (Tensor, Tensor)");
  m.def(
      "backproject(Tensor images, Tensor geometry, Tensor? tangent, SymInt[] volumes, SymInt[] "
      "size, float[] spacing, int flags, float step, bool deterministic) -> Tensor");
  m.def("reduce(Tensor six, Tensor? images, SymInt cols, bool endpoints, int flags) -> Tensor");
  m.def("tangent(Tensor six, Tensor tangents, SymInt[] size, int flags) -> Tensor");
  m.def(
      "second(Tensor values, Tensor geometry, Tensor images, Tensor tangent, SymInt[] size, "
      "float[] spacing, int flags, float step) -> Tensor");
  m.def(
      "perturb(Tensor pose, Tensor xi, Tensor center, Tensor? d_pose, Tensor? d_xi, Tensor? "
      "d_center, int flags) -> Tensor");
  m.def(
      "perturb_vjp(Tensor pose, Tensor xi, Tensor center, Tensor g, Tensor? d_pose, Tensor? d_xi, "
      "Tensor? d_center, int flags) -> (Tensor, Tensor, Tensor)");
  m.def(
      "frames(Tensor pose, Tensor camera_frame, Tensor grid, Tensor? d_pose, Tensor? "
      "d_camera_frame, Tensor? d_grid, int flags) -> Tensor");
  m.def(
      "frames_vjp(Tensor pose, Tensor camera_frame, Tensor grid, Tensor g, Tensor? d_pose, Tensor? "
      "d_camera_frame, Tensor? d_grid, int flags) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(drrkit, CPU, m) { implement<Cpu>(m); }
#if defined(DRRKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(drrkit, CUDA, m) { implement<Cuda>(m); }
#endif

}  // namespace drrkit
