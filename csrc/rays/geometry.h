// Views, grids, rays and clipping: the geometry that the three integrators share.
// Index coordinates (x, y, z), x fastest in memory; voxel i is centred at i; lengths in mm through
// the spacing.
#pragma once

#include "hd.h"

namespace drrkit {

// How the rays of a frame run: from one source, or side by side, the source moving with the pixel.
// kScan is reserved for a beam that does not exist yet.
enum class Beam { kCone = 0, kParallel = 1, kScan = 2 };

struct Grid {
  int64_t nx, ny, nz;  // voxels along x, y, z; x is contiguous
  Vec3 spacing;        // mm

  DRR_HD int64_t voxels() const { return nx * ny * nz; }
  DRR_HD int64_t size(int axis) const { return axis == 0 ? nx : axis == 1 ? ny : nz; }
  DRR_HD int64_t stride(int axis) const { return axis == 0 ? 1 : axis == 1 ? nx : nx * ny; }
  DRR_HD Vec3 metric() const { return spacing * spacing; }  // G = diag(sigma^2)
  DRR_HD Vec3 centre() const { return {0.5 * (nx - 1), 0.5 * (ny - 1), 0.5 * (nz - 1)}; }
};

// One ray, or the tangent of one: source and target points, index coordinates.
struct Ray {
  Vec3 s, p;
};

// A batch of views: frames (source, pixel (0, 0), column step, row step), or one (source, target)
// pair a ray. Rays depend linearly on these numbers, so the same struct turns a tangent of frames
// into tangents of rays.
struct Views {
  const double*
      geometry;  // [B, 4, 3] frames or [B, P, 2, 3] endpoints, index coordinates (x, y, z)
  bool endpoints;
  Beam beam;
  int64_t cols;
  int64_t n_rays;  // P, rays per view

  DRR_HD Ray ray(int64_t view, int64_t pixel) const {
    if (endpoints) {
      const double* e = geometry + 6 * (view * n_rays + pixel);
      return {{e[0], e[1], e[2]}, {e[3], e[4], e[5]}};
    }
    const double* f = geometry + 12 * view;
    double j = static_cast<double>(pixel % cols), i = static_cast<double>(pixel / cols);
    Vec3 offset = {j * f[6] + i * f[9], j * f[7] + i * f[10], j * f[8] + i * f[11]};
    Ray ray = {{f[0], f[1], f[2]}, {f[3] + offset.x, f[4] + offset.y, f[5] + offset.z}};
    if (beam == Beam::kParallel) ray.s = ray.s + offset;
    return ray;
  }
};

// The planes [begin, end) along z that an adjoint may write; marches are clipped to their
// neighbourhood.
struct Slab {
  int64_t begin, end;
};

// What a march yields for one ray: the line integral and its derivatives in the two end points.
struct RayResult {
  double image;
  Vec3 ds, dp;
};

DRR_HD double not_a_number() { return nan(""); }

DRR_HD bool is_finite(const Ray& r) {
  double sum = r.s.x + r.s.y + r.s.z + r.p.x + r.p.y + r.p.z;
  return fabs(sum) <= 1e300;  // false for NaN too
}

// The axis along which the ray crosses most planes; ties go to the lowest axis, on every device.
DRR_HD int dominant_axis(Vec3 d) {
  int m = 0;
  if (fabs(d.y) > fabs(d[m])) m = 1;
  if (fabs(d.z) > fabs(d[m])) m = 2;
  return m;
}

// A closed interval of a real parameter along the ray.
struct Interval {
  double lo, hi;

  // Keeps the parameters k with lower <= at + k rate <= upper.
  DRR_HD void clip(double at, double rate, double lower, double upper) {
    if (!(lower <= upper)) return clear();
    if (rate == 0) {
      if (!(at >= lower && at <= upper)) clear();
      return;
    }
    double k0 = (lower - at) / rate, k1 = (upper - at) / rate;
    lo = maximum(lo, minimum(k0, k1));
    hi = minimum(hi, maximum(k0, k1));
  }
  // The samples whose neighbourhood can touch a slab; `margin` is what a sample reaches in z.
  DRR_HD Interval within(Slab slab, double at_z, double rate_z, double margin) const {
    Interval part = *this;
    part.clip(at_z, rate_z, static_cast<double>(slab.begin) - margin,
              static_cast<double>(slab.end - 1) + margin);
    if (part.empty()) return part;
    return {maximum(floor(part.lo) - 1, lo), minimum(ceil(part.hi) + 1, hi)};
  }
  DRR_HD void clear() { lo = 1, hi = 0; }  // stays empty however it is clipped
  DRR_HD bool empty() const { return !(lo <= hi); }
};

// Positions rounded to float must stay inside wherever the check is skipped: their error is below
// 1e-7 of the size.
constexpr double kInnerMargin = 1e-3;

// Integer samples of a march: [begin, end) may touch the volume, [inner_begin, inner_end) needs no
// bounds check.
struct Samples {
  int begin, inner_begin, inner_end, end;

  // `outer` and `inner` are inclusive integer-valued intervals; an empty `inner` leaves everything
  // to checks.
  DRR_HD static Samples from(Interval outer, Interval inner) {
    if (outer.empty() || !(outer.lo > -1e9 && outer.hi < 1e9)) return {0, 0, 0, 0};
    Samples s;
    s.begin = static_cast<int>(outer.lo);
    s.end = static_cast<int>(outer.hi) + 1;
    inner.lo = maximum(inner.lo, outer.lo);
    inner.hi = minimum(inner.hi, outer.hi);
    s.inner_begin = inner.empty() ? s.end : static_cast<int>(inner.lo);
    s.inner_end = inner.empty() ? s.end : static_cast<int>(inner.hi) + 1;
    return s;
  }

  // Those in [first, last).
  DRR_HD Samples part(int first, int last) const {
    const int from = maximum(begin, first), to = maximum(minimum(end, last), from);
    return {from, minimum(maximum(inner_begin, from), to), minimum(maximum(inner_end, from), to),
            to};
  }

  // Gives up the unchecked samples unless the positions, as the march evaluates them, do lie in
  // [lower, upper]: far from the origin even double cannot say beforehand. Positions are monotone,
  // so their two ends decide.
  template <class S> DRR_HD void verify(S at, S step, double lower, double upper) {
    if (inner_begin >= inner_end) return;
    const S first = at + static_cast<S>(inner_begin) * step;
    const S last = at + static_cast<S>(inner_end - 1) * step;
    lower += 0.5 * kInnerMargin;
    upper -= 0.5 * kInnerMargin;
    if (!(minimum(first, last) >= lower && maximum(first, last) <= upper))
      inner_begin = inner_end = end;
  }
};

}  // namespace drrkit
