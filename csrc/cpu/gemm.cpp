#include "gemm.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <utility>

#include "passes.h"

// Not every build of torch exports these.
extern "C" {
#define RGA_GEMM_ARGUMENTS(T)                                                                    \
  (const char*, const char*, const int*, const int*, const int*, const T*, const T*, const int*, \
   const T*, const int*, const T*, T*, const int*)
__attribute__((weak)) void sgemm_ RGA_GEMM_ARGUMENTS(float);
__attribute__((weak)) void dgemm_ RGA_GEMM_ARGUMENTS(double);
#undef RGA_GEMM_ARGUMENTS
__attribute__((weak)) int MKL_Set_Num_Threads_Local(int);
}

namespace rga {
namespace {

std::atomic<bool> use_library{true};
thread_local bool alone = false;  // in a region where each thread multiplies for itself

bool have_library() { return use_library && sgemm_ && dgemm_; }
bool have_own() { return use_library && passes<float>().multiply; }

template <class T>
torch::stable::Tensor matrix(const T* data, bool transposed, int64_t rows, int64_t columns,
                             int64_t ld) {
  constexpr auto dtype =
      sizeof(T) == 8 ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float;
  const int64_t strides[2] = {transposed ? 1 : ld, transposed ? ld : 1};
  const int64_t sizes[2] = {rows, columns};
  return torch::stable::from_blob(const_cast<T*>(data), {sizes, 2}, {strides, 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
}

template <class T>
void dispatched(bool ta, bool tb, int64_t M, int64_t N, int64_t K, const T* A, int64_t lda,
                const T* B, int64_t ldb, bool add, T* C, int64_t ldc) {
  const auto product = torch::stable::contiguous(
      torch::stable::matmul(matrix(A, ta, M, K, lda), matrix(B, tb, K, N, ldb)));
  const T* P = static_cast<const T*>(product.const_data_ptr());
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j) C[i * ldc + j] = P[i * N + j] + (add ? C[i * ldc + j] : T(0));
}

// Row-major C = A B is column-major C^T = B^T A^T.
template <class T, class F>
void library(F function, bool ta, bool tb, int64_t M, int64_t N, int64_t K, const T* A, int64_t lda,
             const T* B, int64_t ldb, bool add, T* C, int64_t ldc) {
  const int m = N, n = M, k = K, a = ldb, b = lda, c = ldc;
  const T one = 1, beta = add ? 1 : 0;
  function(tb ? "T" : "N", ta ? "T" : "N", &m, &n, &k, &one, B, &a, A, &b, &beta, C, &c);
}

}  // namespace

template <>
void gemm(bool ta, bool tb, int64_t M, int64_t N, int64_t K, const float* A, int64_t lda,
          const float* B, int64_t ldb, bool add, float* C, int64_t ldc) {
  if (M == 0 || N == 0) return;
  if (have_own() && K > 0 && (alone || torch::stable::get_num_threads() == 1))
    passes<float>().multiply(ta, tb, M, N, K, A, lda, B, ldb, add, C, ldc);
  else if (have_library() && K > 0)
    library(sgemm_, ta, tb, M, N, K, A, lda, B, ldb, add, C, ldc);
  else
    dispatched(ta, tb, M, N, K, A, lda, B, ldb, add, C, ldc);
}

template <>
void gemm(bool ta, bool tb, int64_t M, int64_t N, int64_t K, const double* A, int64_t lda,
          const double* B, int64_t ldb, bool add, double* C, int64_t ldc) {
  if (M == 0 || N == 0) return;
  if (have_library() && K > 0)
    library(dgemm_, ta, tb, M, N, K, A, lda, B, ldb, add, C, ldc);
  else
    dispatched(ta, tb, M, N, K, A, lda, B, ldb, add, C, ldc);
}

const char* gemm_library() {
  if (have_own()) return "our own in float32";
  if (!have_library()) return "torch's dispatcher";
  return MKL_Set_Num_Threads_Local ? "the sgemm_ and dgemm_ of torch's MKL"
                                   : "the sgemm_ and dgemm_ that torch exports";
}

void use_gemm_library(bool on) { use_library = on; }

SingleThreadedGemm::SingleThreadedGemm()
    : library_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0),
      own_(std::exchange(alone, true)) {}

SingleThreadedGemm::~SingleThreadedGemm() {
  alone = own_;
  if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(library_);
}

}  // namespace rga
