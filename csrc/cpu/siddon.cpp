#include "march.h"

namespace drrkit {
namespace cpu {

template struct Kernels<Siddon>;

}  // namespace cpu
}  // namespace drrkit
