// The operators of rga_fast/fused/ops.py on CUDA tensors: checks, memory and stream for the
// launchers.
//
// All memory is torch's, so that its allocator orders it by streams and CUDA graphs can record it.
// With RGA_EMULATE (the tests, on the host) the same operators are rga_fast_cuda_host on the CPU.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "launch.h"

#ifdef RGA_EMULATE
#define RGA_LIBRARY rga_fast_cuda_host
#define RGA_KEY CPU
#else
#define RGA_LIBRARY rga_fast_cuda
#define RGA_KEY CUDA
// Null in a torch without CUDA, where no CUDA tensor exists to get here.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);
#endif

namespace rga {
namespace {

using cuda::Layer;
using cuda::NormTable;
using cuda::Shape;
using cuda::splits;
using cuda::StreamHandle;
using cuda::Type;

Type type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
#ifdef RGA_EMULATE
    case ScalarType::Double:
      return Type::kDouble;
#endif
    default:
      STD_TORCH_CHECK(false, "rga_fast: maps are float32, bfloat16 or float16");
  }
}

// The device and the stream of a call, in the order in which torch queues its work.
class Device {
 public:
#ifdef RGA_EMULATE
  explicit Device(const Tensor&) {}
#else
  explicit Device(const Tensor& V) : guard_(V.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "rga_fast: this torch has no CUDA");
    STD_TORCH_CHECK(
        aoti_torch_get_current_cuda_stream(V.get_device_index(), &stream) == AOTI_TORCH_SUCCESS,
        "rga_fast: no current stream");
  }
#endif
  StreamHandle stream = nullptr;

#ifndef RGA_EMULATE
 private:
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

// What an operator knows of its branch, and how it checks and makes tensors.
struct Call {
  explicit Call(const Tensor& map) : like(map), map_type(map.scalar_type()), device(map) {
    compute = compute_type(map_type);
    shape.type = type_of(map_type);
  }

  // Where V is at hand: its sizes and layout.
  void see(const Tensor& V) {
    const Nodes nodes(V);
    STD_TORCH_CHECK(nodes.size() <= std::numeric_limits<int32_t>::max(),
                    "rga_fast: an image has at most 2^31 - 1 elements");
    set_nodes(nodes.B, nodes.n);
    shape.d = static_cast<int>(nodes.d);
    shape.by_rows = nodes.by_rows;
  }
  void set_nodes(int64_t B, int64_t n) { shape.B = B, shape.n = static_cast<int>(n); }

  void see_embeddings(int64_t r, int64_t m, int64_t embeddings, int64_t psi_rows) {
    STD_TORCH_CHECK(0 <= psi_rows && psi_rows <= r && 0 <= embeddings && embeddings <= 2 &&
                        (embeddings < 2 || (r - psi_rows) % 2 == 0),
                    "rga_fast: ", r, " rows cannot hold ", embeddings, " embeddings and ", psi_rows,
                    " rows of psi");
    shape.r = static_cast<int>(r), shape.m = static_cast<int>(m);
    shape.psi_rows = static_cast<int>(psi_rows), shape.embeddings = static_cast<int>(embeddings);
    shape.q = embeddings ? shape.r - shape.psi_rows : shape.d;
    shape.c = embeddings == 2 ? shape.q / 2 : shape.q;
    shape.p = psi_rows ? 1 : 0;
    STD_TORCH_CHECK(shape.B * shape.c <= std::numeric_limits<int32_t>::max(),
                    "rga_fast: a batch has at most 2^31 - 1 embeddings of a node");
  }

