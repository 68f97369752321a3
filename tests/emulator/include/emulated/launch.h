// Qualifiers, launches, and what the threads of a block and the lanes of a warp do together.
//
// Threads are fibers: one runs until it waits in a barrier or a warp's collective, or ends. A
// collective is carried out once every lane that its mask names has arrived or ended, as a GPU of
// compute capability 7.0 and later does it; what CUDA leaves undefined (a lane outside its own
// mask, different collectives under one mask, a value read from a lane that is not there) and what
// would never end (a barrier that not all reach) makes the launch fail with a description.
#pragma once

#include <cstring>
#include <functional>
#include <memory>  // before __noinline__ is defined, a word that the standard library uses
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "errors.h"
#include "vectors.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// Blocks run one after the other, so one copy serves them all. As thread-local data it lies in one
// piece of memory that can be filled with garbage before each block; the address sanitizer guards
// the ends of static data only.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace emulated {

using Where = std::source_location;

enum class Collective { kSyncThreads, kSyncWarp, kShuffle, kVote };

// A word that a lane hands in, and the word that it gets.
struct Exchange {
  Collective what;
  unsigned mask;
  int source;       // the lane whose word a shuffle returns
  uint64_t word;    // handed in; for votes, 0 or 1
  uint64_t result;  // of a shuffle: the source's word; of a vote: a bit for every lane that said 1
  Where where;
};

int lane_id();
// Waits for the other lanes of the warp, or the other threads of the block.
void exchange(Exchange& mine);

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

template <class T> T shuffle(unsigned mask, T value, int source, Where where) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 4- and 8-byte numbers");
  Exchange mine = {Collective::kShuffle, mask, source, 0, 0, where};
  std::memcpy(&mine.word, &value, sizeof value);
  exchange(mine);
  std::memcpy(&value, &mine.result, sizeof value);
  return value;
}

inline unsigned vote(unsigned mask, int predicate, Where where) {
  Exchange mine = {Collective::kVote, mask, 0, predicate != 0, 0, where};
  exchange(mine);
  return static_cast<unsigned>(mine.result);
}

}  // namespace emulated

// Everything that a kernel gets is copied for each thread, as on a GPU. The launch keeps it on the
// heap: a copy inside the lambda came out of GCC 12 at -O1 with two bytes of MapParams lost.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernels take plain structs");
  static_assert((0 + ... + sizeof(Parameters)) <= 4096, "kernels take 4096 bytes at most");
  const auto kept =
      std::make_shared<const std::tuple<Parameters...>>(std::forward<Arguments>(arguments)...);
  return emulated::enqueue(config->stream, [kernel, kept, launched = *config] {
    return emulated::run(launched, [&] { std::apply(kernel, *kept); });
  });
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int threads,
                                                          size_t) {
  *blocks = threads > 0 ? 2048 / threads : 0;
  return threads > 0 ? cudaSuccess : emulated::fail(cudaErrorInvalidValue);
}

inline void __syncthreads(emulated::Where where = emulated::Where::current()) {
  emulated::Exchange mine = {emulated::Collective::kSyncThreads, 0, 0, 0, 0, where};
  emulated::exchange(mine);
}
inline int __syncthreads_count(int predicate, emulated::Where where = emulated::Where::current()) {
  emulated::Exchange mine = {emulated::Collective::kSyncThreads, 0, 0, predicate != 0, 0, where};
  emulated::exchange(mine);
  return static_cast<int>(mine.result);
}
inline int __syncthreads_or(int predicate, emulated::Where where = emulated::Where::current()) {
  return __syncthreads_count(predicate, where) > 0;
}
inline int __syncthreads_and(int predicate, emulated::Where where = emulated::Where::current()) {
  return __syncthreads_count(!predicate, where) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       emulated::Where where = emulated::Where::current()) {
  emulated::Exchange mine = {emulated::Collective::kSyncWarp, mask, 0, 0, 0, where};
  emulated::exchange(mine);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              emulated::Where where = emulated::Where::current()) {
  return emulated::vote(mask, predicate, where);
}
inline int __any_sync(unsigned mask, int predicate,
                      emulated::Where where = emulated::Where::current()) {
  return emulated::vote(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      emulated::Where where = emulated::Where::current()) {
  return emulated::vote(mask, !predicate, where) == 0;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              emulated::Where where = emulated::Where::current()) {
  const int first = emulated::lane_id() & ~(width - 1);
  return emulated::shuffle(mask, value, first | (source & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,
                  emulated::Where where = emulated::Where::current()) {
  const int lane = emulated::lane_id(), source = lane ^ lanes, last = lane | (width - 1);
  return emulated::shuffle(mask, value, source <= last ? source : lane, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = warpSize,
                   emulated::Where where = emulated::Where::current()) {
  const int lane = emulated::lane_id(), source = lane + static_cast<int>(lanes);
  return emulated::shuffle(mask, value, source <= (lane | (width - 1)) ? source : lane, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = warpSize,
                 emulated::Where where = emulated::Where::current()) {
  const int lane = emulated::lane_id(), source = lane - static_cast<int>(lanes);
  return emulated::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane, where);
}
