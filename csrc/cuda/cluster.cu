// A branch in evaluation, or two in turn, in one launch on Hopper: docs/hopper.md.
//
// A cluster of blocks holds an image in shared memory, a share of the nodes each. X is read once
// and written once; E, P, Q and Z never leave the cluster, nor does the map between two branches.
#include "sums.cuh"

namespace rga::cuda {
namespace {

constexpr size_t kSharedLimit = 227 * 1024;  // of a block of sm_90
constexpr int kMostBlocks = 8;               // of a cluster that every device grants
constexpr int kPad = 8;                      // elements between rows, against bank conflicts

// The layers of a branch with both embeddings, in order: theta, phi, psi (if any), relation, W_1,
// W_2. A block has `width` nodes.
struct Branch {
  Layer theta_phi_psi[3], relation, hidden, logit;
  int d, n, c, m, k, p, psi_rows, width, blocks;
  bool by_rows;

  RGA_DEVICE int q() const { return 2 * c; }
};

// What a block keeps in shared memory, in elements from its start, where its share of X is. That is
// a matrix with rows of `ld_x`, whose features are in one piece or, in the second branch, in
// segments: those of the blocks that had them as nodes.
template <class S>
struct Places {
  int ld_x, ld_pq, ld_e, pq, e, scratch;
  uint32_t segment;  // 2^32 / the features of a segment, rounded up; 0: one piece
  int skip;          // from the end of a segment to the beginning of the next
  size_t bytes;
  RGA_DEVICE int stage() const { return scratch + kSeen; }

  template <bool kByRows>
  RGA_DEVICE int x(int feature, int node) const {
    const int segments = static_cast<int>(uint64_t{static_cast<uint32_t>(feature)} * segment >> 32);
    return (kByRows ? feature * ld_x + node : node * ld_x + feature) + segments * skip;
  }

