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

__device__ Line<float> line_of(const Joseph<float>& r) {
  return Line<float>::of(r.m, static_cast<float>(r.plane), r.at_a, r.at_b, r.step_a, r.step_b);
}

// A lane's part of a ray: its run of those samples that lie in the box of what is not zero.
struct Part {
  Samples samples;
  bool sparse;  // whether to look bricks up

  __device__ static Part of(const Joseph<float>& r, const EmptySpace& empty, int64_t volume,
                            int log_split) {
    const Occupied& box = empty.occupied[volume];
    int begin = r.samples.begin, end = r.samples.end;
    narrow_to_box(box, line_of(r), begin, end);
    const int lane = threadIdx.x & ((1 << log_split) - 1);
    return {run_of(between(r.samples, begin, end), lane, log_split), box.sparse != 0};
  }

  // Calls body(samples) for the stretches of r that can meet something.
  template <class Body>
  __device__ void march(const Joseph<float>& r, const EmptySpace& empty, int64_t volume,
                        const Body& body) const {
    if (!sparse) return body(samples);
    const BrickWalk<float> walk(empty, volume, line_of(r));
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
  // In 32 bits, from the block's number alone: what the compiler then knows to be the same for all
  // lanes. There are fewer views and textures than 2^31.
  const unsigned view = blockIdx.z * gridDim.y + blockIdx.y;
  const unsigned per_volume =
      static_cast<unsigned>(scene.n_views) / static_cast<unsigned>(scene.n_volumes);
  const int channels = static_cast<int>(scene.n_channels);
  const int volume = static_cast<int>(view / per_volume);
  const Part part = Part::of(r, params.empty, volume, plan.log_split);
  for (int c = 0; c < channels; ++c) {
    const int image = volume * channels + c;
    March::Sums sums;
    // A texture is fetched from without a loop over the lanes' handles only where the compiler sees
    // that all of them have one: so all three are read before the lanes part.
    const unsigned long long* handles = arrays.textures + 3 * image;
    const unsigned long long across_x = __ldg(handles), across_y = __ldg(handles + 1),
                             across_z = __ldg(handles + 2);
    const auto march = [&](unsigned long long texture) {
      part.march(r, params.empty, volume,
                 [&](const Samples& samples) { fetch(texture, r, samples, sums.v); });
    };
    if (r.m == 0) march(across_x);
    if (r.m == 1) march(across_y);
    if (r.m == 2) march(across_z);
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
    part.march(r, params.empty, view_volume, [&](const Samples& samples) {
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
  const WarpPlan plan = WarpPlan::of(p.scene, kTextureWarpsWanted);
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

const char* launch_packed(const ProjectParams& p, const Packed& packed, cudaStream_t stream) {
  if (!p.six) return launch_textures(p, packed, stream);
  switch (p.scene.voxel) {
    case VoxelType::kFloat16: return launch_copy<Half>(p, packed, stream);
    case VoxelType::kBFloat16: return launch_copy<BFloat16>(p, packed, stream);
    default: return launch_copy<float>(p, packed, stream);
  }
}

}  // namespace

bool project_packed(const ProjectParams& p, const PackedPtr& packed, void* stream,
                    const char** error) {
  if (p.scene.method != Method::kJoseph || p.scene.voxel == VoxelType::kFloat64) return false;
  if (p.six ? !packed->arrays.copy : !packed->arrays.textures) return false;
  *error = begin_read(packed, stream);
  if (!*error) *error = launch_packed(p, *packed, static_cast<cudaStream_t>(stream));
  if (!*error) *error = end_read(packed, stream);
  return true;
}

}  // namespace cuda
}  // namespace drrkit
