// What ranking asks of the vector units, compiled once per instruction set.
#pragma once

#include <cstdint>

namespace rga {

// Gallery images, `first` the index of the first of them. Their distance from a query is
// scale * product + offset.
struct GalleryTile {
  const int32_t *identity, *camera;  // an identity below 0 is junk
  const float* offset;
  float scale;
  int64_t first, count;
};

// A query and its hits, ascending by (distance, index).
struct QueryHits {
  const float* distance;
  const int64_t* index;
  int64_t count;
  int32_t identity, camera;
};

struct RankingPasses {
  // C (rows x columns) = A B^T of packed rows of `depth` elements. An element depends on its two
  // rows alone, not on the shape of the product or its place in it.
  void (*pack_a)(int64_t rows, int64_t depth, const float* A, float* packed);
  void (*pack_b)(int64_t columns, int64_t depth, const float* B, float* packed);
  void (*multiply)(int64_t rows, int64_t columns, int64_t depth, const float* packed_a,
                   const float* packed_b, float* C, int64_t ldc);
  // out[h] = a . b[h], `depth` elements each, the very values of `multiply`; count <= kChains.
  void (*dots)(int64_t count, int64_t depth, const float* a, const float* const* b, float* out);
  // counts[s] = the images that stand before hit s, junk and images of the query's identity or
  // camera left out; zeros when it is called. `distances` (images.count) are the products, and are
  // overwritten.
  void (*count_before)(const GalleryTile& images, const QueryHits& query, float* distances,
                       int64_t* counts);
};

constexpr int64_t kChains = 8;          // sums that are added up side by side
constexpr int64_t kPackedColumns = 32;  // the columns of packed_b are filled up to a multiple

const RankingPasses* ranking_passes();  // null where the instruction set has none

}  // namespace rga
