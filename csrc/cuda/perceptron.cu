// The perceptron: hidden layer and logit, forward and backward.
#include "sums.cuh"

namespace rga::cuda {
namespace {

// hidden = weight_h [psi; relu(normalised Z)] and its statistics.
template <class S>
RGA_KERNEL(kThreads)
hidden_fwd_kernel(const Compute<S>* psi, const S* Z, Norm<Compute<S>> norm_z,
                  const Compute<S>* weight, Compute<S>* hidden, double* partial, int n, int m,
                  int k, int p, int64_t chunks) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(k, n);
  const Cast<S, true> a(weight, p + m, k, p + m);
  const Seen<S, false> b(psi + tile.b * p * n, Z + tile.b * m * n, norm_z, p, m, n);
  Accumulator<S> sum;
  multiply(shared, sum, a, tile.m0, b, tile.n0, p + m);
  T* to = hidden + tile.b * k * n;
  const bool aligned = aligned16(to, n);
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int64_t row = tile.m0 + i;
    const int valid = n - tile.n0 - j;
    Eight<T> values;
    for (int x = 0; x < kEight; ++x) values.x[x] = v[x];
    if (row < k) store8(to + row * n + tile.n0 + j, values, valid, aligned);
    if (partial) {
      double* mean = row < k && j == 0 ? partial + row * chunks + tile.chunk : nullptr;
      row_statistics(v, valid, least(kTile, n - tile.n0), mean, mean ? mean + k * chunks : nullptr);
    }
  });
}

template <class T>
RGA_KERNEL(kThreads)
logit_fwd_kernel(const T* hidden, Norm<T> norm_h, const T* weight, T* logit, double* partial, int n,
                 int k, int64_t chunks) {
  const int pieces = (n + kChunk - 1) / kChunk;
  const int64_t chunk = block_index(), b = chunk / pieces;
  const int n0 = static_cast<int>(chunk % pieces) * kChunk, count = least(kChunk, n - n0);
  const T* rows = hidden + b * k * n + n0;
  const bool aligned = aligned16(rows, n);
  T* scratch = shared_memory<T>();
  const T sum = sum_rows(scratch, k, [&](int i, int node, T(&total)[kEight]) {
    const Row<T> row = norm_h.row(i);
    const Eight<T> x = load8(rows + static_cast<int64_t>(i) * n + node, n - n0 - node, aligned);
    for (int l = 0; l < kEight; ++l) total[l] = fma(weight[i], row.activated(x.x[l]), total[l]);
  });
  const int thread = static_cast<int>(thread_index());
  if (thread < count) logit[b * n + n0 + thread] = sum;
  if (!partial) return;
  block_sync();
  if (thread < kChunk) scratch[thread] = sum;
  block_sync();
  if (thread >= 32) return;
  T v[kEight];
  const int node = thread % kEight * kEight;
  for (int i = 0; i < kEight; ++i) v[i] = scratch[node + i];
  double* mean = thread == 0 ? partial + chunk : nullptr;
  row_statistics(v, count - node, count, mean, mean ? mean + chunks : nullptr);
}

// dl, and for each row of the hidden layer three sums over 64 nodes: of dl * relu(normalised),
// dy and dy * xhat, with dy = weight * dl below the activation. Eight threads for each row.
template <class T>
RGA_KERNEL(kThreads)
logit_bwd_kernel(const T* hidden, Norm<T> norm_h, const T* weight, const T* logit, Norm<T> norm_l,
                 const T* dlogit, T* dl, double* partial, int n, int k, int64_t chunks) {
  const int pieces = (n + kChunk - 1) / kChunk, thread = static_cast<int>(thread_index());
  const int64_t chunk = block_index(), b = chunk / pieces;
  const int node = static_cast<int>(chunk % pieces) * kChunk + thread % kEight * kEight;
  const int valid = n - node;
  const Row<T> row_l = norm_l.row(0);
  const Eight<T> l = load8(logit + b * n + node, valid, false);
  Eight<T> g = load8(dlogit + b * n + node, valid, false);
  for (int x = 0; x < kEight; ++x)
    g.x[x] = x < valid ? row_l.norm_backward(g.x[x], l.x[x], norm_l.mean_dy(0), norm_l.mean_dyx(0))
                       : T(0);
  if (thread < kEight) store8(dl + b * n + node, g, valid, false);

  constexpr int kRows = kThreads / kEight;
  const bool aligned = aligned16(hidden, n);
  for (int first = 0; first < k; first += kRows) {
    const bool inside = first + thread / kEight < k;
    const int row = inside ? first + thread / kEight : 0;
    const Row<T> norm = norm_h.row(row);
    const Eight<T> h = load8(hidden + (b * k + row) * n + node, inside ? valid : 0, aligned);
    T dot = 0, dy_sum = 0, dyx_sum = 0;
    for (int x = 0; x < kEight; ++x) {
      const T dy = norm.masked(weight[row] * g.x[x], h.x[x]);
      dot += g.x[x] * norm.activated(h.x[x]);
      dy_sum += dy;
      dyx_sum += dy * norm.xhat(h.x[x]);
    }
    dot = sum_lanes(dot, kEight);
    dy_sum = sum_lanes(dy_sum, kEight);
    dyx_sum = sum_lanes(dyx_sum, kEight);
    if (inside && thread % kEight == 0) {
      partial[row * chunks + chunk] = dot;
      partial[(k + row) * chunks + chunk] = dy_sum;
      partial[(2 * k + row) * chunks + chunk] = dyx_sum;
    }
  }
}

