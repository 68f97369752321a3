// Whether the volume adjoint gathers by voxel or scatters by ray, and the dispatch of the former.
#include "kernels.h"

namespace drrkit {
namespace cuda {

namespace {

// What the gathering's index arithmetic can hold: pixels and planes are whole numbers in float.
bool can_gather(const Scene& scene) {
  if (scene.views.endpoints) return false;
  const int64_t cols = scene.views.cols, rows = scene.views.rays / cols;
  const int64_t longest = maximum(maximum(scene.grid.nx, scene.grid.ny), scene.grid.nz);
  return scene.views.rays < int64_t(1) << 26 && cols < 1 << 20 && rows < 1 << 20 &&
         longest < 1 << 20;
}

// Counted in instructions a voxel and view, with p pixels a voxel face: a scatter sends 4 p atomic
// additions, measured to cost as much as 110 instructions each. Gathering visits about (3 sqrt(p) +
// 1)^2 pixels for every four voxels, at 26 each, and needs 12 more to find them; half as much again
// for what is not counted. They meet near p = 1 / 8. Below 2^18 voxels the cubes leave processors
// idle. The other products keep a ray's numbers in memory and are no faster than their scatters.
bool gathering_pays(const BackprojectParams& params) {
  const Scene& scene = params.scene;
  if (scene.method != Method::kJoseph || params.tangent.geometry) return false;
  const double voxels = static_cast<double>(scene.grid.voxels());
  const double pixels_a_face = static_cast<double>(scene.views.rays) / cbrt(voxels * voxels);
  return 8 * pixels_a_face >= 1 && voxels * scene.n_volumes >= 262144;
}

}  // namespace

int64_t backproject_workspace(const BackprojectParams& params, bool fixed_order) {
  if (!can_gather(params.scene) || !(fixed_order || gathering_pays(params))) return 0;
  switch (params.scene.method) {
    case Method::kJoseph: return Gather<Joseph>::workspace(params);
    case Method::kSiddon: return Gather<Siddon>::workspace(params);
    default: return Gather<Trilinear>::workspace(params);
  }
}

const char* gather(const BackprojectParams& params, void* stream) {
  switch (params.scene.method) {
    case Method::kJoseph: return Gather<Joseph>::backproject(params, stream);
    case Method::kSiddon: return Gather<Siddon>::backproject(params, stream);
    default: return Gather<Trilinear>::backproject(params, stream);
  }
}

}  // namespace cuda
}  // namespace drrkit
