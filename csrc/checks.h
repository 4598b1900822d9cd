// What protects memory, checked with words. Everything else is checked once in Python.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <string>

namespace rga {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(const Tensor& t) {
  std::string text = "(";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + ")";
}

inline void check_dense(const Tensor& t, const char* name, std::initializer_list<int64_t> shape,
                        ScalarType dtype) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  std::string expected = "(";
  int64_t i = 0;
  for (int64_t size : shape) {
    expected += (i ? ", " : "") + std::to_string(size);
    same = same && t.size(i) == size;
    ++i;
  }
  STD_TORCH_CHECK(same, "rga_fast: ", name, " must be ", expected, "), got ", shape_text(t));
  STD_TORCH_CHECK(t.scalar_type() == dtype, "rga_fast: ", name, " has the wrong dtype");
  STD_TORCH_CHECK(t.is_cpu(), "rga_fast: ", name, " must be on the CPU");
  STD_TORCH_CHECK(t.is_contiguous(), "rga_fast: ", name, " must be contiguous");
}

// The dtype of weights and statistics for a map of a dtype.
inline ScalarType compute_type(ScalarType map) {
  return map == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

}  // namespace rga
