// Rays of one dominant axis side by side, marched layer by layer with Siddon's method.
#pragma once

#include "../rays/siddon.h"
#include "tile.h"

namespace drrkit {
namespace cpu {

template <class S, int N> struct SiddonTile : PlaneTile<Siddon<S>, S, N> {
  using Base = PlaneTile<Siddon<S>, S, N>;
  using Base::reference, Base::span;
  using typename Base::March, typename Base::Rays, typename Base::V;
  using I = typename Rays::Index;
  using Course = SiddonCourse<Rays>;
  using Sums = SiddonSums<V>;
  using Weights = SiddonWeights<Rays>;
  template <class T> using SumsOf = SiddonSums<T>;

  static constexpr bool kPairs = false;  // a segment adds to one voxel

  Course course;
  V inner_begin, inner_end;  // layers that are crossed from end to end, inside the grid

  DRR_HD void clear() {
    course = Course{};
    reference = inner_begin = inner_end = V{};
    span.begin = span.end = V{};
  }
  DRR_HD void set(int lane, const March& march) {
    course.end_low[lane] = march.end_low;
    course.end_high[lane] = march.end_high;
    course.at_a[lane] = march.at_a;
    course.at_b[lane] = march.at_b;
    course.step_a[lane] = march.step_a;
    course.step_b[lane] = march.step_b;
    course.cross_a[lane] = march.cross_a;
    course.cross_b[lane] = march.cross_b;
    course.inverse_a[lane] = march.inverse_a;
    course.inverse_b[lane] = march.inverse_b;
    course.plane_a[lane] = march.plane_a;
    course.plane_b[lane] = march.plane_b;
    const int plane = static_cast<int>(march.plane);
    reference[lane] = static_cast<S>(plane);
    span.begin[lane] = static_cast<S>(plane + march.samples.begin);
    span.end[lane] = static_cast<S>(plane + march.samples.end);
    inner_begin[lane] = static_cast<S>(plane + march.samples.inner_begin);
    inner_end[lane] = static_cast<S>(plane + march.samples.inner_end);
  }
  // Whether each ray crosses layers [k0, k1) from end to end, inside the grid.
  DRR_HD bool covers(const Span<V>& part, int k0, int k1) const {
    const V first = Rays::splat(S(k0)), last = Rays::splat(S(k1));
    return Rays::all((part.begin == first) & (part.end == last) & (inner_begin <= first) &
                     (last <= inner_end));
  }

  // The voxels of the layers of `part`; positions are monotone, so the two ends decide.
  DRR_HD Box box(const Span<V>& part, int k0, int k1) const {
    const auto active = part.begin < part.end;
    const V first = part.begin - reference - S(0.5), last = part.end - reference - S(0.5);
    const Ends on_a = Ends::of<Rays>(active, course.at_a + first * course.step_a,
                                     course.at_a + last * course.step_a);
    const Ends on_b = Ends::of<Rays>(active, course.at_b + first * course.step_b,
                                     course.at_b + last * course.step_b);
    return {k0, k1, on_a.low, on_a.high, on_b.low, on_b.high};
  }

  DRR_HD static Excerpt<S> copy(S* room, int64_t capacity, const Channel& channel, const Box& box) {
    return channel.stride_a == 1 ? copy_rows<N>(room, capacity, channel, box)
                                 : copy_columns<N>(room, capacity, channel, box);
  }
  template <int kOrder>
  DRR_HD void gather(const Excerpt<S>& excerpt, const Box& box, const Span<V>& part,
                     Sums& sums) const {
    if (covers(part, box.k0, box.k1)) return march<kOrder, false>(excerpt, box, part, sums);
    march<kOrder, true>(excerpt, box, part, sums);
  }

  // Adds layers [k0, k1) of what `part` adds to the voxels of `box`.
  template <bool kTangent, class Tally>
  DRR_HD void scatter(const Tally& tally, const Box& box, const Span<V>& part, int k0, int k1,
                      const Weights& weights) const {
    const Box layers = {maximum(k0, box.k0), minimum(k1, box.k1), box.a0, box.a1, box.b0, box.b1};
    // Decided for all layers of the box: what a layer adds does not depend on the others.
    if (covers(part, box.k0, box.k1))
      return scatter_layers<kTangent, false>(tally, layers, part, weights);
    scatter_layers<kTangent, true>(tally, layers, part, weights);
  }

 private:
  template <bool kTangent, bool kMasked, class Tally>
  DRR_HD void scatter_layers(const Tally& tally, const Box& box, const Span<V>& part,
                             const Weights& its_weights) const {
    const Weights weights = its_weights;
    V plane = Rays::splat(S(box.k0));
    S* p = tally.plane(box.k0);
    for (int k = box.k0; k < box.k1; ++k, p += tally.k_step, plane += S(1)) {
      const auto counts = (plane >= part.begin) & (plane < part.end);
      const auto layer = course.template layer<!kMasked>(plane - reference);
      const auto enters = kMasked ? course.end_low < layer.begin : plane == plane;
      const auto leaves = kMasked ? course.end_high > layer.end : plane == plane;
      V w0, w1, w2;
      weights.template segments<kTangent>(layer, enters, leaves, w0, w1, w2);
      add_segment<kMasked>(p, tally, counts, layer.ia, layer.ib, w0);
      add_segment<kMasked>(p, tally, counts, layer.mid_a, layer.mid_b, w1);
      add_segment<kMasked>(p, tally, counts, layer.ja, layer.jb, w2);
    }
  }

  template <bool kMasked, class Tally>
  DRR_HD static void add_segment(S* p, const Tally& tally, typename Rays::Mask counts, I ia, I ib,
                                 V w) {
    I offset = reinterpret_cast<I>(Rays::steps(ia, tally.box.a0, tally.a_step) +
                                   Rays::steps(ib, tally.box.b0, tally.b_step));
    if (kMasked) {
      offset = Rays::pick(counts, offset, I{});
      w = Rays::pick(counts, w, V{});
    }
    alignas(sizeof(I)) int at[N];
    spread(offset, at);
    add_each<S, N>(p, at, w);
  }

  template <int kOrder, bool kMasked>
  DRR_HD void march(const Excerpt<S>& excerpt, const Box& box, const Span<V>& part,
                    Sums& out) const {
    Sums sums;
    V plane = Rays::splat(S(box.k0));
    const S* p = excerpt.plane(box.k0);
    for (int k = box.k0; k < box.k1; ++k, p += excerpt.k_step, plane += S(1)) {
      const V middle = plane - reference;
      const auto counts = (plane >= part.begin) & (plane < part.end);
      const auto layer = course.template layer<!kMasked>(middle);
      const V v0 = voxel<kMasked>(p, excerpt, counts, layer.ia, layer.ib);
      const V v1 = voxel<kMasked>(p, excerpt, counts, layer.mid_a, layer.mid_b);
      const V v2 = voxel<kMasked>(p, excerpt, counts, layer.ja, layer.jb);
      // The ray's own ends are no crossings.
      const auto enters = kMasked ? course.end_low < layer.begin : plane == plane;
      const auto leaves = kMasked ? course.end_high > layer.end : plane == plane;
      Course::template add<kOrder>(sums, layer, v0, v1, v2, enters, leaves);
    }
    out = sums;
  }

  template <bool kMasked>
  DRR_HD static V voxel(const S* p, const Excerpt<S>& excerpt, typename Rays::Mask counts, I ia,
                        I ib) {
    I offset = reinterpret_cast<I>(Rays::steps(ia, excerpt.a0, excerpt.a_step) +
                                   Rays::steps(ib, excerpt.b0, excerpt.b_step));
    if (kMasked) offset = Rays::pick(counts, offset, I{});
    alignas(sizeof(I)) int at[N];
    spread(offset, at);
    const V v = load_each<S, N>(p, at);
    return kMasked ? Rays::pick(counts, v, V{}) : v;
  }
};

}  // namespace cpu
}  // namespace drrkit
