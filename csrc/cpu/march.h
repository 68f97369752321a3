// Bodies of the marching kernels, one template for all integrators; portable.cpp, avx2.cpp and
// avx512.cpp instantiate them for one instruction set each.
#pragma once

#include "dispatch.h"
#include "kernels.h"
#include "panel.h"

namespace drrkit {
namespace cpu {

// What becomes of the sums of a channel's rays.
template <class S, bool kRays> struct ImageStore {
  S* image;  // [P]
  S* rays;   // [6, P]
  int64_t n_rays;

  template <class March, class Sums>
  DRR_HD void operator()(int64_t pixel, const March& march, const Sums& sums) const {
    image[pixel] = static_cast<S>(march.image(sums));
    if (!kRays) return;
    const RayResult result = march.derivatives(sums);
    for (int axis = 0; axis < 3; ++axis) {
      rays[axis * n_rays + pixel] = static_cast<S>(result.ds[axis]);
      rays[(3 + axis) * n_rays + pixel] = static_cast<S>(result.dp[axis]);
    }
  }
};

template <class S> struct SecondStore {
  const S* weights;  // [P] of the channel
  double* rays;      // [6, P], zeroed before the first channel
  Views tangent;
  int64_t view, n_rays;

  template <class March, class Sums>
  DRR_HD void operator()(int64_t pixel, const March& march, const Sums& sums) const {
    const Ray k = march.second(sums, tangent.ray(view, pixel));
    const double weight = weights[pixel];
    for (int axis = 0; axis < 3; ++axis) {
      rays[axis * n_rays + pixel] += weight * k.s[axis];
      rays[(3 + axis) * n_rays + pixel] += weight * k.p[axis];
    }
  }
};

// The volume of a view, as it is stored.
DRR_HD const void* channel_of(const Scene& scene, const void* values, int64_t view,
                              int64_t channel) {
  const int64_t width = scene.voxel == Voxel::kFloat64 ? 8 : scene.voxel == Voxel::kFloat32 ? 4 : 2;
  const int64_t index = scene.volume_of(view) * scene.n_channels + channel;
  return static_cast<const unsigned char*>(values) + index * scene.grid.voxels() * width;
}

// Panels are numbered view * panels a view + panel.
template <template <class, int> class Tile, class S, int N, bool kRays>
void project_panels(const ProjectParams& params, int64_t begin, int64_t end) {
  const Scene& scene = params.scene;
  const Panels panels = Panels::of(scene.views, N);
  using March = PanelMarch<Tile, S, N, kRays ? 1 : 0>;
  March march(scene, panels, room(March::bytes(panels)));
  const int64_t n = scene.views.rays;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t view = i / panels.a_view();
    march.set_up(panels, view, i % panels.a_view());
    for (int64_t c = 0; c < scene.n_channels; ++c) {
      const int64_t row = view * scene.n_channels + c;
      march.gather(channel_of(scene, params.values, view, c), params.bricks, scene.volume_of(view));
      march.finish(
          ImageStore<S, kRays>{static_cast<S*>(params.image) + row * n,
                               kRays ? static_cast<S*>(params.rays) + row * 6 * n : nullptr, n});
    }
  }
}

template <template <class, int> class Tile, class S, int N>
void second_panels(const SecondParams& params, int64_t begin, int64_t end) {
  const Scene& scene = params.scene;
  const Panels panels = Panels::of(scene.views, N);
  using March = PanelMarch<Tile, S, N, 2>;
  March march(scene, panels, room(March::bytes(panels)));
  const int64_t n = scene.views.rays;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t view = i / panels.a_view();
    march.set_up(panels, view, i % panels.a_view());
    for (int64_t c = 0; c < scene.n_channels; ++c) {
      march.gather(channel_of(scene, params.values, view, c), Bricks{nullptr, nullptr, 0, 0, 0}, 0);
      march.finish(
          SecondStore<S>{static_cast<const S*>(params.images) + (view * scene.n_channels + c) * n,
                         params.rays + view * 6 * n, params.tangent, view, n});
    }
  }
}

