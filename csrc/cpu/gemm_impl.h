// Products of one thread in float32. Included by one file per instruction set, inside a
// dedicated namespace and after every other header.
//
// C (M x N) is computed in tiles of kRows rows and two vectors of columns. A block of B is packed
// in strips of that width in the second-level cache, a panel of kRows rows of A in the first: each
// tile reads both from front to back.

constexpr int64_t kLanes = Vector<float>::width;
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef float LooseLanes __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

constexpr int64_t kRows = 12;           // of a panel of A
constexpr int64_t kStrip = 2 * kLanes;  // columns of a strip of B
constexpr int64_t kTile = RGA_PAIRS;    // rows whose sums registers hold
// Of the packed blocks: together 510 KB of the 1 MB that a core with AVX-512 has at least, or 380
// of 512. Sums of 128 products and then of these round less than those of all: as the library's.
constexpr int64_t kDepth = 128, kWidth = kLanes == 16 ? 768 : 512, kHeight = 192;

// y[j * ldy + i] = x[i * ldx + j] for i, j < 4.
inline void transpose4(const float* x, int64_t ldx, float* y, int64_t ldy) {
  __m128 a = _mm_loadu_ps(x), b = _mm_loadu_ps(x + ldx);
  __m128 c = _mm_loadu_ps(x + 2 * ldx), d = _mm_loadu_ps(x + 3 * ldx);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(y, a);
  _mm_storeu_ps(y + ldy, b);
  _mm_storeu_ps(y + 2 * ldy, c);
  _mm_storeu_ps(y + 3 * ldy, d);
}

// The same for i, j < 8.
inline void transpose8(const float* x, int64_t ldx, float* y, int64_t ldy) {
  __m256 r[8], s[8];
  for (int i = 0; i < 4; ++i) {  // rows i and i + 4 side by side, in halves
    const __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(x + i * ldx));
    const __m256 high = _mm256_castps128_ps256(_mm_loadu_ps(x + i * ldx + 4));
    r[i] = _mm256_insertf128_ps(low, _mm_loadu_ps(x + (i + 4) * ldx), 1);
    r[i + 4] = _mm256_insertf128_ps(high, _mm_loadu_ps(x + (i + 4) * ldx + 4), 1);
  }
  for (int half = 0; half < 8; half += 4) {
    s[half] = _mm256_unpacklo_ps(r[half], r[half + 1]);
    s[half + 1] = _mm256_unpackhi_ps(r[half], r[half + 1]);
    s[half + 2] = _mm256_unpacklo_ps(r[half + 2], r[half + 3]);
    s[half + 3] = _mm256_unpackhi_ps(r[half + 2], r[half + 3]);
    _mm256_storeu_ps(y + half * ldy, _mm256_shuffle_ps(s[half], s[half + 2], 0x44));
    _mm256_storeu_ps(y + (half + 1) * ldy, _mm256_shuffle_ps(s[half], s[half + 2], 0xee));
    _mm256_storeu_ps(y + (half + 2) * ldy, _mm256_shuffle_ps(s[half + 1], s[half + 3], 0x44));
    _mm256_storeu_ps(y + (half + 3) * ldy, _mm256_shuffle_ps(s[half + 1], s[half + 3], 0xee));
  }
}

// A (rows x depth) or its transpose, as panels of kRows rows, each (depth x rows of the panel).
inline void pack_panels(bool transposed, int64_t rows, int64_t depth, const float* A, int64_t ld,
                        float* out) {
  for (int64_t i0 = 0; i0 < rows; i0 += kRows) {
    const int64_t h = rows - i0 < kRows ? rows - i0 : kRows;
    if (transposed && h == kRows) {
      for (int64_t k = 0; k < depth; ++k)
        __builtin_memcpy(out + k * kRows, A + k * ld + i0, kRows * sizeof(float));
    } else if (transposed) {
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t i = 0; i < h; ++i) out[k * h + i] = A[k * ld + i0 + i];
    } else {
      int64_t i = 0;
      for (; i + 4 <= h; i += 4) {
        const float* from = A + (i0 + i) * ld;
        int64_t k = 0;
        for (; k + 4 <= depth; k += 4) transpose4(from + k, ld, out + k * h + i, h);
        for (; k < depth; ++k)
          for (int64_t j = 0; j < 4; ++j) out[k * h + i + j] = from[j * ld + k];
      }
      for (; i < h; ++i)
        for (int64_t k = 0; k < depth; ++k) out[k * h + i] = A[(i0 + i) * ld + k];
    }
    out += h * depth;
  }
}

