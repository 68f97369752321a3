// Trilinear sampling at a fixed step h in mm. Samples lie at r_k = r_0 + k h mm from the source,
// with r_0 = h / 2, or, anchored at the foot of the perpendicular from the grid's centre, r_0 =
// r_c; those with 0 < r_k < |ray| count. As in joseph.h, samples are counted from one near the
// middle of the ray's stay in the volume.
#pragma once

#include "geometry.h"

namespace drrkit {

struct TrilinearOptions {
  double step;  // mm
  bool foot;  // anchor the samples at the foot of the perpendicular from the grid's centre, not at
              // the source
  bool line;  // drop the along-ray part of the derivative
};

// Sums over the samples k (relative to the reference sample) of V, its in-cell gradient and mixed
// second derivatives. V is a number, or a vector of one number a ray.
template <class V> struct TrilinearSums {
  V v{};
  V x{}, y{}, z{}, kx{}, ky{}, kz{};
  V yz{}, xz{}, xy{}, kyz{}, kxz{}, kxy{}, kkyz{}, kkxz{}, kkxy{};

  DRR_HD static constexpr int count(int order) { return order == 0 ? 1 : order == 1 ? 7 : 16; }

  // Adds sample k, which lies (fx, fy, fz) into the cell with the corners c[x][y][z].
  template <int kOrder>
  DRR_HD void add(V k, V fx, V fy, V fz, V c000, V c100, V c010, V c110, V c001, V c101, V c011,
                  V c111) {
    const V dx00 = c100 - c000, dx10 = c110 - c010, dx01 = c101 - c001, dx11 = c111 - c011;
    const V v00 = c000 + fx * dx00, v10 = c010 + fx * dx10, v01 = c001 + fx * dx01,
            v11 = c011 + fx * dx11;
    const V dy0 = v10 - v00, dy1 = v11 - v01;
    const V v0 = v00 + fy * dy0, v1 = v01 + fy * dy1;
    v += v0 + fz * (v1 - v0);
    if (kOrder >= 1) {
      const V dx0 = dx00 + fy * (dx10 - dx00), dx1 = dx01 + fy * (dx11 - dx01);
      const V on_x = dx0 + fz * (dx1 - dx0), on_y = dy0 + fz * (dy1 - dy0), on_z = v1 - v0;
      x += on_x;
      y += on_y;
      z += on_z;
      kx += k * on_x;
      ky += k * on_y;
      kz += k * on_z;
      if (kOrder >= 2) {
        const V dxy0 = dx10 - dx00, dxy1 = dx11 - dx01;
        const V on_xy = dxy0 + fz * (dxy1 - dxy0), on_xz = dx1 - dx0, on_yz = dy1 - dy0;
        xy += on_xy;
        xz += on_xz;
        yz += on_yz;
        kxy += k * on_xy;
        kxz += k * on_xz;
        kyz += k * on_yz;
        kkxy += k * k * on_xy;
        kkxz += k * k * on_xz;
        kkyz += k * k * on_yz;
      }
    }
  }
};

// What the samples of a ray add to the corners of their cells: the weight h of the trilinear
// weights or, for the tangent of the adjoint, how sample k moves, (x + k x_rate, ...), times h.
// Linear in these numbers.
template <class Rays> struct TrilinearWeights {
  using V = typename Rays::Value;

  V weight{}, x{}, y{}, z{}, x_rate{}, y_rate{}, z_rate{};

  struct Corners {
    V c000, c100, c010, c110, c001, c101, c011, c111;
  };

  // Sample k, which lies (fx, fy, fz) into its cell.
  template <bool kTangent> DRR_HD Corners corners(V k, V fx, V fy, V fz) const {
    const V one = V{} + typename Rays::Number(1), gx = one - fx, gy = one - fy, gz = one - fz;
    if (kTangent) {
      const V hx = x + k * x_rate, hy = y + k * y_rate, hz = z + k * z_rate;
      const V ygz = hy * gz, yfz = hy * fz, zgy = hz * gy, zfy = hz * fy;
      const V x00 = hx * gy * gz, x10 = hx * fy * gz, x01 = hx * gy * fz, x11 = hx * fy * fz;
      const V r00 = -ygz - zgy, r10 = ygz - zfy, r01 = zgy - yfz, r11 = yfz + zfy;
      return {gx * r00 - x00, fx * r00 + x00, gx * r10 - x10, fx * r10 + x10,
              gx * r01 - x01, fx * r01 + x01, gx * r11 - x11, fx * r11 + x11};
    }
    const V wg = weight * gz, wf = weight * fz;
    const V y00 = wg * gy, y10 = wg * fy, y01 = wf * gy, y11 = wf * fy;
    return {gx * y00, fx * y00, gx * y10, fx * y10, gx * y01, fx * y01, gx * y11, fx * y11};
  }
};

template <class S> struct Trilinear {
  using Scalar = S;
  using Sums = TrilinearSums<S>;

  Vec3 e;            // index coordinates a mm
  Vec3 g;            // sigma^2
  Vec3 from_source;  // c - s, the grid's centre seen from the source
  double length;     // mm
  double r_ref;      // mm from the source to the reference sample
  double h;          // mm; 0 for a ray of no length
  bool foot, line;
  int64_t stride_y, stride_z;
  int nx, ny, nz;
  Samples samples;
  S at_x, at_y, at_z, step_x, step_y, step_z;

  DRR_HD static Trilinear make(const Grid& grid, const Ray& ray, Slab slab,
                               const TrilinearOptions& options) {
    Trilinear r;
    const Vec3 d = ray.p - ray.s;
    r.g = grid.metric();
    r.length = sqrt(dot(r.g * d, d));
    r.from_source = grid.centre() - ray.s;
    r.e = (1 / r.length) * d;
    r.h = options.step;
    r.foot = options.foot;
    r.line = options.line;
    r.stride_y = grid.stride(1);
    r.stride_z = grid.stride(2);
    r.nx = static_cast<int>(grid.nx);
    r.ny = static_cast<int>(grid.ny);
    r.nz = static_cast<int>(grid.nz);
    r.samples = {0, 0, 0, 0};
    r.r_ref = 0;
    r.at_x = r.at_y = r.at_z = r.step_x = r.step_y = r.step_z = 0;
    if (!is_finite(ray)) r.h = not_a_number();
    if (!(r.length > 0) || !is_finite(ray)) {
      if (r.length == 0) r.h = 0;
      return r;
    }
    const double h = r.h, r0 = options.foot ? dot(r.e, r.g * r.from_source) : 0.5 * h;
    const Vec3 start = ray.s + r0 * r.e, step = h * r.e;
    const Interval kept = {floor(-r0 / h) + 1, ceil((r.length - r0) / h) - 1};
    Interval outer = kept, inner = kept;
    outer.clip(start.x, step.x, -1, r.nx);
    outer.clip(start.y, step.y, -1, r.ny);
    outer.clip(start.z, step.z, -1, r.nz);
    if (outer.empty()) return r;
    outer = {maximum(floor(outer.lo) - 1, kept.lo), minimum(ceil(outer.hi) + 1, kept.hi)};
    inner.clip(start.x, step.x, kInnerMargin, r.nx - 1 - kInnerMargin);
    inner.clip(start.y, step.y, kInnerMargin, r.ny - 1 - kInnerMargin);
    inner.clip(start.z, step.z, kInnerMargin, r.nz - 1 - kInnerMargin);
    inner = {ceil(inner.lo), floor(inner.hi)};
    const double k0 = floor(0.5 * (outer.lo + outer.hi));
    // The reference does not depend on the slab, so that every slab rounds positions alike.
    outer = outer.within(slab, start.z, step.z, 1);
    r.samples = Samples::from({outer.lo - k0, outer.hi - k0}, {inner.lo - k0, inner.hi - k0});
    r.r_ref = r0 + k0 * h;
    const Vec3 at = ray.s + r.r_ref * r.e;
    r.at_x = static_cast<S>(at.x);
    r.at_y = static_cast<S>(at.y);
    r.at_z = static_cast<S>(at.z);
    r.step_x = static_cast<S>(step.x);
    r.step_y = static_cast<S>(step.y);
    r.step_z = static_cast<S>(step.z);
    r.samples.verify(r.at_x, r.step_x, 0, r.nx - 1);
    r.samples.verify(r.at_y, r.step_y, 0, r.ny - 1);
    r.samples.verify(r.at_z, r.step_z, 0, r.nz - 1);
    return r;
  }

  DRR_HD bool along_x() const { return dominant_axis(e) == 0 || samples.begin == samples.end; }

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
    const Index sy = static_cast<Index>(stride_y), sz = static_cast<Index>(stride_z);
    for (int k = first; k < last; k += lanes) {
      const S kk = static_cast<S>(k);
      const S x = at_x + kk * step_x, y = at_y + kk * step_y, z = at_z + kk * step_z;
      // Inside, coordinates are positive and truncation is floor.
      const int ix = kChecked ? floor_int(x) : static_cast<int>(x),
                iy = kChecked ? floor_int(y) : static_cast<int>(y),
                iz = kChecked ? floor_int(z) : static_cast<int>(z);
      const Voxel* at = volume + (static_cast<Index>(iz) * sz + static_cast<Index>(iy) * sy +
                                  static_cast<Index>(ix));
      const bool x0 = !kChecked || (ix >= 0 && ix < nx),
                 x1 = !kChecked || (ix >= -1 && ix < nx - 1);
      const bool y0 = !kChecked || (iy >= 0 && iy < ny),
                 y1 = !kChecked || (iy >= -1 && iy < ny - 1);
      const bool z0 = !kChecked || (iz >= 0 && iz < nz),
                 z1 = !kChecked || (iz >= -1 && iz < nz - 1);
      const S c000 = x0 && y0 && z0 ? static_cast<S>(load(at)) : S(0);
      const S c100 = x1 && y0 && z0 ? static_cast<S>(load(at + 1)) : S(0);
      const S c010 = x0 && y1 && z0 ? static_cast<S>(load(at + sy)) : S(0);
      const S c110 = x1 && y1 && z0 ? static_cast<S>(load(at + sy + 1)) : S(0);
      const S c001 = x0 && y0 && z1 ? static_cast<S>(load(at + sz)) : S(0);
      const S c101 = x1 && y0 && z1 ? static_cast<S>(load(at + sz + 1)) : S(0);
      const S c011 = x0 && y1 && z1 ? static_cast<S>(load(at + sz + sy)) : S(0);
      const S c111 = x1 && y1 && z1 ? static_cast<S>(load(at + sz + sy + 1)) : S(0);
      sums.template add<kOrder>(kk, x - static_cast<S>(ix), y - static_cast<S>(iy),
                                z - static_cast<S>(iz), c000, c100, c010, c110, c001, c101, c011,
                                c111);
    }
  }

