// What the CUDA kernels share: 16-byte loads, fp32 arithmetic, block reductions, launch checks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/kernels.h"

namespace syne {

using bf16 = __nv_bfloat16;
constexpr int kWarp = 32;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
  return __float2bfloat16_rn(value);
}

// N elements that move as one access.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T item[N];
};

// Elements of a 16-byte access.
template <typename T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> load_pack(const T* source) {
  return *reinterpret_cast<const Pack<T, N>*>(source);
}

template <typename T, int N>
__device__ __forceinline__ void store_pack(T* target, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(target) = pack;
}

// The compiler forgets what it has unpacked of a 16-byte pack, which takes half the registers of the unpacked values.
template <typename T, int N>
__device__ __forceinline__ void keep_packed(Pack<T, N>& pack) {
  auto* words = reinterpret_cast<unsigned*>(&pack);
#pragma unroll
  for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(words[i]));
}

// N elements as floats, in accesses of at most 16 bytes.
template <typename T, int N>
__device__ __forceinline__ Pack<float, N> load_floats(const T* source) {
  constexpr int kPart = N < kWide<T> ? N : kWide<T>;
  Pack<float, N> floats;
#pragma unroll
  for (int part = 0; part < N; part += kPart) {
    auto pack = load_pack<T, kPart>(source + part);
#pragma unroll
    for (int i = 0; i < kPart; ++i) floats.item[part + i] = to_float(pack.item[i]);
  }
  return floats;
}

template <typename T, int N>
__device__ __forceinline__ void store_floats(T* target, const Pack<float, N>& floats) {
  constexpr int kPart = N < kWide<T> ? N : kWide<T>;
#pragma unroll
  for (int part = 0; part < N; part += kPart) {
    Pack<T, kPart> pack;
#pragma unroll
    for (int i = 0; i < kPart; ++i) pack.item[i] = from_float<T>(floats.item[part + i]);
    store_pack<T, kPart>(target + part, pack);
  }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// Sum over the block of whole warps, the same in every thread; `shared` holds one float a warp, and nobody may still
// be reading it.
__device__ __forceinline__ float block_sum_unguarded(float value, float* shared) {
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  value = warp_sum(value);
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? shared[lane] : 0.0f);
}

// The same, safe to call repeatedly with one `shared`.
__device__ __forceinline__ float block_sum(float value, float* shared) {
  __syncthreads();
  return block_sum_unguarded(value, shared);
}

inline bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

template <typename... Pointers>
bool all_aligned(Pointers... pointers) {
  return (aligned(pointers) && ...);
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

inline int multiprocessors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}

// Blocks for a grid-stride loop over `items` with `threads` a block: enough to fill the device, no more.
inline int grid_for(int64_t items, int threads) {
  int64_t wanted = (items + threads - 1) / threads, most = static_cast<int64_t>(multiprocessors()) * 16;
  return static_cast<int>(wanted < most ? (wanted > 0 ? wanted : 1) : most);
}

}  // namespace syne
