// Products of row-major matrices through the library that torch itself uses.
#pragma once

#include <cstdint>

namespace rga {

// C (M x N) = op(A) op(B) + beta C, with op(A) M x K and op(B) K x N; `ta`, `tb` transpose.
template <class T>
void gemm(bool ta, bool tb, int64_t M, int64_t N, int64_t K, const T* A, int64_t lda, const T* B,
          int64_t ldb, T beta, T* C, int64_t ldc);

const char* gemm_library();      // what `gemm` calls
void use_gemm_library(bool on);  // off: the dispatcher's product, as where the library has none

// While it lives, the library computes on the calling thread alone.
class SingleThreadedGemm {
 public:
  SingleThreadedGemm();
  ~SingleThreadedGemm();
  SingleThreadedGemm(const SingleThreadedGemm&) = delete;
  SingleThreadedGemm& operator=(const SingleThreadedGemm&) = delete;

 private:
  int before_;
};

}  // namespace rga
