// What the gathering kernels share: the workspace, the survey of the pixels, the bundles, and how
// the blocks of a launch divide the volumes among themselves.
//
// Views are taken in batches that fit the workspace. A batch is surveyed, one thread a pixel, its
// bundles are made, one warp each, and then every thread owns a cube of 2 x 2 x 2 voxels and goes
// through the bundles that its block's plot of 16 x 16 x 8 voxels can see.
#pragma once

#include "../kernels.h"
#include "../launch.cuh"
#include "bundles.h"

namespace drrkit {
namespace cuda {

constexpr int kGatherThreads = 256, kGatherWarps = kGatherThreads / 32;
constexpr int kSurveyPixels = 1024;  // a block of the survey
constexpr int kPlotX = 16, kPlotY = 16, kPlotZ = 8;
constexpr int kCubesX = kPlotX / 2, kCubesY = kPlotY / 2;

// The pixels of one view, as the survey leaves them.
template <class S> struct Pixels {
  const S* images;        // [C, P] cotangents times mm per plane
  const uint8_t* bundle;  // [P]
  const S *low, *high;    // [P] the planes that see the ray, counted from the middle
  int32_t n_rays;
  int32_t channels;  // from this one on
  // Whether a pixel belongs to a bundle, and plane k sees its ray.
  DRR_HD bool has(int32_t pixel, int id, S k) const {
    return fetch(bundle + pixel) == id && k >= fetch(low + pixel) && k <= fetch(high + pixel);
  }
};

// What is known of the pixels before the voxels are visited.
template <class S> struct Survey {
  int64_t first_view, n_views;  // V of them
  S* images;                    // [V, C, P]
  S *low, *high;                // [V, P]
  uint8_t* bundle;              // [V, P]

  DRR_HD Pixels<S> pixels(const Scene& scene, int64_t v, int64_t channel) const {
    const int64_t n = scene.views.n_rays;
    return {images + (v * scene.n_channels + channel) * n,
            bundle + v * n,
            low + v * n,
            high + v * n,
            static_cast<int32_t>(n),
            static_cast<int32_t>(scene.n_channels - channel)};
  }
};

// Surveys one pixel of the v-th view.
template <class S>
DRR_HD Member survey_pixel(const BackprojectParams& params, const Survey<S>& survey, int64_t v,
                           int64_t pixel) {
  const Scene& scene = params.scene;
  const int64_t n = scene.views.n_rays, view = survey.first_view + v;
  const Ray ray = scene.views.ray(view, pixel);
  const Member member = Member::of(scene.grid, ray);
  const bool found = member.bundle < kBundles;
  const double middle = Bundle<S>::middle_of(scene.grid)[found ? member.bundle / 2 : 0];
  survey.bundle[v * n + pixel] = static_cast<uint8_t>(member.bundle);
  survey.low[v * n + pixel] = static_cast<S>(member.first - middle);
  survey.high[v * n + pixel] = static_cast<S>(member.last - middle);
  const S factor = static_cast<S>(member.w);
  for (int64_t c = 0; c < scene.n_channels; ++c) {
    const S g = static_cast<const S*>(params.images)[(view * scene.n_channels + c) * n + pixel];
    survey.images[(v * scene.n_channels + c) * n + pixel] = found ? factor * g : static_cast<S>(0);
  }
  return member;
}

// The arrays of a batch in the workspace, one after the other.
template <class S> struct Workspace {
  static constexpr int64_t kBudget = int64_t(64) << 20;  // bytes a batch; one view may need more

  int64_t views, chunks;  // views a batch, chunks of pixels a view
  int64_t bytes;
  Survey<S> survey;
  BundleBox* boxes;    // [V, chunks, kBundles]
  Bundle<S>* bundles;  // [V, kBundles]
  int32_t* present;    // [3] whether the batch has bundles along x, y, z
  uint8_t* wrote;      // [blocks] of a launch that gathers by patches: whether there is a seam
  S* seams;            // [blocks, seam]

  // The arrays for a workspace that begins at `start`, as many views as fit; those that should fit
  // where it is null. `seam`: numbers a block.
  static Workspace of(const BackprojectParams& params, int64_t blocks, int64_t seam) {
    const Scene& scene = params.scene;
    Workspace one = laid_out(scene, nullptr, 1, blocks, seam);
    Workspace two = laid_out(scene, nullptr, 2, blocks, seam);
    const int64_t a_view = two.bytes - one.bytes;
    const int64_t room = params.workspace ? params.workspace_bytes - one.bytes : kBudget;
    const int64_t views = minimum(scene.n_views, maximum<int64_t>(1, 1 + room / a_view));
    return laid_out(scene, params.workspace, views, blocks, seam);
  }

  static Workspace laid_out(const Scene& scene, void* start, int64_t views, int64_t blocks,
                            int64_t seam) {
    const int64_t n = scene.views.n_rays;
    Workspace w;
    w.views = views;
    w.chunks = (n + kSurveyPixels - 1) / kSurveyPixels;
    w.bytes = 0;
    w.survey.first_view = 0;
    w.survey.n_views = views;
    w.present = w.take<int32_t>(start, 3);
    w.wrote = w.take<uint8_t>(start, blocks);
    w.seams = w.take<S>(start, blocks * seam);
    w.bundles = w.take<Bundle<S>>(start, views * kBundles);
    w.boxes = w.take<BundleBox>(start, views * w.chunks * kBundles);
    w.survey.images = w.take<S>(start, views * scene.n_channels * n);
    w.survey.low = w.take<S>(start, views * n);
    w.survey.high = w.take<S>(start, views * n);
    w.survey.bundle = w.take<uint8_t>(start, views * n);
    return w;
  }
  template <class T> T* take(void* start, int64_t count) {
    constexpr int64_t kAlignment = 64;
    T* array = start ? reinterpret_cast<T*>(static_cast<char*>(start) + bytes) : nullptr;
    bytes += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }
};

inline __device__ void join_atomically(BundleBox& box, const BundleBox& other) {
#pragma unroll
  for (int i = 0; i < BundleBox::kNumbers; ++i) {
    if (i == 0)
      atomicAdd(box.number + i, other.number[i]);
    else
      atomicMax(box.number + i, other.number[i]);
  }
}

// One chunk of a view's pixels a block.
template <class S>
__global__ void __launch_bounds__(kGatherThreads)
    survey_kernel(BackprojectParams params, Workspace<S> work) {
  __shared__ BundleBox board[kBundles];
  const int64_t n = params.scene.views.n_rays, v = blockIdx.x / work.chunks;
  const int64_t first = blockIdx.x % work.chunks * kSurveyPixels;
  const int64_t last = minimum(first + kSurveyPixels, n), cols = params.scene.views.cols;
  if (threadIdx.x < kBundles) board[threadIdx.x] = BundleBox::none();
  if (blockIdx.x == 0 && threadIdx.x < 3) work.present[threadIdx.x] = 0;
  __syncthreads();
  BundleBox mine = BundleBox::none();
  int current = kBundles;
  for (int64_t pixel = first + threadIdx.x; pixel < last; pixel += kGatherThreads) {
    const Member member = survey_pixel(params, work.survey, v, pixel);
    if (member.bundle == kBundles) continue;
    if (member.bundle != current) {
      if (current < kBundles) join_atomically(board[current], mine);
      mine = BundleBox::none();
      current = member.bundle;
    }
    mine.join(BundleBox::of(member, static_cast<int>(pixel % cols), static_cast<int>(pixel / cols),
                            static_cast<int>(pixel)));
  }
  if (current < kBundles) join_atomically(board[current], mine);
  __syncthreads();
  if (threadIdx.x < kBundles)
    work.boxes[blockIdx.x * static_cast<int64_t>(kBundles) + threadIdx.x] = board[threadIdx.x];
}

// One warp a bundle. Sums and maxima of integers: no order can be told from them.
template <class S>
__global__ void __launch_bounds__(kGatherThreads) bundle_kernel(Scene scene, Workspace<S> work) {
  const int lane = threadIdx.x % 32;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kGatherWarps + threadIdx.x / 32;
  if (warp >= work.survey.n_views * kBundles) return;
  const int64_t v = warp / kBundles;
  const int id = static_cast<int>(warp % kBundles);
  BundleBox box = BundleBox::none();
  for (int64_t chunk = lane; chunk < work.chunks; chunk += 32)
    box.join(work.boxes[(v * work.chunks + chunk) * kBundles + id]);
  for (int apart = 16; apart > 0; apart /= 2) {
    BundleBox other;
#pragma unroll
    for (int i = 0; i < BundleBox::kNumbers; ++i)
      other.number[i] = __shfl_xor_sync(0xffffffffu, box.number[i], apart);
    box.join(other);
  }
  if (lane > 0) return;
  Bundle<S> bundle;
  if (Bundle<S>::make(scene.grid, scene.views, work.survey.first_view + v, id, box, bundle))
    atomicMax(work.present + bundle.axis, 1);
  else
    bundle.axis = -1;
  work.bundles[warp] = bundle;
}

// The plots of a launch: all of the volumes that a batch has views of, for every group of
// channels.
struct Plots {
  int64_t x, y, z, groups, first_volume, blocks;

