// What the tiles of a panel add to the volume in one stack of planes: summed close together in a
// near cache, then added to the volume by whole vectors.
#pragma once

#include "excerpt.h"

namespace drrkit {
namespace cpu {

// Of a core's second cache. Smaller ones make tiles that overlap add to the same voxels in turn.
constexpr int64_t kTallyBytes = 262144;

// Sums for the voxels of a box. With pairs, place (k, a, b) holds what goes to the voxel and what
// goes to its neighbour a + 1: a ray adds both at once, and no two additions overlap in part, which
// would make the processor wait for the first. Contiguous along a, or in columns of a stack's
// planes where those are contiguous in the volume.
template <class S, int N, bool kPairs> struct Tally {
  using V = typename Lanes<S, N>::Value;
  static constexpr int kPlaces = kPairs ? 2 : 1;  // numbers a place
  static constexpr int kPad = 64;  // zeros before the first place, and room to read behind the last
  static constexpr int64_t kCapacity = kTallyBytes / sizeof(S);
  static constexpr int64_t kNumbers = kCapacity + 2 * kPad;

  S* data;
  Box box;
  bool rows;  // contiguous along a
  int first;  // the plane of place 0
  int k_step, a_step, b_step;

  DRR_HD static int64_t numbers(const Box& box, bool rows) {
    const int64_t planes = rows ? box.k1 - box.k0 : kStack + 1;
    return kPlaces * planes * box.size_a() * box.size_b();
  }

  // The last place of a row stays zero: nothing goes beyond the box.
  DRR_HD static Tally zeros(S* room, const Box& box, bool rows) {
    Tally t;
    t.data = room + kPad;
    t.box = box;
    t.rows = rows;
    t.first = rows ? box.k0 : box.k0 / kStack * kStack;
    t.a_step = rows ? kPlaces : kPlaces * (kStack + 1);
    t.b_step = t.a_step * box.size_a();
    t.k_step = rows ? t.b_step * box.size_b() : kPlaces;
    __builtin_memset(room, 0, (numbers(box, rows) + 2 * kPad) * sizeof(S));
    return t;
  }

  DRR_HD S* plane(int k) const { return data + (k - first) * k_step; }

  // Adds all of it to the voxels of `part`, a part of the box inside the volume. Everything before
  // `end` may be written.
  DRR_HD void add_to(S* volume, const S* end, const Channel& channel, const Box& part) const {
    if (rows) {
      add_rows(volume, end, channel, part);
    } else {
      add_columns(volume, end, channel, part);
    }
  }

 private:
  DRR_HD static V read(const S* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
  }
  // Adds x to n numbers; adds the rest, zeros, to what lies behind where that may be written.
  DRR_HD static void add(S* to, const S* end, int n, V x) {
    if (n >= N || to + N <= end) {
      const V sum = read(to) + x;
      __builtin_memcpy(to, &sum, sizeof sum);
    } else {
      for (int i = 0; i < n; ++i) to[i] += x[i];
    }
  }
  DRR_HD static V counting() {
    V v = {};
    for (int i = 0; i < N; ++i) v[i] = static_cast<S>(i);
    return v;
  }

  DRR_HD void add_rows(S* volume, const S* end, const Channel& channel, const Box& part) const {
    const V index = counting();
    const int n = part.size_a();
    for (int k = part.k0; k < part.k1; ++k)
      for (int b = part.b0; b <= part.b1; ++b) {
        S* to = volume + k * channel.stride_m + part.a0 + b * channel.stride_b;
        const S* from = plane(k) + (part.a0 - box.a0) * kPlaces + (b - box.b0) * b_step;
        for (int i = 0; i < n; i += N, from += kPlaces * N) {
          V x;
          if (kPairs) {  // what goes to a, after what goes from a - 1 to a
            const V p = read(from - 1), q = read(from - 1 + N);
            x = evens<N>(p, q) + odds<N>(p, q);
          } else {
            x = read(from);
          }
          if (n - i < N) x = Lanes<S, N>::pick(index < static_cast<S>(n - i), x, V{});
          add(to + i, end, n - i, x);
        }
      }
  }

  DRR_HD void add_columns(S* volume, const S* end, const Channel& channel, const Box& part) const {
    constexpr int kVectors = kStack / N;
    const int planes = minimum(kStack, channel.size_m - first);
    for (int b = part.b0; b <= part.b1; ++b) {
      S* to = volume + first + part.a0 * channel.stride_a + b * channel.stride_b;
      const S* from = data + (part.a0 - box.a0) * a_step + (b - box.b0) * b_step;
      V carried[kVectors];
      for (int i = 0; i < kVectors; ++i)
        carried[i] =
            kPairs ? odds<N>(read(from - a_step + 2 * i * N), read(from - a_step + (2 * i + 1) * N))
                   : V{};
      for (int a = part.a0; a <= part.a1; ++a, to += channel.stride_a, from += a_step)
        for (int i = 0; i < kVectors; ++i) {
          V x;
          if (kPairs) {
            const V p = read(from + 2 * i * N), q = read(from + (2 * i + 1) * N);
            x = evens<N>(p, q) + carried[i];
            carried[i] = odds<N>(p, q);
          } else {
            x = read(from + i * N);
          }
          if (planes > i * N) add(to + i * N, end, planes - i * N, x);
        }
    }
  }
};

}  // namespace cpu
}  // namespace drrkit
