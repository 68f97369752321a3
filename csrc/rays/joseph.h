// Joseph's method: one bilinear sample per plane of the dominant axis m, weight w = |ray| / |d_m|.
// Samples are counted from a plane near the middle of the ray's stay in the volume, so that float
// arithmetic only sees small numbers; end points, weights and the recombination of the sums are
// double.
//
// Host and device share everything here but the loop over the planes of the image. On the device a
// lane marches one ray, or its share of one, by `gather` below, and sums in S. On the host
// cpu/joseph_tile.h marches a vector of rays side by side, by the same positions and the same
// JosephSums::add, through 16 planes at a time, and adds up their sums in double: float images
// therefore agree to rounding, not to the bit. `scatter` is the loop of the device's atomic adjoint
// and of the host's rays that pay off no tally; cpu/scatter.h holds the host's other loop.
// siddon.h and trilinear.h are divided in the same way.
#pragma once

#include "geometry.h"

namespace drrkit {

// Sums over the planes k (relative to the reference plane) of the bilinear V and its in-cell
// derivatives. V is a number, or a vector of one number a ray.
template <class V> struct JosephSums {
  V v{};                   // V
  V a{}, b{}, ka{}, kb{};  // V_a, V_b, k V_a, k V_b
  V ab{}, kab{}, kkab{};   // V_ab, k V_ab, k^2 V_ab

  // How many of them, from the first, an order of derivatives needs.
  DRR_HD static constexpr int count(int order) { return order == 0 ? 1 : order == 1 ? 5 : 8; }

  // Adds plane k, where the sample lies (fa, fb) into the cell with these corners.
  template <int kOrder> DRR_HD void add(V k, V fa, V fb, V v00, V v10, V v01, V v11) {
    const V a_low = v10 - v00, a_high = v11 - v01;
    const V low = v00 + fa * a_low, high = v01 + fa * a_high;
    v += low + fb * (high - low);
    if (kOrder >= 1) {
      const V on_a = a_low + fb * (a_high - a_low), on_b = high - low;
      a += on_a;
      b += on_b;
      ka += k * on_a;
      kb += k * on_b;
    }
    if (kOrder >= 2) {
      const V on_ab = a_high - a_low;
      ab += on_ab;
      kab += k * on_ab;
      kkab += k * k * on_ab;
    }
  }
};

// What the samples of a ray add to the corners of their cells: the weight w of the bilinear weights
// and, for the tangent of the adjoint, how sample k moves, (a + k a_rate, b + k b_rate), times w.
// Linear in these numbers.
template <class Rays> struct JosephWeights {
  using V = typename Rays::Value;

  V weight{}, a{}, b{}, a_rate{}, b_rate{};

  // Plane k, where the sample lies (fa, fb) into its cell.
  template <bool kTangent>
  DRR_HD void corners(V k, V fa, V fb, V& w00, V& w10, V& w01, V& w11) const {
    const V one = V{} + typename Rays::Number(1), ga = one - fa, gb = one - fb;
    w00 = weight * ga * gb;
    w10 = weight * fa * gb;
    w01 = weight * ga * fb;
    w11 = weight * fa * fb;
    if (kTangent) {
      const V on_a = a + k * a_rate, on_b = b + k * b_rate;
      w00 += -on_a * gb - on_b * ga;
      w10 += on_a * gb - on_b * fa;
      w01 += on_b * ga - on_a * fb;
      w11 += on_a * fb + on_b * fa;
    }
  }
};

template <class S> struct Joseph {
  using Scalar = S;
  using Sums = JosephSums<S>;

  int m, a, b;          // dominant axis and the two others, ascending
  double dm;            // d_m
  double sm;            // s_m relative to the reference plane
  double rho_a, rho_b;  // d_a / d_m, d_b / d_m
  double gm, ga, gb;    // sigma^2 along m, a, b
  double w;             // mm a plane
  int64_t stride_m, stride_a, stride_b;
  int size_a, size_b;
  int64_t plane;  // the reference plane
  Samples samples;
  S at_a, at_b, step_a, step_b;

  DRR_HD static Joseph make(const Grid& grid, const Ray& ray, Slab slab) {
    Joseph r;
    Vec3 d = ray.p - ray.s, g = grid.metric();
    r.m = dominant_axis(d);
    r.a = r.m == 0 ? 1 : 0;
    r.b = r.m == 2 ? 1 : 2;
    r.dm = d[r.m];
    r.rho_a = d[r.a] / r.dm;
    r.rho_b = d[r.b] / r.dm;
    r.gm = g[r.m];
    r.ga = g[r.a];
    r.gb = g[r.b];
    r.w = sqrt(r.gm + r.ga * r.rho_a * r.rho_a + r.gb * r.rho_b * r.rho_b);
    r.stride_m = grid.stride(r.m);
    r.stride_a = grid.stride(r.a);
    r.stride_b = grid.stride(r.b);
    r.size_a = static_cast<int>(grid.size(r.a));
    r.size_b = static_cast<int>(grid.size(r.b));
    r.plane = 0;
    r.at_a = r.at_b = r.step_a = r.step_b = 0;
    r.samples = {0, 0, 0, 0};
    r.sm = ray.s[r.m];
    if (!is_finite(ray)) r.w = not_a_number();
    if (!(fabs(r.dm) > 0) || !is_finite(ray)) {
      if (r.dm == 0) r.w = r.rho_a = r.rho_b = 0;
      return r;
    }
    double sa = ray.s[r.a], sb = ray.s[r.b], pm = ray.p[r.m];
    double a0 = sa - r.sm * r.rho_a, b0 = sb - r.sm * r.rho_b;  // lateral position at plane 0
    Interval planes = {maximum(ceil(minimum(r.sm, pm)), 0.0),
                       minimum(floor(maximum(r.sm, pm)), static_cast<double>(grid.size(r.m) - 1))};
    Interval outer = planes, inner = planes;
    outer.clip(a0, r.rho_a, -1, r.size_a);
    outer.clip(b0, r.rho_b, -1, r.size_b);
    if (outer.empty()) return r;
    outer = {maximum(floor(outer.lo) - 1, planes.lo), minimum(ceil(outer.hi) + 1, planes.hi)};
    inner.clip(a0, r.rho_a, kInnerMargin, r.size_a - 1 - kInnerMargin);
    inner.clip(b0, r.rho_b, kInnerMargin, r.size_b - 1 - kInnerMargin);
    inner = {ceil(inner.lo), floor(inner.hi)};
    double q = floor(0.5 * (outer.lo + outer.hi));
    r.plane = static_cast<int64_t>(q);
    // The reference does not depend on the slab, so that every slab rounds positions alike.
    outer = r.m == 2 ? outer.within(slab, 0, 1, 0) : outer.within(slab, b0, r.rho_b, 1);  // b is z
    r.samples = Samples::from({outer.lo - q, outer.hi - q}, {inner.lo - q, inner.hi - q});
    r.at_a = static_cast<S>(sa + (q - r.sm) * r.rho_a);
    r.at_b = static_cast<S>(sb + (q - r.sm) * r.rho_b);
    r.step_a = static_cast<S>(r.rho_a);
    r.step_b = static_cast<S>(r.rho_b);
    r.samples.verify(r.at_a, r.step_a, 0, r.size_a - 1);
    r.samples.verify(r.at_b, r.step_b, 0, r.size_b - 1);
    r.sm -= q;
    return r;
  }

  // Whether the march runs along memory, so that a warp should share one ray rather than take 32.
  DRR_HD bool along_x() const { return m == 0 || samples.begin == samples.end; }

  // ---- gather

  template <int kOrder, class Voxel, class Index>
  DRR_HD void gather(const Voxel* volume, int lane, int lanes, Sums& sums) const {
    gather_range<kOrder, true, Voxel, Index>(volume, samples.begin + lane, samples.inner_begin,
                                             lanes, sums);
    gather_range<kOrder, false, Voxel, Index>(volume, samples.inner_begin + lane, samples.inner_end,
                                              lanes, sums);
    gather_range<kOrder, true, Voxel, Index>(volume, samples.inner_end + lane, samples.end, lanes,
                                             sums);
  }

  template <int kOrder, bool kChecked, class Voxel, class Index>
  DRR_HD void gather_range(const Voxel* volume, int first, int last, int lanes, Sums& sums) const {
    const Index sm_ = static_cast<Index>(stride_m), sa_ = static_cast<Index>(stride_a),
                sb_ = static_cast<Index>(stride_b);
    const Index base = static_cast<Index>(plane) * sm_;
    for (int k = first; k < last; k += lanes) {
      const S kk = static_cast<S>(k), xa = at_a + kk * step_a, xb = at_b + kk * step_b;
      // Inside, positions are positive and truncation is floor.
      const int ia = kChecked ? floor_int(xa) : static_cast<int>(xa),
                ib = kChecked ? floor_int(xb) : static_cast<int>(xb);
      const Index at = base + static_cast<Index>(k) * sm_ + static_cast<Index>(ia) * sa_ +
                       static_cast<Index>(ib) * sb_;
      const bool a0 = !kChecked || (ia >= 0 && ia < size_a),
                 a1 = !kChecked || (ia >= -1 && ia < size_a - 1);
      const bool b0 = !kChecked || (ib >= 0 && ib < size_b),
                 b1 = !kChecked || (ib >= -1 && ib < size_b - 1);
      const S v00 = a0 && b0 ? static_cast<S>(load(volume + at)) : S(0);
      const S v10 = a1 && b0 ? static_cast<S>(load(volume + at + sa_)) : S(0);
      const S v01 = a0 && b1 ? static_cast<S>(load(volume + at + sb_)) : S(0);
      const S v11 = a1 && b1 ? static_cast<S>(load(volume + at + sa_ + sb_)) : S(0);
      sums.template add<kOrder>(kk, xa - static_cast<S>(ia), xb - static_cast<S>(ib), v00, v10, v01,
                                v11);
    }
  }

  template <class T> DRR_HD double image(const JosephSums<T>& sums) const {
    return w * static_cast<double>(sums.v);
  }

  template <class T> DRR_HD RayResult derivatives(const JosephSums<T>& sums) const {
    const double v = sums.v;
    if (w == 0) return {0, {0, 0, 0}, {0, 0, 0}};
    const double on_a = w * sums.a, on_b = w * sums.b;
    const double slope_a = w * (sums.ka - sm * sums.a) + v * ga * rho_a / w;  // dI / d rho_a
    const double slope_b = w * (sums.kb - sm * sums.b) + v * gb * rho_b / w;
    const Vec3 ds_fixed_d = from_axes(m, a, -(rho_a * on_a + rho_b * on_b), on_a, on_b);
    const Vec3 dd =
        from_axes(m, a, -(rho_a * slope_a + rho_b * slope_b) / dm, slope_a / dm, slope_b / dm);
    return {image(sums), ds_fixed_d - dd, dd};
  }

  // ---- the derivative of <derivatives, tangent> in the end points (K)

  template <class T> DRR_HD Ray second(const JosephSums<T>& sums, const Ray& tangent) const {
    if (w == 0) return {{0, 0, 0}, {0, 0, 0}};
    const double v = sums.v, a1 = sums.a, b1 = sums.b, a2 = sums.ka, b2 = sums.kb;
    const double c0 = sums.ab, c1 = sums.kab, c2 = sums.kkab;
    const Slopes t = slopes(tangent);
    const double wa = ga * rho_a / w, wb = gb * rho_b / w;
    const double wa_dot = (ga * t.rho_a - wa * t.w) / w, wb_dot = (gb * t.rho_b - wb * t.w) / w;
    const double v_dot = a1 * t.alpha + a2 * t.rho_a + b1 * t.beta + b2 * t.rho_b;
    const double ha = t.w * a1 + w * (c0 * t.beta + c1 * t.rho_b),
                 hb = t.w * b1 + w * (c0 * t.alpha + c1 * t.rho_a);
    const double hra = t.w * a2 + w * (c1 * t.beta + c2 * t.rho_b) + wa_dot * v + wa * v_dot;
    const double hrb = t.w * b2 + w * (c1 * t.alpha + c2 * t.rho_a) + wb_dot * v + wb * v_dot;
    const double g_a = w * a1, g_b = w * b1;
    const double gr_a = w * a2 + wa * v - sm * g_a, gr_b = w * b2 + wb * v - sm * g_b;
    const double gr_a_dot = hra - t.sm * g_a - sm * ha, gr_b_dot = hrb - t.sm * g_b - sm * hb;
    const double ua = gr_a / dm, ub = gr_b / dm;
    const double ua_dot = (gr_a_dot - ua * t.dm) / dm, ub_dot = (gr_b_dot - ub * t.dm) / dm;
    const Vec3 ks_fixed_d =
        from_axes(m, a, -(t.rho_a * g_a + rho_a * ha + t.rho_b * g_b + rho_b * hb), ha, hb);
    const Vec3 kd = from_axes(
        m, a, -(t.rho_a * ua + rho_a * ua_dot + t.rho_b * ub + rho_b * ub_dot), ua_dot, ub_dot);
    return {ks_fixed_d - kd, kd};
  }

  // Tangents of the march's parameters: position on plane k moves by alpha + k rho, the weight by
  // w.
  struct Slopes {
    double sm, dm, rho_a, rho_b, alpha, beta, w;
  };

  DRR_HD Slopes slopes(const Ray& tangent) const {
    const Vec3 d = tangent.p - tangent.s;
    Slopes t;
    t.sm = tangent.s[m];
    t.dm = d[m];
    t.rho_a = (d[a] - rho_a * t.dm) / dm;
    t.rho_b = (d[b] - rho_b * t.dm) / dm;
    t.alpha = tangent.s[a] - t.sm * rho_a - sm * t.rho_a;
    t.beta = tangent.s[b] - t.sm * rho_b - sm * t.rho_b;
    t.w = (ga * rho_a * t.rho_a + gb * rho_b * t.rho_b) / w;
    return t;
  }

  // ---- scatter: the adjoint of the image, or of its tangent

  using Weights = JosephWeights<OneRay<S>>;

  // For the tangent, `weight` is that of w.
  template <bool kTangent> DRR_HD Weights weights(const Ray& tangent) const {
    Weights of;
    if (!kTangent) of.weight = static_cast<S>(w);
    if (!kTangent || w == 0) return of;
    const Slopes t = slopes(tangent);
    of.weight = static_cast<S>(t.w);
    of.a = static_cast<S>(w * t.alpha);
    of.b = static_cast<S>(w * t.beta);
    of.a_rate = static_cast<S>(w * t.rho_a);
    of.b_rate = static_cast<S>(w * t.rho_b);
    return of;
  }

  template <bool kTangent, class Sink>
  DRR_HD void scatter(const Ray& tangent, int lane, int lanes, Sink& sink) const {
    const Weights of = weights<kTangent>(tangent);
    for (int k = samples.begin + lane; k < samples.end; k += lanes) {
      const S kk = static_cast<S>(k), xa = at_a + kk * step_a, xb = at_b + kk * step_b;
      const int ia = floor_int(xa), ib = floor_int(xb);
      S w00, w10, w01, w11;
      of.template corners<kTangent>(kk, xa - static_cast<S>(ia), xb - static_cast<S>(ib), w00, w10,
                                    w01, w11);
      const bool a0 = ia >= 0 && ia < size_a, a1 = ia >= -1 && ia < size_a - 1;
      const bool b0 = ib >= 0 && ib < size_b, b1 = ib >= -1 && ib < size_b - 1;
      const int64_t at = (plane + k) * stride_m + ia * stride_a + ib * stride_b;
      if (a0 && b0) sink.add(at, w00);
      if (a1 && b0) sink.add(at + stride_a, w10);
      if (a0 && b1) sink.add(at + stride_b, w01);
      if (a1 && b1) sink.add(at + stride_a + stride_b, w11);
    }
  }
};

}  // namespace drrkit
