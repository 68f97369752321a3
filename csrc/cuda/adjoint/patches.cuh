// P* of Joseph's method by gathering: every ray of a plane is looked at once.
//
// Samples lie in cells of four voxels. A patch is 2 x 2 cells of one plane: those around one voxel
// that it owns and its three upper neighbours, which it owns too; its lower neighbours belong to
// other patches, and what falls to them is handed over at the end by a second kernel. Patches share
// no sample, so with p pixels a voxel face one looks at 4 p of them, where gathering for the same
// four voxels alone would look at 9 p. What is fetched is one number a pixel: the ray is computed,
// the same in every patch to the bit, so that exactly one of them finds it inside.
//
// A thread's patches lie over its own cube, one a plane of the axis m; their lower voxels belong to
// other threads. Sums stay in registers through all views of one axis. Then a block adds up its
// patches in shared memory, and leaves what falls below its plot, the seam, to be added to the
// neighbouring plots by a second kernel. All in one order.
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

// What a sample at x weighs in voxels at - 1, at and at + 1; x in [at - 1, at + 1), or, in the
// patch at the grid's upper edge, in [at - 1, at + 2).
template <bool kEdge, class S> DRR_HD void patch_hats(S x, S at, S (&hat)[3]) {
  const S zero = 0, one = 1, p = x - at;
  hat[0] = at_least(zero, -p);
  hat[1] = one - static_cast<S>(fabs(p));
  hat[2] = at_least(zero, p);
  if (kEdge) {
    hat[1] = at_least(zero, hat[1]);
    hat[2] = at_most(at_least(zero, one + one - p), hat[2]);
  }
}

// Adds a bundle's rays to the patch of plane k whose lowest own voxel is (a, b), all counted from
// the grid's middle. sums[3 (b' + 1) + a' + 1] is that of voxel (a + a', b + b'). With kEdge the
// patch extends by (more_a, more_b) cells, 0 or 1.
template <bool kPlain, bool kEdge, int kChannels, class S>
DRR_HD void gather_patch(const Bundle<S>& bundle, const Pixels<S>& pixels, S k, S a, S b, S more_a,
                         S more_b, S (&sums)[kChannels][9]) {
  const S one = 1, half = static_cast<S>(0.5);
  const S more_than_half_a = kEdge ? half * more_a : 0,
          more_than_half_b = kEdge ? half * more_b : 0;
  const S size = one + static_cast<S>(Bundle<S>::margin());
  read_anew();
  Window<S> window;
  if (!window.look(bundle, k, a + more_than_half_a, b + more_than_half_b, size + more_than_half_a,
                   size + more_than_half_b))
    return;
  const S col_a = in_register(bundle.col_a), col_b = in_register(bundle.col_b),
          col_d = in_register(bundle.col_d);
  const S end_a = a + one + (kEdge ? more_a : 0), end_b = b + one + (kEdge ? more_b : 0);
  const int64_t step = in_register(static_cast<int64_t>(bundle.stride_col));
#pragma unroll 1
  for (S i = window.rows.lo; i <= window.rows.hi; i += 1) {
    const Range<S> cols = window.columns(bundle, i);
    if (!(cols.lo <= cols.hi)) continue;
    const S row_a = i * bundle.row_a, row_b = i * bundle.row_b;
    const S row_d = fused(i, bundle.row_d, one);
    int32_t pixel =
        bundle.pixel + whole(i) * bundle.stride_row + whole(cols.lo) * bundle.stride_col;
    const S* image = pixels.images + pixel;
#pragma unroll 1
    for (S j = cols.lo; j <= cols.hi; j += 1, image += step, pixel += static_cast<int>(step)) {
      S g = fetch(image);
      if (!kPlain && !pixels.has(pixel, bundle.id, k)) continue;
      const S per_depth = window.t * reciprocal(fused(j, col_d, row_d));
      const S xa = fused(fused(j, col_a, row_a), per_depth, window.at_a);
      const S xb = fused(fused(j, col_b, row_b), per_depth, window.at_b);
      const bool inside = xa >= a - one && xa < end_a && xb >= b - one && xb < end_b;
      S on_a[3], on_b[3];
      patch_hats<kEdge>(xa, a, on_a);
      patch_hats<kEdge>(xb, b, on_b);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (c > 0) g = fetch(image + (c < pixels.channels ? c * pixels.n_rays : 0));
        g = inside ? g : 0;
#pragma unroll
        for (int voxel = 0; voxel < 9; ++voxel)
          sums[c][voxel] += on_a[voxel % 3] * (g * on_b[voxel / 3]);
      }
    }
  }
}

