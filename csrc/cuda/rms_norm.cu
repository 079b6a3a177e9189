// RMSNorm with the residual addition in front of it; the formulas stand in cpu/rms_norm.cpp.
//
// A block holds a row in registers. Backward, a block walks over many rows with the same columns in the same threads,
// so that its part of the weight's gradient stays in registers; the caller adds the parts in a fixed order.
#include "cuda/common.cuh"

namespace syne {
namespace {

// Packs of one thread; 16-byte packs leave registers for 4, single elements are for odd widths.
template <int N>
constexpr int kPacks = N > 1 ? 4 : 32;
constexpr int kMaxThreads = 1024;

template <typename T, int N>
__global__ void forward_kernel(const T* x, const T* residual, const T* weight, T* summed, T* y, float* rstd,
                               int64_t width, float eps) {
  __shared__ float shared[kWarp];
  int64_t row = blockIdx.x;
  float values[kPacks<N>][N];
  float squares = 0.0f;
#pragma unroll
  for (int p = 0; p < kPacks<N>; ++p) {
    int64_t column = (static_cast<int64_t>(p) * blockDim.x + threadIdx.x) * N;
    if (column >= width) break;
    auto pack = load_pack<T, N>(x + row * width + column);
    if (residual) {
      auto other = load_pack<T, N>(residual + row * width + column);
#pragma unroll
      for (int i = 0; i < N; ++i) pack.item[i] = from_float<T>(to_float(pack.item[i]) + to_float(other.item[i]));
      store_pack<T, N>(summed + row * width + column, pack);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      values[p][i] = to_float(pack.item[i]);
      squares += values[p][i] * values[p][i];
    }
  }
  float scale = 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll
  for (int p = 0; p < kPacks<N>; ++p) {
    int64_t column = (static_cast<int64_t>(p) * blockDim.x + threadIdx.x) * N;
    if (column >= width) break;
    auto w = load_pack<T, N>(weight + column);
    Pack<T, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) out.item[i] = from_float<T>(values[p][i] * scale * to_float(w.item[i]));
    store_pack<T, N>(y + row * width + column, out);
  }
}

template <typename T, int N>
__global__ void backward_kernel(const T* dy, const T* dsummed, const T* x, const T* weight, const float* rstd, T* dx,
                                float* dweight_parts, int64_t rows, int64_t width) {
  __shared__ float shared[kWarp];
  float dweight[kPacks<N>][N];
#pragma unroll
  for (int p = 0; p < kPacks<N>; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) dweight[p][i] = 0.0f;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float scale = rstd[row], dot = 0.0f;
#pragma unroll
    for (int p = 0; p < kPacks<N>; ++p) {
      int64_t column = (static_cast<int64_t>(p) * blockDim.x + threadIdx.x) * N;
      if (column >= width) break;
      auto g = load_pack<T, N>(dy + row * width + column);
      auto v = load_pack<T, N>(x + row * width + column);
      auto w = load_pack<T, N>(weight + column);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float grad = to_float(g.item[i]), value = to_float(v.item[i]);
        dot += grad * to_float(w.item[i]) * value;
        dweight[p][i] += grad * value * scale;
      }
    }
    float mean = block_sum(dot, shared) * scale * scale / static_cast<float>(width);
#pragma unroll
    for (int p = 0; p < kPacks<N>; ++p) {
      int64_t column = (static_cast<int64_t>(p) * blockDim.x + threadIdx.x) * N;
      if (column >= width) break;
      // The second read of the row comes from the cache.
      auto g = load_pack<T, N>(dy + row * width + column);
      auto v = load_pack<T, N>(x + row * width + column);
      auto w = load_pack<T, N>(weight + column);
      Pack<T, N> extra{}, out;
      if (dsummed) extra = load_pack<T, N>(dsummed + row * width + column);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float grad = scale * (to_float(g.item[i]) * to_float(w.item[i]) - to_float(v.item[i]) * mean);
        out.item[i] = from_float<T>(dsummed ? grad + to_float(extra.item[i]) : grad);
      }
      store_pack<T, N>(dx + row * width + column, out);
    }
  }
