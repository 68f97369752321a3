// What a march is told, as plain numbers from Python.
#pragma once

#include "../../csrc/params.h"

namespace drrkit {

// Everything but the tensors of a march.
struct SceneNumbers {
  int64_t nx, ny, nz, n_views, n_channels, n_volumes, cols, rays, endpoints, flags, voxel;
  double sx, sy, sz, step;
};

inline Views views_of(const SceneNumbers& n, const double* geometry) {
  return {geometry, n.endpoints != 0, Flags(n.flags).beam, n.cols, n.rays};
}

inline Scene scene_of(const SceneNumbers& n, const double* geometry) {
  Scene scene;
  scene.grid = {n.nx, n.ny, n.nz, {n.sx, n.sy, n.sz}};
  scene.views = views_of(n, geometry);
  scene.n_views = n.n_views;
  scene.n_channels = n.n_channels;
  scene.n_volumes = n.n_volumes;
  scene.method = Flags(n.flags).method;
  scene.voxel = static_cast<VoxelType>(n.voxel);
  scene.trilinear = {n.step, Flags(n.flags).foot, Flags(n.flags).line};
  return scene;
}

}  // namespace drrkit
