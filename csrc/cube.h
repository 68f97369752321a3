// The volume adjoint by gathering: the survey of the pixels, and the visit of the voxels for all
// products but P* of Joseph's method.
//
// A cube is 2 x 2 x 2 voxels, whose sums one thread owns; a tile is one of its two planes across
// the rays. A pixel that is looked at serves the four voxels of a tile.
#pragma once

#include "weights.h"

namespace drrkit {

// What is known of the pixels before the voxels are visited.
template <class S> struct Survey {
  int64_t first_view, n_views;  // V of them
  S* images;                    // [V, C, P]
  S *low, *high;                // [V, P]
  S* numbers;                   // [V, kNumbers, P]
  uint8_t* bundle;              // [V, P]

  template <class Weights>
  DRR_HD Pixels<S> pixels(const Scene& scene, int64_t v, int64_t channel) const {
    const int64_t n = scene.views.rays;
    return {images + (v * scene.n_channels + channel) * n,
            bundle + v * n,
            low + v * n,
            high + v * n,
            numbers + v * Weights::kNumbers * n,
            static_cast<int32_t>(n),
            static_cast<int32_t>(scene.views.cols),
            static_cast<int32_t>(scene.n_channels - channel)};
  }
};

// Surveys one pixel of the v-th view.
template <class Weights, class S>
DRR_HD Member survey_pixel(const BackprojectParams& params, const Survey<S>& survey, int64_t v,
                           int64_t pixel) {
  const Scene& scene = params.scene;
  const int64_t n = scene.views.rays, view = survey.first_view + v;
  const Ray ray = scene.views.ray(view, pixel);
  const Member member = Member::of(scene.grid, ray, Weights::kReach);
  const bool found = member.bundle < kBundles;
  const double middle = Bundle<S>::middle_of(scene.grid)[found ? member.bundle / 2 : 0];
  survey.bundle[v * n + pixel] = static_cast<uint8_t>(member.bundle);
  survey.low[v * n + pixel] = static_cast<S>(member.first - middle);
  survey.high[v * n + pixel] = static_cast<S>(member.last - middle);
  const S factor = static_cast<S>(Weights::factor(scene, member));
  for (int64_t c = 0; c < scene.n_channels; ++c) {
    const S g = static_cast<const S*>(params.images)[(view * scene.n_channels + c) * n + pixel];
    survey.images[(v * scene.n_channels + c) * n + pixel] = found ? factor * g : static_cast<S>(0);
  }
  if (Weights::kNumbers > 0 && found) {
    S numbers[Weights::kNumbers > 0 ? Weights::kNumbers : 1];
    const Ray none = {{0, 0, 0}, {0, 0, 0}};
    Weights::keep(scene, ray, params.tangent.geometry ? params.tangent.ray(view, pixel) : none,
                  numbers);
    S* out = survey.numbers + v * Weights::kNumbers * n + pixel;
    for (int i = 0; i < Weights::kNumbers; ++i) out[i * n] = numbers[i];
  }
  return member;
}

// (x, y, z) along (m, a, b).
template <int kAxis, class S> DRR_HD Tile<S> along(int64_t x, int64_t y, int64_t z) {
  const S on_x = static_cast<S>(x), on_y = static_cast<S>(y), on_z = static_cast<S>(z);
  if (kAxis == 0) return {on_x, on_y, on_z};
  if (kAxis == 1) return {on_y, on_x, on_z};
  return {on_z, on_x, on_y};
}

// Left alone, the compiler holds a whole bundle in registers, spills others, and then fetches what
// the innermost loop needs with every pixel. The first of these makes it fetch anew, from shared
// memory; the second makes it keep a value.
DRR_HD void forget() {
#if defined(__CUDA_ARCH__)
  asm volatile("" ::: "memory");
#endif
}
DRR_HD float keep(float x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+f"(x));
#endif
  return x;
}
DRR_HD double keep(double x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+d"(x));
#endif
  return x;
}
DRR_HD int64_t keep(int64_t x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

// Adds a bundle's rays to one plane of a cube: its lowest voxel is (k, a, b) along (m, a, b).
template <int kAxis, int kPlane, bool kPlain, int kChannels, class Weights, class S>
DRR_HD void gather_tile(const Bundle<S>& bundle, const Pixels<S>& pixels, const Tile<S>& tile,
                        const Tile<S>& middle, S (&sums)[kChannels][8]) {
  constexpr int kA = kAxis == 0 ? 1 : 0, kB = kAxis == 2 ? 1 : 2;
  const S half = static_cast<S>(0.5), k = tile.k - middle.k;
  forget();
  Window<S> window;
  if (!window.look(bundle, k, tile.a - middle.a + half, tile.b - middle.b + half,
                   bundle.reach_a + half, bundle.reach_b + half))
    return;
#pragma unroll 1
  for (S i = window.rows.lo; i <= window.rows.hi; i += 1) {
    const Span<S> cols = window.columns(bundle, i);
    int32_t pixel =
        bundle.pixel + whole(i) * bundle.stride_row + whole(cols.lo) * bundle.stride_col;
#pragma unroll 1
    for (S j = cols.lo; j <= cols.hi; j += 1, pixel += bundle.stride_col) {
      if (!kPlain && !pixels.has(pixel, bundle.id, k)) continue;
      const S first = fetch(pixels.images + pixel);
      S w[4];
      Weights::template weigh<kPlain>(tile, pixels, pixel,
                                      kChannels == 1 ? first : static_cast<S>(1), w);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const S g = c == 0 ? first : fetch(pixels.image(c) + pixel);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          const int at = kPlane << kAxis | (corner & 1) << kA | corner >> 1 << kB;
          sums[c][at] += kChannels == 1 ? w[corner] : g * w[corner];
        }
      }
    }
  }
}