  static Plots of(const Scene& scene, int64_t first_view, int64_t views, int64_t channels) {
    Plots b;
    b.x = (scene.grid.nx + kPlotX - 1) / kPlotX;
    b.y = (scene.grid.ny + kPlotY - 1) / kPlotY;
    b.z = (scene.grid.nz + kPlotZ - 1) / kPlotZ;
    b.groups = (scene.n_channels + channels - 1) / channels;
    b.first_volume = scene.volume_of(first_view);
    const int64_t last_volume = scene.volume_of(first_view + views - 1);
    b.blocks = b.x * b.y * b.z * b.groups * (last_volume - b.first_volume + 1);
    return b;
  }
  __device__ int64_t stride(int axis) const { return axis == 0 ? 1 : axis == 1 ? x : x * y; }
};

// One block's part: its plot's place and lowest voxel, its volume and channels, its views in the
// batch.
struct PlotWork {
  int plot[3];  // along x, y, z
  int x, y, z;
  int64_t volume, channel, first_v, last_v;
  bool first_batch;  // of the volume: nothing has been written into it yet

  template <class S>
  __device__ static PlotWork of(const Scene& scene, const Survey<S>& survey, const Plots& plots,
                                int64_t block, int64_t channels) {
    const int64_t a_volume = plots.x * plots.y * plots.z, at = block % a_volume;
    const int64_t rest = block / a_volume, per_volume = scene.n_views / scene.n_volumes;
    PlotWork w;
    w.plot[0] = static_cast<int>(at % plots.x);
    w.plot[1] = static_cast<int>(at / plots.x % plots.y);
    w.plot[2] = static_cast<int>(at / (plots.x * plots.y));
    w.x = w.plot[0] * kPlotX;
    w.y = w.plot[1] * kPlotY;
    w.z = w.plot[2] * kPlotZ;
    w.channel = rest % plots.groups * channels;
    w.volume = plots.first_volume + rest / plots.groups;
    w.first_v = maximum<int64_t>(0, w.volume * per_volume - survey.first_view);
    w.last_v = minimum(survey.n_views, (w.volume + 1) * per_volume - survey.first_view);
    w.first_batch = w.volume * per_volume >= survey.first_view;
    return w;
  }

