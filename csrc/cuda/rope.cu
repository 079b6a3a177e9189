// Rotary position embedding on the packed QKV projection: in place, or while it is taken apart for attention (and, in
// the backward pass, put together again). The formula stands in cpu/rope.cpp.
#include "cuda/common.cuh"

namespace syne {
namespace {

constexpr int kThreads = 128;

enum Way { kInPlace, kUnpack, kPack };

// The heads of all tokens: packed [N, G, J, D], or apart as Q [N, G, R, D], K and V [N, G, D] with J = R + 2.
template <typename T>
struct Heads {
  T *packed, *query, *key, *value;
};

// Where a head lies. `row` is the number of its token and group.
template <bool kPacked, typename T>
__device__ __forceinline__ T* locate(const Heads<T>& heads, int64_t row, int head, int group_heads, int head_dim) {
  if (kPacked) return heads.packed + (row * group_heads + head) * head_dim;
  int queries = group_heads - 2;
  if (head < queries) return heads.query + (row * queries + head) * head_dim;
  return (head == queries ? heads.key : heads.value) + row * head_dim;
}

// A block for each token. Threads along x take N pairs (element i of a head's first half with that of its second), in
// the same place of every head, so they read the angles once; threads along y take the heads.
template <typename T, int N, Way kWay>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(Heads<T> heads, const float* cos, const float* sin, const int64_t* positions, int groups,
                int group_heads, int rotated_heads, int half, float sign) {
  int64_t token = blockIdx.x, angles = positions[token] * half;
  int visited = kWay == kInPlace ? rotated_heads : group_heads;
  for (int column = threadIdx.x * N; column < half; column += blockDim.x * N) {
    auto c = load_floats<float, N>(cos + angles + column), s = load_floats<float, N>(sin + angles + column);
    int group = threadIdx.y / visited, head = threadIdx.y % visited;
    while (group < groups) {
      int64_t row = token * groups + group;
      const T* source = locate<kWay != kPack>(heads, row, head, group_heads, 2 * half) + column;
      T* target = locate<kWay != kUnpack>(heads, row, head, group_heads, 2 * half) + column;
      auto a = load_pack<T, N>(source), b = load_pack<T, N>(source + half);
      if (head < rotated_heads) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          float x = to_float(a.item[i]), y = to_float(b.item[i]), turn = sign * s.item[i];
          a.item[i] = from_float<T>(x * c.item[i] - y * turn);
          b.item[i] = from_float<T>(y * c.item[i] + x * turn);
        }
      }
      store_pack<T, N>(target, a);
      store_pack<T, N>(target + half, b);
      for (head += blockDim.y; head >= visited; head -= visited) ++group;
    }
  }
}

struct Sizes {
  int64_t tokens, groups, group_heads, rotated_heads, half;
};

template <typename T, int N, Way kWay>
void run(const Heads<void>& heads, const float* cos, const float* sin, const int64_t* positions, const Sizes& sizes,
         float sign, cudaStream_t stream) {
  int64_t packs = sizes.half / N, all_heads = sizes.groups * sizes.group_heads;
  unsigned across = static_cast<unsigned>(packs < kWarp ? packs : kWarp), rows = kThreads / across;
  if (rows > all_heads) rows = static_cast<unsigned>(all_heads);
  Heads<T> typed{static_cast<T*>(heads.packed), static_cast<T*>(heads.query), static_cast<T*>(heads.key),
                 static_cast<T*>(heads.value)};
  rope_kernel<T, N, kWay><<<static_cast<unsigned>(sizes.tokens), dim3(across, rows), 0, stream>>>(
      typed, cos, sin, positions, static_cast<int>(sizes.groups), static_cast<int>(sizes.group_heads),
      static_cast<int>(sizes.rotated_heads), static_cast<int>(sizes.half), sign);
  check(cudaGetLastError(), "rope");
}

template <Way kWay>
void rope(DType dtype, const Heads<void>& heads, const float* cos, const float* sin, const int64_t* positions,
          const Sizes& sizes, bool inverse, cudaStream_t stream) {
  if (sizes.tokens * sizes.groups * sizes.half * (kWay == kInPlace ? sizes.rotated_heads : sizes.group_heads) == 0)
    return;
  bool wide = all_aligned(heads.packed, heads.query, heads.key, heads.value, cos, sin);
  auto kernel = run<float, 1, kWay>;
  if (dtype == kFloat32)
    kernel = wide && sizes.half % kWide<float> == 0 ? run<float, kWide<float>, kWay> : run<float, 1, kWay>;
  else
    kernel = wide && sizes.half % kWide<bf16> == 0 ? run<bf16, kWide<bf16>, kWay> : run<bf16, 1, kWay>;
  kernel(heads, cos, sin, positions, sizes, inverse ? -1.0f : 1.0f, stream);
}

}  // namespace

void rope_in_place(DType dtype, void* packed, const float* cos, const float* sin, const int64_t* positions,
                   int64_t tokens, int64_t groups, int64_t group_heads, int64_t rotated_heads, int64_t head_dim,
                   bool inverse, cudaStream_t stream) {
  rope<kInPlace>(dtype, {packed, nullptr, nullptr, nullptr}, cos, sin, positions,
                 {tokens, groups, group_heads, rotated_heads, head_dim / 2}, inverse, stream);
}

void rope_unpack(DType dtype, const void* packed, void* query, void* key, void* value, const float* cos,
                 const float* sin, const int64_t* positions, int64_t tokens, int64_t groups, int64_t group_heads,
                 int64_t head_dim, cudaStream_t stream) {
  rope<kUnpack>(dtype, {const_cast<void*>(packed), query, key, value}, cos, sin, positions,
                {tokens, groups, group_heads, group_heads - 1, head_dim / 2}, false, stream);
}

void rope_pack_inverse(DType dtype, void* packed, const void* query, const void* key, const void* value,
                       const float* cos, const float* sin, const int64_t* positions, int64_t tokens, int64_t groups,
                       int64_t group_heads, int64_t head_dim, cudaStream_t stream) {
  rope<kPack>(dtype, {packed, const_cast<void*>(query), const_cast<void*>(key), const_cast<void*>(value)}, cos, sin,
              positions, {tokens, groups, group_heads, group_heads - 1, head_dim / 2}, true, stream);
}

}  // namespace syne
