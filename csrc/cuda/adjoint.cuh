// The volume adjoint by gathering: no atomics on the volume, every sum in one order.
//
// Views are taken in batches that fit the workspace. A batch is surveyed (one thread a pixel), its
// bundles are made (one warp each), and then every thread owns a cube of 2 x 2 x 2 voxels and goes
// through the bundles that its block's brick of 32 x 8 x 8 voxels can see.
//
// What bounds it, for P* of Joseph's method with p pixels a voxel face: a tile of four voxels looks
// at (3 sqrt(p))^2 pixels, of which 16 p have weight, at about 26 instructions and 4 bytes from the
// L1 cache each; finding its rows and columns takes about 60 instructions, once a tile and view. A
// scatter sends the same 16 p additions to the L2 cache as atomics, each of which has been measured
// to cost as much time as 110 instructions. Neighbouring threads look at neighbouring pixels, and
// the volume is written once a batch.
#pragma once

#include "../gather.h"
#include "kernels.h"
#include "launch.cuh"

namespace drrkit {
namespace cuda {

constexpr int kGatherThreads = 256, kGatherWarps = kGatherThreads / 32;
constexpr int kSurveyPixels = 2048;  // a block of the survey
constexpr int kBoard = 16;           // bundles in shared memory
constexpr int kBrickX = 32, kBrickY = 8, kBrickZ = 8;
constexpr int kCubesX = kBrickX / 2, kCubesY = kBrickY / 2;

// The arrays of a batch in the workspace, one after the other.
template <class S> struct Workspace {
  static constexpr int64_t kBudget = int64_t(64) << 20;  // bytes; more where one view needs more

  int64_t views, chunks;  // views a batch, chunks of pixels a view
  int64_t bytes;
  Survey<S> survey;
  BundleBox* boxes;    // [V, chunks, kBundles]
  Bundle<S>* bundles;  // [V, kBundles]

  template <class Weights> static Workspace of(const Scene& scene, void* start) {
    const int64_t n = scene.views.rays, channels = scene.n_channels;
    Workspace w;
    w.chunks = (n + kSurveyPixels - 1) / kSurveyPixels;
    const int64_t a_view = n * ((channels + 2 + Weights::kNumbers) * sizeof(S) + 1) +
                           kBundles * (w.chunks * sizeof(BundleBox) + sizeof(Bundle<S>));
    w.views = minimum(scene.n_views, maximum<int64_t>(1, kBudget / a_view));
    w.bytes = 0;
    w.survey.first_view = 0;
    w.survey.n_views = w.views;
    w.bundles = w.take<Bundle<S>>(start, w.views * kBundles);
    w.boxes = w.take<BundleBox>(start, w.views * w.chunks * kBundles);
    w.survey.images = w.take<S>(start, w.views * channels * n);
    w.survey.low = w.take<S>(start, w.views * n);
    w.survey.high = w.take<S>(start, w.views * n);
    w.survey.numbers = w.take<S>(start, w.views * Weights::kNumbers * n);
    w.survey.bundle = w.take<uint8_t>(start, w.views * n);
    return w;
  }
  template <class T> T* take(void* start, int64_t count) {
    T* array = start ? reinterpret_cast<T*>(static_cast<char*>(start) + bytes) : nullptr;
    bytes += (count * sizeof(T) + 255) / 256 * 256;
    return array;
  }
};

inline __device__ void join_atomically(BundleBox& box, const BundleBox& other) {
#pragma unroll
  for (int i = 0; i < BundleBox::kNumbers; ++i) {
    if (i < BundleBox::kSums)
      atomicAdd(box.number + i, other.number[i]);
    else
      atomicMax(box.number + i, other.number[i]);
  }
}

template <class Weights, class S>
__global__ void __launch_bounds__(kGatherThreads)
    survey_kernel(BackprojectParams params, Workspace<S> work) {
  __shared__ BundleBox board[kBundles];
  const int64_t n = params.scene.views.rays, v = blockIdx.x / work.chunks;
  const int64_t first = blockIdx.x % work.chunks * kSurveyPixels;
  const int64_t last = minimum(first + kSurveyPixels, n);
  if (threadIdx.x < kBundles) board[threadIdx.x] = BundleBox::none();
  __syncthreads();
  BundleBox mine = BundleBox::none();
  int current = kBundles;
  for (int64_t pixel = first + threadIdx.x; pixel < last; pixel += kGatherThreads) {
    const Member member = survey_pixel<Weights>(params, work.survey, v, pixel);
    if (member.bundle == kBundles) continue;
    if (member.bundle != current) {
      if (current < kBundles) join_atomically(board[current], mine);
      mine = BundleBox::none();
      current = member.bundle;
    }
    const int64_t cols = params.scene.views.cols;
    mine.join(BundleBox::of(member, static_cast<int>(pixel % cols), static_cast<int>(pixel / cols),
                            static_cast<int>(pixel)));
  }
  if (current < kBundles) join_atomically(board[current], mine);
  __syncthreads();
  if (threadIdx.x < kBundles)
    work.boxes[blockIdx.x * static_cast<int64_t>(kBundles) + threadIdx.x] = board[threadIdx.x];
}

// One warp a bundle. Sums and maxima of integers: no order of theirs can be told from the result.
template <class S>
__global__ void __launch_bounds__(kGatherThreads)
    bundle_kernel(Scene scene, Workspace<S> work, Reach reach) {
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
  if (!Bundle<S>::make(scene.grid, scene.views, work.survey.first_view + v, id, box, reach, bundle))
    bundle.axis = -1;
  work.bundles[warp] = bundle;
}

// The blocks of a launch: bricks of the volumes that a batch has views of, for every few channels.
struct Bricks {
  int64_t x, y, z, channel_groups, first_volume, blocks;