template <class T>
RGA_KERNEL(kThreads)
dhidden_kernel(const T* hidden, Norm<T> norm_h, const T* weight, const T* dl, T* dhidden, int n,
               int k, int64_t count) {
  const int64_t i = static_cast<int64_t>(block_index()) * kThreads + thread_index();
  if (i >= count) return;
  const int row = static_cast<int>(i / n % k);
  const Row<T> norm = norm_h.row(row);
  const T dy = norm.masked(weight[row] * dl[i / (int64_t{k} * n) * n + i % n], hidden[i]);
  dhidden[i] = norm.norm_backward(dy, hidden[i], norm_h.mean_dy(row), norm_h.mean_dyx(row));
}

// The gradient of weight_h from a share of the images.
template <class S>
RGA_KERNEL(kThreads)
dweight_kernel(const Compute<S>* psi, const S* Z, Norm<Compute<S>> norm_z,
               const Compute<S>* dhidden, Compute<S>* shares, int64_t B, int splits, int n, int m,
               int k, int p) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(k, p + m);  // the "image" is the share
  Accumulator<S> sum;
  for (int64_t b = B * tile.b / splits; b < B * (tile.b + 1) / splits; ++b)
    multiply(shared, sum, Cast<S, true>(dhidden + b * k * n, n, k, n), tile.m0,
             Seen<S, true>(psi + b * p * n, Z + b * m * n, norm_z, p, m, n), tile.n0, n);
  T* to = shares + tile.b * k * (p + m);
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int64_t row = tile.m0 + i;
    for (int x = 0; x < kEight; ++x)
      if (row < k && tile.n0 + j + x < p + m) to[row * (p + m) + tile.n0 + j + x] = v[x];
  });
}

// The sums of the gradient after the normalisation of Z; the gradient itself is recomputed later.
template <class S>
RGA_KERNEL(kThreads)
sums_z_kernel(const Compute<S>* weight, const Compute<S>* dhidden, const S* Z,
              Norm<Compute<S>> norm_z, double* partial, int n, int m, int k, int p,
              int64_t chunks) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(m, n);
  const Cast<S, false> a(weight + p, p + m, k, m);
  const Cast<S, false> b(dhidden + tile.b * k * n, n, k, n);
  Accumulator<S> sum;
  multiply(shared, sum, a, tile.m0, b, tile.n0, k);
  const S* image = Z + tile.b * m * n;
  const bool aligned = aligned16(image, n);
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const bool inside = tile.m0 + i < m;
    const int row = inside ? tile.m0 + i : 0, valid = inside ? n - tile.n0 - j : 0;
    const Row<T> norm = norm_z.row(row);
    const Eight<S> z = load8(image + static_cast<int64_t>(row) * n + tile.n0 + j, valid, aligned);
    T dy_sum = 0, dyx_sum = 0;
    for (int x = 0; x < kEight; ++x) {
      const T zx = static_cast<T>(z.x[x]), dy = x < valid ? norm.masked(v[x], zx) : T(0);
      dy_sum += dy;
      dyx_sum += dy * norm.xhat(zx);
    }
    dy_sum = sum_lanes(dy_sum, kEight);
    dyx_sum = sum_lanes(dyx_sum, kEight);
    if (inside && j == 0) {
      partial[row * chunks + tile.chunk] = dy_sum;
      partial[(m + row) * chunks + tile.chunk] = dyx_sum;
    }
  });
}

template <class T>
const T* typed(const void* p) {
  return static_cast<const T*>(p);
}

template <class F>
void with_compute(Type type, const F& f) {
  with_type(type, [&]<class S>() { f.template operator()<Compute<S>>(); });
}

}  // namespace

