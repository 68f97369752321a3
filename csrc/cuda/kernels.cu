// Dispatch over integrators, and the reductions over rays that need no volume.
#include "kernels.h"

#include "launch.cuh"

namespace drrkit {
namespace cuda {

namespace {

constexpr int kReduceThreads = 256, kNumbers = 12;

__device__ double warp_sum(double x) {
  for (int apart = kWarp / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(kAllLanes, x, apart);
  return x;
}

// One block per chunk of rays of a view: lanes, then warps, added in a fixed order.
template <class S> __global__ void reduce_chunks_kernel(ReduceParams<S> params) {
  __shared__ double board[kReduceThreads / kWarp][kNumbers];
  const int64_t view = view_of_block(), first = blockIdx.x * kReduceChunk;
  if (view >= params.n_views) return;
  const int64_t last = minimum(first + kReduceChunk, params.views.n_rays);
  Vec3 on_s = {0, 0, 0}, on_o = {0, 0, 0}, on_u = {0, 0, 0}, on_v = {0, 0, 0};
  for (int64_t pixel = first + threadIdx.x; pixel < last; pixel += kReduceThreads) {
    const Ray g = ray_cotangent(params, view, pixel);
    const Vec3 moved = params.views.beam == Beam::kParallel ? g.s + g.p : g.p;
    on_s = on_s + g.s;
    on_o = on_o + g.p;
    on_u = on_u + static_cast<double>(pixel % params.views.cols) * moved;
    on_v = on_v + static_cast<double>(pixel / params.views.cols) * moved;
  }
  const double numbers[kNumbers] = {on_s.x, on_s.y, on_s.z, on_o.x, on_o.y, on_o.z,
                                    on_u.x, on_u.y, on_u.z, on_v.x, on_v.y, on_v.z};
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) {
    const double sum = warp_sum(numbers[i]);
    if (threadIdx.x % kWarp == 0) board[threadIdx.x / kWarp][i] = sum;
  }
  __syncthreads();
  if (threadIdx.x < kNumbers) {
    double sum = 0;
    for (int warp = 0; warp < kReduceThreads / kWarp; ++warp) sum += board[warp][threadIdx.x];
    params.partial[kNumbers * (view * gridDim.x + blockIdx.x) + threadIdx.x] = sum;
  }
}

// One block per view, one warp per number of its frame.
__global__ void reduce_views_kernel(const double* partial, double* out, int64_t views,
                                    int64_t chunks) {
  const int lane = threadIdx.x % kWarp, i = threadIdx.x / kWarp;
  const int64_t view = view_of_block();
  if (view >= views) return;
  double sum = 0;
  for (int64_t chunk = lane; chunk < chunks; chunk += kWarp)
    sum += partial[kNumbers * (view * chunks + chunk) + i];
  sum = warp_sum(sum);
  if (lane == 0) out[kNumbers * view + i] = sum;
}

template <class S> __global__ void reduce_rays_kernel(ReduceParams<S> params, int64_t total) {
  const int64_t r = thread_of_grid();
  if (r >= total) return;
  const Ray g = ray_cotangent(params, r / params.views.n_rays, r % params.views.n_rays);
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    params.out[6 * r + axis] = g.s[axis];
    params.out[6 * r + 3 + axis] = g.p[axis];
  }
}

template <class S> __global__ void tangent_kernel(TangentParams<S> params, int64_t total) {
  const int64_t r = thread_of_grid();
  if (r < total) apply_tangents(params, r / params.tangents.n_rays, r % params.tangents.n_rays);
}

}  // namespace

const char* project(const ProjectParams& params, void* stream) {
  switch (params.scene.method) {
    case Method::kJoseph: return CudaKernels<Joseph>::project(params, stream);
    case Method::kSiddon: return CudaKernels<Siddon>::project(params, stream);
    default: return CudaKernels<Trilinear>::project(params, stream);
  }
}

const char* second(const SecondParams& params, void* stream) {
  switch (params.scene.method) {
    case Method::kJoseph: return CudaKernels<Joseph>::second(params, stream);
    case Method::kSiddon: return CudaKernels<Siddon>::second(params, stream);
    default: return CudaKernels<Trilinear>::second(params, stream);
  }
}

const char* backproject(const BackprojectParams& params, void* stream) {
  if (params.workspace) return gather(params, stream);
  switch (params.scene.method) {
    case Method::kJoseph: return CudaKernels<Joseph>::backproject(params, stream);
    case Method::kSiddon: return CudaKernels<Siddon>::backproject(params, stream);
    default: return CudaKernels<Trilinear>::backproject(params, stream);
  }
}

template <class S> const char* reduce(const ReduceParams<S>& params, void* stream) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (params.views.endpoints) {
    const int64_t total = params.n_views * params.views.n_rays;
    return launch(reduce_rays_kernel<S>, threads_grid(total, kReduceThreads), kReduceThreads, s,
                  params, total);
  }
  const int64_t chunks = (params.views.n_rays + kReduceChunk - 1) / kReduceChunk;
  const char* error = launch(reduce_chunks_kernel<S>, views_grid(chunks, params.n_views),
                             kReduceThreads, s, params);
  if (error) return error;
  return launch(reduce_views_kernel, views_grid(1, params.n_views), kWarp * kNumbers, s,
                params.partial, params.out, params.n_views, chunks);
}

template <class S> const char* tangent(const TangentParams<S>& params, void* stream) {
  const int64_t total = params.n_views * params.tangents.n_rays;
  return launch(tangent_kernel<S>, threads_grid(total, kReduceThreads), kReduceThreads,
                static_cast<cudaStream_t>(stream), params, total);
}

template const char* reduce(const ReduceParams<float>&, void*);
template const char* reduce(const ReduceParams<double>&, void*);
template const char* tangent(const TangentParams<float>&, void*);
template const char* tangent(const TangentParams<double>&, void*);

}  // namespace cuda
}  // namespace drrkit
