// What a march is told, as plain numbers from Python.
#pragma once

#include "../../csrc/params.h"

namespace drrkit {

// Everything but the tensors of a march; `mode` as composed in drrkit/_native/ops.py.
struct SceneNumbers {
  int64_t nx, ny, nz, n_views, n_channels, n_volumes, cols, rays, endpoints, mode, voxel;
  double sx, sy, sz, step;
};

inline Views views_of(const SceneNumbers& n, const double* geometry) {
  return {geometry, n.endpoints != 0, (n.mode & 4) != 0, n.cols, n.rays};
}

inline Scene scene_of(const SceneNumbers& n, const double* geometry) {
  Scene scene;
  scene.grid = {n.nx, n.ny, n.nz, {n.sx, n.sy, n.sz}};
  scene.views = views_of(n, geometry);
  scene.n_views = n.n_views;
  scene.n_channels = n.n_channels;
  scene.n_volumes = n.n_volumes;
  scene.method = static_cast<Method>(n.mode & 3);
  scene.voxel = static_cast<Voxel>(n.voxel);
  scene.trilinear = {n.step, (n.mode & 16) != 0, (n.mode & 8) != 0};
  return scene;
}

}  // namespace drrkit
