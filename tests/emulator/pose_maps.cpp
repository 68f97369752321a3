// The maps of poses for ctypes, which fills MapParams itself (pose_maps.py).
#include "../../csrc/cuda/kernels.h"

using namespace drrkit;

extern "C" {

const char* emulated_perturb(const MapParams* params) {
  return cuda::map_poses<Perturb>(*params, nullptr);
}

const char* emulated_frames(const MapParams* params) {
  return cuda::map_poses<Frames>(*params, nullptr);
}

int64_t emulated_map_params_bytes() { return sizeof(MapParams); }
}
