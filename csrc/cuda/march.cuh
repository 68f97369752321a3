// Marching kernels, one template for all integrators; joseph.cu, siddon.cu and trilinear.cu
// instantiate one each.
//
// A warp owns a tile of 8 x 4 pixels of one view, so that its rays stay close together. Rays that
// run along y or z are marched one a lane: neighbouring lanes then read neighbouring addresses.
// Rays that run along x, the contiguous axis, would read 32 distant lines at a time; there the warp
// takes its rays one after the other, one sample a lane, and adds the lanes up in a fixed order.
// Both are decided on the device, a warp at a time: nothing is copied or synchronised.
#pragma once

#include <limits>

#include "kernels.h"
#include "launch.cuh"

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

// ---- scatter. A sink takes (voxel, weight) pairs of one ray after the other.

// What all sinks know: where the ray's volume begins, and its cotangent, channel by channel.
template <class S> struct Target {
  int64_t voxels, n_rays, channels;
  int64_t offset;      // of the volume, in voxels of channel 0
  const S* cotangent;  // channel 0 of the ray's pixel
};

// Atomic sums, in whatever order they come.
template <class S> struct AtomicSink {
  S* values;
  Target<S> target;

  __device__ void add(int64_t at, S weight) {
    for (int64_t c = 0; c < target.channels; ++c)
      atomicAdd(values + target.offset + c * target.voxels + at,
                weight * target.cotangent[c * target.n_rays]);
  }
  __device__ void finish() {}
};

// The largest magnitude that is going to be added. NaN and infinity win.
template <class S> struct PeakSink {
  unsigned long long* peak;  // bits of a non-negative double order like the number
  Target<S> target;
  double largest = 0;

  __device__ void add(int64_t, S weight) {
    for (int64_t c = 0; c < target.channels; ++c) {
      const double size = fabs(static_cast<double>(weight * target.cotangent[c * target.n_rays]));
      if (!(size <= largest)) largest = size;
    }
  }
  __device__ void finish() { atomicMax(peak, __double_as_longlong(largest)); }
};

// Sums of integers do not depend on their order. Terms are rounded to multiples of a power of two
// that leaves room for `log_terms` of the largest; with 2^27 rays that is still 2^-35 of it.
template <class S> struct FixedSink {
  unsigned long long* fixed;
  const unsigned long long* peak;
  int log_terms;
  Target<S> target;

  __device__ static int exponent(unsigned long long peak, int log_terms) {
    int of_peak = 0;
    frexp(__longlong_as_double(peak), &of_peak);  // peak < 2^of_peak
    return 62 - log_terms - of_peak;
  }
  __device__ void add(int64_t at, S weight) {
    const int shift = exponent(*peak, log_terms);
    for (int64_t c = 0; c < target.channels; ++c) {
      const double term = static_cast<double>(weight * target.cotangent[c * target.n_rays]);
      atomicAdd(fixed + target.offset + c * target.voxels + at,
                static_cast<unsigned long long>(__double2ll_rn(ldexp(term, shift))));
    }
  }
  __device__ void finish() {}
};

template <class March, bool kTangent, class Sink>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    backproject_kernel(BackprojectParams params, Tiles tiles, Sink sink) {
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
  const S* images = static_cast<const S*>(params.images) + mine.view * channels * n;
  const Ray none = {{0, 0, 0}, {0, 0, 0}};
  sink.target = {voxels, n, channels, scene.volume_of(mine.view) * channels * voxels, images};
  if (!__all_sync(kAllLanes, march.along_x())) {
    if (!mine.real) return;
    sink.target.cotangent = images + mine.pixel;
    const Ray tangent = kTangent ? params.tangent.ray(mine.view, mine.pixel) : none;
    march.template scatter<kTangent>(tangent, 0, 1, sink);
    sink.finish();
    return;
  }
  board[lane] = march;
  __syncwarp();
  for (int ray = 0; ray < kWarp; ++ray) {
    const Lane other = Lane::of(scene, tiles, warp, ray);
    if (!other.real) continue;
    sink.target.cotangent = images + other.pixel;
    const Ray tangent = kTangent ? params.tangent.ray(other.view, other.pixel) : none;
    board[ray].template scatter<kTangent>(tangent, lane, kWarp, sink);
  }
  sink.finish();
}

template <class S>
__global__ void from_fixed_kernel(const unsigned long long* fixed, const unsigned long long* peak,
                                  int log_terms, int64_t total, S* values) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= total) return;
  const double largest = __longlong_as_double(*peak);
  // A term that is not finite has no fixed-point form, and no voxel can be trusted.
  if (!(largest <= 1e300)) {
    values[i] = static_cast<S>(not_a_number());
  } else {
    const double sum = static_cast<double>(static_cast<long long>(fixed[i]));
    values[i] = static_cast<S>(ldexp(sum, -FixedSink<S>::exponent(*peak, log_terms)));
  }
}

