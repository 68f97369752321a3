// Dispatch over integrators, and the reductions over rays that need no volume.
#include "kernels.h"

#include <cstdlib>
#include <memory>

#include "panel.h"

namespace drrkit {
namespace cpu {

namespace {

Level detect() {
#if defined(DRR_X86_VARIANTS)
  // An upper bound that tests and users can set; it never enables what the processor lacks.
  const char* name = std::getenv("DRRKIT_CPU_CAPABILITY");
  const bool base = name && !std::strcmp(name, "base"),
             avx2_at_most = name && !std::strcmp(name, "avx2");
  if (base) return Level::kBase;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw");
  if (avx512 && !avx2_at_most) return Level::kAvx512;
  if (avx2) return Level::kAvx2;
#endif
  return Level::kBase;
}

}  // namespace

Level level() {
  static const Level detected = detect();
  return detected;
}

const char* capability() {
  switch (level()) {
    case Level::kAvx512: return "avx512";
    case Level::kAvx2: return "avx2";
    default: return "base";
  }
}

void* room(size_t bytes) {
  constexpr size_t kLine = 64;
  static thread_local std::unique_ptr<unsigned char[]> kept;
  static thread_local size_t size = 0;
  if (bytes + kLine > size) {
    kept.reset(new unsigned char[bytes + kLine]);
    size = bytes + kLine;
  }
  const uintptr_t at = reinterpret_cast<uintptr_t>(kept.get());
  return reinterpret_cast<void*>((at + kLine - 1) / kLine * kLine);
}

namespace {

// Calls `run` with the kernels of a method on this processor.
template <template <class> class March, template <class, int> class Tile, class Run>
void on_level(const Run& run) {
  switch (level()) {
#if defined(DRR_X86_VARIANTS)
    case Level::kAvx512: return run(CpuKernels<March, Tile, Level::kAvx512>());
    case Level::kAvx2: return run(CpuKernels<March, Tile, Level::kAvx2>());
#endif
    default: return run(CpuKernels<March, Tile, Level::kBase>());
  }
}

template <class Run> void with_kernels(Method method, const Run& run) {
  switch (method) {
    case Method::kJoseph: return on_level<Joseph, JosephTile>(run);
    case Method::kSiddon: return on_level<Siddon, SiddonTile>(run);
    case Method::kTrilinear: return on_level<Trilinear, TrilinearTile>(run);
  }
}

}  // namespace

int64_t panels(const Scene& scene) {
  const int lanes =
      scene.voxel == VoxelType::kFloat64 ? lanes_of<double>(level()) : lanes_of<float>(level());
  return scene.n_views * Panels::of(scene.views, lanes).a_view();
}

void project(const ProjectParams& params, int64_t panel_begin, int64_t panel_end) {
  with_kernels(params.scene.method,
               [&](auto kernels) { kernels.project(params, panel_begin, panel_end); });
}

void second(const SecondParams& params, int64_t panel_begin, int64_t panel_end) {
  with_kernels(params.scene.method,
               [&](auto kernels) { kernels.second(params, panel_begin, panel_end); });
}

void backproject(const BackprojectParams& params, int64_t volume, Slab slab) {
  with_kernels(params.scene.method,
               [&](auto kernels) { kernels.backproject(params, volume, slab); });
}

template <class S>
void reduce_chunks(const ReduceParams<S>& params, int64_t chunk_begin, int64_t chunk_end) {
  const int64_t n = params.views.n_rays, chunks = (n + kReduceChunk - 1) / kReduceChunk;
  for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
    const int64_t view = chunk / chunks, first = chunk % chunks * kReduceChunk;
    const int64_t last = minimum(first + kReduceChunk, n);
    Vec3 on_s = {0, 0, 0}, on_o = {0, 0, 0}, on_u = {0, 0, 0}, on_v = {0, 0, 0};
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const Ray g = ray_cotangent(params, view, pixel);
      const Vec3 moved =
          params.views.beam == Beam::kParallel ? g.s + g.p : g.p;  // what a step of the pixel moves
      on_s = on_s + g.s;
      on_o = on_o + g.p;
      on_u = on_u + static_cast<double>(pixel % params.views.cols) * moved;
      on_v = on_v + static_cast<double>(pixel / params.views.cols) * moved;
    }
    const Vec3 rows[4] = {on_s, on_o, on_u, on_v};
    for (int row = 0; row < 4; ++row)
      for (int axis = 0; axis < 3; ++axis)
        params.partial[12 * chunk + 3 * row + axis] = rows[row][axis];
  }
}

template <class S>
void reduce_rays(const ReduceParams<S>& params, int64_t ray_begin, int64_t ray_end) {
  for (int64_t r = ray_begin; r < ray_end; ++r) {
    const Ray g = ray_cotangent(params, r / params.views.n_rays, r % params.views.n_rays);
    for (int axis = 0; axis < 3; ++axis) {
      params.out[6 * r + axis] = g.s[axis];
      params.out[6 * r + 3 + axis] = g.p[axis];
    }
  }
}

template <class S>
void tangent(const TangentParams<S>& params, int64_t ray_begin, int64_t ray_end) {
  const int64_t n = params.tangents.n_rays;
  for (int64_t r = ray_begin; r < ray_end; ++r) apply_tangents(params, r / n, r % n);
}

template void reduce_chunks(const ReduceParams<float>&, int64_t, int64_t);
template void reduce_chunks(const ReduceParams<double>&, int64_t, int64_t);
template void reduce_rays(const ReduceParams<float>&, int64_t, int64_t);
template void reduce_rays(const ReduceParams<double>&, int64_t, int64_t);
template void tangent(const TangentParams<float>&, int64_t, int64_t);
template void tangent(const TangentParams<double>&, int64_t, int64_t);

}  // namespace cpu
}  // namespace drrkit
