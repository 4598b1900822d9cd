// The operators of a branch in training (rga_fast/fused/ops.py), to be called from one another.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <tuple>

namespace rga {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> embed_fwd(const Tensor& V, const Tensor& weight_e);
std::tuple<Tensor, Tensor, Tensor, Tensor> relate_fwd(const Tensor& V, const Tensor& E,
                                                      const Tensor& norm_e, const Tensor& weight_z,
                                                      int64_t embeddings, int64_t psi_rows);
std::tuple<Tensor, Tensor> hidden_fwd(const Tensor& psi, const Tensor& Z, const Tensor& norm_z,
                                      const Tensor& weight_h);
std::tuple<Tensor, Tensor> logit_fwd(const Tensor& hidden, const Tensor& norm_h,
                                     const Tensor& weight_l);
Tensor gate_fwd(const Tensor& V, const Tensor& logit, const Tensor& norm_l);

std::tuple<Tensor, Tensor> gate_bwd(const Tensor& dout, const Tensor& V, const Tensor& logit,
                                    const Tensor& norm_l);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> logit_bwd(
    const Tensor& V, const Tensor& E, const Tensor& norm_e, const Tensor& PQ, const Tensor& psi,
    const Tensor& norm_z, const Tensor& weight_h, const Tensor& norm_h, const Tensor& weight_l,
    const Tensor& logit, const Tensor& norm_l, const Tensor& dlogit, const Tensor& means_l,
    int64_t embeddings, int64_t psi_rows);
std::tuple<Tensor, Tensor, Tensor> hidden_bwd(const Tensor& psi, const Tensor& Z,
                                              const Tensor& norm_z, const Tensor& weight_h,
                                              const Tensor& hidden, const Tensor& norm_h,
                                              const Tensor& means_h, const Tensor& weight_l,
                                              const Tensor& dl);
std::tuple<Tensor, Tensor, Tensor, Tensor> relate_bwd(const Tensor& V, const Tensor& E,
                                                      const Tensor& norm_e, const Tensor& weight_z,
                                                      const Tensor& PQ, const Tensor& Z,
                                                      const Tensor& norm_z, const Tensor& means_z,
                                                      const Tensor& weight_h, const Tensor& dhidden,
                                                      int64_t embeddings, int64_t psi_rows);
std::tuple<Tensor, Tensor> embed_bwd(const Tensor& dout, const Tensor& V, const Tensor& logit,
                                     const Tensor& norm_l, const Tensor& E, const Tensor& norm_e,
                                     const Tensor& means_e, const Tensor& weight_e,
                                     const Tensor& dE, const Tensor& dnodes, bool need_dV,
                                     bool need_dweight);

}  // namespace rga
