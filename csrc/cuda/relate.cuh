// The nodes that relations are made of, as operands of products.
#pragma once

#include "sums.cuh"

namespace rga::cuda {

// Where [theta; phi] come from: E, or V itself where there are no embeddings, in its layout.
enum class Nodes { kEmbedded, kByRows, kByColumns };

inline Nodes nodes_of(const Shape& s) {
  return s.embeddings ? Nodes::kEmbedded : s.by_rows ? Nodes::kByRows : Nodes::kByColumns;
}

// Calls f.template operator()<S, nodes>().
template <class F>
void with_nodes(const Shape& s, const F& f) {
  with_type(s.type, [&]<class S>() {
    switch (nodes_of(s)) {
      case Nodes::kEmbedded:
        return f.template operator()<S, Nodes::kEmbedded>();
      case Nodes::kByRows:
        return f.template operator()<S, Nodes::kByRows>();
      case Nodes::kByColumns:
        return f.template operator()<S, Nodes::kByColumns>();
    }
  });
}

// The rows `first` to `first + count` of [theta; phi] of image b. kSumFeatures: the product sums
// over them, and else over the nodes.
template <class S, Nodes kNodes, bool kSumFeatures>
RGA_DEVICE auto embedded(const S* V, const S* E, const Norm<Compute<S>>& norm, int64_t b, int first,
                         int count, int d, int n, int r) {
  if constexpr (kNodes == Nodes::kEmbedded) {
    return Activated<S, !kSumFeatures>(E + (b * r + first) * n, norm, first, n, count);
  } else if constexpr (kNodes == Nodes::kByRows) {
    return Dense<S, !kSumFeatures>(V + b * d * n, n, d, n);
  } else {
    return Dense<S, kSumFeatures>(V + b * d * n, d, n, d);
  }
}

// W_row (half 0) or W_col (half 1) of weight_z (m, 2n), or their sum where theta is phi.
template <class S, bool kInner, bool kSummed>
RGA_DEVICE auto relation_weight(const Compute<S>* weight, int half, int m, int n) {
  const int64_t ld = 2 * static_cast<int64_t>(n);
  if constexpr (kSummed)
    return Sum<S, kInner>{{weight, ld, m, n}, {weight + n, ld, m, n}};
  else
    return Cast<S, kInner>(weight + half * n, ld, m, n);
}

}  // namespace rga::cuda
