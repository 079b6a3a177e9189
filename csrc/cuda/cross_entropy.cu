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
__global__ void stats_kernel(const T* logits, CrossEntropyRows rows) {
  __shared__ Softmax shared[kThreads / kWarp];
  int64_t row = blockIdx.x, columns = rows.valid;
  const T* values = logits + row * rows.stride;
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
    int64_t target = rows.targets[row];
    rows.max[row] = own.maximum;
    rows.sum[row] = own.sum;
    rows.target_logit[row] = target >= 0 && target < columns ? to_float(values[target]) : 0.0f;
  }
}

template <typename T, int N>
__global__ void gradient_kernel(T* logits, CrossEntropyRows rows) {
  int64_t row = blockIdx.x, columns = rows.columns, valid = rows.valid, target = rows.targets[row];
  T* values = logits + row * rows.stride;
  float scale = rows.scale[row], maximum = rows.max[row], factor = scale / rows.sum[row];
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

template <typename T, int N>
void run(void* logits, CrossEntropyPass pass, int64_t count, const CrossEntropyRows& rows, cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(count);
  T* values = static_cast<T*>(logits);
  // Two passes also for both: a row is larger than what a block can keep.
  if (pass != kGradient) stats_kernel<T, N><<<blocks, kThreads, 0, stream>>>(values, rows);
  if (pass != kStats) gradient_kernel<T, N><<<blocks, kThreads, 0, stream>>>(values, rows);
  check(cudaGetLastError(), "cross_entropy");
}

template <typename T>
bool wide(const void* logits, int64_t stride) {
  return aligned(logits) && stride % kWide<T> == 0;
}

}  // namespace

void cross_entropy(DType dtype, void* logits, CrossEntropyPass pass, int64_t count, const CrossEntropyRows& rows,
                   cudaStream_t stream) {
  if (count == 0) return;
  if (dtype == kFloat32)
    (wide<float>(logits, rows.stride) ? run<float, kWide<float>> : run<float, 1>)(logits, pass, count, rows, stream);
  else
    (wide<bf16>(logits, rows.stride) ? run<bf16, kWide<bf16>> : run<bf16, 1>)(logits, pass, count, rows, stream);
}

}  // namespace syne
