// Rays of one dominant axis side by side, marched plane by plane with Joseph's method.
#pragma once

#include "../joseph.h"
#include "brick.h"

namespace drrkit {
namespace cpu {

template <class S, int N> struct JosephTile {
  using March = Joseph<S>;
  using Rays = Lanes<S, N>;
  using V = typename Rays::Value;
  using I = typename Rays::Index;
  using Sums = JosephSums<V>;
  using Weights = JosephWeights<Rays>;
  template <class T> using SumsOf = JosephSums<T>;

  static constexpr bool kPairs = true;  // a sample adds to neighbours along a

  // The samples of each ray: planes [begin, end).
  struct Span {
    V begin, end;
  };

  V at_a, at_b, step_a, step_b, reference;
  Span span;

  DRR_HD void clear() {
    at_a = at_b = step_a = step_b = reference = V{};
    span.begin = span.end = V{};
  }
  DRR_HD void set(int lane, const March& march) {
    at_a[lane] = march.at_a;
    at_b[lane] = march.at_b;
    step_a[lane] = march.step_a;
    step_b[lane] = march.step_b;
    reference[lane] = static_cast<S>(march.plane);
    span.begin[lane] = static_cast<S>(first_plane(march));
    span.end[lane] = static_cast<S>(end_plane(march));
  }
  DRR_HD static int axis(const March& march) { return march.m; }
  DRR_HD static int first_plane(const March& march) {
    return static_cast<int>(march.plane) + march.samples.begin;
  }
  DRR_HD static int end_plane(const March& march) {
    return static_cast<int>(march.plane) + march.samples.end;
  }

  DRR_HD static Span only(const Span& part, int lane) {
    Span one = {V{}, V{}};
    one.begin[lane] = part.begin[lane];
    one.end[lane] = part.end[lane];
    return one;
  }
  DRR_HD Span within(int k0, int k1) const {
    return {maximum(span.begin, Rays::splat(S(k0))), minimum(span.end, Rays::splat(S(k1)))};
  }
  DRR_HD static bool covers(const Span& part, int k0, int k1) {
    return Rays::all((part.begin == Rays::splat(S(k0))) & (part.end == Rays::splat(S(k1))));
  }

  // The voxels that the samples of `part` read; positions are monotone, so the two ends decide.
  DRR_HD Box box(const Span& part, int k0, int k1) const {
    const auto active = part.begin < part.end;
    const V first = part.begin - reference, last = part.end - S(1) - reference;
    const I a_first = Rays::floored(at_a + first * step_a),
            a_last = Rays::floored(at_a + last * step_a);
    const I b_first = Rays::floored(at_b + first * step_b),
            b_last = Rays::floored(at_b + last * step_b);
    const I far = I{} + 0x3fffffff, near = I{} - 0x3fffffff;
    return {k0,
            k1,
            Rays::smallest(Rays::pick(active, minimum(a_first, a_last), far)),
            Rays::largest(Rays::pick(active, maximum(a_first, a_last), near)) + 1,
            Rays::smallest(Rays::pick(active, minimum(b_first, b_last), far)),
            Rays::largest(Rays::pick(active, maximum(b_first, b_last), near)) + 1};
  }

  DRR_HD static Block layout(const Scene& scene, const void* values, int axis) {
    return Block::along(scene, values, axis, axis == 0 ? 1 : 0, axis == 2 ? 1 : 2);
  }
  // Lanes hold offsets inside a plane as 32-bit numbers.
  DRR_HD static bool indexable(const Block& block) {
    return block.stride_a * block.size_a + block.stride_b * block.size_b < 0x7fffffff;
  }

  DRR_HD static Brick<S> copy(S* room, int64_t capacity, const Block& block, const Box& box) {
    return block.stride_a == 1 ? copy_rows(room, capacity, block, box)
                               : copy_pairs(room, capacity, block, box);
  }
  // Across the contiguous axis a tile meets the same cache lines plane after plane; rows of
  // power-of-two volumes then evict each other, and neighbours along a cannot be loaded at once.
  // Copying pays while it moves no more rows than there are samples a plane to share them.
  DRR_HD static bool prefers_copy(const Block& block, const Box& box, int) {
    return block.stride_a != 1 && box.size_a() * box.size_b() <= 6 * N;
  }

  template <int kOrder>
  DRR_HD void gather(const Brick<S>& brick, const Box& box, const Span& part, Sums& sums) const {
    const bool whole = covers(part, box.k0, box.k1) && box.a0 >= 0 && box.b0 >= 0;
    const bool pairs = brick.a_step == 1 || brick.k_step == 2;
    if (whole && pairs) return march<kOrder, false, true>(brick, box, part, sums);
    if (whole) return march<kOrder, false, false>(brick, box, part, sums);
    if (pairs) return march<kOrder, true, true>(brick, box, part, sums);
    march<kOrder, true, false>(brick, box, part, sums);
  }

  // The ray's own number of what a span calls `at`.
  DRR_HD int sample(S at, int lane) const { return static_cast<int>(at - reference[lane]); }

  // Adds planes [k0, k1) of what `part` adds to the voxels of `box`.
  template <bool kTangent, class Tally>
  DRR_HD void scatter(const Tally& tally, const Box& box, const Span& part, int k0, int k1,
                      const Weights& weights) const {
    const Box planes = {maximum(k0, box.k0), minimum(k1, box.k1), box.a0, box.a1, box.b0, box.b1};
    // Decided for all planes of the box: what a plane adds does not depend on the others.
    const bool whole = covers(part, box.k0, box.k1) && box.a0 >= 0 && box.b0 >= 0;
    if (whole) return scatter_planes<kTangent, false>(tally, planes, part, weights);
    scatter_planes<kTangent, true>(tally, planes, part, weights);
  }

 private:
  template <bool kTangent, bool kMasked, class Tally>
  DRR_HD void scatter_planes(const Tally& tally, const Box& box, const Span& part,
                             const Weights& its_weights) const {
    const Weights weights = its_weights;
    V plane = Rays::splat(S(box.k0));
    const int a0 = tally.box.a0, b0 = tally.box.b0, a_step = tally.a_step, b_step = tally.b_step;
    S* p = tally.plane(box.k0);
    for (int k = box.k0; k < box.k1; ++k, p += tally.k_step, plane += S(1)) {
      const V kk = plane - reference;
      const V xa = at_a + kk * step_a, xb = at_b + kk * step_b;
      const I ia = kMasked ? Rays::floored(xa) : Rays::truncated(xa),
              ib = kMasked ? Rays::floored(xb) : Rays::truncated(xb);
      const auto counts = (plane >= part.begin) & (plane < part.end);
      I offset = reinterpret_cast<I>(Rays::steps(ia, a0, a_step) + Rays::steps(ib, b0, b_step));
      if (kMasked) offset = Rays::pick(counts, offset, I{});
      alignas(sizeof(I)) int at[N];
      spread(offset, at);
      V w00, w10, w01, w11;
      weights.template corners<kTangent>(kk, xa - Rays::of(ia), xb - Rays::of(ib), w00, w10, w01,
                                         w11);
      if (kMasked) {
        w00 = Rays::pick(counts, w00, V{});
        w10 = Rays::pick(counts, w10, V{});
        w01 = Rays::pick(counts, w01, V{});
        w11 = Rays::pick(counts, w11, V{});
      }
      add_pairs<S, N>(p, at, w00, w10);
      add_pairs<S, N>(p + b_step, at, w01, w11);
    }
  }

  template <int kOrder, bool kMasked, bool kPairs>
  DRR_HD void march(const Brick<S>& brick, const Box& box, const Span& part, Sums& out) const {
    Sums sums;
    V plane = Rays::splat(S(box.k0));
    const S* p = brick.plane(box.k0);
    const int a0 = brick.a0, b0 = brick.b0, a_step = brick.a_step, b_step = brick.b_step;
    for (int k = box.k0; k < box.k1; ++k, p += brick.k_step, plane += S(1)) {
      const V kk = plane - reference;
      const V xa = at_a + kk * step_a, xb = at_b + kk * step_b;
      const I ia = kMasked ? Rays::floored(xa) : Rays::truncated(xa),
              ib = kMasked ? Rays::floored(xb) : Rays::truncated(xb);
      const auto counts = (plane >= part.begin) & (plane < part.end);
      I offset = reinterpret_cast<I>(Rays::steps(ia, a0, a_step) + Rays::steps(ib, b0, b_step));
      if (kMasked) offset = Rays::pick(counts, offset, I{});
      alignas(sizeof(I)) int at[N];
      spread(offset, at);
      V v00, v10, v01, v11;
      if (kPairs) {
        load_pairs<N>(p, at, v00, v10);
        load_pairs<N>(p + b_step, at, v01, v11);
      } else {
        v00 = load_each<S, N>(p, at);
        v10 = load_each<S, N>(p + a_step, at);
        v01 = load_each<S, N>(p + b_step, at);
        v11 = load_each<S, N>(p + a_step + b_step, at);
      }
      if (kMasked) {
        v00 = Rays::pick(counts, v00, V{});
        v10 = Rays::pick(counts, v10, V{});
        v01 = Rays::pick(counts, v01, V{});
        v11 = Rays::pick(counts, v11, V{});
      }
      sums.template add<kOrder>(kk, xa - Rays::of(ia), xb - Rays::of(ib), v00, v10, v01, v11);
    }
    out = sums;
  }
};

}  // namespace cpu
}  // namespace drrkit
