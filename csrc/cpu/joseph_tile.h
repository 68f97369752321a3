// Rays of one dominant axis side by side, marched plane by plane with Joseph's method.
#pragma once

#include "../rays/joseph.h"
#include "tile.h"

namespace drrkit {
namespace cpu {

template <class S, int N> struct JosephTile : PlaneTile<Joseph<S>, S, N> {
  using Base = PlaneTile<Joseph<S>, S, N>;
  using Base::reference, Base::span, Base::first_plane, Base::end_plane;
  using typename Base::March, typename Base::Rays, typename Base::V;
  using I = typename Rays::Index;
  using Sums = JosephSums<V>;
  using Weights = JosephWeights<Rays>;
  template <class T> using SumsOf = JosephSums<T>;

  static constexpr bool kPairs = true;  // a sample adds to neighbours along a

  V at_a, at_b, step_a, step_b;

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
  DRR_HD static bool covers(const Span<V>& part, int k0, int k1) {
    return Rays::all((part.begin == Rays::splat(S(k0))) & (part.end == Rays::splat(S(k1))));
  }

  // The voxels that the samples of `part` read; positions are monotone, so the two ends decide.
  DRR_HD Box box(const Span<V>& part, int k0, int k1) const {
    const auto active = part.begin < part.end;
    const V first = part.begin - reference, last = part.end - S(1) - reference;
    const Ends on_a = Ends::of<Rays>(active, at_a + first * step_a, at_a + last * step_a);
    const Ends on_b = Ends::of<Rays>(active, at_b + first * step_b, at_b + last * step_b);
    return {k0, k1, on_a.low, on_a.high + 1, on_b.low, on_b.high + 1};
  }

  DRR_HD static Excerpt<S> copy(S* room, int64_t capacity, const Channel& channel, const Box& box) {
    return channel.stride_a == 1 ? copy_rows<N>(room, capacity, channel, box)
                                 : copy_pairs<N>(room, capacity, channel, box);
  }
  template <int kOrder>
  DRR_HD void gather(const Excerpt<S>& excerpt, const Box& box, const Span<V>& part,
                     Sums& sums) const {
    const bool whole = covers(part, box.k0, box.k1) && box.a0 >= 0 && box.b0 >= 0;
    const bool pairs = excerpt.a_step == 1 || excerpt.k_step == 2;
    if (whole && pairs) return march<kOrder, false, true>(excerpt, box, part, sums);
    if (whole) return march<kOrder, false, false>(excerpt, box, part, sums);
    if (pairs) return march<kOrder, true, true>(excerpt, box, part, sums);
    march<kOrder, true, false>(excerpt, box, part, sums);
  }

  // Adds planes [k0, k1) of what `part` adds to the voxels of `box`.
  template <bool kTangent, class Tally>
  DRR_HD void scatter(const Tally& tally, const Box& box, const Span<V>& part, int k0, int k1,
                      const Weights& weights) const {
    const Box planes = {maximum(k0, box.k0), minimum(k1, box.k1), box.a0, box.a1, box.b0, box.b1};
    // Decided for all planes of the box: what a plane adds does not depend on the others.
    const bool whole = covers(part, box.k0, box.k1) && box.a0 >= 0 && box.b0 >= 0;
    if (whole) return scatter_planes<kTangent, false>(tally, planes, part, weights);
    scatter_planes<kTangent, true>(tally, planes, part, weights);
  }

 private:
  template <bool kTangent, bool kMasked, class Tally>
  DRR_HD void scatter_planes(const Tally& tally, const Box& box, const Span<V>& part,
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
  DRR_HD void march(const Excerpt<S>& excerpt, const Box& box, const Span<V>& part,
                    Sums& out) const {
    Sums sums;
    V plane = Rays::splat(S(box.k0));
    const S* p = excerpt.plane(box.k0);
    const int a0 = excerpt.a0, b0 = excerpt.b0, a_step = excerpt.a_step, b_step = excerpt.b_step;
    for (int k = box.k0; k < box.k1; ++k, p += excerpt.k_step, plane += S(1)) {
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
