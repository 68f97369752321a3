// The kernels that write the volume: the adjoint of the image, or of its tangent, ray by ray.
//
// A sink takes (voxel, weight) pairs of one ray after the other. Lanes share rays as they do to
// read; along x, eight consecutive floats are one transaction of the atomic units, too.
#pragma once

#include "warps.cuh"

namespace drrkit {
namespace cuda {

// Where a ray's volume begins, and its cotangent, channel by channel.
template <class S> struct Target {
  int64_t voxels, n_rays, channels;
  int64_t offset;      // of the volume, in voxels of channel 0
  const S* cotangent;  // channel 0 of the ray's pixel
  S first;             // its value: mostly there is no other, and it stays in a register

  __device__ void aim(const S* pixel) {
    cotangent = pixel;
    first = *pixel;
  }
  // put(index of the voxel, term) for every channel.
  template <class Put> __device__ void each(int64_t at, S weight, const Put& put) const {
    put(offset + at, weight * first);
#pragma unroll 1
    for (int64_t c = 1; c < channels; ++c)
      put(offset + c * voxels + at, weight * cotangent[c * n_rays]);
  }
};

// Atomic sums, in whatever order they come.
template <class S> struct AtomicSink {
  S* values;
  Target<S> target;

  __device__ void begin() {}
  __device__ void add(int64_t at, S weight) {
    target.each(at, weight, [&](int64_t i, S term) { atomicAdd(values + i, term); });
  }
  __device__ void finish() {}
};

// The largest magnitude that is going to be added. NaN wins, then infinity.
template <class S> struct PeakSink {
  unsigned long long* peak;  // bits of a non-negative double order like the number
  Target<S> target;
  S largest;

  __device__ void begin() { largest = 0; }
  __device__ void add(int64_t at, S weight) {
    target.each(at, weight, [&](int64_t, S term) {
      const S size = term < 0 ? -term : term;
      if (size > largest || size != size) largest = size;
    });
  }
  __device__ void finish() {
    atomicMax(peak, __double_as_longlong(fabs(static_cast<double>(largest))));
  }
};

// The exponent of the power of two by which terms are multiplied before they are rounded.
__device__ inline int fixed_exponent(unsigned long long peak, int log_terms) {
  int of_peak = 0;
  frexp(__longlong_as_double(peak), &of_peak);  // peak < 2^of_peak
  return 62 - log_terms - of_peak;
}

// Sums of integers do not depend on their order. Terms are rounded to multiples of a power of two
// that leaves room for 2^log_terms of the largest; with 2^27 rays that is still 2^-35 of it.
template <class S> struct FixedSink {
  unsigned long long* fixed;
  const unsigned long long* peak;
  int log_terms;
  Target<S> target;
  double scale, rest;  // their product is the power, which may itself not be a double

  __device__ void begin() {
    const int exponent = fixed_exponent(*peak, log_terms);
    scale = ldexp(1.0, exponent / 2);
    rest = ldexp(1.0, exponent - exponent / 2);
  }
  __device__ void add(int64_t at, S weight) {
    target.each(at, weight, [&](int64_t i, S term) {
      const long long rounded = __double2ll_rn(static_cast<double>(term) * scale * rest);
      atomicAdd(fixed + i, static_cast<unsigned long long>(rounded));
    });
  }
  __device__ void finish() {}
};

template <bool kTangent>
__device__ Ray tangent_of(const BackprojectParams& params, const Pixel& pixel) {
  if (!kTangent || !pixel.real) return {{0, 0, 0}, {0, 0, 0}};
  return params.tangent.ray(pixel.view, pixel.index);
}

template <class March, bool kTangent, class Sink>
__global__ void __launch_bounds__(kThreads, 4)
    backproject_kernel(BackprojectParams params, WarpPlan plan, Sink sink) {
  using S = typename March::Scalar;
  __shared__ MarchBoard<March, S> board;
  const Scene& scene = params.scene;
  const Warp warp = Warp::of(scene, plan);
  if (!warp.real) return;
  const Pixel mine = warp.pixel(plan, threadIdx.x % kWarp >> plan.log_split);
  const March march = march_of<March>(scene, mine);
  const int64_t n = scene.views.n_rays, voxels = scene.grid.voxels(), channels = scene.n_channels;
  const S* images = static_cast<const S*>(params.images) + mine.view * channels * n;
  sink.target.voxels = voxels;
  sink.target.n_rays = n;
  sink.target.channels = channels;
  sink.target.offset = scene.volume_of(mine.view) * channels * voxels;
  sink.begin();
  if (!any_along_x(march)) {
    if (!mine.real) return;
    sink.target.aim(images + mine.index);
    own_part(march, plan.log_split)
        .template scatter<kTangent>(tangent_of<kTangent>(params, mine), 0, 1, sink);
    sink.finish();
    return;
  }
  const Handover<S> hand(plan.log_split);
  for (int first = 0; first < hand.rays(); first += hand.at_once()) {
    const March part = hand.take(march, first, board.of_warp());
    const Pixel other = warp.pixel(plan, hand.ray(first));
    if (!other.real) continue;
    sink.target.aim(images + other.index);
    part.template scatter<kTangent>(tangent_of<kTangent>(params, other), hand.lane_of_run(),
                                    hand.kLanes, sink);
  }
  sink.finish();
}

template <class S>
__global__ void from_fixed_kernel(const unsigned long long* fixed, const unsigned long long* peak,
                                  int log_terms, int64_t total, S* values) {
  const int64_t i = thread_of_grid();
  if (i >= total) return;
  const double largest = __longlong_as_double(*peak);
  // A term that is not finite has no fixed-point form, and no voxel can be trusted.
  if (!(largest <= 1e300)) {
    values[i] = static_cast<S>(not_a_number());
  } else {
    const double sum = static_cast<double>(static_cast<long long>(fixed[i]));
    values[i] = static_cast<S>(ldexp(sum, -fixed_exponent(*peak, log_terms)));
  }
}

template <class March, bool kTangent, class Sink>
const char* launch_scatter(const BackprojectParams& p, const Sink& sink, cudaStream_t stream) {
  const WarpPlan plan = WarpPlan::of(p.scene);
  return launch(backproject_kernel<March, kTangent, Sink>, plan.grid(), kThreads, stream, p, plan,
                sink);
}

// An upper bound of the logarithm of the number of terms that one voxel can get.
inline int log_terms(const Scene& scene) {
  const Vec3 size = scene.grid.spacing;
  const double samples = 2 * sqrt(dot(size, size)) / scene.trilinear.step + 4;  // a ray, a voxel
  return static_cast<int>(ceil(log2(samples * scene.n_views * scene.views.n_rays))) + 1;
}

template <class March, bool kTangent>
const char* backproject_fixed(const BackprojectParams& p, cudaStream_t stream) {
  using S = typename March::Scalar;
  auto* fixed = reinterpret_cast<unsigned long long*>(p.fixed);
  auto* peak = reinterpret_cast<unsigned long long*>(p.peak);
  const int terms = log_terms(p.scene);
  const int64_t total = p.scene.n_volumes * p.scene.n_channels * p.scene.grid.voxels();
  const char* error = launch_scatter<March, kTangent>(p, PeakSink<S>{peak, {}, 0}, stream);
  if (!error)
    error = launch_scatter<March, kTangent>(p, FixedSink<S>{fixed, peak, terms, {}, 0, 0}, stream);
  if (error) return error;
  return launch(from_fixed_kernel<S>, threads_grid(total, 256), 256, stream, fixed, peak, terms,
                total, static_cast<S*>(p.values));
}

template <class March, bool kTangent>
const char* backproject_sink(const BackprojectParams& p, cudaStream_t stream) {
  using S = typename March::Scalar;
  if (p.fixed) return backproject_fixed<March, kTangent>(p, stream);
  const AtomicSink<S> sink = {static_cast<S*>(p.values), {}};
  return launch_scatter<March, kTangent>(p, sink, stream);
}

template <class March>
const char* backproject_scalar(const BackprojectParams& p, cudaStream_t stream) {
  if (p.tangent.geometry) return backproject_sink<March, true>(p, stream);
  return backproject_sink<March, false>(p, stream);
}

}  // namespace cuda
}  // namespace drrkit