  template <class T> DRR_HD double image(const TrilinearSums<T>& sums) const {
    return h * static_cast<double>(sums.v);
  }

  // h sum grad V and h sum r_k grad V.
  template <class T> DRR_HD Vec3 gradient_sum(const TrilinearSums<T>& s) const {
    return h * Vec3{double(s.x), double(s.y), double(s.z)};
  }
  template <class T> DRR_HD Vec3 gradient_moment(const TrilinearSums<T>& s) const {
    return r_ref * gradient_sum(s) + (h * h) * Vec3{double(s.kx), double(s.ky), double(s.kz)};
  }

  template <class T> DRR_HD RayResult derivatives(const TrilinearSums<T>& sums) const {
    if (h == 0) return {0, {0, 0, 0}, {0, 0, 0}};
    Vec3 f = gradient_sum(sums), moment = gradient_moment(sums);
    const Vec3 ge = g * e;
    const double along = dot(e, f);
    if (foot && !line) moment = moment + along * (g * from_source);
    if (foot || line) f = f - along * ge;
    const Vec3 dd = (1 / length) * (moment - dot(e, moment) * ge);
    return {image(sums), f - dd, dd};
  }

  // ---- K; anchored at the source, exact derivative

  template <class T> DRR_HD Ray second(const TrilinearSums<T>& c, const Ray& tangent) const {
    if (h == 0) return {{0, 0, 0}, {0, 0, 0}};
    const Vec3 td = tangent.p - tangent.s, ge = g * e, gtd = g * td;
    const double nu = dot(e, gtd);
    const Vec3 e_dot = (1 / length) * (td - nu * e);
    // Moments of the in-cell Hessian in r: h sum H (1, r, r^2); a sample moves by s' + r e'.
    const Vec3 h0 = h * Vec3{double(c.yz), double(c.xz), double(c.xy)};
    const Vec3 k1 = (h * h) * Vec3{double(c.kyz), double(c.kxz), double(c.kxy)};
    const Vec3 k2 = (h * h * h) * Vec3{double(c.kkyz), double(c.kkxz), double(c.kkxy)};
    const Vec3 h1 = r_ref * h0 + k1, h2 = (r_ref * r_ref) * h0 + (2 * r_ref) * k1 + k2;
    const Vec3 n0 = hessian_times(h0, tangent.s) + hessian_times(h1, e_dot);
    const Vec3 n1 = hessian_times(h1, tangent.s) + hessian_times(h2, e_dot);
    const Vec3 moment = gradient_moment(c);
    const double mu = dot(e, moment);
    const Vec3 kd =
        (1 / length) * (n1 - dot(e, n1) * ge) +
        (1 / (length * length)) * ((3 * mu * nu - dot(moment, td)) * ge - nu * moment - mu * gtd);
    return {n0 - kd, kd};
  }

