// One plain struct per kernel: raw pointers and sizes. B views, C channels, N volumes (N divides B;
// view b reads volume b / (B / N)), P rays per view. Scalar is double for float64 volumes and float
// for all others.
#pragma once

#include "packed/empty_space.h"
#include "pose/frames.h"
#include "pose/perturb.h"
#include "rays/geometry.h"
#include "rays/joseph.h"
#include "rays/siddon.h"
#include "rays/trilinear.h"

namespace drrkit {

enum class Method { kJoseph = 0, kSiddon = 1, kTrilinear = 2 };

// The ops' `flags`. drrkit._C exports this layout, and Python composes flags by it.
struct Flags {
  static constexpr int64_t kTwoBits = 3, kBeamShift = 2;  // the method below, the beam above
  static constexpr int64_t kLine = 16, kFoot = 32;        // trilinear.h
  static constexpr int64_t kExtend = 64;                  // pose/frames.h

  Method method;
  Beam beam;
  bool line, foot, extend;

  explicit Flags(int64_t bits)
      : method(static_cast<Method>(bits & kTwoBits)),
        beam(static_cast<Beam>(bits >> kBeamShift & kTwoBits)),
        line(bits & kLine),
        foot(bits & kFoot),
        extend(bits & kExtend) {}
};

// How a volume is stored; as kInt16 by what is prepared alone: texels, with a scale.
enum class VoxelType { kFloat16, kBFloat16, kFloat32, kFloat64, kInt16 };
DRR_HD int64_t voxel_bytes(VoxelType voxel) {
  return voxel == VoxelType::kFloat64 ? 8 : voxel == VoxelType::kFloat32 ? 4 : 2;
}

struct Scene {
  Grid grid;
  Views views;
  int64_t n_views, n_channels, n_volumes;
  Method method;
  VoxelType voxel;  // storage of the volume; for results, kFloat32 or kFloat64
  TrilinearOptions trilinear;

  DRR_HD int64_t volume_of(int64_t view) const { return view / (n_views / n_volumes); }
};

// P, and the per-ray derivatives that come with it.
struct ProjectParams {
  Scene scene;
  const void* values;  // [N, C, nz, ny, nx] voxel type
  void* image;         // [B, C, P] Scalar
  void* six;  // [B, C, 6, P] Scalar: d image / d (source, target), index coordinates; or null
  // Where the volumes are zero; a march need not look.
  EmptySpace empty;
  const float* scale = nullptr;  // [N, C] the image of values is worth; null: 1
};

// P*, or with a tangent T*. The GPU adds into `values`, which the caller has zeroed.
struct BackprojectParams {
  Scene scene;
  Views tangent;       // geometry null: no tangent
  const void* images;  // [B, C, P] Scalar
  void* values;        // [N, C, nz, ny, nx] Scalar
  // For sums that do not depend on their order, where the device needs them; null otherwise.
  int64_t* fixed;  // [N, C, nz, ny, nx] zeroed: fixed-point sums
  int64_t* peak;   // [1] zeroed: bits of the largest double that is added
  // Where the device gathers by voxel instead, which needs no `fixed`: what it asked for, aligned
  // to 64 bytes. With less it takes fewer views at a time. Null otherwise.
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  // On the CPU: [N, C, nz, ny] zeroed. Rows of voxels that hold sums; others may hold anything.
  uint8_t* touched = nullptr;
};

// K: a cotangent of the rays' end points for each ray, channels summed.
struct SecondParams {
  Scene scene;
  Views tangent;
  const void* values;  // [N, C, nz, ny, nx] voxel type
  const void* images;  // [B, C, P] Scalar
  double* six;         // [B, 1, 6, P]
};

// sum over channels of cotangent times six-vector, gathered into frames or, for explicit rays, into
// end points.
template <class S> struct ReduceParams {
  Views views;  // geometry unused
  int64_t n_views, n_channels;
  const S* six;     // [B, C, 6, P]
  const S* images;  // [B, C, P], or null for ones
  double* partial;  // [B, chunks, 12] when gathering into frames
  double* out;      // [B, 4, 3] or [B, P, 2, 3]
};
// Rays per chunk; fixed, so that the order of the sums does not depend on the threads.
constexpr int64_t kReduceChunk = 1024;

// Channel-summed cotangent of one ray's end points.
template <class S>
DRR_HD Ray ray_cotangent(const ReduceParams<S>& params, int64_t view, int64_t pixel) {
  const int64_t n = params.views.n_rays;
  Ray total = {{0, 0, 0}, {0, 0, 0}};
  for (int64_t c = 0; c < params.n_channels; ++c) {
    const int64_t row = view * params.n_channels + c;
    const double g = params.images ? static_cast<double>(params.images[row * n + pixel]) : 1.0;
    const S* six = params.six + row * 6 * n + pixel;
    total.s = total.s + g * Vec3{double(six[0]), double(six[n]), double(six[2 * n])};
    total.p = total.p + g * Vec3{double(six[3 * n]), double(six[4 * n]), double(six[5 * n])};
  }
  return total;
}

// T from the six-vectors: image'[b, c, k, p] = six-vector . (s', p') of tangent k.
template <class S> struct TangentParams {
  Views tangents;  // of B * K views: frames [B, K, 4, 3], or end points with K = 1
  int64_t n_views, n_channels, n_tangents;
  const S* six;  // [B, C, 6, P]
  S* images;     // [B, C, K, P]
};

// All channels and tangents of one ray.
template <class S>
DRR_HD void apply_tangents(const TangentParams<S>& params, int64_t view, int64_t pixel) {
  const int64_t n = params.tangents.n_rays;
  for (int64_t k = 0; k < params.n_tangents; ++k) {
    const Ray t = params.tangents.ray(view * params.n_tangents + k, pixel);
    for (int64_t c = 0; c < params.n_channels; ++c) {
      const int64_t row = view * params.n_channels + c;
      const S* six = params.six + row * 6 * n + pixel;
      const Vec3 on_s = {double(six[0]), double(six[n]), double(six[2 * n])};
      const Vec3 on_p = {double(six[3 * n]), double(six[4 * n]), double(six[5 * n])};
      params.images[(row * params.n_tangents + k) * n + pixel] =
          static_cast<S>(dot(t.s, on_s) + dot(t.p, on_p));
    }
  }
}

// A Trilinear needs its options, the others do not.
template <class S>
DRR_HD void make_march(Joseph<S>& march, const Scene& scene, const Ray& ray, Slab slab) {
  march = Joseph<S>::make(scene.grid, ray, slab);
}
template <class S>
DRR_HD void make_march(Siddon<S>& march, const Scene& scene, const Ray& ray, Slab slab) {
  march = Siddon<S>::make(scene.grid, ray, slab);
}
template <class S>
DRR_HD void make_march(Trilinear<S>& march, const Scene& scene, const Ray& ray, Slab slab) {
  march = Trilinear<S>::make(scene.grid, ray, slab, scene.trilinear);
}

}  // namespace drrkit
