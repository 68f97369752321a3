// A CUDA array: rows of elements, without padding.
#pragma once

#include <cuda_runtime.h>

#include <vector>

namespace emulated {

struct Array {
  cudaChannelFormatDesc format;
  size_t width, height, depth;  // height and depth may be 0; depth counts layers
  unsigned flags;
  size_t element;  // bytes
  std::vector<char> bytes;

  size_t rows() const { return height ? height : 1; }
  size_t slices() const { return depth ? depth : 1; }
  bool layered() const { return flags & cudaArrayLayered; }
};

// Bytes of an element, 0 where no array has such channels.
size_t element_bytes(const cudaChannelFormatDesc& format);

}  // namespace emulated
