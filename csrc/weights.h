// What a ray weighs in the four voxels of a tile: one struct an integrator and product, for the
// gathering adjoint (cube.h).
//
// Each says what a voxel sees of a ray (kReach), which numbers of a ray the survey keeps
// (kNumbers), what the cotangents are multiplied by (factor), and what the ray adds to the voxels
// (0, 0), (1, 0), (0, 1), (1, 1) along (a, b), times `scale` (weigh). Positions are those of the
// scattering march to the bit: a sample on a voxel's plane has another slope on either side, and a
// ray in a voxel's face belongs to one of the two. P* of Joseph's method is in patch.h.
#pragma once

#include "footprint.h"
#include "params.h"

namespace drrkit {

template <class T> DRR_HD T fetch(const T* p) {
#if defined(__CUDA_ARCH__)
  return __ldg(p);
#else
  return *p;
#endif
}

// The pixels of one view, as the survey leaves them.
template <class S> struct Pixels {
  const S* images;        // [C, P] cotangents times factor
  const uint8_t* bundle;  // [P]
  const S *low, *high;    // [P] the planes that see the ray, counted from the middle
  const S* numbers;       // [kNumbers, P]
  int32_t rays, cols;
  int32_t channels;  // from this one on

  // A group of channels may have fewer than there is room for: the others' sums go nowhere.
  DRR_HD const S* image(int channel) const {
    return images + (channel < channels ? channel * rays : 0);
  }
  // Whether a pixel belongs to a bundle, and plane k sees its ray.
  DRR_HD bool has(int32_t pixel, int id, S k) const {
    return fetch(bundle + pixel) == id && k >= fetch(low + pixel) && k <= fetch(high + pixel);
  }
};

template <int kCount, class S>
DRR_HD void fetch_numbers(const Pixels<S>& pixels, int32_t pixel, S (&of)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) of[i] = fetch(pixels.numbers + i * pixels.rays + pixel);
}

// 2 x 2 voxels of plane k, the lowest at (a, b), all counted from 0.
template <class S> struct Tile {
  S k, a, b;
};

// What a sample at x weighs in voxels `first` and first + 1, and the slopes of that in its cell.
template <class S> DRR_HD void hats(S x, S first, S (&hat)[2], S (&slope)[2]) {
  const S zero = 0, one = 1, low = static_cast<S>(floor(x)), up = x - low, cell = low - first;
#pragma unroll
  for (int voxel = 0; voxel < 2; ++voxel) {
    const bool is_low = cell == static_cast<S>(voxel), is_high = cell == static_cast<S>(voxel - 1);
    hat[voxel] = is_low ? one - up : is_high ? up : zero;
    slope[voxel] = is_low ? -one : is_high ? one : zero;
  }
}

// P* of Joseph's method: the survey's part of it.
template <class S> struct JosephPatches {
  static constexpr int kNumbers = 0;
  static constexpr Reach kReach = Reach::kPlane;
  DRR_HD static double factor(const Scene&, const Member& member) { return member.w; }
  DRR_HD static void keep(const Scene&, const Ray&, const Ray&, S*) {}
};

// T* of Joseph's method: the derivative of w (1 - |a|) (1 - |b|) along the ray's tangent.
template <class S> struct JosephSlopes {
  static constexpr int kNumbers = 10;
  static constexpr Reach kReach = Reach::kPlane;
  DRR_HD static double factor(const Scene&, const Member&) { return 1; }

  DRR_HD static void keep(const Scene& scene, const Ray& ray, const Ray& tangent, S* out) {
    const Joseph<S> r = Joseph<S>::make(scene.grid, ray, {0, scene.grid.nz});
    for (int i = 0; i < kNumbers; ++i) out[i] = 0;
    if (r.samples.begin == r.samples.end) return;
    const typename Joseph<S>::Slopes t = r.slopes(tangent);
    out[0] = static_cast<S>(r.plane);
    out[1] = r.at_a;
    out[2] = r.step_a;
    out[3] = r.at_b;
    out[4] = r.step_b;
    out[5] = static_cast<S>(t.w);
    out[6] = static_cast<S>(r.w * t.alpha);
    out[7] = static_cast<S>(r.w * t.rho_a);
    out[8] = static_cast<S>(r.w * t.beta);
    out[9] = static_cast<S>(r.w * t.rho_b);
  }

  template <bool kPlain>
  DRR_HD static void weigh(const Tile<S>& tile, const Pixels<S>& pixels, int32_t pixel, S scale,
                           S (&w)[4]) {
    S of[kNumbers];
    fetch_numbers(pixels, pixel, of);
    const S kk = tile.k - of[0], turn = scale * of[5];
    const S move_a = scale * (of[6] + kk * of[7]), move_b = scale * (of[8] + kk * of[9]);
    S a[2], slope_a[2], b[2], slope_b[2];
    hats(of[1] + kk * of[2], tile.a, a, slope_a);
    hats(of[3] + kk * of[4], tile.b, b, slope_b);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int ca = corner & 1, cb = corner >> 1;
      w[corner] =
          turn * a[ca] * b[cb] + move_a * slope_a[ca] * b[cb] + move_b * a[ca] * slope_b[cb];
    }
  }
};

