// P and Q from the nodes, Z from P and Q; the mean of psi.
#include "relate.cuh"

namespace rga::cuda {
namespace {

template <class S>
RGA_KERNEL(kThreads)
psi_kernel(const S* E, Norm<Compute<S>> norm, Compute<S>* psi, int n, int r, int psi_rows) {
  using T = Compute<S>;
  const int pieces = (n + kChunk - 1) / kChunk;
  const int64_t b = block_index() / pieces;
  const int n0 = static_cast<int>(block_index() % pieces) * kChunk, first = r - psi_rows;
  const S* rows = E + (b * r + first) * n + n0;
  const bool aligned = aligned16(rows, n);
  const T sum = sum_rows(shared_memory<T>(), psi_rows, [&](int i, int node, T(&total)[kEight]) {
    const Row<T> row = norm.row(first + i);
    const Eight<S> x = load8(rows + static_cast<int64_t>(i) * n + node, n - n0 - node, aligned);
    for (int l = 0; l < kEight; ++l) total[l] += row.activated(static_cast<T>(x.x[l]));
  });
  const int node = n0 + static_cast<int>(thread_index());
  if (thread_index() < kChunk && node < n) psi[b * n + node] = sum / static_cast<T>(psi_rows);
}

// P = W_row phi^T and Q = W_col theta^T. The embeddings of all images are the columns of one
// product (c of each), so that few of them fill a tile, too; only V by columns goes by image.
template <class S, Nodes kNodes, bool kSummed>
RGA_KERNEL(kThreads)
pq_kernel(const S* V, const S* E, Norm<Compute<S>> norm, const Compute<S>* weight, Compute<S>* PQ,
          int64_t B, int d, int n, int r, int m, int q, int c) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  constexpr bool kByImage = kNodes == Nodes::kByColumns;
  const int columns = kByImage ? c : static_cast<int>(B) * c;
  const TileOfImage tile(m, columns);
  const int half = kSummed ? 0 : static_cast<int>(tile.b);
  const auto a = relation_weight<S, true, kSummed>(weight, half, m, n);
  Accumulator<S> sum;
  if constexpr (kNodes == Nodes::kEmbedded) {
    const int first = kSummed ? 0 : (1 - half) * c;
    const Activated<S, true> nodes(E + static_cast<int64_t>(first) * n, norm, first, n, columns, c,
                                   r, c);
    multiply(shared, sum, a, tile.m0, nodes, tile.n0, n);
  } else if constexpr (kNodes == Nodes::kByRows) {
    multiply(shared, sum, a, tile.m0, Dense<S, true>(V, n, columns, n), tile.n0, n);
  } else {
    multiply(shared, sum, a, tile.m0, Dense<S, false>(V + tile.b * d * n, d, n, d), tile.n0, n);
  }
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int row = tile.m0 + i;
    for (int x = 0; x < kEight; ++x) {
      const int column = tile.n0 + j + x;
      if (row >= m || column >= columns) continue;
      const int64_t b = kByImage ? tile.b : column / c;
      PQ[(b * m + row) * q + half * c + (kByImage ? column : column % c)] = v[x];
    }
  });
}

// Z = PQ [theta; phi] and its statistics.
template <class S, Nodes kNodes>
RGA_KERNEL(kThreads)
z_kernel(const S* V, const S* E, Norm<Compute<S>> norm, const Compute<S>* PQ, S* Z, double* partial,
         int d, int n, int r, int m, int q, int64_t chunks) {
  using T = Compute<S>;
  auto& shared = *shared_memory<Shared<S>>();
  const TileOfImage tile(m, n);
  const Cast<S, true> a(PQ + tile.b * m * q, q, m, q);
  const auto nodes = embedded<S, kNodes, true>(V, E, norm, tile.b, 0, q, d, n, r);
  Accumulator<S> sum;
  multiply(shared, sum, a, tile.m0, nodes, tile.n0, q);
  S* to = Z + tile.b * m * n;
  const bool aligned = aligned16(to, n);
  for_pieces<S>(sum.finish(shared), [&](int i, int j, const T(&v)[kEight]) {
    const int64_t row = tile.m0 + i;
    const int valid = n - tile.n0 - j;
    if (row < m) {
      Eight<S> values;
      for (int x = 0; x < kEight; ++x) values.x[x] = static_cast<S>(v[x]);
      store8(to + row * n + tile.n0 + j, values, valid, aligned);
    }
    if (partial) {
      double* mean = row < m && j == 0 ? partial + row * chunks + tile.chunk : nullptr;
      row_statistics(v, valid, least(kTile, n - tile.n0), mean, mean ? mean + m * chunks : nullptr);
    }
  });
}