  const void* in(const Tensor& t, const char* name, std::initializer_list<int64_t> size) const {
    check_dense(t, name, size, compute, &like);
    return t.const_data_ptr();
  }
  const void* map(const Tensor& t, const char* name, std::initializer_list<int64_t> size) const {
    check_dense(t, name, size, map_type, &like);
    return t.const_data_ptr();
  }
  NormTable norm(const Tensor& t, int64_t rows, const Tensor* means = nullptr) const {
    return {in(t, "norm", {4, rows}), means ? in(*means, "means", {2, rows}) : nullptr};
  }
  // dout, which has the strides of V.
  const void* like_map(const Tensor& t, const char* name) const {
    const Nodes nodes(t, name);
    STD_TORCH_CHECK(nodes.B == shape.B && nodes.d == shape.d && nodes.n == shape.n &&
                        t.scalar_type() == map_type && t.device() == like.device() &&
                        (nodes.by_rows == shape.by_rows || shape.d == 1 || shape.n == 1),
                    "rga_fast: ", name, " must have the shape, dtype, layout and device of V");
    return t.const_data_ptr();
  }
  Tensor make(std::initializer_list<int64_t> size) const { return make(size, compute); }
  Tensor make_map(std::initializer_list<int64_t> size) const { return make(size, map_type); }
  Tensor make(std::initializer_list<int64_t> size, ScalarType type) const {
    return torch::stable::new_empty(like, {size.begin(), size.size()}, type);
  }
  // Scratch for `values` sums over the nodes.
  Tensor partial(int64_t values) const {
    return make({values * shape.chunks()}, ScalarType::Double);
  }

  const Tensor& like;
  ScalarType map_type, compute;
  Device device;
  Shape shape;
};

void* data(const Tensor& t) { return t.mutable_data_ptr(); }

// The sizes of the perceptron's input and hidden layer.
Call perceptron(const Tensor& psi, const Tensor& Z, const Tensor& weight_h) {
  Call call(Z);
  STD_TORCH_CHECK(Z.dim() == 3 && psi.dim() == 3 && weight_h.dim() == 2,
                  "rga_fast: psi and Z must be (B, rows, n) and weight_h a matrix, got ",
                  shape_text(psi), ", ", shape_text(Z), " and ", shape_text(weight_h));
  call.set_nodes(Z.size(0), Z.size(2));
  call.shape.m = static_cast<int>(Z.size(1)), call.shape.p = static_cast<int>(psi.size(1));
  call.shape.k = static_cast<int>(weight_h.size(0));
  return call;
}

