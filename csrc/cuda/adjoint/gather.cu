// Whether the volume adjoint gathers by voxel or scatters by ray, and the launches of the former:
// no atomics on the volume, every sum in one order. P* of Joseph's method alone gathers.
#include "patches.cuh"

namespace drrkit {
namespace cuda {

namespace {

// What the gathering's index arithmetic can hold: pixels and planes are whole numbers in float.
bool can_gather(const BackprojectParams& params) {
  const Scene& scene = params.scene;
  if (scene.method != Method::kJoseph || params.tangent.geometry || scene.views.endpoints)
    return false;
  const int64_t cols = scene.views.cols, rows = scene.views.n_rays / cols;
  const int64_t longest = maximum(maximum(scene.grid.nx, scene.grid.ny), scene.grid.nz);
  return scene.views.n_rays < int64_t(1) << 26 && cols < 1 << 20 && rows < 1 << 20 &&
         longest < 1 << 20;
}

// Counted in instructions per voxel and view, with p pixels per voxel face: a scatter sends 4 p
// atomic additions, estimated at 110 instructions each (from a prototype's times on one H200).
// Gathering visits about (3 sqrt(p) + 1)^2 pixels for every four voxels, at 26 each, and needs 12
// more to find them; half as much again for what is not counted. They meet near p = 1 / 8. Below
// 2^18 voxels the cubes leave processors idle. Not measured on a GPU.
bool gathering_pays(const Scene& scene) {
  const double voxels = static_cast<double>(scene.grid.voxels());
  const double pixels_per_face = static_cast<double>(scene.views.n_rays) / cbrt(voxels * voxels);
  return 8 * pixels_per_face >= 1 && voxels * scene.n_volumes >= 262144;
}

template <class S> Workspace<S> workspace_of(const BackprojectParams& params) {
  const Scene& scene = params.scene;
  // A batch touches most volumes when it has all views.
  const Plots plots = Plots::of(scene, 0, scene.n_views, ByPatch<S>::channels(scene));
  return Workspace<S>::of(params, plots.blocks, ByPatch<S>::seam(scene));
}

template <class S> const char* gather_scalar(const BackprojectParams& params, cudaStream_t stream) {
  const Scene& scene = params.scene;
  Workspace<S> work = workspace_of<S>(params);
  if (work.bytes > params.workspace_bytes) return "the workspace holds less than one view";
  for (int64_t first = 0; first < scene.n_views; first += work.views) {
    const int64_t views = minimum(work.views, scene.n_views - first);
    work.survey.first_view = first;
    work.survey.n_views = views;
    const char* error = launch(survey_kernel<S>, static_cast<unsigned>(views * work.chunks),
                               kGatherThreads, stream, params, work);
    if (error) return error;
    error =
        launch(bundle_kernel<S>, static_cast<unsigned>(quotient_up(views * kBundles, kGatherWarps)),
               kGatherThreads, stream, scene, work);
    if (error) return error;
    const Plots plots = Plots::of(scene, first, views, ByPatch<S>::channels(scene));
    error = ByPatch<S>::launch_all(params, work, plots, stream);
    if (error) return error;
  }
  return nullptr;
}

}  // namespace

int64_t gather_workspace(const BackprojectParams& params, bool fixed_order) {
  if (!can_gather(params) || !(fixed_order || gathering_pays(params.scene))) return 0;
  if (params.scene.voxel == VoxelType::kFloat64) return workspace_of<double>(params).bytes;
  return workspace_of<float>(params).bytes;
}

const char* gather(const BackprojectParams& params, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (params.scene.voxel == VoxelType::kFloat64) return gather_scalar<double>(params, s);
  return gather_scalar<float>(params, s);
}

}  // namespace cuda
}  // namespace drrkit
