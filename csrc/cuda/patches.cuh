// Gathering by patch, for P* of Joseph's method: see ../patch.h.
//
// A thread's patches lie over its own cube, one a plane of the axis m; their lower voxels belong to
// other threads. Sums stay in registers through all views of one axis. Then a block adds up its
// patches in shared memory, and leaves what falls below its brick, the seam, to be added to the
// neighbouring bricks by a second kernel. All in one order.
//
// What bounds it, with p pixels a voxel face: a patch of four voxels looks at 4 p pixels (in warps,
// (2 sqrt(p) + 1)^2), at 38 instructions and 4 bytes from the L1 cache each, and finds its rows and
// columns in about 115 instructions, once a plane and view. A scatter sends 16 p additions to the
// L2 cache as atomics, each of which has been measured to take the time of 110 instructions. The
// volume is written once a batch and axis.
#pragma once

#include "survey.cuh"

namespace drrkit {
namespace cuda {

// A brick's planes of axis m with one row of voxels below them along a and along b.
template <int kAxis, class S> struct PlaneSums {
  static constexpr int kA = kAxis == 0 ? 1 : 0, kB = kAxis == 2 ? 1 : 2;
  static constexpr int kM = kAxis == 2 ? kBrickZ : kAxis == 1 ? kBrickY : kBrickX;
  static constexpr int kSizeA = kAxis == 0 ? kBrickY : kBrickX,
                       kSizeB = kAxis == 2 ? kBrickY : kBrickZ;
  static constexpr int kRim = kSizeA + kSizeB + 1, kSeam = kM * kRim;

  S data[kM * (kSizeA + 1) * (kSizeB + 1)];

  __device__ S& at(int k, int a, int b) {
    return data[(k * (kSizeB + 1) + b + 1) * (kSizeA + 1) + a + 1];
  }
  // Entry `rim` of plane k's part of the seam: first a = -1, then b = -1.
  __device__ S& at_rim(int k, int rim) {
    return rim <= kSizeB ? at(k, -1, rim - 1) : at(k, rim - kSizeB - 1, -1);
  }

  // Adds up the patches of a block and returns each thread's own voxels.
  __device__ void join(const Cube& cube, const S (&first)[9], const S (&second)[9], S (&own)[8]) {
    const int in[3] = {cube.in_x, cube.in_y, cube.in_z};
    const int k = in[kAxis], a = in[kA], b = in[kB];
    for (int i = threadIdx.x; i < kSeam; i += kGatherThreads) at_rim(i / kRim, i % kRim) = 0;
    __syncthreads();
#pragma unroll
    for (int step = 0; step < 4; ++step) {  // own voxels, those below along a, b, and both
#pragma unroll
      for (int voxel = 0; voxel < 9; ++voxel) {
        const int da = voxel % 3 - 1, db = voxel / 3 - 1;
        if ((da < 0) + 2 * (db < 0) != step) continue;
        S &low = at(k, a + da, b + db), &high = at(k + 1, a + da, b + db);
        low = step == 0 ? first[voxel] : low + first[voxel];
        high = step == 0 ? second[voxel] : high + second[voxel];
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
      own[i] = at(k + (i >> kAxis & 1), a + (i >> kA & 1), b + (i >> kB & 1));
  }
};

constexpr int kMostSeam = PlaneSums<0, float>::kSeam;
static_assert(PlaneSums<1, float>::kSeam <= kMostSeam && PlaneSums<2, float>::kSeam <= kMostSeam,
              "seams of all axes share their place");

// The sums of a thread's two patches along one axis.
template <int kAxis, int kChannels, class S> struct Patches {
  using Planes = PlaneSums<kAxis, S>;
  S first[kChannels][9], second[kChannels][9];
  S k, a, b, more_a, more_b;  // the lowest own voxel, counted from the middle; see gather_patch
  bool edge;                  // whether the brick has patches at the upper edges

  __device__ static Patches of(const Grid& grid, const BrickWork& brick, const Cube& cube) {
    Patches r;
#pragma unroll
    for (int i = 0; i < 9 * kChannels; ++i) r.first[i / 9][i % 9] = r.second[i / 9][i % 9] = 0;
    const int lowest[3] = {cube.x, cube.y, cube.z}, from[3] = {brick.x, brick.y, brick.z};
    const Vec3 middle = Bundle<S>::middle_of(grid);
    const int64_t size_a = grid.size(Planes::kA), size_b = grid.size(Planes::kB);
    r.k = static_cast<S>(lowest[kAxis] - middle[kAxis]);
    r.a = static_cast<S>(lowest[Planes::kA] - middle[Planes::kA]);
    r.b = static_cast<S>(lowest[Planes::kB] - middle[Planes::kB]);
    r.more_a = static_cast<S>(lowest[Planes::kA] + 2 == size_a);
    r.more_b = static_cast<S>(lowest[Planes::kB] + 2 == size_b);
    r.edge = (size_a % 2 == 0 && from[Planes::kA] + Planes::kSizeA >= size_a) ||
             (size_b % 2 == 0 && from[Planes::kB] + Planes::kSizeB >= size_b);
    return r;
  }

  template <bool kPlain, bool kEdge>
  __device__ void add(const Bundle<S>& bundle, const Pixels<S>& pixels) {
    gather_patch<kPlain, kEdge>(bundle, pixels, k, a, b, more_a, more_b, first);
    gather_patch<kPlain, kEdge>(bundle, pixels, k + 1, a, b, more_a, more_b, second);
  }
  __device__ void add(const Bundle<S>& bundle, const Pixels<S>& pixels) {
    if (bundle.plain && !edge) return add<true, false>(bundle, pixels);
    if (bundle.plain) return add<true, true>(bundle, pixels);
    if (!edge) return add<false, false>(bundle, pixels);
    add<false, true>(bundle, pixels);
  }
};

// Blocks take one brick after the other, so that a launch without work is over at once.
template <int kAxis, int kChannels, class S, int kBlocks>
__global__ void __launch_bounds__(kGatherThreads, kBlocks)
    patch_kernel(BackprojectParams params, Workspace<S> work, Bricks bricks) {
  using Planes = PlaneSums<kAxis, S>;
  __shared__ Board<S> board;
  __shared__ Planes planes;
  if (!work.present[kAxis]) return;
  bool untouched = true;  // by this batch's other axes
  for (int axis = 0; axis < kAxis; ++axis) untouched = untouched && !work.present[axis];
  const Scene& scene = params.scene;
  const Grid& grid = scene.grid;
  for (int64_t block = blockIdx.x; block < bricks.blocks; block += gridDim.x) {
    const BrickWork brick = BrickWork::of(scene, work.survey, bricks, block, kChannels);
    const Cube cube = Cube::of(brick);
    auto patches = Patches<kAxis, kChannels, S>::of(grid, brick, cube);
    const bool inside = cube.inside(grid);
    const bool any = board.template go_through<JosephPatches<S>>(
        scene, work, brick, kAxis, [&](const Bundle<S>& bundle, const Pixels<S>& pixels) {
          if (inside) patches.add(bundle, pixels);
        });
    if (threadIdx.x == 0) work.wrote[block] = any;
    if (!any) continue;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      S own[8];
      planes.join(cube, patches.first[c], patches.second[c], own);
      const int64_t channel = brick.channel + c;
      if (channel < scene.n_channels) {
        S* values = static_cast<S*>(params.values) +
                    (brick.volume * scene.n_channels + channel) * grid.voxels();
        if (inside) write_cube(grid, values, cube, own, brick.first_batch && untouched);
        S* seam = work.seams + (block * kChannels + c) * kMostSeam;
        for (int i = threadIdx.x; i < Planes::kSeam; i += kGatherThreads)
          seam[i] = planes.at_rim(i / Planes::kRim, i % Planes::kRim);
      }
      __syncthreads();
    }
  }
}

// Adds to the uppermost voxels of each brick what its upper neighbours have found in them.
template <int kAxis, int kChannels, class S>
__global__ void __launch_bounds__(kGatherThreads)
    seam_kernel(BackprojectParams params, Workspace<S> work, Bricks bricks) {
  using Planes = PlaneSums<kAxis, S>;
  constexpr int kUppermost = Planes::kSizeA + Planes::kSizeB - 1, kCount = Planes::kM * kUppermost;
  if (!work.present[kAxis]) return;
  const Grid& grid = params.scene.grid;
  const int64_t count[3] = {bricks.x, bricks.y, bricks.z};
  const int64_t up_a = bricks.stride(Planes::kA), up_b = bricks.stride(Planes::kB);
  for (int64_t block = blockIdx.x; block < bricks.blocks; block += gridDim.x) {
    const BrickWork brick = BrickWork::of(params.scene, work.survey, bricks, block, kChannels);
    const bool more_a = brick.brick[Planes::kA] + 1 < count[Planes::kA];
    const bool more_b = brick.brick[Planes::kB] + 1 < count[Planes::kB];
    const bool from_a = more_a && work.wrote[block + up_a];
    const bool from_b = more_b && work.wrote[block + up_b];
    const bool from_both = more_a && more_b && work.wrote[block + up_a + up_b];
    const int from[3] = {brick.x, brick.y, brick.z};
    for (int i = threadIdx.x; i < kCount * kChannels; i += kGatherThreads) {
      const int c = i / kCount, k = i % kCount / kUppermost, place = i % kUppermost;
      const int a = place < Planes::kSizeB ? Planes::kSizeA - 1 : place - Planes::kSizeB;
      const int b = place < Planes::kSizeB ? place : Planes::kSizeB - 1;
      const bool last_a = a == Planes::kSizeA - 1, last_b = b == Planes::kSizeB - 1;
      const int64_t channel = brick.channel + c, plane = from[kAxis] + k;
      const bool found =
          (last_a && from_a) || (last_b && from_b) || (last_a && last_b && from_both);
      if (!found || channel >= params.scene.n_channels || plane >= grid.size(kAxis)) continue;
      const int64_t on_a = from[Planes::kA] + a, on_b = from[Planes::kB] + b;
      if (on_a >= grid.size(Planes::kA) || on_b >= grid.size(Planes::kB)) continue;
      const S* seam = work.seams + (block * kChannels + c) * kMostSeam + k * Planes::kRim;
      const int64_t per_block = kChannels * kMostSeam;
      S sum = 0;
      if (last_a && from_a) sum += seam[up_a * per_block + b + 1];
      if (last_b && from_b) sum += seam[up_b * per_block + Planes::kSizeB + 1 + a];
      if (last_a && last_b && from_both) sum += seam[(up_a + up_b) * per_block];
      const int64_t row = brick.volume * params.scene.n_channels + channel;
      static_cast<S*>(
          params.values)[row * grid.voxels() + plane * grid.stride(kAxis) +
                         on_a * grid.stride(Planes::kA) + on_b * grid.stride(Planes::kB)] += sum;
    }
  }
}

template <class S> struct ByPatch {
  static int64_t channels(const Scene& scene) {
    return scene.n_channels <= 3 ? scene.n_channels : scene.n_channels % 2 == 0 ? 2 : 3;
  }
  static int64_t seam(const Scene& scene) { return channels(scene) * kMostSeam; }

  static const char* launch_all(const BackprojectParams& params, const Workspace<S>& work,
                                const Bricks& bricks, cudaStream_t stream) {
    switch (channels(params.scene)) {
      case 1: return launch_axes<1>(params, work, bricks, stream);
      case 2: return launch_axes<2>(params, work, bricks, stream);
      default: return launch_axes<3>(params, work, bricks, stream);
    }
  }
  template <int kChannels>
  static const char* launch_axes(const BackprojectParams& params, const Workspace<S>& work,
                                 const Bricks& bricks, cudaStream_t stream) {
    const char* error = launch_axis<0, kChannels>(params, work, bricks, stream);
    if (!error) error = launch_axis<1, kChannels>(params, work, bricks, stream);
    if (!error) error = launch_axis<2, kChannels>(params, work, bricks, stream);
    return error;
  }
  template <int kAxis, int kChannels>
  static const char* launch_axis(const BackprojectParams& params, const Workspace<S>& work,
                                 const Bricks& bricks, cudaStream_t stream) {
    // Up to 80 registers a thread for one channel in float, 128 for more, 255 in double.
    constexpr int kBlocks = sizeof(S) == 8 ? 1 : kChannels == 1 ? 3 : 2;
    const unsigned blocks = static_cast<unsigned>(minimum<int64_t>(bricks.blocks, 4096));
    const char* error = launch(patch_kernel<kAxis, kChannels, S, kBlocks>, blocks, kGatherThreads,
                               stream, params, work, bricks);
    if (error) return error;
    return launch(seam_kernel<kAxis, kChannels, S>, blocks, kGatherThreads, stream, params, work,
                  bricks);
  }
};

}  // namespace cuda
}  // namespace drrkit
