// Marching kernels, one template for all integrators; joseph.cu, siddon.cu and trilinear.cu
// instantiate one each.
//
// A warp owns a tile of 8 x 4 pixels of one view, so that its rays stay close together. Rays that
// run along y or z are marched one a lane: neighbouring lanes then read neighbouring addresses.
// Rays that run along x, the contiguous axis, would read 32 distant lines at a time; there the warp
// takes its rays one after the other, one sample a lane, and adds the lanes up in a fixed order.
// Both are decided on the device, a warp at a time: nothing is copied or synchronised.
#pragma once

#include <cuda_runtime.h>

#include <limits>

#include "kernels.h"

namespace drrkit {
namespace cuda {

constexpr int kWarp = 32, kWarpsPerBlock = 4, kTileCols = 8, kTileRows = 4;
constexpr unsigned kAllLanes = 0xffffffffu;

// The warps of a launch: tiles of all views, padded to whole tiles.
struct Tiles {
  int64_t cols, a_view, total;

  static Tiles of(const Scene& scene) {
    const Views& v = scene.views;
    if (v.endpoints) return sized(1, (v.rays + kWarp - 1) / kWarp, scene.n_views);
    const int64_t rows = v.rays / v.cols;
    return sized((v.cols + kTileCols - 1) / kTileCols, (rows + kTileRows - 1) / kTileRows,
                 scene.n_views);
  }
  static Tiles sized(int64_t cols, int64_t rows, int64_t views) {
    return {cols, cols * rows, cols * rows * views};
  }

  unsigned blocks() const {
    return static_cast<unsigned>((total + kWarpsPerBlock - 1) / kWarpsPerBlock);
  }
};

// One lane's ray: its view, its pixel, and whether there is one (tiles hang over the image's
// border).
struct Lane {
  int64_t view, pixel;
  bool real;

