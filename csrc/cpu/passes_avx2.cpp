#include "passes_tables.h"

#ifdef RGA_X86
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace rga::avx2 {
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
}  // namespace rga::avx2

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