// Adds a bundle's rays to the sums of the cube whose lowest voxel is (x, y, z). Bits 0, 1, 2 of a
// sum's index are the steps along x, y, z.
template <int kAxis, bool kPlain, int kChannels, class Weights, class S>
DRR_HD void gather_cube(const Grid& grid, const Bundle<S>& bundle, const Pixels<S>& pixels, int x,
                        int y, int z, S (&sums)[kChannels][8]) {
  Tile<S> tile = along<kAxis, S>(x, y, z);
  const Tile<S> middle = along<kAxis, S>(grid.nx / 2, grid.ny / 2, grid.nz / 2);
  gather_tile<kAxis, 0, kPlain, kChannels, Weights>(bundle, pixels, tile, middle, sums);
  tile.k += 1;
  gather_tile<kAxis, 1, kPlain, kChannels, Weights>(bundle, pixels, tile, middle, sums);
}

template <int kChannels, class Weights, class S>
DRR_HD void gather_cube(const Grid& grid, const Bundle<S>& bundle, const Pixels<S>& pixels, int x,
                        int y, int z, S (&sums)[kChannels][8]) {
  switch (bundle.axis * 2 + bundle.plain) {
    case 0: return gather_cube<0, false, kChannels, Weights>(grid, bundle, pixels, x, y, z, sums);
    case 1: return gather_cube<0, true, kChannels, Weights>(grid, bundle, pixels, x, y, z, sums);
    case 2: return gather_cube<1, false, kChannels, Weights>(grid, bundle, pixels, x, y, z, sums);
    case 3: return gather_cube<1, true, kChannels, Weights>(grid, bundle, pixels, x, y, z, sums);
    case 4: return gather_cube<2, false, kChannels, Weights>(grid, bundle, pixels, x, y, z, sums);
    default: return gather_cube<2, true, kChannels, Weights>(grid, bundle, pixels, x, y, z, sums);
  }
}

}  // namespace drrkit
