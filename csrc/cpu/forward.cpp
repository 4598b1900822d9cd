// The branch in training, forward: a stage ends where batch statistics are needed.
#include <torch/csrc/stable/library.h>

#include "operators.h"
#include "relations.h"

namespace rga {

std::tuple<Tensor, Tensor> embed_fwd(const Tensor& V, const Tensor& weight_e) {
  const Nodes nodes(V);
  const ScalarType compute = compute_type(V.scalar_type());
  const int64_t B = nodes.B, d = nodes.d, n = nodes.n, r = weight_e.size(0);
  check_dense(weight_e, "weight_e", {r, d}, compute);
  Tensor E = make(V, {B, r, n}, V.scalar_type()), stats = make(V, {2, r}, compute);
  with_types(V.scalar_type(), [&]<class T, class S>() {
    const Scratch<T> scratch(V, {staging<T, S>(d * n), staging<T, S>(r * n)});
    PerImage partial(B, r);
    for_each(B, r * n * d, [&](int64_t b, int t) {
      const T* image = load<T, S>(cdata<S>(V) + b * d * n, d * n, scratch(t, 0));
      T* Eb = target<T, S>(data<S>(E) + b * r * n, scratch(t, 1));
      gemm<T>(false, !nodes.by_rows, r, n, d, cdata<T>(weight_e), d, image, nodes.by_rows ? n : d,
              0, Eb, n);
      passes<T>().stats(r, n, Eb, n, partial.first(b), partial.second(b));
      store<T, S>(Eb, r * n, data<S>(E) + b * r * n);
    });
    partial.write_stats(n, data<T>(stats));
  });
  return {E, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> relate_fwd(const Tensor& V, const Tensor& E,
                                                      const Tensor& norm_e, const Tensor& weight_z,
                                                      int64_t embeddings, int64_t psi_rows) {
  const Nodes nodes(V);
  const ScalarType compute = compute_type(V.scalar_type());
  const int64_t B = nodes.B, d = nodes.d, n = nodes.n;
  const Sizes s(nodes, E.size(1), weight_z.size(0), embeddings, psi_rows);
  check_dense(E, "E", {B, s.r, n}, V.scalar_type());
  Tensor PQ = make(V, {B, s.m, s.q}, compute), Z = make(V, {B, s.m, n}, V.scalar_type());
  Tensor psi = make(V, {B, s.p, n}, compute), stats = make(V, {2, s.m}, compute);
  with_types(V.scalar_type(), [&]<class T, class S>() {
    const auto rows = rows_of<T>(norm_e, s.r);
    const RelationWeight<T> W(weight_z, s.m, n, embeddings);
    const int64_t G = s.group(B / Scratch<T>::threads()), groups = (B + G - 1) / G;
    const Scratch<T> scratch(
        V, {embeddings ? G * s.q * n : 0, staging<T, S>(embeddings ? 0 : d * n),
            staging<T, S>(s.r * n), staging<T, S>(s.m * n), G > 1 ? G * s.m * s.q : 0});
    PerImage partial(B, s.m);
    for_each(groups, G * (s.m * s.q * n + s.r * n), [&](int64_t item, int t) {
      const int64_t b0 = item * G, g = std::min(G, B - b0);
      std::vector<Embedded<T>> embedded;
      for (int64_t i = 0; i < g; ++i) {
        const int64_t b = b0 + i;
        const T* Eb = load<T, S>(cdata<S>(E) + b * s.r * n, s.r * n, scratch(t, 2));
        if (psi_rows)
          passes<T>().weighted_sum(psi_rows, n, rows.data() + s.r - psi_rows, nullptr,
                                   T(1) / psi_rows, Eb + (s.r - psi_rows) * n, n,
                                   data<T>(psi) + b * n);
        if (!s.m) continue;
        const T* image = nullptr;
        if (!embeddings) image = load<T, S>(cdata<S>(V) + b * d * n, d * n, scratch(t, 1));
        embedded.emplace_back(nodes, s, image, rows, Eb, scratch(t, 0) + i * n, g * n);
      }
      if (!s.m) return;
      Embedded<T> all = embedded[0];
      all.ld /= g;  // (q, g, n)
      T* together = g > 1 ? scratch(t, 4) : data<T>(PQ) + b0 * s.m * s.q;
      all.times_transposed(s.m, g * s.c, g * (s.q - s.c), W.row, W.ld, 0, n, 0, together, g * s.q);
      if (embeddings == 2)
        all.times_transposed(s.m, g * s.c, 0, W.col, W.ld, 0, n, 0, together + g * s.c, g * s.q);
      for (int64_t i = 0; i < g; ++i) {
        const int64_t b = b0 + i;
        T* PQb = data<T>(PQ) + b * s.m * s.q;
        if (g > 1) pick(s.m * s.q, together, i, g, PQb);
        T* Zb = target<T, S>(data<S>(Z) + b * s.m * n, scratch(t, 3));
        embedded[i].times(s.m, s.q, PQb, s.q, 0, n, Zb, n);
        passes<T>().stats(s.m, n, Zb, n, partial.first(b), partial.second(b));
        store<T, S>(Zb, s.m * n, data<S>(Z) + b * s.m * n);
      }
    });
    partial.write_stats(n, data<T>(stats));
  });
  return {PQ, Z, psi, stats};
}

std::tuple<Tensor, Tensor> hidden_fwd(const Tensor& psi, const Tensor& Z, const Tensor& norm_z,
                                      const Tensor& weight_h) {
  const ScalarType compute = compute_type(Z.scalar_type());
  const int64_t B = Z.size(0), m = Z.size(1), n = Z.size(2), p = psi.size(1), k = weight_h.size(0);
  check_dense(psi, "psi", {B, p, n}, compute);
  check_dense(Z, "Z", {B, m, n}, Z.scalar_type());
  check_dense(weight_h, "weight_h", {k, p + m}, compute);
  Tensor hidden = make(Z, {B, k, n}, compute), stats = make(Z, {2, k}, compute);
  with_types(Z.scalar_type(), [&]<class T, class S>() {
    const auto rows = rows_of<T>(norm_z, m);
    const Scratch<T> scratch(Z, {kPanel * (p + m), staging<T, S>(m * n)});
    PerImage partial(B, k);
    for_each(B, k * m * n, [&](int64_t b, int t) {
      const T* Zb = load<T, S>(cdata<S>(Z) + b * m * n, m * n, scratch(t, 1));
      T* hb = data<T>(hidden) + b * k * n;
      passes<T>().perceive(k, m, n, cdata<T>(weight_h), p ? cdata<T>(psi) + b * n : nullptr,
                           rows.data(), Zb, n, hb, n, scratch(t, 0));
      passes<T>().stats(k, n, hb, n, partial.first(b), partial.second(b));
    });
    partial.write_stats(n, data<T>(stats));
  });
  return {hidden, stats};
}

std::tuple<Tensor, Tensor> logit_fwd(const Tensor& hidden, const Tensor& norm_h,
                                     const Tensor& weight_l) {
  const ScalarType compute = hidden.scalar_type();
  const int64_t B = hidden.size(0), k = hidden.size(1), n = hidden.size(2);
  check_dense(hidden, "hidden", {B, k, n}, compute_type(compute));
  check_dense(weight_l, "weight_l", {1, k}, compute);
  Tensor logit = make(hidden, {B, n}, compute), stats = make(hidden, {2, 1}, compute);
  with_types(compute, [&]<class T, class S>() {
    const auto rows = rows_of<T>(norm_h, k);
    PerImage partial(B, 1);
    for_each(B, k * n, [&](int64_t b, int) {
      T* lb = data<T>(logit) + b * n;
      passes<T>().weighted_sum(k, n, rows.data(), cdata<T>(weight_l), 1,
                               cdata<T>(hidden) + b * k * n, n, lb);
      passes<T>().stats(1, n, lb, n, partial.first(b), partial.second(b));
    });
    partial.write_stats(n, data<T>(stats));
  });
  return {logit, stats};
}

Tensor gate_fwd(const Tensor& V, const Tensor& logit, const Tensor& norm_l) {
  const Nodes nodes(V);
  const int64_t B = nodes.B, d = nodes.d, n = nodes.n;
  check_dense(logit, "logit", {B, n}, compute_type(V.scalar_type()));
  Tensor out = torch::stable::empty_like(V);
  with_types(V.scalar_type(), [&]<class T, class S>() {
    const Row<T> row = rows_of<T>(norm_l, 1)[0];
    const Scratch<T> scratch(V, {n, staging<T, S>(d * n), staging<T, S>(d * n)});
    for_each(B, d * n, [&](int64_t b, int t) {
      T* a = scratch(t, 0);
      attention_values(n, row, cdata<T>(logit) + b * n, a);
      const T* image = load<T, S>(cdata<S>(V) + b * d * n, d * n, scratch(t, 1));
      T* result = target<T, S>(data<S>(out) + b * d * n, scratch(t, 2));
      gate(nodes, image, a, result);
      store<T, S>(result, d * n, data<S>(out) + b * d * n);
    });
  });
  return out;
}

}  // namespace rga

STABLE_TORCH_LIBRARY_IMPL(rga_fast_cpp, CPU, m) {
  m.impl("embed_fwd", TORCH_BOX(&rga::embed_fwd));
  m.impl("relate_fwd", TORCH_BOX(&rga::relate_fwd));
  m.impl("hidden_fwd", TORCH_BOX(&rga::hidden_fwd));
  m.impl("logit_fwd", TORCH_BOX(&rga::logit_fwd));
  m.impl("gate_fwd", TORCH_BOX(&rga::gate_fwd));
}
