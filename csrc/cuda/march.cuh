// What one integrator offers, by storage type; joseph.cu, siddon.cu and trilinear.cu instantiate
// one each.
#pragma once

#include "gather.cuh"
#include "scatter.cuh"

namespace drrkit {
namespace cuda {

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
