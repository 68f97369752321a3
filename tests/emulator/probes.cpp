// Small kernels that show what the emulator does: for the tests of the emulator itself.
#include <cstring>

#include "../../csrc/cuda/launch.cuh"
#include "emulation.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;

// ---- collectives as they should be

// Every thread's sum over its block, by shuffles and shared memory, from its own global index.
__global__ void block_sums(int* out) {
  __shared__ int board[32];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), lane = threadIdx.x % 32;
  int sum = i;
  for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_down_sync(kAll, sum, apart);
  if (lane == 0) board[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += board[warp];
  out[i] = sum;
}

// One row a kind of shuffle or vote, one column a lane.
__global__ void warp_words(int* out) {
  const int lane = threadIdx.x, x = 100 + lane;
  out[lane] = __shfl_sync(kAll, x, lane / 2);
  out[32 + lane] = __shfl_xor_sync(kAll, x, 5);
  out[64 + lane] = __shfl_up_sync(kAll, x, 3u, 8);
  out[96 + lane] = __shfl_down_sync(kAll, x, 3u, 8);
  out[128 + lane] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  out[160 + lane] = __any_sync(kAll, lane == 7) + 2 * __all_sync(kAll, lane < 32);
  // The two halves of the warp apart, and each of them in its own time.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  if (lane < 16) __syncwarp(half);
  out[192 + lane] = __shfl_xor_sync(half, x, 1);
  if (lane == 0) return;  // a thread that has ended is not waited for
  out[224 + lane] = __any_sync(kAll, lane == 0);
}

__global__ void orders(int* out, int* next) {
  out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

__global__ void fresh_shared_memory(float* out) {
  __shared__ float board[32];
  out[threadIdx.x] = board[threadIdx.x];
  board[threadIdx.x] = 1;
}

// Lane 0 writes, the others read; the barrier between is left out.
__global__ void missing_barrier(int* out) {
  __shared__ int word;
  if (threadIdx.x == 0) word = 42;
  out[threadIdx.x] = word;
}

// ---- collectives as they must not be

// Takes more stack than there is.
__noinline__ int deep(int level, int x) {
  volatile char room[4096];
  room[x] = static_cast<char>(level);
  return level > 1000 ? room[x] : deep(level + 1, x) + room[x];
}

__global__ void mistake(int kind, int* out) {
  const int lane = threadIdx.x % 32;
  int x = lane;
  if (kind == 0 && lane < 16) x = __shfl_xor_sync(kAll, x, 1);  // half of them wait for ever
  if (kind == 0 && lane >= 16) __syncthreads();
  if (kind == 1) x = __shfl_xor_sync(1u, x, 1);  // masks without the lane itself
  if (kind == 2) x = __shfl_sync(0xffu << (lane & ~7), x, (lane + 8) % 32);  // from another mask
  if (kind == 3 && lane == 3) return;
  if (kind == 3) x = __shfl_sync(kAll, x, 3);  // from a lane that has ended
  if (kind == 4) {
    if (lane < 8)
      x = __any_sync(kAll, 1);
    else
      x = __shfl_sync(kAll, x, 0);
  }
  if (kind == 5) {
    if (threadIdx.x < 32)
      __syncthreads();
    else
      __syncthreads();
  }
  if (kind == 6 && lane < 16) __syncwarp(0x0000ffffu);
  if (kind == 6 && lane >= 16) __syncwarp(kAll);
  if (kind == 6) __syncthreads();
  if (kind == 7 && threadIdx.x == 5) out = reinterpret_cast<int*>(uintptr_t{1} << 40);
  if (kind == 8 && threadIdx.x == 5) x = deep(0, x);
  out[threadIdx.x] = x;
}

// Shared memory of a template: the linker makes one of all its copies.
template <class T> __global__ void write_shared(int at, float* out) {
  struct Board {
    T first[3], second[5];
  };
  __shared__ Board board;
  __shared__ T alone[7];
  T* place = alone;  // of which the compiler knows no bounds
  if (at >= 0)
    *out = place[at] = 1;
  else
    *out = board.first[-1 - at] = 1;  // into its own neighbour
}

__global__ void read_at(const float* values, int64_t at, float* out) { *out = values[at]; }

template <class... Parameters, class... Arguments>
const char* start(void (*kernel)(Parameters...), unsigned blocks, unsigned threads,
                  Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// ---- textures

__global__ void fetches(cudaTextureObject_t texture, int shape, const float* at, int count,
                        float* out) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  const float x = at[3 * i], y = at[3 * i + 1], z = at[3 * i + 2];
  if (shape == 0) out[i] = tex2D<float>(texture, x, y);
  if (shape == 1) out[i] = tex3D<float>(texture, x, y, z);
  if (shape == 2) out[i] = tex2DLayered<float>(texture, x, y, static_cast<int>(z));
  if (shape == 3) out[i] = tex1Dfetch<float>(texture, static_cast<int>(x));
}

__global__ void write_layers(cudaSurfaceObject_t surface, int width, int height) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int x = i % width, y = i / width % height, layer = i / width / height;
  surf2DLayeredwrite(static_cast<float>(i), surface, x * 4, y, layer);
}

}  // namespace

