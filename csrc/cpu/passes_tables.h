// The tables of passes.h, one per instruction set.
#pragma once

#include "passes.h"
#include "ranking.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define RGA_X86
namespace rga::avx2 {
extern const Passes<float>& floats;
extern const Passes<double>& doubles;
extern const RankingPasses& ranking;
}  // namespace rga::avx2
namespace rga::avx512 {
extern const Passes<float>& floats;
extern const Passes<double>& doubles;
extern const RankingPasses& ranking;
}  // namespace rga::avx512
#endif
