// The matrices that products read, eight neighbouring elements at a time, as what they are stored.
//
// An operand is `outer` x `inner` with neighbouring inner elements; kInnerK says whether the inner
// side is the one that the product sums over. `read` loads from memory, `value` makes the factor of
// it: zero outside the matrix. An operand that needs no arithmetic is copied asynchronously.
#pragma once

#include "rows.cuh"

namespace rga::cuda {

// What is stored as it is multiplied.
template <class S, bool kInner>
struct Dense {
  static constexpr bool kInnerK = kInner, kAsync = true;
  const S* data;
  int64_t ld;
  int outer_size, inner_size;
  bool aligned;

  RGA_DEVICE Dense(const S* data, int64_t ld, int outer, int inner)
      : data(data), ld(ld), outer_size(outer), inner_size(inner), aligned(aligned16(data, ld)) {}
  RGA_DEVICE void copy(int outer, int inner, S* to) const {
    const S* from = data + outer * ld + inner;
    const int valid = outer < outer_size ? inner_size - inner : 0;
    constexpr int kStep = 16 / sizeof(S);
    if (aligned) {
#pragma unroll
      for (int i = 0; i < kEight; i += kStep) {
        const int count = valid - i < 0 ? 0 : least(valid - i, kStep);
        copy_async(to + i, count ? from + i : data, count * static_cast<int>(sizeof(S)));
      }
    } else {
      *reinterpret_cast<Eight<S>*>(to) = load8(from, valid, false);
    }
  }
};

// A weight, or another matrix of the compute type.
template <class S, bool kInner>
struct Cast {
  static constexpr bool kInnerK = kInner, kAsync = false;
  using T = Compute<S>;
  using Raw = Eight<T>;
  const T* data;
  int64_t ld;
  int outer_size, inner_size;
  bool aligned;

  RGA_DEVICE Cast(const T* data, int64_t ld, int outer, int inner)
      : data(data), ld(ld), outer_size(outer), inner_size(inner), aligned(aligned16(data, ld)) {}
  RGA_DEVICE Raw read(int outer, int inner) const {
    return load8(data + outer * ld + inner, outer < outer_size ? inner_size - inner : 0, aligned);
  }
  RGA_DEVICE Eight<S> value(const Raw& raw, int, int) const { return convert<S>(raw); }
};

// The sum of two such matrices: W_row + W_col.
template <class S, bool kInner>
struct Sum {
  static constexpr bool kInnerK = kInner, kAsync = false;
  using T = Compute<S>;
  using Raw = Eight<T>;
  Cast<S, kInner> first, second;

  RGA_DEVICE Raw read(int outer, int inner) const {
    Raw a = first.read(outer, inner);
    const Raw b = second.read(outer, inner);
#pragma unroll
    for (int i = 0; i < kEight; ++i) a.x[i] += b.x[i];
    return a;
  }
  RGA_DEVICE Eight<S> value(const Raw& raw, int, int) const { return convert<S>(raw); }
};

// The same of all images side by side: column (b, j) is column j of image b, and zero for j from
// `columns` on to `padded`, a multiple of eight.
template <class S>
struct AcrossImages {
  static constexpr bool kInnerK = true, kAsync = false;
  using T = Compute<S>;
  using Raw = Eight<T>;
  const T* data;
  int rows, ld, columns, padded, images;
  bool aligned;

  RGA_DEVICE AcrossImages(const T* data, int rows, int ld, int columns, int padded, int images)
      : data(data),
        rows(rows),
        ld(ld),
        columns(columns),
        padded(padded),
        images(images),
        aligned(aligned16(data, ld)) {}
  RGA_DEVICE Raw read(int outer, int inner) const {
    const int b = inner / padded, j = inner - b * padded;
    const T* from = data + (static_cast<int64_t>(b) * rows + outer) * ld + j;
    return load8(from, outer < rows && b < images ? columns - j : 0, aligned);
  }
  RGA_DEVICE Eight<S> value(const Raw& raw, int, int) const { return convert<S>(raw); }
};

// relu(normalised x) of rows of E or Z (row, node). With `group` rows an image, outer rows run
// through the images: row (b, j) is row b * stride + j of `data` and row j of the table, and zero
// for j from `width` on.
template <class S, bool kInner>
struct Activated {
  static constexpr bool kInnerK = kInner, kAsync = false;
  using T = Compute<S>;
  using Raw = Eight<S>;
  const S* data;
  Norm<T> norm;
  int first;  // the row of the table that belongs to the first row of `data`
  int n, outer_size, group, stride, width;
  bool aligned;