// P* and T* of Siddon's method: the segments of one layer.
template <class S, bool kTangent> struct SiddonFootprint {
  static constexpr int kNumbers = kTangent ? 20 : 14, kPull = 11, kEnds = kNumbers - 2;
  static constexpr Reach kReach = Reach::kLayer;
  DRR_HD static double factor(const Scene&, const Member&) { return 1; }

  DRR_HD static void keep(const Scene& scene, const Ray& ray, const Ray& tangent, S* out) {
    const Siddon<S> r = Siddon<S>::make(scene.grid, ray, {0, scene.grid.nz});
    for (int i = 0; i < kNumbers; ++i) out[i] = 0;
    if (r.samples.begin == r.samples.end) return;
    out[0] = static_cast<S>(r.plane);
    out[1] = r.at_a;
    out[2] = r.step_a;
    out[3] = r.cross_a;
    out[4] = r.inverse_a;
    out[5] = r.plane_a;
    out[6] = r.at_b;
    out[7] = r.step_b;
    out[8] = r.cross_b;
    out[9] = r.inverse_b;
    out[10] = r.plane_b;
    const SiddonWeights<OneRay<S>> by = r.template weights<kTangent>(tangent);
    const S pull[7] = {by.per_kappa, by.m, by.m_rate, by.a, by.a_rate, by.b, by.b_rate};
    for (int i = 0; i < kEnds - kPull; ++i) out[kPull + i] = pull[i];
    out[kEnds] = r.end_low;
    out[kEnds + 1] = r.end_high;
  }

  template <bool kPlain>
  DRR_HD static void weigh(const Tile<S>& tile, const Pixels<S>& pixels, int32_t pixel, S scale,
                           S (&w)[4]) {
    S of[kPlain ? kEnds : kNumbers];
    fetch_numbers(pixels, pixel, of);
    Siddon<S> march;
    march.at_a = of[1];
    march.step_a = of[2];
    march.cross_a = of[3];
    march.inverse_a = of[4];
    march.plane_a = of[5];
    march.at_b = of[6];
    march.step_b = of[7];
    march.cross_b = of[8];
    march.inverse_b = of[9];
    march.plane_b = of[10];
    march.end_low = kPlain ? static_cast<S>(-1e9) : of[kPlain ? 0 : kEnds];
    march.end_high = kPlain ? static_cast<S>(1e9) : of[kPlain ? 0 : kEnds + 1];
    SiddonWeights<OneRay<S>> by = {of[kPull], 0, 0, 0, 0, 0, 0};
    if (kTangent) {
      constexpr int kNext = kTangent ? kPull : 0;
      by = {of[kNext],     of[kNext + 1], of[kNext + 2], of[kNext + 3],
            of[kNext + 4], of[kNext + 5], of[kNext + 6]};
    }
    const int k = static_cast<int>(tile.k - of[0]);
    const auto l = march.template layer<false>(static_cast<S>(k));
    S part[3];
    const S middle = static_cast<S>(k), half = static_cast<S>(0.5);
    const bool enters = march.end_low<middle - half, leaves = march.end_high> middle + half;
    by.template segments<kTangent>(l, enters, leaves, part[0], part[1], part[2]);
    const int xa = static_cast<int>(tile.a);
    const int xb = static_cast<int>(tile.b);
    const int ia[3] = {l.ia - xa, l.mid_a - xa, l.ja - xa};
    const int ib[3] = {l.ib - xb, l.mid_b - xb, l.jb - xb};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      S sum = 0;
#pragma unroll
      for (int i = 0; i < 3; ++i)
        if (ia[i] == (corner & 1) && ib[i] == corner >> 1) sum += part[i];
      w[corner] = scale * sum;
    }
  }
};

