// What the extension says about itself; its operators register themselves when it is loaded. In
// Python's limited API, so that one library serves every release.
#include <Python.h>

#include "cpu/gemm.h"
#include "cpu/passes.h"
#include "cpu/ranking.h"

namespace {

#if defined(__clang__)
constexpr char kCompiler[] = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr char kCompiler[] = "gcc " __VERSION__;
#else
constexpr char kCompiler[] = "unknown";
#endif

PyObject* build_info(PyObject*, PyObject*) {
  const char* const ranking = rga::ranking_passes() ? "fused" : "torch";
#ifdef RGA_CUDA  // how the kernels of csrc/cuda were compiled
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:s}", "compiler", kCompiler, "instruction_set",
                       rga::instruction_set(), "products", rga::gemm_library(), "ranking", ranking,
                       "cuda", RGA_CUDA);
#else
  return Py_BuildValue("{s:s,s:s,s:s,s:s}", "compiler", kCompiler, "instruction_set",
                       rga::instruction_set(), "products", rga::gemm_library(), "ranking", ranking);
#endif
}

PyObject* use_gemm_library(PyObject*, PyObject* on) {
  const int truth = PyObject_IsTrue(on);
  if (truth < 0) return nullptr;
  rga::use_gemm_library(truth);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "Compiler, the instruction set that runs here, and what computes the products."},
    {"use_gemm_library", use_gemm_library, METH_O,
     "False: products through torch's dispatcher, as where torch exports no others."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C",
                          "The compiled operators of rga_fast",
                          -1,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
