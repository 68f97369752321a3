// Joseph's method over a prepared volume. Every ray chooses the texture or the layout of its own
// dominant axis, so launches may mix them; warps, and lanes that share a ray, as in warps.cuh.
#include "packed.h"
#include "project.cuh"

namespace drrkit {
namespace cuda {

namespace {

// A run of consecutive samples out of `of`.
__device__ Samples between(const Samples& of, int begin, int end) {
  return {begin, minimum(maximum(of.inner_begin, begin), end),
          minimum(maximum(of.inner_end, begin), end), end};
}

// A lane's part of a ray: its run of those samples that lie in the box of what is not zero.
struct Part {
  Samples samples;
  Line<float> line;
  bool sparse;  // whether to look bricks up

  __device__ static Part of(const Joseph<float>& r, const EmptySpace& empty, int64_t volume,
                            int log_split) {
    Part part;
    part.line =
        Line<float>::of(r.m, static_cast<float>(r.plane), r.at_a, r.at_b, r.step_a, r.step_b);
    const Occupied& box = empty.occupied[volume];
    int begin = r.samples.begin, end = r.samples.end;
    narrow_to_box(box, part.line, begin, end);
    const int lane = threadIdx.x & ((1 << log_split) - 1);
    part.samples = run_of(between(r.samples, begin, end), lane, log_split);
    part.sparse = box.sparse != 0;
    return part;
  }

