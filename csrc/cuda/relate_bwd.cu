// The gradients of the embeddings and of the relation weight.
#include "relate.cuh"

namespace rga::cuda {
namespace {

// dZ before its normalisation, from what the perceptron got: W_1^T dhidden.
template <class S>
RGA_KERNEL(kThreads)
dz_kernel(const Compute<S>* weight_h, const Compute<S>* dhidden, const S* Z,
          Norm<Compute<S>> norm_z, S* dZ, int n, int m, int k, int p) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(m, n);
  const Cast<S, false> a(weight_h + p, p + m, k, m);
  const Cast<S, false> b(dhidden + tile.b * k * n, n, k, n);
  Accumulator<S> sum;
  multiply(shared, sum, a, tile.m0, b, tile.n0, k);
  const int64_t image = tile.b * m * n;
  const bool aligned = aligned16(Z + image, n) && aligned16(dZ + image, n);
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int row = tile.m0 + i, valid = n - tile.n0 - j;
    if (row >= m || valid <= 0) return;
    const int64_t at = image + static_cast<int64_t>(row) * n + tile.n0 + j;
    const Eight<S> z = load8(Z + at, valid, aligned);
    const Row<T> norm = norm_z.row(row);
    const T mean_dy = norm_z.mean_dy(row), mean_dyx = norm_z.mean_dyx(row);
    Eight<S> values;
    for (int x = 0; x < kEight; ++x) {
      const T zx = static_cast<T>(z.x[x]);
      values.x[x] =
          static_cast<S>(norm.norm_backward(norm.masked(v[x], zx), zx, mean_dy, mean_dyx));
    }
    store8(dZ + at, values, valid, aligned);
  });
}

// dPQ = dZ [theta; phi]^T.
template <class S, Nodes kNodes>
RGA_KERNEL(kThreads)
dpq_kernel(const S* V, const S* E, Norm<Compute<S>> norm_e, const S* dZ, Compute<S>* dPQ, int d,
           int n, int r, int m, int q) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(m, q);
  const Dense<S, true> a(dZ + tile.b * m * n, n, m, n);
  const auto b = embedded<S, kNodes, false>(V, E, norm_e, tile.b, 0, q, d, n, r);
  Accumulator<S> sum;
  multiply(shared, sum, a, tile.m0, b, tile.n0, n);
  T* to = dPQ + tile.b * m * q;
  const bool aligned = aligned16(to, q);
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int64_t row = tile.m0 + i;
    Eight<T> values;
    for (int x = 0; x < kEight; ++x) values.x[x] = v[x];
    if (row < m) store8(to + row * q + tile.n0 + j, values, q - tile.n0 - j, aligned);
  });
}

// dE of theta and phi after the normalisation, with its sums: dtheta = P^T dZ + dQ^T W_col and
// dphi = Q^T dZ + dP^T W_row; or the gradient of V where that is theta and phi.
template <class S, bool kEmbedded, bool kSummed>
RGA_KERNEL(kThreads)
dnodes_kernel(const S* E, Norm<Compute<S>> norm_e, const Compute<S>* weight, const Compute<S>* PQ,
              const S* dZ, const Compute<S>* dPQ, S* to, double* partial, int64_t B, int n,
              int rows_of_image, int m, int q, int c, int64_t chunks) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(c, n);  // "images": first theta of all, then phi
  const int half = tile.b >= B ? 1 : 0, first = half * c;
  const int64_t b = tile.b - half * B;
  const T *pq = PQ + b * m * q, *dpq = dPQ + b * m * q;
  Accumulator<S> sum;
  multiply(shared, sum, Cast<S, false>(pq + first, q, m, c), tile.m0,
           Dense<S, false>(dZ + b * m * n, n, m, n), tile.n0, m);
  const int other = kSummed ? 0 : c - first;
  multiply(shared, sum, Cast<S, false>(dpq + other, q, m, c), tile.m0,
           relation_weight<S, false, kSummed>(weight, 1 - half, m, n), tile.n0, m);

  const int64_t image = b * rows_of_image * n;
  const bool aligned = aligned16(to + image, n) && (!kEmbedded || aligned16(E + image, n));
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int valid = n - tile.n0 - j;
    const bool inside = tile.m0 + i < c;
    const int row = inside ? first + tile.m0 + i : 0;
    const int64_t at = image + static_cast<int64_t>(row) * n + tile.n0 + j;
    Eight<S> values;
    T dy_sum = 0, dyx_sum = 0;
    if constexpr (kEmbedded) {
      const Row<T> norm = norm_e.row(row);
      const Eight<S> e = load8(E + at, inside ? valid : 0, aligned);
      for (int x = 0; x < kEight; ++x) {
        const T ex = static_cast<T>(e.x[x]), dy = x < valid ? norm.masked(v[x], ex) : T(0);
        values.x[x] = static_cast<S>(dy);
        dy_sum += dy;
        dyx_sum += dy * norm.xhat(ex);
      }
      dy_sum = sum_lanes(dy_sum, kEight);
      dyx_sum = sum_lanes(dyx_sum, kEight);
      if (inside && j == 0) {
        double* sums = partial + row * chunks + tile.chunk % (chunks ? chunks : 1);
        *sums = dy_sum;
        sums[rows_of_image * chunks] = dyx_sum;
      }
    } else {
      for (int x = 0; x < kEight; ++x) values.x[x] = static_cast<S>(v[x]);
    }
    if (inside) store8(to + at, values, valid, aligned);
  });
}

