// Host/device macros, small vectors and voxel loads: what lets one line of ray mathematics serve
// both devices.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DRR_HD __host__ __device__ __forceinline__
#else
#define DRR_HD inline __attribute__((always_inline))
#endif

// What a GPU executes: seen by nvcc's pass for one, and by the emulator's build that does as it
// does.
#if defined(__CUDA_ARCH__) || defined(DRRKIT_EMULATED_DEVICE)
#define DRR_ON_DEVICE
#endif

namespace drrkit {

struct Vec3 {
  double x, y, z;
  // Selected by comparison, not by address: an indexed array would live in local memory on a GPU.
  DRR_HD double operator[](int axis) const { return axis == 0 ? x : axis == 1 ? y : z; }
};

DRR_HD Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
DRR_HD Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
DRR_HD Vec3 operator*(double f, Vec3 a) { return {f * a.x, f * a.y, f * a.z}; }
DRR_HD Vec3 operator*(Vec3 a, Vec3 b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
DRR_HD double dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

// A vector from its components along the axes m, a, b (a permutation of 0, 1, 2).
DRR_HD Vec3 from_axes(int m, int a, double on_m, double on_a, double on_b) {
  return {m == 0   ? on_m
          : a == 0 ? on_a
                   : on_b,
          m == 1   ? on_m
          : a == 1 ? on_a
                   : on_b,
          m == 2   ? on_m
          : a == 2 ? on_a
                   : on_b};
}

template <class T> DRR_HD T minimum(T a, T b) { return b < a ? b : a; }
template <class T> DRR_HD T maximum(T a, T b) { return a < b ? b : a; }

// Floor of any number at all: those that no grid reaches, and NaN, give an index that none has.
DRR_HD int floor_int(float x) { return static_cast<int>(floorf(minimum(1e9f, maximum(-1e9f, x)))); }
DRR_HD int floor_int(double x) { return static_cast<int>(floor(minimum(1e9, maximum(-1e9, x)))); }

// Arithmetic of one ray. The CPU marches many rays at once with the same formulas: cpu/lanes.h has
// the same members for vectors.
template <class S> struct OneRay {
  using Number = S;
  using Value = S;
  using Index = int;
  DRR_HD static S of(int i) { return static_cast<S>(i); }
  DRR_HD static int floored(S x) { return floor_int(x); }
  DRR_HD static int truncated(S x) { return static_cast<int>(x); }
  DRR_HD static S pick(bool first, S a, S b) { return first ? a : b; }
  DRR_HD static int pick(bool first, int a, int b) { return first ? a : b; }
};

// Storage types narrower than the arithmetic. Only loads are needed: every result is float or
// double.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

DRR_HD float load(const float* p) { return *p; }
DRR_HD double load(const double* p) { return *p; }
DRR_HD float load(const int16_t* p) { return *p; }
DRR_HD float load(const BFloat16* p) {
  uint32_t word = static_cast<uint32_t>(p->bits) << 16;
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}
DRR_HD float load(const Half* p) {
#if defined(DRR_ON_DEVICE)
  return __half2float(__ushort_as_half(p->bits));
#elif defined(__FLT16_MANT_DIG__) && !defined(__CUDACC__)
  _Float16 value;
  memcpy(&value, &p->bits, sizeof value);
  return static_cast<float>(value);
#else
  // Shift the fields into a float's; the multiplication moves the exponent bias and normalises
  // subnormals.
  uint32_t magnitude = static_cast<uint32_t>(p->bits & 0x7fffu) << 13;
  if ((p->bits & 0x7c00u) == 0x7c00u) magnitude |= 0x70000000u;
  float value;
  memcpy(&value, &magnitude, sizeof value);
  if ((p->bits & 0x7c00u) != 0x7c00u) value *= 5.192296858534828e33f;  // 2^112
  return p->bits & 0x8000u ? -value : value;
#endif
}

}  // namespace drrkit
