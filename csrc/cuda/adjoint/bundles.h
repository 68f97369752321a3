// Joseph's volume adjoint by gathering: which rays of a view touch a voxel.
//
// The rays of one view that run along one axis m, in one direction, are a bundle. With (j, i) a
// pixel counted from the bundle's reference pixel, its ray meets plane k of m at
//   x_a = r_a(k) + t (j A_a + i B_a) / (1 + j U + i V),
//   t = k - s_m for a cone, t = 1 and U = V = 0 for a parallel beam,
// r the reference ray, and likewise along b. So a ray costs one division a plane, the numbers that
// are rounded to the arithmetic type stay small, and how far a ray passes from a voxel is bounded
// by inequalities that are linear in (j, i). The rows that can touch a voxel come from the inverse
// of (d, u, v), the columns of one row from those inequalities. Both only bound the search, with a
// margin: the exact weight decides. Where voxels see more rows than columns, the two change places,
// so that long lines of pixels are looked at, and few.
#pragma once

#include "../../rays/geometry.h"
#include "arithmetic.h"

namespace drrkit {
namespace cuda {

constexpr int kBundles = 6;  // bundle 2 m + (d_m < 0); kBundles itself: a ray that is in none

// One ray's part in its view's bundles.
struct Member {
  int bundle;
  int first, last;  // the planes of axis m that it meets
  double w;         // mm per plane

  DRR_HD static Member of(const Grid& grid, const Ray& ray) {
    const Vec3 d = ray.p - ray.s, g = grid.metric();
    const int m = dominant_axis(d), a = m == 0 ? 1 : 0, b = m == 2 ? 1 : 2;
    const double dm = d[m], last = static_cast<double>(grid.size(m) - 1);
    Member r = {kBundles, 0, -1, 0};
    if (!(fabs(dm) > 0) || !is_finite(ray)) return r;
    const double rho_a = d[a] / dm, rho_b = d[b] / dm;
    r.w = sqrt(g[m] + g[a] * rho_a * rho_a + g[b] * rho_b * rho_b);
    const double low = minimum(ray.s[m], ray.p[m]), high = maximum(ray.s[m], ray.p[m]);
    r.first = static_cast<int>(minimum(last + 1, maximum(ceil(low), 0.0)));
    r.last = static_cast<int>(maximum(-1.0, minimum(floor(high), last)));
    if (r.first <= r.last) r.bundle = 2 * m + (dm < 0);
    return r;
  }
};

// What is known of a bundle's pixels: their number, and maxima of numbers that are 0 where nothing
// is known, so that boxes start at 0 and can be joined in any order.
struct BundleBox {
  static constexpr int kNumbers = 10;
  static constexpr int32_t kFar = 1 << 30;  // no image and no grid is larger
  int32_t number[kNumbers];

  DRR_HD static BundleBox none() { return {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}; }
  DRR_HD static BundleBox of(const Member& member, int32_t col, int32_t row, int32_t pixel) {
    return {{1, kFar - col, col + 1, kFar - row, row + 1, member.first + 1, kFar - member.first,
             member.last + 1, kFar - member.last, kFar - pixel}};
  }
  DRR_HD void join(const BundleBox& other) {
    number[0] += other.number[0];
    for (int i = 1; i < kNumbers; ++i) number[i] = maximum(number[i], other.number[i]);
  }

