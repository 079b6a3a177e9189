// Gradient norm, clipping and AdamW over flat buffers; the formulas stand in cpu/adamw.cpp.
#include "cuda/common.cuh"

#include <type_traits>

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

__device__ __forceinline__ float join(bf16 high, std::int16_t remainder) {
  unsigned bits = static_cast<unsigned>(__bfloat16_as_ushort(high)) << 16;
  return __uint_as_float(bits + static_cast<unsigned>(static_cast<int>(remainder)));
}

__device__ __forceinline__ void split(float value, bf16& high, std::int16_t& remainder) {
  unsigned bits = isnan(value) ? 0x7fc00000u : __float_as_uint(value);
  high = __ushort_as_bfloat16(static_cast<unsigned short>((bits + 0x8000u) >> 16));
  remainder = static_cast<std::int16_t>(bits & 0xffffu);
}

// G, M and V are the types of the gradient and of the moments.
template <bool kRemainder, typename G, typename M, typename V>
__global__ void adamw_kernel(float* param, bf16* model_param, std::int16_t* remainder, const G* grad, M* exp_avg,
                             V* exp_avg_sq, int64_t count, AdamWStep step) {
  float keep = 1.0f - step.lr * step.weight_decay, step_size = step.lr / step.bias_correction1;
  float inverse_root = rsqrtf(step.bias_correction2);
  int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t index = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; index < count; index += stride) {
    float g = to_float(grad[index]) * step.grad_scale;
    float m = step.beta1 * to_float(exp_avg[index]) + (1.0f - step.beta1) * g;
    float v = step.beta2 * to_float(exp_avg_sq[index]) + (1.0f - step.beta2) * g * g;
    float p = kRemainder ? join(model_param[index], remainder[index]) : param[index];
    p = p * keep - step_size * m / (sqrtf(v) * inverse_root + step.eps);
    exp_avg[index] = from_float<M>(m);
    exp_avg_sq[index] = from_float<V>(v);
    if (kRemainder) {
      split(p, model_param[index], remainder[index]);
    } else {
      param[index] = p;
      if (model_param) model_param[index] = from_float<bf16>(p);
    }
  }
}

// Calls `body` with a null pointer of the element type.
template <typename Body>
void with_type(DType dtype, const Body& body) {
  if (dtype == kFloat32)
    body(static_cast<float*>(nullptr));
  else
    body(static_cast<bf16*>(nullptr));
}

template <bool kRemainder>
void run_adamw(const AdamWTensors& t, int64_t count, const AdamWStep& step, cudaStream_t stream) {
  with_type(t.grad_dtype, [&](auto* g) {
    with_type(t.exp_avg_dtype, [&](auto* m) {
      with_type(t.exp_avg_sq_dtype, [&](auto* v) {
        adamw_kernel<kRemainder><<<grid_for(count, kThreads), kThreads, 0, stream>>>(
            t.param, static_cast<bf16*>(t.model_param), t.remainder,
            static_cast<const std::remove_pointer_t<decltype(g)>*>(t.grad),
            static_cast<decltype(m)>(t.exp_avg), static_cast<decltype(v)>(t.exp_avg_sq), count, step);
      });
    });
  });
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

void adamw(const AdamWTensors& tensors, int64_t count, const AdamWStep& step, cudaStream_t stream) {
  if (count == 0) return;
  (tensors.remainder ? run_adamw<true> : run_adamw<false>)(tensors, count, step, stream);
  check(cudaGetLastError(), "adamw");
}

}  // namespace syne