  template <class S> __device__ bool sees(const Bundle<S>& bundle, const Grid& grid) const {
    const Vec3 first = {double(x), double(y), double(z)};
    const Vec3 last = {minimum<double>(x + kPlotX, grid.nx) - 1,
                       minimum<double>(y + kPlotY, grid.ny) - 1,
                       minimum<double>(z + kPlotZ, grid.nz) - 1};
    const Vec3 half = 0.5 * (last - first), centre = first + half - Bundle<S>::middle_of(grid);
    const int m = bundle.axis, a = bundle.a(), b = bundle.b();
    return bundle.touches(static_cast<S>(centre[m]), static_cast<S>(centre[a]),
                          static_cast<S>(centre[b]), static_cast<S>(half[m]),
                          static_cast<S>(half[a]), static_cast<S>(half[b]));
  }
};

// Shared memory for the bundles that a block goes through, a few at a time.
template <class S> struct BundleBoard {
  static constexpr int kRoom = 16;
  unsigned words[kGatherWarps];
  Bundle<S> bundles[kRoom];
  Pixels<S> pixels[kRoom];

  // A thread's place among those of its block that say yes, in the order of the threads.
  struct Place {
    int index, count;
  };
  __device__ Place place_of(bool yes) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned word = __ballot_sync(0xffffffffu, yes);
    if (lane == 0) words[warp] = word;
    __syncthreads();
    Place place = {__popc(word & ((1u << lane) - 1)), 0};
    for (int other = 0; other < kGatherWarps; ++other) {
      if (other < warp) place.index += __popc(words[other]);
      place.count += __popc(words[other]);
    }
    __syncthreads();
    return place;
  }

