// Rays of one dominant axis side by side, marched layer by layer with Siddon's method.
#pragma once

#include "../siddon.h"
#include "brick.h"

namespace drrkit {
namespace cpu {

template <class S, int N> struct SiddonTile {
  using March = Siddon<S>;
  using Rays = Lanes<S, N>;
  using V = typename Rays::Value;
  using I = typename Rays::Index;
  using Course = SiddonCourse<Rays>;
  using Sums = SiddonSums<V>;
  using Weights = SiddonWeights<Rays>;
  template <class T> using SumsOf = SiddonSums<T>;

  static constexpr bool kPairs = false;  // a segment adds to one voxel

  // The samples of each ray: layers [begin, end).
  struct Span {
    V begin, end;
  };

  Course course;
  V reference;
  V inner_begin, inner_end;  // layers that are crossed from end to end, inside the grid
  Span span;

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

  // Whether each ray crosses layers [k0, k1) from end to end, inside the grid.
  DRR_HD bool covers(const Span& part, int k0, int k1) const {
    const V first = Rays::splat(S(k0)), last = Rays::splat(S(k1));
    return Rays::all((part.begin == first) & (part.end == last) & (inner_begin <= first) &
                     (last <= inner_end));
  }

  // The voxels of the layers of `part`; positions are monotone, so the two ends decide.
  DRR_HD Box box(const Span& part, int k0, int k1) const {
    const auto active = part.begin < part.end;
    const V first = part.begin - reference - S(0.5), last = part.end - reference - S(0.5);
    const I a_first = Rays::floored(course.at_a + first * course.step_a),
            a_last = Rays::floored(course.at_a + last * course.step_a);
    const I b_first = Rays::floored(course.at_b + first * course.step_b),
            b_last = Rays::floored(course.at_b + last * course.step_b);
    const I far = I{} + 0x3fffffff, near = I{} - 0x3fffffff;
    return {k0,
            k1,
            Rays::smallest(Rays::pick(active, minimum(a_first, a_last), far)),
            Rays::largest(Rays::pick(active, maximum(a_first, a_last), near)),
            Rays::smallest(Rays::pick(active, minimum(b_first, b_last), far)),
            Rays::largest(Rays::pick(active, maximum(b_first, b_last), near))};
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
                               : copy_columns(room, capacity, block, box);
  }
  // See JosephTile.
  DRR_HD static bool prefers_copy(const Block& block, const Box& box, int) {
    return block.stride_a != 1 && box.size_a() * box.size_b() <= 6 * N;
  }

  template <int kOrder>
  DRR_HD void gather(const Brick<S>& brick, const Box& box, const Span& part, Sums& sums) const {
    if (covers(part, box.k0, box.k1)) return march<kOrder, false>(brick, box, part, sums);
    march<kOrder, true>(brick, box, part, sums);
  }

  // The ray's own number of what a span calls `at`.
  DRR_HD int sample(S at, int lane) const { return static_cast<int>(at - reference[lane]); }

  // Adds layers [k0, k1) of what `part` adds to the voxels of `box`.
  template <bool kTangent, class Tally>
  DRR_HD void scatter(const Tally& tally, const Box& box, const Span& part, int k0, int k1,
                      const Weights& weights) const {
    const Box layers = {maximum(k0, box.k0), minimum(k1, box.k1), box.a0, box.a1, box.b0, box.b1};
    // Decided for all layers of the box: what a layer adds does not depend on the others.
    if (covers(part, box.k0, box.k1))
      return scatter_layers<kTangent, false>(tally, layers, part, weights);
    scatter_layers<kTangent, true>(tally, layers, part, weights);
  }

 private:
  template <bool kTangent, bool kMasked, class Tally>
  DRR_HD void scatter_layers(const Tally& tally, const Box& box, const Span& part,
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
  DRR_HD void march(const Brick<S>& brick, const Box& box, const Span& part, Sums& out) const {
    Sums sums;
    V plane = Rays::splat(S(box.k0));
    const S* p = brick.plane(box.k0);
    for (int k = box.k0; k < box.k1; ++k, p += brick.k_step, plane += S(1)) {
      const V middle = plane - reference;
      const auto counts = (plane >= part.begin) & (plane < part.end);
      const auto layer = course.template layer<!kMasked>(middle);
      const V v0 = voxel<kMasked>(p, brick, counts, layer.ia, layer.ib);
      const V v1 = voxel<kMasked>(p, brick, counts, layer.mid_a, layer.mid_b);
      const V v2 = voxel<kMasked>(p, brick, counts, layer.ja, layer.jb);
      // The ray's own ends are no crossings.
      const auto enters = kMasked ? course.end_low < layer.begin : plane == plane;
      const auto leaves = kMasked ? course.end_high > layer.end : plane == plane;
      Course::template add<kOrder>(sums, layer, v0, v1, v2, enters, leaves);
    }
    out = sums;
  }

  template <bool kMasked>
  DRR_HD static V voxel(const S* p, const Brick<S>& brick, typename Rays::Mask counts, I ia, I ib) {
    I offset = reinterpret_cast<I>(Rays::steps(ia, brick.a0, brick.a_step) +
                                   Rays::steps(ib, brick.b0, brick.b_step));
    if (kMasked) offset = Rays::pick(counts, offset, I{});
    alignas(sizeof(I)) int at[N];
    spread(offset, at);
    const V v = load_each<S, N>(p, at);
    return kMasked ? Rays::pick(counts, v, V{}) : v;
  }
};

}  // namespace cpu
}  // namespace drrkit
