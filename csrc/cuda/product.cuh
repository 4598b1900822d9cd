// A 64 x 64 tile of a product, by the tensor cores for 2-byte types and by exact float32 or float64
// arithmetic otherwise: every product of the kernels is made of these.
#pragma once

#include "operands.cuh"

namespace rga::cuda {

constexpr int kTile = 64;   // rows and columns of a tile
constexpr int kTileK = 32;  // summed over at a time

// A side of the tile in shared memory. The padding lets eight rows be read without conflicts.
template <class S, bool kInnerK>
struct Side {
  static constexpr int kOuter = kInnerK ? kTile : kTileK, kInner = kInnerK ? kTileK : kTile;
  static constexpr int kLd = kInner + 16 / static_cast<int>(sizeof(S));
  static constexpr int kPieces = kOuter * kInner / kEight / kThreads;  // for each thread
};

template <class S>
struct Pipeline {
  static constexpr int kStages = sizeof(S) == 2 ? 3 : 2;
  static constexpr int kSide =
      (kTile * (kTileK + 16 / sizeof(S)) > kTileK * (kTile + 16 / sizeof(S))
           ? kTile * (kTileK + 16 / sizeof(S))
           : kTileK * (kTile + 16 / sizeof(S)));
  S a[kStages][kSide], b[kStages][kSide];
};

// The tile when it is finished, in the compute type.
template <class S>
struct Finished {
  static constexpr int kLd = kTile + 4;
  Compute<S> x[kTile * kLd];
};

template <class S>
union Shared {
  Pipeline<S> pipeline;
  Finished<S> finished;
};

// Brings a side of the tile to shared memory: what needs arithmetic passes through registers, and
// waits there while the tile before it is multiplied.
template <class S, class Operand, bool kAsync = Operand::kAsync>
struct Fetch {
  using Layout = Side<S, Operand::kInnerK>;
  typename Operand::Raw raw[Layout::kPieces];

  template <class F>
  RGA_DEVICE static void each(int side, int k, const F& f) {
#pragma unroll
    for (int i = 0; i < Layout::kPieces; ++i) {
      const int piece = static_cast<int>(thread_index()) + i * kThreads;
      const int outer = piece / (Layout::kInner / kEight);
      const int inner = piece % (Layout::kInner / kEight) * kEight;
      const int outer0 = Operand::kInnerK ? side : k, inner0 = Operand::kInnerK ? k : side;
      f(i, outer0 + outer, inner0 + inner, outer * Layout::kLd + inner);
    }
  }
  RGA_DEVICE void start(const Operand& operand, int side, int k, S*) {
    each(side, k, [&](int i, int outer, int inner, int) { raw[i] = operand.read(outer, inner); });
  }
  RGA_DEVICE void finish(const Operand& operand, int side, int k, S* to) {
    each(side, k, [&](int i, int outer, int inner, int at) {
      *reinterpret_cast<Eight<S>*>(to + at) = operand.value(raw[i], outer, inner);
    });
  }
};

template <class S, class Operand>
struct Fetch<S, Operand, true> {
  using Layout = Side<S, Operand::kInnerK>;
  RGA_DEVICE void start(const Operand& operand, int side, int k, S* to) {
#pragma unroll
    for (int i = 0; i < Layout::kPieces; ++i) {
      const int piece = static_cast<int>(thread_index()) + i * kThreads;
      const int outer = piece / (Layout::kInner / kEight);
      const int inner = piece % (Layout::kInner / kEight) * kEight;
      const int outer0 = Operand::kInnerK ? side : k, inner0 = Operand::kInnerK ? k : side;
      operand.copy(outer0 + outer, inner0 + inner, to + outer * Layout::kLd + inner);
    }
  }
  RGA_DEVICE void finish(const Operand&, int, int, S*) {}
};

// The share of a thread in the tile: the four warps hold 32 x 32 each, in fragments of 16 x 8 of
// which a lane has (row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1).
// Where no more than 32 columns are wanted (kNarrow) a warp holds 16 x 32 of these.
template <class S, bool kNarrow = false>
struct Accumulator {
  using T = Compute<S>;
  static constexpr int kRows = kNarrow ? 1 : 2;  // of fragments
  T x[kRows][4][4] = {};

  RGA_DEVICE static int lane() { return static_cast<int>(thread_index()) % 32; }
  RGA_DEVICE static int row0() {
    const int thread = static_cast<int>(thread_index());
    return kNarrow ? thread / 32 * 16 : thread / 64 * 32;
  }
  RGA_DEVICE static int column0() {
    return kNarrow ? 0 : static_cast<int>(thread_index()) / 32 % 2 * 32;
  }

  template <bool kInnerA, bool kInnerB>
  RGA_DEVICE void add(const S* a, const S* b) {
    if constexpr (sizeof(S) == 2)
      add_fragments<kInnerA, kInnerB>(
          [a](int outer, int inner) { return a + outer * Side<S, kInnerA>::kLd + inner; },
          [b](int outer, int inner) { return b + outer * Side<S, kInnerB>::kLd + inner; });
    else
      add_exactly<kInnerA, kInnerB>(a, b);
  }