  __device__ static Lane of(const Scene& scene, const Tiles& tiles, int64_t warp, int lane) {
    const Views& v = scene.views;
    const int64_t view = warp / tiles.a_view, tile = warp % tiles.a_view;
    if (v.endpoints) return {view, tile * kWarp + lane, tile * kWarp + lane < v.rays};
    const int64_t col = tile % tiles.cols * kTileCols + lane % kTileCols;
    const int64_t row = tile / tiles.cols * kTileRows + lane / kTileCols;
    return {view, row * v.cols + col, col < v.cols && row < v.rays / v.cols};
  }
};

template <class March> __device__ March march_of(const Scene& scene, const Lane& lane) {
  March march;
  const Ray none = {{0, 0, 0}, {0, 0, 0}};  // no length, hence no samples
  make_march(march, scene, lane.real ? scene.views.ray(lane.view, lane.pixel) : none,
             Slab{0, scene.grid.nz});
  return march;
}

// Adds up the sums that an order of derivatives needs over the warp, in a fixed order, on every
// lane.
template <class March, int kOrder> __device__ void add_up(typename March::Sums& sums) {
  using S = typename March::Scalar;
  S* numbers = reinterpret_cast<S*>(&sums);
#pragma unroll
  for (int i = 0; i < March::Sums::count(kOrder); ++i)
#pragma unroll
    for (int apart = kWarp / 2; apart > 0; apart /= 2)
      numbers[i] += __shfl_xor_sync(kAllLanes, numbers[i], apart);
}

// Called by whole warps: each lane gets the sums of its own ray. `board` has room for one march a
// lane.
template <class March, int kOrder, class Voxel, class Index>
__device__ void gather_warp(const March& mine, March* board, int lane, const Voxel* volume,
                            typename March::Sums& sums) {
  if (!__all_sync(kAllLanes, mine.along_x())) {
    mine.template gather<kOrder, Voxel, Index>(volume, 0, 1, sums);
    return;
  }
  board[lane] = mine;
  __syncwarp();
  for (int ray = 0; ray < kWarp; ++ray) {
    typename March::Sums part;
    board[ray].template gather<kOrder, Voxel, Index>(volume, lane, kWarp, part);
    add_up<March, kOrder>(part);
    if (lane == ray) sums = part;
  }
  __syncwarp();
}

template <class March, class Voxel, class Index, bool kRays>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    project_kernel(ProjectParams params, Tiles tiles) {
  using S = typename March::Scalar;
  __shared__ __align__(16) unsigned char boards[kWarpsPerBlock * kWarp * sizeof(March)];
  const int lane = threadIdx.x % kWarp, warp_in_block = threadIdx.x / kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_in_block;
  if (warp >= tiles.total) return;
  March* board = reinterpret_cast<March*>(boards) + warp_in_block * kWarp;
  const Scene& scene = params.scene;
  const Lane mine = Lane::of(scene, tiles, warp, lane);
  const March march = march_of<March>(scene, mine);
  const int64_t n = scene.views.rays, voxels = scene.grid.voxels(), channels = scene.n_channels;
  const Voxel* volume =
      static_cast<const Voxel*>(params.values) + scene.volume_of(mine.view) * channels * voxels;
  for (int64_t c = 0; c < channels; ++c) {
    typename March::Sums sums;
    gather_warp<March, kRays ? 1 : 0, Voxel, Index>(march, board, lane, volume + c * voxels, sums);
    if (!mine.real) continue;
    const int64_t row = mine.view * channels + c;
    static_cast<S*>(params.image)[row * n + mine.pixel] = static_cast<S>(march.image(sums));
    if (kRays) {
      const RayResult result = march.derivatives(sums);
      S* out = static_cast<S*>(params.rays) + row * 6 * n + mine.pixel;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        out[axis * n] = static_cast<S>(result.ds[axis]);
        out[(3 + axis) * n] = static_cast<S>(result.dp[axis]);
      }
    }
  }
}

template <class March, class Voxel, class Index>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    second_kernel(SecondParams params, Tiles tiles) {
  using S = typename March::Scalar;
  __shared__ __align__(16) unsigned char boards[kWarpsPerBlock * kWarp * sizeof(March)];
  const int lane = threadIdx.x % kWarp, warp_in_block = threadIdx.x / kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_in_block;
  if (warp >= tiles.total) return;
  March* board = reinterpret_cast<March*>(boards) + warp_in_block * kWarp;
  const Scene& scene = params.scene;
  const Lane mine = Lane::of(scene, tiles, warp, lane);
  const March march = march_of<March>(scene, mine);
  const int64_t n = scene.views.rays, voxels = scene.grid.voxels(), channels = scene.n_channels;
  const Voxel* volume =
      static_cast<const Voxel*>(params.values) + scene.volume_of(mine.view) * channels * voxels;
  const Ray none = {{0, 0, 0}, {0, 0, 0}};
  const Ray tangent = mine.real ? params.tangent.ray(mine.view, mine.pixel) : none;
  Ray total = none;
  for (int64_t c = 0; c < channels; ++c) {
    typename March::Sums sums;
    gather_warp<March, 2, Voxel, Index>(march, board, lane, volume + c * voxels, sums);
    if (!mine.real) continue;
    const double weight =
        static_cast<const S*>(params.images)[(mine.view * channels + c) * n + mine.pixel];
    const Ray k = march.second(sums, tangent);
    total.s = total.s + weight * k.s;
    total.p = total.p + weight * k.p;
  }
  if (!mine.real) return;
  double* out = params.rays + mine.view * 6 * n + mine.pixel;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    out[axis * n] = total.s[axis];
    out[(3 + axis) * n] = total.p[axis];
  }
}

// Adds weight times each channel's cotangent to one voxel.
template <class S> struct AtomicSink {
  S* values;           // channel 0 of the volume
  const S* cotangent;  // channel 0 of the ray's pixel
  int64_t voxels, n_rays, channels;

  __device__ void add(int64_t at, S weight) {
    for (int64_t c = 0; c < channels; ++c)
      atomicAdd(values + c * voxels + at, weight * cotangent[c * n_rays]);
  }
};

