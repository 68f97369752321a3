// The marching kernels of one instruction set: a source file defines DRR_LEVEL and includes this
// behind the compiler's switch for it (see dispatch.h).
#include "joseph_tile.h"
#include "march.h"
#include "siddon_tile.h"
#include "trilinear_tile.h"

namespace drrkit {
namespace cpu {

template struct CpuKernels<Joseph, JosephTile, Level::DRR_LEVEL>;
template struct CpuKernels<Siddon, SiddonTile, Level::DRR_LEVEL>;
template struct CpuKernels<Trilinear, TrilinearTile, Level::DRR_LEVEL>;

}  // namespace cpu
}  // namespace drrkit
