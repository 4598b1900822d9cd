// The branch in training, backward: relations and embeddings.
#include <torch/csrc/stable/library.h>

#include "operators.h"
#include "relations.h"

namespace rga {
namespace {

// What relate_bwd needs of its arguments, in the compute type.
template <class T, class S>
struct RelateBwd {
  const Nodes& nodes;
  const Sizes& s;
  const std::vector<Row<T>>& rows_e;
  const std::vector<Row<T>>& rows_z;
  const RelationWeight<T>& W;
  const Tensor &V, &E, &PQ, &Z, &weight_h, &dhidden;
  int64_t k, step;

  // dnodes (q x n), as far as Z = PQ nodes goes, and dPQ (m x q) of an image.
  void image(int64_t b, const Embedded<T>& embedded, const T* Zb, T* dZ, T* dnodes, T* dPQ) const {
    const int64_t n = nodes.n, inputs = s.p + s.m;
    const T* dhb = cdata<T>(dhidden) + b * k * n;
    const T* PQb = cdata<T>(PQ) + b * s.m * s.q;
    for (int64_t start = 0; start < n; start += step) {
      const int64_t width = std::min(step, n - start);
      gemm<T>(true, false, s.m, width, k, cdata<T>(weight_h) + s.p, inputs, dhb + start, n, 0, dZ,
              width);
      passes<T>().norm_backward(true, s.m, width, rows_z.data(), Zb + start, n, dZ, width, dZ,
                                width);
      embedded.times_transposed(s.m, s.q, 0, dZ, width, start, width, start ? 1 : 0, dPQ, s.q);
      gemm<T>(true, false, s.q, width, s.m, PQb, s.q, dZ, width, 0, dnodes + start, n);
    }
  }

  // P and Q are made from the nodes, too: dtheta += dQ^T W_col, dphi += dP^T W_row, for g images
  // from b0. dPQ is (m, parts, B, c), dnodes (g, q, n), more (g, c, n) a scratch where g > 1.
  void through_relations(int64_t b0, int64_t g, const T* dPQ, T* more, T* dnodes) const {
    const int64_t n = nodes.n, cn = s.c * n, parts = s.q / s.c, ld = nodes.B * s.q;
    for (int64_t part = 0; part < parts; ++part) {
      const T* other = dPQ + (parts - 1 - part) * nodes.B * s.c + b0 * s.c;
      const T* weight = part ? W.row : W.col;
      gemm<T>(true, false, g * s.c, n, s.m, other, ld, weight, W.ld, g == 1,
              g == 1 ? dnodes + part * cn : more, n);
      for (int64_t i = 0; i < g && g > 1; ++i)
        passes<T>().add(cn, more + i * cn, dnodes + (i * parts + part) * cn);
    }
  }

  // dW_row (m x 2n, first half) = sum over images of dP phi, dW_col of dQ theta; as products over
  // all images at once, a block of nodes at a time. dPQ is (m, parts, B, c).
  void weights(const T* dPQ, T* dW) const {
    const int64_t n = nodes.n, B = nodes.B, parts = s.embeddings == 2 ? 2 : 1;
    const int64_t width = std::min<int64_t>(n, 256), blocks = (n + width - 1) / width;
    const int64_t group = std::clamp<int64_t>(512 / s.c, 1, B);  // images a product
    const Scratch<T> scratch(V, {group * s.c * width, staging<T, S>(s.c * n)});
    for_each(blocks * parts, s.m * B * s.c * width, [&](int64_t item, int t) {
      const int64_t part = item / blocks, start = item % blocks * width;
      const int64_t now = std::min(width, n - start), ld = parts * B * s.c;
      const int64_t first = parts == 2 && part == 0 ? s.c : 0;  // dP meets phi, dQ theta
      for (int64_t b0 = 0; b0 < B; b0 += group) {
        const int64_t b1 = std::min(B, b0 + group);
        for (int64_t b = b0; b < b1; ++b)
          stack(b, first, start, now, scratch(t, 0) + (b - b0) * s.c * now);
        gemm<T>(false, false, s.m, now, (b1 - b0) * s.c, dPQ + part * B * s.c + b0 * s.c, ld,
                scratch(t, 0), now, b0 ? 1 : 0, dW + part * n + start, 2 * n);
      }
      if (parts == 2) return;
      for (int64_t i = 0; i < s.m; ++i)  // W_row and W_col are used as their sum
        std::copy_n(dW + i * 2 * n + start, now, dW + i * 2 * n + n + start);
    });
  }

  // dPQ (m x q) of an image, to its place in (m, parts, B, c).
  void spread(int64_t b, const T* own, T* dPQ) const {
    for (int64_t i = 0; i < s.m; ++i)
      for (int64_t part = 0; part * s.c < s.q; ++part)
        std::copy_n(own + i * s.q + part * s.c, s.c,
                    dPQ + (i * s.q + part * s.c) * nodes.B + b * s.c);
  }

