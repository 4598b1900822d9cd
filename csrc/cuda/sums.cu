#include "sums.cuh"

namespace rga::cuda {
namespace {

struct Moments {
  double count, mean, m2;

  // Chan et al.: both samples together.
  RGA_DEVICE void add(const Moments& other) {
    const double total = count + other.count;
    if (other.count == 0) return;
    const double delta = other.mean - mean, share = other.count / total;
    mean += delta * share;
    m2 += other.m2 + delta * delta * count * share;
    count = total;
  }
};

// Adds the values of all threads of the block in the order of a tree; the result is in thread 0.
template <class V, class Add>
RGA_DEVICE V add_block(V value, const Add& add) {
  V* shared = shared_memory<V>();
  const int thread = static_cast<int>(thread_index());
  shared[thread] = value;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    block_sync();
    if (thread < step) add(shared[thread], shared[thread + step]);
  }
  return shared[thread];
}

template <class T>
RGA_KERNEL(kThreads)
merge_statistics_kernel(const double* partial, T* stats, int rows, int n, int64_t chunks) {
  const int64_t row = block_index();
  const int pieces = (n + kChunk - 1) / kChunk;
  const double *mean = partial + row * chunks, *m2 = mean + rows * chunks;
  Moments all = {0, 0, 0};
  for (int64_t i = thread_index(); i < chunks; i += kThreads) {
    const int count = least(kChunk, n - static_cast<int>(i % pieces) * kChunk);
    all.add({static_cast<double>(count), mean[i], m2[i]});
  }
  all = add_block(all, [](Moments& a, const Moments& b) { a.add(b); });
  if (thread_index() == 0) {
    stats[row] = static_cast<T>(all.mean);
    stats[rows + row] = static_cast<T>(all.m2 / all.count);
  }
}

template <class T>
RGA_KERNEL(kThreads)
merge_sums_kernel(const double* partial, T* sums, int64_t chunks) {
  const int64_t row = block_index();
  double sum = 0;
  for (int64_t i = thread_index(); i < chunks; i += kThreads) sum += partial[row * chunks + i];
  sum = add_block(sum, [](double& a, double b) { a += b; });
  if (thread_index() == 0) sums[row] = static_cast<T>(sum);
}

template <class T>
RGA_KERNEL(kThreads)
merge_splits_kernel(const T* partial, T* sum, int splits, int64_t count) {
  const int64_t i = static_cast<int64_t>(block_index()) * kThreads + thread_index();
  if (i >= count) return;
  T total = 0;
  for (int s = 0; s < splits; ++s) total += partial[s * count + i];
  sum[i] = total;
}

}  // namespace

template <class T>
void merge_statistics(const Shape& s, int rows, const double* partial, T* stats, Stream stream) {
  launch(merge_statistics_kernel<T>, rows, kThreads, kThreads * sizeof(Moments), stream, 1, partial,
         stats, rows, s.n, s.chunks());
}

template <class T>
void merge_sums(const Shape& s, int rows, const double* partial, T* sums, Stream stream) {
  launch(merge_sums_kernel<T>, rows, kThreads, kThreads * sizeof(double), stream, 1, partial, sums,
         s.chunks());
}

template <class T>
void merge_splits(int splits, int64_t count, const T* partial, T* sum, Stream stream) {
  launch(merge_splits_kernel<T>, (count + kThreads - 1) / kThreads, kThreads, 0, stream, 1, partial,
         sum, splits, count);
}

#define RGA_SUMS(T)                                                             \
  template void merge_statistics(const Shape&, int, const double*, T*, Stream); \
  template void merge_sums(const Shape&, int, const double*, T*, Stream);       \
  template void merge_splits(int, int64_t, const T*, T*, Stream);
RGA_SUMS(float)
#ifndef __CUDACC__
RGA_SUMS(double)
#endif

}  // namespace rga::cuda
