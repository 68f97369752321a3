// What the two maps of poses share, perturb.h and frames.h: small tensors of one item a
// view, read with any strides, and what is wanted of a map m(x0, x1, x2):
//   S = double: out = m(x), and with a cotangent g of m(x) also on = the cotangents of x
//   S = Dual:   the derivatives of both along the slopes of the inputs, g being constant
// All derivatives up to the second are made of these.
#pragma once

#include "../rays/geometry.h"
#include "dual.h"

namespace drrkit {

// One item [rows, cols] or [rows] a view.
struct Operand {
  const double* data;      // null: not given, zeros
  int64_t view, row, col;  // strides; `view` is 0 where all views share an item

  DRR_HD double at(int64_t b, int i, int j = 0) const {
    return data ? data[b * view + i * row + j * col] : 0.0;
  }
};

struct MapInput {
  Operand value, slope;
};

template <class S> DRR_HD S read(const MapInput& input, int64_t b, int i, int j = 0);
template <> DRR_HD double read<double>(const MapInput& input, int64_t b, int i, int j) {
  return input.value.at(b, i, j);
}
template <> DRR_HD Dual read<Dual>(const MapInput& input, int64_t b, int i, int j) {
  return {input.value.at(b, i, j), input.slope.at(b, i, j)};
}

constexpr int kMapInputs = 3;

// Perturb or Frames is the Map; `inputs` and results as described there.
struct MapParams {
  int64_t n_views;
  MapInput inputs[kMapInputs];
  Operand g;               // [B, ...] cotangent of the map's result; without data: none
  double* out;             // [B, ...]; null: not wanted
  double* on[kMapInputs];  // [B, ...] cotangents of the inputs; unused without g
  bool derivative;         // S = Dual
  bool extend;             // frames.h
  Beam beam;
};

}  // namespace drrkit
