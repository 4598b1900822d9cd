// The sizes of a branch's relations and the operand they are made from.
#pragma once

#include "image.h"

namespace rga {

// How many of a thread's images share a product with W_rel: each brings c columns to it, and with
// few of them the library spends its time packing W_rel.
inline int64_t images_together(int64_t c, int64_t images) {
  return std::clamp<int64_t>(64 / c, 1, std::max<int64_t>(images, 1));
}

// The letters are those of docs/design.md; `q` rows embed the nodes for PQ (m x q).
struct Sizes {
  Sizes(const Nodes& V, int64_t r, int64_t m, int64_t embeddings, int64_t psi_rows)
      : r(r), m(m), psi_rows(psi_rows), embeddings(embeddings) {
    STD_TORCH_CHECK(0 <= psi_rows && psi_rows <= r && 0 <= embeddings && embeddings <= 2 &&
                        (embeddings < 2 || (r - psi_rows) % 2 == 0),
                    "rga_fast: ", r, " rows cannot hold ", embeddings, " embeddings and ", psi_rows,
                    " rows of psi");
    q = embeddings ? r - psi_rows : V.d;
    c = embeddings == 2 ? q / 2 : q;
    p = psi_rows ? 1 : 0;
  }
  int64_t group(int64_t images) const { return embeddings ? images_together(c, images) : 1; }
  int64_t r, m, psi_rows, embeddings, q, c, p;
};

// [theta; phi] of an image (q x n): a scratch with rows `ld_scratch` apart, or V itself in the
// layout of V.
template <class T>
struct Embedded {
  const T* data;
  bool by_rows;
  int64_t ld;

  Embedded(const Nodes& V, const Sizes& s, const T* image, const std::vector<Row<T>>& rows,
           const T* E, T* scratch, int64_t ld_scratch)
      : data(image), by_rows(V.by_rows), ld(V.by_rows ? V.n : V.d) {
    if (!s.embeddings) return;
    passes<T>().activate(s.q, V.n, rows.data(), E, V.n, scratch, ld_scratch);
    data = scratch, by_rows = true, ld = ld_scratch;
  }
  const T* row(int64_t i) const { return data + (by_rows ? i * ld : i); }
  const T* node(int64_t i) const { return data + (by_rows ? i : i * ld); }

  // C (rows x width) = A (rows x q) times nodes start to start + width.
  void times(int64_t rows, int64_t q, const T* A, int64_t lda, int64_t start, int64_t width, T* C,
             int64_t ldc) const {
    gemm<T>(false, !by_rows, rows, width, q, A, lda, node(start), ld, 0, C, ldc);
  }
  // C (rows x c) = A (rows x width) times the transpose of c embedding rows from `first`, at nodes
  // start to start + width, plus C if `add`.
  void times_transposed(int64_t rows, int64_t c, int64_t first, const T* A, int64_t lda,
                        int64_t start, int64_t width, bool add, T* C, int64_t ldc) const {
    const T* B = data + (by_rows ? first * ld + start : start * ld + first);
    gemm<T>(false, by_rows, rows, c, width, A, lda, B, ld, add, C, ldc);
  }
};

// What belongs to image g of G in a matrix (count, G).
template <class T>
void pick(int64_t count, const T* all, int64_t g, int64_t G, T* own) {
  for (int64_t i = 0; i < count; ++i) own[i] = all[i * G + g];
}

// [W_row, W_col] (m x 2n), or W_row + W_col (m x n) where theta is phi.
template <class T>
struct RelationWeight {
  RelationWeight(const Tensor& weight, int64_t m, int64_t n, int64_t embeddings)
      : row(cdata<T>(weight)), col(row + n), ld(2 * n) {
    check_dense(weight, "weight_z", {m, 2 * n}, type_of<T>());
    if (embeddings == 2 || m == 0) return;
    merged = make(weight, {m, n}, type_of<T>());
    T* sum = data<T>(*merged);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) sum[i * n + j] = row[i * ld + j] + col[i * ld + j];
    row = col = sum, ld = n;
  }
  const T *row, *col;
  int64_t ld;
  std::optional<Tensor> merged;
};

}  // namespace rga
