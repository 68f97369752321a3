// Joseph's method over a prepared volume. A ray is marched by one lane, or in small launches by
// eight of a warp, each with a piece of the ray, whose sums are added in a fixed order. Every ray
// chooses the texture or the layout of its own dominant axis, so launches may mix them.
#pragma once

#include "march.cuh"
#include "packed.h"

namespace drrkit {
namespace cuda {

constexpr int kPackedThreads = kWarp * kWarpsPerBlock;

// How a warp's lanes share a tile of pixels.
template <int kLanes> struct Sharing {
  static constexpr int kRays = kWarp / kLanes;  // a warp
  static constexpr int kCols = kRays >= kWarp ? kTileCols : kRays > 4 ? 4 : 2;
  static constexpr int kRows = kRays / kCols;
  static constexpr int kBlockRays = kRays * kWarpsPerBlock;

  static Tiles tiles(const Scene& scene) {
    const Views& v = scene.views;
    if (v.endpoints) return Tiles::sized(1, (v.rays + kRays - 1) / kRays, scene.n_views);
    return Tiles::sized((v.cols + kCols - 1) / kCols, (v.rays / v.cols + kRows - 1) / kRows,
                        scene.n_views);
  }

  // Ray `ray` of the warp's tile.
  __device__ static Lane lane(const Scene& scene, const Tiles& tiles, int64_t warp, int ray) {
    const Views& v = scene.views;
    const int64_t view = warp / tiles.a_view, tile = warp % tiles.a_view;
    if (warp >= tiles.total) return {0, 0, false};
    if (v.endpoints) return {view, tile * kRays + ray, tile * kRays + ray < v.rays};
    const int64_t col = tile % tiles.cols * kCols + ray % kCols;
    const int64_t row = tile / tiles.cols * kRows + ray / kCols;
    return {view, row * v.cols + col, col < v.cols && row < v.rays / v.cols};
  }

  // The march of this thread's ray. Where lanes share rays, each is set up once a block, on a
  // board; else in registers: shared memory would be taken from what caches texels.
  template <class March> struct Board {
    March of[kLanes > 1 ? kBlockRays : 1];
  };
  template <class March>
  __device__ static March march(const Scene& scene, const Tiles& tiles, void* board) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock;
    const int mine = threadIdx.x / kLanes;
    if constexpr (kLanes == 1) {
      return march_of<March>(scene, lane(scene, tiles, first + mine / kRays, mine % kRays));
    } else {
      March* marches = static_cast<March*>(board);
      if (threadIdx.x < kBlockRays) {
        const int ray = threadIdx.x;
        marches[ray] = march_of<March>(scene, lane(scene, tiles, first + ray / kRays, ray % kRays));
      }
      __syncthreads();
      return marches[mine];
    }
  }
};

// The samples of a lane's piece of a ray, box and bricks of the volume taken into account.
struct Piece {
  int begin, end;
  bool sparse;

  template <class S>
  __device__ static Piece of(const Bricks& bricks, int64_t volume, const Line<S>& line,
                             const Samples& samples, int part, int parts) {
    int begin = samples.begin, end = samples.end;
    const Occupied& box = bricks.occupied[volume];
    narrow_to_box(box, line, begin, end);
    const int share = (end - begin + parts - 1) / parts;
    const int first = minimum(begin + part * share, end);
    return {first, minimum(first + share, end), box.sparse != 0};
  }

