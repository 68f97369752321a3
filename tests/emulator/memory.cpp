// Device memory, arrays, copies.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>

#include "array.h"
#include "emulation.h"

namespace {

std::set<void*>& allocated() {
  static std::set<void*> pointers;
  return pointers;
}

bool pitched_side(const cudaPitchedPtr& side) { return side.ptr != nullptr; }

// Rows of one side of a copy.
struct Side {
  char* start;
  size_t row, slice;  // bytes from a row, from a slice to the next
};

// False where the box leaves the array.
bool side_of(const emulated::Array* array, const cudaPitchedPtr& pitched, const cudaPos& at,
             const cudaExtent& extent, Side& side) {
  if (!array) {
    side.row = pitched.pitch;
    side.slice = pitched.pitch * pitched.ysize;
    side.start = static_cast<char*>(pitched.ptr) + at.x + at.y * side.row + at.z * side.slice;
    return true;
  }
  if (at.x + extent.width > array->width || at.y + extent.height > array->rows() ||
      at.z + extent.depth > array->slices())
    return false;
  side.row = array->width * array->element;
  side.slice = side.row * array->rows();
  side.start = const_cast<char*>(array->bytes.data()) + at.x * array->element + at.y * side.row +
               at.z * side.slice;
  return true;
}

}  // namespace

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (emulated::capture_forbids()) return emulated::fail(cudaErrorStreamCaptureUnsupported);
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  *pointer = std::malloc(bytes);  // not rounded up: the address sanitizer guards the very end
  if (!*pointer) return emulated::fail(cudaErrorMemoryAllocation);
  std::memset(*pointer, 0xff, bytes);
  allocated().insert(*pointer);
  emulated::counts().allocations += 1;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (emulated::capture_forbids()) return emulated::fail(cudaErrorStreamCaptureUnsupported);
  if (!pointer) return cudaSuccess;
  if (!allocated().erase(pointer)) return emulated::fail(cudaErrorInvalidValue);
  std::free(pointer);
  emulated::counts().allocations -= 1;
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  return cudaMalloc(pointer, bytes);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }

cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(pointer, value, bytes);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return emulated::enqueue(stream, [=] { return cudaMemcpy(to, from, bytes, kind); });
}

cudaError_t cudaMemcpy3D(const cudaMemcpy3DParms* copy) {
  const bool one_source = !copy->srcArray == pitched_side(copy->srcPtr);
  const bool one_target = !copy->dstArray == pitched_side(copy->dstPtr);
  if (!one_source || !one_target) return emulated::fail(cudaErrorInvalidValue);
  const emulated::Array* array = copy->srcArray ? copy->srcArray : copy->dstArray;
  Side from, to;
  if (!side_of(copy->srcArray, copy->srcPtr, copy->srcPos, copy->extent, from) ||
      !side_of(copy->dstArray, copy->dstPtr, copy->dstPos, copy->extent, to))
    return emulated::fail(cudaErrorInvalidValue);
  const size_t row = copy->extent.width * (array ? array->element : 1);
  for (const cudaPitchedPtr* side : {&copy->srcPtr, &copy->dstPtr})
    if (side->ptr &&
        (row > side->pitch || (copy->extent.depth > 1 && copy->extent.height > side->ysize)))
      return emulated::fail(cudaErrorInvalidValue);
  for (size_t z = 0; z < copy->extent.depth; ++z)
    for (size_t y = 0; y < copy->extent.height; ++y)
      std::memcpy(to.start + z * to.slice + y * to.row, from.start + z * from.slice + y * from.row,
                  row);
  return cudaSuccess;
}
cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms* copy, cudaStream_t stream) {
  return emulated::enqueue(stream, [kept = *copy] { return cudaMemcpy3D(&kept); });
}

cudaError_t cudaMalloc3DArray(cudaArray_t* array, const cudaChannelFormatDesc* format,
                              cudaExtent extent, unsigned flags) {
  if (emulated::capture_forbids()) return emulated::fail(cudaErrorStreamCaptureUnsupported);
  *array = nullptr;
  const bool layered = flags & cudaArrayLayered;
  if (flags & ~(cudaArrayLayered | cudaArraySurfaceLoadStore))
    return emulated::fail(cudaErrorNotSupported);
  const size_t element = emulated::element_bytes(*format);
  if (element == 0) return emulated::fail(cudaErrorInvalidChannelDescriptor);
  const size_t w = extent.width, h = extent.height, d = extent.depth;
  bool fits;
  if (layered)
    fits = w > 0 && h > 0 && d > 0 && w <= 32768 && h <= 32768 && d <= 2048;
  else if (d > 0)
    fits = w > 0 && h > 0 && w <= 16384 && h <= 16384 && d <= 16384;
  else
    fits = w > 0 && w <= 131072 && h <= 65536;
  if (!fits) return emulated::fail(cudaErrorInvalidValue);
  *array = new emulated::Array{*format, w, h, d, flags, element, {}};
  (*array)->bytes.assign(w * (*array)->rows() * (*array)->slices() * element, '\xff');
  emulated::counts().arrays += 1;
  return cudaSuccess;
}
cudaError_t cudaMallocArray(cudaArray_t* array, const cudaChannelFormatDesc* format, size_t width,
                            size_t height, unsigned flags) {
  return cudaMalloc3DArray(array, format, {width, height, 0}, flags);
}
cudaError_t cudaFreeArray(cudaArray_t array) {
  if (emulated::capture_forbids()) return emulated::fail(cudaErrorStreamCaptureUnsupported);
  if (!array) return cudaSuccess;
  delete array;
  emulated::counts().arrays -= 1;
  return cudaSuccess;
}
cudaError_t cudaArrayGetInfo(cudaChannelFormatDesc* format, cudaExtent* extent, unsigned* flags,
                             cudaArray_t array) {
  if (format) *format = array->format;
  if (extent) *extent = {array->width, array->height, array->depth};
  if (flags) *flags = array->flags;
  return cudaSuccess;
}

namespace emulated {

size_t element_bytes(const cudaChannelFormatDesc& format) {
  const int bits[] = {format.x, format.y, format.z, format.w};
  int channels = 0;
  while (channels < 4 && bits[channels] > 0) ++channels;
  for (int c = 1; c < 4; ++c)
    if (bits[c] != (c < channels ? bits[0] : 0)) return 0;
  const bool width = bits[0] == 8 || bits[0] == 16 || bits[0] == 32;
  const bool floats = format.f != cudaChannelFormatKindFloat || bits[0] >= 16;
  if (!width || !floats || channels == 3 || format.f == cudaChannelFormatKindNone) return 0;
  return static_cast<size_t>(channels) * bits[0] / 8;
}

}  // namespace emulated
