// Rotary position embedding in place on the packed QKV projection; the formula stands in cpu/rope.cpp.
#include "cuda/common.cuh"

namespace syne {
namespace {

// One thread rotates N pairs of one head: elements [i, i + N) of its first half with those of its second half.
template <typename T, int N>
__global__ void rope_kernel(T* packed, const float* cos, const float* sin, const int64_t* positions, int64_t items,
                            int groups, int group_heads, int rotated_heads, int half, float sign) {
  int packs = half / N;
  for (int64_t item = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    int column = static_cast<int>(item % packs) * N;
    int64_t rest = item / packs;
    int head = static_cast<int>(rest % rotated_heads);
    rest /= rotated_heads;
    int group = static_cast<int>(rest % groups);
    int64_t token = rest / groups;
    const float* c = cos + positions[token] * half + column;
    const float* s = sin + positions[token] * half + column;
    T* first = packed + ((token * groups + group) * group_heads + head) * 2 * half + column;
    auto a = load_pack<T, N>(first);
    auto b = load_pack<T, N>(first + half);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float x = to_float(a.item[i]), y = to_float(b.item[i]), turn = sign * s[i];
      a.item[i] = from_float<T>(x * c[i] - y * turn);
      b.item[i] = from_float<T>(y * c[i] + x * turn);
    }
    store_pack<T, N>(first, a);
    store_pack<T, N>(first + half, b);
  }
}

template <typename T, int N>
void run(void* packed, const float* cos, const float* sin, const int64_t* positions, int64_t tokens, int64_t groups,
         int64_t group_heads, int64_t rotated_heads, int64_t half, float sign, cudaStream_t stream) {
  constexpr int kThreads = 256;
  int64_t items = tokens * groups * rotated_heads * (half / N);
  rope_kernel<T, N><<<grid_for(items, kThreads), kThreads, 0, stream>>>(
      static_cast<T*>(packed), cos, sin, positions, items, static_cast<int>(groups), static_cast<int>(group_heads),
      static_cast<int>(rotated_heads), static_cast<int>(half), sign);
  check(cudaGetLastError(), "rope_in_place");
}

}  // namespace

void rope_in_place(DType dtype, void* packed, const float* cos, const float* sin, const int64_t* positions,
                   int64_t tokens, int64_t groups, int64_t group_heads, int64_t rotated_heads, int64_t head_dim,
                   bool inverse, cudaStream_t stream) {
  int64_t half = head_dim / 2;
  if (tokens * groups * rotated_heads * half == 0) return;
  float sign = inverse ? -1.0f : 1.0f;
  auto kernel = run<float, 1>;
  if (dtype == kFloat32)
    kernel = aligned(packed) && half % kWide<float> == 0 ? run<float, kWide<float>> : run<float, 1>;
  else
    kernel = aligned(packed) && half % kWide<bf16> == 0 ? run<bf16, kWide<bf16>> : run<bf16, 1>;
  kernel(packed, cos, sin, positions, tokens, groups, group_heads, rotated_heads, half, sign, stream);
}

}  // namespace syne
