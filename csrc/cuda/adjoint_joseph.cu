#include "adjoint.cuh"

namespace drrkit {
namespace cuda {

template struct Gather<Joseph>;

}  // namespace cuda
}  // namespace drrkit
