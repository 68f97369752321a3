// The products of csrc/cuda for ctypes: plain C functions that fill the kernels' parameters. Each
// returns null, or the launcher's error.
#include "../../csrc/cuda/kernels.h"
#include "emulation.h"
#include "scene.h"

using namespace drrkit;

namespace {

template <class S>
const char* reduce_typed(const SceneNumbers& n, const void* six, const void* images,
                         double* partial, double* out) {
  return cuda::reduce(
      ReduceParams<S>{views_of(n, nullptr), n.n_views, n.n_channels, static_cast<const S*>(six),
                      static_cast<const S*>(images), partial, out},
      nullptr);
}

template <class S>
const char* tangent_typed(const SceneNumbers& n, const double* tangents, int64_t n_tangents,
                          const void* six, void* images) {
  return cuda::tangent(TangentParams<S>{views_of(n, tangents), n.n_views, n.n_channels, n_tangents,
                                        static_cast<const S*>(six), static_cast<S*>(images)},
                       nullptr);
}

bool is_double(const SceneNumbers& n) {
  return static_cast<VoxelType>(n.voxel) == VoxelType::kFloat64;
}

}  // namespace

extern "C" {

const char* emulated_project(const SceneNumbers* n, const double* geometry, const void* values,
                             void* image, void* six) {
  return cuda::project({scene_of(*n, geometry), values, image, six, {}}, nullptr);
}

const char* emulated_backproject(const SceneNumbers* n, const double* geometry,
                                 const double* tangent, const void* images, void* values,
                                 int64_t* fixed, int64_t* peak, void* workspace,
                                 int64_t workspace_bytes) {
  return cuda::backproject({scene_of(*n, geometry), views_of(*n, tangent), images, values, fixed,
                            peak, workspace, workspace_bytes},
                           nullptr);
}

int64_t emulated_gather_workspace(const SceneNumbers* n, const double* geometry,
                                  const double* tangent, int fixed_order) {
  BackprojectParams params = {
      scene_of(*n, geometry), views_of(*n, tangent), nullptr, nullptr, nullptr, nullptr};
  return cuda::gather_workspace(params, fixed_order != 0);
}

const char* emulated_second(const SceneNumbers* n, const double* geometry, const double* tangent,
                            const void* values, const void* images, double* six) {
  return cuda::second({scene_of(*n, geometry), views_of(*n, tangent), values, images, six},
                      nullptr);
}

const char* emulated_reduce(const SceneNumbers* n, const void* six, const void* images,
                            double* partial, double* out) {
  return is_double(*n) ? reduce_typed<double>(*n, six, images, partial, out)
                       : reduce_typed<float>(*n, six, images, partial, out);
}

const char* emulated_tangent(const SceneNumbers* n, const double* tangents, int64_t n_tangents,
                             const void* six, void* images) {
  return is_double(*n) ? tangent_typed<double>(*n, tangents, n_tangents, six, images)
                       : tangent_typed<float>(*n, tangents, n_tangents, six, images);
}

int64_t emulated_reduce_chunk() { return kReduceChunk; }

void emulated_options(uint64_t seed, bool backwards, int multiprocessors) {
  emulated::options() = {seed, backwards, multiprocessors};
}
void emulated_counts(emulated::Counts* counts) { *counts = emulated::counts(); }
}
