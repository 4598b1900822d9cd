// Ranks without a matrix of distances (rga_fast/reid/retrieval/): tiles of distances are computed
// and counted while a core's cache holds them.
#include "ranking.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "image.h"

namespace rga {
namespace {

constexpr int64_t kImages = 256, kQueries = 192;  // columns and rows of a tile

const RankingPasses& passes_for(const Tensor& a, const Tensor& b) {
  const RankingPasses* passes = ranking_passes();
  STD_TORCH_CHECK(passes, "rga_fast: ranking needs an x86 with AVX2");
  STD_TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) > 0,
                  "rga_fast: features must be (N, D) with D > 0, got ", shape_text(a), " and ",
                  shape_text(b));
  check_dense(a, "features", {a.size(0), a.size(1)}, ScalarType::Float);
  check_dense(b, "features", {b.size(0), a.size(1)}, ScalarType::Float);
  return *passes;
}

// The tiles of a b^T: f(i, rows, j, columns, products), `products` (rows x columns).
template <class F>
void for_each_tile(const Tensor& a, const Tensor& b, const F& f) {
  const RankingPasses& passes = passes_for(a, b);
  const int64_t M = a.size(0), N = b.size(0), D = a.size(1);
  const int64_t down = (M + kQueries - 1) / kQueries, across = (N + kImages - 1) / kImages;
  const float *A = cdata<float>(a), *B = cdata<float>(b);
  Tensor packed = make(a, {M, D}, ScalarType::Float);
  float* panels = data<float>(packed);
  for_each(down, kQueries * D, [&](int64_t item, int) {
    const int64_t i = item * kQueries;
    passes.pack_a(std::min(kQueries, M - i), D, A + i * D, panels + i * D);
  });
  // Few images are shared out by queries, too.
  const int64_t shares = std::clamp<int64_t>(across ? 4 * Scratch<float>::threads() / across : 1, 1,
                                             std::max<int64_t>(down, 1));
  const Scratch<float> scratch(a, {kImages * D, kQueries * kImages});
  for_each(across * shares, M * kImages * D / shares, [&](int64_t item, int thread) {
    const int64_t j = item / shares * kImages, share = item % shares;
    const int64_t columns = std::min(kImages, N - j);
    float *strips = scratch(thread, 0), *products = scratch(thread, 1);
    passes.pack_b(columns, D, B + j * D, strips);
    for (int64_t tile = share * down / shares; tile < (share + 1) * down / shares; ++tile) {
      const int64_t i = tile * kQueries, rows = std::min(kQueries, M - i);
      passes.multiply(rows, columns, D, panels + i * D, strips, products, columns);
      f(i, rows, j, columns, products);
    }
  });
}

// a b^T (M x N).
Tensor product(const Tensor& a, const Tensor& b) {
  const int64_t N = b.size(0);
  Tensor out = make(a, {a.size(0), N}, ScalarType::Float);
  float* to = data<float>(out);
  for_each_tile(a, b, [&](int64_t i, int64_t rows, int64_t j, int64_t columns, const float* tile) {
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(tile + r * columns, columns, to + (i + r) * N + j);
  });
  return out;
}

