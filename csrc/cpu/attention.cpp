// The branch in evaluation: one operator, each image's products and passes back to back.
#include <torch/csrc/stable/library.h>

#include "relations.h"

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
  STD_TORCH_CHECK(
      index < weights.size() && weights.size() == eps.size() && norms.size() == 4 * weights.size(),
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

// The rows of W_theta, W_phi and W_psi; a product for each where they are not adjacent in memory.
template <class T>
struct Piece {
  const T* weight;
  int64_t rows;
};

template <class T>
class Branch {
 public:
  Branch(const Nodes& V, const Layers<T>& l) : V(V), l(l) {
    c = l.relate.empty() ? V.d : l.relate[0].rows;
    q = l.relate.size() == 2 ? 2 * c : c;
    m = l.relation.rows;
    k = l.hidden.rows;
    for (const Layer<T>& layer : l.relate) append(layer);
    if (l.psi.rows) append(l.psi);
    nodes_block =
        std::max(block_size(V.n, std::max(V.d, r), sizeof(T)), std::min<int64_t>(V.n, 256));
    seen_block = block_size(V.n, 1 + m + k, sizeof(T));
  }

  // The weights in one matrix (r x d), so that each block of V is packed once: worth a copy unless
  // there is little to multiply them with.
  Tensor join_weights(const Tensor& like) {
    const bool worth = pieces.size() > 1 && r <= V.B * V.n;
    Tensor joined = make(like, {worth ? r : 0, V.d}, type_of<T>());
    if (!worth) return joined;
    T* end = data<T>(joined);
    for (const Piece<T>& piece : pieces) end = std::copy_n(piece.weight, piece.rows * V.d, end);
    pieces = {{cdata<T>(joined), r}};
    return joined;
  }

  // W_row + W_col where theta is phi.
  Tensor merge_relation(const Tensor& like) {
    Tensor merged = make(like, {l.relate.size() < 2 ? m : 0, V.n}, type_of<T>());
    if (l.relate.size() == 2 || !m) return merged;
    W = data<T>(merged);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < V.n; ++j)
        data<T>(merged)[i * V.n + j] =
            l.relation.weight[i * 2 * V.n + j] + l.relation.weight[i * 2 * V.n + V.n + j];
    return merged;
  }

  int64_t group(int64_t images) const { return l.relate.empty() ? 1 : images_together(c, images); }

  // Embeds nodes n0 to n1 of image g of G: into `nodes` (q, G, n) and psi (n). `E` is scratch.
  void embed(const T* image, int64_t g, int64_t G, int64_t n0, int64_t n1, T* E, T* nodes,
             T* psi) const {
    const Passes<T>& pass = passes<T>();
    const int64_t embedded = l.relate.empty() ? 0 : q;
    for (int64_t start = n0; start < n1; start += nodes_block) {
      const int64_t width = std::min(nodes_block, n1 - start);
      const NodeBlock<T> v = block(V, image, start);
      T* next = E;
      for (const Piece<T>& piece : pieces) {
        gemm<T>(false, !V.by_rows, piece.rows, width, V.d, piece.weight, V.d, v.data, v.ld, 0, next,
                width);
        next += piece.rows * width;
      }
      pass.activate(embedded, width, rows.data(), E, width, nodes + g * V.n + start, G * V.n);
      if (l.psi.rows)
        pass.weighted_sum(l.psi.rows, width, l.psi.norm.data(), nullptr, T(1) / l.psi.rows,
                          E + embedded * width, width, psi + start);
    }
  }

  // The same of one image for rows r0 to r1 of the weights and all nodes, into E (r x n); `psi`
  // gets what these rows contribute.
  void embed_rows(const T* image, int64_t r0, int64_t r1, T* E, T* nodes, T* psi) const {
    const int64_t n = V.n, embedded = l.relate.empty() ? 0 : q;
    int64_t first = 0;
    for (const Piece<T>& piece : pieces) {
      const int64_t start = std::max(r0, first), stop = std::min(r1, first + piece.rows);
      if (start < stop)
        gemm<T>(false, !V.by_rows, stop - start, n, V.d, piece.weight + (start - first) * V.d, V.d,
                image, V.by_rows ? n : V.d, 0, E + start * n, n);
      first += piece.rows;
    }
    const int64_t related = std::clamp(embedded, r0, r1);
    passes<T>().activate(related - r0, n, rows.data() + r0, E + r0 * n, n, nodes + r0 * n, n);
    passes<T>().weighted_sum(r1 - related, n, rows.data() + related, nullptr,
                             T(1) / std::max<int64_t>(l.psi.rows, 1), E + related * n, n, psi);
  }

  // What nodes n0 to n1 of G images contribute to their PQ (m, q, G).
  void relate(const T* image, const T* nodes, int64_t G, int64_t n0, int64_t n1, T* PQ) const {
    const int64_t width = n1 - n0;
    if (!m) return;
    if (l.relate.empty()) {
      const NodeBlock<T> v = block(V, image, n0);
      gemm<T>(false, V.by_rows, m, c, width, W + n0, V.n, v.data, v.ld, 0, PQ, q);
    } else if (l.relate.size() == 1) {
      gemm<T>(false, true, m, c * G, width, W + n0, V.n, nodes + n0, V.n, 0, PQ, q * G);
    } else {
      const T *row = l.relation.weight + n0, *theta = nodes + n0;
      gemm<T>(false, true, m, c * G, width, row, 2 * V.n, theta + c * G * V.n, V.n, 0, PQ, q * G);
      gemm<T>(false, true, m, c * G, width, row + V.n, 2 * V.n, theta, V.n, 0, PQ + c * G, q * G);
    }
  }

  // PQ (m x q) of image g among G.
  const T* own_relations(const T* PQ, int64_t g, int64_t G, T* own) const {
    if (G == 1) return PQ;
    pick(m * q, PQ, g, G, own);
    return own;
  }

  // The attention values a of nodes n0 to n1. `Z`, `panel` and `hidden` are scratch.
  void values(const T* image, const T* nodes, int64_t ld, const T* psi, const T* PQ, int64_t n0,
              int64_t n1, T* Z, T* panel, T* hidden, T* a) const {
    const Passes<T>& pass = passes<T>();
    for (int64_t start = n0; start < n1; start += seen_block) {
      const int64_t width = std::min(seen_block, n1 - start);
      if (m && l.relate.empty()) {
        const NodeBlock<T> v = block(V, image, start);
        gemm<T>(false, !V.by_rows, m, width, q, PQ, q, v.data, v.ld, 0, Z, width);
      } else if (m) {
        gemm<T>(false, false, m, width, q, PQ, q, nodes + start, ld, 0, Z, width);
      }
      pass.perceive(k, m, width, l.hidden.weight, l.psi.rows ? psi + start : nullptr,
                    l.relation.norm.data(), Z, width, hidden, width, panel);
      pass.weighted_sum(k, width, l.hidden.norm.data(), l.logit.weight, 1, hidden, width,
                        a + start);
      attention_values(width, l.logit.norm[0], a + start, a + start);
    }
  }

  void gate_nodes(const T* image, const T* a, int64_t n0, int64_t n1, T* out) const {
    const Passes<T>& pass = passes<T>();
    if (V.by_rows)
      pass.scale_columns(V.d, n1 - n0, image + n0, V.n, a + n0, out + n0, V.n);
    else
      pass.scale_rows(n1 - n0, V.d, image + n0 * V.d, a + n0, out + n0 * V.d);
  }

  const Nodes& V;
  const Layers<T>& l;
  std::vector<Piece<T>> pieces;
  std::vector<Row<T>> rows;
  const T* W = nullptr;
  int64_t c, q, m, k, r = 0, nodes_block, seen_block;

 private:
  void append(const Layer<T>& layer) {
    pieces.push_back({layer.weight, layer.rows});
    rows.insert(rows.end(), layer.norm.begin(), layer.norm.end());
    r += layer.rows;
  }
};

