// Statistics and gradient of a chunk of logits; cpu/cross_entropy.cpp says what they are. One block a row.
//
// A row is larger than what a block can keep, so both together read it twice. The block has all threads that a
// multiprocessor gives to a block, with more registers than would let a second one run beside it, and goes backwards
// the second time: what it read last is still in the first-level cache, and the rows of all blocks in the second.
#include "cuda/common.cuh"

namespace syne {
namespace {

constexpr int kThreads = 1024;
constexpr int kPacks = 4;  // asked for at once

// A maximum and the sum of exp(x - maximum): both of two pieces at once. Of no elements: -inf and 0. NaN is a sum of
// NaN, which every merge keeps; it never is a maximum.
struct Softmax {
  float maximum, sum;
};

// exp(-inf - -inf) would be NaN.
__device__ __forceinline__ float finite_base(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

__device__ __forceinline__ Softmax merge(Softmax a, Softmax b) {
  float maximum = fmaxf(a.maximum, b.maximum), base = finite_base(maximum);
  return {maximum, a.sum * __expf(a.maximum - base) + b.sum * __expf(b.maximum - base)};
}

__device__ __forceinline__ Softmax warp_merge(Softmax value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    Softmax other{__shfl_xor_sync(0xffffffffu, value.maximum, offset), __shfl_xor_sync(0xffffffffu, value.sum, offset)};
    value = merge(value, other);
  }
  return value;
}

template <typename T, int N, int P>
__device__ __forceinline__ Softmax softmax_of(const Pack<T, N> (&packs)[P]) {
  Softmax piece{-INFINITY, 0.0f};
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) piece.maximum = fmaxf(piece.maximum, to_float(packs[p].item[i]));
  float base = finite_base(piece.maximum);
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int i = 0; i < N; ++i) piece.sum += __expf(to_float(packs[p].item[i]) - base);
  return piece;
}

// Columns that the block reads at a time, in kPacks packs a thread.
template <int N>
constexpr int kGroup = kThreads * N * kPacks;

// The packs of a thread in the group that starts at `group`; columns from `whole` on are `fill`.
template <typename T, int N>
__device__ __forceinline__ void load_group(const T* values, int64_t group, int64_t whole, T fill,
                                           Pack<T, N> (&packs)[kPacks]) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    int64_t column = group + (p * kThreads + static_cast<int>(threadIdx.x)) * N;
#pragma unroll
    for (int i = 0; i < N; ++i) packs[p].item[i] = fill;
    if (column < whole) packs[p] = load_pack<T, N>(values + column);
  }
}

// The statistics of a row, in every thread.
template <typename T, int N>
__device__ __forceinline__ Softmax row_statistics(const T* values, int64_t columns) {
  __shared__ Softmax shared[kThreads / kWarp];
  Softmax own{-INFINITY, 0.0f};
  int64_t whole = columns / N * N;
  for (int64_t group = 0; group < whole; group += kGroup<N>) {
    Pack<T, N> packs[kPacks];
    load_group<T, N>(values, group, whole, from_float<T>(-INFINITY), packs);
    own = merge(own, softmax_of(packs));
  }
  for (int64_t column = whole + threadIdx.x; column < columns; column += kThreads) {
    Pack<T, 1> single[1] = {{{values[column]}}};
    own = merge(own, softmax_of(single));
  }
  own = warp_merge(own);
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (lane == 0) shared[warp] = own;
  __syncthreads();
  static_assert(kThreads == kWarp * kWarp, "a lane for each warp");
  return warp_merge(shared[lane]);
}

template <typename T, int N>
__device__ __forceinline__ void row_gradient(T* values, const CrossEntropyRows& rows, float scale, int64_t target,
                                             Softmax softmax) {
  float factor = scale / softmax.sum, base = finite_base(softmax.maximum);
  auto gradient = [&](float value, int64_t column) {
    // A masked row has gradient zero, also where its logits are not finite.
    if (scale == 0.0f || column >= rows.valid) return 0.0f;
    return __expf(value - base) * factor - (column == target ? scale : 0.0f);
  };
  int64_t whole = rows.columns / N * N;
  for (int64_t column = whole + threadIdx.x; column < rows.columns; column += kThreads)
    values[column] = from_float<T>(gradient(to_float(values[column]), column));
  for (int64_t group = (whole - 1) / kGroup<N> * kGroup<N>; group >= 0; group -= kGroup<N>) {
    Pack<T, N> packs[kPacks];
    load_group<T, N>(values, group, whole, T{}, packs);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      int64_t column = group + (p * kThreads + static_cast<int>(threadIdx.x)) * N;
      if (column >= whole) break;
#pragma unroll
      for (int i = 0; i < N; ++i)
        packs[p].item[i] = from_float<T>(gradient(to_float(packs[p].item[i]), column + i));
      store_pack<T, N>(values + column, packs[p]);
    }
  }
}

template <typename T, int N, CrossEntropyPass kPass>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(T* logits, CrossEntropyRows rows) {
  int64_t row = blockIdx.x, target = rows.targets[row];
  T* values = logits + row * rows.stride;
  Softmax softmax{};
  if (kPass == kGradient) {
    softmax = {rows.max[row], rows.sum[row]};
  } else {
    softmax = row_statistics<T, N>(values, rows.valid);
    if (threadIdx.x == 0) {
      rows.max[row] = softmax.maximum;
      rows.sum[row] = softmax.sum;
      rows.target_logit[row] = target >= 0 && target < rows.valid ? to_float(values[target]) : 0.0f;
    }
    __syncthreads();  // the target's logit is read
  }
  if (kPass != kStats) row_gradient<T, N>(values, rows, rows.scale[row], target, softmax);
}

template <typename T, int N>
void run(void* logits, CrossEntropyPass pass, int64_t count, const CrossEntropyRows& rows, cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(count);
  auto* values = static_cast<T*>(logits);
  auto kernel = pass == kStats      ? cross_entropy_kernel<T, N, kStats>
                : pass == kGradient ? cross_entropy_kernel<T, N, kGradient>
                                    : cross_entropy_kernel<T, N, kBoth>;
  kernel<<<blocks, kThreads, 0, stream>>>(values, rows);
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
