// Statistics and gradient of a chunk of logits; cpu/cross_entropy.cpp says what they are. One block a row.
#include "cuda/common.cuh"

namespace syne {
namespace {

constexpr int kThreads = 512;

// A maximum and the sum of exp(x - maximum): both of two pieces at once.
struct Softmax {
  float maximum, sum;
};

__device__ __forceinline__ Softmax merge(Softmax a, Softmax b) {
  float maximum = fmaxf(a.maximum, b.maximum);
  // A piece without elements has maximum -inf, and exp(-inf - -inf) would be NaN.
  float left = a.maximum == -INFINITY ? 0.0f : a.sum * __expf(a.maximum - maximum);
  float right = b.maximum == -INFINITY ? 0.0f : b.sum * __expf(b.maximum - maximum);
  return {maximum, left + right};
}

__device__ __forceinline__ Softmax warp_merge(Softmax value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Softmax other{__shfl_xor_sync(0xffffffffu, value.maximum, offset), __shfl_xor_sync(0xffffffffu, value.sum, offset)};
    value = merge(value, other);
  }
  return value;
}

template <typename T, int N>
__global__ void stats_kernel(const T* logits, const int64_t* targets, float* row_max, float* row_sum,
                             float* target_logit, int64_t columns, int64_t stride) {
  __shared__ Softmax shared[kThreads / kWarp];
  int64_t row = blockIdx.x;
  const T* values = logits + row * stride;
  Softmax own{-INFINITY, 0.0f};
  int64_t whole = columns / N * N;
  for (int64_t column = threadIdx.x * N; column < whole; column += kThreads * N) {
    auto pack = load_pack<T, N>(values + column);
    Softmax piece{to_float(pack.item[0]), 0.0f};
#pragma unroll
    for (int i = 1; i < N; ++i) piece.maximum = fmaxf(piece.maximum, to_float(pack.item[i]));
    if (piece.maximum > -INFINITY) {
#pragma unroll
      for (int i = 0; i < N; ++i) piece.sum += __expf(to_float(pack.item[i]) - piece.maximum);
    }
    own = merge(own, piece);
  }
  for (int64_t column = whole + threadIdx.x; column < columns; column += kThreads)
    own = merge(own, {to_float(values[column]), 1.0f});
  own = warp_merge(own);
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (lane == 0) shared[warp] = own;
  __syncthreads();
  if (warp != 0) return;
  own = warp_merge(lane < kThreads / kWarp ? shared[lane] : Softmax{-INFINITY, 0.0f});
  if (lane == 0) {
    int64_t target = targets[row];
    row_max[row] = own.maximum;
    row_sum[row] = own.sum;
    target_logit[row] = target >= 0 && target < columns ? to_float(values[target]) : 0.0f;
  }
}

template <typename T, int N>
__global__ void gradient_kernel(T* logits, const int64_t* targets, const float* row_max, const float* row_sum,
                                const float* row_scale, int64_t columns, int64_t valid, int64_t stride) {
  int64_t row = blockIdx.x;
  T* values = logits + row * stride;
  float scale = row_scale[row], maximum = row_max[row], factor = scale / row_sum[row];
  int64_t target = targets[row];
  int64_t whole = columns / N * N;
  auto gradient = [&](float value, int64_t column) {
    // A masked row has gradient zero, also where its logits are not finite.
    if (scale == 0.0f || column >= valid) return 0.0f;
    return __expf(value - maximum) * factor - (column == target ? scale : 0.0f);
  };
  for (int64_t column = threadIdx.x * N; column < whole; column += kThreads * N) {
    auto pack = load_pack<T, N>(values + column);
#pragma unroll
    for (int i = 0; i < N; ++i) pack.item[i] = from_float<T>(gradient(to_float(pack.item[i]), column + i));
    store_pack<T, N>(values + column, pack);
  }
  for (int64_t column = whole + threadIdx.x; column < columns; column += kThreads)
    values[column] = from_float<T>(gradient(to_float(values[column]), column));
}

template <typename T>
bool wide(const void* logits, int64_t stride) {
  return aligned(logits) && stride % kWide<T> == 0;
}

template <typename T, int N>
void run_stats(const void* logits, const int64_t* targets, float* row_max, float* row_sum, float* target_logit,
               int64_t rows, int64_t columns, int64_t stride, cudaStream_t stream) {
  stats_kernel<T, N><<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(
      static_cast<const T*>(logits), targets, row_max, row_sum, target_logit, columns, stride);
  check(cudaGetLastError(), "cross_entropy_stats");
}

template <typename T, int N>
void run_gradient(void* logits, const int64_t* targets, const float* row_max, const float* row_sum,
                  const float* row_scale, int64_t rows, int64_t columns, int64_t valid, int64_t stride,
                  cudaStream_t stream) {
  gradient_kernel<T, N><<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(
      static_cast<T*>(logits), targets, row_max, row_sum, row_scale, columns, valid, stride);
  check(cudaGetLastError(), "cross_entropy_gradient");
}

}  // namespace

void cross_entropy_stats(DType dtype, const void* logits, const int64_t* targets, float* row_max, float* row_sum,
                         float* target_logit, int64_t rows, int64_t valid_columns, int64_t row_stride,
                         cudaStream_t stream) {
  if (rows == 0) return;
  if (dtype == kFloat32)
    (wide<float>(logits, row_stride) ? run_stats<float, kWide<float>> : run_stats<float, 1>)(
        logits, targets, row_max, row_sum, target_logit, rows, valid_columns, row_stride, stream);
  else
    (wide<bf16>(logits, row_stride) ? run_stats<bf16, kWide<bf16>> : run_stats<bf16, 1>)(
        logits, targets, row_max, row_sum, target_logit, rows, valid_columns, row_stride, stream);
}

void cross_entropy_gradient(DType dtype, void* logits, const int64_t* targets, const float* row_max,
                            const float* row_sum, const float* row_scale, int64_t rows, int64_t columns,
                            int64_t valid_columns, int64_t row_stride, cudaStream_t stream) {
  if (rows == 0) return;
  if (dtype == kFloat32)
    (wide<float>(logits, row_stride) ? run_gradient<float, kWide<float>> : run_gradient<float, 1>)(
        logits, targets, row_max, row_sum, row_scale, rows, columns, valid_columns, row_stride, stream);
  else
    (wide<bf16>(logits, row_stride) ? run_gradient<bf16, kWide<bf16>> : run_gradient<bf16, 1>)(
        logits, targets, row_max, row_sum, row_scale, rows, columns, valid_columns, row_stride, stream);
}

}  // namespace syne