// The gradient of psi's mean, the first row of W_1^T dhidden, divided among the rows of psi.
template <class T>
RGA_KERNEL(kThreads)
dpsi_kernel(const T* weight_h, const T* dhidden, T* dpsi, int n, int m, int k, int psi_rows,
            int64_t nodes) {
  const int64_t i = static_cast<int64_t>(block_index()) * kThreads + thread_index();
  if (i >= nodes) return;
  const int64_t b = i / n, node = i % n;
  T sum = 0;
  for (int64_t row = 0; row < k; ++row)
    sum = fma(weight_h[row * (1 + m)], dhidden[(b * k + row) * n + node], sum);
  dpsi[i] = sum / static_cast<T>(psi_rows);
}

// dE of psi after the normalisation, with its sums: 64 nodes of 16 rows for each block.
template <class S>
RGA_KERNEL(kThreads)
dpsi_rows_kernel(const S* E, Norm<Compute<S>> norm_e, const Compute<S>* dpsi, S* dE,
                 double* partial, int n, int r, int psi_rows, int64_t chunks) {
  using T = Compute<S>;
  constexpr int kRows = kThreads / kEight;
  const int groups = (psi_rows + kRows - 1) / kRows, pieces = (n + kChunk - 1) / kChunk;
  const int64_t chunk = block_index() / groups, b = chunk / pieces;
  const int thread = static_cast<int>(thread_index());
  const int i = static_cast<int>(block_index() % groups) * kRows + thread / kEight;
  const int node = static_cast<int>(chunk % pieces) * kChunk + thread % kEight * kEight;
  const bool inside = i < psi_rows;
  const int row = r - psi_rows + (inside ? i : 0), valid = inside ? n - node : 0;
  const int64_t at = (b * r + row) * n + node;
  const bool aligned = aligned16(E, n) && aligned16(dE, n);
  const Eight<S> e = load8(E + at, valid, aligned);
  const Eight<T> d = load8(dpsi + b * n + node, valid, aligned16(dpsi, n));
  const Row<T> norm = norm_e.row(row);
  Eight<S> values;
  T dy_sum = 0, dyx_sum = 0;
  for (int x = 0; x < kEight; ++x) {
    const T ex = static_cast<T>(e.x[x]), dy = x < valid ? norm.masked(d.x[x], ex) : T(0);
    values.x[x] = static_cast<S>(dy);
    dy_sum += dy;
    dyx_sum += dy * norm.xhat(ex);
  }
  store8(dE + at, values, valid, aligned);
  dy_sum = sum_lanes(dy_sum, kEight);
  dyx_sum = sum_lanes(dyx_sum, kEight);
  if (inside && thread % kEight == 0) {
    partial[row * chunks + chunk] = dy_sum;
    partial[(r + row) * chunks + chunk] = dyx_sum;
  }
}

// dW_row = sum of dP phi and dW_col = sum of dQ theta over a share of the images; where theta is
// phi both are the sum of dPQ theta. The few columns of dP of all images are one long sum.
template <class S, Nodes kNodes, bool kSummed>
RGA_KERNEL(kThreads)
dweight_kernel(const S* V, const S* E, Norm<Compute<S>> norm_e, const Compute<S>* dPQ,
               Compute<S>* shares, int64_t B, int splits, int d, int n, int r, int m, int q,
               int c) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(m, n);  // "images": the shares of W_row, then those of W_col
  const int half = tile.b >= splits ? 1 : 0;
  const int64_t share = tile.b - half * splits;
  const int64_t begin = B * share / splits, end = B * (share + 1) / splits;
  const T* dpq = dPQ + begin * m * q + half * c;
  Accumulator<S> sum;
  if constexpr (kNodes == Nodes::kEmbedded) {
    const int first = kSummed ? 0 : (1 - half) * c, padded = (c + kEight - 1) / kEight * kEight;
    const int images = static_cast<int>(end - begin);
    const AcrossImages<S> a(dpq, m, q, c, padded, images);
    const Activated<S, false> nodes(E + (begin * r + first) * n, norm_e, first, n, images * padded,
                                    padded, r, c);
    multiply(shared, sum, a, tile.m0, nodes, tile.n0, images * padded);
  } else {
    for (int64_t b = begin; b < end; ++b, dpq += int64_t{m} * q)
      multiply(shared, sum, Cast<S, true>(dpq, q, m, c), tile.m0,
               embedded<S, kNodes, true>(V, E, norm_e, b, 0, c, d, n, r), tile.n0, c);
  }
  T* to = shares + (share * m * 2 + half) * n;
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int64_t row = tile.m0 + i;
    for (int x = 0; x < kEight; ++x) {
      const int node = tile.n0 + j + x;
      if (row >= m || node >= n) continue;
      to[row * 2 * n + node] = v[x];
      if (kSummed) to[row * 2 * n + n + node] = v[x];
    }
  });
}