// P* and T* of trilinear sampling: the samples that lie within a voxel of the plane.
template <class S, bool kTangent> struct TrilinearFootprint {
  static constexpr int kNumbers = kTangent ? 15 : 9;
  static constexpr Reach kReach = Reach::kCell;
  DRR_HD static double factor(const Scene& scene, const Member&) {
    return kTangent ? 1 : scene.trilinear.step;
  }

  DRR_HD static void keep(const Scene& scene, const Ray& ray, const Ray& tangent, S* out) {
    const Trilinear<S> r = Trilinear<S>::make(scene.grid, ray, {0, scene.grid.nz}, scene.trilinear);
    const int m = dominant_axis(ray.p - ray.s), a = m == 0 ? 1 : 0, b = m == 2 ? 1 : 2;
    const TrilinearWeights<OneRay<S>> by = r.template weights<kTangent>(tangent);
    const S at[3] = {r.at_x, r.at_y, r.at_z}, step[3] = {r.step_x, r.step_y, r.step_z};
    const S move[3] = {by.x, by.y, by.z}, rate[3] = {by.x_rate, by.y_rate, by.z_rate};
    out[0] = static_cast<S>(r.samples.begin);
    out[1] = static_cast<S>(r.samples.end - 1);
    out[2] = 1 / step[m];
    const int axes[3] = {m, a, b};
    for (int i = 0; i < 3; ++i) {
      out[3 + i] = at[axes[i]];
      out[6 + i] = step[axes[i]];
      if (kTangent) {
        out[9 + i] = move[axes[i]];
        out[12 + i] = rate[axes[i]];
      }
    }
  }

  template <bool kPlain>
  DRR_HD static void weigh(const Tile<S>& tile, const Pixels<S>& pixels, int32_t pixel, S scale,
                           S (&w)[4]) {
    S of[kNumbers];
    fetch_numbers(pixels, pixel, of);
    const S k = tile.k;
    const S xa = tile.a;
    const S xb = tile.b;
    // The planes at k - 1 and k + 1, counted in samples; a few more than there are do no harm.
    const S one = static_cast<S>(1), slack = static_cast<S>(0.01);
    const S end_low = (k - one - of[3]) * of[2], end_high = (k + one - of[3]) * of[2];
    const int first = static_cast<int>(
        ceil(minimum(of[1] + 1, at_least(of[0], minimum(end_low, end_high) - slack))));
    const int last = static_cast<int>(
        floor(maximum(of[0] - 1, at_most(of[1], maximum(end_low, end_high) + slack))));
    S sum[4] = {0, 0, 0, 0};
    for (int sample = first; sample <= last; ++sample) {
      const S kk = static_cast<S>(sample);
      add_sample(of, kk, k, xa, xb, sum);
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) w[corner] = scale * sum[corner];
  }

  DRR_HD static void add_sample(const S (&of)[kNumbers], S kk, S k, S xa, S xb, S (&sum)[4]) {
    S on_m[2], a[2], b[2], slope_m[2], slope_a[2], slope_b[2];
    hats(of[3] + kk * of[6], k, on_m, slope_m);
    hats(of[4] + kk * of[7], xa, a, slope_a);
    hats(of[5] + kk * of[8], xb, b, slope_b);
    S move_m = 0, move_a = 0, move_b = 0;
    if (kTangent) {
      constexpr int kMove = kTangent ? 9 : 0, kRate = kTangent ? 12 : 0;
      move_m = slope_m[0] * (of[kMove] + kk * of[kRate]);
      move_a = on_m[0] * (of[kMove + 1] + kk * of[kRate + 1]);
      move_b = on_m[0] * (of[kMove + 2] + kk * of[kRate + 2]);
    }
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int ca = corner & 1, cb = corner >> 1;
      sum[corner] += kTangent ? move_m * a[ca] * b[cb] + move_a * slope_a[ca] * b[cb] +
                                    move_b * a[ca] * slope_b[cb]
                              : on_m[0] * a[ca] * b[cb];
    }
  }
};

// The weights of an integrator, for P* or T*.
template <template <class> class March, class S, bool kTangent> struct WeightsOf;
template <class S> struct WeightsOf<Joseph, S, false> {
  using type = JosephPatches<S>;
};
template <class S> struct WeightsOf<Joseph, S, true> {
  using type = JosephSlopes<S>;
};
template <class S, bool kTangent> struct WeightsOf<Siddon, S, kTangent> {
  using type = SiddonFootprint<S, kTangent>;
};
template <class S, bool kTangent> struct WeightsOf<Trilinear, S, kTangent> {
  using type = TrilinearFootprint<S, kTangent>;
};

}  // namespace drrkit