// A share of the images per thread, in groups.
template <class T, class S>
void images(const Branch<T>& branch, const Tensor& V, const Tensor& out, int64_t first) {
  const Nodes& nodes = branch.V;
  const int64_t n = nodes.n, share = (nodes.B - first) / Scratch<T>::threads();
  const int64_t G = branch.group(share), size = nodes.size(), relations = branch.m * branch.q;
  const Scratch<T> scratch(
      V, {branch.r * branch.nodes_block, branch.q * G * n, G * n, relations * G, relations,
          branch.seen_block * branch.m, kPanel * (1 + branch.m), branch.seen_block * branch.k, n,
          staging<T, S>(size), staging<T, S>(size)});
  const auto run = [&](int64_t b0, int64_t g, int t) {
    T *embedded = scratch(t, 1), *psi = scratch(t, 2), *PQ = scratch(t, 3);
    const auto image = [&](int64_t b) {
      return load<T, S>(cdata<S>(V) + b * size, size, scratch(t, 9));
    };
    for (int64_t i = 0; i < g; ++i)
      branch.embed(image(b0 + i), i, g, 0, n, scratch(t, 0), embedded, psi + i * n);
    branch.relate(image(b0), embedded, g, 0, n, PQ);
    for (int64_t i = 0; i < g; ++i) {
      const T *x = image(b0 + i), *own = branch.own_relations(PQ, i, g, scratch(t, 4));
      S* destination = data<S>(out) + (b0 + i) * size;
      T* result = target<T, S>(destination, scratch(t, 10));
      branch.values(x, embedded + i * n, g * n, psi + i * n, own, 0, n, scratch(t, 5),
                    scratch(t, 6), scratch(t, 7), scratch(t, 8));
      branch.gate_nodes(x, scratch(t, 8), 0, n, result);
      store<T, S>(result, size, destination);
    }
  };
  for_each(Scratch<T>::threads(), share * size * branch.c, [&](int64_t item, int t) {
    for (int64_t i = 0; i < share; i += G) run(first + item * share + i, std::min(G, share - i), t);
  });
}

