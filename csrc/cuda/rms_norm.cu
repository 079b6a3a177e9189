// RMSNorm with the residual addition in front of it; the formulas stand in cpu/rms_norm.cpp.
//
// A block holds a row in registers, P packs of N elements a thread, and asks for all of it at once. Backward, a block
// walks over many rows with the same columns in the same threads, so that its part of the weight's gradient stays in
// registers; the caller adds the parts in a fixed order. Rows that are not made of packs, or too long, are read twice.
#include "cuda/common.cuh"

namespace syne {
namespace {

// At most 64 registers a thread then: two blocks of 512 threads fit a multiprocessor.
constexpr int kMaxThreads = 1024;
constexpr int kMaxPacks = 2;
constexpr int kThreadsOfAnyRow = 512;

template <typename T, int N, int P>
__global__ void __launch_bounds__(kMaxThreads)
    forward_kernel(const T* x, const T* residual, const T* weight, T* summed, T* y, float* rstd, int64_t width,
                   float eps) {
  __shared__ float shared[kWarp];
  int64_t row = blockIdx.x, offset = row * width;
  int columns = static_cast<int>(width), step = blockDim.x * N, first = threadIdx.x * N;
  Pack<T, N> values[P], others[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    int column = first + p * step;
    if (column < columns) values[p] = load_pack<T, N>(x + offset + column);
    if (column < columns && residual) others[p] = load_pack<T, N>(residual + offset + column);
  }
  float squares = 0.0f;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    int column = first + p * step;
    if (column >= columns) break;
    if (residual) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        values[p].item[i] = from_float<T>(to_float(values[p].item[i]) + to_float(others[p].item[i]));
      store_pack<T, N>(summed + offset + column, values[p]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) squares += to_float(values[p].item[i]) * to_float(values[p].item[i]);
  }
  float scale = 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) rstd[row] = scale;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    int column = first + p * step;
    if (column >= columns) break;
    auto w = load_pack<T, N>(weight + column);
#pragma unroll
    for (int i = 0; i < N; ++i)
      values[p].item[i] = from_float<T>(to_float(values[p].item[i]) * scale * to_float(w.item[i]));
    store_pack<T, N>(y + offset + column, values[p]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreadsOfAnyRow)
    forward_any_kernel(const T* x, const T* residual, const T* weight, T* summed, T* y, float* rstd, int64_t width,
                       float eps) {
  __shared__ float shared[kWarp];
  int64_t row = blockIdx.x, offset = row * width;
  float squares = 0.0f;
  for (int64_t column = threadIdx.x; column < width; column += blockDim.x) {
    T value = x[offset + column];
    if (residual) summed[offset + column] = value = from_float<T>(to_float(value) + to_float(residual[offset + column]));
    squares += to_float(value) * to_float(value);
  }
  float scale = 1.0f / sqrtf(block_sum(squares, shared) / static_cast<float>(width) + eps);
  if (threadIdx.x == 0) rstd[row] = scale;
  const T* values = (residual ? summed : x) + offset;
  for (int64_t column = threadIdx.x; column < width; column += blockDim.x)
    y[offset + column] = from_float<T>(to_float(values[column]) * scale * to_float(weight[column]));
}

template <typename T, int N, int P>
__global__ void __launch_bounds__(kMaxThreads)
    backward_kernel(const T* dy, const T* dsummed, const T* x, const T* weight, const float* rstd, T* dx,
                    float* dweight_parts, int64_t rows, int64_t width) {
  __shared__ float shared[2][kWarp];
  int columns = static_cast<int>(width), step = blockDim.x * N, first = threadIdx.x * N;
  float dweight[P][N] = {};
  int turn = 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    int64_t offset = row * width;
    Pack<T, N> grads[P], values[P], others[P];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      int column = first + p * step;
      if (column >= columns) break;
      grads[p] = load_pack<T, N>(dy + offset + column);
      values[p] = load_pack<T, N>(x + offset + column);
      if (dsummed) others[p] = load_pack<T, N>(dsummed + offset + column);
    }
    float scale = rstd[row], dot = 0.0f;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      int column = first + p * step;
      if (column >= columns) break;
      auto w = load_pack<T, N>(weight + column);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float grad = to_float(grads[p].item[i]), value = to_float(values[p].item[i]);
        dot += grad * to_float(w.item[i]) * value;
        dweight[p][i] += grad * value * scale;
      }
    }
    // Two rows' sums take turns in shared memory, so one barrier a row is enough.
    float mean = block_sum_unguarded(dot, shared[turn]) * scale * scale / static_cast<float>(width);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      int column = first + p * step;
      if (column >= columns) break;
      keep_packed(grads[p]);
      keep_packed(values[p]);
      auto w = load_pack<T, N>(weight + column);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        float grad = scale * (to_float(grads[p].item[i]) * to_float(w.item[i]) - to_float(values[p].item[i]) * mean);
        values[p].item[i] = from_float<T>(dsummed ? grad + to_float(others[p].item[i]) : grad);
      }
      store_pack<T, N>(dx + offset + column, values[p]);
    }
  }