// (H,) the products of row rows[h] of a and row columns[h] of b: those of `product`, without
// packing.
Tensor pairs(const Tensor& a, const Tensor& b, const Tensor& rows, const Tensor& columns) {
  const RankingPasses& passes = passes_for(a, b);
  const int64_t H = rows.size(0), D = a.size(1);
  check_dense(rows, "rows", {H}, ScalarType::Long);
  check_dense(columns, "columns", {H}, ScalarType::Long);
  const int64_t *row = cdata<int64_t>(rows), *column = cdata<int64_t>(columns);
  const auto inside = [H](const int64_t* indices, int64_t size) {
    return std::all_of(indices, indices + H, [=](int64_t i) { return 0 <= i && i < size; });
  };
  STD_TORCH_CHECK(inside(row, a.size(0)) && inside(column, b.size(0)),
                  "rga_fast: an index of a pair is out of range");
  Tensor out = make(a, {H}, ScalarType::Float);
  const float *A = cdata<float>(a), *B = cdata<float>(b);
  float* to = data<float>(out);
  constexpr int64_t kPairs = 64;
  for_each((H + kPairs - 1) / kPairs, kPairs * D, [&](int64_t item, int) {
    const int64_t stop = std::min(H, (item + 1) * kPairs);
    for (int64_t h = item * kPairs, next; h < stop; h = next) {
      const float* partners[kChains];
      for (next = h; next < stop && next - h < kChains && row[next] == row[h]; ++next)
        partners[next - h] = B + column[next] * D;
      passes.dots(next - h, D, A + row[h] * D, partners, to + h);
    }
  });
  return out;
}

// counts[s] += the images of a block of the gallery that stand before hit s; operators.py has the
// contract.
void count_before(const Tensor& query, const Tensor& query_ids, const Tensor& query_cams,
                  const Tensor& gallery, const Tensor& gallery_ids, const Tensor& gallery_cams,
                  const Tensor& offset, double scale, int64_t first, const Tensor& begin,
                  const Tensor& distances, const Tensor& indices, Tensor counts) {
  const RankingPasses& passes = passes_for(query, gallery);
  const int64_t M = query.size(0), N = gallery.size(0), hits = counts.size(0);
  check_dense(query_ids, "query_ids", {M}, ScalarType::Int);
  check_dense(query_cams, "query_cams", {M}, ScalarType::Int);
  check_dense(gallery_ids, "gallery_ids", {N}, ScalarType::Int);
  check_dense(gallery_cams, "gallery_cams", {N}, ScalarType::Int);
  check_dense(offset, "offset", {N}, ScalarType::Float);
  check_dense(begin, "begin", {M + 1}, ScalarType::Long);
  check_dense(distances, "distances", {hits}, ScalarType::Float);
  check_dense(indices, "indices", {hits}, ScalarType::Long);
  check_dense(counts, "counts", {hits}, ScalarType::Long);
  const int64_t* bounds = cdata<int64_t>(begin);
  STD_TORCH_CHECK(bounds[0] >= 0 && bounds[M] <= hits && std::is_sorted(bounds, bounds + M + 1),
                  "rga_fast: begin must ascend within 0 and the number of hits, ", hits);
  int64_t* total = data<int64_t>(counts);
  for_each_tile(
      query, gallery, [&](int64_t i, int64_t rows, int64_t j, int64_t columns, float* tile) {
        const GalleryTile images{cdata<int32_t>(gallery_ids) + j,
                                 cdata<int32_t>(gallery_cams) + j,
                                 cdata<float>(offset) + j,
                                 static_cast<float>(scale),
                                 first + j,
                                 columns};
        std::vector<int64_t> before;
        for (int64_t r = i; r < i + rows; ++r) {
          const QueryHits row{cdata<float>(distances) + bounds[r],
                              cdata<int64_t>(indices) + bounds[r], bounds[r + 1] - bounds[r],
                              cdata<int32_t>(query_ids)[r], cdata<int32_t>(query_cams)[r]};
          before.assign(row.count, 0);
          passes.count_before(images, row, tile + (r - i) * columns, before.data());
          for (int64_t s = 0; s < row.count; ++s)
            if (before[s])
              std::atomic_ref(total[bounds[r] + s]).fetch_add(before[s], std::memory_order_relaxed);
        }
      });
}

}  // namespace
}  // namespace rga

STABLE_TORCH_LIBRARY_IMPL(rga_fast_ranking, CPU, m) {
  m.impl("product", TORCH_BOX(&rga::product));
  m.impl("pairs", TORCH_BOX(&rga::pairs));
  m.impl("count_before", TORCH_BOX(&rga::count_before));
}
