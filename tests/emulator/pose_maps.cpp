// The maps of poses for ctypes, which fills MapParams itself (pose_maps.py).
#include "../../csrc/cuda/kernels.h"

using namespace drrkit;

extern "C" {

const char* emulated_perturb(const MapParams* params, int derivative) {
  return cuda::map_poses<Perturb>(*params, derivative != 0, nullptr);
}

const char* emulated_frames(const MapParams* params, int derivative) {
  return cuda::map_poses<Frames>(*params, derivative != 0, nullptr);
}

int64_t emulated_map_params_bytes() { return sizeof(MapParams); }
}
