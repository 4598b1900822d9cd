// The bodies of passes.h. Included by one file per instruction set, inside a dedicated namespace
// and after every other header, so that no shared inline function is compiled for it.

template <class T>
inline T normalised(const Row<T>& p, T x) {
  return (x - p.mean) * p.scale + p.shift;
}

template <class T>
inline T relu(T y) {
  return y < 0 ? T(0) : y;  // NaN stays NaN
}

// Long rows are summed in pieces, so that rounding does not grow with their length.
constexpr int64_t kPiece = 1024;

template <class T>
void stats(int64_t rows, int64_t n, const T* x, int64_t ld, double* mean, double* m2) {
  for (int64_t r = 0; r < rows; ++r, x += ld) {
    double total = 0;
    for (int64_t start = 0; start < n; start += kPiece) {
      const int64_t stop = start + kPiece < n ? start + kPiece : n;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = start; i < stop; ++i) sum += x[i];
      total += sum;
    }
    const T centre = static_cast<T>(total / n);
    double squares = 0, rest = 0;
    for (int64_t start = 0; start < n; start += kPiece) {
      const int64_t stop = start + kPiece < n ? start + kPiece : n;
      T sum = 0, left = 0;
#pragma omp simd reduction(+ : sum, left)
      for (int64_t i = start; i < stop; ++i) {
        const T d = x[i] - centre;
        sum += d * d;
        left += d;
      }
      squares += sum;
      rest += left;
    }
    mean[r] = static_cast<double>(centre) + rest / n;
    m2[r] = squares - rest * rest / n;
    if (m2[r] < 0) m2[r] = 0;
  }
}

template <class T>
void activate(int64_t rows, int64_t n, const Row<T>* row, const T* x, int64_t ldx, T* y,
              int64_t ldy) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, y += ldy) {
    const Row<T> p = row[r];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = relu(normalised(p, x[i]));
  }
}

constexpr int64_t kColumns = 64;  // columns whose sums stay in registers

template <class T>
void weighted_sum(int64_t rows, int64_t n, const Row<T>* row, const T* weight, T factor, const T* x,
                  int64_t ld, T* sum) {
  for (int64_t start = 0; start < n; start += kColumns) {
    const int64_t width = start + kColumns < n ? kColumns : n - start;
    T total[kColumns] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const Row<T> p = row[r];
      const T w = weight ? weight[r] : T(1);
      const T* line = x + r * ld + start;
      if (width == kColumns) {
#pragma omp simd
        for (int64_t i = 0; i < kColumns; ++i) total[i] += w * relu(normalised(p, line[i]));
      } else {
        for (int64_t i = 0; i < width; ++i) total[i] += w * relu(normalised(p, line[i]));
      }
    }
    for (int64_t i = 0; i < width; ++i) sum[start + i] = factor * total[i];
  }
}

#ifndef RGA_VECTOR_BYTES  // of this instruction set, and how many pairs of sums its registers hold
#define RGA_VECTOR_BYTES 32
#define RGA_PAIRS 6
#endif

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(RGA_VECTOR_BYTES)));
  static constexpr int64_t width = RGA_VECTOR_BYTES / sizeof(T);
};

// `rows` rows of weight (at most ROWS) times a strip of the panel, two vectors wide and `inputs`
// long.
template <class T, int ROWS = RGA_PAIRS>
inline void strip(int64_t rows, int64_t inputs, const T* weight, const T* panel, T* out) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return strip<T, ROWS - 1>(rows, inputs, weight, panel, out);
  using V = typename Vector<T>::type;
  V left[ROWS] = {}, right[ROWS] = {};
  const V* line = reinterpret_cast<const V*>(panel);
  for (int64_t i = 0; i < inputs; ++i, line += 2) {
    const V a = line[0], b = line[1];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const T w = weight[r * inputs + i];
      left[r] += w * a;
      right[r] += w * b;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    reinterpret_cast<V*>(out)[2 * r] = left[r];
    reinterpret_cast<V*>(out)[2 * r + 1] = right[r];
  }
}

