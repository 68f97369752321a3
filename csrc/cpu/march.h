// Bodies of the marching kernels, one template for all integrators; instantiated once an integrator
// (joseph.cpp, ...), so that the build runs in parallel.
#pragma once

#include <limits>

#include "dispatch.h"
#include "kernels.h"

namespace drrkit {
namespace cpu {

template <class March, class Voxel, class Index, bool kRays>
DRR_HD void project_range(const ProjectParams& params, int64_t begin, int64_t end) {
  using S = typename March::Scalar;
  const Scene& scene = params.scene;
  const int64_t n_rays = scene.views.rays, voxels = scene.grid.voxels(),
                channels = scene.n_channels;
  const Slab whole = {0, scene.grid.nz};
  for (int64_t r = begin; r < end; ++r) {
    const int64_t view = r / n_rays, pixel = r % n_rays;
    March march;
    make_march(march, scene, scene.views.ray(view, pixel), whole);
    const Voxel* volume =
        static_cast<const Voxel*>(params.values) + scene.volume_of(view) * channels * voxels;
    for (int64_t c = 0; c < channels; ++c) {
      typename March::Sums sums;
      march.template gather<kRays ? 1 : 0, Voxel, Index>(volume + c * voxels, 0, 1, sums);
      const int64_t row = view * channels + c;
      static_cast<S*>(params.image)[row * n_rays + pixel] = static_cast<S>(march.image(sums));
      if (kRays) {
        const RayResult result = march.derivatives(sums);
        S* out = static_cast<S*>(params.rays) + row * 6 * n_rays + pixel;
        out[0] = static_cast<S>(result.ds.x);
        out[n_rays] = static_cast<S>(result.ds.y);
        out[2 * n_rays] = static_cast<S>(result.ds.z);
        out[3 * n_rays] = static_cast<S>(result.dp.x);
        out[4 * n_rays] = static_cast<S>(result.dp.y);
        out[5 * n_rays] = static_cast<S>(result.dp.z);
      }
    }
  }
}

template <class March, class Voxel, class Index>
DRR_HD void second_range(const SecondParams& params, int64_t begin, int64_t end) {
  using S = typename March::Scalar;
  const Scene& scene = params.scene;
  const int64_t n_rays = scene.views.rays, voxels = scene.grid.voxels(),
                channels = scene.n_channels;
  const Slab whole = {0, scene.grid.nz};
  for (int64_t r = begin; r < end; ++r) {
    const int64_t view = r / n_rays, pixel = r % n_rays;
    March march;
    make_march(march, scene, scene.views.ray(view, pixel), whole);
    const Ray tangent = params.tangent.ray(view, pixel);
    const Voxel* volume =
        static_cast<const Voxel*>(params.values) + scene.volume_of(view) * channels * voxels;
    Vec3 on_s = {0, 0, 0}, on_p = {0, 0, 0};
    for (int64_t c = 0; c < channels; ++c) {
      typename March::Sums sums;
      march.template gather<2, Voxel, Index>(volume + c * voxels, 0, 1, sums);
      const Ray k = march.second(sums, tangent);
      const double weight =
          static_cast<const S*>(params.images)[(view * channels + c) * n_rays + pixel];
      on_s = on_s + weight * k.s;
      on_p = on_p + weight * k.p;
    }
    double* out = params.rays + view * 6 * n_rays + pixel;
    out[0] = on_s.x;
    out[n_rays] = on_s.y;
    out[2 * n_rays] = on_s.z;
    out[3 * n_rays] = on_p.x;
    out[4 * n_rays] = on_p.y;
    out[5 * n_rays] = on_p.z;
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

template <class March, class Voxel, class Index, bool kRays>
void project_base(const ProjectParams& params, int64_t begin, int64_t end) {
  project_range<March, Voxel, Index, kRays>(params, begin, end);
}
template <class March, class Voxel, class Index>
void second_base(const SecondParams& params, int64_t begin, int64_t end) {
  second_range<March, Voxel, Index>(params, begin, end);
}
template <class March, bool kTangent>
void backproject_base(const BackprojectParams& params, int64_t volume, Slab slab) {
  backproject_range<March, kTangent>(params, volume, slab);
}

#if defined(DRR_X86_VARIANTS)
template <class March, class Voxel, bool kRays>
DRR_TARGET_AVX2 void project_avx2(const ProjectParams& params, int64_t begin, int64_t end) {
  project_range<March, Voxel, int32_t, kRays>(params, begin, end);
}
template <class March, class Voxel, bool kRays>
DRR_TARGET_AVX512 void project_avx512(const ProjectParams& params, int64_t begin, int64_t end) {
  project_range<March, Voxel, int32_t, kRays>(params, begin, end);
}
template <class March, class Voxel>
DRR_TARGET_AVX2 void second_avx2(const SecondParams& params, int64_t begin, int64_t end) {
  second_range<March, Voxel, int32_t>(params, begin, end);
}
template <class March, class Voxel>
DRR_TARGET_AVX512 void second_avx512(const SecondParams& params, int64_t begin, int64_t end) {
  second_range<March, Voxel, int32_t>(params, begin, end);
}
template <class March, bool kTangent>
DRR_TARGET_AVX2 void backproject_avx2(const BackprojectParams& params, int64_t volume, Slab slab) {
  backproject_range<March, kTangent>(params, volume, slab);
}
#endif

// A volume past 2^31 voxels needs 64-bit indices, which only the base variant has: gathers take
// 32-bit ones.
inline bool small(const Grid& grid) { return grid.voxels() < std::numeric_limits<int32_t>::max(); }

template <class March, class Voxel, bool kRays>
void project_level(const ProjectParams& params, int64_t begin, int64_t end) {
#if defined(DRR_X86_VARIANTS)
  if (small(params.scene.grid) && level() == Level::kAvx512)
    return project_avx512<March, Voxel, kRays>(params, begin, end);
  if (small(params.scene.grid) && level() == Level::kAvx2)
    return project_avx2<March, Voxel, kRays>(params, begin, end);
#endif
  project_base<March, Voxel, int64_t, kRays>(params, begin, end);
}

template <class March, class Voxel>
void project_voxel(const ProjectParams& params, int64_t begin, int64_t end) {
  if (params.rays != nullptr) return project_level<March, Voxel, true>(params, begin, end);
  project_level<March, Voxel, false>(params, begin, end);
}

template <class March, class Voxel>
void second_voxel(const SecondParams& params, int64_t begin, int64_t end) {
#if defined(DRR_X86_VARIANTS)
  if (small(params.scene.grid) && level() == Level::kAvx512)
    return second_avx512<March, Voxel>(params, begin, end);
  if (small(params.scene.grid) && level() == Level::kAvx2)
    return second_avx2<March, Voxel>(params, begin, end);
#endif
  second_base<March, Voxel, int64_t>(params, begin, end);
}

template <class March>
void backproject_scalar(const BackprojectParams& params, int64_t volume, Slab slab) {
  const bool tangent = params.tangent.geometry != nullptr;
#if defined(DRR_X86_VARIANTS)
  if (level() >= Level::kAvx2) {
    if (tangent) return backproject_avx2<March, true>(params, volume, slab);
    return backproject_avx2<March, false>(params, volume, slab);
  }
#endif
  if (tangent) return backproject_base<March, true>(params, volume, slab);
  backproject_base<March, false>(params, volume, slab);
}

template <template <class> class March>
void Kernels<March>::project(const ProjectParams& params, int64_t begin, int64_t end) {
  switch (params.scene.voxel) {
    case Voxel::kFloat16: return project_voxel<March<float>, Half>(params, begin, end);
    case Voxel::kBFloat16: return project_voxel<March<float>, BFloat16>(params, begin, end);
    case Voxel::kFloat32: return project_voxel<March<float>, float>(params, begin, end);
    case Voxel::kFloat64: return project_voxel<March<double>, double>(params, begin, end);
  }
}

template <template <class> class March>
void Kernels<March>::second(const SecondParams& params, int64_t begin, int64_t end) {
  switch (params.scene.voxel) {
    case Voxel::kFloat16: return second_voxel<March<float>, Half>(params, begin, end);
    case Voxel::kBFloat16: return second_voxel<March<float>, BFloat16>(params, begin, end);
    case Voxel::kFloat32: return second_voxel<March<float>, float>(params, begin, end);
    case Voxel::kFloat64: return second_voxel<March<double>, double>(params, begin, end);
  }
}

template <template <class> class March>
void Kernels<March>::backproject(const BackprojectParams& params, int64_t volume, Slab slab) {
  if (params.scene.voxel == Voxel::kFloat64)
    return backproject_scalar<March<double>>(params, volume, slab);
  backproject_scalar<March<float>>(params, volume, slab);
}

}  // namespace cpu
}  // namespace drrkit
