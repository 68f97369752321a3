// Which lane marches which ray: squares of pixels, and rays that several lanes share.
//
// What bounds a march along y or z is not memory but the first-level cache: a warp's load takes as
// long as it touches lines of 128 bytes. So a warp takes 16 x 2, 8 x 4 or 2 x 16 pixels of a square
// of 16 x 16, whichever of the image's two directions runs along the contiguous x: 2 to 4 lines a
// load where the worst choice has 16 to 32. A square's warps follow one another, in the same block
// or the next, and so share what they load.
//
// A launch of few rays leaves a GPU idle: each multiprocessor can hold 16 to 24 warps of a march,
// and needs them to hide the latency of its loads. Such a launch splits its rays over 2, 4, ... 32
// lanes. Each takes a run of consecutive samples; the lanes' sums are added in a fixed order. How
// far to split depends on the launch's size and the GPU's number of multiprocessors alone, so that
// results repeat to the bit; launches of another size may differ in the last digits. The lanes set
// up their common ray each for itself, which costs the warp nothing more than setting up one.
#pragma once

#include "kernels.h"
#include "launch.cuh"

namespace drrkit {
namespace cuda {

constexpr int kWarpsPerBlock = 4, kThreads = kWarp * kWarpsPerBlock;

constexpr int kLogSquare = 8;  // pixels: 16 x 16, or longer ones for narrow images
// On each multiprocessor: as many as a kernel's registers leave room for. Estimated from occupancy,
// not measured on a GPU; textures_kernel, bounded to 64 registers, has room for 32.
constexpr int kWarpsWanted = 16, kTextureWarpsWanted = 32;
constexpr int kFewestSamples = 16;  // of a lane: fewer than that cost less than setting up the ray

// How a launch deals its rays to warps.
struct WarpPlan {
  int64_t cols, rows;  // of the image; explicit rays are a row of pixels
  int64_t views;
  bool frames;
  int log_cols, log_rows;  // of a square
  int log_split;           // lanes per ray
  unsigned across;         // squares side by side
  unsigned warps;          // a view

  static WarpPlan of(const Scene& scene, int warps_wanted = kWarpsWanted) {
    const Views& v = scene.views;
    WarpPlan t;
    t.frames = !v.endpoints;
    t.cols = v.endpoints ? v.n_rays : v.cols;
    t.rows = v.endpoints ? 1 : v.n_rays / v.cols;
    t.views = scene.n_views;
    t.log_rows = minimum(kLogSquare / 2, log_of(t.rows));
    t.log_cols = minimum(kLogSquare - t.log_rows, maximum(kLogSquare / 2, log_of(t.cols)));
    t.log_rows = kLogSquare - t.log_cols;
    t.across = static_cast<unsigned>(((t.cols - 1) >> t.log_cols) + 1);
    const int64_t squares = t.across * (((t.rows - 1) >> t.log_rows) + 1);
    t.log_split = split_of(scene, squares * t.views << (kLogSquare - kLogWarp), warps_wanted);
    t.warps = static_cast<unsigned>(squares << (kLogSquare - kLogWarp + t.log_split));
    return t;
  }
  // The least power of two that is not below n.
  static int log_of(int64_t n) {
    int log = 0;
    while ((int64_t(1) << log) < n && log < kLogSquare) ++log;
    return log;
  }
  static int split_of(const Scene& scene, int64_t warps, int warps_wanted) {
    const Grid& g = scene.grid;
    double samples = static_cast<double>(maximum(maximum(g.nx, g.ny), g.nz));
    if (scene.method == Method::kTrilinear) {
      const Vec3 s = g.spacing;
      samples = maximum(maximum(g.nx * s.x, g.ny * s.y), g.nz * s.z) / scene.trilinear.step;
    }
    const int64_t wanted = static_cast<int64_t>(warps_wanted) * multiprocessors();
    int log = 0;
    while (log < kLogWarp && warps << log < wanted && samples >= (kFewestSamples << (log + 1)))
      ++log;
    return log;
  }

