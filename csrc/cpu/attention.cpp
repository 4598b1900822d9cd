// The branch in evaluation: one operator, each image's products and passes back to back.
#include <torch/csrc/stable/library.h>

#include "image.h"

namespace rga {
namespace {

template <class T>
struct Layer {
  const T* weight = nullptr;
  int64_t rows = 0;
  std::vector<Row<T>> norm;
};

// The layers theta and phi (those present), psi, relation, W_1, W_2 of one branch.
template <class T>
struct Layers {
  std::vector<Layer<T>> relate;
  Layer<T> psi, relation, hidden, logit;
};

template <class T>
Layer<T> layer(const std::vector<Tensor>& weights, const std::vector<Tensor>& norms,
               const std::vector<double>& eps, size_t index, int64_t inputs) {
  STD_TORCH_CHECK(index < weights.size() && weights.size() == eps.size() &&
                      norms.size() == 4 * weights.size(),
                  "rga_fast: attention got the tensors of ", weights.size(), " layers");
  Layer<T> result{cdata<T>(weights[index]), weights[index].size(0), {}};
  check_dense(weights[index], "a weight", {result.rows, inputs}, type_of<T>());
  const T* p[4];
  for (int i = 0; i < 4; ++i) {
    check_dense(norms[4 * index + i], "a normalisation", {result.rows}, type_of<T>());
    p[i] = cdata<T>(norms[4 * index + i]);
  }
  for (int64_t r = 0; r < result.rows; ++r) {
    const T rstd = 1 / std::sqrt(p[1][r] + static_cast<T>(eps[index]));
    result.norm.push_back({p[0][r], rstd, rstd * p[2][r], p[3][r], 0, 0});
  }
  return result;
}

template <class T>
Layers<T> layers_of(const Nodes& V, const std::vector<Tensor>& weights,
                    const std::vector<Tensor>& norms, const std::vector<double>& eps,
                    int64_t embeddings, bool relations, bool appearance) {
  Layers<T> l;
  size_t i = 0;
  for (; i < static_cast<size_t>(embeddings); ++i)
    l.relate.push_back(layer<T>(weights, norms, eps, i, V.d));
  if (appearance) l.psi = layer<T>(weights, norms, eps, i++, V.d);
  if (relations) l.relation = layer<T>(weights, norms, eps, i++, 2 * V.n);
  l.hidden = layer<T>(weights, norms, eps, i++, l.relation.rows + appearance);
  l.logit = layer<T>(weights, norms, eps, i, l.hidden.rows);
  return l;
}

template <class T>
class Branch {
 public:
  Branch(const Nodes& V, const Layers<T>& l) : V(V), l(l) {
    c = l.relate.empty() ? V.d : l.relate[0].rows;
    q = l.relate.size() == 2 ? 2 * c : c;
    m = l.relation.rows;
    k = l.hidden.rows;
    nodes_block = block_size(V.n, std::max(V.d, 3 * c), sizeof(T));
    nodes_block = std::max<int64_t>(nodes_block, std::min<int64_t>(V.n, 256));
    seen_block = block_size(V.n, 1 + m + k, sizeof(T));
  }

  // W_row + W_col where theta is phi.
  void merge_relation(T* merged) const {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < V.n; ++j)
        merged[i * V.n + j] =
            l.relation.weight[i * 2 * V.n + j] + l.relation.weight[i * 2 * V.n + V.n + j];
  }

