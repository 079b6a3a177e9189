// The part of linear + cross entropy between its matrix products, on one chunk of logits of one vocabulary shard:
// the statistics that tensor-parallel ranks reduce (max, sum of exponentials, target), then, in place, the gradient
//   dlogit = (softmax - onehot(target)) * row_scale
#include "cpu/kernels.h"

#include <cmath>
#include <limits>

namespace syne {
namespace {

template <typename T>
SYNE_INLINE void stats_rows(const T* logits, const int64_t* targets, float* row_max, float* row_sum,
                            float* target_logit, int64_t begin, int64_t end, int64_t columns, int64_t stride) {
  for (int64_t row = begin; row < end; ++row) {
    const T* values = logits + row * stride;
    float maximum = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : maximum)
    for (int64_t i = 0; i < columns; ++i) {
      float value = load(values[i]);
      maximum = value > maximum ? value : maximum;
    }
    // Sums of blocks, so that a vocabulary of 128,256 terms is not one long fp32 chain.
    double total = 0.0;
    for (int64_t block = 0; block < columns; block += 4096) {
      int64_t stop = block + 4096 < columns ? block + 4096 : columns;
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = block; i < stop; ++i) sum += exp_fast(load(values[i]) - maximum);
      total += sum;
    }
    row_max[row] = maximum;
    row_sum[row] = static_cast<float>(total);
    int64_t target = targets[row];
    target_logit[row] = target >= 0 && target < columns ? load(values[target]) : 0.0f;
  }
}

template <typename T>
SYNE_INLINE void gradient_rows(T* logits, const int64_t* targets, const float* row_max, const float* row_sum,
                               const float* row_scale, int64_t begin, int64_t end, int64_t columns, int64_t valid,
                               int64_t stride) {
  for (int64_t row = begin; row < end; ++row) {
    T* values = logits + row * stride;
    float scale = row_scale[row];
    if (scale == 0.0f) {  // masked: also a row of infinities has gradient zero
      for (int64_t i = 0; i < columns; ++i) store(values[i], 0.0f);
      continue;
    }
    int64_t target = targets[row];
    bool owned = target >= 0 && target < valid;
    float maximum = row_max[row], factor = scale / row_sum[row];
    float at_target = owned ? exp_fast(load(values[target]) - maximum) * factor - scale : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < valid; ++i) store(values[i], exp_fast(load(values[i]) - maximum) * factor);
    for (int64_t i = valid; i < columns; ++i) store(values[i], 0.0f);
    if (owned) store(values[target], at_target);
  }
}

SYNE_MULTIVERSION
void stats_f32(const float* l, const int64_t* t, float* m, float* s, float* g, int64_t begin, int64_t end, int64_t c,
               int64_t stride) {
  stats_rows(l, t, m, s, g, begin, end, c, stride);
}

SYNE_MULTIVERSION
void stats_bf16(const bf16* l, const int64_t* t, float* m, float* s, float* g, int64_t begin, int64_t end, int64_t c,
                int64_t stride) {
  stats_rows(l, t, m, s, g, begin, end, c, stride);
}

SYNE_MULTIVERSION
void gradient_f32(float* l, const int64_t* t, const float* m, const float* s, const float* scale, int64_t begin,
                  int64_t end, int64_t c, int64_t valid, int64_t stride) {
  gradient_rows(l, t, m, s, scale, begin, end, c, valid, stride);
}

SYNE_MULTIVERSION
void gradient_bf16(bf16* l, const int64_t* t, const float* m, const float* s, const float* scale, int64_t begin,
                   int64_t end, int64_t c, int64_t valid, int64_t stride) {
  gradient_rows(l, t, m, s, scale, begin, end, c, valid, stride);
}

}  // namespace

void cross_entropy_stats(DType dtype, const void* logits, const int64_t* targets, float* row_max, float* row_sum,
                         float* target_logit, int64_t rows, int64_t valid_columns, int64_t row_stride) {
  parallel_rows(rows, 1, [&](int64_t begin, int64_t end, int) {
    if (dtype == kFloat32)
      stats_f32(static_cast<const float*>(logits), targets, row_max, row_sum, target_logit, begin, end, valid_columns,
                row_stride);
    else
      stats_bf16(static_cast<const bf16*>(logits), targets, row_max, row_sum, target_logit, begin, end, valid_columns,
                 row_stride);
  });
}

void cross_entropy_gradient(DType dtype, void* logits, const int64_t* targets, const float* row_max,
                            const float* row_sum, const float* row_scale, int64_t rows, int64_t columns,
                            int64_t valid_columns, int64_t row_stride) {
  parallel_rows(rows, 1, [&](int64_t begin, int64_t end, int) {
    if (dtype == kFloat32)
      gradient_f32(static_cast<float*>(logits), targets, row_max, row_sum, row_scale, begin, end, columns,
                   valid_columns, row_stride);
    else
      gradient_bf16(static_cast<bf16*>(logits), targets, row_max, row_sum, row_scale, begin, end, columns,
                    valid_columns, row_stride);
  });
}

}  // namespace syne