  template <class S>
  static Bricks of(const Scene& scene, const Survey<S>& survey, int64_t channels) {
    Bricks b;
    b.x = (scene.grid.nx + kBrickX - 1) / kBrickX;
    b.y = (scene.grid.ny + kBrickY - 1) / kBrickY;
    b.z = (scene.grid.nz + kBrickZ - 1) / kBrickZ;
    b.channel_groups = (scene.n_channels + channels - 1) / channels;
    b.first_volume = scene.volume_of(survey.first_view);
    const int64_t last_volume = scene.volume_of(survey.first_view + survey.n_views - 1);
    b.blocks = b.x * b.y * b.z * b.channel_groups * (last_volume - b.first_volume + 1);
    return b;
  }
};

// What a block does: its brick's lowest voxel, its volume and channels, its views in the batch.
struct BrickWork {
  int64_t x, y, z, volume, channel, first_v, last_v;

  template <class S>
  __device__ static BrickWork of(const Scene& scene, const Survey<S>& survey, const Bricks& bricks,
                                 int64_t channels) {
    const int64_t a_volume = bricks.x * bricks.y * bricks.z, brick = blockIdx.x % a_volume;
    const int64_t rest = blockIdx.x / a_volume, per_volume = scene.n_views / scene.n_volumes;
    BrickWork w;
    w.x = brick % bricks.x * kBrickX;
    w.y = brick / bricks.x % bricks.y * kBrickY;
    w.z = brick / (bricks.x * bricks.y) * kBrickZ;
    w.channel = rest % bricks.channel_groups * channels;
    w.volume = bricks.first_volume + rest / bricks.channel_groups;
    w.first_v = maximum<int64_t>(0, w.volume * per_volume - survey.first_view);
    w.last_v = minimum(survey.n_views, (w.volume + 1) * per_volume - survey.first_view);
    return w;
  }
};

template <class S>
__device__ bool brick_sees(const Bundle<S>& bundle, const Grid& grid, const BrickWork& work) {
  if (bundle.axis < 0) return false;
  const Vec3 middle = Bundle<S>::middle_of(grid);
  const double ends[3] = {static_cast<double>(minimum<int64_t>(work.x + kBrickX, grid.nx) - 1),
                          static_cast<double>(minimum<int64_t>(work.y + kBrickY, grid.ny) - 1),
                          static_cast<double>(minimum<int64_t>(work.z + kBrickZ, grid.nz) - 1)};
  const Vec3 first = {double(work.x), double(work.y), double(work.z)};
  const Vec3 last = {ends[0], ends[1], ends[2]};
  const Vec3 half = 0.5 * (last - first), centre = first + half - middle;
  const int m = bundle.axis, a = m == 0 ? 1 : 0, b = m == 2 ? 1 : 2;
  return bundle.touches(static_cast<S>(centre[m]), static_cast<S>(centre[a]),
                        static_cast<S>(centre[b]), static_cast<S>(half[m]), static_cast<S>(half[a]),
                        static_cast<S>(half[b]));
}

// A thread's place among those of its block that say yes, in the order of the threads.
struct Place {
  int index, count;