template <class T>
void perceive(int64_t k, int64_t m, int64_t n, const T* weight, const T* psi, const Row<T>* row,
              const T* Z, int64_t ldz, T* hidden, int64_t ldh, T* panel) {
  constexpr int64_t kStrip = 2 * Vector<T>::width;
  const int64_t p = psi ? 1 : 0, inputs = p + m;
  alignas(64) T sums[RGA_PAIRS * kStrip];
  for (int64_t start = 0; start < n; start += kPanel) {
    const int64_t width = start + kPanel < n ? kPanel : n - start;
    const int64_t strips = (width + kStrip - 1) / kStrip;
    for (int64_t i = 0; i < inputs; ++i) {
      const bool plain = i < p;
      const T* x = plain ? psi + start : Z + (i - p) * ldz + start;
      const Row<T> norm = plain ? Row<T>{} : row[i - p];
      for (int64_t s = 0; s < strips; ++s) {
        T* y = panel + (s * inputs + i) * kStrip;
        const T* from = x + s * kStrip;
        const int64_t there = width - s * kStrip < kStrip ? width - s * kStrip : kStrip;
        if (plain || there < kStrip) {
          for (int64_t j = 0; j < kStrip; ++j)
            y[j] = j >= there ? T(0) : plain ? from[j] : relu(normalised(norm, from[j]));
        } else {
#pragma omp simd
          for (int64_t j = 0; j < kStrip; ++j) y[j] = relu(normalised(norm, from[j]));
        }
      }
    }
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t there = width - s * kStrip < kStrip ? width - s * kStrip : kStrip;
      const T* y = panel + s * inputs * kStrip;
      for (int64_t r = 0; r < k; r += RGA_PAIRS) {
        const int64_t rows = k - r < RGA_PAIRS ? k - r : RGA_PAIRS;
        strip<T>(rows, inputs, weight + r * inputs, y, sums);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < there; ++j)
            hidden[(r + i) * ldh + start + s * kStrip + j] = sums[i * kStrip + j];
      }
    }
  }
}

template <class T>
void weighted_sum_bwd(int64_t rows, int64_t n, const Row<T>* row, const T* weight, const T* dl,
                      const T* x, int64_t ld, double* dot, double* sum, double* sum_xhat) {
  for (int64_t r = 0; r < rows; ++r, x += ld) {
    const Row<T> p = row[r];
    for (int64_t start = 0; start < n; start += kPiece) {
      const int64_t stop = start + kPiece < n ? start + kPiece : n;
      T product = 0, s = 0, sx = 0;
#pragma omp simd reduction(+ : product, s, sx)
      for (int64_t i = start; i < stop; ++i) {
        const T y = normalised(p, x[i]);
        const T dy = y > 0 ? dl[i] : T(0);
        product += dl[i] * relu(y);
        s += dy;
        sx += dy * (x[i] - p.mean);
      }
      dot[r] += product;
      sum[r] += static_cast<double>(weight[r]) * s;
      sum_xhat[r] += static_cast<double>(weight[r]) * p.rstd * sx;
    }
  }
}

template <class T>
void weighted_sum_dx(int64_t rows, int64_t n, const Row<T>* row, const T* weight, const T* dl,
                     const T* x, int64_t ld, T* dx, int64_t ldd) {
  for (int64_t r = 0; r < rows; ++r, x += ld, dx += ldd) {
    const Row<T> p = row[r];
    const T w = weight[r], slope = p.rstd * p.mean_dyx;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T dy = normalised(p, x[i]) > 0 ? w * dl[i] : T(0);
      dx[i] = p.scale * (dy - p.mean_dy - (x[i] - p.mean) * slope);
    }
  }
}

