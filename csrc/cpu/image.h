// How the operators see their tensors: images one by one, in the compute type.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "../checks.h"
#include "gemm.h"
#include "passes.h"

namespace rga {

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
const T* cdata(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
constexpr ScalarType type_of() {
  return std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
}

inline Tensor make(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return torch::stable::new_empty(like, {shape.begin(), shape.size()}, dtype);
}

// Nodes n0 to n1 of an image: an operand of a product, or the block itself.
template <class T>
struct NodeBlock {
  const T* data;
  int64_t ld;
};

template <class T>
NodeBlock<T> block(const Nodes& V, const T* image, int64_t n0) {
  return V.by_rows ? NodeBlock<T>{image + n0, V.n} : NodeBlock<T>{image + n0 * V.d, V.d};
}

// Reading and writing what is stored as S and computed as T, an image at a time.
template <class T, class S>
const T* load(const S* source, int64_t count, T* buffer) {
  if constexpr (std::is_same_v<T, S>) {
    return source;
  } else {
    for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<T>(source[i]);
    return buffer;
  }
}

template <class T, class S>
T* target(S* destination, T* buffer) {
  if constexpr (std::is_same_v<T, S>)
    return destination;
  else
    return buffer;
}

template <class T, class S>
void store(const T* values, int64_t count, S* destination) {
  if constexpr (!std::is_same_v<T, S>)
    for (int64_t i = 0; i < count; ++i) destination[i] = static_cast<S>(values[i]);
}

template <class T, class S>
constexpr int64_t staging(int64_t count) {
  return std::is_same_v<T, S> ? 0 : count;
}

// Memory for each thread, in pieces that start on a cache line.
template <class T>
class Scratch {
 public:
  static constexpr int64_t kLine = 64 / sizeof(T);

  Scratch(const Tensor& like, std::initializer_list<int64_t> pieces) {
    for (int64_t piece : pieces) {
      offsets_.push_back(size_);
      size_ += (piece + kLine - 1) / kLine * kLine;
    }
    memory_ = make(like, {threads() * size_ + kLine}, type_of<T>());
    const auto address = reinterpret_cast<uintptr_t>(data<T>(memory_));
    first_ = reinterpret_cast<T*>((address + 63) / 64 * 64);
  }
  T* operator()(int thread, int piece) const { return first_ + thread * size_ + offsets_[piece]; }

  static int64_t threads() { return torch::stable::get_num_threads(); }

 private:
  std::vector<int64_t> offsets_;
  int64_t size_ = 0;
  Tensor memory_;
  T* first_;
};

// f(item, thread) for each item, over torch's threads; products inside run on one thread each.
// `work`, in multiply-adds an item: what takes microseconds is not worth waking a thread.
template <class F>
void for_each(int64_t count, int64_t work, const F& f) {
  if (count == 0) return;
  if (count * work < 1 << 17) {
    const SingleThreadedGemm guard;
    for (int64_t item = 0; item < count; ++item) f(item, 0);
    return;
  }
  if (count == 1) {  // a single item: the products may use all threads
    f(0, 0);
    return;
  }
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    const SingleThreadedGemm guard;
    uint32_t thread = 0;
    torch_get_thread_idx(&thread);
    for (int64_t item = begin; item < end; ++item) f(item, static_cast<int>(thread));
  });
}

// Sums of rows over images: a row of doubles per image, added up in the order of the images.
class PerImage {
 public:
  PerImage(int64_t B, int64_t rows) : B_(B), rows_(rows), values_(2 * B * rows, 0.0) {}
  double* first(int64_t b) { return values_.data() + 2 * b * rows_; }
  double* second(int64_t b) { return first(b) + rows_; }

  // Both sums (2, rows).
  template <class T>
  void write_sums(T* out) {
    for (int64_t r = 0; r < 2 * rows_; ++r) {
      double total = 0;
      for (int64_t b = 0; b < B_; ++b) total += values_[2 * b * rows_ + r];
      out[r] = static_cast<T>(total);
    }
  }