  // Calls body(first, last) for the stretches that can meet something.
  template <class S, class Body>
  __device__ void march(const Bricks& bricks, int64_t volume, const Line<S>& line,
                        const Body& body) const {
    if (!sparse) return body(begin, end);
    const BrickWalk<S> walk(bricks, volume, line);
    for (int k = begin; k < end;) {
      const auto run = walk.run(k, end);
      if (!run.empty) body(k, run.end);
      k = run.end;
    }
  }
};

template <class S> __device__ Line<S> line_of(const Joseph<S>& r) {
  return Line<S>::of(r.m, static_cast<S>(r.plane), r.at_a, r.at_b, r.step_a, r.step_b);
}

// Adds the lanes of one ray up; every one of them gets the sum.
template <int kLanes> __device__ float add_lanes(float sum) {
#pragma unroll
  for (int apart = kLanes / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(kAllLanes, sum, apart);
  return sum;
}

// Samples [first, last), one fetch each. Texel i is centred at i + 1/2.
__device__ __forceinline__ float fetch(unsigned long long texture, const Joseph<float>& r,
                                       int first, int last, float sum) {
  const float at_a = r.at_a + 0.5f, at_b = r.at_b + 0.5f;
  const int plane = static_cast<int>(r.plane);
#pragma unroll 4
  for (int k = first; k < last; ++k) {
    const float kk = static_cast<float>(k);
    sum += tex2DLayered<float>(texture, at_a + kk * r.step_a, at_b + kk * r.step_b, plane + k);
  }
  return sum;
}

template <int kLanes>
__global__ void __launch_bounds__(kPackedThreads, 8)  // 64 registers: the march needs no more
    textures_kernel(ProjectParams params, PackedArrays arrays, Tiles tiles) {
  using Shared = Sharing<kLanes>;
  using March = Joseph<float>;
  __shared__ __align__(16) unsigned char board[sizeof(typename Shared::template Board<March>)];
  const Scene& scene = params.scene;
  const March r = Shared::template march<March>(scene, tiles, board);
  const int lane = threadIdx.x % kWarp, part = lane % kLanes;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  const Lane mine = Shared::lane(scene, tiles, warp, lane / kLanes);
  const int64_t volume = scene.volume_of(mine.view), channels = scene.n_channels;
  const Line<float> line = line_of(r);
  const Piece piece = Piece::of(params.bricks, volume, line, r.samples, part, kLanes);
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t image = volume * channels + c;
    float sum = 0;
    // One axis after the other: a texture is the same for all lanes that fetch from it.
#pragma unroll 1
    for (int axis = 0; axis < 3; ++axis) {
      if (r.m != axis) continue;
      const unsigned long long texture = arrays.textures[3 * image + axis];
      piece.march(params.bricks, volume, line,
                  [&](int k, int end) { sum = fetch(texture, r, k, end, sum); });
    }
    sum = add_lanes<kLanes>(sum);
    if (!mine.real || part != 0) continue;
    static_cast<float*>(params.image)[(mine.view * channels + c) * scene.views.rays + mine.pixel] =
        static_cast<float>(r.w * arrays.scale[image] * sum);
  }
}

// The samples [first, last) of a march, checked where they must be.
template <int kOrder, class Voxel, class Index, class March>
__device__ void gather_between(const March& r, const Voxel* volume, int first, int last,
                               typename March::Sums& sums) {
  const int inner = minimum(maximum(r.samples.inner_begin, first), last);
  const int outer = minimum(maximum(r.samples.inner_end, inner), last);
  r.template gather_range<kOrder, true, Voxel, Index>(volume, first, inner, 1, sums);
  r.template gather_range<kOrder, false, Voxel, Index>(volume, inner, outer, 1, sums);
  r.template gather_range<kOrder, true, Voxel, Index>(volume, outer, last, 1, sums);
}

// Images and derivatives. Rays along x read the copy with x slowest, all others the values: either
// way neighbouring rays read neighbouring addresses.
template <class Voxel, class Index, int kLanes>
__global__ void __launch_bounds__(kPackedThreads)
    copy_kernel(ProjectParams params, PackedArrays arrays, Tiles tiles) {
  using Shared = Sharing<kLanes>;
  using March = Joseph<float>;
  __shared__ __align__(16) unsigned char board[sizeof(typename Shared::template Board<March>)];
  const Scene& scene = params.scene;
  March r = Shared::template march<March>(scene, tiles, board);
  const int lane = threadIdx.x % kWarp, part = lane % kLanes;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  const Lane mine = Shared::lane(scene, tiles, warp, lane / kLanes);
  const int64_t view_volume = scene.volume_of(mine.view), channels = scene.n_channels;
  const int64_t n = scene.views.rays, voxels = scene.grid.voxels();
  const Line<float> line = line_of(r);
  const Piece piece = Piece::of(params.bricks, view_volume, line, r.samples, part, kLanes);
  const void* values = params.values;
  if (r.m == 0) {  // [x, z, y]
    values = arrays.copy;
    r.stride_m = scene.grid.ny * scene.grid.nz;
    r.stride_a = 1;
    r.stride_b = scene.grid.ny;
  }
  const Voxel* volume = static_cast<const Voxel*>(values) + view_volume * channels * voxels;
  for (int64_t c = 0; c < channels; ++c, volume += voxels) {
    typename March::Sums sums;
    piece.march(params.bricks, view_volume, line,
                [&](int k, int end) { gather_between<1, Voxel, Index>(r, volume, k, end, sums); });
    sums.v = add_lanes<kLanes>(sums.v);
    sums.a = add_lanes<kLanes>(sums.a);
    sums.b = add_lanes<kLanes>(sums.b);
    sums.ka = add_lanes<kLanes>(sums.ka);
    sums.kb = add_lanes<kLanes>(sums.kb);
    if (!mine.real || part != 0) continue;
    const int64_t row = mine.view * channels + c;
    const RayResult result = r.derivatives(sums);
    static_cast<float*>(params.image)[row * n + mine.pixel] = static_cast<float>(r.image(sums));
    float* out = static_cast<float*>(params.rays) + row * 6 * n + mine.pixel;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      out[axis * n] = static_cast<float>(result.ds[axis]);
      out[(3 + axis) * n] = static_cast<float>(result.dp[axis]);
    }
  }
}

}  // namespace cuda
}  // namespace drrkit