  // `mixed` holds the off-diagonal entries (yz, xz, xy); the diagonal of a trilinear cell is zero.
  DRR_HD static Vec3 hessian_times(Vec3 mixed, Vec3 x) {
    return {mixed.z * x.y + mixed.y * x.z, mixed.z * x.x + mixed.x * x.z,
            mixed.y * x.x + mixed.x * x.y};
  }

  // ---- scatter: the adjoint of the image, or of its tangent

  using Weights = TrilinearWeights<OneRay<S>>;

  template <bool kTangent> DRR_HD Weights weights(const Ray& tangent) const {
    Weights of;
    of.weight = static_cast<S>(h);
    if (!kTangent || h == 0) return of;
    const Vec3 td = tangent.p - tangent.s, ge = g * e;
    const Vec3 e_dot = (1 / length) * (td - dot(ge, td) * e);
    Vec3 move = tangent.s + r_ref * e_dot;  // sample k moves by move + k h e_dot
    if (foot || line) move = move - dot(ge, tangent.s) * e;
    if (foot && !line) move = move + dot(g * from_source, e_dot) * e;
    of.x = static_cast<S>(h * move.x);
    of.y = static_cast<S>(h * move.y);
    of.z = static_cast<S>(h * move.z);
    of.x_rate = static_cast<S>(h * h * e_dot.x);
    of.y_rate = static_cast<S>(h * h * e_dot.y);
    of.z_rate = static_cast<S>(h * h * e_dot.z);
    return of;
  }

