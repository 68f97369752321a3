#include "march.cuh"

namespace drrkit {
namespace cuda {

template struct Kernels<Siddon>;

}  // namespace cuda
}  // namespace drrkit
