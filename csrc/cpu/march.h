// Bodies of the marching kernels, one template for all integrators; instances.h instantiates
// them for one instruction set each.
#pragma once

#include "dispatch.h"
#include "kernels.h"
#include "panel.h"
#include "scatter.h"

namespace drrkit {
namespace cpu {

// What becomes of the sums of a channel's rays.
template <class S, bool kSix> struct ImageStore {
  S* image;  // [P]
  S* six;    // [6, P]
  int64_t n_rays;
  double scale;  // of the image

  template <class March, class Sums>
  DRR_HD void operator()(int64_t pixel, const March& march, const Sums& sums) const {
    image[pixel] = static_cast<S>(scale * march.image(sums));
    if (!kSix) return;
    const RayResult result = march.derivatives(sums);
    for (int axis = 0; axis < 3; ++axis) {
      six[axis * n_rays + pixel] = static_cast<S>(result.ds[axis]);
      six[(3 + axis) * n_rays + pixel] = static_cast<S>(result.dp[axis]);
    }
  }
};

template <class S> struct SecondStore {
  const S* weights;  // [P] of the channel
  double* six;       // [6, P], zeroed before the first channel
  Views tangent;
  int64_t view, n_rays;

  template <class March, class Sums>
  DRR_HD void operator()(int64_t pixel, const March& march, const Sums& sums) const {
    const Ray k = march.second(sums, tangent.ray(view, pixel));
    const double weight = weights[pixel];
    for (int axis = 0; axis < 3; ++axis) {
      six[axis * n_rays + pixel] += weight * k.s[axis];
      six[(3 + axis) * n_rays + pixel] += weight * k.p[axis];
    }
  }
};

// The volume of a view, as it is stored.
DRR_HD const void* values_of(const Scene& scene, const void* values, int64_t view,
                             int64_t channel) {
  const int64_t index = scene.volume_of(view) * scene.n_channels + channel;
  return static_cast<const unsigned char*>(values) +
         index * scene.grid.voxels() * voxel_bytes(scene.voxel);
}

// Panels are numbered panel * views + view: views of much the same direction find in the cache what
// the one before them read.
template <template <class, int> class Tile, class S, int N, bool kSix>
void project_panels(const ProjectParams& params, int64_t begin, int64_t end) {
  const Scene& scene = params.scene;
  const Panels panels = Panels::of(scene.views, N);
  using March = PanelMarch<Tile, S, N, kSix ? 1 : 0>;
  March march(scene, panels, room(March::bytes(panels)));
  const int64_t n = scene.views.n_rays;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t view = i % scene.n_views;
    march.set_up(panels, view, i / scene.n_views);
    for (int64_t c = 0; c < scene.n_channels; ++c) {
      const int64_t row = view * scene.n_channels + c;
      const int64_t of_volume = scene.volume_of(view) * scene.n_channels + c;
      march.gather(values_of(scene, params.values, view, c), params.empty, scene.volume_of(view));
      march.finish(ImageStore<S, kSix>{static_cast<S*>(params.image) + row * n,
                                       kSix ? static_cast<S*>(params.six) + row * 6 * n : nullptr,
                                       n, params.scale ? params.scale[of_volume] : 1.0});
    }
  }
}

template <template <class, int> class Tile, class S, int N>
void second_panels(const SecondParams& params, int64_t begin, int64_t end) {
  const Scene& scene = params.scene;
  const Panels panels = Panels::of(scene.views, N);
  using March = PanelMarch<Tile, S, N, 2>;
  March march(scene, panels, room(March::bytes(panels)));
  const int64_t n = scene.views.n_rays;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t view = i % scene.n_views;
    march.set_up(panels, view, i / scene.n_views);
    for (int64_t c = 0; c < scene.n_channels; ++c) {
      march.gather(values_of(scene, params.values, view, c), EmptySpace{}, 0);
      march.finish(
          SecondStore<S>{static_cast<const S*>(params.images) + (view * scene.n_channels + c) * n,
                         params.six + view * 6 * n, params.tangent, view, n});
    }
  }
}

template <template <class, int> class Tile, class S, int N, bool kTangent>
void backproject_panels(const BackprojectParams& params, int64_t volume, Slab slab) {
  const Scene& scene = params.scene;
  const Panels panels = Panels::of(scene.views, N);
  using Scatter = PanelScatter<Tile, S, N, kTangent>;
  Scatter scatter(params, slab, panels, room(Scatter::bytes(panels)));
  const int64_t per_volume = scene.n_views / scene.n_volumes, channels = scene.n_channels;
  const int64_t rows = scene.grid.nz * scene.grid.ny;
  for (int64_t panel = 0; panel < panels.a_view(); ++panel)
    for (int64_t view = volume * per_volume; view < (volume + 1) * per_volume; ++view) {
      if (scatter.misses_slab(panels, view, panel)) continue;
      scatter.set_up(panels, view, panel);
      for (int64_t c = 0; c < channels; ++c)
        scatter.scatter(
            static_cast<const S*>(params.images) + (view * channels + c) * scene.views.n_rays,
            static_cast<S*>(params.values) + (volume * channels + c) * scene.grid.voxels(),
            params.touched + (volume * channels + c) * rows);
    }
  for (int64_t row = volume * channels * rows; row < (volume + 1) * channels * rows; ++row) {
    const int64_t z = row % rows / scene.grid.ny;
    if (z >= slab.begin && z < slab.end && !params.touched[row])
      __builtin_memset(static_cast<S*>(params.values) + row * scene.grid.nx, 0,
                       scene.grid.nx * sizeof(S));
  }
}

template <template <class> class March, template <class, int> class Tile, Level kLevel>
void CpuKernels<March, Tile, kLevel>::project(const ProjectParams& params, int64_t begin,
                                              int64_t end) {
  constexpr int kFloats = lanes_of<float>(kLevel), kDoubles = lanes_of<double>(kLevel);
  const bool six = params.six != nullptr;
  if (params.scene.voxel == VoxelType::kFloat64) {
    if (six) return project_panels<Tile, double, kDoubles, true>(params, begin, end);
    return project_panels<Tile, double, kDoubles, false>(params, begin, end);
  }
  if (six) return project_panels<Tile, float, kFloats, true>(params, begin, end);
  project_panels<Tile, float, kFloats, false>(params, begin, end);
}

template <template <class> class March, template <class, int> class Tile, Level kLevel>
void CpuKernels<March, Tile, kLevel>::second(const SecondParams& params, int64_t begin,
                                             int64_t end) {
  if (params.scene.voxel == VoxelType::kFloat64)
    return second_panels<Tile, double, lanes_of<double>(kLevel)>(params, begin, end);
  second_panels<Tile, float, lanes_of<float>(kLevel)>(params, begin, end);
}

template <template <class> class March, template <class, int> class Tile, Level kLevel>
void CpuKernels<March, Tile, kLevel>::backproject(const BackprojectParams& params, int64_t volume,
                                                  Slab slab) {
  constexpr int kFloats = lanes_of<float>(kLevel), kDoubles = lanes_of<double>(kLevel);
  const bool tangent = params.tangent.geometry != nullptr;
  if (params.scene.voxel == VoxelType::kFloat64) {
    if (tangent) return backproject_panels<Tile, double, kDoubles, true>(params, volume, slab);
    return backproject_panels<Tile, double, kDoubles, false>(params, volume, slab);
  }
  if (tangent) return backproject_panels<Tile, float, kFloats, true>(params, volume, slab);
  backproject_panels<Tile, float, kFloats, false>(params, volume, slab);
}

}  // namespace cpu
}  // namespace drrkit
