// The part of a volume that a tile of rays reads in one block of planes: the volume itself, or a
// copy that lies close together in the nearest cache, converted to the arithmetic type and with
// zeros around the grid.
#pragma once

#include "../params.h"
#include "lanes.h"

namespace drrkit {
namespace cpu {

// Planes a block. Sums over a block are single numbers, sums of blocks are double: blocks begin at
// multiples of this, so that the sums of a ray do not depend on the rays around it.
constexpr int kBlock = 16;

// Voxels [a0, a1] x [b0, b1] of planes [k0, k1) along the axes m (of the planes), a and b.
struct Box {
  int k0, k1, a0, a1, b0, b1;

  DRR_HD int size_a() const { return a1 - a0 + 1; }
  DRR_HD int size_b() const { return b1 - b0 + 1; }
  DRR_HD bool empty() const { return a1 < a0; }
};

// A channel of the volume seen along three axes.
struct Block {
  const void* values;
  Voxel voxel;
  int64_t stride_m, stride_a, stride_b;
  int size_m, size_a, size_b;
  int64_t voxels;
  int m;

  DRR_HD static Block along(const Scene& scene, const void* values, int m, int a, int b) {
    const Grid& grid = scene.grid;
    return {values,
            scene.voxel,
            grid.stride(m),
            grid.stride(a),
            grid.stride(b),
            static_cast<int>(grid.size(m)),
            static_cast<int>(grid.size(a)),
            static_cast<int>(grid.size(b)),
            grid.voxels(),
            m};
  }
  DRR_HD bool contains(const Box& box) const {
    return box.k0 >= 0 && box.a0 >= 0 && box.b0 >= 0 && box.k1 <= size_m && box.a1 < size_a &&
           box.b1 < size_b;
  }
};

DRR_HD bool stores(Voxel voxel, float) { return voxel == Voxel::kFloat32; }
DRR_HD bool stores(Voxel voxel, double) { return voxel == Voxel::kFloat64; }

// Voxel (k, a, b) is at data[(k - k0) k_step + (a - a0) a_step + (b - b0) b_step].
template <class S> struct Brick {
  const S* data;
  int k0, a0, b0;
  int64_t k_step;
  int a_step, b_step;

  DRR_HD const S* plane(int k) const { return data + (k - k0) * k_step; }
  DRR_HD static Brick none() { return {nullptr, 0, 0, 0, 0, 0, 0}; }
  // Not a copy but the volume itself.
  DRR_HD static Brick in_place(const Block& block) {
    return {static_cast<const S*>(block.values),
            0,
            0,
            0,
            block.stride_m,
            static_cast<int>(block.stride_a),
            static_cast<int>(block.stride_b)};
  }
};

template <class S, class Stored>
DRR_HD void convert_run(S* __restrict to, const Stored* __restrict from, int n, int64_t step) {
  if (step == 1) {
    for (int i = 0; i < n; ++i) to[i] = static_cast<S>(load(from + i));
  } else {
    for (int i = 0; i < n; ++i) to[i] = static_cast<S>(load(from + i * step));
  }
}

// n voxels from (k, a, b) on along a (or along m); zero outside the grid.
template <bool kAlongA, class S>
DRR_HD void read_run(S* to, const Block& block, int k, int a, int b, int n) {
  const int from = kAlongA ? a : k, size = kAlongA ? block.size_a : block.size_m;
  const bool other = b >= 0 && b < block.size_b &&
                     (kAlongA ? k >= 0 && k < block.size_m : a >= 0 && a < block.size_a);
  const int low = other ? minimum(maximum(-from, 0), n) : n;
  const int high = other ? maximum(minimum(size - from, n), low) : n;
  const int64_t step = kAlongA ? block.stride_a : block.stride_m;
  const int64_t at = k * block.stride_m + a * block.stride_a + b * block.stride_b + low * step;
  for (int i = 0; i < low; ++i) to[i] = 0;
  if (low < high) {
    const int count = high - low;
    switch (block.voxel) {
      case Voxel::kFloat16:
        convert_run(to + low, static_cast<const Half*>(block.values) + at, count, step);
        break;
      case Voxel::kBFloat16:
        convert_run(to + low, static_cast<const BFloat16*>(block.values) + at, count, step);
        break;
      default: convert_run(to + low, static_cast<const S*>(block.values) + at, count, step);
    }
  }
  for (int i = high; i < n; ++i) to[i] = 0;
}

// Whether runs of whole multiples of kBlock numbers from inside the box stay inside the channel, in
// the type that is wanted: then they are copied without a look.
template <class S> DRR_HD bool copies_blindly(const Block& block, const Box& box, int width) {
  const int64_t end =
      (box.k1 - 1) * block.stride_m + box.b1 * block.stride_b + box.a0 * block.stride_a + width;
  return stores(block.voxel, S()) && block.contains(box) && end <= block.voxels;
}

template <class S> DRR_HD Sixteen<S> read_block(const S* from) {
  static_assert(kBlock == 16, "a block is one vector");
  Sixteen<S> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class S> DRR_HD void copy_blocks(S* to, const S* from, int n) {
  for (int i = 0; i < n; i += kBlock) {
    const Sixteen<S> v = read_block(from + i);
    __builtin_memcpy(to + i, &v, sizeof v);
    asm volatile("" : : : "memory");  // else the loop becomes a call of memcpy
  }
}

// Rows of a copy begin an odd number of its elements apart: lanes that read the same place of
// different rows then meet in different banks of the cache.
//
// Copies the box, contiguous along a. None where it does not fit. Runs are copied in whole blocks;
// the next row overwrites what is too much.
template <class S>
DRR_HD Brick<S> copy_rows(S* room, int64_t capacity, const Block& block, const Box& box) {
  const int width = box.size_a() | 1, height = box.size_b();
  const int copied = (box.size_a() + kBlock - 1) / kBlock * kBlock;
  const int64_t plane = static_cast<int64_t>(width) * height;
  if (plane * (box.k1 - box.k0) + kBlock > capacity) return Brick<S>::none();
  const bool blindly = block.stride_a == 1 && copies_blindly<S>(block, box, copied);
  S* to = room;
  for (int k = box.k0; k < box.k1; ++k) {
    const S* from =
        static_cast<const S*>(block.values) + k * block.stride_m + box.a0 + box.b0 * block.stride_b;
    for (int b = box.b0; b <= box.b1; ++b, to += width, from += block.stride_b) {
      if (blindly) {
        copy_blocks(to, from, copied);
      } else {
        read_run<true>(to, block, k, box.a0, b, box.size_a());
      }
    }
  }
  return {room, box.k0, box.a0, box.b0, plane, 1, width};
}

// For planes across the contiguous axis: copies columns of a block's planes.
template <class S>
DRR_HD Brick<S> copy_columns(S* room, int64_t capacity, const Block& block, const Box& box) {
  const int width = box.size_a(), height = box.size_b(), row = kBlock + 1;
  if (static_cast<int64_t>(width) * height * row > capacity) return Brick<S>::none();
  const int first = box.k0 / kBlock * kBlock;  // whole blocks: the runs have a constant length
  const bool blindly = stores(block.voxel, S()) && block.contains(box) && block.stride_m == 1 &&
                       first + kBlock <= block.size_m;
  S* to = room;
  for (int b = box.b0; b <= box.b1; ++b) {
    const S* from =
        static_cast<const S*>(block.values) + first + box.a0 * block.stride_a + b * block.stride_b;
    for (int a = box.a0; a <= box.a1; ++a, to += row, from += block.stride_a) {
      if (blindly) {
        __builtin_prefetch(from + kBlock, 0, 2);  // the tile's next block
        copy_blocks(to, from, kBlock);
      } else {
        read_run<false>(to, block, first, a, b, kBlock);
      }
    }
  }
  return {room, first, box.a0, box.b0, 1, row, width * row};
}

// Shuffles of whole vectors: from a loop the compiler makes loads and inserts, element by element.
template <class S> DRR_HD void interleave(S* to, Sixteen<S> low, Sixteen<S> high) {
  const Sixteen<S> first =
      __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const Sixteen<S> second = __builtin_shufflevector(low, high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28,
                                                    13, 29, 14, 30, 15, 31);
  __builtin_memcpy(to, &first, sizeof first);
  __builtin_memcpy(to + kBlock, &second, sizeof second);
}

// The same with each voxel beside its neighbour along a, so that lanes can load both at once.
template <class S>
DRR_HD Brick<S> copy_pairs(S* room, int64_t capacity, const Block& block, const Box& box) {
  const int pairs = box.size_a() - 1, height = box.size_b(), row = 2 * kBlock + 2;
  if (static_cast<int64_t>(pairs) * height * row > capacity) return Brick<S>::none();
  const int first = box.k0 / kBlock * kBlock;  // whole blocks: the runs have a constant length
  const bool blindly = stores(block.voxel, S()) && block.contains(box) && block.stride_m == 1 &&
                       first + kBlock <= block.size_m;
  S* to = room;
  for (int b = box.b0; b <= box.b1; ++b) {
    if (blindly) {
      const S* from = static_cast<const S*>(block.values) + first + box.a0 * block.stride_a +
                      b * block.stride_b;
      Sixteen<S> low = read_block(from);
      for (int a = 0; a < pairs; ++a, to += row) {
        __builtin_prefetch(from + kBlock, 0, 2);  // the tile's next block
        from += block.stride_a;
        const Sixteen<S> high = read_block(from);
        interleave<S>(to, low, high);
        low = high;
      }
      __builtin_prefetch(from + kBlock, 0, 2);
      continue;
    }
    S ends[2][kBlock];
    read_run<false>(ends[0], block, first, box.a0, b, kBlock);
    for (int a = 1; a <= pairs; ++a, to += row) {
      read_run<false>(ends[a % 2], block, first, box.a0 + a, b, kBlock);
      interleave<S>(to, read_block(ends[(a + 1) % 2]), read_block(ends[a % 2]));
    }
  }
  return {room, first, box.a0, box.b0, 2, row, pairs * row};
}

}  // namespace cpu
}  // namespace drrkit
