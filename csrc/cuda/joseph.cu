#include "project.cuh"

namespace drrkit {
namespace cuda {

template struct CudaKernels<Joseph>;

}  // namespace cuda
}  // namespace drrkit
