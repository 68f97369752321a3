#include "march.cuh"

namespace drrkit {
namespace cuda {

template struct Kernels<Trilinear>;

}  // namespace cuda
}  // namespace drrkit
