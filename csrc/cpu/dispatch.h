// Run-time choice of the instruction set. Each has one file that includes the bodies of the kernels
// behind the compiler's switch for it, so that one binary runs on every x86-64 and uses what is
// there. Everything behind that switch is always inlined or has the level in its type: the linker
// must never merge functions of different levels.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define DRR_X86_VARIANTS 1
#endif

namespace drrkit {
namespace cpu {

enum class Level { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

Level level();

}  // namespace cpu
}  // namespace drrkit