 private:
  // Rows first to first + c of an image's embedded nodes, start to start + width.
  void stack(int64_t b, int64_t first, int64_t start, int64_t width, T* out) const {
    const int64_t n = nodes.n, d = nodes.d;
    if (s.embeddings) {
      const S* Eb = cdata<S>(E) + (b * s.r + first) * n + start;
      for (int64_t i = 0; i < s.c; ++i) {
        const T* x = load<T, S>(Eb + i * n, width, out + i * width);
        passes<T>().activate(1, width, rows_e.data() + first + i, x, width, out + i * width, width);
      }
      return;
    }
    const S* image = cdata<S>(V) + b * d * n;
    for (int64_t i = 0; i < s.c; ++i)
      for (int64_t j = 0; j < width; ++j)
        out[i * width + j] =
            static_cast<T>(nodes.by_rows ? image[i * n + start + j] : image[(start + j) * d + i]);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> relate_bwd(const Tensor& V, const Tensor& E,
                                                      const Tensor& norm_e, const Tensor& weight_z,
                                                      const Tensor& PQ, const Tensor& Z,
                                                      const Tensor& norm_z, const Tensor& means_z,
                                                      const Tensor& weight_h, const Tensor& dhidden,
                                                      int64_t embeddings, int64_t psi_rows) {
  const Nodes nodes(V);
  const ScalarType compute = compute_type(V.scalar_type());
  const int64_t B = nodes.B, d = nodes.d, n = nodes.n, k = dhidden.size(1);
  const Sizes s(nodes, E.size(1), weight_z.size(0), embeddings, psi_rows);
  check_dense(E, "E", {B, s.r, n}, V.scalar_type());
  check_dense(PQ, "PQ", {B, s.m, s.q}, compute);
  check_dense(Z, "Z", {B, s.m, n}, V.scalar_type());
  check_dense(weight_h, "weight_h", {k, s.p + s.m}, compute);
  check_dense(dhidden, "dhidden", {B, k, n}, compute);
  const int64_t kept = s.m && !embeddings ? d : 0;
  Tensor dE = make(V, {B, s.r, n}, V.scalar_type()),
         dnodes = make(V, {B, kept, n}, V.scalar_type());
  Tensor dweight = make(V, {s.m, 2 * n}, compute), sums = make(V, {2, s.r}, compute);
  with_types(V.scalar_type(), [&]<class T, class S>() {
    const auto rows_e = rows_of<T>(norm_e, s.r), rows_z = rows_of<T>(norm_z, s.m, &means_z);
    const RelationWeight<T> W(weight_z, s.m, n, embeddings);
    const int64_t step = block_size(n, 2 * s.m, sizeof(T)), qn = s.m ? s.q * n : 0;
    const int64_t G = s.group(B / Scratch<T>::threads()), groups = (B + G - 1) / G;
    const RelateBwd<T, S> f{nodes, s, rows_e, rows_z, W, V, E, PQ, Z, weight_h, dhidden, k, step};
    const Scratch<T> scratch(V, {embeddings ? s.q * n : 0, staging<T, S>(embeddings ? 0 : d * n),
                                 s.r * n, staging<T, S>(s.m * n), step * s.m, G * qn, n,
                                 staging<T, S>(s.r * n), s.m * s.q, G > 1 ? G * s.c * n : 0});
    const Tensor dPQ = make(V, {s.m, s.q * B}, type_of<T>());
    PerImage partial(B, s.r);
    const auto embeddings_of = [&](int64_t b, int t) {
      return load<T, S>(cdata<S>(E) + b * s.r * n, s.r * n, scratch(t, 2));
    };
    for_each(groups, G * (s.m * (2 * s.q + k) * n + s.r * n), [&](int64_t item, int t) {
      const int64_t b0 = item * G, g = std::min(G, B - b0);
      T* dnodes_t = scratch(t, 5);
      for (int64_t i = 0; i < g && s.m; ++i) {
        const int64_t b = b0 + i;
        const T* image = nullptr;
        if (!embeddings) image = load<T, S>(cdata<S>(V) + b * d * n, d * n, scratch(t, 1));
        const Embedded<T> embedded(nodes, s, image, rows_e, embeddings_of(b, t), scratch(t, 0), n);
        const T* Zb = load<T, S>(cdata<S>(Z) + b * s.m * n, s.m * n, scratch(t, 3));
        f.image(b, embedded, Zb, scratch(t, 4), dnodes_t + i * qn, scratch(t, 8));
        f.spread(b, scratch(t, 8), data<T>(dPQ));
      }
      if (s.m) f.through_relations(b0, g, cdata<T>(dPQ), scratch(t, 9), dnodes_t);
      for (int64_t i = 0; i < g; ++i) {
        const int64_t b = b0 + i, relation_rows = embeddings ? s.q : 0;
        const T *Eb = embeddings_of(b, t), *own = dnodes_t + i * qn;
        T* dEb = target<T, S>(data<S>(dE) + b * s.r * n, scratch(t, 7));
        if (s.m && embeddings)
          passes<T>().mask(s.q, n, rows_e.data(), Eb, n, own, n, 1, dEb, n, partial.first(b),
                           partial.second(b));
        else if (s.m)
          for (int64_t j = 0; j < d * n; ++j)
            data<S>(dnodes)[b * d * n + j] = static_cast<S>(own[j]);
        if (psi_rows) {
          T* dpsi = scratch(t, 6);
          gemm<T>(true, false, 1, n, k, cdata<T>(weight_h), s.p + s.m,
                  cdata<T>(dhidden) + b * k * n, n, 0, dpsi, n);
          passes<T>().mask(psi_rows, n, rows_e.data() + relation_rows, Eb + relation_rows * n, n,
                           dpsi, 0, T(1) / psi_rows, dEb + relation_rows * n, n,
                           partial.first(b) + relation_rows, partial.second(b) + relation_rows);
        }
        store<T, S>(dEb, s.r * n, data<S>(dE) + b * s.r * n);
      }
    });
    if (s.m && B)
      f.weights(cdata<T>(dPQ), data<T>(dweight));
    else
      std::fill_n(data<T>(dweight), s.m * 2 * n, T(0));
    partial.write_sums(data<T>(sums));
  });
  return {dE, dnodes, dweight, sums};
}

std::tuple<Tensor, Tensor> embed_bwd(const Tensor& dout, const Tensor& V, const Tensor& logit,
                                     const Tensor& norm_l, const Tensor& E, const Tensor& norm_e,
                                     const Tensor& means_e, const Tensor& weight_e,
                                     const Tensor& dE, const Tensor& dnodes, bool need_dV,
                                     bool need_dweight) {
  const Nodes nodes(V), gradient(dout, "dout");
  const ScalarType compute = compute_type(V.scalar_type());
  const int64_t B = nodes.B, d = nodes.d, n = nodes.n, r = weight_e.size(0);
  check_like(nodes, gradient, V, dout);
  check_dense(weight_e, "weight_e", {r, d}, compute);
  check_dense(E, "E", {B, r, n}, V.scalar_type());
  check_dense(dE, "dE", {B, r, n}, V.scalar_type());
  check_dense(dnodes, "dnodes", {B, dnodes.size(1) ? d : 0, n}, V.scalar_type());
  check_dense(logit, "logit", {B, n}, compute);
  Tensor dV = need_dV ? torch::stable::empty_like(V) : make(V, {B, 0, n}, V.scalar_type());
  Tensor dweight = make(V, {need_dweight ? r : 0, d}, compute);
  with_types(V.scalar_type(), [&]<class T, class S>() {
    const auto rows = rows_of<T>(norm_e, r, &means_e);
    const Row<T> row_l = rows_of<T>(norm_l, 1)[0];
    const Scratch<T> scratch(V, {n, staging<T, S>(d * n), staging<T, S>(d * n),
                                 staging<T, S>(r * n), staging<T, S>(d * n)});
    const Tensor before = make(V, {B, r, n}, type_of<T>());  // dE, before the normalisation
    for_each(B, r * n * d, [&](int64_t b, int t) {
      const T* Eb = load<T, S>(cdata<S>(E) + b * r * n, r * n, scratch(t, 3));
      T* dEb = data<T>(before) + b * r * n;
      const T* after = load<T, S>(cdata<S>(dE) + b * r * n, r * n, dEb);
      passes<T>().norm_backward(false, r, n, rows.data(), Eb, n, after, n, dEb, n);
      if (!need_dV) return;
      T *a = scratch(t, 0), *dVb = target<T, S>(data<S>(dV) + b * d * n, scratch(t, 2));
      attention_values(n, row_l, cdata<T>(logit) + b * n, a);
      gate(nodes, load<T, S>(cdata<S>(dout) + b * d * n, d * n, scratch(t, 1)), a, dVb);
      if (nodes.by_rows)
        gemm<T>(true, false, d, n, r, cdata<T>(weight_e), d, dEb, n, 1, dVb, n);
      else
        gemm<T>(true, false, n, d, r, dEb, n, cdata<T>(weight_e), d, 1, dVb, d);
      if (dnodes.size(1)) add_nodes<T, S>(nodes, cdata<S>(dnodes) + b * d * n, dVb);
      store<T, S>(dVb, d * n, data<S>(dV) + b * d * n);
    });
    if (!need_dweight) return;
    const int64_t shares = std::min<int64_t>(r, Scratch<T>::threads());
    for_each(shares, r * n * d, [&](int64_t share, int t) {
      const int64_t r0 = r * share / shares, r1 = r * (share + 1) / shares;
      for (int64_t b = 0; b < B; ++b) {
        const T* image = load<T, S>(cdata<S>(V) + b * d * n, d * n, scratch(t, 1));
        gemm<T>(false, nodes.by_rows, r1 - r0, d, n, cdata<T>(before) + (b * r + r0) * n, n, image,
                nodes.by_rows ? n : d, b ? 1 : 0, data<T>(dweight) + r0 * d, d);
      }
    });
    if (B == 0) std::fill_n(data<T>(dweight), r * d, T(0));
  });
  return {dV, dweight};
}

}  // namespace rga

STABLE_TORCH_LIBRARY_IMPL(rga_fast_cpp, CPU, m) {
  m.impl("relate_bwd", TORCH_BOX(&rga::relate_bwd));
  m.impl("embed_bwd", TORCH_BOX(&rga::embed_bwd));
}
