// Products of row-major matrices: our own in float32 on one thread of an x86 (gemm_impl.h), else
// those of the library that torch itself uses.
#pragma once

#include <cstdint>

namespace rga {

// C (M x N) = op(A) op(B) + (add ? C : 0), op(A) M x K and op(B) K x N; `ta`, `tb` transpose.
template <class T>
void gemm(bool ta, bool tb, int64_t M, int64_t N, int64_t K, const T* A, int64_t lda, const T* B,
          int64_t ldb, bool add, T* C, int64_t ldc);

const char* gemm_library();  // what `gemm` calls
// Off: torch's dispatcher multiplies, as where there is neither our own product nor a library's.
void use_gemm_library(bool on);

// While it lives, products are computed on the calling thread alone.
class SingleThreadedGemm {
 public:
  SingleThreadedGemm();
  ~SingleThreadedGemm();
  SingleThreadedGemm(const SingleThreadedGemm&) = delete;
  SingleThreadedGemm& operator=(const SingleThreadedGemm&) = delete;

 private:
  int library_;
  bool own_;
};

}  // namespace rga
