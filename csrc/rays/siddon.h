// Siddon's method: exact chord lengths through piecewise-constant voxels.
// The ray is walked in layers of voxels along its dominant axis m. Inside one layer it crosses at
// most one plane of each other axis, hence at most three segments a layer; layers do not depend on
// one another, so nothing accumulates along the ray, and layers can be dealt out to lanes. kappa is
// the coordinate along m relative to a reference layer; layer k spans [k - 1/2, k + 1/2].
#pragma once

#include "geometry.h"

namespace drrkit {

// v = sum V dkappa; jump_x = sum over crossings of planes of axis x of (V_low - V_high), low and
// high in the order of rising kappa; k_jump_x = the same times kappa. V is a number, or a vector of
// one number a ray.
template <class V> struct SiddonSums {
  V v{}, jump_m{}, jump_a{}, jump_b{}, k_jump_m{}, k_jump_a{}, k_jump_b{};

  DRR_HD static constexpr int count(int order) { return order == 0 ? 1 : 7; }
};

// The lateral course of a ray through the layers, or of one ray a lane.
template <class Rays> struct SiddonCourse {
  using V = typename Rays::Value;
  using I = typename Rays::Index;

  V end_low, end_high;           // kappa of the ray's two ends
  V at_a, at_b, step_a, step_b;  // lateral position plus 1/2: its floor is the voxel
  V cross_a, cross_b, inverse_a,
      inverse_b;       // kappa where the ray meets reference plane, kappa a plane
  V plane_a, plane_b;  // the reference planes: plane c lies between voxels c - 1 and c

  // One layer: kappa at its two ends, the two crossings, and the voxels before and after them.
  struct Layer {
    V begin, end, first, second;  // begin <= first <= second <= end
    I ia, ib, ja, jb;             // voxels on entering and on leaving
    I mid_a, mid_b;               // and between the crossings
    decltype(V{} < V{}) a_first;  // the first crossing is one of axis a
  };

  // The layer around `middle`; a whole one lies between the ray's ends and inside the grid.
  template <bool kWhole> DRR_HD Layer layer(V middle) const {
    Layer l;
    l.begin = middle - half();
    l.end = middle + half();
    if (!kWhole) {
      l.begin = maximum(l.begin, end_low);
      l.end = maximum(minimum(l.end, end_high), l.begin);
    }
    const V xa = at_a + l.begin * step_a, ya = at_a + l.end * step_a;
    const V xb = at_b + l.begin * step_b, yb = at_b + l.end * step_b;
    // Inside, positions are positive and truncation is floor.
    l.ia = kWhole ? Rays::truncated(xa) : Rays::floored(xa);
    l.ja = kWhole ? Rays::truncated(ya) : Rays::floored(ya);
    l.ib = kWhole ? Rays::truncated(xb) : Rays::floored(xb);
    l.jb = kWhole ? Rays::truncated(yb) : Rays::floored(yb);
    const V fa = Rays::of(l.ia), ga = Rays::of(l.ja), fb = Rays::of(l.ib), gb = Rays::of(l.jb);
    const V ca = cross_a + (maximum(fa, ga) - plane_a) * inverse_a;
    const V cb = cross_b + (maximum(fb, gb) - plane_b) * inverse_b;
    const V on_a = Rays::pick(fa == ga, l.end, minimum(maximum(ca, l.begin), l.end));
    const V on_b = Rays::pick(fb == gb, l.end, minimum(maximum(cb, l.begin), l.end));
    l.a_first = on_a < on_b;
    l.first = minimum(on_a, on_b);
    l.second = maximum(on_a, on_b);
    l.mid_a = Rays::pick(l.a_first, l.ja, l.ia);
    l.mid_b = Rays::pick(l.a_first, l.ib, l.jb);
    return l;
  }

  // Adds a layer in which the ray meets the voxels v0, v1, v2; the ray's own ends are no crossings.
  template <int kOrder>
  DRR_HD static void add(SiddonSums<V>& sums, const Layer& l, V v0, V v1, V v2,
                         decltype(V{} < V{}) enters, decltype(V{} < V{}) leaves) {
    sums.v += v0 * (l.first - l.begin) + v1 * (l.second - l.first) + v2 * (l.end - l.second);
    if (kOrder >= 1) {
      const V at_first = v0 - v1, at_second = v1 - v2;
      const V on_a = Rays::pick(l.a_first, at_first, at_second),
              on_b = Rays::pick(l.a_first, at_second, at_first);
      sums.jump_a += on_a;
      sums.jump_b += on_b;
      sums.k_jump_a += Rays::pick(l.a_first, l.first, l.second) * on_a;
      sums.k_jump_b += Rays::pick(l.a_first, l.second, l.first) * on_b;
      const V in = Rays::pick(enters, v0, V{}), out = Rays::pick(leaves, v2, V{});
      sums.jump_m += out - in;
      sums.k_jump_m += l.end * out - l.begin * in;
    }
  }

  DRR_HD static V half() { return V{} + typename Rays::Number(0.5); }
};

// What the layers of a ray add to the voxels they meet: mm a layer and, for the tangent of the
// adjoint, the tangent of it, and the weight m + kappa m_rate of (V_low - V_high) at a crossing of
// axis m at kappa; the same for a and b. Linear in these numbers.
template <class Rays> struct SiddonWeights {
  using V = typename Rays::Value;
  using Mask = decltype(V{} < V{});

  V per_kappa{}, m{}, m_rate{}, a{}, a_rate{}, b{}, b_rate{};

  // The ray's own ends are no crossings.
  template <bool kTangent, class Layer>
  DRR_HD void segments(const Layer& l, Mask enters, Mask leaves, V& w0, V& w1, V& w2) const {
    w0 = per_kappa * (l.first - l.begin);
    w1 = per_kappa * (l.second - l.first);
    w2 = per_kappa * (l.end - l.second);
    if (!kTangent) return;
    // Only real crossings count: 1 / d_x is huge where the ray hardly crosses axis x at all.
    const V at_a = a + Rays::pick(l.a_first, l.first, l.second) * a_rate;
    const V at_b = b + Rays::pick(l.a_first, l.second, l.first) * b_rate;
    const V on_a = Rays::pick(Rays::of(l.ia) == Rays::of(l.ja), V{}, at_a);
    const V on_b = Rays::pick(Rays::of(l.ib) == Rays::of(l.jb), V{}, at_b);
    const V at_first = Rays::pick(l.a_first, on_a, on_b);
    const V at_second = Rays::pick(l.a_first, on_b, on_a);
    w0 += at_first - Rays::pick(enters, m + l.begin * m_rate, V{});
    w1 += at_second - at_first;
    w2 += Rays::pick(leaves, m + l.end * m_rate, V{}) - at_second;
  }
};

template <class S> struct Siddon : SiddonCourse<OneRay<S>> {
  using Scalar = S;
  using Sums = SiddonSums<S>;
  using Course = SiddonCourse<OneRay<S>>;
  using Layer = typename Course::Layer;

  int m, a, b;
  Vec3 d;
  Vec3 g;         // sigma^2
  double length;  // mm
  double sm;      // s_m relative to the reference layer
  double w;       // mm a layer
  int64_t stride_m, stride_a, stride_b;
  int size_a, size_b;
  int64_t plane;  // the reference layer
  Samples samples;

  DRR_HD static Siddon make(const Grid& grid, const Ray& ray, Slab slab) {
    Siddon r;
    r.d = ray.p - ray.s;
    r.g = grid.metric();
    r.length = sqrt(dot(r.g * r.d, r.d));
    r.m = dominant_axis(r.d);
    r.a = r.m == 0 ? 1 : 0;
    r.b = r.m == 2 ? 1 : 2;
    const double dm = r.d[r.m];
    r.w = r.length / fabs(dm);
    r.stride_m = grid.stride(r.m);
    r.stride_a = grid.stride(r.a);
    r.stride_b = grid.stride(r.b);
    r.size_a = static_cast<int>(grid.size(r.a));
    r.size_b = static_cast<int>(grid.size(r.b));
    r.plane = 0;
    r.plane_a = r.plane_b = 0;
    r.end_low = r.end_high = r.at_a = r.at_b = r.step_a = r.step_b = 0;
    r.cross_a = r.cross_b = r.inverse_a = r.inverse_b = 0;
    r.samples = {0, 0, 0, 0};
    r.sm = ray.s[r.m];
    if (!is_finite(ray)) r.w = not_a_number();
    if (!(fabs(dm) > 0) || !is_finite(ray)) {
      if (dm == 0) r.w = 0;
      return r;
    }
    const double rho_a = r.d[r.a] / dm, rho_b = r.d[r.b] / dm, pm = ray.p[r.m];
    const double sa = ray.s[r.a], sb = ray.s[r.b];
    const double a0 = sa - r.sm * rho_a, b0 = sb - r.sm * rho_b;
    const double low = minimum(r.sm, pm), high = maximum(r.sm, pm);
    const double last = static_cast<double>(grid.size(r.m) - 1);
    // Layers that the segment [low, high] reaches, then those where the lateral position is near
    // the grid.
    const Interval layers = {maximum(floor(low + 0.5), 0.0), minimum(ceil(high - 0.5), last)};
    Interval outer = {layers.lo - 0.5, layers.hi + 0.5};
    outer.clip(a0, rho_a, -0.5, r.size_a - 0.5);
    outer.clip(b0, rho_b, -0.5, r.size_b - 0.5);
    if (outer.empty()) return r;
    outer = {maximum(floor(outer.lo) - 1, layers.lo), minimum(ceil(outer.hi) + 1, layers.hi)};
    Interval inner = {maximum(low, -0.5), minimum(high, last + 0.5)};
    inner.clip(a0, rho_a, -0.5 + kInnerMargin, r.size_a - 0.5 - kInnerMargin);
    inner.clip(b0, rho_b, -0.5 + kInnerMargin, r.size_b - 0.5 - kInnerMargin);
    inner = {floor(inner.lo + 0.5) + 1, ceil(inner.hi - 0.5) - 1};  // whole layers strictly inside
    const double q = floor(0.5 * (outer.lo + outer.hi));
    r.plane = static_cast<int64_t>(q);
    // The reference does not depend on the slab, so that every slab rounds positions alike.
    outer = r.m == 2 ? outer.within(slab, 0, 1, 0.5) : outer.within(slab, b0, rho_b, 1);  // b is z
    r.samples = Samples::from({outer.lo - q, outer.hi - q}, {inner.lo - q, inner.hi - q});
    r.end_low = static_cast<S>(maximum(low - q, -1e9));
    r.end_high = static_cast<S>(minimum(high - q, 1e9));
    r.set_lateral(sa + (q - r.sm) * rho_a + 0.5, rho_a, r.at_a, r.step_a, r.plane_a, r.cross_a,
                  r.inverse_a);
    r.set_lateral(sb + (q - r.sm) * rho_b + 0.5, rho_b, r.at_b, r.step_b, r.plane_b, r.cross_b,
                  r.inverse_b);
    // A layer reads half a step to either side of its middle; a crossing needs no check, as it only
    // shares out the layer among voxels that are read anyway.
    const double slack_a = 0.5 * fabs(rho_a), slack_b = 0.5 * fabs(rho_b);
    r.samples.verify(r.at_a, r.step_a, slack_a, r.size_a - slack_a);
    r.samples.verify(r.at_b, r.step_b, slack_b, r.size_b - slack_b);
    r.sm -= q;
    return r;
  }

  // Crossings are evaluated from the plane's index relative to one crossing computed in double: the
  // quotient of two rounded numbers would lose its digits when the ray is almost parallel to the
  // planes.
  DRR_HD static void set_lateral(double at, double rho, S& at_, S& step, S& plane_, S& cross,
                                 S& inverse) {
    at_ = static_cast<S>(at);
    step = static_cast<S>(rho);
    const double nearest = floor(at + 0.5);
    plane_ = static_cast<S>(maximum(minimum(nearest, 1e9), -1e9));
    const double limit = 1e9;  // crossings beyond it are never asked for
    const double at_cross = rho == 0 ? limit : (nearest - at) / rho, rate = rho == 0 ? 0 : 1 / rho;
    cross = static_cast<S>(maximum(minimum(at_cross, limit), -limit));
    inverse = static_cast<S>(maximum(minimum(rate, limit), -limit));
  }

  DRR_HD bool inside(int ia, int ib) const {
    return ia >= 0 && ia < size_a && ib >= 0 && ib < size_b;
  }

  template <bool kChecked, class Voxel, class Index>
  DRR_HD S voxel(const Voxel* volume, Index at, int ia, int ib) const {
    if (kChecked && !inside(ia, ib)) return S(0);
    return static_cast<S>(load(volume + at + static_cast<Index>(ia) * static_cast<Index>(stride_a) +
                               static_cast<Index>(ib) * static_cast<Index>(stride_b)));
  }

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
    const Index base = static_cast<Index>(plane) * static_cast<Index>(stride_m);
    for (int k = first; k < last; k += lanes) {
      const S middle = static_cast<S>(k);
      const Layer l = this->template layer<!kChecked>(middle);
      const Index at = base + static_cast<Index>(k) * static_cast<Index>(stride_m);
      const S v0 = voxel<kChecked, Voxel, Index>(volume, at, l.ia, l.ib);
      const S v1 = voxel<kChecked, Voxel, Index>(volume, at, l.mid_a, l.mid_b);
      const S v2 = voxel<kChecked, Voxel, Index>(volume, at, l.ja, l.jb);
      const bool enters = !kChecked || this->end_low < middle - S(0.5);
      const bool leaves = !kChecked || this->end_high > middle + S(0.5);
      Course::template add<kOrder>(sums, l, v0, v1, v2, enters, leaves);
    }
  }

