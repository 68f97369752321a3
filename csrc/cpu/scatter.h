// The adjoint of a panel's march, stack by stack. Tiles that overlap are scattered into one tally.
// How rays are grouped and where they go over to single numbers is decided for the whole grid, so
// that the bits of a voxel do not depend on the slab it is in.
#pragma once

#include "panel.h"
#include "tally.h"

namespace drrkit {
namespace cpu {

// Adds weight times a cotangent to the voxels of [begin, end) of a channel, a slab of planes.
template <class S> struct SlabSink {
  S* values;
  int64_t begin, end;
  S cotangent;

  DRR_HD void add(int64_t at, S weight) {
    if (static_cast<uint64_t>(at - begin) >= static_cast<uint64_t>(end - begin)) return;
    values[at] += weight * cotangent;
  }
};

template <template <class, int> class TileOf, class S, int N>
struct ScatterWork : Work<TileOf, S, N> {
  using V = typename Lanes<S, N>::Value;
  using Weights = typename TileOf<S, N>::Weights;
  static constexpr int kNumbers = sizeof(Weights) / sizeof(V);

  Weights weights, scaled;  // of an image of ones; of the cotangents
  V cotangents;

  template <bool kTangent> DRR_HD void weigh(const BackprojectParams& params, int64_t view) {
    weights = Weights{};
    for (int lane = 0; lane < N; ++lane) {
      if (this->pixels[lane] < 0) continue;
      const auto one = this->marches[lane].template weights<kTangent>(
          kTangent ? params.tangent.ray(view, this->pixels[lane]) : Ray{{0, 0, 0}, {0, 0, 0}});
      static_assert(sizeof one == kNumbers * sizeof(S), "one number a lane");
      for (int i = 0; i < kNumbers; ++i)
        reinterpret_cast<V*>(&weights)[i][lane] = reinterpret_cast<const S*>(&one)[i];
    }
  }
  DRR_HD void aim(const S* image) {
    cotangents = V{};
    for (int lane = 0; lane < N; ++lane)
      if (this->pixels[lane] >= 0) cotangents[lane] = image[this->pixels[lane]];
    for (int i = 0; i < kNumbers; ++i)
      reinterpret_cast<V*>(&scaled)[i] = cotangents * reinterpret_cast<const V*>(&weights)[i];
  }
};

template <template <class, int> class TileOf, class S, int N, bool kTangent> struct PanelScatter {
  using Tile = TileOf<S, N>;
  using V = typename Lanes<S, N>::Value;
  using OneWork = ScatterWork<TileOf, S, N>;
  using Works = PanelWorks<TileOf, S, N, OneWork>;
  using Sums = Tally<S, N, Tile::kPairs>;

  // Tiles that share a tally.
  struct Group {
    static constexpr int kMost = 48;
    const OneWork* works[kMost];
    Span<V> parts[kMost];
    Box boxes[kMost];
    int n = 0;
    Box box = {0, 0, 0, 0, 0, 0};  // around them all
    int64_t volumes = 0;           // of the boxes, summed
  };

  const BackprojectParams& params;
  Works panel;
  Slab slab;
  int64_t view;
  S* values;         // of the channel
  uint8_t* touched;  // see BackprojectParams

  DRR_HD static size_t bytes(const Panels& p) { return Works::bytes(p, Sums::kNumbers); }
  DRR_HD PanelScatter(const BackprojectParams& its_params, Slab its_slab, const Panels& p,
                      void* memory)
      : params(its_params), panel(its_params.scene, p, memory), slab(its_slab) {}

  // Whether no ray of the panel comes near the slab: then setting it up is spared. At one place
  // along the rays all of them lie between the four corners.
  DRR_HD bool misses_slab(const Panels& p, int64_t its_view, int64_t index) const {
    const Scene& scene = params.scene;
    if (scene.views.endpoints) return false;
    const int64_t height = p.panel_rows * p.tile_rows, width = p.panel_cols * p.tile_cols;
    const int64_t row = index / p.across * height, col = index % p.across * width;
    const int64_t rows[2] = {row, minimum(row + height, p.rows) - 1};
    const int64_t cols[2] = {col, minimum(col + width, p.cols) - 1};
    Ray corners[4];
    for (int i = 0; i < 4; ++i) {
      corners[i] = scene.views.ray(its_view, rows[i / 2] * p.cols + cols[i % 2]);
      if (!is_finite(corners[i])) return false;
    }
    Interval stay = {0, 1};  // where along the rays any of them is in the grid, seen along z
    for (int side = 0; side < 4; ++side) {
      const int axis = side / 2;
      const double limit = static_cast<double>(scene.grid.size(axis));
      Interval any = {1, 0};
      for (const Ray& ray : corners) {
        Interval one = {0, 1};
        one.clip(ray.s[axis], ray.p[axis] - ray.s[axis], side % 2 ? -1 : -1e300,
                 side % 2 ? 1e300 : limit);
        if (!one.empty())
          any = any.empty() ? one : Interval{minimum(any.lo, one.lo), maximum(any.hi, one.hi)};
      }
      stay = {maximum(stay.lo, any.lo), minimum(stay.hi, any.hi)};
    }
    if (stay.empty()) return true;
    double low = 1e300, high = -1e300;
    for (const Ray& ray : corners)
      for (int end = 0; end < 2; ++end) {
        const double t = end ? stay.hi : stay.lo;
        const double z = ray.s.z + t * (ray.p.z - ray.s.z);
        low = minimum(low, z);
        high = maximum(high, z);
      }
    const double margin = 2;  // a sample reaches one plane
    return high < static_cast<double>(slab.begin) - margin ||
           low > static_cast<double>(slab.end) + margin;
  }

  DRR_HD void set_up(const Panels& p, int64_t its_view, int64_t index) {
    view = its_view;
    panel.set_up(p, view, index);
    for (int i = 0; i < panel.n_works; ++i) panel.works[i].template weigh<kTangent>(params, view);
  }

  // Adds what the image of one channel brings.
  DRR_HD void scatter(const S* image, S* volume, uint8_t* its_touched) {
    values = volume;
    touched = its_touched;
    for (int i = 0; i < panel.n_works; ++i) panel.works[i].aim(image);
    for (int axis = 0; axis < 3; ++axis) {
      int first, end;
      panel.planes(axis, first, end);
      const Channel channel = Tile::layout(params.scene, volume, axis);
      for (int k = first; k < end; k += kStack) scatter_planes(axis, channel, k);
    }
  }

 private:
  DRR_HD static int64_t volume_of(const Box& box) {
    return static_cast<int64_t>(box.k1 - box.k0) * box.size_a() * box.size_b();
  }
  DRR_HD static Box around(const Box& x, const Box& y) {
    return {minimum(x.k0, y.k0), maximum(x.k1, y.k1), minimum(x.a0, y.a0),
            maximum(x.a1, y.a1), minimum(x.b0, y.b0), maximum(x.b1, y.b1)};
  }
  // A tally costs time for each of its places, single numbers for each sample.
  DRR_HD static bool pays(const Box& box, const Channel& channel) {
    return volume_of(box) <= 16 * N * kStack && fits(box, channel);
  }
  DRR_HD static bool fits(const Box& box, const Channel& channel) {
    return volume_of(box) <= Sums::kCapacity &&
           Sums::numbers(box, channel.stride_a == 1) <= Sums::kCapacity;
  }

  DRR_HD void scatter_planes(int axis, const Channel& channel, int k) {
    Group group;
    for (int i = 0; i < panel.n_works; ++i) {
      const OneWork& work = panel.works[i];
      const int k0 = maximum(k, work.first), k1 = minimum(k + kStack, work.end);
      if (work.axis != axis || k0 >= k1) continue;
      const Span<V> part = work.tile.within(k0, k1);
      const Box box = work.tile.box(part, k0, k1);
      if (box.empty()) continue;
      if (!pays(box, channel)) {
        scatter_rays(work, channel, part, k0, k1);
        continue;
      }
      const Box both = group.n > 0 ? around(group.box, box) : box;
      const bool joins = group.n > 0 && group.n < Group::kMost &&
                         volume_of(both) <= group.volumes + volume_of(box) && fits(both, channel);
      if (!joins && group.n > 0) add(group, channel);
      if (!joins) group.n = 0;
      group.box = joins ? both : box;
      group.volumes = volume_of(box) + (joins ? group.volumes : 0);
      group.works[group.n] = &work;
      group.parts[group.n] = part;
      group.boxes[group.n++] = box;
    }
    if (group.n > 0) add(group, channel);
  }

  // The part of a box that is in the grid and the slab.
  DRR_HD Box inside_of(const Box& box, const Channel& channel) const {
    Box inside = {maximum(box.k0, 0), minimum(box.k1, channel.size_m),
                  maximum(box.a0, 0), minimum(box.a1, channel.size_a - 1),
                  maximum(box.b0, 0), minimum(box.b1, channel.size_b - 1)};
    const int low = static_cast<int>(slab.begin), high = static_cast<int>(slab.end);
    if (channel.m == 2) {
      inside.k0 = maximum(inside.k0, low);
      inside.k1 = minimum(inside.k1, high);
    } else {
      inside.b0 = maximum(inside.b0, low);
      inside.b1 = minimum(inside.b1, high - 1);
    }
    return inside;
  }

  // Zeroes the rows of voxels that nothing was added to yet. Asks for the others: they come while
  // the tally is filled.
  DRR_HD void prepare(const Channel& channel, const Box& part) const {
    constexpr int kLine = 64 / sizeof(S);
    int lo[3], hi[3];
    lo[channel.m] = part.k0, hi[channel.m] = part.k1 - 1;
    lo[channel.a] = part.a0, hi[channel.a] = part.a1;
    lo[channel.b] = part.b0, hi[channel.b] = part.b1;
    const Grid& grid = params.scene.grid;
    for (int z = lo[2]; z <= hi[2]; ++z)
      for (int y = lo[1]; y <= hi[1]; ++y) {
        const int64_t row = z * grid.ny + y;
        S* from = values + row * grid.nx;
        if (touched[row]) {
          for (int x = lo[0]; x <= hi[0]; x += kLine) __builtin_prefetch(from + x, 1, 2);
          __builtin_prefetch(from + hi[0], 1, 2);
        } else {
          touched[row] = 1;
          __builtin_memset(from, 0, grid.nx * sizeof(S));
        }
      }
  }

  DRR_HD void add(const Group& group, const Channel& channel) {
    const Box inside = inside_of(group.box, channel);
    if (inside.k0 >= inside.k1 || inside.empty() || inside.b1 < inside.b0) return;
    prepare(channel, inside);
    const Sums sums = Sums::zeros(panel.numbers, group.box, channel.stride_a == 1);
    for (int i = 0; i < group.n; ++i)
      group.works[i]->tile.template scatter<kTangent>(sums, group.boxes[i], group.parts[i],
                                                      inside.k0, inside.k1, group.works[i]->scaled);
    const int64_t plane = params.scene.grid.nx * params.scene.grid.ny;
    sums.add_to(values, values + slab.end * plane, channel, inside);
  }

  // One ray after the other, straight into the volume.
  DRR_HD void scatter_rays(const OneWork& work, const Channel& channel, const Span<V>& part, int k0,
                           int k1) {
    const int64_t plane = params.scene.grid.nx * params.scene.grid.ny;
    SlabSink<S> sink = {values, slab.begin * plane, slab.end * plane, 0};
    for (int lane = 0; lane < N; ++lane) {
      if (!(part.begin[lane] < part.end[lane])) continue;
      typename Tile::March march = work.marches[lane];
      march.samples = march.samples.part(work.tile.sample(part.begin[lane], lane),
                                         work.tile.sample(part.end[lane], lane));
      sink.cotangent = work.cotangents[lane];
      // One voxel more: single numbers may round a position otherwise than vectors.
      const Box box = work.tile.box(Span<V>::only(part, lane), k0, k1);
      prepare(channel,
              inside_of({box.k0 - 1, box.k1 + 1, box.a0 - 1, box.a1 + 1, box.b0 - 1, box.b1 + 1},
                        channel));
      march.template scatter<kTangent>(
          kTangent ? params.tangent.ray(view, work.pixels[lane]) : Ray{{0, 0, 0}, {0, 0, 0}}, 0, 1,
          sink);
    }
  }
};

}  // namespace cpu
}  // namespace drrkit
