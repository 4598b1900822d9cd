// The gate: the map times its attention values, and the gradient of the logit.
#include "sums.cuh"

namespace rga::cuda {
namespace {

constexpr int kRowsAtOnce = 16;  // rows that share the attention values of eight nodes

// Images by rows (d x n): a thread gates eight nodes in 16 rows.
template <class S>
RGA_KERNEL(kThreads)
gate_by_rows_kernel(const S* V, const Compute<S>* logit, Norm<Compute<S>> norm, S* out, int d,
                    int n, int64_t count) {
  using T = Compute<S>;
  const int64_t i = static_cast<int64_t>(block_index()) * kThreads + thread_index();
  if (i >= count) return;
  const int pieces = (n + kEight - 1) / kEight, groups = (d + kRowsAtOnce - 1) / kRowsAtOnce;
  const int node = static_cast<int>(i % pieces) * kEight, valid = n - node;
  const int first = static_cast<int>(i / pieces % groups) * kRowsAtOnce;
  const int64_t b = i / pieces / groups;
  const Row<T> row = norm.row(0);
  Eight<T> a = load8(logit + b * n + node, valid, false);
  for (int x = 0; x < kEight; ++x) a.x[x] = sigmoid(row.normalised(a.x[x]));
  const bool aligned = aligned16(V, n) && aligned16(out, n);
#pragma unroll 4
  for (int f = first; f < least(first + kRowsAtOnce, d); ++f) {
    const int64_t at = (b * d + f) * n + node;
    Eight<S> v = load8(V + at, valid, aligned);
    for (int x = 0; x < kEight; ++x) v.x[x] = static_cast<S>(static_cast<T>(v.x[x]) * a.x[x]);
    store8(out + at, v, valid, aligned);
  }
}

// Images by columns (n x d): a thread gates eight features of one node.
template <class S>
RGA_KERNEL(kThreads)
gate_by_columns_kernel(const S* V, const Compute<S>* logit, Norm<Compute<S>> norm, S* out, int d,
                       int64_t count) {
  using T = Compute<S>;
  const int64_t i = static_cast<int64_t>(block_index()) * kThreads + thread_index();
  if (i >= count) return;
  const int pieces = (d + kEight - 1) / kEight, feature = static_cast<int>(i % pieces) * kEight;
  const int64_t node = i / pieces, at = node * d + feature;
  const T a = sigmoid(norm.row(0).normalised(logit[node]));
  const bool aligned = aligned16(V, d) && aligned16(out, d);
  Eight<S> v = load8(V + at, d - feature, aligned);
  for (int x = 0; x < kEight; ++x) v.x[x] = static_cast<S>(static_cast<T>(v.x[x]) * a);
  store8(out + at, v, d - feature, aligned);
}

// dlogit of 64 nodes after the normalisation of the logit, with its sums.
template <class S, bool kByRows>
RGA_KERNEL(kThreads)
gate_bwd_kernel(const S* dout, const S* V, const Compute<S>* logit, Norm<Compute<S>> norm,
                Compute<S>* dlogit, double* partial, int d, int n, int64_t chunks) {
  using T = Compute<S>;
  const int pieces = (n + kChunk - 1) / kChunk, thread = static_cast<int>(thread_index());
  const int64_t chunk = block_index(), b = chunk / pieces;
  const int n0 = static_cast<int>(chunk % pieces) * kChunk, count = least(kChunk, n - n0);
  T* scratch = shared_memory<T>();
  T sum = 0;
  const auto add = [](const Eight<S>& g, const Eight<S>& v, int x, T& total) {
    total = fma(static_cast<T>(g.x[x]), static_cast<T>(v.x[x]), total);
  };
  if constexpr (kByRows) {
    const int64_t start = b * d * n + n0;
    const bool aligned = aligned16(V + start, n) && aligned16(dout + start, n);
    sum = sum_rows(scratch, d, [&](int f, int node, T(&total)[kEight]) {
      const int64_t at = start + static_cast<int64_t>(f) * n + node;
      const Eight<S> g = load8(dout + at, n - n0 - node, aligned);
      const Eight<S> v = load8(V + at, n - n0 - node, aligned);
      for (int x = 0; x < kEight; ++x) add(g, v, x, total[x]);
    });
  } else {
    const bool aligned = aligned16(V, d) && aligned16(dout, d);
    for (int i = thread / 32; i < count; i += kThreads / 32) {  // a warp for each node
      const int64_t start = (b * n + n0 + i) * d;
      T total = 0;
      for (int f = thread % 32 * kEight; f < d; f += 32 * kEight) {
        const Eight<S> g = load8(dout + start + f, d - f, aligned);
        const Eight<S> v = load8(V + start + f, d - f, aligned);
        for (int x = 0; x < kEight; ++x) add(g, v, x, total);
      }
      total = sum_lanes(total, 32);
      if (thread % 32 == 0) scratch[i] = total;
    }
    block_sync();
    if (thread < count) sum = scratch[thread];
  }
  T dy = 0, dyx = 0;
  if (thread < count) {
    const Row<T> row = norm.row(0);
    const int64_t node = b * n + n0 + thread;
    const T l = logit[node], a = sigmoid(row.normalised(l));
    dy = sum * a * (T(1) - a);
    dyx = dy * row.xhat(l);
    dlogit[node] = dy;
  }
  block_sync();
  dy = sum_lanes(dy, 32), dyx = sum_lanes(dyx, 32);
  if (thread % 32 == 0) scratch[thread / 32] = dy, scratch[4 + thread / 32] = dyx;
  block_sync();
  if (thread == 0) {
    partial[chunk] = scratch[0] + scratch[1];  // the nodes are in the first two warps
    partial[chunks + chunk] = scratch[4] + scratch[5];
  }
}

int64_t rounded(int64_t count, int step) { return (count + step - 1) / step; }

}  // namespace

void gate_fwd(const Shape& s, const void* V, const void* logit, NormTable norm_l, void* out,
              StreamHandle handle) {
  const auto stream = static_cast<Stream>(handle);
  with_type(s.type, [&]<class S>() {
    using T = Compute<S>;
    const Norm<T> norm(norm_l, 1);
    const auto* v = static_cast<const S*>(V);
    const auto* l = static_cast<const T*>(logit);
    auto* to = static_cast<S*>(out);
    if (s.by_rows) {
      const int64_t count = s.B * rounded(s.d, kRowsAtOnce) * rounded(s.n, kEight);
      launch(gate_by_rows_kernel<S>, rounded(count, kThreads), kThreads, 0, stream, 1, v, l, norm,
             to, s.d, s.n, count);
    } else {
      const int64_t count = s.B * s.n * rounded(s.d, kEight);
      launch(gate_by_columns_kernel<S>, rounded(count, kThreads), kThreads, 0, stream, 1, v, l,
             norm, to, s.d, count);
    }
  });
}

void gate_bwd(const Shape& s, const void* dout, const void* V, const void* logit, NormTable norm_l,
              void* dlogit, void* partial, void* sums_l, StreamHandle handle) {
  const auto stream = static_cast<Stream>(handle);
  with_type(s.type, [&]<class S>() {
    using T = Compute<S>;
    const auto kernel = s.by_rows ? gate_bwd_kernel<S, true> : gate_bwd_kernel<S, false>;
    launch(kernel, s.chunks(), kThreads, 16 * kChunk * sizeof(T), stream, 1,
           static_cast<const S*>(dout), static_cast<const S*>(V), static_cast<const T*>(logit),
           Norm<T>(norm_l, 1), static_cast<T*>(dlogit), static_cast<double*>(partial), s.d, s.n,
           s.chunks());
    merge_sums(s, 2, static_cast<const double*>(partial), static_cast<T*>(sums_l), stream);
  });
}

}  // namespace rga::cuda
