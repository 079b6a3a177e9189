// Stands in for CUDA's header: the parts of the device language that C++ lacks, on the scheduler of scheduler.cpp.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

using std::isfinite;
using std::isinf;
using std::isnan;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 {
  float x, y;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host_cuda {

// What stands between <<< and >>>.
struct Configuration {
  dim3 grid, block;
  std::size_t shared_bytes;
  cudaStream_t stream;
  Configuration(dim3 grid, dim3 block, std::size_t shared_bytes = 0, cudaStream_t stream = nullptr)
      : grid(grid), block(block), shared_bytes(shared_bytes), stream(stream) {}
};

void launch(const Configuration& configuration, const std::function<void()>& kernel);
// The block's own copy of the __shared__ variable that `key` stands for; of 0 bytes, what the launch asked for.
void* shared_memory(const void* key, std::size_t bytes);
void block_barrier();
void warp_barrier(unsigned mask);
// The `bits` of the lane `source`, which is among the lanes of `mask`; all of them call it together.
std::uint64_t exchange(unsigned mask, std::uint64_t bits, int source);
int lane();
// At the head of a kernel that declares the largest block it can be launched with.
void require_block_of_at_most(unsigned threads);
// Between them, memory is changed as by one instruction.
void begin_atomic(const void* address);
void end_atomic(const void* address);

template <typename To, typename From>
To bit_cast(From value) {
  To result{};
  std::memcpy(&result, &value, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  return result;
}

}  // namespace host_cuda

struct cudaFuncAttributes {};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cudaSuccess;
}

inline void __syncthreads() { host_cuda::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { host_cuda::warp_barrier(mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
  return host_cuda::bit_cast<T>(host_cuda::exchange(mask, host_cuda::bit_cast<std::uint64_t>(value), source % 32));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  return __shfl_sync(mask, value, host_cuda::lane() ^ lane_mask);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  int source = host_cuda::lane() + static_cast<int>(delta);
  return __shfl_sync(mask, value, source < 32 ? source : host_cuda::lane());
}

template <typename T>
T atomicAdd(T* target, T value) {
  host_cuda::begin_atomic(target);
  T before = *target;
  *target = before + value;
  host_cuda::end_atomic(target);
  return before;
}

template <typename T>
T atomicMax(T* target, T value) {
  host_cuda::begin_atomic(target);
  T before = *target;
  if (value > before) *target = value;
  host_cuda::end_atomic(target);
  return before;
}

template <typename T>
T __ldg(const T* source) {
  return *source;
}
inline unsigned __float_as_uint(float value) { return host_cuda::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return host_cuda::bit_cast<float>(bits); }
// Four of the eight bytes of `low` and `high`, which the digits of `selector` number, the lowest digit first.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  std::uint64_t both = std::uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(both >> 8 * (selector >> 4 * i & 7u) & 0xffu) << 8 * i;
  return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(std::uint64_t{a} * b >> 32); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
// ex2.approx.ftz.f32 of x * log2(e), which is rounded to fp32; a subnormal result is flushed to zero.
inline float __expf(float x) {
  float power = exp2f(x * 1.4426950408889634f);
  return power < 1.17549435e-38f ? 0.0f : power;
}
