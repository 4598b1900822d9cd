#include "passes_tables.h"

#ifdef RGA_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace rga::avx2 {
namespace {
#include "passes_impl.h"  // after every other header
}
const Passes<float>& floats = kFloat;
const Passes<double>& doubles = kDouble;
}  // namespace rga::avx2

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
