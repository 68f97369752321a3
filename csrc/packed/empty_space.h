// Where a volume is zero, so that marches need not go there: the box that holds all that is not
// zero, and bricks of 8 x 8 x 8 interpolation cells. What is left out adds exact zeros, whatever
// the rounding of a position: box and bricks are one voxel wider than the samples they stand for.
#pragma once

#include "../rays/geometry.h"

namespace drrkit {

constexpr int kBrickShift =
    3;  // 8 cells along each axis; drrkit/_native/pack.py builds what stands here

// What is known of one volume, all of its channels together. A plain row of eight int32.
struct Occupied {
  int32_t lo[3], hi[3];  // x, y, z: voxels outside [lo, hi] are zero; lo > hi where all are
  int32_t sparse;        // whether so many bricks are empty that looking them up pays
  int32_t unused;
};

// Brick B of an axis holds the interpolation cells (those between the voxels i and i + 1, counted
// by i >= -1) of [8 B - 1, 8 B + 6]. It is empty if the voxels 8 B - 2 ... 8 B + 8 are zero: the
// corners of its cells, and one voxel more on either side.
struct EmptySpace {
  const Occupied* occupied = nullptr;  // [N]; null: nothing is known
  const uint8_t* distance = nullptr;   // [N, nz, ny, nx] bricks to the nearest that is not empty,
                                       // counted as a chess king moves; 0: this one is not
  int32_t nx = 0, ny = 0, nz = 0;

  DRR_HD const uint8_t* of(int64_t volume) const { return distance + volume * nx * ny * nz; }
};

// The positions x, y, z of a march's samples k: at + k step, as the march itself evaluates them.
template <class S> struct Line {
  S at_x, at_y, at_z, step_x, step_y, step_z;

  // From a march over the planes of axis m, which stand at integers.
  DRR_HD static Line of(int m, S plane, S at_a, S at_b, S step_a, S step_b) {
    const S one = 1;
    if (m == 0) return {plane, at_a, at_b, one, step_a, step_b};
    if (m == 1) return {at_a, plane, at_b, step_a, one, step_b};
    return {at_a, at_b, plane, step_a, step_b, one};
  }
};

// Narrows [begin, end) to the samples k with lower <= at + k step <= upper, give or take one.
template <class S>
DRR_HD void narrow(S at, S step, double lower, double upper, int& begin, int& end) {
  Interval inside = {static_cast<double>(begin), static_cast<double>(end - 1)};
  inside.clip(static_cast<double>(at), static_cast<double>(step), lower, upper);
  if (inside.empty()) {
    end = begin;
    return;
  }
  begin = maximum(begin, static_cast<int>(ceil(inside.lo)) - 1);
  end = minimum(end, static_cast<int>(floor(inside.hi)) + 2);
}

// The samples of [begin, end) whose interpolation can reach a voxel that is not zero.
template <class S>
DRR_HD void narrow_to_box(const Occupied& box, const Line<S>& line, int& begin, int& end) {
  constexpr double reach = 2;  // a sample's own, and a voxel for what rounding does to positions
  if (begin < end) narrow(line.at_x, line.step_x, box.lo[0] - reach, box.hi[0] + reach, begin, end);
  if (begin < end) narrow(line.at_y, line.step_y, box.lo[1] - reach, box.hi[1] + reach, begin, end);
  if (begin < end) narrow(line.at_z, line.step_z, box.lo[2] - reach, box.hi[2] + reach, begin, end);
  if (begin >= end) begin = end;
}

// A march's way through the bricks of one volume.
template <class S> struct BrickWalk {
  const uint8_t* distance;
  int nx, ny, nz;
  Line<S> line;
  S per_x, per_y, per_z;  // samples a voxel

  DRR_HD BrickWalk(const EmptySpace& empty, int64_t volume, const Line<S>& way)
      : distance(empty.of(volume)),
        nx(empty.nx),
        ny(empty.ny),
        nz(empty.nz),
        line(way),
        per_x(1 / way.step_x),
        per_y(1 / way.step_y),
        per_z(1 / way.step_z) {}

  // A stretch of the march inside [k, end), and whether it is known to meet zeros only.
  struct Run {
    int end;
    bool empty;
  };

  DRR_HD Run run(int k, int end) const {
    const int x = brick(line.at_x, line.step_x, k, nx), y = brick(line.at_y, line.step_y, k, ny),
              z = brick(line.at_z, line.step_z, k, nz);
    const int far = distance[(static_cast<int64_t>(z) * ny + y) * nx + x];
    if (far == 0) return {leave(k, end, x, y, z, 0), false};
    return {stay(k, leave(k, end, x, y, z, far - 1), x, y, z, far - 1), true};
  }

 private:
  // The brick of a position's cell; those outside count to the outermost, where all is zero too.
  DRR_HD static int brick(S at, S step, int k, int n) {
    const int b = (floor_int(at + static_cast<S>(k) * step) + 1) >> kBrickShift;
    return minimum(maximum(b, 0), n - 1);
  }

  // About where the march leaves the bricks within `far` of one: at most `end`, more than k.
  DRR_HD int leave(int k, int end, int x, int y, int z, int far) const {
    S last = static_cast<S>(end);
    last = minimum(last, leave_axis(line.at_x, per_x, x, far, nx, last));
    last = minimum(last, leave_axis(line.at_y, per_y, y, far, ny, last));
    last = minimum(last, leave_axis(line.at_z, per_z, z, far, nz, last));
    return maximum(k + 1, static_cast<int>(ceil(maximum(last, static_cast<S>(k)))));
  }
  DRR_HD static S leave_axis(S at, S samples_a_voxel, int b, int far, int n, S end) {
    const int edge = samples_a_voxel > 0 ? b + far + 1 : b - far;
    if (edge <= 0 || edge >= n) return end;  // nothing but zeros beyond the outermost
    const S samples = (static_cast<S>((edge << kBrickShift) - 1) - at) * samples_a_voxel;
    return samples == samples ? samples : end;  // no step, and at the edge: 0 times infinity
  }

  // The estimate may err by a sample: take back what has left the bricks within `far`. Positions
  // are monotone in k also when rounded, so what is between two samples inside is inside.
  DRR_HD int stay(int k, int end, int x, int y, int z, int far) const {
    while (end > k + 1 && !within(end - 1, x, y, z, far)) --end;
    return end;
  }
  DRR_HD bool within(int k, int x, int y, int z, int far) const {
    return near_by(brick(line.at_x, line.step_x, k, nx) - x, far) &&
           near_by(brick(line.at_y, line.step_y, k, ny) - y, far) &&
           near_by(brick(line.at_z, line.step_z, k, nz) - z, far);
  }
  DRR_HD static bool near_by(int apart, int far) { return apart <= far && -apart <= far; }
};

}  // namespace drrkit