  // Calls body(samples) for the stretches that can meet something.
  template <class Body>
  __device__ void march(const EmptySpace& empty, int64_t volume, const Body& body) const {
    if (!sparse) return body(samples);
    const BrickWalk<float> walk(empty, volume, line);
    for (int k = samples.begin; k < samples.end;) {
      const auto run = walk.run(k, samples.end);
      if (!run.empty) body(between(samples, k, run.end));
      k = run.end;
    }
  }
};

// One fetch a sample. Texel i is centred at i + 1/2.
__device__ __forceinline__ void fetch(unsigned long long texture, const Joseph<float>& r,
                                      const Samples& samples, float& sum) {
  const float at_a = r.at_a + 0.5f, at_b = r.at_b + 0.5f;
  const int plane = static_cast<int>(r.plane);
#pragma unroll 4
  for (int k = samples.begin; k < samples.end; ++k) {
    const float kk = static_cast<float>(k);
    sum += tex2DLayered<float>(texture, at_a + kk * r.step_a, at_b + kk * r.step_b, plane + k);
  }
}

// Images by textures, whose texels lie in blocks: square plan of rays suit every direction.
__global__ void __launch_bounds__(kThreads, 8)  // 64 registers: the march needs no more
    textures_kernel(ProjectParams params, PackedArrays arrays, WarpPlan plan) {
  using March = Joseph<float>;
  const Scene& scene = params.scene;
  const Warp warp = Warp::of(scene, plan, Warp::compact);
  if (!warp.real) return;
  const Pixel mine = warp.pixel(plan, threadIdx.x % kWarp >> plan.log_split);
  const March r = march_of<March>(scene, mine);
  const int64_t volume = scene.volume_of(mine.view), channels = scene.n_channels;
  const Part part = Part::of(r, params.empty, volume, plan.log_split);
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t image = volume * channels + c;
    March::Sums sums;
    // One axis after the other: a texture is the same for all lanes that fetch from it.
#pragma unroll 1
    for (int axis = 0; axis < 3; ++axis) {
      if (r.m != axis) continue;
      const unsigned long long texture = arrays.textures[3 * image + axis];
      part.march(params.empty, volume,
                 [&](const Samples& samples) { fetch(texture, r, samples, sums.v); });
    }
    add_up<March, 0>(sums, plan.log_split);
    sums.v *= arrays.scale[image];
    if (writes(mine, plan.log_split))
      store_image<float, false>(params, mine.view * channels + c, mine.index, r, sums);
  }
}

// The direction that is contiguous for most rays of a view: x, but y where they run along x.
__device__ int side_by_side_of_copy(const Scene& scene, const WarpPlan& t, int64_t view) {
  if (!t.frames) return Warp::compact(scene, t, view);
  const double* frame = scene.views.geometry + 12 * view;
  const Vec3 u = {frame[6], frame[7], frame[8]}, v = {frame[9], frame[10], frame[11]};
  const Vec3 normal = {u.y * v.z - u.z * v.y, u.z * v.x - u.x * v.z, u.x * v.y - u.y * v.x};
  const int axis = dominant_axis(normal) == 0 ? 1 : 0;
  return Warp::along(t, static_cast<float>(u[axis]), static_cast<float>(v[axis]));
}

// Images and derivatives. Rays along x read the copy with x slowest, all others the values: either
// way the first lateral axis is contiguous.
template <class Voxel, class Index>
__global__ void __launch_bounds__(kThreads, blocks_of<float>(1))
    copy_kernel(ProjectParams params, PackedArrays arrays, WarpPlan plan) {
  using March = Joseph<float>;
  const Scene& scene = params.scene;
  const Warp warp = Warp::of(scene, plan, side_by_side_of_copy);
  if (!warp.real) return;
  const Pixel mine = warp.pixel(plan, threadIdx.x % kWarp >> plan.log_split);
  March r = march_of<March>(scene, mine);
  const int64_t channels = scene.n_channels, voxels = scene.grid.voxels();
  const int64_t view_volume = scene.volume_of(mine.view);
  const Part part = Part::of(r, params.empty, view_volume, plan.log_split);
  r.stride_a = 1;
  if (r.m == 0) {  // [x, z, y]
    r.stride_b = scene.grid.ny;
    r.stride_m = scene.grid.ny * scene.grid.nz;
  }
  const Voxel* volume = static_cast<const Voxel*>(r.m == 0 ? arrays.copy : params.values) +
                        view_volume * channels * voxels;
  for (int64_t c = 0; c < channels; ++c, volume += voxels) {
    March::Sums sums;
    part.march(params.empty, view_volume, [&](const Samples& samples) {
      March stretch = r;
      stretch.samples = samples;
      stretch.template gather<1, Voxel, Index>(volume, 0, 1, sums);
    });
    add_up<March, 1>(sums, plan.log_split);
    if (writes(mine, plan.log_split))
      store_image<float, true>(params, mine.view * channels + c, mine.index, r, sums);
  }
}

const char* launch_textures(const ProjectParams& p, const Packed& packed, cudaStream_t stream) {
  const WarpPlan plan = WarpPlan::of(p.scene);
  return launch(textures_kernel, plan.grid(), kThreads, stream, p, packed.arrays, plan);
}

template <class Voxel>
const char* launch_copy(const ProjectParams& p, const Packed& packed, cudaStream_t stream) {
  const WarpPlan plan = WarpPlan::of(p.scene);
  if (small(p.scene.grid))
    return launch(copy_kernel<Voxel, int32_t>, plan.grid(), kThreads, stream, p, packed.arrays,
                  plan);
  return launch(copy_kernel<Voxel, int64_t>, plan.grid(), kThreads, stream, p, packed.arrays, plan);
}

}  // namespace

bool project_packed(const ProjectParams& p, const Packed& packed, void* stream,
                    const char** error) {
  cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (p.scene.method != Method::kJoseph || p.scene.voxel == VoxelType::kFloat64) return false;
  if (!p.six) {
    if (!packed.arrays.textures) return false;
    *error = launch_textures(p, packed, s);
    return true;
  }
  if (!packed.arrays.copy) return false;
  switch (p.scene.voxel) {
    case VoxelType::kFloat16: *error = launch_copy<Half>(p, packed, s); break;
    case VoxelType::kBFloat16: *error = launch_copy<BFloat16>(p, packed, s); break;
    default: *error = launch_copy<float>(p, packed, s); break;
  }
  return true;
}

}  // namespace cuda
}  // namespace drrkit
