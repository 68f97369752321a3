#include "project.cuh"

namespace drrkit {
namespace cuda {

template struct CudaKernels<Siddon>;

}  // namespace cuda
}  // namespace drrkit