  dim3 grid() const { return views_grid((warps - 1) / kWarpsPerBlock + 1, views); }
};

// One of a warp's rays: its view, its pixel, and whether there is one (squares hang over the
// image's border).
struct Pixel {
  int64_t view, index;
  bool real;
};

// A warp's place in the launch.
struct Warp {
  int64_t view;
  int64_t col, row;  // its first pixel
  int log_cols;      // its rays: this many side by side
  bool real;         // whether it has any

  __device__ static Warp of(const Scene& scene, const WarpPlan& t) {
    return of(scene, t, side_by_side);
  }
  // `shape` chooses log_cols for a view, as `side_by_side` does.
  template <class Shape>
  __device__ static Warp of(const Scene& scene, const WarpPlan& t, const Shape& shape) {
    Warp w;
    w.view = view_of_block();
    const unsigned number = blockIdx.x * kWarpsPerBlock + threadIdx.x / kWarp;
    w.real = w.view < t.views && number < t.warps;
    if (!w.real) return w;
    w.log_cols = shape(scene, t, w.view);
    const int log_rays = kLogWarp - t.log_split, log_rows = log_rays - w.log_cols;
    const unsigned square = number >> (kLogSquare - log_rays);
    const unsigned in_square = number & ((1u << (kLogSquare - log_rays)) - 1);
    const unsigned square_row = square / t.across, square_col = square - square_row * t.across;
    const int log_abreast = t.log_cols - w.log_cols;  // warps side by side in a square
    const unsigned below = in_square >> log_abreast, beside = in_square & ((1u << log_abreast) - 1);
    w.col = (static_cast<int64_t>(square_col) << t.log_cols) + (beside << w.log_cols);
    w.row = (static_cast<int64_t>(square_row) << t.log_rows) + (below << log_rows);
    w.real = w.col < t.cols && w.row < t.rows;
    return w;
  }

  // Long in the direction of the image that runs along x, compact where neither does or both do.
  __device__ static int side_by_side(const Scene& scene, const WarpPlan& t, int64_t view) {
    if (!t.frames) return compact(scene, t, view);
    const double* frame = scene.views.geometry + 12 * view;
    return along(t, static_cast<float>(frame[6]), static_cast<float>(frame[9]));
  }

  // The same for any direction, given how far a step of the column and one of the row go along it.
  __device__ static int along(const WarpPlan& t, float col, float row) {
    const int log_rays = kLogWarp - t.log_split;
    const int most = minimum(t.log_cols, log_rays),
              least = log_rays - minimum(t.log_rows, log_rays);
    const float by_col = fabsf(col), by_row = fabsf(row);
    if (by_col >= 2 * by_row && by_col > 0) return most;
    if (by_row >= 2 * by_col && by_row > 0) return least;
    return minimum(maximum((log_rays + 1) / 2, least), most);
  }

  // As square as can be; explicit rays are a row.
  __device__ static int compact(const Scene&, const WarpPlan& t, int64_t) {
    if (!t.frames) return minimum(t.log_cols, kLogWarp - t.log_split);
    return along(t, 1, 1);
  }

