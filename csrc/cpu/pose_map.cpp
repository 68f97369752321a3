// The maps of poses on the CPU: a few hundred operations per view.
#include "kernels.h"

namespace drrkit {
namespace cpu {

template <class Map> void map_poses(const MapParams& params, int64_t view_begin, int64_t view_end) {
  for (int64_t b = view_begin; b < view_end; ++b)
    if (params.derivative)
      Map::template view<Dual>(params, b);
    else
      Map::template view<double>(params, b);
}

template void map_poses<Perturb>(const MapParams&, int64_t, int64_t);
template void map_poses<Frames>(const MapParams&, int64_t, int64_t);

}  // namespace cpu
}  // namespace drrkit
