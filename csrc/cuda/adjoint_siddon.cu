#include "adjoint.cuh"

namespace drrkit {
namespace cuda {

template struct Gather<Siddon>;

}  // namespace cuda
}  // namespace drrkit