template <class T>
void mask(int64_t rows, int64_t n, const Row<T>* row, const T* x, int64_t ldx, const T* dy,
          int64_t ldd, T factor, T* masked, int64_t ldm, double* sum, double* sum_xhat) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, dy += ldd) {
    const Row<T> p = row[r];
    T* out = masked ? masked + r * ldm : nullptr;
    for (int64_t start = 0; start < n; start += kPiece) {
      const int64_t stop = start + kPiece < n ? start + kPiece : n;
      T s = 0, sx = 0;
      if (out) {
#pragma omp simd reduction(+ : s, sx)
        for (int64_t i = start; i < stop; ++i) {
          const T d = normalised(p, x[i]) > 0 ? factor * dy[i] : T(0);
          out[i] = d;
          s += d;
          sx += d * (x[i] - p.mean);
        }
      } else {
#pragma omp simd reduction(+ : s, sx)
        for (int64_t i = start; i < stop; ++i) {
          const T d = normalised(p, x[i]) > 0 ? factor * dy[i] : T(0);
          s += d;
          sx += d * (x[i] - p.mean);
        }
      }
      sum[r] += s;
      sum_xhat[r] += static_cast<double>(p.rstd) * sx;
    }
  }
}

template <class T>
void norm_backward(bool masks, int64_t rows, int64_t n, const Row<T>* row, const T* x, int64_t ldx,
                   const T* dy, int64_t ldd, T* dx, int64_t ldo) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, dy += ldd, dx += ldo) {
    const Row<T> p = row[r];
    const T slope = p.rstd * p.mean_dyx;
    if (masks) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const T d = normalised(p, x[i]) > 0 ? dy[i] : T(0);
        dx[i] = p.scale * (d - p.mean_dy - (x[i] - p.mean) * slope);
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i)
        dx[i] = p.scale * (dy[i] - p.mean_dy - (x[i] - p.mean) * slope);
    }
  }
}

template <class T>
void scale_columns(int64_t rows, int64_t n, const T* x, int64_t ldx, const T* a, T* out,
                   int64_t ldo) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, out += ldo) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * a[i];
  }
}

template <class T>
void scale_rows(int64_t rows, int64_t n, const T* x, const T* a, T* out) {
  for (int64_t r = 0; r < rows; ++r, x += n, out += n) {
    const T value = a[r];
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * value;
  }
}

template <class T>
void dot_columns(int64_t rows, int64_t n, const T* x, const T* y, T* sum) {
  constexpr int64_t kRows = 64;
  for (int64_t start = 0; start < n; start += kColumns) {
    const int64_t width = start + kColumns < n ? kColumns : n - start;
    T total[kColumns] = {};
    for (int64_t first = 0; first < rows; first += kRows) {
      const int64_t last = first + kRows < rows ? first + kRows : rows;
      T part[kColumns] = {};
      for (int64_t r = first; r < last; ++r) {
        const T *u = x + r * n + start, *v = y + r * n + start;
        if (width == kColumns) {
#pragma omp simd
          for (int64_t i = 0; i < kColumns; ++i) part[i] += u[i] * v[i];
        } else {
          for (int64_t i = 0; i < width; ++i) part[i] += u[i] * v[i];
        }
      }
      for (int64_t i = 0; i < width; ++i) total[i] += part[i];
    }
    for (int64_t i = 0; i < width; ++i) sum[start + i] = total[i];
  }
}

template <class T>
void dot_rows(int64_t rows, int64_t n, const T* x, const T* y, T* sum) {
  for (int64_t r = 0; r < rows; ++r, x += n, y += n) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) total += x[i] * y[i];
    sum[r] = total;
  }
}

template <class T>
void add(int64_t n, const T* x, T* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

template <class T>
constexpr Passes<T> table() {
  return {stats<T>,           activate<T>, weighted_sum<T>,  perceive<T>,      weighted_sum_bwd<T>,
          weighted_sum_dx<T>, mask<T>,     norm_backward<T>, scale_columns<T>, scale_rows<T>,
          dot_columns<T>,     dot_rows<T>, add<T>,           nullptr};
}

constexpr Passes<float> kFloat = table<float>();
constexpr Passes<double> kDouble = table<double>();