inline bool small(const Grid& grid) { return grid.voxels() < std::numeric_limits<int32_t>::max(); }

template <class March, class Voxel, class Index>
const char* launch_project(const ProjectParams& p, cudaStream_t stream) {
  const Tiles tiles = Tiles::of(p.scene);
  const int threads = kWarp * kWarpsPerBlock;
  if (p.rays)
    return launch(project_kernel<March, Voxel, Index, true>, tiles.blocks(), threads, stream, p,
                  tiles);
  return launch(project_kernel<March, Voxel, Index, false>, tiles.blocks(), threads, stream, p,
                tiles);
}

template <class March, class Voxel>
const char* project_voxel(const ProjectParams& p, cudaStream_t stream) {
  if (small(p.scene.grid)) return launch_project<March, Voxel, int32_t>(p, stream);
  return launch_project<March, Voxel, int64_t>(p, stream);
}

template <class March, class Voxel>
const char* second_voxel(const SecondParams& p, cudaStream_t stream) {
  const Tiles tiles = Tiles::of(p.scene);
  const int threads = kWarp * kWarpsPerBlock;
  if (small(p.scene.grid))
    return launch(second_kernel<March, Voxel, int32_t>, tiles.blocks(), threads, stream, p, tiles);
  return launch(second_kernel<March, Voxel, int64_t>, tiles.blocks(), threads, stream, p, tiles);
}

template <class March, bool kTangent, class Sink>
const char* launch_scatter(const BackprojectParams& p, const Sink& sink, cudaStream_t stream) {
  const Tiles tiles = Tiles::of(p.scene);
  return launch(backproject_kernel<March, kTangent, Sink>, tiles.blocks(), kWarp * kWarpsPerBlock,
                stream, p, tiles, sink);
}

// An upper bound of the logarithm of the number of terms that one voxel can get.
inline int log_terms(const Scene& scene) {
  const Vec3 size = scene.grid.spacing;
  const double samples = 2 * sqrt(dot(size, size)) / scene.trilinear.step + 4;  // a ray, a voxel
  return static_cast<int>(ceil(log2(samples * scene.n_views * scene.views.rays))) + 1;
}

template <class March, bool kTangent>
const char* backproject_fixed(const BackprojectParams& p, cudaStream_t stream) {
  using S = typename March::Scalar;
  auto* fixed = reinterpret_cast<unsigned long long*>(p.fixed);
  auto* peak = reinterpret_cast<unsigned long long*>(p.peak);
  const int terms = log_terms(p.scene);
  const int64_t total = p.scene.n_volumes * p.scene.n_channels * p.scene.grid.voxels();
  const char* error = launch_scatter<March, kTangent>(p, PeakSink<S>{peak, {}}, stream);
  if (!error)
    error = launch_scatter<March, kTangent>(p, FixedSink<S>{fixed, peak, terms, {}}, stream);
  if (error) return error;
  return launch(from_fixed_kernel<S>, static_cast<unsigned>((total + 255) / 256), 256, stream,
                fixed, peak, terms, total, static_cast<S*>(p.values));
}

template <class March, bool kTangent>
const char* backproject_sink(const BackprojectParams& p, cudaStream_t stream) {
  using S = typename March::Scalar;
  if (p.fixed) return backproject_fixed<March, kTangent>(p, stream);
  const AtomicSink<S> sink = {static_cast<S*>(p.values), {}};
  return launch_scatter<March, kTangent>(p, sink, stream);
}

template <class March>
const char* backproject_scalar(const BackprojectParams& p, cudaStream_t stream) {
  if (p.tangent.geometry) return backproject_sink<March, true>(p, stream);
  return backproject_sink<March, false>(p, stream);
}

template <template <class> class March>
const char* Kernels<March>::project(const ProjectParams& p, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.scene.voxel) {
    case Voxel::kFloat16: return project_voxel<March<float>, Half>(p, s);
    case Voxel::kBFloat16: return project_voxel<March<float>, BFloat16>(p, s);
    case Voxel::kFloat32: return project_voxel<March<float>, float>(p, s);
    default: return project_voxel<March<double>, double>(p, s);
  }
}

template <template <class> class March>
const char* Kernels<March>::second(const SecondParams& p, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.scene.voxel) {
    case Voxel::kFloat16: return second_voxel<March<float>, Half>(p, s);
    case Voxel::kBFloat16: return second_voxel<March<float>, BFloat16>(p, s);
    case Voxel::kFloat32: return second_voxel<March<float>, float>(p, s);
    default: return second_voxel<March<double>, double>(p, s);
  }
}

template <template <class> class March>
const char* Kernels<March>::backproject(const BackprojectParams& p, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (p.scene.voxel == Voxel::kFloat64) return backproject_scalar<March<double>>(p, s);
  return backproject_scalar<March<float>>(p, s);
}

}  // namespace cuda
}  // namespace drrkit