  // Scratch: a finished tile; or what the perceptron sees of 64 nodes, then two stages of a weight.
  static constexpr int kSeen = kTile * (kTile + kPad);
  static constexpr int kScratch = kSeen + 2 * Side<S, true>::kOuter * Side<S, true>::kLd;
};

RGA_DEVICE Row<float> row_of(const Layer& layer, int row) {
  const auto value = [&](int i) { return static_cast<const float*>(layer.norm[i])[row]; };
  const float rstd = 1.f / sqrtf(value(1) + static_cast<float>(layer.eps));
  return {value(0), rstd, rstd * value(2), value(3)};
}

// An operand that stays in shared memory; rows from `rows` on repeat the last one, so that no
// address is outside, and their products are not used.
template <class S>
struct Resident {
  const S* data;
  int ld, rows;
  RGA_DEVICE const S* operator()(int outer, int inner) const {
    return data + least(outer, rows - 1) * ld + inner;
  }
};

// The same of X.
template <class S, bool kByRows>
struct Nodes {
  const S* data;
  const Places<S>& at;
  int nodes;
  RGA_DEVICE const S* operator()(int outer, int inner) const {
    return data + (kByRows ? at.template x<true>(outer, inner)
                           : at.template x<false>(inner, least(outer, nodes - 1)));
  }
};

// Adds A (64 rows from m0, K) from memory times a resident B to the tile. K is a multiple of 32.
template <class S, bool kInnerB, bool kNarrow, class A, class B>
RGA_DEVICE void multiply_resident(S* stage, Accumulator<S, kNarrow>& sum, const A& a, int m0,
                                  const B& b, int n0, int K) {
  using Layout = Side<S, true>;
  constexpr int kSlot = Layout::kOuter * Layout::kLd;
  Fetch<S, A> fetch;
  block_sync();
  fetch.start(a, m0, 0, stage);
  fetch.finish(a, m0, 0, stage);
  for (int k = 0; k < K; k += kTileK) {
    S* slot = stage + k / kTileK % 2 * kSlot;
    S* next = stage + (k / kTileK + 1) % 2 * kSlot;
    block_sync();
    if (k + kTileK < K) fetch.start(a, m0, k + kTileK, next);
    sum.template add_fragments<true, kInnerB>(
        [slot](int outer, int inner) { return slot + outer * Layout::kLd + inner; },
        [&](int outer, int inner) {
          return kInnerB ? b(n0 + outer, k + inner) : b(k + outer, n0 + inner);
        });
    if (k + kTileK < K) fetch.finish(a, m0, k + kTileK, next);
  }
}

// The block's share of the image, eight elements at a time: f(place in memory, in shared memory,
// node of the first, step to the node of the next).
template <class S, class F>
RGA_DEVICE void for_share(const Branch& s, const Places<S>& at, int first, const F& f) {
  const int rows = s.by_rows ? s.d : s.width, columns = s.by_rows ? s.width : s.d;
  const int pieces = columns / kEight;
  for (int i = static_cast<int>(thread_index()); i < rows * pieces; i += kThreads) {
    const int row = i / pieces, column = i % pieces * kEight;
    if (s.by_rows)
      f(int64_t{row} * s.n + first + column, at.template x<true>(row, column), column, 1);
    else
      f(int64_t{first + row} * s.d + column, at.template x<false>(column, row), row, 0);
  }
}

// X times a.
template <class S>
RGA_DEVICE Eight<S> gated(const S* x, const float* a, int step) {
  Eight<S> result = load8(x, kEight, true);
#pragma unroll
  for (int i = 0; i < kEight; ++i)
    result.x[i] = static_cast<S>(static_cast<float>(result.x[i]) * a[i * step]);
  return result;
}

// From shares of the nodes of branch `s` to shares of its features, the nodes of the `next`: the
// part of block i that block j needs and the part of j that i needs change places, and each of the
// two blocks moves half of them.
template <class S>
RGA_DEVICE void exchange(const Branch& s, const Branch& next, const Places<S>& at, S* x, int rank) {
  const int rows = (s.by_rows ? next.width : s.width) / 2;
  const int pieces = (s.by_rows ? s.width : next.width) / kEight;
  const auto part = [&](int block) { return x + block * next.width * (s.by_rows ? at.ld_x : 1); };
  for (int step = 1; step < s.blocks; ++step) {
    const int other = (rank + step) % s.blocks, first = rank < other ? 0 : rows;
    S *mine = part(other), *theirs = cluster_shared(part(rank), other);
    for (int i = static_cast<int>(thread_index()); i < rows * pieces; i += kThreads) {
      const int place = (first + i / pieces) * at.ld_x + i % pieces * kEight;
      const Eight<S> given = load8(mine + place, kEight, true);
      store8(mine + place, load8(theirs + place, kEight, true), kEight, true);
      store8(theirs + place, given, kEight, true);
    }
  }
}

// theta and phi to shared memory, and the mean of psi. kNarrow: of up to 32 nodes.
template <class S, bool kByRows, bool kNarrow>
RGA_DEVICE void embed_tiles(const Branch& s, const Places<S>& at, S* shared, float* psi) {
  auto* tile = reinterpret_cast<float*>(shared + at.scratch);
  const Nodes<S, kByRows> x = {shared, at, s.width};
  // P and Q are summed over 32 nodes at a time.
  if (s.width % kTileK)
    for (int i = static_cast<int>(thread_index()); i < s.q(); i += kThreads)
      for (int j = s.width; j < s.width + 16; ++j) shared[at.e + i * at.ld_e + j] = S(0.f);
  for (int l = 0; l < 2 + s.p; ++l) {
    const Layer& layer = s.theta_phi_psi[l];
    const Cast<S, true> weight(static_cast<const float*>(layer.weight), s.d, layer.rows, s.d);
    for (int m0 = 0; m0 < layer.rows; m0 += kTile)
      for (int n0 = 0; n0 < s.width; n0 += kTile) {
        Accumulator<S, kNarrow> sum;
        multiply_resident<S, !kByRows>(shared + at.stage(), sum, weight, m0, x, n0, s.d);
        sum.finish(tile);
        const int thread = static_cast<int>(thread_index()), rows = least(kTile, layer.rows - m0);
        if (l < 2) {
          for_pieces<S>(tile, [&](int i, int j, const float (&v)[kEight]) {
            if (i >= rows || n0 + j >= s.width) return;
            const Row<float> row = row_of(layer, m0 + i);
            Eight<S> values;
            for (int y = 0; y < kEight; ++y) values.x[y] = static_cast<S>(row.activated(v[y]));
            store8(shared + at.e + (l * s.c + m0 + i) * at.ld_e + n0 + j, values, kEight, true);
          });
        } else if (thread < kTile && n0 + thread < s.width) {
          float total = m0 ? psi[n0 + thread] : 0.f;
          for (int i = 0; i < rows; ++i)
            total += row_of(layer, m0 + i).activated(tile[i * Finished<S>::kLd + thread]);
          psi[n0 + thread] = m0 + kTile >= layer.rows ? total / s.psi_rows : total;
        }
      }
  }
}

template <class S, bool kByRows>
RGA_DEVICE void embed(const Branch& s, const Places<S>& at, S* shared, float* psi) {
  if (s.width > kTile / 2)
    embed_tiles<S, kByRows, false>(s, at, shared, psi);
  else
    embed_tiles<S, kByRows, true>(s, at, shared, psi);
}

// P and Q: each block multiplies its nodes, and adds up a share of the rows for all of them.
template <class S>
RGA_DEVICE void relate(const Branch& s, const Places<S>& at, S* shared, int rank) {
  auto* tile = reinterpret_cast<float*>(shared + at.scratch);
  const auto* weight = static_cast<const float*>(s.relation.weight) + rank * s.width;
  for (int half = 0; half < 2; ++half)
    for (int m0 = 0; m0 < s.m; m0 += kTile)
      for (int n0 = 0; n0 < s.c; n0 += kTile) {
        const Cast<S, true> w(weight + half * s.n, 2 * int64_t{s.n}, s.m, s.width);
        const Resident<S> nodes = {shared + at.e + (1 - half) * s.c * at.ld_e, at.ld_e, s.c};
        Accumulator<S> sum;
        multiply_resident<S, true>(shared + at.stage(), sum, w, m0, nodes, n0, s.width);
        sum.finish(tile);
        cluster_sync();
        const int rows = least(kTile, s.m - m0), columns = least(kTile, s.c - n0);
        const int share = (rows + s.blocks - 1) / s.blocks;
        const int count = least(share, rows - rank * share) * columns;
        for (int i = static_cast<int>(thread_index()); i < count; i += kThreads) {
          const int row = rank * share + i / columns, column = i % columns;
          float total = 0;
          for (int block = 0; block < s.blocks; ++block)
            total += cluster_shared(tile, block)[row * Finished<S>::kLd + column];
          S* to = shared + at.pq + (m0 + row) * at.ld_pq + half * s.c + n0 + column;
          for (int block = 0; block < s.blocks; ++block)
            *cluster_shared(to, block) = static_cast<S>(total);
        }
        cluster_sync();
      }
}

// Z, the perceptron and the attention values `a` of the block's nodes.
template <class S>
RGA_DEVICE void attend(const Branch& s, const Places<S>& at, S* shared, const float* psi,
                       float* a) {
  S* seen = shared + at.scratch;  // where the tile is
  auto* tile = reinterpret_cast<float*>(shared + at.scratch);
  constexpr int kLdSeen = kTile + kPad;
  const auto* w_1 = static_cast<const float*>(s.hidden.weight);
  const auto* w_2 = static_cast<const float*>(s.logit.weight);
  const int inputs = s.p + s.m;
  for (int n0 = 0; n0 < s.width; n0 += kTile) {
    Accumulator<S> hidden;
    for (int m0 = 0; m0 < s.m; m0 += kTile) {
      Accumulator<S> sum;
      const Resident<S> pq = {shared + at.pq, at.ld_pq, s.m};
      const Resident<S> nodes = {shared + at.e, at.ld_e, s.q()};
      for (int k = 0; k < s.q(); k += kTileK)
        sum.template add_fragments<true, false>(
            [&](int outer, int inner) { return pq(m0 + outer, k + inner); },
            [&](int outer, int inner) { return nodes(k + outer, n0 + inner); });
      sum.finish(tile);
      for_pieces<S>(tile, [&](int i, int j, const float (&v)[kEight]) {
        Eight<S> values = {};
        if (m0 + i < s.m) {
          const Row<float> row = row_of(s.relation, m0 + i);
          for (int y = 0; y < kEight; ++y) values.x[y] = static_cast<S>(row.activated(v[y]));
        }
        block_sync();  // its rows are half as long: it overwrites what has been read, no more
        store8(seen + i * kLdSeen + j, values, kEight, true);
      });
      const Cast<S, true> w(w_1 + s.p + m0, inputs, s.k, s.m - m0);
      multiply_resident<S, false>(shared + at.stage(), hidden, w, 0,
                                  Resident<S>{seen, kLdSeen, kTile}, 0, kTile);
    }
    hidden.finish(tile);
    const int node = n0 + static_cast<int>(thread_index());
    if (thread_index() < kTile && node < s.width) {
      float logit = 0;
      for (int i = 0; i < s.k; ++i) {
        const float h = tile[i * Finished<S>::kLd + thread_index()];
        const float value = s.p ? fmaf(w_1[i * inputs], psi[node], h) : h;
        logit = fmaf(w_2[i], row_of(s.hidden, i).activated(value), logit);
      }
      a[node] = sigmoid(row_of(s.logit, 0).normalised(logit));
    }
  }
}

// One branch, or two of which the second has the features of the first as its nodes.
template <class S>
struct Branches {
  Branch branch[2];
  Places<S> places[2];
  int count;
};

template <class S>
RGA_KERNEL(kThreads)
branches_kernel(const RGA_PARAMETER Branches<S> all, const S* V, S* out) {
  S* shared = shared_memory<S>();
  const Branch& begin = all.branch[0];
  const int rank = static_cast<int>(block_index() % begin.blocks);
  const int64_t image = static_cast<int64_t>(block_index() / begin.blocks) * begin.d * begin.n;
  for_share(begin, all.places[0], rank * begin.width,
            [&](int64_t from, int to, int, int) { copy_async(shared + to, V + image + from, 16); });
  copy_commit();
  copy_wait<0>();
  block_sync();
#pragma unroll 1
  for (int i = 0; i < all.count; ++i) {
    const Branch& s = all.branch[i];
    const Places<S>& at = all.places[i];
    auto* psi = reinterpret_cast<float*>(shared + at.scratch + Places<S>::kScratch);
    float* a = psi + s.width;
    if (s.by_rows)
      embed<S, true>(s, at, shared, psi);
    else
      embed<S, false>(s, at, shared, psi);
    block_sync();
    relate(s, at, shared, rank);
    attend(s, at, shared, psi, a);
    block_sync();
    if (i + 1 < all.count) {
      for_share(s, at, 0, [&](int64_t, int x, int node, int step) {
        store8(shared + x, gated(shared + x, a + node, step), kEight, true);
      });
      cluster_sync();
      exchange(s, all.branch[i + 1], at, shared, rank);
      cluster_sync();
    } else {
      for_share(s, at, rank * s.width, [&](int64_t to, int x, int node, int step) {
        store8(out + image + to, gated(shared + x, a + node, step), kEight, true);
      });
    }
  }
}

// Where things are; the share of X is at the beginning, and the same for both branches.
template <class S>
void place(Branches<S>& all) {
  const Branch& begin = all.branch[0];
  const int ld_x = (begin.by_rows ? begin.width : begin.d) + kPad;
  for (int i = 0; i < all.count; ++i) {
    const Branch& s = all.branch[i];
    Places<S>& at = all.places[i];
    at.ld_x = ld_x;
    at.ld_pq = 2 * s.c + kPad, at.ld_e = (s.width + kTileK - 1) / kTileK * kTileK + kPad;
    at.pq = (begin.by_rows ? begin.d : begin.width) * ld_x;
    at.e = at.pq + s.m * at.ld_pq;
    at.scratch = at.e + 2 * s.c * at.ld_e;
    at.bytes = (at.scratch + Places<S>::kScratch) * sizeof(S) + 2 * s.width * sizeof(float);
    at.segment = 0, at.skip = 0;
    if (i == 0) continue;
    at.segment = static_cast<uint32_t>(((uint64_t{1} << 32) + begin.width - 1) / begin.width);
    at.skip = s.by_rows ? s.width - begin.width * ld_x : s.width * ld_x - begin.width;
  }
}

template <class S>
bool run(Branches<S> all, int64_t B, const void* V, void* out, Stream stream) {
  // The fewest blocks that hold an image; more where the batch leaves most of a large GPU idle.
  for (int blocks = 1; blocks <= kMostBlocks; blocks *= 2) {
    bool more = blocks < kMostBlocks && B * blocks < 132;
    for (int i = 0; i < all.count; ++i) {
      Branch& s = all.branch[i];
      s.blocks = blocks, s.width = s.n / blocks;
      if (s.width % 16 || s.width * blocks != s.n) return false;
      more = more && s.width % (2 * kTileK) == 0 && s.width > kTile;
    }
    place(all);
    size_t bytes = all.places[0].bytes;
    if (all.count > 1 && bytes < all.places[1].bytes) bytes = all.places[1].bytes;
    if (bytes > kSharedLimit || more) continue;
    launch(branches_kernel<S>, B * blocks, kThreads, bytes, stream, blocks, all,
           static_cast<const S*>(V), static_cast<S*>(out));
    return true;
  }
  return false;
}

bool fits(const Shape& s) {
  return s.embeddings == 2 && s.m && s.d % kTileK == 0 && s.q % kTileK == 0 && s.k <= kTile;
}

Branch branch_of(const Shape& s, const Layer* layers) {
  const Layer* next = layers + 2 + s.p;
  return {{layers[0], layers[1], layers[s.p ? 2 : 1]},
          next[0],
          next[1],
          next[2],
          s.d,
          s.n,
          s.c,
          s.m,
          s.k,
          s.p,
          s.psi_rows,
          0,
          1,
          s.by_rows};
}

}  // namespace

bool attention_in_clusters(const Shape* shapes, const Layer* const* layers, int count,
                           const void* V, void* out, StreamHandle stream) {
  for (int i = 0; i < count; ++i)
    if (!fits(shapes[i])) return false;
  const Type type = shapes[0].type;
  if ((type != Type::kHalf && type != Type::kBFloat16) || reinterpret_cast<uintptr_t>(V) % 16 ||
      !has_clusters())
    return false;
  bool done = false;
  with_type(type, [&]<class S>() {
    if constexpr (sizeof(S) == 2) {
      Branches<S> all = {};
      all.count = count;
      for (int i = 0; i < count; ++i) all.branch[i] = branch_of(shapes[i], layers[i]);
      done = run<S>(all, shapes[0].B, V, out, static_cast<Stream>(stream));
    }
  });
  return done;
}

}  // namespace rga::cuda
