// The volume adjoint by gathering: the survey of the pixels, and the visit of the voxels.
//
// A cube is 2 x 2 x 2 voxels, whose sums one thread owns; a tile is one of its two planes across
// the rays. A pixel that is looked at serves the four voxels of a tile: with p pixels a voxel face,
// a tile looks at 9 p of them where four voxels alone would look at 4 (4 p).
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
    const Vec3 middle = Bundle<S>::middle_of(scene.grid);
    return {images + (v * scene.n_channels + channel) * n,
            bundle + v * n,
            low + v * n,
            high + v * n,
            numbers + v * Weights::kNumbers * n,
            static_cast<int32_t>(n),
            static_cast<int32_t>(scene.views.cols),
            static_cast<int32_t>(scene.n_channels - channel),
            static_cast<S>(middle.x),
            static_cast<S>(middle.y),
            static_cast<S>(middle.z)};
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

// Adds one pixel to the four voxels of a tile.
template <int kAxis, int kPlane, bool kPlain, int kChannels, class Weights, class S>
DRR_HD void add_pixel(const Tile<S>& tile, const Pixels<S>& pixels, const Sight<S>& sight,
                      const S* image, S first, S (&sums)[kChannels][8]) {
  constexpr int kA = kAxis == 0 ? 1 : 0, kB = kAxis == 2 ? 1 : 2;
  S w[4];
  Weights::template weigh<kAxis, kPlain>(tile, pixels, sight,
                                         kChannels == 1 ? first : static_cast<S>(1), w);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    // A group of channels may have fewer than kChannels: the others' sums go nowhere.
    const S g = c == 0 ? first : fetch(image + (c < pixels.channels ? c * pixels.rays : 0));
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int at = kPlane << kAxis | (corner & 1) << kA | corner >> 1 << kB;
      sums[c][at] += kChannels == 1 ? w[corner] : g * w[corner];
    }
  }
}

// Adds a bundle's rays to one plane of a cube.
template <int kAxis, int kPlane, bool kPlain, int kChannels, class Weights, class S>
DRR_HD void gather_plane(const Bundle<S>& bundle, const Pixels<S>& pixels, S k, S xa, S xb,
                         S (&sums)[kChannels][8]) {
  forget();
  Tile<S> tile;
  if (!tile.look(bundle, k, xa, xb)) return;
  const S col_a = keep(bundle.col_a), col_b = keep(bundle.col_b), col_d = keep(bundle.col_d);
  const int64_t step = keep(static_cast<int64_t>(bundle.stride_col));
#pragma unroll 1
  for (S i = tile.rows.lo; i <= tile.rows.hi; i += 1) {
    const Span<S> cols = tile.columns(bundle, i);
    if (!(cols.lo <= cols.hi)) continue;
    const S row_a = i * bundle.row_a, row_b = i * bundle.row_b, row_d = 1 + i * bundle.row_d;
    Sight<S> sight = {
        bundle.pixel + whole(i) * bundle.stride_row + whole(cols.lo) * bundle.stride_col, 0, 0, 0};
    const S* image = pixels.images + sight.pixel;
#pragma unroll 1
    for (S j = cols.lo; j <= cols.hi; j += 1) {
      const S g = fetch(image);
      sight.across_a = j * col_a + row_a;
      sight.across_b = j * col_b + row_b;
      sight.depth = j * col_d + row_d;
      if (kPlain || pixels.has(sight.pixel, bundle.id, k))
        add_pixel<kAxis, kPlane, kPlain, kChannels, Weights>(tile, pixels, sight, image, g, sums);
      image += step;
      sight.pixel += static_cast<int>(step);
    }
  }
}

// Adds a bundle's rays to the sums of the cube whose lowest voxel is (x, y, z), counted from the
// grid's middle. Bits 0, 1, 2 of a sum's index are the steps along x, y, z.
template <int kAxis, bool kPlain, int kChannels, class Weights, class S>
DRR_HD void gather_cube(const Bundle<S>& bundle, const Pixels<S>& pixels, S x, S y, S z,
                        S (&sums)[kChannels][8]) {
  const S xm = kAxis == 0   ? x
               : kAxis == 1 ? y
                            : z,
          xa = kAxis == 0 ? y : x, xb = kAxis == 2 ? y : z;
  gather_plane<kAxis, 0, kPlain, kChannels, Weights>(bundle, pixels, xm, xa, xb, sums);
  gather_plane<kAxis, 1, kPlain, kChannels, Weights>(bundle, pixels, xm + 1, xa, xb, sums);
}

template <int kChannels, class Weights, class S>
DRR_HD void gather_cube(const Bundle<S>& bundle, const Pixels<S>& pixels, S x, S y, S z,
                        S (&sums)[kChannels][8]) {
  switch (bundle.axis * 2 + bundle.plain) {
    case 0: return gather_cube<0, false, kChannels, Weights>(bundle, pixels, x, y, z, sums);
    case 1: return gather_cube<0, true, kChannels, Weights>(bundle, pixels, x, y, z, sums);
    case 2: return gather_cube<1, false, kChannels, Weights>(bundle, pixels, x, y, z, sums);
    case 3: return gather_cube<1, true, kChannels, Weights>(bundle, pixels, x, y, z, sums);
    case 4: return gather_cube<2, false, kChannels, Weights>(bundle, pixels, x, y, z, sums);
    default: return gather_cube<2, true, kChannels, Weights>(bundle, pixels, x, y, z, sums);
  }
}

}  // namespace drrkit