// B (depth x columns) or its transpose, as strips of kStrip columns, each (depth x kStrip) and
// filled up with zeros.
inline void pack_strips(bool transposed, int64_t depth, int64_t columns, const float* B, int64_t ld,
                        float* out) {
  for (int64_t j0 = 0; j0 < columns; j0 += kStrip, out += depth * kStrip) {
    const int64_t w = columns - j0 < kStrip ? columns - j0 : kStrip;
    if (w < kStrip) __builtin_memset(out, 0, depth * kStrip * sizeof(float));
    if (!transposed) {
      const float* from = B + j0;
      if (w == kStrip)
        for (int64_t k = 0; k < depth; ++k) {
          *(Lanes*)(out + k * kStrip) = *(const LooseLanes*)(from + k * ld);
          *(Lanes*)(out + k * kStrip + kLanes) = *(const LooseLanes*)(from + k * ld + kLanes);
        }
      else
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t j = 0; j < w; ++j) out[k * kStrip + j] = from[k * ld + j];
      continue;
    }
    int64_t j = 0;
    for (; j + 8 <= w; j += 8) {
      const float* from = B + (j0 + j) * ld;
      int64_t k = 0;
      for (; k + 8 <= depth; k += 8) transpose8(from + k, ld, out + k * kStrip + j, kStrip);
      for (; k < depth; ++k)
        for (int64_t i = 0; i < 8; ++i) out[k * kStrip + j + i] = from[i * ld + k];
    }
    for (; j < w; ++j)
      for (int64_t k = 0; k < depth; ++k) out[k * kStrip + j] = B[(j0 + j) * ld + k];
  }
}

// A tile of C: ROWS rows of a panel (a[k * lda + i]) times a strip, one or two vectors of it.
template <int ROWS, int VECTORS>
inline __attribute__((always_inline)) void tile(int64_t depth, const float* a, int64_t lda,
                                                const float* b, bool add, float* C, int64_t ldc) {
  Lanes sum[ROWS][VECTORS] = {};
  for (int64_t k = 0; k < depth; ++k, a += lda, b += kStrip) {
    Lanes line[VECTORS];
    for (int v = 0; v < VECTORS; ++v) line[v] = *(const Lanes*)(b + v * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v) sum[i][v] += a[i] * line[v];
  }
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < VECTORS; ++v) {
      LooseLanes* c = (LooseLanes*)(C + i * ldc + v * kLanes);
      *c = add ? *c + sum[i][v] : sum[i][v];
    }
}

template <int VECTORS, int ROWS = kTile>
inline void tile_of(int64_t rows, int64_t depth, const float* a, int64_t lda, const float* b,
                    bool add, float* C, int64_t ldc) {
  if (rows == ROWS)
    tile<ROWS, VECTORS>(depth, a, lda, b, add, C, ldc);
  else if constexpr (ROWS > 1)
    tile_of<VECTORS, ROWS - 1>(rows, depth, a, lda, b, add, C, ldc);
}

// A panel of `h` rows times a strip with `w` columns of C.
inline void panel_times_strip(int64_t h, int64_t w, int64_t depth, const float* a, const float* b,
                              bool add, float* C, int64_t ldc) {
  for (int64_t i = 0; i < h; i += kTile) {
    const int64_t rows = h - i < kTile ? h - i : kTile;
    float* c = C + i * ldc;
    if (w == kStrip) {
      tile_of<2>(rows, depth, a + i, h, b, add, c, ldc);
    } else if (w == kLanes) {
      tile_of<1>(rows, depth, a + i, h, b, add, c, ldc);
    } else {
      alignas(64) float whole[kTile * kStrip];
      if (w < kLanes)
        tile_of<1>(rows, depth, a + i, h, b, false, whole, kStrip);
      else
        tile_of<2>(rows, depth, a + i, h, b, false, whole, kStrip);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < w; ++j)
          c[r * ldc + j] = (add ? c[r * ldc + j] : 0) + whole[r * kStrip + j];
    }
  }
}

struct Packed {
  alignas(64) float strips[kDepth * (kWidth + kStrip)];
  alignas(64) float panels[kHeight * kDepth];
};

// Nearly equal parts of at most `most`, a multiple of `unit` each but the last.
inline int64_t part(int64_t whole, int64_t most, int64_t unit) {
  const int64_t parts = (whole + most - 1) / most;
  return ((whole + parts - 1) / parts + unit - 1) / unit * unit;
}

// C (M x N) = A B + (add ? C : 0), either factor given transposed.
void multiply(bool ta, bool tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
              const float* B, int64_t ldb, bool add, float* C, int64_t ldc) {
  static thread_local Packed packed;
  const int64_t depth = part(K, kDepth, 8), width = part(N, kWidth, kStrip);
  for (int64_t j0 = 0; j0 < N; j0 += width) {
    const int64_t w = N - j0 < width ? N - j0 : width;
    for (int64_t k0 = 0; k0 < K; k0 += depth) {
      const int64_t d = K - k0 < depth ? K - k0 : depth;
      pack_strips(tb, d, w, tb ? B + j0 * ldb + k0 : B + k0 * ldb + j0, ldb, packed.strips);
      for (int64_t i0 = 0; i0 < M; i0 += kHeight) {
        const int64_t h = M - i0 < kHeight ? M - i0 : kHeight;
        pack_panels(ta, h, d, ta ? A + k0 * lda + i0 : A + i0 * lda + k0, lda, packed.panels);
        for (int64_t i = 0; i < h; i += kRows)
          for (int64_t j = 0; j < w; j += kStrip)
            panel_times_strip(h - i < kRows ? h - i : kRows, w - j < kStrip ? w - j : kStrip, d,
                              packed.panels + i * d, packed.strips + j * d, add || k0,
                              C + (i0 + i) * ldc + j0 + j, ldc);
      }
    }
  }
}

constexpr Passes<float> with_products() {
  Passes<float> table = kFloat;
  table.multiply = multiply;
  return table;
}
