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

// `like`: a tensor on the device where `t` must be; null: the CPU.
inline void check_dense(const Tensor& t, const char* name, std::initializer_list<int64_t> shape,
                        ScalarType dtype, const Tensor* like = nullptr) {
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
  STD_TORCH_CHECK(like ? t.device() == like->device() : t.is_cpu(), "rga_fast: ", name,
                  " must be on the ", like ? "device of the map" : "CPU");
  STD_TORCH_CHECK(t.is_contiguous(), "rga_fast: ", name, " must be contiguous");
}

// The dtype of weights and statistics for a map of a dtype.
inline ScalarType compute_type(ScalarType map) {
  return map == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The nodes of a map, V (B, d, n): each image dense, by rows (d x n) or by columns (n x d).
struct Nodes {
  int64_t B, d, n;
  bool by_rows;

  explicit Nodes(const Tensor& V, const char* name = "V") : B(0), d(0), n(0), by_rows(true) {
    STD_TORCH_CHECK(V.dim() == 3, "rga_fast: ", name, " must be (B, d, n), got ", shape_text(V));
    B = V.size(0), d = V.size(1), n = V.size(2);
    const auto dense = [&](int64_t row, int64_t column) {
      return (d == 1 || V.stride(1) == row) && (n == 1 || V.stride(2) == column);
    };
    by_rows = dense(n, 1);
    STD_TORCH_CHECK(
        V.numel() == 0 || ((B == 1 || V.stride(0) == d * n) && (by_rows || dense(1, d))),
        "rga_fast: the images of ", name, " must be dense, by rows or by columns");
  }
  int64_t size() const { return d * n; }
};

}  // namespace rga
