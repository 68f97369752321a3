// What the gather computes in another way on a GPU than its twin on the host does. The emulator has
// a build that executes the GPU's lines, with the worst that PTX allows where it allows for errors.
#pragma once

#include "../../rays/hd.h"

namespace drrkit {
namespace cuda {

template <class T> DRR_HD T fetch(const T* p) {
#if defined(DRR_ON_DEVICE)
  return __ldg(p);
#else
  return *p;
#endif
}

// x, unless it is beyond the bound or not a number.
DRR_HD float at_least(float bound, float x) {
#if defined(DRR_ON_DEVICE)
  return fmaxf(bound, x);
#else
  return bound < x ? x : bound;
#endif
}
DRR_HD float at_most(float bound, float x) {
#if defined(DRR_ON_DEVICE)
  return fminf(bound, x);
#else
  return x < bound ? x : bound;
#endif
}
DRR_HD double at_least(double bound, double x) { return bound < x ? x : bound; }
DRR_HD double at_most(double bound, double x) { return x < bound ? x : bound; }

// x y + z, rounded once, whatever the compiler: equal numbers give equal positions everywhere.
DRR_HD float fused(float x, float y, float z) { return fmaf(x, y, z); }
DRR_HD double fused(double x, double y, double z) { return fma(x, y, z); }

// What ceil and floor are for numbers that are certainly small: on a GPU conversions run at a
// sixteenth of the rate of additions, and adding 1.5 x 2^23 rounds to whole numbers as well.
DRR_HD float round_up(float x) {
#if defined(DRR_ON_DEVICE)
  return __fadd_ru(x, 12582912.0f) - 12582912.0f;
#else
  return ceilf(x);
#endif
}
DRR_HD float round_down(float x) {
#if defined(DRR_ON_DEVICE)
  return __fadd_rd(x, 12582912.0f) - 12582912.0f;
#else
  return floorf(x);
#endif
}
DRR_HD double round_up(double x) { return ceil(x); }
DRR_HD double round_down(double x) { return floor(x); }
DRR_HD int whole(float x) {  // of a small whole number
#if defined(DRR_ON_DEVICE)
  return __float_as_int(x + 12582912.0f) - 0x4b400000;
#else
  return static_cast<int>(x);
#endif
}
DRR_HD int whole(double x) { return static_cast<int>(x); }

// 1 / x to one unit in the last place, in one instruction.
DRR_HD float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#elif defined(DRR_ON_DEVICE)
  return emulated::rcp_approx_ftz(x);
#else
  return 1 / x;
#endif
}
DRR_HD double reciprocal(double x) { return 1 / x; }

// Left alone, the compiler holds a whole bundle in registers, spills others, and then fetches what
// the innermost loop needs with every pixel. The first of these makes it fetch anew, from shared
// memory; the second makes it keep a value.
DRR_HD void read_anew() {
#if defined(__CUDA_ARCH__)
  asm volatile("" ::: "memory");
#endif
}
DRR_HD float in_register(float x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+f"(x));
#endif
  return x;
}
DRR_HD double in_register(double x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+d"(x));
#endif
  return x;
}
DRR_HD int64_t in_register(int64_t x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

}  // namespace cuda
}  // namespace drrkit
