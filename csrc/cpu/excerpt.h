// The part of a volume that a tile of rays reads in one stack of planes: the volume itself, or a
// copy that lies close together in the nearest cache, converted to the arithmetic type and with
// zeros around the grid.
#pragma once

#include "../params.h"
#include "lanes.h"

namespace drrkit {
namespace cpu {

// Planes per stack. Sums over a stack are single numbers, sums of stacks are double: stacks begin
// at multiples of this, so that the sums of a ray do not depend on the rays around it.
constexpr int kStack = 16;

// Voxels [a0, a1] x [b0, b1] of planes [k0, k1) along the axes m (of the planes), a and b.
struct Box {
  int k0, k1, a0, a1, b0, b1;

  DRR_HD int size_a() const { return a1 - a0 + 1; }
  DRR_HD int size_b() const { return b1 - b0 + 1; }
  DRR_HD bool empty() const { return a1 < a0; }
};

// A channel of the volume seen along three axes.
struct Channel {
  const void* values;
  VoxelType voxel;
  int m, a, b;  // the axes
  int64_t stride_m, stride_a, stride_b;
  int size_m, size_a, size_b;
  int64_t voxels;

  DRR_HD static Channel along(const Scene& scene, const void* values, int m, int a, int b) {
    const Grid& grid = scene.grid;
    return {values,
            scene.voxel,
            m,
            a,
            b,
            grid.stride(m),
            grid.stride(a),
            grid.stride(b),
            static_cast<int>(grid.size(m)),
            static_cast<int>(grid.size(a)),
            static_cast<int>(grid.size(b)),
            grid.voxels()};
  }
  DRR_HD bool contains(const Box& box) const {
    return box.k0 >= 0 && box.a0 >= 0 && box.b0 >= 0 && box.k1 <= size_m && box.a1 < size_a &&
           box.b1 < size_b;
  }
};

// Whether a box is known to hold zeros only (packed/empty_space.h).
DRR_HD bool holds_nothing(const EmptySpace& empty, int64_t volume, const Channel& channel,
                          const Box& box) {
  if (empty.occupied == nullptr) return false;
  const Occupied& filled = empty.occupied[volume];
  int lo[3], hi[3];
  lo[channel.m] = box.k0, hi[channel.m] = box.k1 - 1;
  lo[channel.a] = box.a0, hi[channel.a] = box.a1;
  lo[channel.b] = box.b0, hi[channel.b] = box.b1;
  for (int i = 0; i < 3; ++i)
    if (lo[i] > filled.hi[i] || hi[i] < filled.lo[i]) return true;
  if (!filled.sparse) return false;
  const int count[3] = {empty.nx, empty.ny, empty.nz};
  for (int i = 0; i < 3; ++i) {
    lo[i] = minimum(maximum((lo[i] + 1) >> kBrickShift, 0), count[i] - 1);
    hi[i] = minimum(maximum((hi[i] + 1) >> kBrickShift, 0), count[i] - 1);
  }
  for (int z = lo[2]; z <= hi[2]; ++z)
    for (int y = lo[1]; y <= hi[1]; ++y) {
      const uint8_t* row = empty.of(volume) + (static_cast<int64_t>(z) * empty.ny + y) * empty.nx;
      for (int x = lo[0]; x <= hi[0]; ++x)
        if (row[x] == 0) return false;
    }
  return true;
}

DRR_HD bool stores(VoxelType voxel, float) { return voxel == VoxelType::kFloat32; }
DRR_HD bool stores(VoxelType voxel, double) { return voxel == VoxelType::kFloat64; }

// Voxel (k, a, b) is at data[(k - k0) k_step + (a - a0) a_step + (b - b0) b_step].
template <class S> struct Excerpt {
  const S* data;
  int k0, a0, b0;
  int64_t k_step;
  int a_step, b_step;

  DRR_HD const S* plane(int k) const { return data + (k - k0) * k_step; }
  DRR_HD static Excerpt none() { return {nullptr, 0, 0, 0, 0, 0, 0}; }
  // Not a copy but the volume itself.
  DRR_HD static Excerpt in_place(const Channel& channel) {
    return {static_cast<const S*>(channel.values),
            0,
            0,
            0,
            channel.stride_m,
            static_cast<int>(channel.stride_a),
            static_cast<int>(channel.stride_b)};
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
DRR_HD void read_run(S* to, const Channel& channel, int k, int a, int b, int n) {
  const int from = kAlongA ? a : k, size = kAlongA ? channel.size_a : channel.size_m;
  const bool other = b >= 0 && b < channel.size_b &&
                     (kAlongA ? k >= 0 && k < channel.size_m : a >= 0 && a < channel.size_a);
  const int low = other ? minimum(maximum(-from, 0), n) : n;
  const int high = other ? maximum(minimum(size - from, n), low) : n;
  const int64_t step = kAlongA ? channel.stride_a : channel.stride_m;
  const int64_t at =
      k * channel.stride_m + a * channel.stride_a + b * channel.stride_b + low * step;
  for (int i = 0; i < low; ++i) to[i] = 0;
  if (low < high) {
    const int count = high - low;
    switch (channel.voxel) {
      case VoxelType::kFloat16:
        convert_run(to + low, static_cast<const Half*>(channel.values) + at, count, step);
        break;
      case VoxelType::kBFloat16:
        convert_run(to + low, static_cast<const BFloat16*>(channel.values) + at, count, step);
        break;
      case VoxelType::kInt16:
        convert_run(to + low, static_cast<const int16_t*>(channel.values) + at, count, step);
        break;
      default: convert_run(to + low, static_cast<const S*>(channel.values) + at, count, step);
    }
  }
  for (int i = high; i < n; ++i) to[i] = 0;
}

// Whether runs of whole multiples of kStack numbers from inside the box stay inside the channel:
// then they are copied without a look.
DRR_HD bool copies_blindly(const Channel& channel, const Box& box, int width) {
  const int64_t end = (box.k1 - 1) * channel.stride_m + box.b1 * channel.stride_b +
                      box.a0 * channel.stride_a + width;
  return channel.contains(box) && end <= channel.voxels;
}

template <class S> DRR_HD Sixteen<S> read_stack(const S* from) {
  static_assert(kStack == 16, "a channel is one vector");
  Sixteen<S> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
DRR_HD Sixteen<float> read_stack(const BFloat16* from) {
  const auto halves = read_stack(reinterpret_cast<const uint16_t*>(from));
  return reinterpret_cast<Sixteen<float>>(__builtin_convertvector(halves, Sixteen<uint32_t>) << 16);
}
// N floats are a vector of the instruction set: with AVX-512 one instruction converts them.
template <int N> DRR_HD Sixteen<float> read_stack(const Half* from) {
  const auto halves = read_stack(reinterpret_cast<const uint16_t*>(from));
#if defined(DRR_X86_VARIANTS)
  if constexpr (N == 16) {
    Sixteen<float> value;
    asm("vcvtph2ps %1, %0" : "=v"(value) : "v"(halves));
    return value;
  }
#endif
  using Words = Sixteen<uint32_t>;
  const Words bits = __builtin_convertvector(halves, Words), magnitude = bits & 0x7fffu;
  // Subnormal numbers as multiples of 2^-24: no subnormal float comes up, which may count as zero.
  const Words below = reinterpret_cast<Words>(
      __builtin_convertvector(reinterpret_cast<Sixteen<int>>(magnitude), Sixteen<float>) *
      5.9604644775390625e-8f);
  const Words normal = (magnitude << 13) + 0x38000000u, beyond = magnitude << 13 | 0x7f800000u;
  const Words value = magnitude < 0x400u    ? below
                      : magnitude < 0x7c00u ? normal
                                            : beyond;  // infinite or not a number
  return reinterpret_cast<Sixteen<float>>(value | (bits & 0x8000u) << 16);
}

// The stack that begins at number `at` of a channel.
template <int N, class S> DRR_HD Sixteen<S> read_stack(const Channel& channel, int64_t at) {
  switch (channel.voxel) {
    case VoxelType::kFloat16:
      return __builtin_convertvector(read_stack<N>(static_cast<const Half*>(channel.values) + at),
                                     Sixteen<S>);
    case VoxelType::kBFloat16:
      return __builtin_convertvector(read_stack(static_cast<const BFloat16*>(channel.values) + at),
                                     Sixteen<S>);
    case VoxelType::kInt16:
      return __builtin_convertvector(read_stack(static_cast<const int16_t*>(channel.values) + at),
                                     Sixteen<S>);
    default: return read_stack(static_cast<const S*>(channel.values) + at);
  }
}

// Asks for what lies behind the stack that begins there: the tile's next one.
template <class S> DRR_HD void prefetch_next(const Channel& channel, int64_t at) {
  const auto* values = static_cast<const unsigned char*>(channel.values);
  __builtin_prefetch(values + (at + kStack) * voxel_bytes(channel.voxel), 0, 2);
}

template <int N, class S>
DRR_HD void copy_stacks(S* to, const Channel& channel, int64_t at, int n) {
  for (int i = 0; i < n; i += kStack) {
    const Sixteen<S> v = read_stack<N, S>(channel, at + i);
    __builtin_memcpy(to + i, &v, sizeof v);
    asm volatile("" : : : "memory");  // else the loop becomes a call of memcpy
  }
}

// Rows of a copy begin an odd number of its elements apart: lanes that read the same place of
// different rows then meet in different banks of the cache.
//
// Copies the box, contiguous along a. None where it does not fit. Runs are copied in whole stacks;
// the next row overwrites what is too much.
template <int N, class S>
DRR_HD Excerpt<S> copy_rows(S* room, int64_t capacity, const Channel& channel, const Box& box) {
  const int width = box.size_a() | 1, height = box.size_b();
  const int copied = (box.size_a() + kStack - 1) / kStack * kStack;
  const int64_t plane = static_cast<int64_t>(width) * height;
  if (plane * (box.k1 - box.k0) + kStack > capacity) return Excerpt<S>::none();
  const bool blindly = channel.stride_a == 1 && copies_blindly(channel, box, copied);
  S* to = room;
  for (int k = box.k0; k < box.k1; ++k) {
    int64_t from = k * channel.stride_m + box.a0 + box.b0 * channel.stride_b;
    for (int b = box.b0; b <= box.b1; ++b, to += width, from += channel.stride_b) {
      if (blindly) {
        copy_stacks<N>(to, channel, from, copied);
      } else {
        read_run<true>(to, channel, k, box.a0, b, box.size_a());
      }
    }
  }
  return {room, box.k0, box.a0, box.b0, plane, 1, width};
}

// For planes across the contiguous axis: copies columns of a stack's planes.
template <int N, class S>
DRR_HD Excerpt<S> copy_columns(S* room, int64_t capacity, const Channel& channel, const Box& box) {
  const int width = box.size_a(), height = box.size_b(), row = kStack + 1;
  if (static_cast<int64_t>(width) * height * row > capacity) return Excerpt<S>::none();
  const int first = box.k0 / kStack * kStack;  // whole stacks: the runs have a constant length
  const bool blindly =
      channel.contains(box) && channel.stride_m == 1 && first + kStack <= channel.size_m;
  S* to = room;
  for (int b = box.b0; b <= box.b1; ++b) {
    int64_t from = first + box.a0 * channel.stride_a + b * channel.stride_b;
    for (int a = box.a0; a <= box.a1; ++a, to += row, from += channel.stride_a) {
      if (blindly) {
        prefetch_next<S>(channel, from);
        copy_stacks<N>(to, channel, from, kStack);
      } else {
        read_run<false>(to, channel, first, a, b, kStack);
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
  __builtin_memcpy(to + kStack, &second, sizeof second);
}

// The same with each voxel beside its neighbour along a, so that lanes can load both at once.
template <int N, class S>
DRR_HD Excerpt<S> copy_pairs(S* room, int64_t capacity, const Channel& channel, const Box& box) {
  const int pairs = box.size_a() - 1, height = box.size_b(), row = 2 * kStack + 2;
  if (static_cast<int64_t>(pairs) * height * row > capacity) return Excerpt<S>::none();
  const int first = box.k0 / kStack * kStack;  // whole stacks: the runs have a constant length
  const bool blindly =
      channel.contains(box) && channel.stride_m == 1 && first + kStack <= channel.size_m;
  S* to = room;
  for (int b = box.b0; b <= box.b1; ++b) {
    if (blindly) {
      int64_t from = first + box.a0 * channel.stride_a + b * channel.stride_b;
      Sixteen<S> low = read_stack<N, S>(channel, from);
      for (int a = 0; a < pairs; ++a, to += row) {
        prefetch_next<S>(channel, from);
        from += channel.stride_a;
        const Sixteen<S> high = read_stack<N, S>(channel, from);
        interleave<S>(to, low, high);
        low = high;
      }
      prefetch_next<S>(channel, from);
      continue;
    }
    S ends[2][kStack];
    read_run<false>(ends[0], channel, first, box.a0, b, kStack);
    for (int a = 1; a <= pairs; ++a, to += row) {
      read_run<false>(ends[a % 2], channel, first, box.a0 + a, b, kStack);
      interleave<S>(to, read_stack(ends[(a + 1) % 2]), read_stack(ends[a % 2]));
    }
  }
  return {room, first, box.a0, box.b0, 2, row, pairs * row};
}

}  // namespace cpu
}  // namespace drrkit
