// What the extension says about itself; its operators register themselves when it is loaded.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/gemm.h"
#include "cpu/passes.h"
#include "cpu/ranking.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = compiler();
  info["instruction_set"] = rga::instruction_set();
  info["products"] = rga::gemm_library();
  info["ranking"] = rga::ranking_passes() ? "fused" : "torch";
#ifdef RGA_CUDA  // how the kernels of csrc/cuda were compiled
  info["cuda"] = RGA_CUDA;
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled operators of rga_fast";
  m.def("build_info", &build_info,
        "Compiler, the instruction set that runs here, and what computes the products.");
  m.def("use_gemm_library", &rga::use_gemm_library, py::arg("on"),
        "False: products through torch's dispatcher, as where torch exports no others.");
}
