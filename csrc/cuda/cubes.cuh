// Gathering by voxel, for the products other than P* of Joseph's method: every thread looks at the
// pixels that its own cube needs.
#pragma once

#include "survey.cuh"

namespace drrkit {
namespace cuda {

template <int kChannels, class Weights, class S, int kBlocks>
__global__ void __launch_bounds__(kGatherThreads, kBlocks)
    cube_kernel(BackprojectParams params, Workspace<S> work, Bricks bricks) {
  __shared__ Board<S> board;
  const Scene& scene = params.scene;
  const Grid& grid = scene.grid;
  const BrickWork brick = BrickWork::of(scene, work.survey, bricks, blockIdx.x, kChannels);
  const Cube cube = Cube::of(brick);
  const bool inside = cube.inside(grid);
  S sums[kChannels][8];
#pragma unroll
  for (int i = 0; i < 8 * kChannels; ++i) sums[i / 8][i % 8] = 0;
  const bool any = board.template go_through<Weights>(
      scene, work, brick, -1, [&](const Bundle<S>& bundle, const Pixels<S>& pixels) {
        if (inside)
          gather_cube<kChannels, Weights>(grid, bundle, pixels, cube.x, cube.y, cube.z, sums);
      });
  if (!any || !inside) return;
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    if (brick.channel + c >= scene.n_channels) continue;
    const int64_t row = brick.volume * scene.n_channels + brick.channel + c;
    write_cube(grid, static_cast<S*>(params.values) + row * grid.voxels(), cube, sums[c],
               brick.first_batch);
  }
}

template <class Weights, class S> struct ByCube {
  static int64_t channels(const Scene& scene) { return scene.n_channels == 1 ? 1 : 4; }
  static int64_t seam(const Scene&) { return 0; }

  static const char* launch_all(const BackprojectParams& params, const Workspace<S>& work,
                                const Bricks& bricks, cudaStream_t stream) {
    // Up to 85 registers a thread for one channel in float, 128 for four, 255 in double.
    constexpr bool kDouble = sizeof(S) == 8;
    const unsigned blocks = static_cast<unsigned>(bricks.blocks);
    if (params.scene.n_channels == 1)
      return launch(cube_kernel < 1, Weights, S, kDouble ? 1 : 3 >, blocks, kGatherThreads, stream,
                    params, work, bricks);
    return launch(cube_kernel < 4, Weights, S, kDouble ? 1 : 2 >, blocks, kGatherThreads, stream,
                  params, work, bricks);
  }
};

}  // namespace cuda
}  // namespace drrkit
