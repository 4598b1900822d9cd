// The portable passes, and the choice among all of them.
#include "passes.h"

#include <cstdlib>
#include <cstring>

#include "passes_tables.h"

namespace rga {
namespace portable {
namespace {
#include "passes_impl.h"
}
}  // namespace portable

namespace {

enum class Isa { portable, avx2, avx512 };

// RGA_FAST_ISA ("portable", "avx2") asks for less than the machine has.
Isa detect() {
#ifdef RGA_X86
  const char* wish = std::getenv("RGA_FAST_ISA");
  if (wish && std::strcmp(wish, "portable") == 0) return Isa::portable;
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  if (avx512 && __builtin_cpu_supports("fma") && !(wish && std::strcmp(wish, "avx2") == 0))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::portable;
}

const Isa isa = detect();

}  // namespace

template <>
const Passes<float>& passes() {
#ifdef RGA_X86
  if (isa == Isa::avx512) return avx512::floats;
  if (isa == Isa::avx2) return avx2::floats;
#endif
  return portable::kFloat;
}

template <>
const Passes<double>& passes() {
#ifdef RGA_X86
  if (isa == Isa::avx512) return avx512::doubles;
  if (isa == Isa::avx2) return avx2::doubles;
#endif
  return portable::kDouble;
}

const RankingPasses* ranking_passes() {
#ifdef RGA_X86
  if (isa == Isa::avx512) return &avx512::ranking;
  if (isa == Isa::avx2) return &avx2::ranking;
#endif
  return nullptr;
}

const char* instruction_set() {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

}  // namespace rga
