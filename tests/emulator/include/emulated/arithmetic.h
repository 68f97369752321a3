// Device functions of one thread: reinterpretation, rounding, minima, loads and atomics. Signatures
// are CUDA's own, so that what nvcc would refuse does not compile here either.
#pragma once

#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
// Volatile, so that the addition stays between the two changes of the rounding mode.
inline float __fadd_towards(int mode, float x, float y) {
  volatile float a = x, b = y;
  const int before = std::fegetround();
  std::fesetround(mode);
  volatile float sum = a + b;
  std::fesetround(before);
  return sum;
}
inline float __fadd_ru(float a, float b) { return __fadd_towards(FE_UPWARD, a, b); }
inline float __fadd_rd(float a, float b) { return __fadd_towards(FE_DOWNWARD, a, b); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

namespace emulated {

// A GPU's conversions saturate, and turn NaN into 0 (32 bits) or the least integer (64 bits).
template <class Integer> inline Integer saturate(double x) {
  constexpr Integer least = static_cast<Integer>(Integer(1) << (8 * sizeof(Integer) - 1));
  if (x != x) return sizeof(Integer) == 4 ? 0 : least;
  const double limit = std::ldexp(1.0, 8 * sizeof(Integer) - 1);
  if (x < -limit) return least;
  if (x >= limit) return static_cast<Integer>(~least);
  return static_cast<Integer>(x);
}

}  // namespace emulated

struct __half {
  unsigned short bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  float value = std::ldexp(static_cast<float>(fraction + (exponent ? 1024 : 0)),
                           (exponent ? exponent : 1) - 25);
  if (exponent == 31) value = fraction ? NAN : INFINITY;
  return x.bits & 0x8000 ? -value : value;
}

namespace emulated {

// PTX's rcp.approx.ftz.f32: numbers below 2^-126 are 0, and results may be off by one unit in the
// last place. Here they always are, to a side that hangs on the argument's bits.
inline float rcp_approx_ftz(float x) {
  const float exact = 1 / (std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x);
  if (!(std::fabs(exact) >= 0x1p-126f)) return exact != exact ? exact : std::copysign(0.0f, exact);
  if (std::isinf(exact)) return exact;
  const bool up = std::popcount(std::bit_cast<uint32_t>(x) * 0x9e3779b9u) & 1;
  return std::nextafter(exact, up ? INFINITY : -INFINITY);
}

}  // namespace emulated

inline int __float2int_rd(float x) { return emulated::saturate<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return emulated::saturate<int>(std::ceil(x)); }
inline int __float2int_rn(float x) { return emulated::saturate<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return emulated::saturate<int>(std::trunc(x)); }
inline int __double2int_rd(double x) { return emulated::saturate<int>(std::floor(x)); }
inline int __double2int_ru(double x) { return emulated::saturate<int>(std::ceil(x)); }
inline int __double2int_rn(double x) { return emulated::saturate<int>(std::nearbyint(x)); }
inline int __double2int_rz(double x) { return emulated::saturate<int>(std::trunc(x)); }
inline long long __double2ll_rn(double x) {
  return emulated::saturate<long long>(std::nearbyint(x));
}
inline long long __double2ll_rd(double x) { return emulated::saturate<long long>(std::floor(x)); }
inline long long __float2ll_rn(float x) { return emulated::saturate<long long>(std::nearbyint(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

#define EMULATED_EXTREMA(type)                              \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
EMULATED_EXTREMA(int)
EMULATED_EXTREMA(unsigned)
EMULATED_EXTREMA(long)
EMULATED_EXTREMA(unsigned long)
EMULATED_EXTREMA(long long)
EMULATED_EXTREMA(unsigned long long)
#undef EMULATED_EXTREMA
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T __ldcs(const T* address) { return *address; }
template <class T> inline T __ldcg(const T* address) { return *address; }
template <class T> inline void __stcs(T* address, T value) { *address = value; }

// Atomic because a fiber runs until it waits. Only the types that CUDA has.
#define EMULATED_ATOMIC(name, type, result)     \
  inline type name(type* address, type value) { \
    const type old = *address;                  \
    *address = result;                          \
    return old;                                 \
  }
EMULATED_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + value))
EMULATED_ATOMIC(atomicAdd, unsigned, old + value)
EMULATED_ATOMIC(atomicAdd, unsigned long long, old + value)
EMULATED_ATOMIC(atomicAdd, float, old + value)
EMULATED_ATOMIC(atomicAdd, double, old + value)
EMULATED_ATOMIC(atomicMax, int, max(old, value))
EMULATED_ATOMIC(atomicMax, unsigned, max(old, value))
EMULATED_ATOMIC(atomicMax, long long, max(old, value))
EMULATED_ATOMIC(atomicMax, unsigned long long, max(old, value))
EMULATED_ATOMIC(atomicMin, int, min(old, value))
EMULATED_ATOMIC(atomicMin, unsigned, min(old, value))
EMULATED_ATOMIC(atomicMin, long long, min(old, value))
EMULATED_ATOMIC(atomicMin, unsigned long long, min(old, value))
EMULATED_ATOMIC(atomicOr, unsigned, old | value)
EMULATED_ATOMIC(atomicAnd, unsigned, old& value)
EMULATED_ATOMIC(atomicExch, int, value)
EMULATED_ATOMIC(atomicExch, unsigned, value)
EMULATED_ATOMIC(atomicExch, unsigned long long, value)
EMULATED_ATOMIC(atomicExch, float, value)
#undef EMULATED_ATOMIC

inline unsigned atomicCAS(unsigned* address, unsigned compare, unsigned value) {
  const unsigned old = *address;
  if (old == compare) *address = value;
  return old;
}
inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long compare,
                                    unsigned long long value) {
  const unsigned long long old = *address;
  if (old == compare) *address = value;
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