  template <class T> DRR_HD double image(const SiddonSums<T>& sums) const {
    return w * static_cast<double>(sums.v);
  }

  // A0 and A1: sums over crossings of (V_before - V_after) / d, and of t times it; 0 where d is.
  struct Moments {
    Vec3 a0, a1;
  };

  template <class T> DRR_HD Moments moments(const SiddonSums<T>& sums) const {
    const double dm = d[m], sign = dm < 0 ? -1.0 : 1.0, t0 = -sm / dm;  // t = t0 + kappa / d_m
    const double jump[3] = {sums.jump_m, sums.jump_a, sums.jump_b};
    const double k_jump[3] = {sums.k_jump_m, sums.k_jump_a, sums.k_jump_b};
    double a0[3], a1[3];
    const double along[3] = {dm, d[a], d[b]};
    for (int i = 0; i < 3; ++i) {
      a0[i] = along[i] == 0 ? 0 : sign * jump[i] / along[i];
      a1[i] = along[i] == 0 ? 0 : sign * (t0 * jump[i] + k_jump[i] / dm) / along[i];
    }
    return {from_axes(m, a, a0[0], a0[1], a0[2]), from_axes(m, a, a1[0], a1[1], a1[2])};
  }

  template <class T> DRR_HD RayResult derivatives(const SiddonSums<T>& sums) const {
    if (w == 0) return {0, {0, 0, 0}, {0, 0, 0}};
    const Moments c = moments(sums);
    const double value = image(sums);
    const Vec3 dd = (value / (length * length)) * (g * d) - length * c.a1;
    const Vec3 ds_fixed_d = -length * c.a0;
    return {value, ds_fixed_d - dd, dd};
  }