// A plot's planes of axis m with one row of voxels below them along a and along b.
template <int kAxis, class S> struct PlaneSums {
  static constexpr int kA = kAxis == 0 ? 1 : 0, kB = kAxis == 2 ? 1 : 2;
  static constexpr int kM = kAxis == 2 ? kPlotZ : kAxis == 1 ? kPlotY : kPlotX;
  static constexpr int kSizeA = kAxis == 0 ? kPlotY : kPlotX, kSizeB = kAxis == 2 ? kPlotY : kPlotZ;
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
  bool edge;                  // whether the plot has patches at the upper edges

  __device__ static Patches of(const Grid& grid, const PlotWork& plot, const Cube& cube) {
    Patches r;
#pragma unroll
    for (int i = 0; i < 9 * kChannels; ++i) r.first[i / 9][i % 9] = r.second[i / 9][i % 9] = 0;
    const int lowest[3] = {cube.x, cube.y, cube.z}, from[3] = {plot.x, plot.y, plot.z};
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

// Blocks take one plot after the other, so that a launch without work is over at once.
template <int kAxis, int kChannels, class S, int kBlocks>
__global__ void __launch_bounds__(kGatherThreads, kBlocks)
    patch_kernel(BackprojectParams params, Workspace<S> work, Plots plots) {
  using Planes = PlaneSums<kAxis, S>;
  __shared__ BundleBoard<S> board;
  __shared__ Planes planes;
  if (!work.present[kAxis]) return;
  bool untouched = true;  // by this batch's other axes
  for (int axis = 0; axis < kAxis; ++axis) untouched = untouched && !work.present[axis];
  const Scene& scene = params.scene;
  const Grid& grid = scene.grid;
  for (int64_t block = blockIdx.x; block < plots.blocks; block += gridDim.x) {
    const PlotWork plot = PlotWork::of(scene, work.survey, plots, block, kChannels);
    const Cube cube = Cube::of(plot);
    auto patches = Patches<kAxis, kChannels, S>::of(grid, plot, cube);
    const bool inside = cube.inside(grid);
    const bool any = board.go_through(scene, work, plot, kAxis,
                                      [&](const Bundle<S>& bundle, const Pixels<S>& pixels) {
                                        if (inside) patches.add(bundle, pixels);
                                      });
    if (threadIdx.x == 0) work.wrote[block] = any;
    if (!any) continue;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      S own[8];
      planes.join(cube, patches.first[c], patches.second[c], own);
      const int64_t channel = plot.channel + c;
      if (channel < scene.n_channels) {
        S* values = static_cast<S*>(params.values) +
                    (plot.volume * scene.n_channels + channel) * grid.voxels();
        if (inside) write_cube(grid, values, cube, own, plot.first_batch && untouched);
        S* seam = work.seams + (block * kChannels + c) * kMostSeam;
        for (int i = threadIdx.x; i < Planes::kSeam; i += kGatherThreads)
          seam[i] = planes.at_rim(i / Planes::kRim, i % Planes::kRim);
      }
      __syncthreads();
    }
  }
}

// Adds to the uppermost voxels of each plot what its upper neighbours have found in them.
template <int kAxis, int kChannels, class S>
__global__ void __launch_bounds__(kGatherThreads)
    seam_kernel(BackprojectParams params, Workspace<S> work, Plots plots) {
  using Planes = PlaneSums<kAxis, S>;
  constexpr int kUppermost = Planes::kSizeA + Planes::kSizeB - 1, kCount = Planes::kM * kUppermost;
  if (!work.present[kAxis]) return;
  const Grid& grid = params.scene.grid;
  const int64_t count[3] = {plots.x, plots.y, plots.z};
  const int64_t up_a = plots.stride(Planes::kA), up_b = plots.stride(Planes::kB);
  for (int64_t block = blockIdx.x; block < plots.blocks; block += gridDim.x) {
    const PlotWork plot = PlotWork::of(params.scene, work.survey, plots, block, kChannels);
    const bool more_a = plot.plot[Planes::kA] + 1 < count[Planes::kA];
    const bool more_b = plot.plot[Planes::kB] + 1 < count[Planes::kB];
    const bool from_a = more_a && work.wrote[block + up_a];
    const bool from_b = more_b && work.wrote[block + up_b];
    const bool from_both = more_a && more_b && work.wrote[block + up_a + up_b];
    const int from[3] = {plot.x, plot.y, plot.z};
    for (int i = threadIdx.x; i < kCount * kChannels; i += kGatherThreads) {
      const int c = i / kCount, k = i % kCount / kUppermost, place = i % kUppermost;
      const int a = place < Planes::kSizeB ? Planes::kSizeA - 1 : place - Planes::kSizeB;
      const int b = place < Planes::kSizeB ? place : Planes::kSizeB - 1;
      const bool last_a = a == Planes::kSizeA - 1, last_b = b == Planes::kSizeB - 1;
      const int64_t channel = plot.channel + c, plane = from[kAxis] + k;
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
      const int64_t row = plot.volume * params.scene.n_channels + channel;
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
                                const Plots& plots, cudaStream_t stream) {
    switch (channels(params.scene)) {
      case 1: return launch_axes<1>(params, work, plots, stream);
      case 2: return launch_axes<2>(params, work, plots, stream);
      default: return launch_axes<3>(params, work, plots, stream);
    }
  }
  template <int kChannels>
  static const char* launch_axes(const BackprojectParams& params, const Workspace<S>& work,
                                 const Plots& plots, cudaStream_t stream) {
    const char* error = launch_axis<0, kChannels>(params, work, plots, stream);
    if (!error) error = launch_axis<1, kChannels>(params, work, plots, stream);
    if (!error) error = launch_axis<2, kChannels>(params, work, plots, stream);
    return error;
  }
  template <int kAxis, int kChannels>
  static const char* launch_axis(const BackprojectParams& params, const Workspace<S>& work,
                                 const Plots& plots, cudaStream_t stream) {
    // Up to 80 registers a thread for one channel in float, 128 for more, 255 in double.
    constexpr int kBlocks = sizeof(S) == 8 ? 1 : kChannels == 1 ? 3 : 2;
    const unsigned blocks = static_cast<unsigned>(minimum<int64_t>(plots.blocks, 4096));
    const char* error = launch(patch_kernel<kAxis, kChannels, S, kBlocks>, blocks, kGatherThreads,
                               stream, params, work, plots);
    if (error) return error;
    return launch(seam_kernel<kAxis, kChannels, S>, blocks, kGatherThreads, stream, params, work,
                  plots);
  }
};

}  // namespace cuda
}  // namespace drrkit