// All threads on one image: each embeds a share of the nodes, or of the rows of the weights where
// these are the larger operand and not every thread should pack them all; then a share of the
// nodes.
template <class T, class S>
void image_by_all(const Branch<T>& branch, const Tensor& V, const Tensor& out, int64_t b) {
  const Nodes& nodes = branch.V;
  const int64_t n = nodes.n, r = branch.r, relations = branch.m * branch.q;
  const int64_t shares = std::min<int64_t>(Scratch<T>::threads(), std::max<int64_t>(1, n));
  const bool by_rows = r > n;
  const Scratch<T> own(V, {by_rows ? 0 : r * branch.nodes_block, branch.seen_block * branch.m,
                           kPanel * (1 + branch.m), branch.seen_block * branch.k});
  const Tensor shared = make(V,
                             {(branch.q + shares + 1) * n + shares * relations +
                              (by_rows ? r * n : 0) + 2 * staging<T, S>(nodes.size())},
                             type_of<T>());
  T* embedded = data<T>(shared);
  T* psi = embedded + branch.q * n;  // of each share of the rows
  T* a = psi + shares * n;
  T* PQ = a + n;
  T* E = PQ + shares * relations;
  T* buffer = E + (by_rows ? r * n : 0);
  const int64_t offset = b * nodes.size();
  const T* image = load<T, S>(cdata<S>(V) + offset, nodes.size(), buffer);
  T* result = target<T, S>(data<S>(out) + offset, buffer + nodes.size());
  const auto bound = [&](int64_t share, int64_t count) { return count * share / shares; };

  if (by_rows) {
    for_each(shares, r * nodes.size(), [&](int64_t share, int) {
      branch.embed_rows(image, bound(share, r), bound(share + 1, r), E, embedded, psi + share * n);
    });
    for (int64_t share = 1; share < shares; ++share) passes<T>().add(n, psi + share * n, psi);
  }
  for_each(shares, nodes.size() * branch.c, [&](int64_t share, int t) {
    const int64_t n0 = bound(share, n), n1 = bound(share + 1, n);
    if (!by_rows) branch.embed(image, 0, 1, n0, n1, own(t, 0), embedded, psi);
    branch.relate(image, embedded, 1, n0, n1, PQ + share * relations);
  });
  for (int64_t share = 1; share < shares; ++share)
    passes<T>().add(relations, PQ + share * relations, PQ);
  for_each(shares, nodes.size() * branch.c, [&](int64_t share, int t) {
    const int64_t n0 = bound(share, n), n1 = bound(share + 1, n);
    branch.values(image, embedded, n, psi, PQ, n0, n1, own(t, 1), own(t, 2), own(t, 3), a);
    branch.gate_nodes(image, a, n0, n1, result);
  });
  store<T, S>(result, nodes.size(), data<S>(out) + offset);
}

