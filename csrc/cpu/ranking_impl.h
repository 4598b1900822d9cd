// Ranking's products and counts. Included by one file per instruction set, after gemm_impl.h.

// Longer parts than a single product's: the tiles of distances are read and written less often.
constexpr int64_t kRankingDepth = 256;
constexpr int64_t kManyHits = 64;  // above it, an image is searched for among the hits

// Each part of the depth with all its rows, one part after the other.
void pack_a(int64_t rows, int64_t depth, const float* A, float* packed) {
  const int64_t step = part(depth, kRankingDepth, 8);
  for (int64_t k = 0; k < depth; k += step)
    pack_panels(false, rows, depth - k < step ? depth - k : step, A + k, depth, packed + rows * k);
}

void pack_b(int64_t columns, int64_t depth, const float* B, float* packed) {
  const int64_t step = part(depth, kRankingDepth, 8);
  const int64_t width = (columns + kPackedColumns - 1) / kPackedColumns * kPackedColumns;
  for (int64_t k = 0; k < depth; k += step)
    pack_strips(true, depth - k < step ? depth - k : step, columns, B + k, depth,
                packed + width * k);
}

void multiply_packed(int64_t rows, int64_t columns, int64_t depth, const float* packed_a,
                     const float* packed_b, float* C, int64_t ldc) {
  const int64_t step = part(depth, kRankingDepth, 8);
  const int64_t width = (columns + kPackedColumns - 1) / kPackedColumns * kPackedColumns;
  for (int64_t k = 0; k < depth; k += step) {
    const int64_t d = depth - k < step ? depth - k : step;
    for (int64_t i = 0; i < rows; i += kRows)
      for (int64_t j = 0; j < columns; j += kStrip)
        panel_times_strip(
            rows - i < kRows ? rows - i : kRows, columns - j < kStrip ? columns - j : kStrip, d,
            packed_a + rows * k + i * d, packed_b + width * k + j * d, k > 0, C + i * ldc + j, ldc);
  }
}

// One sum after the other in each chain, as in a tile: the order decides the last bit.
template <int CHAINS>
inline void dots_of(int64_t depth, const float* a, const float* const* b, float* out) {
  const int64_t step = part(depth, kRankingDepth, 8);
  for (int64_t k0 = 0; k0 < depth; k0 += step) {
    const int64_t k1 = depth - k0 < step ? depth : k0 + step;
    float sum[CHAINS] = {};
    for (int64_t k = k0; k < k1; ++k)
#pragma GCC unroll 8
      for (int h = 0; h < CHAINS; ++h) sum[h] = __builtin_fmaf(a[k], b[h][k], sum[h]);
    for (int h = 0; h < CHAINS; ++h) out[h] = k0 ? out[h] + sum[h] : sum[h];
  }
}

void dots(int64_t count, int64_t depth, const float* a, const float* const* b, float* out) {
  if (count == kChains) return dots_of<kChains>(depth, a, b, out);
  for (int64_t h = 0; h < count; ++h) dots_of<1>(depth, a, b + h, out + h);
}

template <bool INCLUSIVE>
inline int64_t count_below(int64_t n, const float* x, float limit) {
  int32_t count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t j = 0; j < n; ++j) count += INCLUSIVE ? x[j] <= limit : x[j] < limit;
  return count;
}

// A comparison with every image for each hit: a few cycles per image, and no ties to look for.
void compare_all(const GalleryTile& images, const QueryHits& query, float nearest, const float* x,
                 int64_t* counts) {
  for (int64_t s = 0; s < query.count; ++s) {
    const float limit = query.distance[s];
    if (limit < nearest) continue;
    int64_t before = query.index[s] - images.first;  // of these, those at the same distance count
    before = before < 0 ? 0 : before > images.count ? images.count : before;
    counts[s] = count_below<true>(before, x, limit) +
                count_below<false>(images.count - before, x + before, limit);
  }
}

// The first hit that is not before the image: its distance is the same and its index larger, or
// its distance is larger.
inline int64_t first_not_before(const QueryHits& query, float x, int64_t index) {
  int64_t low = 0, length = query.count;
  while (length > 0) {
    const int64_t half = length / 2, middle = low + half;
    const bool before =
        query.distance[middle] < x || (query.distance[middle] == x && query.index[middle] < index);
    low = before ? middle + 1 : low;
    length = before ? length - half - 1 : half;
  }
  return low;
}

void search_each(const GalleryTile& images, const QueryHits& query, const float* x,
                 int64_t* counts) {
  const float last = query.distance[query.count - 1];
  for (int64_t j = 0; j < images.count; ++j) {
    if (!(x[j] <= last)) continue;
    const int64_t s = first_not_before(query, x[j], images.first + j);
    if (s < query.count) ++counts[s];
  }
  for (int64_t s = 1; s < query.count; ++s) counts[s] += counts[s - 1];
}

void count_before(const GalleryTile& images, const QueryHits& query, float* x, int64_t* counts) {
  if (query.count == 0) return;
  const float infinity = __builtin_inff(), nowhere = __builtin_nanf("");
  float nearest = infinity;
#pragma omp simd reduction(min : nearest)
  for (int64_t j = 0; j < images.count; ++j) {
    const int32_t identity = images.identity[j];
    const bool out =
        (identity < 0) | (identity == query.identity) | (images.camera[j] == query.camera);
    const float distance = x[j] * images.scale + images.offset[j];
    x[j] = out ? nowhere : distance;
    const float candidate = out ? infinity : distance;
    nearest = candidate < nearest ? candidate : nearest;
  }
  if (nearest > query.distance[query.count - 1]) return;
  if (query.count > kManyHits)
    search_each(images, query, x, counts);
  else
    compare_all(images, query, nearest, x, counts);
}

static_assert(kPackedColumns % kStrip == 0);
constexpr RankingPasses kRanking = {pack_a, pack_b, multiply_packed, dots, count_before};
