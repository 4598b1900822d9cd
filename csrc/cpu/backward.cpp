// The branch in training, backward: gate, logit and hidden layer.
#include <torch/csrc/stable/library.h>

#include "operators.h"
#include "relations.h"

namespace rga {

std::tuple<Tensor, Tensor> gate_bwd(const Tensor& dout, const Tensor& V, const Tensor& logit,
                                    const Tensor& norm_l) {
  const Nodes nodes(V), gradient(dout, "dout");
  const ScalarType compute = compute_type(V.scalar_type());
  const int64_t B = nodes.B, d = nodes.d, n = nodes.n;
  check_like(nodes, gradient, V, dout);
  check_dense(logit, "logit", {B, n}, compute);
  Tensor dlogit = make(V, {B, n}, compute), sums = make(V, {2, 1}, compute);
  with_types(V.scalar_type(), [&]<class T, class S>() {
    const Row<T> row = rows_of<T>(norm_l, 1)[0];
    const Scratch<T> scratch(V, {n, staging<T, S>(d * n), staging<T, S>(d * n)});
    PerImage partial(B, 1);
    for_each(B, d * n, [&](int64_t b, int t) {
      const T* image = load<T, S>(cdata<S>(V) + b * d * n, d * n, scratch(t, 1));
      const T* db = load<T, S>(cdata<S>(dout) + b * d * n, d * n, scratch(t, 2));
      const T* lb = cdata<T>(logit) + b * n;
      T *out = data<T>(dlogit) + b * n, *a = scratch(t, 0);
      attention_values(n, row, lb, a);
      if (nodes.by_rows)
        passes<T>().dot_columns(d, n, image, db, out);
      else
        passes<T>().dot_rows(n, d, image, db, out);
      double sum = 0, sum_xhat = 0;
      for (int64_t i = 0; i < n; ++i) {
        out[i] *= a[i] * (1 - a[i]);
        sum += out[i];
        sum_xhat += static_cast<double>(out[i]) * ((lb[i] - row.mean) * row.rstd);
      }
      *partial.first(b) = sum, *partial.second(b) = sum_xhat;
    });
    partial.write_sums(data<T>(sums));
  });
  return {dlogit, sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> logit_bwd(
    const Tensor& V, const Tensor& E, const Tensor& norm_e, const Tensor& PQ, const Tensor& psi,
    const Tensor& norm_z, const Tensor& weight_h, const Tensor& norm_h, const Tensor& weight_l,
    const Tensor& logit, const Tensor& norm_l, const Tensor& dlogit, const Tensor& means_l,
    int64_t embeddings, int64_t psi_rows) {
  const Nodes nodes(V);
  const ScalarType compute = compute_type(V.scalar_type());
  const int64_t B = nodes.B, d = nodes.d, n = nodes.n, k = weight_h.size(0);
  const Sizes s(nodes, E.size(1), norm_z.size(1), embeddings, psi_rows);
  check_dense(E, "E", {B, s.r, n}, V.scalar_type());
  check_dense(PQ, "PQ", {B, s.m, s.q}, compute);
  check_dense(psi, "psi", {B, s.p, n}, compute);
  check_dense(weight_h, "weight_h", {k, s.p + s.m}, compute);
  check_dense(weight_l, "weight_l", {1, k}, compute);
  check_dense(logit, "logit", {B, n}, compute);
  check_dense(dlogit, "dlogit", {B, n}, compute);
  Tensor Z = make(V, {B, s.m, n}, V.scalar_type()), hidden = make(V, {B, k, n}, compute);
  Tensor dl = make(V, {B, n}, compute), dweight = make(V, {1, k}, compute);
  Tensor sums = make(V, {2, k}, compute);
  with_types(V.scalar_type(), [&]<class T, class S>() {
    const auto rows_e = rows_of<T>(norm_e, s.r), rows_z = rows_of<T>(norm_z, s.m);
    const auto rows_h = rows_of<T>(norm_h, k), row_l = rows_of<T>(norm_l, 1, &means_l);
    const int64_t step = block_size(n, s.p + s.m, sizeof(T));
    const Scratch<T> scratch(
        V, {embeddings ? s.q * n : 0, staging<T, S>(embeddings ? 0 : d * n), staging<T, S>(s.r * n),
            staging<T, S>(s.m * n), kPanel * (s.p + s.m)});
    PerImage partial(B, k), dots(B, k);
    for_each(B, s.m * (s.q + k) * n + s.r * n, [&](int64_t b, int t) {
      T* Zb = target<T, S>(data<S>(Z) + b * s.m * n, scratch(t, 3));
      T* hb = data<T>(hidden) + b * k * n;
      std::optional<Embedded<T>> embedded;
      if (s.m) {
        const T* Eb = load<T, S>(cdata<S>(E) + b * s.r * n, s.r * n, scratch(t, 2));
        const T* image = nullptr;
        if (!embeddings) image = load<T, S>(cdata<S>(V) + b * d * n, d * n, scratch(t, 1));
        embedded.emplace(nodes, s, image, rows_e, Eb, scratch(t, 0), n);
      }
      for (int64_t start = 0; start < n; start += step) {
        const int64_t width = std::min(step, n - start);
        if (s.m)
          embedded->times(s.m, s.q, cdata<T>(PQ) + b * s.m * s.q, s.q, start, width, Zb + start, n);
        passes<T>().perceive(k, s.m, width, cdata<T>(weight_h),
                             s.p ? cdata<T>(psi) + b * n + start : nullptr, rows_z.data(),
                             Zb + start, n, hb + start, n, scratch(t, 4));
      }
      store<T, S>(Zb, s.m * n, data<S>(Z) + b * s.m * n);
      T* dlb = data<T>(dl) + b * n;
      passes<T>().norm_backward(false, 1, n, row_l.data(), cdata<T>(logit) + b * n, n,
                                cdata<T>(dlogit) + b * n, n, dlb, n);
      passes<T>().weighted_sum_bwd(k, n, rows_h.data(), cdata<T>(weight_l), dlb, hb, n,
                                   dots.first(b), partial.first(b), partial.second(b));
    });
    partial.write_sums(data<T>(sums));
    std::vector<T> both(2 * k);
    dots.write_sums(both.data());
    std::copy_n(both.data(), k, data<T>(dweight));
  });
  return {Z, hidden, dl, dweight, sums};
}

std::tuple<Tensor, Tensor, Tensor> hidden_bwd(const Tensor& psi, const Tensor& Z,
                                              const Tensor& norm_z, const Tensor& weight_h,
                                              const Tensor& hidden, const Tensor& norm_h,
                                              const Tensor& means_h, const Tensor& weight_l,
                                              const Tensor& dl) {
  const ScalarType compute = compute_type(Z.scalar_type());
  const int64_t B = Z.size(0), m = Z.size(1), n = Z.size(2), p = psi.size(1), k = weight_h.size(0);
  check_dense(psi, "psi", {B, p, n}, compute);
  check_dense(Z, "Z", {B, m, n}, Z.scalar_type());
  check_dense(weight_h, "weight_h", {k, p + m}, compute);
  check_dense(hidden, "hidden", {B, k, n}, compute);
  check_dense(weight_l, "weight_l", {1, k}, compute);
  check_dense(dl, "dl", {B, n}, compute);
  Tensor dhidden = make(Z, {B, k, n}, compute), dweight = make(Z, {k, p + m}, compute);
  Tensor sums = make(Z, {2, m}, compute);
  with_types(Z.scalar_type(), [&]<class T, class S>() {
    const auto rows_z = rows_of<T>(norm_z, m), rows_h = rows_of<T>(norm_h, k, &means_h);
    const int64_t step = block_size(n, p + 2 * m, sizeof(T)), inputs = p + m;
    const Scratch<T> scratch(Z, {step * inputs, step * m, staging<T, S>(m * n)});
    const Tensor weights = make(Z, {B, k, inputs}, type_of<T>());
    PerImage partial(B, m);
    for_each(B, 2 * k * m * n, [&](int64_t b, int t) {
      const T* Zb = load<T, S>(cdata<S>(Z) + b * m * n, m * n, scratch(t, 2));
      T *dhb = data<T>(dhidden) + b * k * n, *dWb = data<T>(weights) + b * k * inputs;
      passes<T>().weighted_sum_dx(k, n, rows_h.data(), cdata<T>(weight_l), cdata<T>(dl) + b * n,
                                  cdata<T>(hidden) + b * k * n, n, dhb, n);
      for (int64_t start = 0; start < n; start += step) {
        const int64_t width = std::min(step, n - start);
        T *seen = scratch(t, 0), *dseen = scratch(t, 1);
        if (p) std::copy_n(cdata<T>(psi) + b * n + start, width, seen);
        passes<T>().activate(m, width, rows_z.data(), Zb + start, n, seen + p * width, width);
        gemm<T>(false, true, k, inputs, width, dhb + start, n, seen, width, start ? 1 : 0, dWb,
                inputs);
        gemm<T>(true, false, m, width, k, cdata<T>(weight_h) + p, inputs, dhb + start, n, 0, dseen,
                width);
        passes<T>().mask(m, width, rows_z.data(), Zb + start, n, dseen, width, 1, nullptr, 0,
                         partial.first(b), partial.second(b));
      }
    });
    sum_images(B, k * inputs, cdata<T>(weights), data<T>(dweight));
    partial.write_sums(data<T>(sums));
  });
  return {dhidden, dweight, sums};
}

}  // namespace rga

STABLE_TORCH_LIBRARY_IMPL(rga_fast_cpp, CPU, m) {
  m.impl("gate_bwd", TORCH_BOX(&rga::gate_bwd));
  m.impl("logit_bwd", TORCH_BOX(&rga::logit_bwd));
  m.impl("hidden_bwd", TORCH_BOX(&rga::hidden_bwd));
}
