// Device memory and arrays. Device memory is host memory, so kernels read what tests allocate;
// fresh memory is full of NaN.
#pragma once

#include "errors.h"
#include "vectors.h"

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
};

enum cudaChannelFormatKind {
  cudaChannelFormatKindSigned = 0,
  cudaChannelFormatKindUnsigned = 1,
  cudaChannelFormatKindFloat = 2,
  cudaChannelFormatKindNone = 3
};
struct cudaChannelFormatDesc {
  int x, y, z, w;  // bits a channel
  cudaChannelFormatKind f;
};

struct cudaExtent {
  size_t width, height, depth;  // elements of an array, else bytes, rows, slices
};
struct cudaPos {
  size_t x, y, z;
};
struct cudaPitchedPtr {
  void* ptr;
  size_t pitch, xsize, ysize;
};

namespace emulated {
struct Array;
}
typedef emulated::Array* cudaArray_t;
typedef const emulated::Array* cudaArray_const_t;

struct cudaMemcpy3DParms {
  cudaArray_t srcArray;
  cudaPos srcPos;
  cudaPitchedPtr srcPtr;
  cudaArray_t dstArray;
  cudaPos dstPos;
  cudaPitchedPtr dstPtr;
  cudaExtent extent;  // in elements where an array takes part, else in bytes
  cudaMemcpyKind kind;
};

constexpr unsigned cudaArrayDefault = 0, cudaArrayLayered = 1, cudaArraySurfaceLoadStore = 2;

inline cudaExtent make_cudaExtent(size_t width, size_t height, size_t depth) {
  return {width, height, depth};
}
inline cudaPos make_cudaPos(size_t x, size_t y, size_t z) { return {x, y, z}; }
inline cudaPitchedPtr make_cudaPitchedPtr(void* ptr, size_t pitch, size_t xsize, size_t ysize) {
  return {ptr, pitch, xsize, ysize};
}
inline cudaChannelFormatDesc cudaCreateChannelDesc(int x, int y, int z, int w,
                                                   cudaChannelFormatKind kind) {
  return {x, y, z, w, kind};
}
template <class T> cudaChannelFormatDesc cudaCreateChannelDesc();
#define EMULATED_CHANNELS(type, bits, kind)                                   \
  template <> inline cudaChannelFormatDesc cudaCreateChannelDesc<type>() {    \
    return {bits, 0, 0, 0, cudaChannelFormatKind##kind};                      \
  }                                                                           \
  template <> inline cudaChannelFormatDesc cudaCreateChannelDesc<type##2>() { \
    return {bits, bits, 0, 0, cudaChannelFormatKind##kind};                   \
  }                                                                           \
  template <> inline cudaChannelFormatDesc cudaCreateChannelDesc<type##4>() { \
    return {bits, bits, bits, bits, cudaChannelFormatKind##kind};             \
  }
namespace emulated {
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned uint;
}  // namespace emulated
using emulated::uchar;
EMULATED_CHANNELS(float, 32, Float)
EMULATED_CHANNELS(int, 32, Signed)
EMULATED_CHANNELS(short, 16, Signed)
EMULATED_CHANNELS(ushort, 16, Unsigned)
EMULATED_CHANNELS(uchar, 8, Unsigned)
EMULATED_CHANNELS(uint, 32, Unsigned)
#undef EMULATED_CHANNELS
inline cudaChannelFormatDesc cudaCreateChannelDescHalf() {
  return {16, 0, 0, 0, cudaChannelFormatKindFloat};
}

cudaError_t cudaMalloc(void** pointer, size_t bytes);
cudaError_t cudaFree(void* pointer);
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream);
template <class T> cudaError_t cudaMalloc(T** pointer, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(pointer), bytes);
}
template <class T> cudaError_t cudaMallocAsync(T** pointer, size_t bytes, cudaStream_t stream) {
  return cudaMallocAsync(reinterpret_cast<void**>(pointer), bytes, stream);
}

cudaError_t cudaMemset(void* pointer, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy3D(const cudaMemcpy3DParms* copy);
cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms* copy, cudaStream_t stream = nullptr);

// Limits are those of compute capability 9.0.
cudaError_t cudaMallocArray(cudaArray_t* array, const cudaChannelFormatDesc* format, size_t width,
                            size_t height = 0, unsigned flags = 0);
cudaError_t cudaMalloc3DArray(cudaArray_t* array, const cudaChannelFormatDesc* format,
                              cudaExtent extent, unsigned flags = 0);
cudaError_t cudaFreeArray(cudaArray_t array);
cudaError_t cudaArrayGetInfo(cudaChannelFormatDesc* format, cudaExtent* extent, unsigned* flags,
                             cudaArray_t array);
