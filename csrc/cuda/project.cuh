// The kernels that read the volume: images with their rays' derivatives, and K; and the launches of
// one integrator.
//
// Floors of a launch of R rays of n samples, each to be divided by the number of multiprocessors
// and compared with the time that a GPU takes, in its cycles:
// - first-level cache: R n / 32 loads of 4 (Joseph), 3 (Siddon) or 8 (trilinear) corners, each a
//   cycle for every line of 128 bytes that a warp's load touches: 2 to 4 along y and z, see
//   warps.cuh;
// - memory: every voxel that is hit once, and R numbers written, 7 R with derivatives;
// - instructions, four a cycle: R n / 32 times 28, 74 or 47 (34, 90 or 61 with derivatives), as
//   compiled for sm_90; and about 1000 to set up 32 rays, of which 250 are in double precision.
// The first is the largest wherever double precision runs at half the rate of float. Where it runs
// at 1/64, setting up a ray weighs as much as 300 to 500 samples.
//
// The loops issue sixteen loads a lane before they use the first: 16 warps have 500 lines or more
// under way, twice what the first level takes during the second's latency of some 250 cycles.
// Siddon's, with six loads (three with derivatives), come near that number or stay below; unrolled
// further they would need more registers than leave room for 16 warps.
#pragma once

#include <limits>

#include "scatter.cuh"

namespace drrkit {
namespace cuda {

// Adds up the sums that an order of derivatives needs over runs of 2^log_lanes lanes, in a fixed
// order, on every lane.
template <class March, int kOrder>
__device__ void add_up(typename March::Sums& sums, int log_lanes) {
  using S = typename March::Scalar;
  S* numbers = reinterpret_cast<S*>(&sums);
  for (int apart = (1 << log_lanes) / 2; apart > 0; apart /= 2)
#pragma unroll
    for (int i = 0; i < March::Sums::count(kOrder); ++i)
      numbers[i] += __shfl_xor_sync(kAllLanes, numbers[i], apart);
}

// Called by whole warps: each lane gets the sums of its own ray.
template <class March, int kOrder, class Voxel, class Index>
__device__ void gather_warp(const March& mine, bool along_x, int log_split, March* board,
                            const Voxel* volume, typename March::Sums& sums) {
  using S = typename March::Scalar;
  if (!along_x) {
    own_part(mine, log_split).template gather<kOrder, Voxel, Index>(volume, 0, 1, sums);
    add_up<March, kOrder>(sums, log_split);
    return;
  }
  const Handover<Voxel> hand(log_split);
  S* numbers = reinterpret_cast<S*>(&sums);
  for (int first = 0; first < hand.rays(); first += hand.at_once()) {
    typename March::Sums of_group;
    const March part = hand.take(mine, first, board);
    part.template gather<kOrder, Voxel, Index>(volume, hand.lane_of_run(), hand.kLanes, of_group);
    add_up<March, kOrder>(of_group, hand.log_group);
    const S* found = reinterpret_cast<const S*>(&of_group);
    const bool is_mine = hand.has_place(first);
    const int from = is_mine ? hand.place(first) << hand.log_group : 0;
#pragma unroll
    for (int i = 0; i < March::Sums::count(kOrder); ++i) {
      const S number = __shfl_sync(kAllLanes, found[i], from);
      if (is_mine) numbers[i] = number;
    }
  }
}

// The first lane of each ray writes what has become of it.
__device__ inline bool writes(const Pixel& pixel, int log_split) {
  return pixel.real && (threadIdx.x & ((1 << log_split) - 1)) == 0;
}

template <class S, bool kSix, class March>
__device__ void store_image(const ProjectParams& params, int64_t row, int64_t pixel,
                            const March& march, const typename March::Sums& sums) {
  const int64_t n = params.scene.views.n_rays;
  static_cast<S*>(params.image)[row * n + pixel] = static_cast<S>(march.image(sums));
  if (!kSix) return;
  const RayResult result = march.derivatives(sums);
  S* out = static_cast<S*>(params.six) + row * 6 * n + pixel;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    out[axis * n] = static_cast<S>(result.ds[axis]);
    out[(3 + axis) * n] = static_cast<S>(result.dp[axis]);
  }
}

// Blocks that a multiprocessor should hold at a time, which bounds a thread's registers: 96, 128 or
// 168 for an order of derivatives in float. The loops then keep all they need in registers, and
// what is set aside before them and fetched afterwards is a few words a ray.
template <class S> constexpr int blocks_of(int order) {
  return 5 - order - (sizeof(S) == sizeof(double) ? 1 : 0);
}

// The volume's pointer moves on from channel to channel instead of being computed from the
// channel's number: the compiler would add the channel's offset to each single address.
template <class March, class Voxel, class Index, bool kSix>
__global__ void __launch_bounds__(kThreads, blocks_of<typename March::Scalar>(kSix ? 1 : 0))
    project_kernel(ProjectParams params, WarpPlan plan) {
  using S = typename March::Scalar;
  __shared__ MarchBoard<March, Voxel> board;
  const Scene& scene = params.scene;
  const Warp warp = Warp::of(scene, plan);
  if (!warp.real) return;
  const Pixel mine = warp.pixel(plan, threadIdx.x % kWarp >> plan.log_split);
  const March march = march_of<March>(scene, mine);
  const bool along_x = any_along_x(march);
  const int64_t voxels = scene.grid.voxels(), channels = scene.n_channels;
  const Voxel* volume =
      static_cast<const Voxel*>(params.values) + scene.volume_of(mine.view) * channels * voxels;
  for (int64_t c = 0; c < channels; ++c, volume += voxels) {
    typename March::Sums sums;
    gather_warp<March, kSix ? 1 : 0, Voxel, Index>(march, along_x, plan.log_split, board.of_warp(),
                                                   volume, sums);
    if (writes(mine, plan.log_split))
      store_image<S, kSix>(params, mine.view * channels + c, mine.index, march, sums);
  }
}

template <class March, class Voxel, class Index>
__global__ void __launch_bounds__(kThreads, blocks_of<typename March::Scalar>(2))
    second_kernel(SecondParams params, WarpPlan plan) {
  using S = typename March::Scalar;
  __shared__ MarchBoard<March, Voxel> board;
  const Scene& scene = params.scene;
  const Warp warp = Warp::of(scene, plan);
  if (!warp.real) return;
  const Pixel mine = warp.pixel(plan, threadIdx.x % kWarp >> plan.log_split);
  const March march = march_of<March>(scene, mine);
  const bool along_x = any_along_x(march);
  const int64_t n = scene.views.n_rays, voxels = scene.grid.voxels(), channels = scene.n_channels;
  const Voxel* volume =
      static_cast<const Voxel*>(params.values) + scene.volume_of(mine.view) * channels * voxels;
  const Ray none = {{0, 0, 0}, {0, 0, 0}};
  const Ray tangent = mine.real ? params.tangent.ray(mine.view, mine.index) : none;
  Ray total = none;
  for (int64_t c = 0; c < channels; ++c, volume += voxels) {
    typename March::Sums sums;
    gather_warp<March, 2, Voxel, Index>(march, along_x, plan.log_split, board.of_warp(), volume,
                                        sums);
    if (!mine.real) continue;
    const double weight =
        static_cast<const S*>(params.images)[(mine.view * channels + c) * n + mine.index];
    const Ray k = march.second(sums, tangent);
    total.s = total.s + weight * k.s;
    total.p = total.p + weight * k.p;
  }
  if (!writes(mine, plan.log_split)) return;
  double* out = params.six + mine.view * 6 * n + mine.index;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    out[axis * n] = total.s[axis];
    out[(3 + axis) * n] = total.p[axis];
  }
}

