// The Python module drrkit._C. Importing it registers the torch ops of ops.cpp; the rest is build
// information.
#include <pybind11/pybind11.h>

#include "cpu/kernels.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "drrkit's compiled kernels; private.";
#if defined(DRRKIT_CUDA)
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  m.def(
      "cpu_capability", [] { return drrkit::cpu::capability(); },
      "Instruction set the CPU kernels run with.");
}
