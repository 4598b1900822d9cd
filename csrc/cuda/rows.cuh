// Eight neighbouring values at a time, and the normalisation of a row.
#pragma once

#include <type_traits>

#include "device.cuh"
#include "launch.h"

namespace rga::cuda {

template <class S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

constexpr int kEight = 8;
constexpr int kThreads = 128;  // of every block but those of a cluster

template <class S>
struct alignas(16) Eight {
  S x[kEight];
};

// Whether rows of `ld` elements from `start` can be read 16 bytes at a time.
template <class S>
RGA_DEVICE bool aligned16(const S* start, int64_t ld) {
  return reinterpret_cast<uintptr_t>(start) % 16 == 0 && ld * sizeof(S) % 16 == 0;
}

// The first `valid` of eight values from `p`; zero after them.
template <class S>
RGA_DEVICE Eight<S> load8(const S* p, int valid, bool aligned) {
  Eight<S> v;
  if (aligned && valid >= kEight) {
    for (int i = 0; i < static_cast<int>(sizeof(v) / 16); ++i)
      copy16(reinterpret_cast<char*>(&v) + 16 * i, reinterpret_cast<const char*>(p) + 16 * i);
    return v;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i) v.x[i] = i < valid ? p[i] : S(0.f);
  return v;
}

template <class S>
RGA_DEVICE void store8(S* p, const Eight<S>& v, int valid, bool aligned) {
  if (aligned && valid >= kEight) {
    for (int i = 0; i < static_cast<int>(sizeof(v) / 16); ++i)
      copy16(reinterpret_cast<char*>(p) + 16 * i, reinterpret_cast<const char*>(&v) + 16 * i);
    return;
  }
#pragma unroll
  for (int i = 0; i < kEight; ++i)
    if (i < valid) p[i] = v.x[i];
}

template <class To, class From>
RGA_DEVICE Eight<To> convert(const Eight<From>& v) {
  Eight<To> result;
#pragma unroll
  for (int i = 0; i < kEight; ++i) result.x[i] = static_cast<To>(v.x[i]);
  return result;
}

// y = (x - mean) * scale + shift, xhat = (x - mean) * rstd. Every kernel computes y with the same
// instructions, so that an activation is on in the backward pass where it was in the forward pass.
template <class T>
struct Row {
  T mean, rstd, scale, shift;

  RGA_DEVICE T normalised(T x) const { return fma(x - mean, scale, shift); }
  RGA_DEVICE T activated(T x) const {
    const T y = normalised(x);
    return y > T(0) ? y : (y == y ? T(0) : y);  // NaN stays NaN, as in torch
  }
  RGA_DEVICE T masked(T dy, T x) const { return normalised(x) > T(0) ? dy : T(0); }
  RGA_DEVICE T xhat(T x) const { return (x - mean) * rstd; }
  // The gradient before the normalisation.
  RGA_DEVICE T norm_backward(T dy, T x, T mean_dy, T mean_dyx) const {
    return scale * (dy - mean_dy - xhat(x) * mean_dyx);
  }
};

template <class T>
struct Norm {
  const T *norm, *means;
  int rows;

  Norm(const NormTable& table, int rows)
      : norm(static_cast<const T*>(table.norm)),
        means(static_cast<const T*>(table.means)),
        rows(rows) {}
  RGA_DEVICE Row<T> row(int r) const {
    const T rstd = norm[rows + r];
    return {norm[r], rstd, rstd * norm[2 * rows + r], norm[3 * rows + r]};
  }
  RGA_DEVICE T mean_dy(int r) const { return means[r]; }
  RGA_DEVICE T mean_dyx(int r) const { return means[rows + r]; }
};

template <class T>
RGA_DEVICE T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

// The sum over the `lanes` neighbouring lanes of this one (a power of two), in every one of them.
template <class T>
RGA_DEVICE T sum_lanes(T value, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) value += shuffle_xor(value, step);
  return value;
}

RGA_DEVICE int least(int a, int b) { return a < b ? a : b; }

}  // namespace rga::cuda
