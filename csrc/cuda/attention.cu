// A branch in evaluation: the operators of training without their statistics.
#include "sums.cuh"

namespace rga::cuda {
namespace {

struct Layers {
  Layer layer[kLayers];
  int count, embeddings, table_rows;  // of the layers: those of the nodes
};

// The tables of all normalisations, by the last block; and the weights of the embeddings in one.
template <class T>
RGA_KERNEL(kThreads)
prepare_kernel(Layers layers, T* tables, T* weight_e, int d, int64_t weights) {
  const int64_t i = static_cast<int64_t>(block_index()) * kThreads + thread_index();
  if (i < weights) {
    int64_t row = i / d;
    int l = 0;
    while (row >= layers.layer[l].rows) row -= layers.layer[l++].rows;
    weight_e[i] = static_cast<const T*>(layers.layer[l].weight)[row * d + i % d];
  }
  if (static_cast<int64_t>(block_index()) * kThreads < weights) return;
  // Each group of layers has a separate table: the embeddings, then one layer after the other.
  T* table = tables;
  for (int l = 0, rows = 0, first = 0; l < layers.count; ++l) {
    const Layer& layer = layers.layer[l];
    const bool embeds = l < layers.embeddings;
    if (first == 0) {
      rows = embeds ? layers.table_rows : layer.rows;
    }
    const T* norm[4];
    for (int x = 0; x < 4; ++x) norm[x] = static_cast<const T*>(layer.norm[x]);
    for (int row = static_cast<int>(thread_index()); row < layer.rows; row += kThreads) {
      T* to = table + first + row;
      to[0] = norm[0][row];
      to[rows] = T(1) / sqrt(norm[1][row] + static_cast<T>(layer.eps));
      to[2 * rows] = norm[2][row];
      to[3 * rows] = norm[3][row];
    }
    first += layer.rows;
    if (first == rows) table += 4 * rows, first = 0;
  }
}

template <class S>
void prepare(const Shape& s, const Layer* layer, int count, const Scratch& scratch, Stream stream) {
  using T = Compute<S>;
  Layers layers = {{}, count, s.embeddings + s.p, s.r};
  for (int i = 0; i < count; ++i) layers.layer[i] = layer[i];
  const int64_t weights = int64_t{s.r} * s.d;
  launch(prepare_kernel<T>, (weights + kThreads - 1) / kThreads + 1, kThreads, 0, stream, 1, layers,
         static_cast<T*>(scratch.tables), static_cast<T*>(scratch.weight_e), s.d, weights);
}

}  // namespace

void attention(const Shape& s, const Layer* layers, int count, const void* V, const Scratch& x,
               void* out, StreamHandle stream) {
  const void* relation = s.m ? layers[count - 3].weight : nullptr;
  with_type(s.type, [&]<class S>() {
    prepare<S>(s, layers, count, x, static_cast<Stream>(stream));
    auto* table = static_cast<Compute<S>*>(x.tables);
    const NormTable norm_e{table}, norm_z{table + 4 * s.r}, norm_h{table + 4 * (s.r + s.m)};
    const NormTable norm_l{table + 4 * (s.r + s.m + s.k)};
    embed_fwd(s, V, x.weight_e, x.E, nullptr, nullptr, stream);
    relate_fwd(s, V, x.E, norm_e, relation, x.PQ, x.Z, x.psi, nullptr, nullptr, stream);
    hidden_fwd(s, x.psi, x.Z, norm_z, layers[count - 2].weight, x.hidden, nullptr, nullptr, stream);
    logit_fwd(s, x.hidden, norm_h, layers[count - 1].weight, x.logit, nullptr, nullptr, stream);
    gate_fwd(s, V, x.logit, norm_l, out, stream);
  });
}

}  // namespace rga::cuda
