// Rays of one dominant axis side by side, sampled at equal distances.
#pragma once

#include "../rays/trilinear.h"
#include "tile.h"

namespace drrkit {
namespace cpu {

template <class S, int N> struct TrilinearTile {
  using March = Trilinear<S>;
  using Rays = Lanes<S, N>;
  using V = typename Rays::Value;
  using I = typename Rays::Index;
  using Sums = TrilinearSums<V>;
  using Weights = TrilinearWeights<Rays>;
  template <class T> using SumsOf = TrilinearSums<T>;

  static constexpr bool kPairs = true;  // a sample adds to neighbours along x

  V at_x, at_y, at_z, step_x, step_y, step_z;
  V at_m, step_m;  // along the tile's axis
  Span<V> span;    // relative to the reference samples

  DRR_HD void clear() {
    at_x = at_y = at_z = step_x = step_y = step_z = at_m = V{};
    step_m = Rays::splat(S(1));
    span.begin = span.end = V{};
  }
  DRR_HD void set(int lane, const March& march) {
    const int m = axis(march);
    at_x[lane] = march.at_x;
    at_y[lane] = march.at_y;
    at_z[lane] = march.at_z;
    step_x[lane] = march.step_x;
    step_y[lane] = march.step_y;
    step_z[lane] = march.step_z;
    at_m[lane] = position(march, m, 0);
    step_m[lane] = m == 0 ? march.step_x : m == 1 ? march.step_y : march.step_z;
    span.begin[lane] = static_cast<S>(march.samples.begin);
    span.end[lane] = static_cast<S>(march.samples.end);
  }
  DRR_HD static int axis(const March& march) { return dominant_axis(march.e); }
  DRR_HD static S position(const March& march, int m, int k) {
    const S kk = static_cast<S>(k);
    return m == 0   ? march.at_x + kk * march.step_x
           : m == 1 ? march.at_y + kk * march.step_y
                    : march.at_z + kk * march.step_z;
  }
  // A sample belongs to the plane below it, up to rounding: one plane more on either side. What
  // lies farther outside the grid adds nothing, and there may be a great deal of it.
  DRR_HD static int first_plane(const March& march) {
    const int m = axis(march);
    return maximum(floor_int(minimum(position(march, m, march.samples.begin),
                                     position(march, m, march.samples.end - 1))) -
                       1,
                   -2);
  }
  DRR_HD static int end_plane(const March& march) {
    const int m = axis(march), size = m == 0 ? march.nx : m == 1 ? march.ny : march.nz;
    return minimum(floor_int(maximum(position(march, m, march.samples.begin),
                                     position(march, m, march.samples.end - 1))) +
                       2,
                   size + 1);
  }

  // Where the samples between two planes begin, wherever the planes lie: what one stack ends with
  // the next one begins with.
  DRR_HD V sample_at(int k) const {
    const V t = (Rays::splat(S(k)) - at_m) / step_m;
    return minimum(maximum(t, span.begin - S(1)), span.end);
  }
  DRR_HD Span<V> within(int k0, int k1) const {
    const V t0 = sample_at(k0), t1 = sample_at(k1);
    const auto rises = step_m > S(0);
    const V low = Rays::pick(rises, ceiling(t0), floor_of(t1) + S(1));
    const V high = Rays::pick(rises, ceiling(t1), floor_of(t0) + S(1));
    return {maximum(low, span.begin), minimum(high, span.end)};
  }

  // EmptySpace are rows along x, columns along y and planes along z, whatever the rays' axis.
  DRR_HD static Channel layout(const Scene& scene, const void* values, int) {
    return Channel::along(scene, values, 2, 0, 1);
  }

  // The voxels that the samples of `part` read; positions are monotone, so the two ends decide.
  DRR_HD Box box(const Span<V>& part, int, int) const {
    const auto active = part.begin < part.end;
    const V first = part.begin, last = part.end - S(1);
    const Ends x = Ends::of<Rays>(active, at_x + first * step_x, at_x + last * step_x);
    const Ends y = Ends::of<Rays>(active, at_y + first * step_y, at_y + last * step_y);
    const Ends z = Ends::of<Rays>(active, at_z + first * step_z, at_z + last * step_z);
    return {z.low, z.high + 2, x.low, x.high + 1, y.low, y.high + 1};
  }

  DRR_HD static Excerpt<S> copy(S* room, int64_t capacity, const Channel& channel, const Box& box) {
    return copy_rows<N>(room, capacity, channel, box);
  }
  // See PlaneTile.
  DRR_HD static bool prefers_copy(const Channel&, const Box& box, int axis) {
    return axis == 0 && (box.k1 - box.k0) * box.size_b() <= 6 * N;
  }
  DRR_HD static bool indexable(const Channel& channel) {
    return channel.stride_m * channel.size_m < 0x7fffffff;
  }

  template <int kOrder>
  DRR_HD void gather(const Excerpt<S>& excerpt, const Box& box, const Span<V>& part,
                     Sums& sums) const {
    (void)box;
    const I counts = Rays::truncated(part.end - part.begin);
    const int shortest = maximum(Rays::smallest(counts), 0), longest = Rays::largest(counts);
    V k = part.begin;
    Sums all;
    march<kOrder, false>(excerpt, part, k, shortest, all);
    march<kOrder, true>(excerpt, part, k, longest - shortest, all);
    sums = all;
  }

  DRR_HD int sample(S at, int) const { return static_cast<int>(at); }

  // Adds what `part` adds to the voxels of `box`, all of its planes.
  template <bool kTangent, class Tally>
  DRR_HD void scatter(const Tally& tally, const Box&, const Span<V>& part, int, int,
                      const Weights& weights) const {
    const I counts = Rays::truncated(part.end - part.begin);
    const int shortest = maximum(Rays::smallest(counts), 0), longest = Rays::largest(counts);
    V k = part.begin;
    scatter_samples<kTangent, false>(tally, part, k, shortest, weights);
    scatter_samples<kTangent, true>(tally, part, k, longest - shortest, weights);
  }

 private:
  template <bool kTangent, bool kMasked, class Tally>
  DRR_HD void scatter_samples(const Tally& tally, const Span<V>& part, V& k, int steps,
                              const Weights& its_weights) const {
    const Weights weights = its_weights;
    const int x0 = tally.box.a0, y0 = tally.box.b0, z0 = tally.first;
    const int x_step = tally.a_step, y_step = tally.b_step, z_step = tally.k_step;
    S* p = tally.data;
    for (int i = 0; i < steps; ++i, k += S(1)) {
      const V x = at_x + k * step_x, y = at_y + k * step_y, z = at_z + k * step_z;
      const I ix = Rays::floored(x), iy = Rays::floored(y), iz = Rays::floored(z);
      const auto counts = k < part.end;
      I offset = reinterpret_cast<I>(Rays::steps(ix, x0, x_step) + Rays::steps(iy, y0, y_step) +
                                     Rays::steps(iz, z0, z_step));
      if (kMasked) offset = Rays::pick(counts, offset, I{});
      alignas(sizeof(I)) int at[N];
      spread(offset, at);
      typename Weights::Corners w = weights.template corners<kTangent>(
          k, x - Rays::of(ix), y - Rays::of(iy), z - Rays::of(iz));
      if (kMasked) {
        V* corners = reinterpret_cast<V*>(&w);
        for (int j = 0; j < 8; ++j) corners[j] = Rays::pick(counts, corners[j], V{});
      }
      add_pairs<S, N>(p, at, w.c000, w.c100);
      add_pairs<S, N>(p + y_step, at, w.c010, w.c110);
      add_pairs<S, N>(p + z_step, at, w.c001, w.c101);
      add_pairs<S, N>(p + y_step + z_step, at, w.c011, w.c111);
    }
  }

  DRR_HD static V floor_of(V x) { return Rays::of(Rays::floored(x)); }
  DRR_HD static V ceiling(V x) { return -floor_of(-x); }
  template <int kOrder, bool kMasked>
  DRR_HD void march(const Excerpt<S>& excerpt, const Span<V>& part, V& k, int steps,
                    Sums& sums) const {
    const int y_step = excerpt.b_step, z_step = static_cast<int>(excerpt.k_step);
    const S* p = excerpt.data;
    for (int i = 0; i < steps; ++i, k += S(1)) {
      const V x = at_x + k * step_x, y = at_y + k * step_y, z = at_z + k * step_z;
      const I ix = Rays::floored(x), iy = Rays::floored(y), iz = Rays::floored(z);
      const auto counts = k < part.end;
      I offset =
          reinterpret_cast<I>(Rays::steps(ix, excerpt.a0, 1) + Rays::steps(iy, excerpt.b0, y_step) +
                              Rays::steps(iz, excerpt.k0, z_step));
      if (kMasked) offset = Rays::pick(counts, offset, I{});
      alignas(sizeof(I)) int at[N];
      spread(offset, at);
      V c000, c100, c010, c110, c001, c101, c011, c111;
      load_pairs<N>(p, at, c000, c100);
      load_pairs<N>(p + y_step, at, c010, c110);
      load_pairs<N>(p + z_step, at, c001, c101);
      load_pairs<N>(p + y_step + z_step, at, c011, c111);
      if (kMasked) {
        c000 = Rays::pick(counts, c000, V{});
        c100 = Rays::pick(counts, c100, V{});
        c010 = Rays::pick(counts, c010, V{});
        c110 = Rays::pick(counts, c110, V{});
        c001 = Rays::pick(counts, c001, V{});
        c101 = Rays::pick(counts, c101, V{});
        c011 = Rays::pick(counts, c011, V{});
        c111 = Rays::pick(counts, c111, V{});
      }
      sums.template add<kOrder>(k, x - Rays::of(ix), y - Rays::of(iy), z - Rays::of(iz), c000, c100,
                                c010, c110, c001, c101, c011, c111);
    }
  }
};

}  // namespace cpu
}  // namespace drrkit
