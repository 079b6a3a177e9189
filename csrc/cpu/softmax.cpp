// Causal softmax between the two matrix products of attention, on one block of queries, in place.
//
// Rows are heads x queries: all query heads of a key/value group share one matrix product with the group's keys, so
// that K and V are never repeated. Query i sees the columns up to columns - queries + i (its own position is last).
// The backward pass rebuilds the probabilities from the scores and the saved log-sum-exp.
#include "cpu/kernels.h"

#include <cmath>
#include <limits>

namespace syne {
namespace {

template <typename T>
SYNE_INLINE void forward_rows(T* scores, float* logsumexp, int64_t begin, int64_t end, int64_t columns,
                              int64_t queries, float scale) {
  for (int64_t row = begin; row < end; ++row) {
    T* values = scores + row * columns;
    int64_t visible = columns - queries + row % queries + 1;
    float maximum = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : maximum)
    for (int64_t i = 0; i < visible; ++i) {
      float value = load(values[i]);
      maximum = value > maximum ? value : maximum;
    }
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < visible; ++i) sum += exp_fast((load(values[i]) - maximum) * scale);
    float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < visible; ++i)
      store(values[i], exp_fast((load(values[i]) - maximum) * scale) * inverse);
    for (int64_t i = visible; i < columns; ++i) store(values[i], 0.0f);
    logsumexp[row] = maximum * scale + std::log(sum);
  }
}

// P = exp(scale * S - lse);  dS = scale * P * (dP - sum(P * dP))
template <typename T>
SYNE_INLINE void backward_rows(T* scores, T* dprobabilities, const float* logsumexp, int64_t begin, int64_t end,
                               int64_t columns, int64_t queries, float scale) {
  for (int64_t row = begin; row < end; ++row) {
    T* values = scores + row * columns;
    T* grads = dprobabilities + row * columns;
    int64_t visible = columns - queries + row % queries + 1;
    float lse = logsumexp[row], dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < visible; ++i) {
      float probability = rounded_to<T>(exp_fast(load(values[i]) * scale - lse));
      store(values[i], probability);
      dot += probability * load(grads[i]);
    }
#pragma omp simd
    for (int64_t i = 0; i < visible; ++i) store(grads[i], scale * load(values[i]) * (load(grads[i]) - dot));
    for (int64_t i = visible; i < columns; ++i) {
      store(values[i], 0.0f);
      store(grads[i], 0.0f);
    }
  }
}

SYNE_MULTIVERSION
void forward_f32(float* s, float* lse, int64_t begin, int64_t end, int64_t columns, int64_t queries,
                 float scale) {
  forward_rows(s, lse, begin, end, columns, queries, scale);
}

SYNE_MULTIVERSION
void forward_bf16(bf16* s, float* lse, int64_t begin, int64_t end, int64_t columns, int64_t queries,
                  float scale) {
  forward_rows(s, lse, begin, end, columns, queries, scale);
}

SYNE_MULTIVERSION
void backward_f32(float* s, float* g, const float* lse, int64_t begin, int64_t end, int64_t columns,
                  int64_t queries, float scale) {
  backward_rows(s, g, lse, begin, end, columns, queries, scale);
}

SYNE_MULTIVERSION
void backward_bf16(bf16* s, bf16* g, const float* lse, int64_t begin, int64_t end, int64_t columns,
                   int64_t queries, float scale) {
  backward_rows(s, g, lse, begin, end, columns, queries, scale);
}

constexpr int64_t kRowGrain = 8;

}  // namespace

void causal_softmax_forward(DType dtype, void* scores, float* logsumexp, int64_t rows, int64_t columns,
                            int64_t queries, float scale) {
  parallel_rows(rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    if (dtype == kFloat32)
      forward_f32(static_cast<float*>(scores), logsumexp, begin, end, columns, queries, scale);
    else
      forward_bf16(static_cast<bf16*>(scores), logsumexp, begin, end, columns, queries, scale);
  });
}

void causal_softmax_backward(DType dtype, void* scores, void* dprobabilities, const float* logsumexp, int64_t rows, int64_t columns, int64_t queries, float scale) {
  parallel_rows(rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    if (dtype == kFloat32)
      backward_f32(static_cast<float*>(scores), static_cast<float*>(dprobabilities), logsumexp, begin, end,
                   columns, queries, scale);
    else
      backward_bf16(static_cast<bf16*>(scores), static_cast<bf16*>(dprobabilities), logsumexp, begin, end,
                    columns, queries, scale);
  });
}

}  // namespace syne
