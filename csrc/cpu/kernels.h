// The CPU kernels, as functions over a range of work: no threads and no torch in here.
#pragma once

#include "../params.h"
#include "dispatch.h"

namespace drrkit {
namespace cpu {

// Rays are dealt out in panels of pixels (panel.h), numbered panel * views + view.
int64_t panels(const Scene& scene);
void project(const ProjectParams& params, int64_t panel_begin, int64_t panel_end);
void second(const SecondParams& params, int64_t panel_begin, int64_t panel_end);

// All rays of one volume's views, writing only the planes of the slab, all of them: slabs can run
// at the same time, and each voxel is summed by one thread in the order of the rays, whatever the
// number of threads.
void backproject(const BackprojectParams& params, int64_t volume, Slab slab);

// What one integrator offers on one instruction set; defined in march.h, instantiated by
// instances.h for portable.cpp, avx2.cpp and avx512.cpp.
template <template <class> class March, template <class, int> class Tile, Level kLevel>
struct CpuKernels {
  static void project(const ProjectParams& params, int64_t begin, int64_t end);
  static void second(const SecondParams& params, int64_t begin, int64_t end);
  static void backproject(const BackprojectParams& params, int64_t volume, Slab slab);
};

template <class S, int N> struct JosephTile;
template <class S, int N> struct SiddonTile;
template <class S, int N> struct TrilinearTile;

// Memory for a panel in work, at a cache line: kept by each thread, as fresh memory would cost page
// faults. What it held is gone with the next call.
void* room(size_t bytes);

// Chunks are numbered view * chunks per view + chunk.
template <class S>
void reduce_chunks(const ReduceParams<S>& params, int64_t chunk_begin, int64_t chunk_end);
template <class S>
void reduce_rays(const ReduceParams<S>& params, int64_t ray_begin, int64_t ray_end);
template <class S> void tangent(const TangentParams<S>& params, int64_t ray_begin, int64_t ray_end);

// Perturb or Frames for views [view_begin, view_end).
template <class Map> void map_poses(const MapParams& params, int64_t view_begin, int64_t view_end);

// The instruction set the kernels were dispatched to: "avx512", "avx2" or "base".
const char* capability();

}  // namespace cpu
}  // namespace drrkit
