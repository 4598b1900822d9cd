// E = weight_e V and its statistics; the gradients of both factors.
#include "sums.cuh"

namespace rga::cuda {
namespace {

template <class S, bool kByRows>
RGA_KERNEL(kThreads)
embed_fwd_kernel(const S* V, const Compute<S>* weight, S* E, double* partial, int d, int n, int r,
                 int64_t chunks) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(r, n);
  const Cast<S, true> a(weight, d, r, d);
  const S* image = V + tile.b * d * n;
  const Dense<S, !kByRows> b(image, kByRows ? n : d, kByRows ? d : n, kByRows ? n : d);
  Accumulator<S> sum;
  multiply(shared, sum, a, tile.m0, b, tile.n0, d);

  S* to = E + tile.b * r * n;
  const bool aligned = aligned16(to, n);
  const int count = least(kTile, n - tile.n0);
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int64_t row = tile.m0 + i;
    const int valid = n - tile.n0 - j;
    const bool inside = row < r;
    if (inside) {
      Eight<S> values;
      for (int l = 0; l < kEight; ++l) values.x[l] = static_cast<S>(v[l]);
      store8(to + row * n + tile.n0 + j, values, valid, aligned);
    }
    if (partial) {
      double* mean = inside && j == 0 ? partial + row * chunks + tile.chunk : nullptr;
      row_statistics(v, valid, count, mean, mean ? mean + r * chunks : nullptr);
    }
  });
}

// dV = weight_e^T dE + dout * gate + dnodes: (d x n), or (n x d) where V is by columns.
template <class S, bool kByRows>
RGA_KERNEL(kThreads)
embed_dV_kernel(const S* dout, const Compute<S>* logit, Norm<Compute<S>> norm_l, const S* E,
                Norm<Compute<S>> norm_e, const Compute<S>* weight, const S* dE, const S* dnodes,
                S* dV, int d, int n, int r) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(kByRows ? d : n, kByRows ? n : d);
  const Cast<S, false> w(weight, d, r, d);
  const NormBackward<S, false> e(dE + tile.b * r * n, E + tile.b * r * n, norm_e, r, n);
  Accumulator<S> sum;
  if constexpr (kByRows)
    multiply(shared, sum, w, tile.m0, e, tile.n0, r);
  else
    multiply(shared, sum, e, tile.m0, w, tile.n0, r);

  const int rows = kByRows ? d : n, columns = kByRows ? n : d;
  const int64_t image = tile.b * d * n;
  const bool aligned = aligned16(dV + image, columns) && aligned16(dout + image, columns);
  const Row<T> row_l = norm_l.row(0);
  const T* l = logit + tile.b * n;
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int row = tile.m0 + i, column = tile.n0 + j, valid = columns - column;
    if (row >= rows || valid <= 0) return;
    const int64_t at = image + static_cast<int64_t>(row) * columns + column;
    const Eight<S> g = load8(dout + at, valid, aligned);
    Eight<S> values;
    for (int x = 0; x < kEight; ++x) {
      const int node = kByRows ? least(column + x, n - 1) : row;
      T value = v[x] + static_cast<T>(g.x[x]) * sigmoid(row_l.normalised(l[node]));
      if (dnodes && x < valid)
        value += static_cast<T>(
            dnodes[kByRows ? at + x : image + static_cast<int64_t>(column + x) * n + row]);
      values.x[x] = static_cast<S>(value);
    }
    store8(dV + at, values, valid, aligned);
  });
}

