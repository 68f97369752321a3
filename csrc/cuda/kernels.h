// Launchers of the CUDA kernels: null on success, else CUDA's own words. No torch and no CUDA
// headers in here.
#pragma once

#include "../params.h"

namespace drrkit {
namespace cuda {

// What one integrator offers; defined in project.cuh, instantiated by joseph.cu, siddon.cu and
// trilinear.cu.
template <template <class> class March> struct CudaKernels {
  static const char* project(const ProjectParams& params, void* stream);
  static const char* second(const SecondParams& params, void* stream);
  static const char* backproject(const BackprojectParams& params, void* stream);
};

// Bytes of the workspace with which backproject gathers by voxel, which adds in a fixed order; 0
// where it scatters. A function of sizes alone, so that equal calls are equal.
int64_t gather_workspace(const BackprojectParams& params, bool fixed_order);
const char* gather(const BackprojectParams& params, void* stream);

const char* project(const ProjectParams& params, void* stream);
const char* second(const SecondParams& params, void* stream);
const char* backproject(const BackprojectParams& params, void* stream);
template <class S> const char* reduce(const ReduceParams<S>& params, void* stream);
template <class S> const char* tangent(const TangentParams<S>& params, void* stream);

// Perturb or Frames.
template <class Map> const char* map_poses(const MapParams& params, void* stream);

}  // namespace cuda
}  // namespace drrkit