template <class March, bool kTangent>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    backproject_kernel(BackprojectParams params, Tiles tiles) {
  using S = typename March::Scalar;
  __shared__ __align__(16) unsigned char boards[kWarpsPerBlock * kWarp * sizeof(March)];
  const int lane = threadIdx.x % kWarp, warp_in_block = threadIdx.x / kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp_in_block;
  if (warp >= tiles.total) return;
  March* board = reinterpret_cast<March*>(boards) + warp_in_block * kWarp;
  const Scene& scene = params.scene;
  const Lane mine = Lane::of(scene, tiles, warp, lane);
  const March march = march_of<March>(scene, mine);
  const int64_t n = scene.views.rays, voxels = scene.grid.voxels(), channels = scene.n_channels;
  AtomicSink<S> sink = {
      static_cast<S*>(params.values) + scene.volume_of(mine.view) * channels * voxels, nullptr,
      voxels, n, channels};
  const S* images = static_cast<const S*>(params.images) + mine.view * channels * n;
  const Ray none = {{0, 0, 0}, {0, 0, 0}};
  if (!__all_sync(kAllLanes, march.along_x())) {
    if (!mine.real) return;
    sink.cotangent = images + mine.pixel;
    march.template scatter<kTangent>(kTangent ? params.tangent.ray(mine.view, mine.pixel) : none, 0,
                                     1, sink);
    return;
  }
  board[lane] = march;
  __syncwarp();
  for (int ray = 0; ray < kWarp; ++ray) {
    const Lane other = Lane::of(scene, tiles, warp, ray);
    if (!other.real) continue;
    sink.cotangent = images + other.pixel;
    board[ray].template scatter<kTangent>(
        kTangent ? params.tangent.ray(other.view, other.pixel) : none, lane, kWarp, sink);
  }
}

inline const char* launched() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline bool small(const Grid& grid) { return grid.voxels() < std::numeric_limits<int32_t>::max(); }

template <class March, class Voxel>
void launch_project(const ProjectParams& p, cudaStream_t stream) {
  const Tiles tiles = Tiles::of(p.scene);
  const dim3 grid(tiles.blocks()), block(kWarp * kWarpsPerBlock);
  const bool rays = p.rays != nullptr;
  if (small(p.scene.grid)) {
    if (rays)
      project_kernel<March, Voxel, int32_t, true><<<grid, block, 0, stream>>>(p, tiles);
    else
      project_kernel<March, Voxel, int32_t, false><<<grid, block, 0, stream>>>(p, tiles);
  } else {
    if (rays)
      project_kernel<March, Voxel, int64_t, true><<<grid, block, 0, stream>>>(p, tiles);
    else
      project_kernel<March, Voxel, int64_t, false><<<grid, block, 0, stream>>>(p, tiles);
  }
}

template <class March, class Voxel> void launch_second(const SecondParams& p, cudaStream_t stream) {
  const Tiles tiles = Tiles::of(p.scene);
  const dim3 grid(tiles.blocks()), block(kWarp * kWarpsPerBlock);
  if (small(p.scene.grid))
    second_kernel<March, Voxel, int32_t><<<grid, block, 0, stream>>>(p, tiles);
  else
    second_kernel<March, Voxel, int64_t><<<grid, block, 0, stream>>>(p, tiles);
}

template <class March> void launch_backproject(const BackprojectParams& p, cudaStream_t stream) {
  const Tiles tiles = Tiles::of(p.scene);
  const dim3 grid(tiles.blocks()), block(kWarp * kWarpsPerBlock);
  if (p.tangent.geometry)
    backproject_kernel<March, true><<<grid, block, 0, stream>>>(p, tiles);
  else
    backproject_kernel<March, false><<<grid, block, 0, stream>>>(p, tiles);
}

template <template <class> class March>
const char* Kernels<March>::project(const ProjectParams& p, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.scene.voxel) {
    case Voxel::kFloat16: launch_project<March<float>, Half>(p, s); break;
    case Voxel::kBFloat16: launch_project<March<float>, BFloat16>(p, s); break;
    case Voxel::kFloat32: launch_project<March<float>, float>(p, s); break;
    case Voxel::kFloat64: launch_project<March<double>, double>(p, s); break;
  }
  return launched();
}

template <template <class> class March>
const char* Kernels<March>::second(const SecondParams& p, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.scene.voxel) {
    case Voxel::kFloat16: launch_second<March<float>, Half>(p, s); break;
    case Voxel::kBFloat16: launch_second<March<float>, BFloat16>(p, s); break;
    case Voxel::kFloat32: launch_second<March<float>, float>(p, s); break;
    case Voxel::kFloat64: launch_second<March<double>, double>(p, s); break;
  }
  return launched();
}

template <template <class> class March>
const char* Kernels<March>::backproject(const BackprojectParams& p, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (p.scene.voxel == Voxel::kFloat64)
    launch_backproject<March<double>>(p, s);
  else
    launch_backproject<March<float>>(p, s);
  return launched();
}

}  // namespace cuda
}  // namespace drrkit
