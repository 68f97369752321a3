// Run-time choice of the instruction set. Each has one file that includes the bodies of the kernels
// behind the compiler's switch for it, so that one binary runs on every x86-64 and uses what is
// there. Everything behind that switch is always inlined or has the level in its type: the linker
// must never merge functions of different levels.
#pragma once

// The standard library comes before any switch, untouched by it.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define DRR_X86_VARIANTS 1
#define DRR_PRAGMA(words) _Pragma(#words)
#if defined(__clang__)
#define DRR_PUSH_TARGET(names) \
  DRR_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define DRR_POP_TARGET DRR_PRAGMA(clang attribute pop)
#else
#define DRR_PUSH_TARGET(names) DRR_PRAGMA(GCC push_options) DRR_PRAGMA(GCC target(names))
#define DRR_POP_TARGET DRR_PRAGMA(GCC pop_options)
#endif
#endif

namespace drrkit {
namespace cpu {

enum class Level { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

Level level();

}  // namespace cpu
}  // namespace drrkit
