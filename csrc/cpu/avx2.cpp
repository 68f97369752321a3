// The kernels for processors with AVX2, FMA and F16C: see dispatch.h.
#include "dispatch.h"

#if defined(DRR_X86_VARIANTS)
#define DRR_LEVEL kAvx2
DRR_PUSH_TARGET("avx2,fma,f16c,bmi2")
#include "instances.h"
DRR_POP_TARGET
#endif