// Whether a voxel's index fits 32 bits: half the registers of an address.
inline bool small(const Grid& grid) { return grid.voxels() < std::numeric_limits<int32_t>::max(); }

template <class March, class Voxel, class Index>
const char* launch_project(const ProjectParams& p, cudaStream_t stream) {
  const WarpPlan plan = WarpPlan::of(p.scene);
  if (p.six)
    return launch(project_kernel<March, Voxel, Index, true>, plan.grid(), kThreads, stream, p,
                  plan);
  return launch(project_kernel<March, Voxel, Index, false>, plan.grid(), kThreads, stream, p, plan);
}

template <class March, class Voxel>
const char* project_voxel(const ProjectParams& p, cudaStream_t stream) {
  if (small(p.scene.grid)) return launch_project<March, Voxel, int32_t>(p, stream);
  return launch_project<March, Voxel, int64_t>(p, stream);
}

template <class March, class Voxel>
const char* second_voxel(const SecondParams& p, cudaStream_t stream) {
  const WarpPlan plan = WarpPlan::of(p.scene);
  if (small(p.scene.grid))
    return launch(second_kernel<March, Voxel, int32_t>, plan.grid(), kThreads, stream, p, plan);
  return launch(second_kernel<March, Voxel, int64_t>, plan.grid(), kThreads, stream, p, plan);
}

// ---- what one integrator offers, by storage type; joseph.cu, siddon.cu and trilinear.cu
// instantiate one each

template <template <class> class March>
const char* CudaKernels<March>::project(const ProjectParams& p, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.scene.voxel) {
    case VoxelType::kFloat16: return project_voxel<March<float>, Half>(p, s);
    case VoxelType::kBFloat16: return project_voxel<March<float>, BFloat16>(p, s);
    case VoxelType::kFloat32: return project_voxel<March<float>, float>(p, s);
    default: return project_voxel<March<double>, double>(p, s);
  }
}

template <template <class> class March>
const char* CudaKernels<March>::second(const SecondParams& p, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.scene.voxel) {
    case VoxelType::kFloat16: return second_voxel<March<float>, Half>(p, s);
    case VoxelType::kBFloat16: return second_voxel<March<float>, BFloat16>(p, s);
    case VoxelType::kFloat32: return second_voxel<March<float>, float>(p, s);
    default: return second_voxel<March<double>, double>(p, s);
  }
}

template <template <class> class March>
const char* CudaKernels<March>::backproject(const BackprojectParams& p, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (p.scene.voxel == VoxelType::kFloat64) return backproject_scalar<March<double>>(p, s);
  return backproject_scalar<March<float>>(p, s);
}

}  // namespace cuda
}  // namespace drrkit
