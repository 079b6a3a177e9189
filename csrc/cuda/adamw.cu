// Gradient norm, clipping and AdamW over flat buffers; the formulas stand in cpu/adamw.cpp.
#include "cuda/common.cuh"

namespace syne {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void squares_kernel(const T* values, int64_t count, double* total) {
  __shared__ float shared[kWarp];
  double sum = 0.0;
  int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; index < count; index += step) {
    float value = to_float(values[index]);
    sum += static_cast<double>(value * value);
  }
  float block = block_sum(static_cast<float>(sum), shared);
  if (threadIdx.x == 0) atomicAdd(total, static_cast<double>(block));
}

__global__ void scale_kernel(float* values, int64_t count, float factor) {
  int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; index < count; index += step)
    values[index] *= factor;
}

template <typename T>
__global__ void adamw_kernel(float* param, const T* grad, float* exp_avg, float* exp_avg_sq, bf16* model_param,
                             int64_t count, AdamWStep step) {
  float keep = 1.0f - step.lr * step.weight_decay, step_size = step.lr / step.bias_correction1;
  float inverse_root = rsqrtf(step.bias_correction2);
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; index < count; index += stride) {
    float g = to_float(grad[index]) * step.grad_scale;
    float m = step.beta1 * exp_avg[index] + (1.0f - step.beta1) * g;
    float v = step.beta2 * exp_avg_sq[index] + (1.0f - step.beta2) * g * g;
    float p = param[index] * keep - step_size * m / (sqrtf(v) * inverse_root + step.eps);
    exp_avg[index] = m;
    exp_avg_sq[index] = v;
    param[index] = p;
    if (model_param) model_param[index] = from_float<bf16>(p);
  }
}

}  // namespace

void sum_of_squares(DType dtype, const void* values, int64_t count, double* total, cudaStream_t stream) {
  if (count == 0) return;
  if (dtype == kFloat32)
    squares_kernel<<<grid_for(count, kThreads), kThreads, 0, stream>>>(static_cast<const float*>(values), count, total);
  else
    squares_kernel<<<grid_for(count, kThreads), kThreads, 0, stream>>>(static_cast<const bf16*>(values), count, total);
  check(cudaGetLastError(), "sum_of_squares");
}

void scale_in_place(float* values, int64_t count, float factor, cudaStream_t stream) {
  if (count == 0) return;
  scale_kernel<<<grid_for(count, kThreads), kThreads, 0, stream>>>(values, count, factor);
  check(cudaGetLastError(), "scale_in_place");
}

void adamw(DType grad_dtype, float* param, const void* grad, float* exp_avg, float* exp_avg_sq, void* model_param,
           int64_t count, const AdamWStep& step, cudaStream_t stream) {
  if (count == 0) return;
  int blocks = grid_for(count, kThreads);
  auto copy = static_cast<bf16*>(model_param);
  if (grad_dtype == kFloat32)
    adamw_kernel<<<blocks, kThreads, 0, stream>>>(param, static_cast<const float*>(grad), exp_avg, exp_avg_sq, copy,
                                                  count, step);
  else
    adamw_kernel<<<blocks, kThreads, 0, stream>>>(param, static_cast<const bf16*>(grad), exp_avg, exp_avg_sq, copy,
                                                  count, step);
  check(cudaGetLastError(), "adamw");
}

}  // namespace syne