  template <bool kTangent, class Sink>
  DRR_HD void scatter(const Ray& tangent, int lane, int lanes, Sink& sink) const {
    const Weights of = weights<kTangent>(tangent);
    scatter_range<kTangent, true>(samples.begin + lane, samples.inner_begin, lanes, of, sink);
    scatter_range<kTangent, false>(samples.inner_begin + lane, samples.inner_end, lanes, of, sink);
    scatter_range<kTangent, true>(samples.inner_end + lane, samples.end, lanes, of, sink);
  }

  template <bool kTangent, bool kChecked, class Sink>
  DRR_HD void scatter_range(int first, int last, int lanes, const Weights& of, Sink& sink) const {
    const int64_t sy = stride_y, sz = stride_z;
    for (int k = first; k < last; k += lanes) {
      const S kk = static_cast<S>(k);
      const S x = at_x + kk * step_x, y = at_y + kk * step_y, z = at_z + kk * step_z;
      const int ix = kChecked ? floor_int(x) : static_cast<int>(x),
                iy = kChecked ? floor_int(y) : static_cast<int>(y),
                iz = kChecked ? floor_int(z) : static_cast<int>(z);
      const typename Weights::Corners w = of.template corners<kTangent>(
          kk, x - static_cast<S>(ix), y - static_cast<S>(iy), z - static_cast<S>(iz));
      const int64_t at = iz * sz + iy * sy + ix;
      const bool x0 = !kChecked || (ix >= 0 && ix < nx),
                 x1 = !kChecked || (ix >= -1 && ix < nx - 1);
      const bool y0 = !kChecked || (iy >= 0 && iy < ny),
                 y1 = !kChecked || (iy >= -1 && iy < ny - 1);
      const bool z0 = !kChecked || (iz >= 0 && iz < nz),
                 z1 = !kChecked || (iz >= -1 && iz < nz - 1);
      if (x0 && y0 && z0) sink.add(at, w.c000);
      if (x1 && y0 && z0) sink.add(at + 1, w.c100);
      if (x0 && y1 && z0) sink.add(at + sy, w.c010);
      if (x1 && y1 && z0) sink.add(at + sy + 1, w.c110);
      if (x0 && y0 && z1) sink.add(at + sz, w.c001);
      if (x1 && y0 && z1) sink.add(at + sz + 1, w.c101);
      if (x0 && y1 && z1) sink.add(at + sz + sy, w.c011);
      if (x1 && y1 && z1) sink.add(at + sz + sy + 1, w.c111);
    }
  }
};

}  // namespace drrkit
