// Partial sums over nodes and images, added up in a fixed order.
#pragma once

#include "product.cuh"

namespace rga::cuda {

// Calls f.template operator()<S>() for the type of a map.
template <class F>
void with_type(Type type, const F& f) {
  switch (type) {
    case Type::kFloat:
      return f.template operator()<float>();
    case Type::kHalf:
#ifndef RGA_WITHOUT_HALF  // bench/cuda_report.py
      return f.template operator()<half>();
#else
      break;
#endif
    case Type::kBFloat16:
      return f.template operator()<bfloat16>();
    case Type::kDouble:
#ifndef __CUDACC__  // in the tests on the host, where it makes the comparison exact
      return f.template operator()<double>();
#endif
      break;
  }
  throw std::runtime_error("rga_fast: maps are float32, bfloat16 or float16");
}

inline int tiles(int64_t count) { return static_cast<int>((count + kTile - 1) / kTile); }

// Mean and variance (2, rows) from the mean and the squared deviations of each chunk of nodes.
template <class T>
void merge_statistics(const Shape& s, int rows, const double* partial, T* stats, Stream stream);

// sum[i] over the chunks of partial (rows, chunks), for i below `rows`.
template <class T>
void merge_sums(const Shape& s, int rows, const double* partial, T* sums, Stream stream);

// sum[i] over `splits` arrays of `count` values, one after the other.
template <class T>
void merge_splits(int splits, int64_t count, const T* partial, T* sum, Stream stream);

// The tile of a block in a product for each image: rows fastest, so that neighbours share columns.
struct TileOfImage {
  int m0, n0;
  int64_t b, chunk;

  RGA_DEVICE TileOfImage(int rows, int columns) {
    const unsigned tiles_m = (rows + kTile - 1) / kTile, tiles_n = (columns + kTile - 1) / kTile;
    const unsigned index = block_index();
    m0 = static_cast<int>(index % tiles_m) * kTile;
    chunk = index / tiles_m;
    b = chunk / tiles_n;
    n0 = static_cast<int>(chunk % tiles_n) * kTile;
  }
};

// The sum over rows of values of 64 nodes, in the first 64 threads. f(row, node, sum) adds those of
// a row and of eight nodes; `scratch` holds 16 x 64 values.
template <class T, class F>
RGA_DEVICE T sum_rows(T* scratch, int rows, const F& f) {
  constexpr int kSlices = kThreads / (kChunk / kEight);
  const int thread = static_cast<int>(thread_index());
  const int node = thread % (kChunk / kEight) * kEight, slice = thread / (kChunk / kEight);
  T sum[kEight] = {};
  for (int row = slice; row < rows; row += kSlices) f(row, node, sum);
#pragma unroll
  for (int i = 0; i < kEight; ++i) scratch[slice * kChunk + node + i] = sum[i];
  block_sync();
  T total = 0;
  if (thread < kChunk)
    for (int i = 0; i < kSlices; ++i) total += scratch[i * kChunk + thread];
  return total;
}

}  // namespace rga::cuda
