// The Python module drrkit._C. Importing it registers the torch ops of ops.cpp; the rest is build
// information and the prepared volumes that a Projector owns. Tensors come as addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/kernels.h"
#include "packed/handles.h"
#if defined(DRRKIT_CUDA)
#include "cuda/packed.h"
#endif

namespace py = pybind11;

namespace {

template <class T> T* address(uintptr_t number) { return reinterpret_cast<T*>(number); }

void bind_packed_volume(py::module_& m) {
  using drrkit::PackedVolume;
  py::class_<PackedVolume>(m, "PackedVolume")
      .def(py::init([](const std::array<int64_t, 5>& shape, int voxel,
                       const std::array<int32_t, 3>& bricks) {
        return std::make_unique<PackedVolume>(shape, static_cast<drrkit::VoxelType>(voxel), bricks);
      }))
      .def_property_readonly("handle", &PackedVolume::handle)
      .def_property_readonly("bytes", &PackedVolume::bytes)
      .def_property_readonly("uses", &PackedVolume::uses)
      .def("publish", [](PackedVolume& self, uintptr_t data, int64_t version, uintptr_t occupied,
                         uintptr_t distance, uintptr_t texels, uintptr_t scale, int texel) {
        self.publish(address<void>(data), version, address<drrkit::Occupied>(occupied),
                     address<uint8_t>(distance), address<uint8_t>(texels), address<float>(scale),
                     static_cast<drrkit::VoxelType>(texel));
      });
}

#if defined(DRRKIT_CUDA)
void bind_cuda_packed_volume(py::module_& m) {
  using drrkit::cuda::CudaPackedVolume;
  py::class_<CudaPackedVolume>(m, "CudaPackedVolume")
      .def(py::init([](int device, const std::array<int64_t, 5>& shape, int voxel, int texel,
                       const std::array<int32_t, 3>& bricks) {
        return std::make_unique<CudaPackedVolume>(device, shape,
                                                  static_cast<drrkit::VoxelType>(voxel),
                                                  static_cast<drrkit::VoxelType>(texel), bricks);
      }))
      .def_property_readonly("handle", &CudaPackedVolume::handle)
      .def_property_readonly("bytes", &CudaPackedVolume::bytes)
      .def_property_readonly("uses", &CudaPackedVolume::uses)
      .def("fill_texture",
           [](CudaPackedVolume& self, int64_t image, int axis, uintptr_t texels, uintptr_t stream) {
             self.fill_texture(image, axis, address<void>(texels), address<void>(stream));
           })
      .def("fill",
           [](CudaPackedVolume& self, uintptr_t scale, uintptr_t copy, uintptr_t occupied,
              uintptr_t distance, uintptr_t stream) {
             self.fill(address<float>(scale), address<void>(copy),
                       address<drrkit::Occupied>(occupied), address<uint8_t>(distance),
                       address<void>(stream));
           })
      .def("publish", [](CudaPackedVolume& self, uintptr_t data, int64_t version, bool textures) {
        self.publish(address<void>(data), version, textures);
      });
}
#endif

// What Python and the kernels agree on, in the order of the enums; Python keeps no copy of it.
void export_contracts(py::module_& m) {
  using drrkit::Flags;
  m.attr("METHODS") = py::make_tuple("joseph", "siddon", "trilinear");
  m.attr("BEAMS") = py::make_tuple("cone", "parallel");  // kScan is reserved
  m.attr("VOXELS") = py::make_tuple("float16", "bfloat16", "float32", "float64", "int16");
  m.attr("BEAM_SHIFT") = Flags::kBeamShift;
  m.attr("LINE") = Flags::kLine;
  m.attr("FOOT") = Flags::kFoot;
  m.attr("EXTEND") = Flags::kExtend;
  m.attr("BRICK") = 1 << drrkit::kBrickShift;
  m.attr("OCCUPIED") = sizeof(drrkit::Occupied) / sizeof(int32_t);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "drrkit's compiled kernels; private.";
  export_contracts(m);
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
