#include "march.h"

namespace drrkit {
namespace cpu {

template struct Kernels<Joseph>;

}  // namespace cpu
}  // namespace drrkit