  // Embeddings of nodes n0 to n1: into `nodes` (q x n) and psi (n); adds up their part of PQ.
  void embed(const T* image, const T* merged, int64_t n0, int64_t n1, T* nodes, T* psi,
             T* psi_rows, T* PQ) const {
    const Passes<T>& pass = passes<T>();
    for (int64_t start = n0; start < n1; start += nodes_block) {
      const int64_t width = std::min(nodes_block, n1 - start);
      const NodeBlock<T> v = block(V, image, start);
      const T beta = start == n0 ? 0 : 1;
      for (size_t i = 0; i < l.relate.size(); ++i) {
        T* E = nodes + i * c * V.n + start;
        gemm<T>(false, !V.by_rows, c, width, V.d, l.relate[i].weight, V.d, v.data, v.ld, 0, E, V.n);
        pass.activate(c, width, l.relate[i].norm.data(), E, V.n, E, V.n);
      }
      if (l.psi.rows) {
        gemm<T>(false, !V.by_rows, l.psi.rows, width, V.d, l.psi.weight, V.d, v.data, v.ld, 0,
                psi_rows, width);
        pass.weighted_sum(l.psi.rows, width, l.psi.norm.data(), nullptr, T(1) / l.psi.rows,
                          psi_rows, width, psi + start);
      }
      if (!m) continue;
      const T* W = l.relation.weight;
      const T* N = nodes + start;
      if (l.relate.size() == 2) {
        gemm<T>(false, true, m, c, width, W + start, 2 * V.n, N + c * V.n, V.n, beta, PQ, q);
        gemm<T>(false, true, m, c, width, W + V.n + start, 2 * V.n, N, V.n, beta, PQ + c, q);
      } else if (l.relate.size() == 1) {
        gemm<T>(false, true, m, c, width, merged + start, V.n, N, V.n, beta, PQ, q);
      } else {
        gemm<T>(false, V.by_rows, m, c, width, merged + start, V.n, v.data, v.ld, beta, PQ, q);
      }
    }
  }

  // The attention values a of nodes n0 to n1. `seen` is a block of [psi; relations], (1 + m) wide.
  void values(const T* image, const T* nodes, const T* psi, const T* PQ, int64_t n0, int64_t n1,
              T* seen, T* hidden, T* a) const {
    const Passes<T>& pass = passes<T>();
    const int64_t p = l.psi.rows ? 1 : 0;
    for (int64_t start = n0; start < n1; start += seen_block) {
      const int64_t width = std::min(seen_block, n1 - start);
      if (p) std::copy(psi + start, psi + start + width, seen);
      T* Z = seen + p * width;
      if (m && l.relate.empty()) {
        const NodeBlock<T> v = block(V, image, start);
        gemm<T>(false, !V.by_rows, m, width, q, PQ, q, v.data, v.ld, 0, Z, width);
      } else if (m) {
        gemm<T>(false, false, m, width, q, PQ, q, nodes + start, V.n, 0, Z, width);
      }
      pass.activate(m, width, l.relation.norm.data(), Z, width, Z, width);
      gemm<T>(false, false, k, width, p + m, l.hidden.weight, p + m, seen, width, 0, hidden, width);
      pass.weighted_sum(k, width, l.hidden.norm.data(), l.logit.weight, 1, hidden, width,
                        a + start);
      const Row<T> norm = l.logit.norm[0];
      for (int64_t i = start; i < start + width; ++i)
        a[i] = sigmoid((a[i] - norm.mean) * norm.scale + norm.shift);
    }
  }

  void gate(const T* image, const T* a, int64_t n0, int64_t n1, T* out) const {
    const Passes<T>& pass = passes<T>();
    if (V.by_rows)
      pass.scale_columns(V.d, n1 - n0, image + n0, V.n, a + n0, out + n0, V.n);
    else
      pass.scale_rows(n1 - n0, V.d, image + n0 * V.d, a + n0, out + n0 * V.d);
  }