struct TextureProbe {
  int shape;  // 0: 2D, 1: 3D, 2: layered, 3: linear memory
  int kind, bits, width, height, depth;
  int address, filter, normalize;
};

extern "C" {

const char* probe_block_sums(int blocks, int threads, int* out) {
  return start(block_sums, blocks, threads, out);
}
const char* probe_warp_words(int* out) { return start(warp_words, 1, 32, out); }
const char* probe_orders(int blocks, int threads, int* out) {
  int next = 0;
  return start(orders, blocks, threads, out, &next);
}
const char* probe_fresh_shared_memory(float* out) {
  if (const char* error = start(fresh_shared_memory, 1, 32, out)) return error;
  return start(fresh_shared_memory, 1, 32, out);
}
const char* probe_missing_barrier(int* out) { return start(missing_barrier, 1, 32, out); }
const char* probe_mistake(int kind, int* out) { return start(mistake, 1, 64, kind, out); }
const char* probe_read(const float* values, int64_t at, float* out) {
  return start(read_at, 1, 1, values, at, out);
}
const char* probe_shared(int at, float* out) { return start(write_shared<float>, 1, 1, at, out); }
const char* probe_launch(unsigned blocks, unsigned threads) {
  return start(missing_barrier, blocks, threads, static_cast<int*>(nullptr));
}

// The grids that the launchers ask for: [x, y, z].
void probe_linear_grid(int64_t threads, int a_block, unsigned* out) {
  const dim3 grid = drrkit::cuda::threads_grid(threads, a_block);
  out[0] = grid.x, out[1] = grid.y, out[2] = grid.z;
}
void probe_views_grid(int64_t blocks, int64_t views, unsigned* out) {
  const dim3 grid = drrkit::cuda::views_grid(blocks, views);
  out[0] = grid.x, out[1] = grid.y, out[2] = grid.z;
}

// Copies texels into an array (or takes them as linear memory), fetches, and frees everything.
const char* probe_texture(const TextureProbe* p, void* texels, const float* at, int count,
                          float* out) {
  const cudaChannelFormatDesc format =
      cudaCreateChannelDesc(p->bits, 0, 0, 0, static_cast<cudaChannelFormatKind>(p->kind));
  const size_t width = p->width, height = p->height, depth = p->depth, row = width * p->bits / 8;
  cudaArray_t array = nullptr;
  cudaResourceDesc resource = {};
  cudaError_t error = cudaSuccess;
  if (p->shape == 3) {
    resource.resType = cudaResourceTypeLinear;
    resource.res.linear = {texels, format, row};
  } else {
    const cudaExtent extent = make_cudaExtent(width, height, p->shape == 0 ? 0 : depth);
    error = cudaMalloc3DArray(&array, &format, extent, p->shape == 2 ? cudaArrayLayered : 0);
    cudaMemcpy3DParms copy = {};
    copy.srcPtr = make_cudaPitchedPtr(texels, row, width, height);
    copy.dstArray = array;
    copy.extent = make_cudaExtent(width, height, depth);
    copy.kind = cudaMemcpyDeviceToDevice;
    if (!error) error = cudaMemcpy3D(&copy);
    resource.resType = cudaResourceTypeArray;
    resource.res.array.array = array;
  }
  cudaTextureDesc how = {};
  for (auto& mode : how.addressMode) mode = static_cast<cudaTextureAddressMode>(p->address);
  how.filterMode = static_cast<cudaTextureFilterMode>(p->filter);
  how.readMode = static_cast<cudaTextureReadMode>(p->normalize);
  cudaTextureObject_t texture = 0;
  if (!error) error = cudaCreateTextureObject(&texture, &resource, &how, nullptr);
  const char* text = error ? cudaGetErrorString(error) : nullptr;
  if (!error) {
    text = start(fetches, (count + 63) / 64, 64, texture, p->shape, at, count, out);
    cudaDestroyTextureObject(texture);
  }
  cudaFreeArray(array);
  cudaGetLastError();
  return text;
}

// Writes 0, 1, 2, ... into a layered array through a surface, and copies it out again.
const char* probe_surface(int width, int height, int layers, unsigned flags, float* out) {
  const cudaChannelFormatDesc format = cudaCreateChannelDesc<float>();
  const cudaExtent extent = make_cudaExtent(width, height, layers);
  cudaArray_t array = nullptr;
  cudaError_t error = cudaMalloc3DArray(&array, &format, extent, cudaArrayLayered | flags);
  cudaResourceDesc resource = {};
  resource.resType = cudaResourceTypeArray;
  resource.res.array.array = array;
  cudaSurfaceObject_t surface = 0;
  if (!error) error = cudaCreateSurfaceObject(&surface, &resource);
  const char* text = error ? cudaGetErrorString(error) : nullptr;
  if (!error) {
    text = start(write_layers, width * height * layers, 1, surface, width, height);
    cudaDestroySurfaceObject(surface);
    cudaMemcpy3DParms copy = {};
    copy.srcArray = array;
    copy.dstPtr = make_cudaPitchedPtr(out, width * sizeof(float), width, height);
    copy.extent = extent;
    if (!text && cudaMemcpy3D(&copy)) text = "the copy failed";
  }
  cudaFreeArray(array);
  cudaGetLastError();
  return text;
}
}
