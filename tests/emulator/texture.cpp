// Texture fetches and surfaces. Filtering follows the CUDA programming guide's chapter on texture
// fetching: x_B = x - 1/2, i = floor(x_B), the fraction in fixed point with 8 fractional bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>

#include "array.h"
#include "emulation.h"

namespace emulated {
namespace {

struct Texture {
  Shape shape;
  cudaTextureDesc how;
  cudaChannelFormatDesc format;
  const char* start;
  size_t width, height, depth;  // texels; depth counts layers
  size_t element, row;          // bytes of a texel, of a row
};

struct Surface {
  Array* array;
  Shape shape;
};

template <class T> std::map<unsigned long long, T>& objects() {
  static std::map<unsigned long long, T> known;
  return known;
}
unsigned long long next_name = 1;

using Channels = std::array<double, 4>;

bool normalises(const Texture& t) { return t.how.readMode == cudaReadModeNormalizedFloat; }

template <class T> double read(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return static_cast<double>(value);
}

double channel(const Texture& t, const char* at) {
  const int bits = t.format.x;
  if (t.format.f == cudaChannelFormatKindFloat)
    return bits == 32 ? read<float>(at) : read<_Float16>(at);
  const bool is_signed = t.format.f == cudaChannelFormatKindSigned;
  double value;
  if (bits == 8)
    value = is_signed ? read<int8_t>(at) : read<uint8_t>(at);
  else if (bits == 16)
    value = is_signed ? read<int16_t>(at) : read<uint16_t>(at);
  else
    value = is_signed ? read<int32_t>(at) : read<uint32_t>(at);
  if (!normalises(t)) return value;
  const double largest = std::ldexp(1.0, is_signed ? bits - 1 : bits) - 1;
  return static_cast<float>(std::max(value / largest, -1.0));
}

// The texel's index after the address mode, or -1 for the border.
long place(const Texture& t, int axis, long i, long size) {
  switch (t.how.addressMode[axis]) {
    case cudaAddressModeBorder: return i >= 0 && i < size ? i : -1;
    case cudaAddressModeWrap:
      if (t.how.normalizedCoords) return ((i % size) + size) % size;
      break;  // only normalised coordinates wrap
    case cudaAddressModeMirror:
      if (t.how.normalizedCoords) {
        const long two = 2 * size, j = ((i % two) + two) % two;
        return j < size ? j : two - 1 - j;
      }
      break;
    default: break;
  }
  return std::clamp(i, 0l, size - 1);
}

Channels texel(const Texture& t, long x, long y, long z) {
  const bool deep = t.shape == Shape::k3D, flat = t.shape == Shape::k1D;
  const long at_x = place(t, 0, x, static_cast<long>(t.width));
  const long at_y = flat ? 0 : place(t, 1, y, static_cast<long>(t.height));
  const long at_z = deep ? place(t, 2, z, static_cast<long>(t.depth)) : z;
  Channels value = {0, 0, 0, 0};
  const int count = static_cast<int>(t.element * 8) / t.format.x;
  const bool outside = at_x < 0 || at_y < 0 || at_z < 0;
  const char* start =
      outside ? nullptr
              : t.start + (at_z * t.height + at_y) * t.row + at_x * static_cast<long>(t.element);
  for (int c = 0; c < count; ++c)
    value[c] = outside ? t.how.borderColor[c] : channel(t, start + c * t.format.x / 8);
  return value;
}

// Where a coordinate falls: the first texel and the weight of the next.
struct Cell {
  long index;
  double weight;
};

Cell cell(const Texture& t, float x, size_t size) {
  const double at = t.how.normalizedCoords ? static_cast<double>(x) * size : x;
  if (!(std::fabs(at) < 1e9)) return {at > 0 ? 1000000000l : -1000000000l, 0};  // NaN, too
  if (t.how.filterMode == cudaFilterModePoint) return {static_cast<long>(std::floor(at)), 0};
  const double shifted = at - 0.5, whole = std::floor(shifted);
  return {static_cast<long>(whole), std::floor((shifted - whole) * 256 + 0.5) / 256};
}

Channels filtered(const Texture& t, const Cell (&cells)[3]) {
  Channels sum = {0, 0, 0, 0};
  for (int corner = 0; corner < 8; ++corner) {
    double weight = 1;
    long at[3];
    for (int axis = 0; axis < 3; ++axis) {
      const bool upper = corner >> axis & 1;
      weight *= upper ? cells[axis].weight : 1 - cells[axis].weight;
      at[axis] = cells[axis].index + upper;
    }
    if (weight == 0) continue;
    const Channels value = texel(t, at[0], at[1], at[2]);
    for (int c = 0; c < 4; ++c) sum[c] += weight * value[c];
  }
  for (double& c : sum) c = static_cast<float>(c);
  return sum;
}

const Texture* texture_of(cudaTextureObject_t name, Shape shape, bool integers) {
  const auto found = objects<Texture>().find(name);
  if (found == objects<Texture>().end()) return stop("a fetch from a texture that does not exist");
  const Texture& t = found->second;
  if (t.shape != shape) return stop("a fetch that does not fit the texture's shape");
  const bool gives_integers = t.format.f != cudaChannelFormatKindFloat && !normalises(t);
  if (gives_integers != integers) return stop("a fetch of a type that the texture does not give");
  return &t;
}

bool may_filter(const Texture& t) {
  return t.format.f == cudaChannelFormatKindFloat || normalises(t);
}

cudaError_t describe(const cudaResourceDesc& from, Texture& t) {
  if (from.resType == cudaResourceTypeArray) {
    const Array* array = from.res.array.array;
    if (!array) return cudaErrorInvalidValue;
    t.shape = array->layered() ? Shape::kLayered2D
              : array->depth   ? Shape::k3D
              : array->height  ? Shape::k2D
                               : Shape::k1D;
    t.format = array->format;
    t.start = array->bytes.data();
    t.width = array->width, t.height = array->rows(), t.depth = array->slices();
    t.element = array->element, t.row = t.width * t.element;
  } else if (from.resType == cudaResourceTypeLinear) {
    t.shape = Shape::kLinear;
    t.format = from.res.linear.desc;
    t.start = static_cast<const char*>(from.res.linear.devPtr);
    t.element = element_bytes(t.format);
    if (t.element == 0) return cudaErrorInvalidChannelDescriptor;
    t.width = from.res.linear.sizeInBytes / t.element, t.height = t.depth = 1;
    t.row = t.width * t.element;
    if (t.width > (size_t(1) << 28)) return cudaErrorInvalidValue;
  } else if (from.resType == cudaResourceTypePitch2D) {
    t.shape = Shape::k2D;
    t.format = from.res.pitch2D.desc;
    t.start = static_cast<const char*>(from.res.pitch2D.devPtr);
    t.element = element_bytes(t.format);
    t.width = from.res.pitch2D.width, t.height = from.res.pitch2D.height, t.depth = 1;
    t.row = from.res.pitch2D.pitchInBytes;
    if (t.element == 0) return cudaErrorInvalidChannelDescriptor;
    if (t.row % 32 || t.row < t.width * t.element || t.width > 131072 || t.height > 65000)
      return cudaErrorInvalidValue;
  } else {
    return cudaErrorNotSupported;
  }
  return t.start ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace

std::array<double, 4> fetch(cudaTextureObject_t name, Shape shape, float x, float y, float z,
                            int layer, bool integers) {
  const Texture* t = texture_of(name, shape, integers);
  if (!t) return {0, 0, 0, 0};
  Cell cells[3] = {cell(*t, x, t->width), {0, 0}, {0, 0}};
  if (shape != Shape::k1D) cells[1] = cell(*t, y, t->height);
  if (shape == Shape::k3D) cells[2] = cell(*t, z, t->depth);
  if (shape == Shape::kLayered2D)
    cells[2].index = std::clamp<long>(layer, 0, static_cast<long>(t->depth) - 1);
  if (t->how.filterMode == cudaFilterModePoint)
    return texel(*t, cells[0].index, cells[1].index, cells[2].index);
  return filtered(*t, cells);
}

std::array<double, 4> fetch_linear(cudaTextureObject_t name, int at, bool integers) {
  const Texture* t = texture_of(name, Shape::kLinear, integers);
  std::array<double, 4> value = {0, 0, 0, 0};
  if (!t || at < 0 || static_cast<size_t>(at) >= t->width) return value;
  const int count = static_cast<int>(t->element * 8) / t->format.x;
  for (int c = 0; c < count; ++c)
    value[c] = channel(*t, t->start + at * t->element + c * t->format.x / 8);
  return value;
}

void* surface_element(cudaSurfaceObject_t name, Shape shape, int x_bytes, int y, int z,
                      size_t bytes, cudaSurfaceBoundaryMode mode) {
  const auto found = objects<Surface>().find(name);
  if (found == objects<Surface>().end()) {
    stop("a surface that does not exist");
    return nullptr;
  }
  if (found->second.shape != shape) {
    stop("an access that does not fit the surface's shape");
    return nullptr;
  }
  Array& array = *found->second.array;
  const long row = static_cast<long>(array.width * array.element);
  if (x_bytes % static_cast<int>(bytes) || bytes != array.element) {
    stop("a surface's x counts bytes, and accesses have the size of an element");
    return nullptr;
  }
  const bool inside = x_bytes >= 0 && x_bytes < row && y >= 0 && y < long(array.rows()) && z >= 0 &&
                      z < long(array.slices());
  if (!inside) {
    if (mode == cudaBoundaryModeTrap) stop("a surface access out of bounds");
    if (mode != cudaBoundaryModeClamp) return nullptr;
    x_bytes = static_cast<int>(std::clamp<long>(x_bytes, 0, row - static_cast<long>(bytes)));
    y = static_cast<int>(std::clamp<long>(y, 0, static_cast<long>(array.rows()) - 1));
    z = static_cast<int>(std::clamp<long>(z, 0, static_cast<long>(array.slices()) - 1));
  }
  return array.bytes.data() + (static_cast<size_t>(z) * array.rows() + y) * row + x_bytes;
}

}  // namespace emulated

using emulated::Surface;
using emulated::Texture;

cudaError_t cudaCreateTextureObject(cudaTextureObject_t* texture, const cudaResourceDesc* resource,
                                    const cudaTextureDesc* description,
                                    const cudaResourceViewDesc* view) {
  *texture = 0;
  if (view) return emulated::fail(cudaErrorNotSupported);
  Texture t = {};
  t.how = *description;
  if (const cudaError_t error = emulated::describe(*resource, t)) return emulated::fail(error);
  const bool floats = t.format.f == cudaChannelFormatKindFloat;
  if (emulated::normalises(t) && (floats || t.format.x == 32))
    return emulated::fail(cudaErrorInvalidValue);
  if (t.how.filterMode == cudaFilterModeLinear && !emulated::may_filter(t))
    return emulated::fail(cudaErrorInvalidValue);
  *texture = emulated::next_name++;
  emulated::objects<Texture>()[*texture] = t;
  emulated::counts().textures += 1;
  return cudaSuccess;
}
cudaError_t cudaDestroyTextureObject(cudaTextureObject_t texture) {
  if (!emulated::objects<Texture>().erase(texture)) return emulated::fail(cudaErrorInvalidValue);
  emulated::counts().textures -= 1;
  return cudaSuccess;
}
cudaError_t cudaCreateSurfaceObject(cudaSurfaceObject_t* surface,
                                    const cudaResourceDesc* resource) {
  *surface = 0;
  emulated::Array* array =
      resource->resType == cudaResourceTypeArray ? resource->res.array.array : nullptr;
  if (!array || !(array->flags & cudaArraySurfaceLoadStore))
    return emulated::fail(cudaErrorInvalidValue);
  const auto shape = array->layered() ? emulated::Shape::kLayered2D
                     : array->depth   ? emulated::Shape::k3D
                                      : emulated::Shape::k2D;
  *surface = emulated::next_name++;
  emulated::objects<Surface>()[*surface] = {array, shape};
  emulated::counts().surfaces += 1;
  return cudaSuccess;
}
cudaError_t cudaDestroySurfaceObject(cudaSurfaceObject_t surface) {
  if (!emulated::objects<Surface>().erase(surface)) return emulated::fail(cudaErrorInvalidValue);
  emulated::counts().surfaces -= 1;
  return cudaSuccess;
}