// Into `out`, which may be V itself: an image is read as a whole before it is scaled, or only by
// the thread that scales it.
void attend(const Tensor& V, const std::vector<Tensor>& weights, const std::vector<Tensor>& norms,
            const std::vector<double>& eps, int64_t embeddings, bool relations, bool appearance,
            const Tensor& out) {
  const Nodes nodes(V);
  if (V.numel() == 0) return;
  with_types(V.scalar_type(), [&]<class T, class S>() {
    const Layers<T> layers =
        layers_of<T>(nodes, weights, norms, eps, embeddings, relations, appearance);
    Branch<T> branch(nodes, layers);
    const Tensor joined = branch.join_weights(V), merged = branch.merge_relation(V);
    // Images that are left over when each thread has had the same number.
    const int64_t left = nodes.B % Scratch<T>::threads();
    for (int64_t b = 0; b < left; ++b) image_by_all<T, S>(branch, V, out, b);
    if (nodes.B > left) images<T, S>(branch, V, out, left);
  });
}

Tensor attention(const Tensor& V, std::vector<Tensor> weights, std::vector<Tensor> norms,
                 std::vector<double> eps, int64_t embeddings, bool relations, bool appearance) {
  Tensor out = torch::stable::empty_like(V);
  attend(V, weights, norms, eps, embeddings, relations, appearance, out);
  return out;
}

// The second branch works in place, on the transposed view of the first one's result.
Tensor attention_pair(const Tensor& V, std::vector<Tensor> weights, std::vector<Tensor> norms,
                      std::vector<double> eps, int64_t embeddings, bool relations,
                      bool appearance) {
  STD_TORCH_CHECK(weights.size() % 2 == 0 && norms.size() % 2 == 0 && eps.size() % 2 == 0,
                  "rga_fast: attention_pair got the tensors of ", weights.size(), " layers");
  const auto half = [](const auto& all, int which) {
    const auto middle = all.begin() + all.size() / 2;
    return which ? std::decay_t<decltype(all)>(middle, all.end())
                 : std::decay_t<decltype(all)>(all.begin(), middle);
  };
  Tensor out = torch::stable::empty_like(V);
  const Tensor turned = torch::stable::transpose(out, 1, 2);
  for (int which : {0, 1})
    attend(which ? turned : V, half(weights, which), half(norms, which), half(eps, which),
           embeddings, relations, appearance, which ? turned : out);
  return out;
}

}  // namespace
}  // namespace rga

STABLE_TORCH_LIBRARY_IMPL(rga_fast_cpp, CPU, m) {
  m.impl("attention", TORCH_BOX(&rga::attention));
  m.impl("attention_pair", TORCH_BOX(&rga::attention_pair));
}