  // ---- K, from the same sums

  template <class T> DRR_HD Ray second(const SiddonSums<T>& sums, const Ray& tangent) const {
    if (w == 0) return {{0, 0, 0}, {0, 0, 0}};
    const Moments c = moments(sums);
    const Vec3 ts = tangent.s, td = tangent.p - tangent.s;
    const double q = image(sums) / length, q_dot = -(dot(c.a0, ts) + dot(c.a1, td));
    const Vec3 lam = (1 / length) * (g * d);
    const double l_dot = dot(lam, td);
    const Vec3 lam_dot = (1 / length) * (g * td - l_dot * lam);
    const Vec3 inverse = {d.x == 0 ? 0 : 1 / d.x, d.y == 0 ? 0 : 1 / d.y, d.z == 0 ? 0 : 1 / d.z};
    const Vec3 ks_fixed_d = -l_dot * c.a0 + length * (c.a0 * td * inverse);
    const Vec3 kd = -l_dot * c.a1 + length * ((c.a0 * ts + 2.0 * (c.a1 * td)) * inverse) +
                    q * lam_dot + q_dot * lam;
    return {ks_fixed_d - kd, kd};
  }

  // ---- the adjoint of the image, or of its tangent

  using Weights = SiddonWeights<OneRay<S>>;