  // Mean and biased variance (2, rows) from each image's mean and sum of squared deviations.
  template <class T>
  void write_stats(int64_t n, T* out) {
    for (int64_t r = 0; r < rows_; ++r) {
      double mean = 0, m2 = 0;
      for (int64_t b = 0; b < B_; ++b) mean += first(b)[r];
      mean /= static_cast<double>(B_);
      for (int64_t b = 0; b < B_; ++b) {
        const double d = first(b)[r] - mean;
        m2 += second(b)[r] + static_cast<double>(n) * d * d;
      }
      out[r] = static_cast<T>(mean);
      out[rows_ + r] = static_cast<T>(m2 / (static_cast<double>(B_) * static_cast<double>(n)));
    }
  }

 private:
  int64_t B_, rows_;
  std::vector<double> values_;
};

// The rows of a table norm (4, rows), with the means of a gradient (2, rows) if there are any.
template <class T>
std::vector<Row<T>> rows_of(const Tensor& norm, int64_t rows, const Tensor* means = nullptr) {
  check_dense(norm, "norm", {4, rows}, type_of<T>());
  if (means) check_dense(*means, "means", {2, rows}, type_of<T>());
  const T* p = cdata<T>(norm);
  const T* g = means ? cdata<T>(*means) : nullptr;
  std::vector<Row<T>> table(rows);
  for (int64_t r = 0; r < rows; ++r)
    table[r] = {p[r],
                p[rows + r],
                p[rows + r] * p[2 * rows + r],
                p[3 * rows + r],
                g ? g[r] : T(0),
                g ? g[rows + r] : T(0)};
  return table;
}

template <class T>
T sigmoid(T x) {
  return 1 / (1 + std::exp(-x));
}

// The attention values of the logits of an image.
template <class T>
void attention_values(int64_t n, const Row<T>& row, const T* logit, T* a) {
  for (int64_t i = 0; i < n; ++i) a[i] = sigmoid((logit[i] - row.mean) * row.scale + row.shift);
}

// An image times its attention values.
template <class T>
void gate(const Nodes& V, const T* image, const T* a, T* out) {
  if (V.by_rows)
    passes<T>().scale_columns(V.d, V.n, image, V.n, a, out, V.n);
  else
    passes<T>().scale_rows(V.n, V.d, image, a, out);
}

// The sum of `count` values over images, in their order.
template <class T>
void sum_images(int64_t B, int64_t count, const T* values, T* sum) {
  std::fill_n(sum, count, T(0));
  for (int64_t b = 0; b < B; ++b) passes<T>().add(count, values + b * count, sum);
}

// Adds a contiguous (d x n) to an image in the layout of V.
template <class T, class S>
void add_nodes(const Nodes& V, const S* values, T* image) {
  for (int64_t i = 0; i < V.d; ++i)
    for (int64_t j = 0; j < V.n; ++j)
      image[V.by_rows ? i * V.n + j : j * V.d + i] += static_cast<T>(values[i * V.n + j]);
}

inline void check_like(const Nodes& V, const Nodes& other, const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(V.B == other.B && V.d == other.d && V.n == other.n &&
                      a.scalar_type() == b.scalar_type() &&
                      (V.by_rows == other.by_rows || V.d == 1 || V.n == 1),
                  "rga_fast: dout must have the shape, dtype and layout of V");
}

// Nodes at a time for which `rows` values each stay in half a core's second-level cache.
inline int64_t block_size(int64_t n, int64_t rows, int64_t element) {
  const int64_t fitting = 262144 / (std::max<int64_t>(rows, 1) * element);
  const int64_t wanted = std::clamp<int64_t>(fitting / 64 * 64, 64, 2048);
  const int64_t blocks = std::max<int64_t>(1, (n + wanted - 1) / wanted);
  return std::max<int64_t>(1, (n + 64 * blocks - 1) / (64 * blocks) * 64);
}

// Calls f.template operator()<T, S>() for the compute and storage types of a map.
template <class F>
auto with_types(ScalarType map, const F& f) {
  switch (map) {
    case ScalarType::Float:
      return f.template operator()<float, float>();
    case ScalarType::Double:
      return f.template operator()<double, double>();
    case ScalarType::BFloat16:
      return f.template operator()<float, c10::BFloat16>();
    case ScalarType::Half:
      return f.template operator()<float, c10::Half>();
    default:
      STD_TORCH_CHECK(false, "rga_fast: maps are float32, float64, bfloat16 or float16");
  }
}

}  // namespace rga
