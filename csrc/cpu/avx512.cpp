// The kernels for processors with AVX-512: see dispatch.h.
// The standard library comes first, untouched by the switch.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dispatch.h"

#if defined(DRR_X86_VARIANTS)
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((                                                                                \
        target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,f16c,bmi2,prefer-vector-width=512"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#endif

#include "joseph_tile.h"
#include "march.h"
#include "siddon_tile.h"
#include "trilinear_tile.h"

namespace drrkit {
namespace cpu {

template struct Kernels<Joseph, JosephTile, Level::kAvx512>;
template struct Kernels<Siddon, SiddonTile, Level::kAvx512>;
template struct Kernels<Trilinear, TrilinearTile, Level::kAvx512>;

}  // namespace cpu
}  // namespace drrkit

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