void hidden_fwd(const Shape& s, const void* psi, const void* Z, NormTable norm_z,
                const void* weight_h, void* hidden, void* partial, void* stats_h,
                StreamHandle handle) {
  const auto stream = static_cast<Stream>(handle);
  with_type(s.type, [&]<class S>() {
    using T = Compute<S>;
    launch(hidden_fwd_kernel<S>, s.chunks() * tiles(s.k), kThreads, sizeof(Shared<S>), stream, 1,
           typed<T>(psi), typed<S>(Z), Norm<T>(norm_z, s.m), typed<T>(weight_h),
           static_cast<T*>(hidden), static_cast<double*>(partial), s.n, s.m, s.k, s.p, s.chunks());
    if (partial) merge_statistics(s, s.k, typed<double>(partial), static_cast<T*>(stats_h), stream);
  });
}

void logit_fwd(const Shape& s, const void* hidden, NormTable norm_h, const void* weight_l,
               void* logit, void* partial, void* stats_l, StreamHandle handle) {
  const auto stream = static_cast<Stream>(handle);
  with_compute(s.type, [&]<class T>() {
    launch(logit_fwd_kernel<T>, s.chunks(), kThreads, 16 * kChunk * sizeof(T), stream, 1,
           typed<T>(hidden), Norm<T>(norm_h, s.k), typed<T>(weight_l), static_cast<T*>(logit),
           static_cast<double*>(partial), s.n, s.k, s.chunks());
    if (partial) merge_statistics(s, 1, typed<double>(partial), static_cast<T*>(stats_l), stream);
  });
}

void logit_bwd(const Shape& s, const void* hidden, NormTable norm_h, const void* weight_l,
               const void* logit, NormTable norm_l, const void* dlogit, void* dl, void* partial,
               void* dweight_l, void* sums_h, StreamHandle handle) {
  const auto stream = static_cast<Stream>(handle);
  with_compute(s.type, [&]<class T>() {
    launch(logit_bwd_kernel<T>, s.chunks(), kThreads, 0, stream, 1, typed<T>(hidden),
           Norm<T>(norm_h, s.k), typed<T>(weight_l), typed<T>(logit), Norm<T>(norm_l, 1),
           typed<T>(dlogit), static_cast<T*>(dl), static_cast<double*>(partial), s.n, s.k,
           s.chunks());
    const auto* sums = typed<double>(partial);
    merge_sums(s, s.k, sums, static_cast<T*>(dweight_l), stream);
    merge_sums(s, 2 * s.k, sums + s.k * s.chunks(), static_cast<T*>(sums_h), stream);
  });
}

void hidden_bwd(const Shape& s, const void* psi, const void* Z, NormTable norm_z,
                const void* weight_h, const void* hidden, NormTable norm_h, const void* weight_l,
                const void* dl, void* dhidden, void* shares, void* dweight_h, void* partial,
                void* sums_z, StreamHandle handle) {
  const auto stream = static_cast<Stream>(handle);
  with_type(s.type, [&]<class S>() {
    using T = Compute<S>;
    const int64_t values = s.B * s.k * s.n;
    const Norm<T> rows_z(norm_z, s.m);
    launch(dhidden_kernel<T>, (values + kThreads - 1) / kThreads, kThreads, 0, stream, 1,
           typed<T>(hidden), Norm<T>(norm_h, s.k), typed<T>(weight_l), typed<T>(dl),
           static_cast<T*>(dhidden), s.n, s.k, values);
    const int inputs = s.p + s.m, count = splits(s.B, s.k, inputs);
    launch(dweight_kernel<S>, int64_t{count} * tiles(s.k) * tiles(inputs), kThreads,
           sizeof(Shared<S>), stream, 1, typed<T>(psi), typed<S>(Z), rows_z, typed<T>(dhidden),
           static_cast<T*>(shares), s.B, count, s.n, s.m, s.k, s.p);
    merge_splits(count, int64_t{s.k} * inputs, typed<T>(shares), static_cast<T*>(dweight_h),
                 stream);
    launch(sums_z_kernel<S>, s.chunks() * tiles(s.m), kThreads, sizeof(Shared<S>), stream, 1,
           typed<T>(weight_h), typed<T>(dhidden), typed<S>(Z), rows_z,
           static_cast<double*>(partial), s.n, s.m, s.k, s.p, s.chunks());
    merge_sums(s, 2 * s.m, typed<double>(partial), static_cast<T*>(sums_z), stream);
  });
}

}  // namespace rga::cuda