// The typed pointers of the arguments of relate_bwd.
template <class S>
struct Tensors {
  using T = Compute<S>;
  const S *V, *E, *Z;
  Norm<T> norm_e, norm_z;
  const T *weight_z, *PQ, *weight_h, *dhidden;
  S *dZ, *dE, *dnodes;
  T *dPQ, *dpsi, *shares, *dweight_z;
  double* partial;
  T* sums_e;
};

template <class S, Nodes kNodes, bool kSummed>
void relation_gradients(const Shape& s, const Tensors<S>& t, Stream stream) {
  constexpr bool kEmbedded = kNodes == Nodes::kEmbedded;
  const int64_t halves = kSummed ? 1 : 2;
  const size_t memory = sizeof(Shared<S>);
  launch(dz_kernel<S>, s.chunks() * tiles(s.m), kThreads, memory, stream, 1, t.weight_h, t.dhidden,
         t.Z, t.norm_z, t.dZ, s.n, s.m, s.k, s.p);
  launch(dpq_kernel<S, kNodes>, s.B * tiles(s.m) * tiles(s.q), kThreads, memory, stream, 1, t.V,
         t.E, t.norm_e, t.dZ, t.dPQ, s.d, s.n, s.r, s.m, s.q);
  launch(dnodes_kernel<S, kEmbedded, kSummed>, halves * s.chunks() * tiles(s.c), kThreads, memory,
         stream, 1, t.E, t.norm_e, t.weight_z, t.PQ, t.dZ, t.dPQ, kEmbedded ? t.dE : t.dnodes,
         t.partial, s.B, s.n, kEmbedded ? s.r : s.d, s.m, s.q, s.c, s.chunks());
  const int count = splits(s.B, s.m, 2 * int64_t{s.n});
  launch(dweight_kernel<S, kNodes, kSummed>, halves * count * tiles(s.m) * tiles(s.n), kThreads,
         memory, stream, 1, t.V, t.E, t.norm_e, t.dPQ, t.shares, s.B, count, s.d, s.n, s.r, s.m,
         s.q, s.c);
  merge_splits(count, int64_t{s.m} * 2 * s.n, t.shares, t.dweight_z, stream);
}

template <class S, Nodes kNodes>
void backward(const Shape& s, const Tensors<S>& t, Stream stream) {
  if (s.m) {
    if (s.embeddings < 2)
      relation_gradients<S, kNodes, true>(s, t, stream);
    else if constexpr (kNodes == Nodes::kEmbedded)
      relation_gradients<S, kNodes, false>(s, t, stream);
  }
  if (s.psi_rows) {
    launch(dpsi_kernel<Compute<S>>, (s.B * s.n + kThreads - 1) / kThreads, kThreads, 0, stream, 1,
           t.weight_h, t.dhidden, t.dpsi, s.n, s.m, s.k, s.psi_rows, s.B * s.n);
    launch(dpsi_rows_kernel<S>, s.chunks() * ((s.psi_rows + 15) / 16), kThreads, 0, stream, 1, t.E,
           t.norm_e, t.dpsi, t.dE, t.partial, s.n, s.r, s.psi_rows, s.chunks());
  }
  merge_sums(s, 2 * s.r, t.partial, t.sums_e, stream);
}

}  // namespace

void relate_bwd(const Shape& s, const void* V, const void* E, NormTable norm_e,
                const void* weight_z, const void* PQ, const void* Z, NormTable norm_z,
                const void* weight_h, const void* dhidden, void* dZ, void* dPQ, void* dpsi,
                void* dE, void* dnodes, void* shares, void* dweight_z, void* partial, void* sums_e,
                StreamHandle stream) {
  with_nodes(s, [&]<class S, Nodes kNodes>() {
    using T = Compute<S>;
    const auto map = [](auto* p) { return static_cast<const S*>(p); };
    const auto table = [](auto* p) { return static_cast<const T*>(p); };
    const auto out = [](void* p) { return static_cast<T*>(p); };
    const Tensors<S> t = {map(V),
                          map(E),
                          map(Z),
                          Norm<T>(norm_e, s.r),
                          Norm<T>(norm_z, s.m),
                          table(weight_z),
                          table(PQ),
                          table(weight_h),
                          table(dhidden),
                          static_cast<S*>(dZ),
                          static_cast<S*>(dE),
                          static_cast<S*>(dnodes),
                          out(dPQ),
                          out(dpsi),
                          out(shares),
                          out(dweight_z),
                          static_cast<double*>(partial),
                          out(sums_e)};
    backward<S, kNodes>(s, t, static_cast<Stream>(stream));
  });
}

}  // namespace rga::cuda
