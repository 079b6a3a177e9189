// Adds a weight gradient to the fp32 main gradient.
#include "cuda/common.cuh"

namespace syne {
namespace {

constexpr int kThreads = 256;

template <typename T, int N>
__global__ void accumulate_kernel(float* target, const T* addend, int64_t count, const float* scale_pointer) {
  float scale = scale_pointer ? *scale_pointer : 1.0f;
  int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * N;
  int64_t whole = count / N * N;
  int64_t first = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) * N;
  for (int64_t index = first; index < whole; index += step) {
    auto sum = load_floats<float, N>(target + index), more = load_floats<T, N>(addend + index);
#pragma unroll
    for (int i = 0; i < N; ++i) sum.item[i] += scale * more.item[i];
    store_floats<float, N>(target + index, sum);
  }
  if (first == 0)
    for (int64_t index = whole; index < count; ++index) target[index] += scale * to_float(addend[index]);
}

template <typename T, int N>
void run(float* target, const void* addend, int64_t count, const float* scale, cudaStream_t stream) {
  accumulate_kernel<T, N><<<grid_for(count / N, kThreads), kThreads, 0, stream>>>(
      target, static_cast<const T*>(addend), count, scale);
  check(cudaGetLastError(), "accumulate");
}

}  // namespace

void accumulate(DType dtype, float* target, const void* addend, int64_t count, const float* scale,
                cudaStream_t stream) {
  if (count == 0) return;
  bool wide = all_aligned(target, addend);
  if (dtype == kFloat32)
    (wide ? run<float, kWide<float>> : run<float, 1>)(target, addend, count, scale, stream);
  else
    (wide ? run<bf16, kWide<bf16>> : run<bf16, 1>)(target, addend, count, scale, stream);
}

}  // namespace syne
