#include "passes_tables.h"

#ifdef RGA_X86
#include <immintrin.h>
#define RGA_VECTOR_BYTES 64
#define RGA_PAIRS 12
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,fma,prefer-vector-width=512")
#endif

namespace rga::avx512 {
namespace {
#include "passes_impl.h"  // after every other header
// Each needs the former.
#include "gemm_impl.h"
#include "ranking_impl.h"
constexpr Passes<float> kWithProducts = with_products();
}  // namespace
const Passes<float>& floats = kWithProducts;
const Passes<double>& doubles = kDouble;
const RankingPasses& ranking = kRanking;
}  // namespace rga::avx512

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
