// The volume adjoint by gathering: no atomics on the volume, every sum in one order.
#pragma once

#include "cubes.cuh"
#include "patches.cuh"

namespace drrkit {
namespace cuda {

// Who owns what is gathered: patches for P* of Joseph's method, cubes for everything else.
template <class Weights, class S> struct GatheringOf {
  using type = ByCube<Weights, S>;
};
template <class S> struct GatheringOf<JosephPatches<S>, S> {
  using type = ByPatch<S>;
};

template <class Weights, class S> struct Gathering {
  using By = typename GatheringOf<Weights, S>::type;

  static Workspace<S> workspace(const BackprojectParams& params) {
    const Scene& scene = params.scene;
    // A batch touches most volumes when it has all views.
    const Bricks bricks = Bricks::of(scene, 0, scene.n_views, By::channels(scene));
    return Workspace<S>::template of<Weights>(params, bricks.blocks, By::seam(scene));
  }

  static const char* run(const BackprojectParams& params, void* stream_) {
    cudaStream_t stream = static_cast<cudaStream_t>(stream_);
    const Scene& scene = params.scene;
    Workspace<S> work = workspace(params);
    if (work.bytes > params.workspace_bytes) return "the workspace holds less than one view";
    for (int64_t first = 0; first < scene.n_views; first += work.views) {
      const int64_t views = minimum(work.views, scene.n_views - first);
      work.survey.first_view = first;
      work.survey.n_views = views;
      const char* error = launch(survey_kernel<Weights, S>, blocks_of(views * work.chunks, 1),
                                 kGatherThreads, stream, params, work);
      if (error) return error;
      error = launch(bundle_kernel<S>, blocks_of(views * kBundles, kGatherWarps), kGatherThreads,
                     stream, scene, work, Weights::kReach);
      if (error) return error;
      const Bricks bricks = Bricks::of(scene, first, views, By::channels(scene));
      error = By::launch_all(params, work, bricks, stream);
      if (error) return error;
    }
    return nullptr;
  }
  static unsigned blocks_of(int64_t tasks, int64_t a_block) {
    return static_cast<unsigned>((tasks + a_block - 1) / a_block);
  }
};

// Calls `task` with the gathering that a call needs.
template <template <class> class March, class Task>
auto with_gathering(const BackprojectParams& params, const Task& task) {
  const bool tangent = params.tangent.geometry != nullptr;
  if (params.scene.voxel == Voxel::kFloat64)
    return tangent ? task(Gathering<typename WeightsOf<March, double, true>::type, double>())
                   : task(Gathering<typename WeightsOf<March, double, false>::type, double>());
  return tangent ? task(Gathering<typename WeightsOf<March, float, true>::type, float>())
                 : task(Gathering<typename WeightsOf<March, float, false>::type, float>());
}

template <template <class> class March>
const char* Gather<March>::backproject(const BackprojectParams& params, void* stream) {
  return with_gathering<March>(
      params, [&](auto gathering) { return decltype(gathering)::run(params, stream); });
}

template <template <class> class March>
int64_t Gather<March>::workspace(const BackprojectParams& params) {
  return with_gathering<March>(
      params, [&](auto gathering) { return decltype(gathering)::workspace(params).bytes; });
}

}  // namespace cuda
}  // namespace drrkit
