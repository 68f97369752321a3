// The kernels for processors with AVX-512: see dispatch.h.
#include "dispatch.h"

#if defined(DRR_X86_VARIANTS)
#define DRR_LEVEL kAvx512
DRR_PUSH_TARGET("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#include "instances.h"
DRR_POP_TARGET
#endif
