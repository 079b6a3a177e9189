// Causal softmax between the two matrix products of attention, on one block of queries, in place.
//
// Rows are heads x queries x repeats: all query heads of a key/value group share one matrix product with the group's
// keys, so that K and V are never repeated. Query i sees the columns up to columns - queries + i (its own position is
// last). The backward pass rebuilds the probabilities from the scores and the saved log-sum-exp.
#include "cpu/kernels.h"

#include <cmath>
#include <vector>

namespace syne {
namespace {

// The columns that a row sees. Rows are [heads, queries, repeats].
SYNE_INLINE int64_t visible_columns(int64_t row, int64_t columns, int64_t queries, int64_t repeats) {
  return columns - queries + row / repeats % queries + 1;
}

// `buffer` holds `columns` floats.
template <typename T>
SYNE_INLINE void forward_rows(T* scores, float* logsumexp, float* buffer, int64_t begin, int64_t end, int64_t columns,
                              int64_t queries, int64_t repeats, float scale) {
  for (int64_t row = begin; row < end; ++row) {
    T* values = scores + row * columns;
    int64_t visible = visible_columns(row, columns, queries, repeats);
    widen(values, buffer, visible);
    float maximum = maximum_of(buffer, visible), sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < visible; ++i) {
      buffer[i] = exp_fast((buffer[i] - maximum) * scale);
      sum += buffer[i];
    }
    float inverse = 1.0f / sum;
#pragma omp simd
    for (int64_t i = 0; i < visible; ++i) store(values[i], buffer[i] * inverse);
    for (int64_t i = visible; i < columns; ++i) store(values[i], 0.0f);
    logsumexp[row] = maximum * scale + std::log(sum);
  }
}

// P = exp(scale * S - lse);  dS = scale * P * (dP - sum(P * dP)). `buffer` holds 2 * `columns` floats.
template <typename T>
SYNE_INLINE void backward_rows(T* scores, T* dprobabilities, const float* logsumexp, float* buffer, int64_t begin,
                               int64_t end, int64_t columns, int64_t queries, int64_t repeats, float scale) {
  float *probabilities = buffer, *grads = buffer + columns;
  for (int64_t row = begin; row < end; ++row) {
    T* values = scores + row * columns;
    T* gradients = dprobabilities + row * columns;
    int64_t visible = visible_columns(row, columns, queries, repeats);
    widen(values, probabilities, visible);
    widen(gradients, grads, visible);
    float lse = logsumexp[row], dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < visible; ++i) {
      probabilities[i] = rounded_to<T>(exp_fast(probabilities[i] * scale - lse));
      dot += probabilities[i] * grads[i];
    }
    narrow(probabilities, values, visible);
#pragma omp simd
    for (int64_t i = 0; i < visible; ++i) store(gradients[i], scale * probabilities[i] * (grads[i] - dot));
    for (int64_t i = visible; i < columns; ++i) {
      store(values[i], 0.0f);
      store(gradients[i], 0.0f);
    }
  }
}

SYNE_MULTIVERSION
void forward_f32(float* s, float* lse, float* buffer, int64_t begin, int64_t end, int64_t columns, int64_t queries,
                 int64_t repeats, float scale) {
  forward_rows(s, lse, buffer, begin, end, columns, queries, repeats, scale);
}

SYNE_MULTIVERSION
void forward_bf16(bf16* s, float* lse, float* buffer, int64_t begin, int64_t end, int64_t columns, int64_t queries,
                  int64_t repeats, float scale) {
  forward_rows(s, lse, buffer, begin, end, columns, queries, repeats, scale);
}

SYNE_MULTIVERSION
void backward_f32(float* s, float* g, const float* lse, float* buffer, int64_t begin, int64_t end, int64_t columns,
                  int64_t queries, int64_t repeats, float scale) {
  backward_rows(s, g, lse, buffer, begin, end, columns, queries, repeats, scale);
}

SYNE_MULTIVERSION
void backward_bf16(bf16* s, bf16* g, const float* lse, float* buffer, int64_t begin, int64_t end, int64_t columns,
                   int64_t queries, int64_t repeats, float scale) {
  backward_rows(s, g, lse, buffer, begin, end, columns, queries, repeats, scale);
}

constexpr int64_t kRowGrain = 8;

}  // namespace

void causal_softmax_forward(DType dtype, void* scores, float* logsumexp, int64_t rows, int64_t columns,
                            int64_t queries, int64_t repeats, float scale) {
  parallel_rows(rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    std::vector<float> buffer(static_cast<size_t>(columns));
    if (dtype == kFloat32)
      forward_f32(static_cast<float*>(scores), logsumexp, buffer.data(), begin, end, columns, queries, repeats, scale);
    else
      forward_bf16(static_cast<bf16*>(scores), logsumexp, buffer.data(), begin, end, columns, queries, repeats, scale);
  });
}

void causal_softmax_backward(DType dtype, void* scores, void* dprobabilities, const float* logsumexp, int64_t rows,
                             int64_t columns, int64_t queries, int64_t repeats, float scale) {
  parallel_rows(rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    std::vector<float> buffer(static_cast<size_t>(2 * columns));
    if (dtype == kFloat32)
      backward_f32(static_cast<float*>(scores), static_cast<float*>(dprobabilities), logsumexp, buffer.data(), begin,
                   end, columns, queries, repeats, scale);
    else
      backward_bf16(static_cast<bf16*>(scores), static_cast<bf16*>(dprobabilities), logsumexp, buffer.data(), begin,
                    end, columns, queries, repeats, scale);
  });
}

}  // namespace syne
