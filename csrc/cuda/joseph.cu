#include "march.cuh"

namespace drrkit {
namespace cuda {

template struct Kernels<Joseph>;

}  // namespace cuda
}  // namespace drrkit
