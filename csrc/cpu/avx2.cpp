// The kernels for processors with AVX2, FMA and F16C: see dispatch.h.
// The standard library comes first, untouched by the switch.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dispatch.h"

#if defined(DRR_X86_VARIANTS)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#include "joseph_tile.h"
#include "march.h"
#include "siddon_tile.h"
#include "trilinear_tile.h"

namespace drrkit {
namespace cpu {

template struct Kernels<Joseph, JosephTile, Level::kAvx2>;
template struct Kernels<Siddon, SiddonTile, Level::kAvx2>;
template struct Kernels<Trilinear, TrilinearTile, Level::kAvx2>;

}  // namespace cpu
}  // namespace drrkit

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
