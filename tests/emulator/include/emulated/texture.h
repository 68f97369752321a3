// Textures and surfaces as a GPU reads them: filtering weights have 8 bits of fraction.
#pragma once

#include <array>
#include <type_traits>

#include "memory.h"

enum cudaTextureAddressMode {
  cudaAddressModeWrap = 0,
  cudaAddressModeClamp = 1,
  cudaAddressModeMirror = 2,
  cudaAddressModeBorder = 3
};
enum cudaTextureFilterMode { cudaFilterModePoint = 0, cudaFilterModeLinear = 1 };
enum cudaTextureReadMode { cudaReadModeElementType = 0, cudaReadModeNormalizedFloat = 1 };
enum cudaResourceType {
  cudaResourceTypeArray = 0,
  cudaResourceTypeMipmappedArray = 1,
  cudaResourceTypeLinear = 2,
  cudaResourceTypePitch2D = 3
};

struct cudaResourceDesc {
  cudaResourceType resType;
  union {
    struct {
      cudaArray_t array;
    } array;
    struct {
      void* devPtr;
      cudaChannelFormatDesc desc;
      size_t sizeInBytes;
    } linear;
    struct {
      void* devPtr;
      cudaChannelFormatDesc desc;
      size_t width, height, pitchInBytes;
    } pitch2D;
  } res;
};
struct cudaTextureDesc {
  cudaTextureAddressMode addressMode[3];
  cudaTextureFilterMode filterMode;
  cudaTextureReadMode readMode;
  int sRGB;
  float borderColor[4];
  int normalizedCoords;
  unsigned maxAnisotropy;
  cudaTextureFilterMode mipmapFilterMode;
  float mipmapLevelBias, minMipmapLevelClamp, maxMipmapLevelClamp;
  int disableTrilinearOptimization, seamlessCubemap;
};
struct cudaResourceViewDesc;

typedef unsigned long long cudaTextureObject_t;
typedef unsigned long long cudaSurfaceObject_t;

enum cudaSurfaceBoundaryMode {
  cudaBoundaryModeZero = 0,
  cudaBoundaryModeClamp = 1,
  cudaBoundaryModeTrap = 2
};

cudaError_t cudaCreateTextureObject(cudaTextureObject_t* texture, const cudaResourceDesc* resource,
                                    const cudaTextureDesc* description,
                                    const cudaResourceViewDesc* view);
cudaError_t cudaDestroyTextureObject(cudaTextureObject_t texture);
cudaError_t cudaCreateSurfaceObject(cudaSurfaceObject_t* surface, const cudaResourceDesc* resource);
cudaError_t cudaDestroySurfaceObject(cudaSurfaceObject_t surface);

namespace emulated {

enum class Shape { k1D, k2D, k3D, kLayered2D, kLinear };

// One fetch: four channels, those that the texture lacks 0. `integers` tells that the kernel asked
// for an integer type, which a texture that filters or normalises does not give.
std::array<double, 4> fetch(cudaTextureObject_t texture, Shape shape, float x, float y, float z,
                            int layer, bool integers);
std::array<double, 4> fetch_linear(cudaTextureObject_t texture, int at, bool integers);

template <class T> T convert(const std::array<double, 4>& channels) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<T>(channels[0]);
  } else {
    T value;
    using S = decltype(value.x);
    value.x = static_cast<S>(channels[0]);
    if constexpr (requires { value.y; }) value.y = static_cast<S>(channels[1]);
    if constexpr (requires { value.z; }) value.z = static_cast<S>(channels[2]);
    if constexpr (requires { value.w; }) value.w = static_cast<S>(channels[3]);
    return value;
  }
}
template <class T> constexpr bool is_integer() {
  if constexpr (std::is_arithmetic_v<T>) {
    return std::is_integral_v<T>;
  } else {
    return std::is_integral_v<decltype(T::x)>;
  }
}

// The bytes of an element of a surface, or null where the boundary mode says to do nothing.
void* surface_element(cudaSurfaceObject_t surface, Shape shape, int x_bytes, int y, int z,
                      size_t bytes, cudaSurfaceBoundaryMode mode);

}  // namespace emulated

template <class T> T tex1D(cudaTextureObject_t texture, float x) {
  return emulated::convert<T>(
      emulated::fetch(texture, emulated::Shape::k1D, x, 0, 0, 0, emulated::is_integer<T>()));
}
template <class T> T tex2D(cudaTextureObject_t texture, float x, float y) {
  return emulated::convert<T>(
      emulated::fetch(texture, emulated::Shape::k2D, x, y, 0, 0, emulated::is_integer<T>()));
}
template <class T> T tex3D(cudaTextureObject_t texture, float x, float y, float z) {
  return emulated::convert<T>(
      emulated::fetch(texture, emulated::Shape::k3D, x, y, z, 0, emulated::is_integer<T>()));
}
template <class T> T tex2DLayered(cudaTextureObject_t texture, float x, float y, int layer) {
  return emulated::convert<T>(emulated::fetch(texture, emulated::Shape::kLayered2D, x, y, 0, layer,
                                              emulated::is_integer<T>()));
}
template <class T> T tex1Dfetch(cudaTextureObject_t texture, int at) {
  return emulated::convert<T>(emulated::fetch_linear(texture, at, emulated::is_integer<T>()));
}

#define EMULATED_SURFACE(name, shape, positions, ...)                                       \
  template <class T>                                                                        \
  void surf##name##write(T value, cudaSurfaceObject_t surface, positions,                   \
                         cudaSurfaceBoundaryMode mode = cudaBoundaryModeTrap) {             \
    if (void* at = emulated::surface_element(surface, shape, __VA_ARGS__, sizeof(T), mode)) \
      __builtin_memcpy(at, &value, sizeof value);                                           \
  }                                                                                         \
  template <class T>                                                                        \
  T surf##name##read(cudaSurfaceObject_t surface, positions,                                \
                     cudaSurfaceBoundaryMode mode = cudaBoundaryModeTrap) {                 \
    T value = {};                                                                           \
    if (void* at = emulated::surface_element(surface, shape, __VA_ARGS__, sizeof(T), mode)) \
      __builtin_memcpy(&value, at, sizeof value);                                           \
    return value;                                                                           \
  }
#define EMULATED_POSITIONS(...) __VA_ARGS__
EMULATED_SURFACE(2D, emulated::Shape::k2D, EMULATED_POSITIONS(int x, int y), x, y, 0)
EMULATED_SURFACE(3D, emulated::Shape::k3D, EMULATED_POSITIONS(int x, int y, int z), x, y, z)
EMULATED_SURFACE(2DLayered, emulated::Shape::kLayered2D, EMULATED_POSITIONS(int x, int y, int z), x,
                 y, z)
#undef EMULATED_SURFACE
#undef EMULATED_POSITIONS