  DRR_HD int32_t col_begin() const { return kFar - number[1]; }
  DRR_HD int32_t col_end() const { return number[2]; }
  DRR_HD int32_t row_begin() const { return kFar - number[3]; }
  DRR_HD int32_t row_end() const { return number[4]; }
  DRR_HD int32_t first_plane() const { return kFar - number[6]; }
  DRR_HD int32_t last_plane() const { return number[7] - 1; }
  DRR_HD int32_t some_pixel() const { return kFar - number[9]; }  // the first one
  DRR_HD bool empty() const { return number[0] == 0; }
  // Whether every pixel of the rectangle is a member and samples all of the bundle's planes.
  DRR_HD bool plain() const {
    const int64_t area = static_cast<int64_t>(col_end() - col_begin()) * (row_end() - row_begin());
    return number[0] == area && number[5] - 1 == first_plane() && kFar - number[8] == last_plane();
  }
};

// one + m x_m + a x_a + b x_b, positions counted from the grid's middle voxel.
template <class S> struct Affine {
  S one, m, a, b;

  DRR_HD S at(S xm, S xa, S xb) const { return one + m * xm + a * xa + b * xb; }
  DRR_HD S change(S ha, S hb) const {
    return ha * static_cast<S>(fabs(a)) + hb * static_cast<S>(fabs(b));
  }
  DRR_HD S change(S hm, S ha, S hb) const {
    return hm * static_cast<S>(fabs(m)) + ha * static_cast<S>(fabs(a)) +
           hb * static_cast<S>(fabs(b));
  }
};

// A closed interval of pixel coordinates.
template <class S> struct Range {
  S lo, hi;
};

template <class S> struct alignas(4 * sizeof(S)) Bundle {
  // In groups of four, as they are fetched together.
  Affine<S> lambda, lambda_row;                    // X - s = lambda (d + j u + i v)
  S at_a, rho_a, at_b, rho_b;                      // r_a = at_a + k rho_a
  S t_one, t_m, slack, col_error;                  // t = t_one + k t_m; see in_reach_of_source
  S col_a, col_b, col_d, row_error;                // A_a, A_b, U; of lambda_row's numerator
  S row_a, row_b, row_d, per_d;                    // B_a, B_b, V; 1 / d_m, 1 for parallel beams
  S plane_first, plane_last, row_first, row_last;  // planes from the middle, rows from pixel's
  S col_first, col_last, source_a, source_b;  // columns from pixel's; the source from the middle
  int32_t pixel, stride_col, stride_row, id;  // the reference pixel, and the steps from it
  Affine<S> lambda_col;
  int32_t axis;
  bool plain;  // see BundleBox

  DRR_HD static double margin() { return 1.0 / 64; }  // voxels; positions are far more exact

  // False where the bundle has no pixel that could touch anything.
  DRR_HD static bool make(const Grid& grid, const Views& views, int64_t view, int id,
                          const BundleBox& box, Bundle& r) {
    if (box.empty()) return false;
    const int cols = static_cast<int>(views.cols);
    r.id = id;
    r.axis = id / 2;
    r.plain = box.plain();
    r.choose_reference(grid, views, view, box);
    r.col_first = static_cast<S>(box.col_begin() - r.pixel % cols);
    r.col_last = static_cast<S>(box.col_end() - 1 - r.pixel % cols);
    r.row_first = static_cast<S>(box.row_begin() - r.pixel / cols);
    r.row_last = static_cast<S>(box.row_end() - 1 - r.pixel / cols);
    r.stride_col = 1;
    r.stride_row = cols;
    const Ray ray = views.ray(view, r.pixel);
    const double* f = views.geometry + 12 * view;
    Vec3 u = {f[6], f[7], f[8]}, v = {f[9], f[10], f[11]};
    const bool parallel = views.beam == Beam::kParallel;
    r.invert(grid, ray, u, v, parallel);
    if (r.prefers_rows()) {
      r.transpose();
      const Vec3 kept = u;
      u = v;
      v = kept;
    }
    r.follow(grid, ray, u, v, parallel);
    r.plane_first = static_cast<S>(box.first_plane() - middle_of(grid)[r.axis]);
    r.plane_last = static_cast<S>(box.last_plane() - middle_of(grid)[r.axis]);
    const S sum = r.at_a + r.at_b + r.rho_a + r.rho_b + r.t_one + r.col_a + r.row_a + r.col_b +
                  r.row_b + r.col_d + r.row_d;
    return fabs(sum) <= static_cast<S>(1e30);  // false for NaN too
  }

  DRR_HD int a() const { return axis == 0 ? 1 : 0; }
  DRR_HD int b() const { return axis == 2 ? 1 : 2; }

  // The middle of the rectangle, unless the bundle leaves it to another.
  DRR_HD void choose_reference(const Grid& grid, const Views& views, int64_t view,
                               const BundleBox& box) {
    const int col = (box.col_begin() + box.col_end() - 1) / 2;
    const int row = (box.row_begin() + box.row_end() - 1) / 2;
    pixel = row * static_cast<int>(views.cols) + col;
    if (Member::of(grid, views.ray(view, pixel)).bundle != id) pixel = box.some_pixel();
  }

  // The reference ray, and how the others differ from it.
  DRR_HD void follow(const Grid& grid, const Ray& ray, Vec3 u, Vec3 v, bool parallel) {
    const Vec3 d = ray.p - ray.s, middle = middle_of(grid);
    const double dm = d[axis], on_a = d[a()] / dm, on_b = d[b()] / dm;
    const double to_middle = middle[axis] - ray.s[axis], per_step = parallel ? 1 : 1 / dm;
    at_a = static_cast<S>(ray.s[a()] + to_middle * on_a - middle[a()]);
    at_b = static_cast<S>(ray.s[b()] + to_middle * on_b - middle[b()]);
    rho_a = static_cast<S>(on_a);
    rho_b = static_cast<S>(on_b);
    t_one = static_cast<S>(parallel ? 1 : to_middle);
    t_m = static_cast<S>(parallel ? 0 : 1);
    col_a = static_cast<S>((u[a()] - on_a * u[axis]) * per_step);
    row_a = static_cast<S>((v[a()] - on_a * v[axis]) * per_step);
    col_b = static_cast<S>((u[b()] - on_b * u[axis]) * per_step);
    row_b = static_cast<S>((v[b()] - on_b * v[axis]) * per_step);
    per_d = static_cast<S>(per_step);
    col_d = static_cast<S>(parallel ? 0 : u[axis] / dm);
    row_d = static_cast<S>(parallel ? 0 : v[axis] / dm);
    source_a = static_cast<S>(ray.s[a()] - middle[a()]);
    source_b = static_cast<S>(ray.s[b()] - middle[b()]);
    slack = static_cast<S>(parallel ? 1e9 : 1);
  }

  // Whether a step sideways moves the projection by more rows than columns.
  DRR_HD bool prefers_rows() const { return lambda_row.change(1, 1) > lambda_col.change(1, 1); }
  DRR_HD void transpose() {
    exchange(stride_col, stride_row);
    exchange(col_first, row_first);
    exchange(col_last, row_last);
    exchange(lambda_col, lambda_row);
    exchange(col_error, row_error);
  }
  template <class T> DRR_HD static void exchange(T& x, T& y) {
    const T kept = x;
    x = y;
    y = kept;
  }

  DRR_HD static Vec3 middle_of(const Grid& grid) {
    return {static_cast<double>(grid.nx / 2), static_cast<double>(grid.ny / 2),
            static_cast<double>(grid.nz / 2)};
  }

  // lambda, lambda_col and lambda_row; all 0, which bounds nothing, where (d, u, v) are coplanar.
  DRR_HD void invert(const Grid& grid, const Ray& ray, Vec3 u, Vec3 v, bool parallel) {
    const Vec3 d = ray.p - ray.s;
    const bool one_col = col_first == col_last, one_row = row_first == row_last;
    const double along_d = 1 / sqrt(dot(d, d));
    // A step that is never taken may point anywhere.
    if (one_col && one_row) u = from_axes(axis, a(), 0, 1, 0);
    if (one_col && !one_row) u = along_d * cross(v, d);
    if (one_row) v = along_d * cross(d, u);
    const Vec3 normal = cross(u, v);
    const double det = dot(d, normal), size = sqrt(dot(d, d) * dot(u, u) * dot(v, v));
    lambda = lambda_col = lambda_row = {0, 0, 0, 0};
    col_error = row_error = 0;
    if (!(fabs(det) > 1e-12 * size)) return;
    const Vec3 from_source = middle_of(grid) - ray.s;
    lambda = affine((1 / det) * normal, from_source);
    lambda_col = affine((1 / det) * cross(v, d), from_source);
    lambda_row = affine((1 / det) * cross(d, u), from_source);
    if (parallel) lambda = {1, 0, 0, 0};
    const S hm = half_size(grid, axis), ha = half_size(grid, a()), hb = half_size(grid, b());
    const S most_cols = maximum(-col_first, col_last);
    const S most_rows = maximum(-row_first, row_last);
    const S epsilon = static_cast<S>(sizeof(S) == 4 ? 1e-6 : 2e-15);
    const S of_lambda = size_of(lambda, hm, ha, hb);
    col_error = epsilon * (size_of(lambda_col, hm, ha, hb) + most_cols * of_lambda);
    row_error = epsilon * (size_of(lambda_row, hm, ha, hb) + most_rows * of_lambda);
  }
  DRR_HD static Vec3 cross(Vec3 a, Vec3 b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
  }
  DRR_HD Affine<S> affine(Vec3 gradient, Vec3 from_source) const {
    return {static_cast<S>(dot(gradient, from_source)), static_cast<S>(gradient[axis]),
            static_cast<S>(gradient[a()]), static_cast<S>(gradient[b()])};
  }
  DRR_HD static S half_size(const Grid& grid, int axis_) {
    return static_cast<S>(grid.size(axis_) / 2 + 2);
  }
  DRR_HD static S size_of(const Affine<S>& f, S hm, S ha, S hb) {
    return static_cast<S>(fabs(f.one)) + f.change(hm, ha, hb);
  }

  DRR_HD S t(S k) const { return fused(k, t_m, t_one); }

  // Whether rays can come within (ha, hb) of a point on plane k at all, |rho| being at most 1.
  DRR_HD bool in_reach_of_source(S most_t, S xa, S xb, S ha, S hb) const {
    return static_cast<S>(fabs(xa - source_a)) <= most_t + ha + slack &&
           static_cast<S>(fabs(xb - source_b)) <= most_t + hb + slack;
  }

  // Where a box of half sizes (hm, ha, hb) projects to: along columns or rows, as `numerator` says.
  DRR_HD static Range<S> project(const Affine<S>& lambda, S at, S lowest,
                                 const Affine<S>& numerator, S error, S xm, S xa, S xb, S hm, S ha,
                                 S hb) {
    const S middle = numerator.at(xm, xa, xb) / at;
    const Affine<S> move = {0, numerator.m - middle * lambda.m, numerator.a - middle * lambda.a,
                            numerator.b - middle * lambda.b};
    const S half = (move.change(hm, ha, hb) + error) / lowest + static_cast<S>(0.01);
    return {middle - half, middle + half};
  }

  // Whether the box of half sizes (hm, ha, hb) about a point can be touched.
  DRR_HD bool touches(S xm, S xa, S xb, S hm, S ha, S hb) const {
    if (!(xm + hm >= plane_first && xm - hm <= plane_last)) return false;
    ha += static_cast<S>(1 + margin());  // a ray weighs in voxels up to one away
    hb += static_cast<S>(1 + margin());
    const S most_t = maximum(static_cast<S>(fabs(t(xm - hm))), static_cast<S>(fabs(t(xm + hm))));
    if (!in_reach_of_source(most_t, xa, xb, ha, hb)) return false;
    const S at = lambda.at(xm, xa, xb), lowest = at - lambda.change(hm, ha, hb);
    if (!(lowest > static_cast<S>(0.25) * at)) return true;
    const Range<S> cols =
        project(lambda, at, lowest, lambda_col, col_error, xm, xa, xb, hm, ha, hb);
    const Range<S> rows =
        project(lambda, at, lowest, lambda_row, row_error, xm, xa, xb, hm, ha, hb);
    return !(cols.hi < col_first || cols.lo > col_last || rows.hi < row_first ||
             rows.lo > row_last);
  }
};

// The columns of row i whose rays come within a window along one axis: one + i by_row, half of them
// to either side.
template <class S> struct Columns {
  S one, by_row, half;

  // |p| <= reach, p = at + t (j by_col + i by_row) / (1 + j U + i V) counted from the window's
  // middle, `depth` bounding the denominator. Where p does not depend on j, half is infinite.
  DRR_HD static Columns of(S at, S t, S col, S row, S col_d, S row_d, S reach, S depth) {
    const S per_slope = reciprocal(t * col + at * col_d);
    return {-at * per_slope, -(at * row_d + t * row) * per_slope,
            reach * depth * static_cast<S>(fabs(per_slope))};
  }
};

// The pixels of a bundle whose rays may pass through a window of plane k: (half_a, half_b) to
// either side of (mid_a, mid_b), all counted from the grid's middle.
template <class S> struct Window {
  S t, at_a, at_b;  // of the reference ray
  Columns<S> on_a, on_b;
  Range<S> rows;  // whole numbers

  // False where there are none.
  DRR_HD bool look(const Bundle<S>& bundle, S k, S mid_a, S mid_b, S half_a, S half_b) {
    if (!(k >= bundle.plane_first && k <= bundle.plane_last)) return false;
    t = bundle.t(k);
    const S lambda = bundle.lambda.at(k, mid_a, mid_b);
    const S lowest = lambda - bundle.lambda.change(half_a, half_b);
    S row_low = bundle.row_first, row_high = bundle.row_last, depth = static_cast<S>(1e15);
    if (lowest > static_cast<S>(0.25) * lambda) {
      const S per_lowest = reciprocal(lowest);
      const S middle = bundle.lambda_row.at(k, mid_a, mid_b) * reciprocal(lambda);
      const S move_a = bundle.lambda_row.a - middle * bundle.lambda.a;
      const S move_b = bundle.lambda_row.b - middle * bundle.lambda.b;
      const S reach = (half_a * static_cast<S>(fabs(move_a)) +
                       half_b * static_cast<S>(fabs(move_b)) + bundle.row_error) *
                          per_lowest +
                      static_cast<S>(0.01);
      row_low = at_least(row_low, middle - reach);
      row_high = at_most(row_high, middle + reach);
      depth = t * bundle.per_d * per_lowest;
    } else if (!bundle.in_reach_of_source(static_cast<S>(fabs(t)), mid_a, mid_b, half_a, half_b)) {
      return false;
    }
    if (!(row_low <= row_high)) return false;  // they may lie far outside: no small numbers then
    rows = {round_up(row_low), round_down(row_high)};
    at_a = fused(k, bundle.rho_a, bundle.at_a);
    at_b = fused(k, bundle.rho_b, bundle.at_b);
    on_a = Columns<S>::of(at_a - mid_a, t, bundle.col_a, bundle.row_a, bundle.col_d, bundle.row_d,
                          half_a, depth);
    on_b = Columns<S>::of(at_b - mid_b, t, bundle.col_b, bundle.row_b, bundle.col_d, bundle.row_d,
                          half_b, depth);
    return true;
  }

  // The columns of row i: whole numbers, none where lo > hi.
  DRR_HD Range<S> columns(const Bundle<S>& bundle, S i) const {
    const S mid_a = on_a.one + i * on_a.by_row, mid_b = on_b.one + i * on_b.by_row;
    const S low = at_least(at_least(bundle.col_first, mid_a - on_a.half), mid_b - on_b.half);
    const S high = at_most(at_most(bundle.col_last, mid_a + on_a.half), mid_b + on_b.half);
    if (!(low <= high)) return {1, 0};
    return {round_up(low), round_down(high)};
  }
};

}  // namespace cuda
}  // namespace drrkit
