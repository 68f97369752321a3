// Marching many rays at once. A tile is as many neighbouring rays as a vector has lanes; a panel is
// a few tiles. A panel walks through the volume one stack of planes after the other, all its tiles
// together, so that what they share is still in the cache. Each ray is summed by itself, stack by
// stack from its first plane on: its bits depend neither on its neighbours nor on threads.
#pragma once

#include "excerpt.h"
#include "kernels.h"

namespace drrkit {
namespace cpu {

// How many lanes a vector of an instruction set has.
template <class S> constexpr int lanes_of(Level level) {
  const int bytes = level == Level::kAvx512 ? 64 : level == Level::kAvx2 ? 32 : 16;
  return bytes / static_cast<int>(sizeof(S));
}

// How pixels are shared out: panels of tiles of rays.
struct Panels {
  int tile_rows, tile_cols;    // rays
  int panel_rows, panel_cols;  // tiles
  int64_t rows, cols;          // of the image in rays; explicit rays are one row
  int64_t down, across;        // panels per view

  DRR_HD int64_t a_view() const { return down * across; }

  DRR_HD static Panels of(const Views& views, int lanes) {
    Panels p;
    const bool grid = !views.endpoints;
    p.cols = grid ? views.cols : views.n_rays;
    p.rows = grid ? views.n_rays / views.cols : 1;
    p.tile_rows = !grid ? 1 : lanes == 16 ? 4 : lanes == 2 ? 1 : 2;
    p.tile_cols = lanes / p.tile_rows;
    p.panel_rows = grid ? 16 / p.tile_rows : 1;
    p.panel_cols = grid ? 48 / p.tile_cols : 512 / lanes;
    p.down = (p.rows + p.panel_rows * p.tile_rows - 1) / (p.panel_rows * p.tile_rows);
    p.across = (p.cols + p.panel_cols * p.tile_cols - 1) / (p.panel_cols * p.tile_cols);
    return p;
  }
};

// One tile in work: rays of one axis, and the pixels it answers for.
template <template <class, int> class TileOf, class S, int N> struct Work {
  using Tile = TileOf<S, N>;

  Tile tile;
  int axis, first, end;  // planes that any of its rays reads
  typename Tile::March marches[N];
  int64_t pixels[N];  // -1: none, or another tile's

  DRR_HD void begin(int its_axis) {
    axis = its_axis;
    first = 0x3fffffff;
    end = -0x3fffffff;
    tile.clear();
    for (int lane = 0; lane < N; ++lane) pixels[lane] = -1;
  }
  DRR_HD void take(int lane, int64_t pixel, const typename Tile::March& march) {
    pixels[lane] = pixel;
    marches[lane] = march;
    if (march.samples.begin == march.samples.end) return;
    tile.set(lane, march);
    first = minimum(first, Tile::first_plane(march));
    end = maximum(end, Tile::end_plane(march));
  }
};

// The tiles of one panel of one view; their working memory, and some numbers more.
template <template <class, int> class TileOf, class S, int N, class OneWork> struct PanelWorks {
  using Tile = TileOf<S, N>;

  const Scene& scene;
  OneWork* works;
  int n_works = 0;
  S* numbers;

  DRR_HD static size_t bytes(const Panels& p, int64_t n_numbers) {
    // A tile whose rays have three dominant axes is marched three times.
    return 3 * static_cast<size_t>(p.panel_rows) * p.panel_cols * sizeof(OneWork) +
           n_numbers * sizeof(S);
  }
  DRR_HD PanelWorks(const Scene& its_scene, const Panels& p, void* memory)
      : scene(its_scene), works(static_cast<OneWork*>(memory)) {
    numbers = reinterpret_cast<S*>(works + 3 * static_cast<int64_t>(p.panel_rows) * p.panel_cols);
  }

  DRR_HD void set_up(const Panels& p, int64_t view, int64_t panel) {
    const int64_t row0 = panel / p.across * p.panel_rows * p.tile_rows;
    const int64_t col0 = panel % p.across * p.panel_cols * p.tile_cols;
    n_works = 0;
    for (int64_t row = row0; row < minimum(row0 + p.panel_rows * p.tile_rows, p.rows);
         row += p.tile_rows)
      for (int64_t col = col0; col < minimum(col0 + p.panel_cols * p.tile_cols, p.cols);
           col += p.tile_cols)
        set_up_tile(p, view, row, col);
  }

  DRR_HD void set_up_tile(const Panels& p, int64_t view, int64_t row0, int64_t col0) {
    const Slab whole = {0, scene.grid.nz};
    OneWork* of_axis[3] = {nullptr, nullptr, nullptr};
    for (int lane = 0; lane < N; ++lane) {
      const int64_t row = row0 + lane / p.tile_cols, col = col0 + lane % p.tile_cols;
      if (row >= p.rows || col >= p.cols) continue;
      const int64_t pixel = row * p.cols + col;
      typename Tile::March march;
      make_march(march, scene, scene.views.ray(view, pixel), whole);
      const int axis = Tile::axis(march);
      if (of_axis[axis] == nullptr) {
        of_axis[axis] = works + n_works++;
        of_axis[axis]->begin(axis);
      }
      of_axis[axis]->take(lane, pixel, march);
    }
  }

  // The planes of all tiles of an axis, as whole stacks: [first, end).
  DRR_HD void planes(int axis, int& first, int& end) const {
    first = 0x3fffffff;
    end = -0x3fffffff;
    for (int i = 0; i < n_works; ++i) {
      if (works[i].axis != axis) continue;
      first = minimum(first, works[i].first);
      end = maximum(end, works[i].end);
    }
    first = (first >= 0 ? first : first - kStack + 1) / kStack * kStack;
  }
};

constexpr int64_t kExcerptCapacity = 16384;  // numbers; a single ray needs 19 x 18 x 34 at most

template <template <class, int> class TileOf, class S, int N, int kCount>
struct GatherWork : Work<TileOf, S, N> {
  using Wide = typename Lanes<S, N>::Wide;
  Wide totals[kCount];  // what the rays have gathered so far
};

// One kind of march over one panel of one view. kOrder is the order of the derivatives that `store`
// asks for.
template <template <class, int> class TileOf, class S, int N, int kOrder> struct PanelMarch {
  using Tile = TileOf<S, N>;
  using Sums = typename Tile::Sums;
  static constexpr int kCount = Sums::count(kOrder);
  using OneWork = GatherWork<TileOf, S, N, kCount>;
  using Works = PanelWorks<TileOf, S, N, OneWork>;

  Works panel;

  DRR_HD static size_t bytes(const Panels& p) { return Works::bytes(p, kExcerptCapacity); }
  DRR_HD PanelMarch(const Scene& scene, const Panels& p, void* memory) : panel(scene, p, memory) {}

  DRR_HD void set_up(const Panels& p, int64_t view, int64_t index) { panel.set_up(p, view, index); }

  // Sums over one channel; `empty` says where volume number `volume` is zero.
  DRR_HD void gather(const void* values, const EmptySpace& empty, int64_t volume) {
    for (int i = 0; i < panel.n_works; ++i)
      for (int n = 0; n < kCount; ++n) panel.works[i].totals[n] = typename OneWork::Wide{};
    for (int axis = 0; axis < 3; ++axis) {
      int first, end;
      panel.planes(axis, first, end);
      const Channel channel = Tile::layout(panel.scene, values, axis);
      for (int k = first; k < end; k += kStack)
        for (int i = 0; i < panel.n_works; ++i) {
          OneWork& work = panel.works[i];
          const int k0 = maximum(k, work.first), k1 = minimum(k + kStack, work.end);
          if (work.axis == axis && k0 < k1) gather_stack(work, channel, k0, k1, empty, volume);
        }
    }
  }

  // The part of a tile's rays in one stack of planes: all of them at once, or one after the other
  // where together they read more than there is room for.
  DRR_HD void gather_stack(OneWork& work, const Channel& channel, int k0, int k1,
                           const EmptySpace& empty, int64_t volume) {
    const auto all = work.tile.within(k0, k1);
    auto part = all;
    for (int lane = -1; lane < N; ++lane) {
      if (lane >= 0) part = all.only(all, lane);
      const Box box = work.tile.box(part, k0, k1);
      if (lane < 0 && (box.empty() || holds_nothing(empty, volume, channel, box))) return;
      if (box.empty()) continue;
      const Excerpt<S> excerpt = fetch(channel, box, work.axis);
      if (excerpt.data == nullptr) continue;
      Sums sums;
      work.tile.template gather<kOrder>(excerpt, box, part, sums);
      const typename Lanes<S, N>::Value* columns =
          reinterpret_cast<const typename Lanes<S, N>::Value*>(&sums);
      for (int n = 0; n < kCount; ++n)
        work.totals[n] += __builtin_convertvector(columns[n], typename OneWork::Wide);
      if (lane < 0) return;
    }
  }

  DRR_HD Excerpt<S> fetch(const Channel& channel, const Box& box, int axis) {
    const bool in_place =
        stores(channel.voxel, S()) && channel.contains(box) && Tile::indexable(channel);
    if (in_place && !Tile::prefers_copy(channel, box, axis)) return Excerpt<S>::in_place(channel);
    return Tile::copy(panel.numbers, kExcerptCapacity, channel, box);
  }

  // store(pixel, march, sums) for every ray of the panel.
  template <class Store> DRR_HD void finish(const Store& store) const {
    for (int i = 0; i < panel.n_works; ++i)
      for (int lane = 0; lane < N; ++lane) {
        const OneWork& work = panel.works[i];
        if (work.pixels[lane] < 0) continue;
        typename Tile::template SumsOf<double> sums;
        double* numbers = reinterpret_cast<double*>(&sums);
        for (int n = 0; n < kCount; ++n) numbers[n] = work.totals[n][lane];
        store(work.pixels[lane], work.marches[lane], sums);
      }
  }
};

}  // namespace cpu
}  // namespace drrkit
