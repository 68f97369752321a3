// The Python module drrkit._C. Importing it registers the torch ops of ops.cpp; the rest is build
// information and the prepared volumes that a Projector owns. Tensors come as addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/kernels.h"
#include "packed.h"
#if defined(DRRKIT_CUDA)
#include "cuda/packed.h"
#endif

namespace py = pybind11;

namespace {

template <class T> T* address(uintptr_t number) { return reinterpret_cast<T*>(number); }

void bind_packed_volume(py::module_& m) {
  using drrkit::PackedVolume;
  py::class_<PackedVolume>(m, "PackedVolume")
      .def(py::init(
          [](const std::array<int64_t, 5>& shape, int voxel, const std::array<int32_t, 3>& bricks) {
            return std::make_unique<PackedVolume>(shape, static_cast<drrkit::Voxel>(voxel), bricks);
          }))
      .def_property_readonly("handle", &PackedVolume::handle)
      .def_property_readonly("bytes", &PackedVolume::bytes)
      .def_property_readonly("uses", &PackedVolume::uses)
      .def("publish", [](PackedVolume& self, uintptr_t data, int64_t version, uintptr_t occupied,
                         uintptr_t distance) {
        self.publish(address<void>(data), version, address<drrkit::Occupied>(occupied),
                     address<uint8_t>(distance));
      });
}

#if defined(DRRKIT_CUDA)
void bind_cuda_packed_volume(py::module_& m) {
  using drrkit::cuda::PackedVolume;
  py::class_<PackedVolume>(m, "CudaPackedVolume")
      .def(py::init([](int device, const std::array<int64_t, 5>& shape, int voxel, int texel,
                       const std::array<int32_t, 3>& bricks) {
        return std::make_unique<PackedVolume>(device, shape, static_cast<drrkit::Voxel>(voxel),
                                              static_cast<drrkit::cuda::Texel>(texel), bricks);
      }))
      .def_property_readonly("handle", &PackedVolume::handle)
      .def_property_readonly("bytes", &PackedVolume::bytes)
      .def_property_readonly("uses", &PackedVolume::uses)
      .def("fill_texture",
           [](PackedVolume& self, int64_t image, int axis, uintptr_t texels, uintptr_t stream) {
             self.fill_texture(image, axis, address<void>(texels), address<void>(stream));
           })
      .def("fill",
           [](PackedVolume& self, uintptr_t scale, uintptr_t copy, uintptr_t occupied,
              uintptr_t distance, uintptr_t stream) {
             self.fill(address<float>(scale), address<void>(copy),
                       address<drrkit::Occupied>(occupied), address<uint8_t>(distance),
                       address<void>(stream));
           })
      .def("publish", [](PackedVolume& self, uintptr_t data, int64_t version, bool textures) {
        self.publish(address<void>(data), version, textures);
      });
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "drrkit's compiled kernels; private.";
#if defined(DRRKIT_CUDA)
  m.attr("has_cuda") = true;
  bind_cuda_packed_volume(m);
#else
  m.attr("has_cuda") = false;
#endif
  bind_packed_volume(m);
  m.def(
      "cpu_capability", [] { return drrkit::cpu::capability(); },
      "Instruction set the CPU kernels run with.");
}
