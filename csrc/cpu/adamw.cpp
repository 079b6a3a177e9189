// Gradient norm, clipping and AdamW over flat buffers: one pass reads the gradient and updates the parameter, the copy
// that the model computes with, and both moments, each in the format that it is stored in.
#include "cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
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

// One AdamW update in fp32 (Loshchilov and Hutter 2019, arXiv 1711.05101).
SYNE_INLINE void adamw_block(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t count,
                             const AdamWStep& step) {
  float keep = 1.0f - step.lr * step.weight_decay, step_size = step.lr / step.bias_correction1;
  float inverse_root = 1.0f / std::sqrt(step.bias_correction2);
  float beta1 = step.beta1, beta2 = step.beta2, eps = step.eps, grad_scale = step.grad_scale;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    float g = grad[i] * grad_scale;
    float m = beta1 * exp_avg[i] + (1.0f - beta1) * g;
    float v = beta2 * exp_avg_sq[i] + (1.0f - beta2) * g * g;
    param[i] = param[i] * keep - step_size * m / (std::sqrt(v) * inverse_root + eps);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
  }
}

// The fp32 value is bf16 `high` plus a signed remainder, as 32-bit integers. Rounding half up makes the remainder fit
// 16 bits for every value; half to even would not, two halves would meet in one pair. The largest finite values round
// to an infinite `high` and stay exact as a pair. A NaN becomes the quiet one, for rounded it could look finite.
SYNE_INLINE void split(const float* values, bf16* high, int16_t* remainder, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], 4);
    bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
    high[i].bits = static_cast<uint16_t>((bits + 0x8000u) >> 16);
    remainder[i] = static_cast<int16_t>(bits);
  }
}

SYNE_INLINE void join(const bf16* high, const int16_t* remainder, float* values, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits = static_cast<uint32_t>(high[i].bits) << 16;
    bits += static_cast<uint32_t>(static_cast<int32_t>(remainder[i]));
    std::memcpy(&values[i], &bits, 4);
  }
}

// `count` elements from `first` on in fp32: where they lie, or widened into `buffer`.
SYNE_INLINE float* in_fp32(DType dtype, void* values, int64_t first, int64_t count, float* buffer) {
  if (dtype == kFloat32) return static_cast<float*>(values) + first;
  widen(static_cast<const bf16*>(values) + first, buffer, count);
  return buffer;
}

SYNE_MULTIVERSION
double squares_f32(const float* values, int64_t begin, int64_t end) { return squares_range(values, begin, end); }

SYNE_MULTIVERSION
double squares_bf16(const bf16* values, int64_t begin, int64_t end) { return squares_range(values, begin, end); }

// Zeros are read and not written: a page of them that was never written takes no memory (clear_pages in bindings.cpp).
SYNE_MULTIVERSION
void scale_range(float* values, int64_t begin, int64_t end, float factor) {
  constexpr int64_t kBlock = 1024;
  for (int64_t first = begin; first < end; first += kBlock) {
    int64_t last = std::min(first + kBlock, end);
    std::uint32_t bits = 0;
#pragma omp simd reduction(| : bits)
    for (int64_t i = first; i < last; ++i) {
      std::uint32_t value;
      std::memcpy(&value, values + i, sizeof value);
      bits |= value;
    }
    if (bits == 0) continue;
#pragma omp simd
    for (int64_t i = first; i < last; ++i) values[i] *= factor;
  }
}

// Blocks that stay in the first-level cache while they are widened, updated and narrowed.
SYNE_MULTIVERSION
void adamw_range(const AdamWTensors& tensors, int64_t begin, int64_t end, const AdamWStep& step) {
  constexpr int64_t kBlock = 512;
  alignas(64) float buffers[4][kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    int64_t count = first + kBlock < end ? kBlock : end - first;
    bf16* model_param = tensors.model_param ? tensors.model_param + first : nullptr;
    float* param = tensors.remainder ? buffers[0] : tensors.param + first;
    if (tensors.remainder) join(model_param, tensors.remainder + first, param, count);
    const float* grad = in_fp32(tensors.grad_dtype, const_cast<void*>(tensors.grad), first, count, buffers[1]);
    float* exp_avg = in_fp32(tensors.exp_avg_dtype, tensors.exp_avg, first, count, buffers[2]);
    float* exp_avg_sq = in_fp32(tensors.exp_avg_sq_dtype, tensors.exp_avg_sq, first, count, buffers[3]);
    adamw_block(param, grad, exp_avg, exp_avg_sq, count, step);
    if (tensors.exp_avg_dtype == kBFloat16) narrow(exp_avg, static_cast<bf16*>(tensors.exp_avg) + first, count);
    if (tensors.exp_avg_sq_dtype == kBFloat16)
      narrow(exp_avg_sq, static_cast<bf16*>(tensors.exp_avg_sq) + first, count);
    if (tensors.remainder)
      split(param, model_param, tensors.remainder + first, count);
    else if (tensors.model_param)
      narrow(param, model_param, count);
  }
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

void adamw(const AdamWTensors& tensors, int64_t count, const AdamWStep& step) {
  parallel_rows(count, kGrain, [&](int64_t begin, int64_t end, int) { adamw_range(tensors, begin, end, step); });
}

}  // namespace syne