  __device__ static Place among_block(bool yes, unsigned (&words)[kGatherWarps]) {
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
};

// Two voxels that are neighbours in memory.
template <class S> struct alignas(2 * sizeof(S)) Pair {
  S low, high;
};

// Adds a thread's sums to its cube of one channel, or, in a volume's first batch, stores them.
template <class S>
__device__ void write_cube(const Grid& grid, S* values, int64_t x, int64_t y, int64_t z,
                           const S (&sums)[8], bool first_batch) {
  const bool pairs = grid.nx % 2 == 0;  // x is even: then every pair lies as it should
#pragma unroll
  for (int row = 0; row < 4; ++row) {
    const int64_t yy = y + row % 2, zz = z + row / 2;
    if (yy >= grid.ny || zz >= grid.nz) continue;
    S* at = values + (zz * grid.ny + yy) * grid.nx + x;
    const S low = sums[2 * row], high = sums[2 * row + 1];
    if (pairs) {
      Pair<S>* pair = reinterpret_cast<Pair<S>*>(at);
      const Pair<S> before = first_batch ? Pair<S>{0, 0} : *pair;
      *pair = {before.low + low, before.high + high};
      continue;
    }
    at[0] = (first_batch ? static_cast<S>(0) : at[0]) + low;
    if (x + 1 < grid.nx) at[1] = (first_batch ? static_cast<S>(0) : at[1]) + high;
  }
}

// Bundles are looked at 256 at a time, one a thread; the brick's own are copied to shared memory, a
// few at a time, and visited in order.
template <int kChannels, class Weights, class S, int kBlocks>
__global__ void __launch_bounds__(kGatherThreads, kBlocks)
    gather_kernel(BackprojectParams params, Survey<S> survey, const Bundle<S>* __restrict__ bundles,
                  Bricks bricks) {
  __shared__ unsigned seen[kGatherWarps];
  __shared__ Bundle<S> board[kBoard];
  __shared__ Pixels<S> board_pixels[kBoard];
  const Scene& scene = params.scene;
  const Grid& grid = scene.grid;
  const BrickWork work = BrickWork::of(scene, survey, bricks, kChannels);
  const int64_t x = work.x + 2 * (threadIdx.x % kCubesX),
                y = work.y + 2 * (threadIdx.x / kCubesX % kCubesY),
                z = work.z + 2 * (threadIdx.x / (kCubesX * kCubesY));
  const bool inside = x < grid.nx && y < grid.ny && z < grid.nz;
  const Vec3 middle = Bundle<S>::middle_of(grid);
  const S from_x = static_cast<S>(x - middle.x), from_y = static_cast<S>(y - middle.y),
          from_z = static_cast<S>(z - middle.z);
  S sums[kChannels][8];
#pragma unroll
  for (int i = 0; i < 8 * kChannels; ++i) sums[i / 8][i % 8] = 0;
  bool any = false;
  const int64_t end = work.last_v * kBundles;
  for (int64_t first = work.first_v * kBundles; first < end; first += kGatherThreads) {
    const int64_t mine = first + threadIdx.x;
    const bool sees = mine < end && brick_sees(bundles[mine], grid, work);
    const Place place = Place::among_block(sees, seen);
    any = any || place.count > 0;
    for (int from = 0; from < place.count; from += kBoard) {
      if (sees && place.index >= from && place.index < from + kBoard) {
        board[place.index - from] = bundles[mine];
        board_pixels[place.index - from] =
            survey.template pixels<Weights>(scene, mine / kBundles, work.channel);
      }
      __syncthreads();
      const int on_board = minimum(kBoard, place.count - from);
      for (int i = 0; inside && i < on_board; ++i)
        gather_cube<kChannels, Weights>(board[i], board_pixels[i], from_x, from_y, from_z, sums);
      __syncthreads();
    }
  }
  if (!any || !inside) return;
  const bool first_batch = work.volume * (scene.n_views / scene.n_volumes) >= survey.first_view;
  const int64_t channels = scene.n_channels, voxels = grid.voxels();
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    if (work.channel + c >= channels) continue;
    S* values = static_cast<S*>(params.values);
    write_cube(grid, values + (work.volume * channels + work.channel + c) * voxels, x, y, z,
               sums[c], first_batch);
  }
}

template <int kChannels, class Weights, class S, int kBlocks>
const char* launch_gather(const BackprojectParams& params, const Workspace<S>& work,
                          cudaStream_t stream) {
  const Bricks bricks = Bricks::of(params.scene, work.survey, kChannels);
  return launch(gather_kernel<kChannels, Weights, S, kBlocks>, static_cast<unsigned>(bricks.blocks),
                kGatherThreads, stream, params, work.survey, work.bundles, bricks);
}

template <class Weights, class S>
const char* gather_views(const BackprojectParams& params, void* stream_) {
  cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const Scene& scene = params.scene;
  Workspace<S> work = Workspace<S>::template of<Weights>(scene, params.workspace);
  for (int64_t first = 0; first < scene.n_views; first += work.views) {
    work.survey.first_view = first;
    work.survey.n_views = minimum(work.views, scene.n_views - first);
    const int64_t views = work.survey.n_views;
    const char* error =
        launch(survey_kernel<Weights, S>, static_cast<unsigned>(views * work.chunks),
               kGatherThreads, stream, params, work);
    if (error) return error;
    const int64_t warps = views * kBundles;
    error =
        launch(bundle_kernel<S>, static_cast<unsigned>((warps + kGatherWarps - 1) / kGatherWarps),
               kGatherThreads, stream, scene, work, Weights::kReach);
    if (error) return error;
    // Registers a thread: up to 85 for one channel in float, 128 for four, 255 in double.
    constexpr bool kDouble = sizeof(S) == 8;
    if (scene.n_channels == 1)
      error = launch_gather<1, Weights, S, kDouble ? 1 : 3>(params, work, stream);
    else
      error = launch_gather<4, Weights, S, kDouble ? 1 : 2>(params, work, stream);
    if (error) return error;
  }
  return nullptr;
}

// Calls `task` with the weights that a call needs.
template <template <class> class March, class Task>
auto with_weights(const BackprojectParams& params, const Task& task) {
  const bool tangent = params.tangent.geometry != nullptr;
  if (params.scene.voxel == Voxel::kFloat64)
    return tangent ? task(typename WeightsOf<March, double, true>::type(), double())
                   : task(typename WeightsOf<March, double, false>::type(), double());
  return tangent ? task(typename WeightsOf<March, float, true>::type(), float())
                 : task(typename WeightsOf<March, float, false>::type(), float());
}

template <template <class> class March>
const char* Gather<March>::backproject(const BackprojectParams& params, void* stream) {
  return with_weights<March>(params, [&](auto weights, auto scalar) {
    return gather_views<decltype(weights), decltype(scalar)>(params, stream);
  });
}

template <template <class> class March>
int64_t Gather<March>::workspace(const BackprojectParams& params) {
  return with_weights<March>(params, [&](auto weights, auto scalar) {
    return Workspace<decltype(scalar)>::template of<decltype(weights)>(params.scene, nullptr).bytes;
  });
}

}  // namespace cuda
}  // namespace drrkit
