// The instructions of the GPU that the kernels use, in thin wrappers.
//
// Compiled by nvcc they are what they say. Compiled by the host's compiler the same names come from
// tests/emulate/emulate.h, so that every kernel runs, and is checked, without a GPU.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#define RGA_DEVICE __device__ __forceinline__
#define RGA_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define RGA_PARAMETER __grid_constant__  // of a kernel: read where it is, not copied

namespace rga::cuda {

using half = __half;
using bfloat16 = __nv_bfloat16;
using Stream = cudaStream_t;

constexpr unsigned kAllLanes = 0xffffffffu;

RGA_DEVICE unsigned thread_index() { return threadIdx.x; }
RGA_DEVICE unsigned block_index() { return blockIdx.x; }
RGA_DEVICE void block_sync() { __syncthreads(); }

template <class T>
RGA_DEVICE T shuffle_xor(T value, int lanes) {
  return __shfl_xor_sync(kAllLanes, value, lanes);
}

// The dynamic shared memory of the block, aligned to 16 bytes.
template <class T>
RGA_DEVICE T* shared_memory() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<T*>(memory);
}

// Four 8x8 matrices of 2-byte elements, whose rows start where the lanes 0-7, 8-15, ... say.
template <bool kTransposed>
RGA_DEVICE void load_matrices(uint32_t (&x)[4], const void* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

// c (16 x 8) += a (16 x 16) b (16 x 8), accumulated in float32.
template <class S>
RGA_DEVICE void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  if constexpr (sizeof(S) == 2 && std::is_same_v<S, bfloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Copies 16 bytes to shared memory, of which the first `bytes` are read and the rest are zero.
RGA_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
}
// Ends a group of copies; waits until no more than `kPending` groups are under way.
RGA_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
RGA_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// A cluster of blocks: its barrier, and the place of `shared` in the memory of its block `rank`.
RGA_DEVICE void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
#endif
}
template <class T>
RGA_DEVICE T* cluster_shared(T* shared, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t address;
  asm volatile("mapa.u64 %0, %1, %2;"
               : "=l"(address)
               : "l"(reinterpret_cast<uint64_t>(shared)), "r"(rank));
  return reinterpret_cast<T*>(address);
#else
  return shared;
#endif
}

RGA_DEVICE void copy16(void* to, const void* from) {
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("rga_fast: ") + what + ": " + cudaGetErrorString(status));
}

// Whether the current device runs the code for clusters, that for sm_90a.
inline bool has_clusters() {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
  return major == 9;
}

// `blocks` blocks of `threads` threads with `shared` bytes of dynamic shared memory, in clusters.
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared, Stream stream,
            int cluster, const A&... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff)
    throw std::runtime_error("rga_fast: the batch needs more blocks than a launch can have");
  if (shared > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          "shared memory");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), "launch");
}

}  // namespace rga::cuda
#else
#include "emulate.h"
#endif