// Adds weight times each channel's cotangent to the voxels of [begin, end), a slab of planes. With
// kChannels > 0 their number is known and the cotangents stay in registers.
template <class S, int kChannels> struct SlabSink {
  S* values;           // channel 0 of the volume
  const S* cotangent;  // channel 0 of the ray's pixel
  int64_t begin, end, voxels, n_rays, channels;
  S kept[kChannels > 0 ? kChannels : 1];

  DRR_HD void aim(const S* pixel) {
    cotangent = pixel;
    for (int c = 0; c < kChannels; ++c) kept[c] = pixel[c * n_rays];
  }
  DRR_HD void add(int64_t at, S weight) {
    if (static_cast<uint64_t>(at - begin) >= static_cast<uint64_t>(end - begin)) return;
    if (kChannels > 0) {
      for (int c = 0; c < kChannels; ++c) values[c * voxels + at] += weight * kept[c];
    } else {
      for (int64_t c = 0; c < channels; ++c)
        values[c * voxels + at] += weight * cotangent[c * n_rays];
    }
  }
};

template <class March, bool kTangent, int kChannels>
DRR_HD void backproject_channels(const BackprojectParams& params, int64_t volume, Slab slab) {
  using S = typename March::Scalar;
  const Scene& scene = params.scene;
  const int64_t n_rays = scene.views.rays, voxels = scene.grid.voxels(),
                channels = scene.n_channels;
  const int64_t per_volume = scene.n_views / scene.n_volumes, plane = scene.grid.nx * scene.grid.ny;
  SlabSink<S, kChannels> sink = {static_cast<S*>(params.values) + volume * channels * voxels,
                                 nullptr,
                                 slab.begin * plane,
                                 slab.end * plane,
                                 voxels,
                                 n_rays,
                                 channels,
                                 {}};
  for (int64_t view = volume * per_volume; view < (volume + 1) * per_volume; ++view) {
    for (int64_t pixel = 0; pixel < n_rays; ++pixel) {
      March march;
      make_march(march, scene, scene.views.ray(view, pixel), slab);
      if (march.samples.begin == march.samples.end) continue;
      sink.aim(static_cast<const S*>(params.images) + view * channels * n_rays + pixel);
      const Ray tangent = kTangent ? params.tangent.ray(view, pixel) : Ray{{0, 0, 0}, {0, 0, 0}};
      march.template scatter<kTangent>(tangent, 0, 1, sink);
    }
  }
}

template <class March, bool kTangent>
DRR_HD void backproject_range(const BackprojectParams& params, int64_t volume, Slab slab) {
  switch (params.scene.n_channels) {
    case 1: return backproject_channels<March, kTangent, 1>(params, volume, slab);
    case 3: return backproject_channels<March, kTangent, 3>(params, volume, slab);
    default: return backproject_channels<March, kTangent, 0>(params, volume, slab);
  }
}

template <template <class> class March, template <class, int> class Tile, Level kLevel>
void Kernels<March, Tile, kLevel>::project(const ProjectParams& params, int64_t begin,
                                           int64_t end) {
  constexpr int kFloats = lanes_of<float>(kLevel), kDoubles = lanes_of<double>(kLevel);
  const bool rays = params.rays != nullptr;
  if (params.scene.voxel == Voxel::kFloat64) {
    if (rays) return project_panels<Tile, double, kDoubles, true>(params, begin, end);
    return project_panels<Tile, double, kDoubles, false>(params, begin, end);
  }
  if (rays) return project_panels<Tile, float, kFloats, true>(params, begin, end);
  project_panels<Tile, float, kFloats, false>(params, begin, end);
}

template <template <class> class March, template <class, int> class Tile, Level kLevel>
void Kernels<March, Tile, kLevel>::second(const SecondParams& params, int64_t begin, int64_t end) {
  if (params.scene.voxel == Voxel::kFloat64)
    return second_panels<Tile, double, lanes_of<double>(kLevel)>(params, begin, end);
  second_panels<Tile, float, lanes_of<float>(kLevel)>(params, begin, end);
}

template <template <class> class March, template <class, int> class Tile, Level kLevel>
void Kernels<March, Tile, kLevel>::backproject(const BackprojectParams& params, int64_t volume,
                                               Slab slab) {
  const bool tangent = params.tangent.geometry != nullptr;
  if (params.scene.voxel == Voxel::kFloat64) {
    if (tangent) return backproject_range<March<double>, true>(params, volume, slab);
    return backproject_range<March<double>, false>(params, volume, slab);
  }
  if (tangent) return backproject_range<March<float>, true>(params, volume, slab);
  backproject_range<March<float>, false>(params, volume, slab);
}

}  // namespace cpu
}  // namespace drrkit
