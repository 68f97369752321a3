// Run-time choice of the instruction set. A kernel body is an always-inlined template; each variant
// is one function with a target attribute around it, so that one binary runs on every x86-64 and
// uses what is there.
#pragma once

#include "../hd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DRR_X86_VARIANTS 1
#define DRR_TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi2")))
#define DRR_TARGET_AVX512 \
  __attribute__((         \
      target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,f16c,bmi2,prefer-vector-width=512")))
#endif

namespace drrkit {
namespace cpu {

enum class Level { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

Level level();

}  // namespace cpu
}  // namespace drrkit