// The gradient of the weight from a share of the images.
template <class S, bool kByRows>
RGA_KERNEL(kThreads)
embed_dweight_kernel(const S* V, const S* E, Norm<Compute<S>> norm_e, const S* dE,
                     Compute<S>* shares, int64_t B, int splits, int d, int n, int r) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(r, d);  // the "image" is the share
  Accumulator<S> sum;
  for (int64_t b = B * tile.b / splits; b < B * (tile.b + 1) / splits; ++b) {
    const NormBackward<S, true> e(dE + b * r * n, E + b * r * n, norm_e, r, n);
    const S* image = V + b * d * n;
    const Dense<S, kByRows> v(image, kByRows ? n : d, kByRows ? d : n, kByRows ? n : d);
    multiply(shared, sum, e, tile.m0, v, tile.n0, n);
  }
  T* to = shares + tile.b * r * d;
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int64_t row = tile.m0 + i;
    for (int x = 0; x < kEight; ++x)
      if (row < r && tile.n0 + j + x < d) to[row * d + tile.n0 + j + x] = v[x];
  });
}

template <class S>
void forward(const Shape& s, const void* V, const void* weight, void* E, void* partial, void* stats,
             Stream stream) {
  using T = Compute<S>;
  const auto kernel = s.by_rows ? embed_fwd_kernel<S, true> : embed_fwd_kernel<S, false>;
  launch(kernel, s.chunks() * tiles(s.r), kThreads, sizeof(Shared<S>), stream, 1,
         static_cast<const S*>(V), static_cast<const T*>(weight), static_cast<S*>(E),
         static_cast<double*>(partial), s.d, s.n, s.r, s.chunks());
  if (partial)
    merge_statistics(s, s.r, static_cast<const double*>(partial), static_cast<T*>(stats), stream);
}

template <class S>
void backward(const Shape& s, const S* dout, const S* V, const void* logit, NormTable norm_l,
              const S* E, NormTable norm_e, const void* weight, const S* dE, const S* dnodes,
              void* dV, void* shares, void* dweight, Stream stream) {
  using T = Compute<S>;
  const Norm<T> rows_e(norm_e, s.r);
  if (dV) {
    const auto kernel = s.by_rows ? embed_dV_kernel<S, true> : embed_dV_kernel<S, false>;
    launch(kernel, s.B * tiles(s.d) * tiles(s.n), kThreads, sizeof(Shared<S>), stream, 1, dout,
           static_cast<const T*>(logit), Norm<T>(norm_l, 1), E, rows_e,
           static_cast<const T*>(weight), dE, dnodes, static_cast<S*>(dV), s.d, s.n, s.r);
  }
  if (dweight) {
    const int count = splits(s.B, s.r, s.d);
    const auto kernel = s.by_rows ? embed_dweight_kernel<S, true> : embed_dweight_kernel<S, false>;
    launch(kernel, static_cast<int64_t>(count) * tiles(s.r) * tiles(s.d), kThreads,
           sizeof(Shared<S>), stream, 1, V, E, rows_e, dE, static_cast<T*>(shares), s.B, count, s.d,
           s.n, s.r);
    merge_splits(count, static_cast<int64_t>(s.r) * s.d, static_cast<const T*>(shares),
                 static_cast<T*>(dweight), stream);
  }
}

}  // namespace

void embed_fwd(const Shape& s, const void* V, const void* weight_e, void* E, void* partial,
               void* stats_e, StreamHandle stream) {
  with_type(s.type, [&]<class S>() {
    forward<S>(s, V, weight_e, E, partial, stats_e, static_cast<Stream>(stream));
  });
}

void embed_bwd(const Shape& s, const void* dout, const void* V, const void* logit, NormTable norm_l,
               const void* E, NormTable norm_e, const void* weight_e, const void* dE,
               const void* dnodes, void* dV, void* shares, void* dweight_e, StreamHandle stream) {
  with_type(s.type, [&]<class S>() {
    backward<S>(s, static_cast<const S*>(dout), static_cast<const S*>(V), logit, norm_l,
                static_cast<const S*>(E), norm_e, weight_e, static_cast<const S*>(dE),
                static_cast<const S*>(dnodes), dV, shares, dweight_e, static_cast<Stream>(stream));
  });
}

}  // namespace rga::cuda