  RGA_DEVICE Activated(const S* data, const Norm<T>& norm, int first, int n, int outer, int group,
                       int stride, int width)
      : data(data),
        norm(norm),
        first(first),
        n(n),
        outer_size(outer),
        group(group),
        stride(stride),
        width(width),
        aligned(aligned16(data, n)) {}
  RGA_DEVICE Activated(const S* data, const Norm<T>& norm, int first, int n, int outer)
      : Activated(data, norm, first, n, outer, outer, outer, outer) {}
  RGA_DEVICE Raw read(int outer, int inner) const {
    const int b = outer / group, j = outer - b * group;
    const int64_t row = static_cast<int64_t>(b) * stride + j;
    return load8(data + row * n + inner, outer < outer_size && j < width ? n - inner : 0, aligned);
  }
  RGA_DEVICE Eight<S> value(const Raw& raw, int outer, int inner) const {
    Eight<S> result = {};
    const int j = outer % group;
    if (outer >= outer_size || j >= width) return result;
    const Row<T> row = norm.row(first + j);
#pragma unroll
    for (int i = 0; i < kEight; ++i)
      if (inner + i < n) result.x[i] = static_cast<S>(row.activated(static_cast<T>(raw.x[i])));
    return result;
  }
};

// What the perceptron sees of an image: the mean of psi where `p` is 1, then relu(normalised Z).
template <class S, bool kInner>
struct Seen {
  static constexpr bool kInnerK = kInner, kAsync = false;
  using T = Compute<S>;
  using Raw = Eight<T>;
  const T* psi;
  const S* Z;
  Norm<T> norm;
  int p, m, n;
  bool psi_aligned, aligned;

  RGA_DEVICE Seen(const T* psi, const S* Z, const Norm<T>& norm, int p, int m, int n)
      : psi(psi),
        Z(Z),
        norm(norm),
        p(p),
        m(m),
        n(n),
        psi_aligned(aligned16(psi, n)),
        aligned(aligned16(Z, n)) {}
  RGA_DEVICE Raw read(int outer, int inner) const {
    if (outer < p) return load8(psi + inner, n - inner, psi_aligned);
    const int64_t row = outer - p;
    return convert<T>(load8(Z + row * n + inner, row < m ? n - inner : 0, aligned));
  }
  RGA_DEVICE Eight<S> value(const Raw& raw, int outer, int inner) const {
    if (outer < p) return convert<S>(raw);
    Eight<S> result = {};
    if (outer - p >= m) return result;
    const Row<T> row = norm.row(outer - p);
#pragma unroll
    for (int i = 0; i < kEight; ++i)
      if (inner + i < n) result.x[i] = static_cast<S>(row.activated(raw.x[i]));
    return result;
  }
};

// The gradient of E (row, node) of an image before the normalisation, from that after it.
template <class S, bool kInner>
struct NormBackward {
  static constexpr bool kInnerK = kInner, kAsync = false;
  using T = Compute<S>;
  struct Raw {
    Eight<S> dy, x;
  };
  const S *dE, *E;
  Norm<T> norm;
  int r, n;
  bool aligned;

  RGA_DEVICE NormBackward(const S* dE, const S* E, const Norm<T>& norm, int r, int n)
      : dE(dE), E(E), norm(norm), r(r), n(n), aligned(aligned16(E, n) && aligned16(dE, n)) {}
  RGA_DEVICE Raw read(int outer, int inner) const {
    const int64_t at = static_cast<int64_t>(outer) * n + inner;
    const int valid = outer < r ? n - inner : 0;
    return {load8(dE + at, valid, aligned), load8(E + at, valid, aligned)};
  }
  RGA_DEVICE Eight<S> value(const Raw& raw, int outer, int inner) const {
    Eight<S> result = {};
    if (outer >= r) return result;
    const Row<T> row = norm.row(outer);
    const T mean_dy = norm.mean_dy(outer), mean_dyx = norm.mean_dyx(outer);
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      const T dx = row.norm_backward(static_cast<T>(raw.dy.x[i]), static_cast<T>(raw.x.x[i]),
                                     mean_dy, mean_dyx);
      if (inner + i < n) result.x[i] = static_cast<S>(dx);
    }
    return result;
  }
};

}  // namespace rga::cuda
