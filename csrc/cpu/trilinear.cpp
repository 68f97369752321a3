#include "march.h"

namespace drrkit {
namespace cpu {

template struct Kernels<Trilinear>;

}  // namespace cpu
}  // namespace drrkit