  // Visits the bundles along `axis` that the plot sees, in the order of the views. Returns whether
  // there are any. All threads of a block come here.
  template <class Visit>
  __device__ bool go_through(const Scene& scene, const Workspace<S>& work, const PlotWork& plot,
                             int axis, const Visit& visit) {
    bool any = false;
    const int64_t end = plot.last_v * kBundles;
    for (int64_t first = plot.first_v * kBundles; first < end; first += kGatherThreads) {
      const int64_t mine = first + threadIdx.x;
      const Bundle<S>* bundle = work.bundles + mine;
      const bool sees = mine < end && bundle->axis == axis && plot.sees(*bundle, scene.grid);
      const Place place = place_of(sees);
      any = any || place.count > 0;
      for (int from = 0; from < place.count; from += kRoom) {
        if (sees && place.index >= from && place.index < from + kRoom) {
          bundles[place.index - from] = *bundle;
          pixels[place.index - from] = work.survey.pixels(scene, mine / kBundles, plot.channel);
        }
        __syncthreads();
        const int on_board = minimum(kRoom, place.count - from);
        for (int i = 0; i < on_board; ++i) visit(bundles[i], pixels[i]);
        __syncthreads();
      }
    }
    return any;
  }
};

// One thread's cube: its lowest voxel, in the plot and in the grid.
struct Cube {
  int in_x, in_y, in_z, x, y, z;

  __device__ static Cube of(const PlotWork& work) {
    const int in_x = 2 * (threadIdx.x % kCubesX), in_y = 2 * (threadIdx.x / kCubesX % kCubesY),
              in_z = 2 * (threadIdx.x / (kCubesX * kCubesY));
    return {in_x, in_y, in_z, work.x + in_x, work.y + in_y, work.z + in_z};
  }
  __device__ bool inside(const Grid& grid) const {
    return x < grid.nx && y < grid.ny && z < grid.nz;
  }
};

// Two voxels that are neighbours in memory.
template <class S> struct alignas(2 * sizeof(S)) Pair {
  S low, high;
};

// Adds sums to a cube of one channel, or stores them.
template <class S>
__device__ void write_cube(const Grid& grid, S* values, const Cube& cube, const S (&sums)[8],
                           bool store) {
  const bool pairs = grid.nx % 2 == 0;  // x is even: then every pair lies as it should
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    const int64_t y = cube.y + row % 2, z = cube.z + row / 2;
    if (y >= grid.ny || z >= grid.nz) continue;
    S* at = values + (z * grid.ny + y) * grid.nx + cube.x;
    const S low = sums[2 * row], high = sums[2 * row + 1];
    if (pairs) {
      Pair<S>* pair = reinterpret_cast<Pair<S>*>(at);
      const Pair<S> before = store ? Pair<S>{0, 0} : *pair;
      *pair = {before.low + low, before.high + high};
      continue;
    }
    at[0] = (store ? static_cast<S>(0) : at[0]) + low;
    if (cube.x + 1 < grid.nx) at[1] = (store ? static_cast<S>(0) : at[1]) + high;
  }
}

}  // namespace cuda
}  // namespace drrkit
