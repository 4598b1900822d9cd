// What the kernel files export: one launcher per operator, without a type of torch or of the GPU.
//
// The letters are those of docs/design.md and rga_fast/fused/ops.py. `partial` is scratch for sums
// over the nodes: a value for each row and each piece of kChunk nodes, added up in a fixed order.
#pragma once

#include <cstdint>

namespace rga::cuda {

enum class Type { kFloat, kDouble, kHalf, kBFloat16 };

constexpr int kChunk = 64;  // nodes whose sum is one partial sum

// The sizes of a branch; those that an operator has no use for are zero.
struct Shape {
  Type type;  // of the map; the compute type follows
  int64_t B = 0;
  int d = 0, n = 0, r = 0, m = 0, q = 0, c = 0, p = 0, k = 0, psi_rows = 0, embeddings = 0;
  bool by_rows = true;  // the layout of V

  int64_t chunks() const { return B * ((n + kChunk - 1) / kChunk); }
};

// A normalisation (4, rows), with the means of a gradient (2, rows) where there are any.
struct NormTable {
  const void* norm;
  const void* means = nullptr;
};

using StreamHandle = void*;  // a cudaStream_t

// Into how many shares of the images the gradient of a weight is divided, each summed by a block of
// its own: enough blocks for a large GPU, whatever the device, so that results do not depend on it.
inline int splits(int64_t B, int64_t rows, int64_t columns) {
  const int64_t tiles = (rows + 63) / 64 * ((columns + 63) / 64);
  const int64_t wanted = (528 + tiles - 1) / (tiles ? tiles : 1);
  return static_cast<int>(wanted < B ? wanted : B < 1 ? 1 : B);
}

// `partial` null: no statistics, as in evaluation.
void embed_fwd(const Shape&, const void* V, const void* weight_e, void* E, void* partial,
               void* stats_e, StreamHandle);
void relate_fwd(const Shape&, const void* V, const void* E, NormTable norm_e, const void* weight_z,
                void* PQ, void* Z, void* psi, void* partial, void* stats_z, StreamHandle);
void hidden_fwd(const Shape&, const void* psi, const void* Z, NormTable norm_z,
                const void* weight_h, void* hidden, void* partial, void* stats_h, StreamHandle);
void logit_fwd(const Shape&, const void* hidden, NormTable norm_h, const void* weight_l,
               void* logit, void* partial, void* stats_l, StreamHandle);
void gate_fwd(const Shape&, const void* V, const void* logit, NormTable norm_l, void* out,
              StreamHandle);

void gate_bwd(const Shape&, const void* dout, const void* V, const void* logit, NormTable norm_l,
              void* dlogit, void* partial, void* sums_l, StreamHandle);
// Z of PQ, the second half of relate_fwd.
void relations(const Shape&, const void* V, const void* E, NormTable norm_e, const void* PQ,
               void* Z, StreamHandle);
// What follows Z and hidden in logit_bwd. `partial`: three values for each row.
void logit_bwd(const Shape&, const void* hidden, NormTable norm_h, const void* weight_l,
               const void* logit, NormTable norm_l, const void* dlogit, void* dl, void* partial,
               void* dweight_l, void* sums_h, StreamHandle);
// `shares`: splits(B, k, p + m) gradients of the weight.
void hidden_bwd(const Shape&, const void* psi, const void* Z, NormTable norm_z,
                const void* weight_h, const void* hidden, NormTable norm_h, const void* weight_l,
                const void* dl, void* dhidden, void* shares, void* dweight_h, void* partial,
                void* sums_z, StreamHandle);
// Scratch: dZ like Z, dPQ like PQ, dpsi (B, n), `shares` splits(B, m, 2 n) gradients.
void relate_bwd(const Shape&, const void* V, const void* E, NormTable norm_e, const void* weight_z,
                const void* PQ, const void* Z, NormTable norm_z, const void* weight_h,
                const void* dhidden, void* dZ, void* dPQ, void* dpsi, void* dE, void* dnodes,
                void* shares, void* dweight_z, void* partial, void* sums_e, StreamHandle);
// `dV` or `dweight_e` null: not wanted. `dnodes` null: none. `shares`: splits(B, r, d) gradients.
void embed_bwd(const Shape&, const void* dout, const void* V, const void* logit, NormTable norm_l,
               const void* E, NormTable norm_e, const void* weight_e, const void* dE,
               const void* dnodes, void* dV, void* shares, void* dweight_e, StreamHandle);

// A layer in evaluation: its weight (rows, columns); running mean and variance, weight and bias of
// its normalisation.
struct Layer {
  const void* weight;
  const void* norm[4];
  double eps;
  int rows, columns;
};

constexpr int kLayers = 6;  // at most: theta, phi, psi, relation, W_1, W_2

// What a branch in evaluation needs beside its input and output: tables (4, r + m + k + 1) of all
// normalisations, the weights of the embeddings as one, and the tensors of the training operators.
struct Scratch {
  void *tables, *weight_e, *E, *PQ, *Z, *psi, *hidden, *logit;
};

void attention(const Shape&, const Layer* layers, int count, const void* V, const Scratch&,
               void* out, StreamHandle);

// The same in one launch of thread-block clusters, also of two branches in turn (`count`), the
// nodes of the second being the features of the first; false, and nothing done, where the device
// has no clusters or the image does not fit.
bool attention_in_clusters(const Shape*, const Layer* const* layers, int count, const void* V,
                           void* out, StreamHandle);

}  // namespace rga::cuda
