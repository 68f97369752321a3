// What the tiles of rays share: the samples of each ray, and for the two methods that go from plane
// to plane how a stack of planes cuts them.
#pragma once

#include "excerpt.h"

namespace drrkit {
namespace cpu {

// The samples [begin, end) of each ray: planes, layers, or numbers counted from a reference.
template <class V> struct Span {
  V begin, end;

  DRR_HD static Span only(const Span& part, int lane) {
    Span one = {V{}, V{}};
    one.begin[lane] = part.begin[lane];
    one.end[lane] = part.end[lane];
    return one;
  }
};

// The lowest and the highest cell of an axis that the lanes in `active` meet between two positions.
struct Ends {
  int low, high;

  template <class Rays>
  DRR_HD static Ends of(typename Rays::Mask active, typename Rays::Value first,
                        typename Rays::Value last) {
    using I = typename Rays::Index;
    const I far = I{} + 0x3fffffff, near = I{} - 0x3fffffff;
    return {Rays::smallest(Rays::pick(active, Rays::floored(minimum(first, last)), far)),
            Rays::largest(Rays::pick(active, Rays::floored(maximum(first, last)), near))};
  }
};

template <class MarchOf, class S, int N> struct PlaneTile {
  using March = MarchOf;
  using Rays = Lanes<S, N>;
  using V = typename Rays::Value;

  V reference;
  Span<V> span;

  DRR_HD static int axis(const March& march) { return march.m; }
  DRR_HD static int first_plane(const March& march) {
    return static_cast<int>(march.plane) + march.samples.begin;
  }
  DRR_HD static int end_plane(const March& march) {
    return static_cast<int>(march.plane) + march.samples.end;
  }
  DRR_HD Span<V> within(int k0, int k1) const {
    return {maximum(span.begin, Rays::splat(S(k0))), minimum(span.end, Rays::splat(S(k1)))};
  }
  // The ray's own number of what a span calls `at`.
  DRR_HD int sample(S at, int lane) const { return static_cast<int>(at - reference[lane]); }

  DRR_HD static Channel layout(const Scene& scene, const void* values, int axis) {
    return Channel::along(scene, values, axis, axis == 0 ? 1 : 0, axis == 2 ? 1 : 2);
  }
  // Lanes hold offsets inside a plane as 32-bit numbers.
  DRR_HD static bool indexable(const Channel& channel) {
    return channel.stride_a * channel.size_a + channel.stride_b * channel.size_b < 0x7fffffff;
  }
  // Across the contiguous axis a tile meets the same cache lines plane after plane; rows of
  // power-of-two volumes then evict each other, and neighbours along a cannot be loaded at once.
  // Copying pays while it moves no more rows than there are samples per plane to share them.
  DRR_HD static bool prefers_copy(const Channel& channel, const Box& box, int) {
    return channel.stride_a != 1 && box.size_a() * box.size_b() <= 6 * N;
  }
};

}  // namespace cpu
}  // namespace drrkit