#pragma unroll
  for (int p = 0; p < P; ++p) {
    int column = first + p * step;
    if (column >= columns) break;
#pragma unroll
    for (int i = 0; i < N; ++i) dweight_parts[blockIdx.x * width + column + i] = dweight[p][i];
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreadsOfAnyRow)
    backward_any_kernel(const T* dy, const T* dsummed, const T* x, const T* weight, const float* rstd, T* dx,
                        float* dweight_parts, int64_t rows, int64_t width) {
  __shared__ float shared[kWarp];
  float* dweight = dweight_parts + blockIdx.x * width;
  for (int64_t column = threadIdx.x; column < width; column += blockDim.x) dweight[column] = 0.0f;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    int64_t offset = row * width;
    float scale = rstd[row], dot = 0.0f;
    for (int64_t column = threadIdx.x; column < width; column += blockDim.x) {
      float grad = to_float(dy[offset + column]), value = to_float(x[offset + column]);
      dot += grad * to_float(weight[column]) * value;
      dweight[column] += grad * value * scale;
    }
    float mean = block_sum(dot, shared) * scale * scale / static_cast<float>(width);
    for (int64_t column = threadIdx.x; column < width; column += blockDim.x) {
      float grad = to_float(dy[offset + column]) * to_float(weight[column]) - to_float(x[offset + column]) * mean;
      float other = dsummed ? to_float(dsummed[offset + column]) : 0.0f;
      dx[offset + column] = from_float<T>(grad * scale + other);
    }
  }
}

unsigned whole_warps(int64_t threads) { return static_cast<unsigned>((threads + kWarp - 1) / kWarp * kWarp); }

// Calls body(P, threads) with the packs of a thread, as a type, where a row of `width` can be held; else false.
template <typename T, typename Body>
bool with_packs(bool wide, int64_t width, const Body& body) {
  int64_t packs = width / kWide<T>;
  if (!wide || width % kWide<T> != 0 || packs > kMaxThreads * kMaxPacks) return false;
  // One pack a thread; beyond 512 threads two packs, so that two blocks still fit a multiprocessor.
  if (packs <= kMaxThreads / 2)
    body(std::integral_constant<int, 1>(), whole_warps(packs));
  else
    body(std::integral_constant<int, kMaxPacks>(), whole_warps((packs + kMaxPacks - 1) / kMaxPacks));
  return true;
}

template <typename T>
void run_forward(const void* x, const void* residual, const void* weight, void* summed, void* y, float* rstd,
                 int64_t rows, int64_t width, float eps, cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(rows);
  auto launch = [&](auto kernel, unsigned threads) {
    kernel<<<blocks, threads, 0, stream>>>(static_cast<const T*>(x), static_cast<const T*>(residual),
                                           static_cast<const T*>(weight), static_cast<T*>(summed), static_cast<T*>(y),
                                           rstd, width, eps);
  };
  bool held = with_packs<T>(all_aligned(x, residual, weight, summed, y), width, [&](auto packs, unsigned threads) {
    launch(forward_kernel<T, kWide<T>, decltype(packs)::value>, threads);
  });
  if (!held) launch(forward_any_kernel<T>, kThreadsOfAnyRow);
  check(cudaGetLastError(), "rms_norm_forward");
}

template <typename T>
void run_backward(const void* dy, const void* dsummed, const void* x, const void* weight, const float* rstd, void* dx,
                  float* dweight_parts, int64_t parts, int64_t rows, int64_t width, cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(parts);
  auto launch = [&](auto kernel, unsigned threads) {
    kernel<<<blocks, threads, 0, stream>>>(static_cast<const T*>(dy), static_cast<const T*>(dsummed),
                                           static_cast<const T*>(x), static_cast<const T*>(weight), rstd,
                                           static_cast<T*>(dx), dweight_parts, rows, width);
  };
  bool held = with_packs<T>(all_aligned(dy, dsummed, x, weight, dx), width, [&](auto packs, unsigned threads) {
    launch(backward_kernel<T, kWide<T>, decltype(packs)::value>, threads);
  });
  if (!held) launch(backward_any_kernel<T>, kThreadsOfAnyRow);
  check(cudaGetLastError(), "rms_norm_backward");
}

}  // namespace

void rms_norm_forward(DType dtype, const void* x, const void* residual, const void* weight, void* summed, void* y,
                      float* rstd, int64_t rows, int64_t width, float eps, cudaStream_t stream) {
  if (rows == 0) return;
  auto run = dtype == kFloat32 ? run_forward<float> : run_forward<bf16>;
  run(x, residual, weight, summed, y, rstd, rows, width, eps, stream);
}

void rms_norm_backward(DType dtype, const void* dy, const void* dsummed, const void* x, const void* weight,
                       const float* rstd, void* dx, float* dweight_parts, int64_t parts, int64_t rows, int64_t width,
                       cudaStream_t stream) {
  auto run = dtype == kFloat32 ? run_backward<float> : run_backward<bf16>;
  run(dy, dsummed, x, weight, rstd, dx, dweight_parts, parts, rows, width, stream);
}

}  // namespace syne
