// The branch in training with all its stages in one operator, forward and backward: passing tensors
// from stage to stage costs Python more time than a narrow product takes.
#include <torch/csrc/stable/library.h>

#include "image.h"
#include "operators.h"

namespace rga {
namespace {

// The layers theta, phi, psi, relation, W_1, W_2 (those present), by the stage that has them.
class Layers {
 public:
  Layers(const Tensor& V, const std::vector<Tensor>& weights, const std::vector<bool>& batch,
         int64_t embeddings, bool relations, bool appearance)
      : V(V),
        compute(compute_type(V.scalar_type())),
        weights(weights),
        batch(batch),
        embeddings(embeddings),
        count(V.size(0) * V.size(2)) {
    const size_t e = embeddings + appearance, z = e + relations;
    STD_TORCH_CHECK(weights.size() == z + 2 && batch.size() == z + 2, "rga_fast: expected ", z + 2,
                    " layers, got ", weights.size(), " weights and ", batch.size(), " flags");
    ends = {0, e, z, z + 1, z + 2};
    psi_rows = appearance ? weights[e - 1].size(0) : 0;
  }

  // The weights of theta, phi and psi as one matrix (r x d).
  Tensor embedding() const {
    if (ends[1] == 1) return weights[0];
    const int64_t d = V.size(1);
    Tensor joined = make(V, {rows(0), d}, compute);
    char* end = static_cast<char*>(joined.mutable_data_ptr());
    for (size_t i = 0; i < ends[1]; ++i) {
      check_dense(weights[i], "a weight", {weights[i].size(0), d}, compute);
      const auto* from = static_cast<const char*>(weights[i].const_data_ptr());
      end = std::copy_n(from, weights[i].numel() * joined.element_size(), end);
    }
    return joined;
  }

  Tensor relation() const {
    return ends[2] > ends[1] ? weights[ends[1]] : make(V, {0, 2 * V.size(2)}, compute);
  }
  const Tensor& hidden() const { return weights[ends[2]]; }
  const Tensor& logit() const { return weights[ends[3]]; }

  int64_t rows(int stage) const {
    int64_t total = 0;
    for (size_t i = ends[stage]; i < ends[stage + 1]; ++i) total += weights[i].size(0);
    return total;
  }

  const Tensor& V;
  const ScalarType compute;
  const std::vector<Tensor>& weights;
  const std::vector<bool>& batch;
  const int64_t embeddings, count;
  int64_t psi_rows;
  std::array<size_t, 5> ends;  // of the layers of stage i: ends[i] to ends[i + 1]
};

// Statistics of the batch become the tables that the layers are normalised by.
class Tables {
 public:
  Tables(const Layers& l, const std::vector<Tensor>& norms, const std::vector<double>& eps)
      : l(l), norms(norms), eps(eps) {
    STD_TORCH_CHECK(norms.size() == 4 * l.weights.size() && eps.size() == l.weights.size(),
                    "rga_fast: expected 4 tensors and an eps for each of ", l.weights.size(),
                    " normalisations, got ", norms.size(), " and ", eps.size());
    total = l.rows(0) + l.rows(1) + l.rows(2) + l.rows(3);
    tracked = make(l.V, {2, total}, l.compute);
  }

  // The table (4, rows) of a stage; its mean and unbiased variance go into `tracked`.
  Tensor operator()(int stage, const Tensor& stats) {
    const int64_t rows = l.rows(stage);
    Tensor table = make(l.V, {4, rows}, l.compute);
    with_types(l.compute, [&]<class T, class S>() {
      const T unbiased = l.count == 1 ? T(1) : T(l.count) / T(l.count - 1);
      T *out = data<T>(table), *seen = data<T>(tracked) + first;
      for (int64_t r = 0; r < rows; ++r) {
        seen[r] = cdata<T>(stats)[r];
        seen[total + r] = cdata<T>(stats)[rows + r] * unbiased;
      }
      int64_t start = 0;
      for (size_t i = l.ends[stage]; i < l.ends[stage + 1]; ++i) {
        const int64_t width = l.weights[i].size(0);
        const T* p[4];
        for (int part = 0; part < 4; ++part) {
          check_dense(norms[4 * i + part], "a normalisation", {width}, l.compute);
          p[part] = cdata<T>(norms[4 * i + part]);
        }
        if (l.batch[i]) p[0] = cdata<T>(stats) + start, p[1] = p[0] + rows;
        for (int64_t r = 0; r < width; ++r) {
          T* column = out + start + r;
          column[0] = p[0][r];
          column[rows] = 1 / std::sqrt(p[1][r] + static_cast<T>(eps[i]));
          column[2 * rows] = p[2][r];
          column[3 * rows] = p[3][r];
        }
        start += width;
      }
    });
    first += rows;
    return table;
  }