#pragma unroll
  for (int p = 0; p < kPacks<N>; ++p) {
    int64_t column = (static_cast<int64_t>(p) * blockDim.x + threadIdx.x) * N;
    if (column >= width) break;
#pragma unroll
    for (int i = 0; i < N; ++i) dweight_parts[blockIdx.x * width + column + i] = dweight[p][i];
  }
}

template <int N>
int threads_for(int64_t width) {
  int64_t packs = (width + N - 1) / N;
  // Wide packs: one to four a thread, at least four warps. Single elements: as many threads as there are.
  int64_t threads = N > 1 ? (packs + 1) / 2 : packs;
  threads = (threads + kWarp - 1) / kWarp * kWarp;
  if (threads < 128) threads = 128;
  if (threads > kMaxThreads) threads = kMaxThreads;
  if (threads * kPacks<N> * N < width)
    throw std::invalid_argument("rms_norm: the last dimension of " + std::to_string(width) + " is too large");
  return static_cast<int>(threads);
}

template <typename T, int N>
void run_forward(const void* x, const void* residual, const void* weight, void* summed, void* y, float* rstd,
                 int64_t rows, int64_t width, float eps, cudaStream_t stream) {
  forward_kernel<T, N><<<static_cast<unsigned>(rows), threads_for<N>(width), 0, stream>>>(
      static_cast<const T*>(x), static_cast<const T*>(residual), static_cast<const T*>(weight),
      static_cast<T*>(summed), static_cast<T*>(y), rstd, width, eps);
  check(cudaGetLastError(), "rms_norm_forward");
}

template <typename T, int N>
void run_backward(const void* dy, const void* dsummed, const void* x, const void* weight, const float* rstd, void* dx,
                  float* dweight_parts, int64_t parts, int64_t rows, int64_t width, cudaStream_t stream) {
  backward_kernel<T, N><<<static_cast<unsigned>(parts), threads_for<N>(width), 0, stream>>>(
      static_cast<const T*>(dy), static_cast<const T*>(dsummed), static_cast<const T*>(x),
      static_cast<const T*>(weight), rstd, static_cast<T*>(dx), dweight_parts, rows, width);
  check(cudaGetLastError(), "rms_norm_backward");
}

}  // namespace

void rms_norm_forward(DType dtype, const void* x, const void* residual, const void* weight, void* summed, void* y,
                      float* rstd, int64_t rows, int64_t width, float eps, cudaStream_t stream) {
  if (rows == 0) return;
  bool wide = all_aligned(x, residual, weight, summed, y);
  if (dtype == kFloat32)
    (wide && width % kWide<float> == 0 && width <= kMaxThreads * 4 * kWide<float> ? run_forward<float, kWide<float>>
                                                                                  : run_forward<float, 1>)(
        x, residual, weight, summed, y, rstd, rows, width, eps, stream);
  else
    (wide && width % kWide<bf16> == 0 && width <= kMaxThreads * 4 * kWide<bf16> ? run_forward<bf16, kWide<bf16>>
                                                                                : run_forward<bf16, 1>)(
        x, residual, weight, summed, y, rstd, rows, width, eps, stream);
}

void rms_norm_backward(DType dtype, const void* dy, const void* dsummed, const void* x, const void* weight,
                       const float* rstd, void* dx, float* dweight_parts, int64_t parts, int64_t rows,
                       int64_t width, cudaStream_t stream) {
  bool wide = all_aligned(dy, dsummed, x, weight, dx);
  if (dtype == kFloat32)
    (wide && width % kWide<float> == 0 && width <= kMaxThreads * 4 * kWide<float> ? run_backward<float, kWide<float>>
                                                                                  : run_backward<float, 1>)(
        dy, dsummed, x, weight, rstd, dx, dweight_parts, parts, rows, width, stream);
  else
    (wide && width % kWide<bf16> == 0 && width <= kMaxThreads * 4 * kWide<bf16> ? run_backward<bf16, kWide<bf16>>
                                                                                : run_backward<bf16, 1>)(
        dy, dsummed, x, weight, rstd, dx, dweight_parts, parts, rows, width, stream);
}

}  // namespace syne