template <class S, Nodes kNodes>
void make_relations(const Shape& s, const void* V, const void* E, NormTable norm_e, const void* PQ,
                    void* Z, void* partial, Stream stream) {
  using T = Compute<S>;
  launch(z_kernel<S, kNodes>, s.chunks() * tiles(s.m), kThreads, sizeof(Shared<S>), stream, 1,
         static_cast<const S*>(V), static_cast<const S*>(E), Norm<T>(norm_e, s.r),
         static_cast<const T*>(PQ), static_cast<S*>(Z), static_cast<double*>(partial), s.d, s.n,
         s.r, s.m, s.q, s.chunks());
}

template <class S, Nodes kNodes>
void forward(const Shape& s, const void* V, const void* E, NormTable norm_e, const void* weight,
             void* PQ, void* Z, void* psi, void* partial, void* stats, Stream stream) {
  using T = Compute<S>;
  const Norm<T> norm(norm_e, s.r);
  if (s.psi_rows)
    launch(psi_kernel<S>, s.chunks(), kThreads, 16 * kChunk * sizeof(T), stream, 1,
           static_cast<const S*>(E), norm, static_cast<T*>(psi), s.n, s.r, s.psi_rows);
  if (s.m == 0) return;
  const auto products = [&](auto kernel, int halves) {
    const bool by_image = kNodes == Nodes::kByColumns;
    const int64_t count = by_image ? s.B * tiles(s.c) : halves * int64_t{tiles(s.B * s.c)};
    launch(kernel, count * tiles(s.m), kThreads, sizeof(Shared<S>), stream, 1,
           static_cast<const S*>(V), static_cast<const S*>(E), norm, static_cast<const T*>(weight),
           static_cast<T*>(PQ), s.B, s.d, s.n, s.r, s.m, s.q, s.c);
  };
  if (s.embeddings < 2)
    products(pq_kernel<S, kNodes, true>, 1);
  else if constexpr (kNodes == Nodes::kEmbedded)
    products(pq_kernel<S, kNodes, false>, 2);
  make_relations<S, kNodes>(s, V, E, norm_e, PQ, Z, partial, stream);
  if (partial)
    merge_statistics(s, s.m, static_cast<const double*>(partial), static_cast<T*>(stats), stream);
}

}  // namespace

void relate_fwd(const Shape& s, const void* V, const void* E, NormTable norm_e,
                const void* weight_z, void* PQ, void* Z, void* psi, void* partial, void* stats_z,
                StreamHandle stream) {
  with_nodes(s, [&]<class S, Nodes kNodes>() {
    forward<S, kNodes>(s, V, E, norm_e, weight_z, PQ, Z, psi, partial, stats_z,
                       static_cast<Stream>(stream));
  });
}

void relations(const Shape& s, const void* V, const void* E, NormTable norm_e, const void* PQ,
               void* Z, StreamHandle stream) {
  if (s.m == 0) return;
  with_nodes(s, [&]<class S, Nodes kNodes>() {
    make_relations<S, kNodes>(s, V, E, norm_e, PQ, Z, nullptr, static_cast<Stream>(stream));
  });
}

}  // namespace rga::cuda