  // `a` and `b` say where in shared memory the element (outer, inner) of an operand is.
  template <bool kInnerA, bool kInnerB, class A, class B>
  RGA_DEVICE void add_fragments(const A& a, const B& b) {
    const int l = lane() % 8, odd = lane() / 8 % 2 * 8, upper = lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < kTileK; k += 16) {
      uint32_t left[kRows][4], right[2][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = row0() + 16 * i;
        if constexpr (kInnerA)
          load_matrices<false>(left[i], a(row + odd + l, k + upper));
        else
          load_matrices<true>(left[i], a(k + upper + l, row + odd));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = column0() + 16 * i;
        if constexpr (kInnerB)
          load_matrices<false>(right[i], b(column + upper + l, k + odd));
        else
          load_matrices<true>(right[i], b(k + odd + l, column + upper));
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) multiply_add<S>(x[i][j], left[i], &right[j / 2][j % 2 * 2]);
    }
  }

  template <bool kInnerA, bool kInnerB>
  RGA_DEVICE void add_exactly(const S* a, const S* b) {
    constexpr int kLdA = Side<S, kInnerA>::kLd, kLdB = Side<S, kInnerB>::kLd;
    const int row = row0() + lane() / 4, column = column0() + lane() % 4 * 2;
#pragma unroll 2
    for (int k = 0; k < kTileK; ++k) {
      S left[4], right[8];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        left[i] = kInnerA ? a[(row + 8 * i) * kLdA + k] : a[k * kLdA + row + 8 * i];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int at = column + j / 2 * 8 + j % 2;
        right[j] = kInnerB ? b[at * kLdB + k] : b[k * kLdB + at];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          T& sum = x[i / 2][j / 2][i % 2 * 2 + j % 2];
          sum = fma(left[i], right[j], sum);
        }
    }
  }

  // Ends the product: the whole tile in shared memory, where every thread can read it.
  RGA_DEVICE const T* finish(Shared<S>& shared) { return finish(shared.finished.x); }
  RGA_DEVICE const T* finish(T* tile) {
    block_sync();
    const int row = row0() + lane() / 4, column = column0() + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
        tile[(row + 8 * i) * Finished<S>::kLd + column + j / 2 * 8 + j % 2] =
            x[i / 2][j / 2][i % 2 * 2 + j % 2];
    block_sync();
    return tile;
  }
};

// Adds A (M x K) times B (K x N) to the tile from row m0 and column n0.
template <class S, class A, class B>
RGA_DEVICE void multiply(Shared<S>& shared, Accumulator<S>& sum, const A& a, int m0, const B& b,
                         int n0, int K) {
  constexpr int kStages = Pipeline<S>::kStages;
  Pipeline<S>& pipeline = shared.pipeline;
  Fetch<S, A> fetch_a;
  Fetch<S, B> fetch_b;
  const int steps = (K + kTileK - 1) / kTileK;
  block_sync();  // whoever still reads what was there
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) {
      fetch_a.start(a, m0, step * kTileK, pipeline.a[step]);
      fetch_b.start(b, n0, step * kTileK, pipeline.b[step]);
      fetch_a.finish(a, m0, step * kTileK, pipeline.a[step]);
      fetch_b.finish(b, n0, step * kTileK, pipeline.b[step]);
    }
    copy_commit();
  }
  int slot = 0, free = kStages - 1;
  for (int step = 0; step < steps; ++step) {
    copy_wait<kStages - 2>();
    block_sync();
    const int next = step + kStages - 1;
    if (next < steps) {
      fetch_a.start(a, m0, next * kTileK, pipeline.a[free]);
      fetch_b.start(b, n0, next * kTileK, pipeline.b[free]);
    }
    copy_commit();
    sum.template add<A::kInnerK, B::kInnerK>(pipeline.a[slot], pipeline.b[slot]);
    if (next < steps) {
      fetch_a.finish(a, m0, next * kTileK, pipeline.a[free]);
      fetch_b.finish(b, n0, next * kTileK, pipeline.b[free]);
    }
    slot = slot + 1 == kStages ? 0 : slot + 1;
    free = free + 1 == kStages ? 0 : free + 1;
  }
}

// f(row, column, eight values) for every piece of the finished tile; the eight threads of a row are
// neighbours, so that they can add their values by `sum_lanes`. All of them call f.
template <class S, class F>
RGA_DEVICE void for_pieces(const Compute<S>* tile, const F& f) {
  constexpr int kRows = kThreads / (kTile / kEight);
  const int column = static_cast<int>(thread_index()) % (kTile / kEight) * kEight;
#pragma unroll 1
  for (int pass = 0; pass < kTile / kRows; ++pass) {
    const int row = pass * kRows + static_cast<int>(thread_index()) / (kTile / kEight);
    Compute<S> v[kEight];
#pragma unroll
    for (int i = 0; i < kEight; ++i) v[i] = tile[row * Finished<S>::kLd + column + i];
    f(row, column, v);
  }
}

// Mean and sum of squared deviations of `count` values, `valid` of them in this thread, over the
// eight threads of a row: written by the first of them.
template <class T>
RGA_DEVICE void row_statistics(const T (&v)[kEight], int valid, int count, double* mean,
                               double* m2) {
  T sum = 0;
#pragma unroll
  for (int i = 0; i < kEight; ++i) sum += i < valid ? v[i] : T(0);
  const T centre = sum_lanes(sum, kEight) / static_cast<T>(count);
  T first = 0, second = 0;
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    const T x = i < valid ? v[i] - centre : T(0);
    first += x;
    second += x * x;
  }
  first = sum_lanes(first, kEight);
  second = sum_lanes(second, kEight);
  if (mean) {
    const double sum_first = first;  // float32 would round the mean to more than m2 tells apart
    *mean = static_cast<double>(centre) + sum_first / count;
    *m2 = static_cast<double>(second) - sum_first * sum_first / count;
  }
}

}  // namespace rga::cuda
