// SwiGLU on the concatenated gate and up projections; the formulas stand in cpu/swiglu.cpp.
#include "cuda/common.cuh"

namespace syne {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

template <typename T, int N>
__global__ void forward_kernel(const T* x, T* y, int64_t items, int64_t width) {
  int64_t packs = width / N;
  for (int64_t item = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    int64_t row = item / packs, column = item % packs * N;
    auto gate = load_pack<T, N>(x + row * 2 * width + column);
    auto up = load_pack<T, N>(x + row * 2 * width + width + column);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float g = to_float(gate.item[i]);
      gate.item[i] = from_float<T>(g * sigmoid(g) * to_float(up.item[i]));
    }
    store_pack<T, N>(y + row * width + column, gate);
  }
}

template <typename T, int N>
__global__ void backward_kernel(const T* dy, const T* x, T* dx, int64_t items, int64_t width) {
  int64_t packs = width / N;
  for (int64_t item = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    int64_t row = item / packs, column = item % packs * N;
    auto gate = load_pack<T, N>(x + row * 2 * width + column);
    auto up = load_pack<T, N>(x + row * 2 * width + width + column);
    auto grad = load_pack<T, N>(dy + row * width + column);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float g = to_float(gate.item[i]), d = to_float(grad.item[i]), s = sigmoid(g);
      gate.item[i] = from_float<T>(d * to_float(up.item[i]) * s * (1.0f + g * (1.0f - s)));
      up.item[i] = from_float<T>(d * g * s);
    }
    store_pack<T, N>(dx + row * 2 * width + column, gate);
    store_pack<T, N>(dx + row * 2 * width + width + column, up);
  }
}

template <typename T, int N>
void run_forward(const void* x, void* y, int64_t rows, int64_t width, cudaStream_t stream) {
  int64_t items = rows * (width / N);
  forward_kernel<T, N><<<grid_for(items, kThreads), kThreads, 0, stream>>>(static_cast<const T*>(x),
                                                                          static_cast<T*>(y), items, width);
  check(cudaGetLastError(), "swiglu_forward");
}

template <typename T, int N>
void run_backward(const void* dy, const void* x, void* dx, int64_t rows, int64_t width, cudaStream_t stream) {
  int64_t items = rows * (width / N);
  backward_kernel<T, N><<<grid_for(items, kThreads), kThreads, 0, stream>>>(
      static_cast<const T*>(dy), static_cast<const T*>(x), static_cast<T*>(dx), items, width);
  check(cudaGetLastError(), "swiglu_backward");
}

}  // namespace

void swiglu_forward(DType dtype, const void* x, void* y, int64_t rows, int64_t width, cudaStream_t stream) {
  if (rows * width == 0) return;
  bool wide = all_aligned(x, y);
  if (dtype == kFloat32)
    (wide && width % kWide<float> == 0 ? run_forward<float, kWide<float>> : run_forward<float, 1>)(x, y, rows, width,
                                                                                                  stream);
  else
    (wide && width % kWide<bf16> == 0 ? run_forward<bf16, kWide<bf16>> : run_forward<bf16, 1>)(x, y, rows, width,
                                                                                              stream);
}

void swiglu_backward(DType dtype, const void* dy, const void* x, void* dx, int64_t rows, int64_t width,
                     cudaStream_t stream) {
  if (rows * width == 0) return;
  bool wide = all_aligned(dy, x, dx);
  if (dtype == kFloat32)
    (wide && width % kWide<float> == 0 ? run_backward<float, kWide<float>> : run_backward<float, 1>)(dy, x, dx, rows,
                                                                                                    width, stream);
  else
    (wide && width % kWide<bf16> == 0 ? run_backward<bf16, kWide<bf16>> : run_backward<bf16, 1>)(dy, x, dx, rows,
                                                                                                width, stream);
}

}  // namespace syne
