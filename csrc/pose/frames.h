// From a pose to the frame of a view: for the rows f_i of a frame (source, pixel (0, 0) and the two
// steps) and the same rows r_i in camera coordinates (mm, the camera's own frame)
//   f_i = (r_i - t) R A + offset for the two points,   f_i = r_i R A for the two steps,
// A from world mm to index units for row vectors. To extend rays until they leave the volume, r_i
// is first scaled (parallel beams: in z) by the constant c = max(1, z / sdd), z the largest camera
// z of the grid's corners; c carries no derivative.
#pragma once

#include "pose_map.h"

namespace drrkit {

// A map of pose_map.h.
struct Frames {
  static constexpr int kRows = 4, kCols = 3;  // of the result

  // Inputs: world_to_camera [4, 4], camera_frame [4, 3], grid [8, 3]. Rows of the grid: A; index
  // coordinates of the world's origin; in world mm the grid's centre and its half edges.
  template <class S> DRR_HD static void view(const MapParams& p, int64_t b) {
    const MapInput &pose = p.inputs[0], &grid = p.inputs[2];
    const Scale scale = Scale::of(p, b);
    S a[3][3], turn[3][3];  // A and R A
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) a[i][j] = read<S>(grid, b, i, j);
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j)
        turn[i][j] = read<S>(pose, b, i, 0) * a[0][j] + read<S>(pose, b, i, 1) * a[1][j] +
                     read<S>(pose, b, i, 2) * a[2][j];
    if (p.out)
      for (int i = 0; i < 4; ++i) {
        const Triple<S> ray = arm<S>(p, scale, b, i);
        for (int j = 0; j < 3; ++j) {
          S f = ray.x * turn[0][j] + ray.y * turn[1][j] + ray.z * turn[2][j];
          if (i < 2) f = f + read<S>(grid, b, 3, j);
          p.out[12 * b + 3 * i + j] = result_of(f);
        }
      }
    if (p.g.data) cotangents(p, scale, b, a, turn);
  }

 private:
  // What the rays of a view are multiplied by: across and along the camera's axis.
  struct Scale {
    double across, along;

    DRR_HD static Scale of(const MapParams& p, int64_t b) {
      if (!p.extend) return {1, 1};
      const Operand &pose = p.inputs[0].value, &grid = p.inputs[2].value;
      double farthest = pose.at(b, 2, 3);
      for (int i = 4; i < 8; ++i) {
        const double z = pose.at(b, 2, 0) * grid.at(b, i, 0) + pose.at(b, 2, 1) * grid.at(b, i, 1) +
                         pose.at(b, 2, 2) * grid.at(b, i, 2);
        farthest += i == 4 ? z : fabs(z);
      }
      double c = farthest / p.inputs[1].value.at(b, 1, 2);
      if (c < 1) c = 1;  // NaN stays
      return {p.beam == Beam::kParallel ? 1 : c, c};
    }
  };

  // r_i - t for a point, r_i for a step.
  template <class S>
  DRR_HD static Triple<S> arm(const MapParams& p, Scale scale, int64_t b, int i) {
    const MapInput &pose = p.inputs[0], &camera_frame = p.inputs[1];
    const Triple<S> ray = {scale.across * read<S>(camera_frame, b, i, 0),
                           scale.across * read<S>(camera_frame, b, i, 1),
                           scale.along * read<S>(camera_frame, b, i, 2)};
    if (i >= 2) return ray;
    return ray - Triple<S>{read<S>(pose, b, 0, 3), read<S>(pose, b, 1, 3), read<S>(pose, b, 2, 3)};
  }

  template <class S>
  DRR_HD static void cotangents(const MapParams& p, Scale scale, int64_t b, const S (&a)[3][3],
                                const S (&turn)[3][3]) {
    S moments[3][3] = {}, on_t[3] = {};  // moments: sum of (r_i - t)' g_i
    double on_offset[3] = {};
    double* on_camera_frame = p.on[1] + 12 * b;
    for (int i = 0; i < 4; ++i) {
      const Triple<S> ray = arm<S>(p, scale, b, i);
      const S numbers[3] = {ray.x, ray.y, ray.z};
      const double g[3] = {p.g.at(b, i, 0), p.g.at(b, i, 1), p.g.at(b, i, 2)};
      for (int k = 0; k < 3; ++k) {
        const S on_ray = turn[k][0] * g[0] + turn[k][1] * g[1] + turn[k][2] * g[2];
        on_camera_frame[3 * i + k] = result_of(on_ray) * (k < 2 ? scale.across : scale.along);
        for (int j = 0; j < 3; ++j) moments[k][j] = moments[k][j] + numbers[k] * g[j];
        if (i < 2) on_t[k] = on_t[k] - on_ray;
        if (i < 2) on_offset[k] += g[k];
      }
    }
    put_on_pose(p, b, a, moments, on_t);
    put_on_grid<S>(p, b, moments, on_offset);
  }

  template <class S>
  DRR_HD static void put_on_pose(const MapParams& p, int64_t b, const S (&a)[3][3],
                                 const S (&moments)[3][3], const S (&on_t)[3]) {
    double* on_pose = p.on[0] + 16 * b;
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j)
        on_pose[4 * i + j] =
            result_of(moments[i][0] * a[j][0] + moments[i][1] * a[j][1] + moments[i][2] * a[j][2]);
      on_pose[4 * i + 3] = result_of(on_t[i]);
    }
    for (int j = 0; j < 4; ++j) on_pose[12 + j] = 0;
  }

  template <class S>
  DRR_HD static void put_on_grid(const MapParams& p, int64_t b, const S (&moments)[3][3],
                                 const double (&on_offset)[3]) {
    const MapInput& pose = p.inputs[0];
    double* on_grid = p.on[2] + 24 * b;
    for (int j = 0; j < 3; ++j) {
      for (int i = 0; i < 3; ++i)
        on_grid[3 * i + j] = result_of(read<S>(pose, b, 0, i) * moments[0][j] +
                                       read<S>(pose, b, 1, i) * moments[1][j] +
                                       read<S>(pose, b, 2, i) * moments[2][j]);
      on_grid[9 + j] = result_of(S(on_offset[j]));
    }
    for (int i = 12; i < 24; ++i) on_grid[i] = 0;
  }
};

}  // namespace drrkit