  const Nodes& V;
  const Layers<T>& l;
  int64_t c, q, m, k, nodes_block, seen_block;
};

// An image per thread.
template <class T, class S>
void images(const Branch<T>& branch, const Tensor& V, const Tensor& out, const T* merged,
            int64_t first) {
  const Nodes& nodes = branch.V;
  const Scratch<T> scratch(V, {branch.q * nodes.n, nodes.n, branch.nodes_block * branch.l.psi.rows,
                               branch.m * branch.q, branch.seen_block * (1 + branch.m),
                               branch.seen_block * branch.k, nodes.n,
                               staging<T, S>(nodes.size()), staging<T, S>(nodes.size())});
  for_each(nodes.B - first, [&](int64_t item, int t) {
    const int64_t offset = (first + item) * nodes.size();
    const T* image = load<T, S>(cdata<S>(V) + offset, nodes.size(), scratch(t, 7));
    T* result = target<T, S>(data<S>(out) + offset, scratch(t, 8));
    branch.embed(image, merged, 0, nodes.n, scratch(t, 0), scratch(t, 1), scratch(t, 2),
                 scratch(t, 3));
    branch.values(image, scratch(t, 0), scratch(t, 1), scratch(t, 3), 0, nodes.n, scratch(t, 4),
                  scratch(t, 5), scratch(t, 6));
    branch.gate(image, scratch(t, 6), 0, nodes.n, result);
    store<T, S>(result, nodes.size(), data<S>(out) + offset);
  });
}

// All threads on one image, each on a share of its nodes.
template <class T, class S>
void image_by_all(const Branch<T>& branch, const Tensor& V, const Tensor& out, const T* merged,
                  int64_t b) {
  const Nodes& nodes = branch.V;
  const int64_t shares = std::min<int64_t>(Scratch<T>::threads(), std::max<int64_t>(1, nodes.n));
  const int64_t relations = branch.m * branch.q;
  const Scratch<T> own(V, {branch.nodes_block * branch.l.psi.rows,
                           branch.seen_block * (1 + branch.m), branch.seen_block * branch.k});
  const Tensor shared = make(V, {branch.q * nodes.n + 2 * nodes.n + shares * relations +
                                 2 * staging<T, S>(nodes.size())},
                             type_of<T>());
  T* embedded = data<T>(shared);
  T* psi = embedded + branch.q * nodes.n;
  T* a = psi + nodes.n;
  T* PQ = a + nodes.n;
  T* buffer = PQ + shares * relations;
  const int64_t offset = b * nodes.size();
  const T* image = load<T, S>(cdata<S>(V) + offset, nodes.size(), buffer);
  T* result = target<T, S>(data<S>(out) + offset, buffer + nodes.size());
  const auto bound = [&](int64_t share) { return nodes.n * share / shares; };

  for_each(shares, [&](int64_t share, int t) {
    branch.embed(image, merged, bound(share), bound(share + 1), embedded, psi, own(t, 0),
                 PQ + share * relations);
  });
  for (int64_t share = 1; share < shares; ++share)
    passes<T>().add(relations, PQ + share * relations, PQ);
  for_each(shares, [&](int64_t share, int t) {
    branch.values(image, embedded, psi, PQ, bound(share), bound(share + 1), own(t, 1), own(t, 2),
                  a);
    branch.gate(image, a, bound(share), bound(share + 1), result);
  });
  store<T, S>(result, nodes.size(), data<S>(out) + offset);
}

Tensor attention(const Tensor& V, std::vector<Tensor> weights, std::vector<Tensor> norms,
                 std::vector<double> eps, int64_t embeddings, bool relations, bool appearance) {
  const Nodes nodes(V);
  Tensor out = torch::stable::empty_like(V);
  if (V.numel() == 0) return out;
  with_types(V.scalar_type(), [&]<class T, class S>() {
    const Layers<T> layers =
        layers_of<T>(nodes, weights, norms, eps, embeddings, relations, appearance);
    const Branch<T> branch(nodes, layers);
    const bool merges = embeddings < 2 && branch.m;
    const Tensor merged = make(V, {merges ? branch.m * nodes.n : 0}, type_of<T>());
    if (merges) branch.merge_relation(data<T>(merged));
    // Images that are left over when each thread has had the same number.
    const int64_t left = nodes.B % Scratch<T>::threads();
    for (int64_t b = 0; b < left; ++b)
      image_by_all<T, S>(branch, V, out, cdata<T>(merged), b);
    if (nodes.B > left) images<T, S>(branch, V, out, cdata<T>(merged), left);
  });
  return out;
}

}  // namespace
}  // namespace rga

STABLE_TORCH_LIBRARY_IMPL(rga_fast_cpp, CPU, m) {
  m.impl("attention", TORCH_BOX(&rga::attention));
}