  // A crossing at kappa on axis x moves t by -(s'_x + t d'_x) / d_x; times the length and the sign
  // of d_m it is the weight of (V_low - V_high). The length's own tangent rescales the segments.
  template <bool kTangent> DRR_HD Weights weights(const Ray& tangent) const {
    Weights of;
    of.per_kappa = static_cast<S>(w);
    if (!kTangent || w == 0) return of;
    const Vec3 td = tangent.p - tangent.s;
    of.per_kappa = static_cast<S>(w * dot(g * d, td) / (length * length));
    const double dm = d[m], t0 = -sm / dm, scale = dm < 0 ? -length : length;
    of.m = static_cast<S>(-scale * (tangent.s[m] + t0 * td[m]) / dm);
    of.m_rate = static_cast<S>(-scale * td[m] / (dm * dm));
    if (d[a] != 0) {
      of.a = static_cast<S>(-scale * (tangent.s[a] + t0 * td[a]) / d[a]);
      of.a_rate = static_cast<S>(-scale * td[a] / (dm * d[a]));
    }
    if (d[b] != 0) {
      of.b = static_cast<S>(-scale * (tangent.s[b] + t0 * td[b]) / d[b]);
      of.b_rate = static_cast<S>(-scale * td[b] / (dm * d[b]));
    }
    return of;
  }

  template <bool kTangent, class Sink>
  DRR_HD void scatter(const Ray& tangent, int lane, int lanes, Sink& sink) const {
    const Weights of = weights<kTangent>(tangent);
    for (int k = samples.begin + lane; k < samples.end; k += lanes) {
      const S middle = static_cast<S>(k);
      const Layer l = this->template layer<false>(middle);
      const bool enters = this->end_low<middle - S(0.5), leaves = this->end_high> middle + S(0.5);
      S w0, w1, w2;
      of.template segments<kTangent>(l, enters, leaves, w0, w1, w2);
      const int64_t at = (plane + k) * stride_m;
      if (inside(l.ia, l.ib)) sink.add(at + l.ia * stride_a + l.ib * stride_b, w0);
      if (w1 != S(0) && inside(l.mid_a, l.mid_b))
        sink.add(at + l.mid_a * stride_a + l.mid_b * stride_b, w1);
      if (inside(l.ja, l.jb)) sink.add(at + l.ja * stride_a + l.jb * stride_b, w2);
    }
  }
};

}  // namespace drrkit
