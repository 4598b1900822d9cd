// The vectorised passes between the products, and products of one thread, compiled once per
// instruction set.
//
// Matrices are row-major with `ld` elements between rows. A row is normalised by its `Row`:
// y = (x - mean) * scale + shift, xhat = (x - mean) * rstd.
#pragma once

#include <cstdint>

namespace rga {

template <class T>
struct Row {
  T mean, rstd, scale, shift;
  T mean_dy, mean_dyx;  // in a gradient: the means of dy and of dy * xhat
};

constexpr int64_t kPanel = 64;  // nodes at a time in `perceive`

template <class T>
struct Passes {
  // Mean and sum of squared deviations of each row.
  void (*stats)(int64_t rows, int64_t n, const T* x, int64_t ld, double* mean, double* m2);
  // y = relu(normalised x); `y` may be `x`.
  void (*activate)(int64_t rows, int64_t n, const Row<T>* row, const T* x, int64_t ldx, T* y,
                   int64_t ldy);
  // sum[i] = factor * sum over rows of weight[r] * relu(normalised x[r, i]); weight null: ones.
  void (*weighted_sum)(int64_t rows, int64_t n, const Row<T>* row, const T* weight, T factor,
                       const T* x, int64_t ld, T* sum);
  // The product with a few rows, fused with the activation of its operand: hidden (k x n) =
  // weight (k x (p + m)) [psi; relu(normalised Z)], with p = 1 where `psi` (n) is not null, else 0.
  // `panel` holds (p + m) * kPanel elements on a cache line.
  void (*perceive)(int64_t k, int64_t m, int64_t n, const T* weight, const T* psi,
                   const Row<T>* row, const T* Z, int64_t ldz, T* hidden, int64_t ldh, T* panel);
  // dy[r, i] = weight[r] * dl[i], and its sums below the activation; and
  // dot[r] += sum of dl * relu(normalised x[r]): the gradients of a weighted sum.
  void (*weighted_sum_bwd)(int64_t rows, int64_t n, const Row<T>* row, const T* weight, const T* dl,
                           const T* x, int64_t ld, double* dot, double* sum, double* sum_xhat);
  // dx[r, i] of the same sum, before the normalisation.
  void (*weighted_sum_dx)(int64_t rows, int64_t n, const Row<T>* row, const T* weight, const T* dl,
                          const T* x, int64_t ld, T* dx, int64_t ldd);
  // dy = 0 where the activation is; sum[r] += sum(dy), sum_xhat[r] += sum(dy * xhat).
  // `dy` is read from row r * ldd (ldd 0: one row for all) and times `factor`, written to `masked`
  // where that is not null.
  void (*mask)(int64_t rows, int64_t n, const Row<T>* row, const T* x, int64_t ldx, const T* dy,
               int64_t ldd, T factor, T* masked, int64_t ldm, double* sum, double* sum_xhat);
  // dx = scale * (dy - mean_dy - xhat * mean_dyx), dy masked by the activation first if `masks`.
  void (*norm_backward)(bool masks, int64_t rows, int64_t n, const Row<T>* row, const T* x,
                        int64_t ldx, const T* dy, int64_t ldd, T* dx, int64_t ldo);
  // The gate: nodes are columns (out[r, i] = x[r, i] * a[i]) or rows (out[r, i] = x[r, i] * a[r]).
  void (*scale_columns)(int64_t rows, int64_t n, const T* x, int64_t ldx, const T* a, T* out,
                        int64_t ldo);
  void (*scale_rows)(int64_t rows, int64_t n, const T* x, const T* a, T* out);
  // sum[i] of x[r, i] * y[r, i] over the rows; or sum[r] over the columns.
  void (*dot_columns)(int64_t rows, int64_t n, const T* x, const T* y, T* sum);
  void (*dot_rows)(int64_t rows, int64_t n, const T* x, const T* y, T* sum);
  void (*add)(int64_t n, const T* x, T* y);  // y += x
  // `gemm` on the calling thread, K > 0; null where this instruction set has no dedicated one.
  void (*multiply)(bool ta, bool tb, int64_t M, int64_t N, int64_t K, const T* A, int64_t lda,
                   const T* B, int64_t ldb, bool add, T* C, int64_t ldc) = nullptr;
};

template <class T>
const Passes<T>& passes();

const char* instruction_set();  // which of them runs here

}  // namespace rga