  __device__ Pixel pixel(const WarpPlan& t, int ray) const {
    const int64_t c = col + (ray & ((1 << log_cols) - 1)), r = row + (ray >> log_cols);
    return {view, r * t.cols + c, c < t.cols && r < t.rows};
  }
};

template <class March> __device__ March march_of(const Scene& scene, const Pixel& pixel) {
  March march;
  const Ray none = {{0, 0, 0}, {0, 0, 0}};  // no length, hence no samples
  make_march(march, scene, pixel.real ? scene.views.ray(pixel.view, pixel.index) : none,
             Slab{0, scene.grid.nz});
  return march;
}

// One of 2^log_parts runs of consecutive samples.
__device__ inline Samples run_of(const Samples& s, int part, int log_parts) {
  const int all = s.end - s.begin, each = all >> log_parts, more = all - (each << log_parts);
  const int begin = s.begin + part * each + minimum(part, more);
  const int end = begin + each + (part < more ? 1 : 0);
  return {begin, minimum(maximum(s.inner_begin, begin), end),
          minimum(maximum(s.inner_end, begin), end), end};
}

// A lane's share of a warp's marches, in one of two ways, decided by the warp.
//
// Rays along y or z: each lane marches its own ray, or its part of it. Neighbouring lanes read
// neighbouring addresses, as they march neighbouring pixels.
//
// As soon as one of the rays runs along x, the contiguous axis, neighbouring pixels lie far apart
// in memory. Then several lanes take a ray, one sample after the other in turn: as many as fill a
// sector of 32 bytes, the unit of all traffic. More would only idle at the ray's ends, and have
// more sums to exchange. Rays that were set up on one lane each are handed over through the
// `board`, as many as are marched at a time: room for all of the warp's would take a tenth of the
// first-level cache, which lies in the same memory.
template <class Word> constexpr int kLogSector = sizeof(Word) == 2 ? 4 : sizeof(Word) == 4 ? 3 : 2;

template <class March, class Word> struct alignas(16) MarchBoard {
  static constexpr int kPlaces = kWarp >> kLogSector<Word>;
  unsigned char bytes[kWarpsPerBlock * kPlaces * sizeof(March)];

  __device__ March* of_warp() {
    return reinterpret_cast<March*>(bytes) + threadIdx.x / kWarp * kPlaces;
  }
};

template <class March> __device__ bool any_along_x(const March& march) {
  return __any_sync(kAllLanes, march.samples.begin < march.samples.end && march.along_x());
}

// In a march along y or z the first of the two other axes is x: the compiler may know that its
// stride is 1, and turns half of the addresses into offsets of the other half.
template <class S> __device__ void across_x(Joseph<S>& march) { march.stride_a = 1; }
template <class S> __device__ void across_x(Siddon<S>& march) { march.stride_a = 1; }
template <class S> __device__ void across_x(Trilinear<S>&) {}

template <class March> __device__ March own_part(const March& mine, int log_split) {
  March part = mine;
  const int lane = threadIdx.x % kWarp;
  part.samples = run_of(mine.samples, lane & ((1 << log_split) - 1), log_split);
  across_x(part);
  return part;
}

// The way along x: a warp takes its rays `at_once` at a time, beginning with ray `first`. Within
// the group of lanes that marches a ray, runs of 2^kLogSector lanes take alternate samples.
template <class Word> struct Handover {
  static constexpr int kLanes = 1 << kLogSector<Word>;
  int log_split, log_group;  // lanes that own a ray, lanes that march it

  __device__ explicit Handover(int split)
      : log_split(split), log_group(maximum(split, kLogSector<Word>)) {}
  __device__ int at_once() const { return kWarp >> log_group; }
  __device__ int rays() const { return kWarp >> log_split; }
  __device__ int lane() const { return threadIdx.x % kWarp; }
  __device__ int lane_of_run() const { return threadIdx.x % kLanes; }
  // The ray that this lane marches; the place among those at once that its own ray has.
  __device__ int ray(int first) const { return first + (lane() >> log_group); }
  __device__ int place(int first) const { return (lane() >> log_split) - first; }
  __device__ bool has_place(int first) const {
    return place(first) >= 0 && place(first) < at_once();
  }

  template <class March> __device__ March take(const March& mine, int first, March* board) const {
    __syncwarp();
    if (has_place(first) && (lane() & ((1 << log_split) - 1)) == 0) board[place(first)] = mine;
    __syncwarp();
    March part = board[lane() >> log_group];
    const int run = (lane() & ((1 << log_group) - 1)) >> kLogSector<Word>;
    part.samples = run_of(part.samples, run, log_group - kLogSector<Word>);
    return part;
  }
};

}  // namespace cuda
}  // namespace drrkit
