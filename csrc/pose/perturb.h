// perturb: a pose moved by a twist xi = (omega, tau) about a world point, with its adjoint.
//   M = [R t; 0 0 0 1], q = R c:  M' = [E R, q + t + V tau - E q],
//   E = exp(omega) = cos a I + s1 W + s2 omega omega',     s1 = sin a / a,
//   V              = s1 I    + s2 W + s3 omega omega',     s2 = (1 - cos a) / a^2,
// W the cross product with omega, a = |omega|,             s3 = (a - sin a) / a^3.
// All are power series in a^2, so nothing is singular at omega = 0.
#pragma once

#include "pose_map.h"

namespace drrkit {

// a I + b W + c omega omega'; da, db, dc omega are the derivatives of a, b, c in omega.
template <class S> struct Turn {
  S a, b, c, da, db, dc;

  DRR_HD Triple<S> apply(Triple<S> omega, Triple<S> x) const {
    return a * x + b * cross(omega, x) + (c * dot(omega, x)) * omega;
  }
  DRR_HD Triple<S> transposed(Triple<S> omega, Triple<S> y) const {
    return a * y - b * cross(omega, y) + (c * dot(omega, y)) * omega;
  }
  // The derivative in omega of y . apply(omega, x).
  DRR_HD Triple<S> on_omega(Triple<S> omega, Triple<S> x, Triple<S> y) const {
    const Triple<S> arm = cross(x, y);
    const S along_x = dot(omega, x), along_y = dot(omega, y);
    const S through = da * dot(x, y) + db * dot(omega, arm) + dc * (along_x * along_y);
    return through * omega + b * arm + c * (along_x * y + along_y * x);
  }
};

// Turns of E and of V.
template <class S> struct Exponential {
  Turn<S> turn, shift;
};

// Horner's rule for a polynomial and its derivative.
template <class S, int N> DRR_HD void horner(const double (&coefficients)[N], S x, S& p, S& slope) {
  p = coefficients[N - 1];
  slope = 0.0;
  for (int k = N - 2; k >= 0; --k) {
    slope = slope * x + p;
    p = p * x + coefficients[k];
  }
}

// Up to a = 1 the series, to the last digit and so are two more derivatives; beyond, the closed
// forms lose none.
template <class S> DRR_HD Exponential<S> exponential(S square) {
  const double cosine_series[] = {1. / 2,
                                  -1. / 24,
                                  1. / 720,
                                  -1. / 40320,
                                  1. / 3628800,
                                  -1. / 479001600,
                                  1. / 8.71782912e10,
                                  -1. / 2.0922789888e13,
                                  1. / 6.402373705728e15,
                                  -1. / 2.43290200817664e18};
  const double sine_series[] = {1. / 6,
                                -1. / 120,
                                1. / 5040,
                                -1. / 362880,
                                1. / 39916800,
                                -1. / 6227020800.,
                                1. / 1.307674368e12,
                                -1. / 3.55687428096e14,
                                1. / 1.21645100408832e17,
                                -1. / 5.109094217170944e19};
  S s2, s3, d2, d3;
  if (value_of(square) < 1) {
    horner(cosine_series, square, s2, d2);
    horner(sine_series, square, s3, d3);
    d2 = 2.0 * d2;  // from the derivative in a^2
    d3 = 2.0 * d3;
  } else {
    const S a = square_root(square), s1 = sine(a) / a;
    s2 = (1.0 - cosine(a)) / square;
    s3 = (1.0 - s1) / square;
    d2 = (s1 - 2.0 * s2) / square;
    d3 = (s2 - 3.0 * s3) / square;
  }
  const S s1 = 1.0 - square * s3, d1 = s3 - s2;
  return {{1.0 - square * s2, s1, s2, -s1, d1, d2}, {s1, s2, s3, d1, d2, d3}};
}

// A map of pose_map.h.
struct Perturb {
  static constexpr int kRows = 4, kCols = 4;  // of the result

  // Inputs: world_to_camera [4, 4], xi [6], centre [3].
  template <class S> DRR_HD static void view(const MapParams& p, int64_t b) {
    const MapInput &pose = p.inputs[0], &xi = p.inputs[1];
    const Triple<S> omega = {read<S>(xi, b, 0), read<S>(xi, b, 1), read<S>(xi, b, 2)};
    const Triple<S> tau = {read<S>(xi, b, 3), read<S>(xi, b, 4), read<S>(xi, b, 5)};
    const Exponential<S> e = exponential(dot(omega, omega));
    const S centre[] = {read<S>(p.inputs[2], b, 0), read<S>(p.inputs[2], b, 1),
                        read<S>(p.inputs[2], b, 2)};
    Triple<S> columns[4];  // of R, and t
    for (int j = 0; j < 4; ++j)
      columns[j] = {read<S>(pose, b, 0, j), read<S>(pose, b, 1, j), read<S>(pose, b, 2, j)};
    const Triple<S> arm =
        centre[0] * columns[0] + centre[1] * columns[1] + centre[2] * columns[2];  // q
    if (p.out) {
      double* out = p.out + 16 * b;
      for (int j = 0; j < 3; ++j) put_column(out + j, e.turn.apply(omega, columns[j]));
      put_column(out + 3, arm + columns[3] + e.shift.apply(omega, tau) - e.turn.apply(omega, arm));
      for (int j = 0; j < 4; ++j) out[12 + j] = result_of(read<S>(pose, b, 3, j));
    }
    if (p.g.data) cotangents(p, b, e, omega, tau, centre, columns, arm);
  }

 private:
  template <class S>
  DRR_HD static void cotangents(const MapParams& p, int64_t b, const Exponential<S>& e,
                                Triple<S> omega, Triple<S> tau, const S (&centre)[3],
                                const Triple<S> (&columns)[4], Triple<S> arm) {
    const Triple<S> on_t = cotangent<S>(p, b, 3);
    const Triple<S> on_arm = on_t - e.turn.transposed(omega, on_t);
    Triple<S> on_omega = e.shift.on_omega(omega, tau, on_t) - e.turn.on_omega(omega, arm, on_t);
    double *on_pose = p.on[0] + 16 * b, *on_xi = p.on[1] + 6 * b, *on_centre = p.on[2] + 3 * b;
    for (int j = 0; j < 3; ++j) {
      const Triple<S> g = cotangent<S>(p, b, j);
      on_omega = on_omega + e.turn.on_omega(omega, columns[j], g);
      put_column(on_pose + j, e.turn.transposed(omega, g) + centre[j] * on_arm);
      on_centre[j] = result_of(dot(columns[j], on_arm));
    }
    put_column(on_pose + 3, on_t);
    for (int j = 0; j < 4; ++j) on_pose[12 + j] = result_of(S(p.g.at(b, 3, j)));
    const Triple<S> on_tau = e.shift.transposed(omega, on_t);
    const S numbers[] = {on_omega.x, on_omega.y, on_omega.z, on_tau.x, on_tau.y, on_tau.z};
    for (int i = 0; i < 6; ++i) on_xi[i] = result_of(numbers[i]);
  }
  template <class S> DRR_HD static Triple<S> cotangent(const MapParams& p, int64_t b, int j) {
    return {p.g.at(b, 0, j), p.g.at(b, 1, j), p.g.at(b, 2, j)};
  }
  template <class S> DRR_HD static void put_column(double* out, Triple<S> column) {
    out[0] = result_of(column.x);
    out[4] = result_of(column.y);
    out[8] = result_of(column.z);
  }
};

}  // namespace drrkit
