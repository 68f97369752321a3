#include "adjoint.cuh"

namespace drrkit {
namespace cuda {

template struct Gather<Trilinear>;

}  // namespace cuda
}  // namespace drrkit
