// Gradient norm, clipping and AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) over flat buffers: one pass that
// reads the gradient, updates both moments and the fp32 parameter, and writes the bf16 copy of the model.
#include "cpu/kernels.h"

#include <cmath>
#include <vector>

namespace syne {
namespace {

template <typename T>
SYNE_INLINE double squares_range(const T* values, int64_t begin, int64_t end) {
  double total = 0.0;
  for (int64_t block = begin; block < end; block += 8192) {
    int64_t stop = block + 8192 < end ? block + 8192 : end;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = block; i < stop; ++i) sum += load(values[i]) * load(values[i]);
    total += sum;
  }
  return total;
}

template <typename T>
SYNE_INLINE void adamw_range(float* param, const T* grad, float* exp_avg, float* exp_avg_sq, bf16* model_param,
                             int64_t begin, int64_t end, const AdamWStep& step) {
  float keep = 1.0f - step.lr * step.weight_decay, step_size = step.lr / step.bias_correction1;
  float inverse_root = 1.0f / std::sqrt(step.bias_correction2);
  float beta1 = step.beta1, beta2 = step.beta2, eps = step.eps, grad_scale = step.grad_scale;
  if (model_param) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      float g = load(grad[i]) * grad_scale;
      float m = beta1 * exp_avg[i] + (1.0f - beta1) * g;
      float v = beta2 * exp_avg_sq[i] + (1.0f - beta2) * g * g;
      float p = param[i] * keep - step_size * m / (std::sqrt(v) * inverse_root + eps);
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
      param[i] = p;
      store(model_param[i], p);
    }
  } else {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      float g = load(grad[i]) * grad_scale;
      float m = beta1 * exp_avg[i] + (1.0f - beta1) * g;
      float v = beta2 * exp_avg_sq[i] + (1.0f - beta2) * g * g;
      param[i] = param[i] * keep - step_size * m / (std::sqrt(v) * inverse_root + eps);
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
    }
  }
}

SYNE_MULTIVERSION
double squares_f32(const float* values, int64_t begin, int64_t end) { return squares_range(values, begin, end); }

SYNE_MULTIVERSION
double squares_bf16(const bf16* values, int64_t begin, int64_t end) { return squares_range(values, begin, end); }

SYNE_MULTIVERSION
void scale_range(float* values, int64_t begin, int64_t end, float factor) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) values[i] *= factor;
}

SYNE_MULTIVERSION
void adamw_f32(float* p, const float* g, float* m, float* v, bf16* copy, int64_t begin, int64_t end,
               const AdamWStep& step) {
  adamw_range(p, g, m, v, copy, begin, end, step);
}

SYNE_MULTIVERSION
void adamw_bf16(float* p, const bf16* g, float* m, float* v, bf16* copy, int64_t begin, int64_t end,
                const AdamWStep& step) {
  adamw_range(p, g, m, v, copy, begin, end, step);
}

constexpr int64_t kGrain = 16384;

}  // namespace

double sum_of_squares(DType dtype, const void* values, int64_t count) {
  std::vector<double> partial(static_cast<size_t>(max_threads()), 0.0);
  parallel_rows(count, kGrain, [&](int64_t begin, int64_t end, int thread) {
    partial[static_cast<size_t>(thread)] = dtype == kFloat32
                                               ? squares_f32(static_cast<const float*>(values), begin, end)
                                               : squares_bf16(static_cast<const bf16*>(values), begin, end);
  });
  double total = 0.0;
  for (double value : partial) total += value;
  return total;
}

void scale_in_place(float* values, int64_t count, float factor) {
  parallel_rows(count, kGrain,
                [&](int64_t begin, int64_t end, int) { scale_range(values, begin, end, factor); });
}

void adamw(DType grad_dtype, float* param, const void* grad, float* exp_avg, float* exp_avg_sq, bf16* model_param,
           int64_t count, const AdamWStep& step) {
  parallel_rows(count, kGrain, [&](int64_t begin, int64_t end, int) {
    if (grad_dtype == kFloat32)
      adamw_f32(param, static_cast<const float*>(grad), exp_avg, exp_avg_sq, model_param, begin, end, step);
    else
      adamw_bf16(param, static_cast<const bf16*>(grad), exp_avg, exp_avg_sq, model_param, begin, end, step);
  });
}

}  // namespace syne
