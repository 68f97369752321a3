// Dual numbers: a value and its derivative along one direction. What is written for any scalar S
// gives a value for S = double and, for S = Dual, its exact derivative in `slope`.
#pragma once

#include "../rays/hd.h"

namespace drrkit {

struct Dual {
  double value, slope;

  Dual() = default;
  DRR_HD Dual(double constant) : value(constant), slope(0) {}  // NOLINT: constants mix with duals
  DRR_HD Dual(double value_, double slope_) : value(value_), slope(slope_) {}
};

DRR_HD Dual operator-(Dual a) { return {-a.value, -a.slope}; }
DRR_HD Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.slope + b.slope}; }
DRR_HD Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.slope - b.slope}; }
DRR_HD Dual operator*(Dual a, Dual b) {
  return {a.value * b.value, a.value * b.slope + a.slope * b.value};
}
DRR_HD Dual operator/(Dual a, Dual b) {
  const double quotient = a.value / b.value;
  return {quotient, (a.slope - quotient * b.slope) / b.value};
}

DRR_HD double square_root(double x) { return sqrt(x); }
DRR_HD double sine(double x) { return sin(x); }
DRR_HD double cosine(double x) { return cos(x); }
DRR_HD Dual square_root(Dual x) {
  const double root = sqrt(x.value);
  return {root, 0.5 * x.slope / root};
}
DRR_HD Dual sine(Dual x) { return {sin(x.value), cos(x.value) * x.slope}; }
DRR_HD Dual cosine(Dual x) { return {cos(x.value), -sin(x.value) * x.slope}; }

DRR_HD double value_of(double x) { return x; }
DRR_HD double value_of(Dual x) { return x.value; }

// What an evaluation is for: the value itself, or with duals the derivative.
DRR_HD double result_of(double x) { return x; }
DRR_HD double result_of(Dual x) { return x.slope; }

// Three numbers of any scalar, and row-major 3 x 3 matrices of them.
template <class S> struct Triple {
  S x, y, z;
};
template <class S> DRR_HD Triple<S> operator+(Triple<S> a, Triple<S> b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}
template <class S> DRR_HD Triple<S> operator-(Triple<S> a, Triple<S> b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}
template <class S> DRR_HD Triple<S> operator*(S f, Triple<S> a) {
  return {f * a.x, f * a.y, f * a.z};
}
template <class S> DRR_HD S dot(Triple<S> a, Triple<S> b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}
template <class S> DRR_HD Triple<S> cross(Triple<S> a, Triple<S> b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

}  // namespace drrkit
