#include "project.cuh"

namespace drrkit {
namespace cuda {

template struct CudaKernels<Trilinear>;

}  // namespace cuda
}  // namespace drrkit