std::tuple<Tensor, Tensor> embed_fwd(const Tensor& V, const Tensor& weight_e) {
  Call call(V);
  call.see(V);
  Shape& s = call.shape;
  s.r = static_cast<int>(weight_e.size(0));
  const void* weight = call.in(weight_e, "weight_e", {s.r, s.d});
  Tensor E = call.make_map({s.B, s.r, s.n}), stats = call.make({2, s.r});
  const Tensor partial = call.partial(2 * s.r);
  embed_fwd(s, V.const_data_ptr(), weight, data(E), data(partial), data(stats), call.device.stream);
  return {E, stats};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> relate_fwd(const Tensor& V, const Tensor& E,
                                                      const Tensor& norm_e, const Tensor& weight_z,
                                                      int64_t embeddings, int64_t psi_rows) {
  Call call(V);
  call.see(V);
  call.see_embeddings(E.size(1), weight_z.size(0), embeddings, psi_rows);
  const Shape& s = call.shape;
  Tensor PQ = call.make({s.B, s.m, s.q}), Z = call.make_map({s.B, s.m, s.n});
  Tensor psi = call.make({s.B, s.p, s.n}), stats = call.make({2, s.m});
  const Tensor partial = call.partial(2 * s.m);
  relate_fwd(s, V.const_data_ptr(), call.map(E, "E", {s.B, s.r, s.n}), call.norm(norm_e, s.r),
             call.in(weight_z, "weight_z", {s.m, 2 * int64_t{s.n}}), data(PQ), data(Z), data(psi),
             data(partial), data(stats), call.device.stream);
  return {PQ, Z, psi, stats};
}

std::tuple<Tensor, Tensor> hidden_fwd(const Tensor& psi, const Tensor& Z, const Tensor& norm_z,
                                      const Tensor& weight_h) {
  const Call call = perceptron(psi, Z, weight_h);
  const Shape& s = call.shape;
  Tensor hidden = call.make({s.B, s.k, s.n}), stats = call.make({2, s.k});
  const Tensor partial = call.partial(2 * s.k);
  hidden_fwd(s, call.in(psi, "psi", {s.B, s.p, s.n}), call.map(Z, "Z", {s.B, s.m, s.n}),
             call.norm(norm_z, s.m), call.in(weight_h, "weight_h", {s.k, s.p + s.m}), data(hidden),
             data(partial), data(stats), call.device.stream);
  return {hidden, stats};
}

std::tuple<Tensor, Tensor> logit_fwd(const Tensor& hidden, const Tensor& norm_h,
                                     const Tensor& weight_l) {
  STD_TORCH_CHECK(hidden.dim() == 3, "rga_fast: hidden must be (B, k, n), got ",
                  shape_text(hidden));
  Call call(hidden);
  Shape& s = call.shape;
  call.set_nodes(hidden.size(0), hidden.size(2));
  s.k = static_cast<int>(hidden.size(1));
  Tensor logit = call.make({s.B, s.n}), stats = call.make({2, 1});
  const Tensor partial = call.partial(2);
  logit_fwd(s, call.in(hidden, "hidden", {s.B, s.k, s.n}), call.norm(norm_h, s.k),
            call.in(weight_l, "weight_l", {1, s.k}), data(logit), data(partial), data(stats),
            call.device.stream);
  return {logit, stats};
}

Tensor gate_fwd(const Tensor& V, const Tensor& logit, const Tensor& norm_l) {
  Call call(V);
  call.see(V);
  const Shape& s = call.shape;
  Tensor out = torch::stable::empty_like(V);
  gate_fwd(s, V.const_data_ptr(), call.in(logit, "logit", {s.B, s.n}), call.norm(norm_l, 1),
           data(out), call.device.stream);
  return out;
}

std::tuple<Tensor, Tensor> gate_bwd(const Tensor& dout, const Tensor& V, const Tensor& logit,
                                    const Tensor& norm_l) {
  Call call(V);
  call.see(V);
  const Shape& s = call.shape;
  Tensor dlogit = call.make({s.B, s.n}), sums = call.make({2, 1});
  const Tensor partial = call.partial(2);
  gate_bwd(s, call.like_map(dout, "dout"), V.const_data_ptr(), call.in(logit, "logit", {s.B, s.n}),
           call.norm(norm_l, 1), data(dlogit), data(partial), data(sums), call.device.stream);
  return {dlogit, sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> logit_bwd(
    const Tensor& V, const Tensor& E, const Tensor& norm_e, const Tensor& PQ, const Tensor& psi,
    const Tensor& norm_z, const Tensor& weight_h, const Tensor& norm_h, const Tensor& weight_l,
    const Tensor& logit, const Tensor& norm_l, const Tensor& dlogit, const Tensor& means_l,
    int64_t embeddings, int64_t psi_rows) {
  Call call(V);
  call.see(V);
  call.see_embeddings(E.size(1), norm_z.size(1), embeddings, psi_rows);
  Shape& s = call.shape;
  s.k = static_cast<int>(weight_h.size(0));
  Tensor Z = call.make_map({s.B, s.m, s.n}), hidden = call.make({s.B, s.k, s.n});
  Tensor dl = call.make({s.B, s.n}), dweight = call.make({1, s.k}), sums = call.make({2, s.k});
  const Tensor partial = call.partial(3 * s.k);
  const NormTable rows_h = call.norm(norm_h, s.k), row_l = call.norm(norm_l, 1, &means_l);
  const void* weight = call.in(weight_l, "weight_l", {1, s.k});
  const StreamHandle stream = call.device.stream;
  relations(s, V.const_data_ptr(), call.map(E, "E", {s.B, s.r, s.n}), call.norm(norm_e, s.r),
            call.in(PQ, "PQ", {s.B, s.m, s.q}), data(Z), stream);
  hidden_fwd(s, call.in(psi, "psi", {s.B, s.p, s.n}), data(Z), call.norm(norm_z, s.m),
             call.in(weight_h, "weight_h", {s.k, s.p + s.m}), data(hidden), nullptr, nullptr,
             stream);
  logit_bwd(s, data(hidden), rows_h, weight, call.in(logit, "logit", {s.B, s.n}), row_l,
            call.in(dlogit, "dlogit", {s.B, s.n}), data(dl), data(partial), data(dweight),
            data(sums), stream);
  return {Z, hidden, dl, dweight, sums};
}

std::tuple<Tensor, Tensor, Tensor> hidden_bwd(const Tensor& psi, const Tensor& Z,
                                              const Tensor& norm_z, const Tensor& weight_h,
                                              const Tensor& hidden, const Tensor& norm_h,
                                              const Tensor& means_h, const Tensor& weight_l,
                                              const Tensor& dl) {
  const Call call = perceptron(psi, Z, weight_h);
  const Shape& s = call.shape;
  const int inputs = s.p + s.m;
  Tensor dhidden = call.make({s.B, s.k, s.n}), dweight = call.make({s.k, inputs});
  Tensor sums = call.make({2, s.m});
  const Tensor shares = call.make({splits(s.B, s.k, inputs), s.k, inputs});
  const Tensor partial = call.partial(2 * s.m);
  hidden_bwd(s, call.in(psi, "psi", {s.B, s.p, s.n}), call.map(Z, "Z", {s.B, s.m, s.n}),
             call.norm(norm_z, s.m), call.in(weight_h, "weight_h", {s.k, inputs}),
             call.in(hidden, "hidden", {s.B, s.k, s.n}), call.norm(norm_h, s.k, &means_h),
             call.in(weight_l, "weight_l", {1, s.k}), call.in(dl, "dl", {s.B, s.n}), data(dhidden),
             data(shares), data(dweight), data(partial), data(sums), call.device.stream);
  return {dhidden, dweight, sums};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> relate_bwd(const Tensor& V, const Tensor& E,
                                                      const Tensor& norm_e, const Tensor& weight_z,
                                                      const Tensor& PQ, const Tensor& Z,
                                                      const Tensor& norm_z, const Tensor& means_z,
                                                      const Tensor& weight_h, const Tensor& dhidden,
                                                      int64_t embeddings, int64_t psi_rows) {
  Call call(V);
  call.see(V);
  call.see_embeddings(E.size(1), weight_z.size(0), embeddings, psi_rows);
  Shape& s = call.shape;
  s.k = static_cast<int>(weight_h.size(0));
  const int64_t columns = 2 * int64_t{s.n};
  Tensor dE = call.make_map({s.B, s.r, s.n}), sums = call.make({2, s.r});
  Tensor dnodes = call.make_map({s.B, s.m && !embeddings ? s.d : 0, s.n});
  Tensor dweight = call.make({s.m, columns});
  const Tensor dZ = call.make_map({s.B, s.m, s.n}), dPQ = call.make({s.B, s.m, s.q});
  const Tensor dpsi = call.make({s.B, s.p, s.n}), partial = call.partial(2 * s.r);
  const Tensor shares = call.make({splits(s.B, s.m, columns), s.m, columns});
  relate_bwd(s, V.const_data_ptr(), call.map(E, "E", {s.B, s.r, s.n}), call.norm(norm_e, s.r),
             call.in(weight_z, "weight_z", {s.m, columns}), call.in(PQ, "PQ", {s.B, s.m, s.q}),
             call.map(Z, "Z", {s.B, s.m, s.n}), call.norm(norm_z, s.m, &means_z),
             call.in(weight_h, "weight_h", {s.k, s.p + s.m}),
             call.in(dhidden, "dhidden", {s.B, s.k, s.n}), data(dZ), data(dPQ), data(dpsi),
             data(dE), data(dnodes), data(shares), data(dweight), data(partial), data(sums),
             call.device.stream);
  return {dE, dnodes, dweight, sums};
}

std::tuple<Tensor, Tensor> embed_bwd(const Tensor& dout, const Tensor& V, const Tensor& logit,
                                     const Tensor& norm_l, const Tensor& E, const Tensor& norm_e,
                                     const Tensor& means_e, const Tensor& weight_e,
                                     const Tensor& dE, const Tensor& dnodes, bool need_dV,
                                     bool need_dweight) {
  Call call(V);
  call.see(V);
  Shape& s = call.shape;
  s.r = static_cast<int>(weight_e.size(0));
  const bool nodes = dnodes.size(1) > 0;
  const void* added = call.map(dnodes, "dnodes", {s.B, nodes ? s.d : 0, s.n});
  Tensor dV = need_dV ? torch::stable::empty_like(V) : call.make_map({s.B, 0, s.n});
  Tensor dweight = call.make({need_dweight ? s.r : 0, s.d});
  const Tensor shares = call.make({need_dweight ? splits(s.B, s.r, s.d) : 0, s.r, s.d});
  embed_bwd(s, call.like_map(dout, "dout"), V.const_data_ptr(), call.in(logit, "logit", {s.B, s.n}),
            call.norm(norm_l, 1), call.map(E, "E", {s.B, s.r, s.n}),
            call.norm(norm_e, s.r, &means_e), call.in(weight_e, "weight_e", {s.r, s.d}),
            call.map(dE, "dE", {s.B, s.r, s.n}), nodes ? added : nullptr,
            need_dV ? data(dV) : nullptr, data(shares), need_dweight ? data(dweight) : nullptr,
            call.device.stream);
  return {dV, dweight};
}

// Which layers a branch in evaluation has.
struct Structure {
  int64_t embeddings;
  bool relations, appearance;
};

// The layers of a branch in evaluation, in the order of the operator's lists.
std::vector<Layer> layers_of(const Call& call, const std::vector<Tensor>& weights,
                             const std::vector<Tensor>& norms, const std::vector<double>& eps,
                             const Structure& structure) {
  const size_t count = structure.embeddings + structure.appearance + structure.relations + 2;
  STD_TORCH_CHECK(weights.size() == count && eps.size() == count && norms.size() == 4 * count,
                  "rga_fast: attention got the tensors of ", weights.size(), " layers, not of ",
                  count);
  std::vector<Layer> layers;
  for (size_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(weights[i].dim() == 2, "rga_fast: a weight must be a matrix, got ",
                    shape_text(weights[i]));
    const int64_t rows = weights[i].size(0), columns = weights[i].size(1);
    Layer layer = {call.in(weights[i], "a weight", {rows, columns}),
                   {},
                   eps[i],
                   static_cast<int>(rows),
                   static_cast<int>(columns)};
    for (int j = 0; j < 4; ++j)
      layer.norm[j] = call.in(norms[4 * i + j], "a normalisation", {rows});
    layers.push_back(layer);
  }
  return layers;
}

// The layers of a branch, whose sizes become known to the call.
std::vector<Layer> see_layers(Call& call, const std::vector<Tensor>& weights,
                              const std::vector<Tensor>& norms, const std::vector<double>& eps,
                              const Structure& structure) {
  const auto layers = layers_of(call, weights, norms, eps, structure);
  const size_t e = structure.embeddings + structure.appearance;
  Shape& s = call.shape;
  int r = 0;
  for (size_t i = 0; i < e; ++i) r += layers[i].rows;
  const int m = structure.relations ? layers[e].rows : 0;
  call.see_embeddings(r, m, structure.embeddings, structure.appearance ? layers[e - 1].rows : 0);
  s.k = layers[layers.size() - 2].rows;
  for (size_t i = 0; i < layers.size(); ++i) {
    const bool embeds = i < e, relates = structure.relations && i == e,
               last = i + 1 == layers.size();
    const int64_t columns = embeds ? s.d : relates ? 2 * int64_t{s.n} : last ? s.k : s.p + s.m;
    const int64_t rows = embeds && i < static_cast<size_t>(structure.embeddings) ? s.c
                         : last                                                  ? 1
                                                                                 : -1;
    STD_TORCH_CHECK(layers[i].columns == columns && (rows < 0 || layers[i].rows == rows),
                    "rga_fast: the weight of layer ", i, " does not fit, it is ",
                    shape_text(weights[i]));
  }
  return layers;
}

Tensor run(const Call& call, const std::vector<Layer>& layers, const Tensor& V) {
  Tensor out = torch::stable::empty_like(V);
  const Shape& s = call.shape;
  const Layer* first = layers.data();
  const StreamHandle stream = call.device.stream;
  if (V.numel() == 0 ||
      cuda::attention_in_clusters(&s, &first, 1, V.const_data_ptr(), data(out), stream))
    return out;

  const int all = s.r + s.m + s.k + 1;
  const Tensor table = call.make({4 * int64_t{all}}), weight_e = call.make({s.r, s.d});
  const Tensor E = call.make_map({s.B, s.r, s.n}), PQ = call.make({s.B, s.m, s.q});
  const Tensor Z = call.make_map({s.B, s.m, s.n}), psi = call.make({s.B, s.p, s.n});
  const Tensor hidden = call.make({s.B, s.k, s.n}), logit = call.make({s.B, s.n});
  cuda::attention(s, first, static_cast<int>(layers.size()), V.const_data_ptr(),
                  {data(table), data(weight_e), data(E), data(PQ), data(Z), data(psi), data(hidden),
                   data(logit)},
                  data(out), stream);
  return out;
}

Tensor attention(const Tensor& V, std::vector<Tensor> weights, std::vector<Tensor> norms,
                 std::vector<double> eps, int64_t embeddings, bool relations, bool appearance) {
  Call call(V);
  call.see(V);
  const auto layers = see_layers(call, weights, norms, eps, {embeddings, relations, appearance});
  return run(call, layers, V);
}

template <class T>
std::vector<T> half_of(const std::vector<T>& all, bool second) {
  const auto middle = all.begin() + all.size() / 2;
  return second ? std::vector<T>(middle, all.end()) : std::vector<T>(all.begin(), middle);
}

Tensor attention_pair(const Tensor& V, std::vector<Tensor> weights, std::vector<Tensor> norms,
                      std::vector<double> eps, int64_t embeddings, bool relations,
                      bool appearance) {
  const Tensor turned = torch::stable::transpose(V, 1, 2);
  Call calls[2] = {Call(V), Call(turned)};
  std::vector<Layer> layers[2];
  for (int i = 0; i < 2; ++i) {
    calls[i].see(i ? turned : V);
    layers[i] = see_layers(calls[i], half_of(weights, i), half_of(norms, i), half_of(eps, i),
                           {embeddings, relations, appearance});
  }
  Tensor out = torch::stable::empty_like(V);
  const Shape shapes[2] = {calls[0].shape, calls[1].shape};
  const Layer* const first[2] = {layers[0].data(), layers[1].data()};
  if (V.numel() == 0 || cuda::attention_in_clusters(shapes, first, 2, V.const_data_ptr(), data(out),
                                                    calls[0].device.stream))
    return out;
  const Tensor between = torch::stable::transpose(run(calls[0], layers[0], V), 1, 2);
  return torch::stable::transpose(run(calls[1], layers[1], between), 1, 2);
}

}  // namespace
}  // namespace rga

STABLE_TORCH_LIBRARY_IMPL(RGA_LIBRARY, RGA_KEY, m) {
  m.impl("attention", TORCH_BOX(&rga::attention));
  m.impl("attention_pair", TORCH_BOX(&rga::attention_pair));
  m.impl("embed_fwd", TORCH_BOX(&rga::embed_fwd));
  m.impl("relate_fwd", TORCH_BOX(&rga::relate_fwd));
  m.impl("hidden_fwd", TORCH_BOX(&rga::hidden_fwd));
  m.impl("logit_fwd", TORCH_BOX(&rga::logit_fwd));
  m.impl("gate_fwd", TORCH_BOX(&rga::gate_fwd));
  m.impl("gate_bwd", TORCH_BOX(&rga::gate_bwd));
  m.impl("logit_bwd", TORCH_BOX(&rga::logit_bwd));
  m.impl("hidden_bwd", TORCH_BOX(&rga::hidden_bwd));
  m.impl("relate_bwd", TORCH_BOX(&rga::relate_bwd));
  m.impl("embed_bwd", TORCH_BOX(&rga::embed_bwd));
}