  Tensor tracked;

 private:
  const Layers& l;
  const std::vector<Tensor>& norms;
  const std::vector<double>& eps;
  int64_t total, first = 0;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
training_fwd(const Tensor& V, std::vector<Tensor> weights, std::vector<Tensor> norms,
             std::vector<double> eps, std::vector<bool> batch, int64_t embeddings, bool relations,
             bool appearance) {
  const Layers l(V, weights, batch, embeddings, relations, appearance);
  Tables table(l, norms, eps);
  const auto [E, stats_e] = embed_fwd(V, l.embedding());
  const Tensor norm_e = table(0, stats_e);
  auto [PQ, Z, psi, stats_z] = relate_fwd(V, E, norm_e, l.relation(), embeddings, l.psi_rows);
  const Tensor norm_z = table(1, stats_z);
  const auto [hidden, stats_h] = hidden_fwd(psi, Z, norm_z, l.hidden());
  Z = Tensor();  // the largest of all, and not needed any more
  const Tensor norm_h = table(2, stats_h);
  const auto [logit, stats_l] = logit_fwd(hidden, norm_h, l.logit());
  const Tensor norm_l = table(3, stats_l);
  return {
      gate_fwd(V, logit, norm_l), E, PQ, psi, logit, norm_e, norm_z, norm_h, norm_l, table.tracked};
}

// The sums of a gradient per value; zero where running statistics were used.
Tensor means_of(const Layers& l, int stage, const Tensor& sums) {
  const int64_t rows = l.rows(stage);
  Tensor means = make(sums, {2, rows}, l.compute);
  with_types(l.compute, [&]<class T, class S>() {
    int64_t start = 0;
    for (size_t i = l.ends[stage]; i < l.ends[stage + 1]; ++i)
      for (const int64_t stop = start + l.weights[i].size(0); start < stop; ++start)
        for (const int64_t r : {start, rows + start})
          data<T>(means)[r] = l.batch[i] ? cdata<T>(sums)[r] / static_cast<T>(l.count) : T(0);
  });
  return means;
}

Tensor joined(const Layers& l, std::initializer_list<Tensor> stages) {
  int64_t total = 0, start = 0;
  for (const Tensor& sums : stages) total += sums.size(1);
  Tensor all = make(*stages.begin(), {2, total}, l.compute);
  with_types(l.compute, [&]<class T, class S>() {
    for (const Tensor& sums : stages) {
      const int64_t rows = sums.size(1);
      std::copy_n(cdata<T>(sums), rows, data<T>(all) + start);
      std::copy_n(cdata<T>(sums) + rows, rows, data<T>(all) + total + start);
      start += rows;
    }
  });
  return all;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> training_bwd(
    const Tensor& dout, const Tensor& V, const Tensor& E, const Tensor& PQ, const Tensor& psi,
    const Tensor& logit, const Tensor& norm_e, const Tensor& norm_z, const Tensor& norm_h,
    const Tensor& norm_l, std::vector<Tensor> weights, std::vector<bool> batch, int64_t embeddings,
    bool relations, bool appearance, bool need_dV, bool need_dweight) {
  const Layers l(V, weights, batch, embeddings, relations, appearance);
  const auto [dlogit, sums_l] = gate_bwd(dout, V, logit, norm_l);
  auto [Z, hidden, dl, dweight_l, sums_h] =
      logit_bwd(V, E, norm_e, PQ, psi, norm_z, l.hidden(), norm_h, l.logit(), logit, norm_l, dlogit,
                means_of(l, 3, sums_l), embeddings, l.psi_rows);
  auto [dhidden, dweight_h, sums_z] =
      hidden_bwd(psi, Z, norm_z, l.hidden(), hidden, norm_h, means_of(l, 2, sums_h), l.logit(), dl);
  hidden = Tensor();
  auto [dE, dnodes, dweight_z, sums_e] =
      relate_bwd(V, E, norm_e, l.relation(), PQ, Z, norm_z, means_of(l, 1, sums_z), l.hidden(),
                 dhidden, embeddings, l.psi_rows);
  Z = dhidden = Tensor();
  const auto [dV, dweight_e] = embed_bwd(dout, V, logit, norm_l, E, norm_e, means_of(l, 0, sums_e),
                                         l.embedding(), dE, dnodes, need_dV, need_dweight);
  return {dV,        dweight_e, dweight_z,
          dweight_h, dweight_l, joined(l, {sums_e, sums_z, sums_h, sums_l})};
}

}  // namespace
}  // namespace rga

STABLE_TORCH_LIBRARY_IMPL(rga_fast_cpp, CPU, m) {
  m.impl("training_fwd", TORCH_BOX(&rga::training_fwd));
  m.impl("training_bwd", TORCH_BOX(&rga::training_bwd));
}
