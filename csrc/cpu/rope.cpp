// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half rotation as in Hugging Face's Llama:
//   (a, b) -> (a * cos - b * sin, b * cos + a * sin)   with a, b the two halves of a head
// in place on the packed output of the QKV projection; `inverse` rotates back, which is the backward pass.
#include "cpu/kernels.h"

namespace syne {
namespace {

template <typename T>
SYNE_INLINE void rotate_tokens(T* packed, const float* cos, const float* sin, const int64_t* positions, int64_t begin,
                               int64_t end, int64_t groups, int64_t group_heads, int64_t rotated_heads,
                               int64_t head_dim, float sign) {
  int64_t half = head_dim / 2;
  for (int64_t token = begin; token < end; ++token) {
    const float* c = cos + positions[token] * half;
    const float* s = sin + positions[token] * half;
    for (int64_t group = 0; group < groups; ++group) {
      T* heads = packed + (token * groups + group) * group_heads * head_dim;
      for (int64_t head = 0; head < rotated_heads; ++head) {
        T* first = heads + head * head_dim;
        T* second = first + half;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          float a = load(first[i]), b = load(second[i]), turn = sign * s[i];
          store(first[i], a * c[i] - b * turn);
          store(second[i], b * c[i] + a * turn);
        }
      }
    }
  }
}

SYNE_MULTIVERSION
void rotate_f32(float* packed, const float* cos, const float* sin, const int64_t* positions, int64_t begin,
                int64_t end, int64_t groups, int64_t group_heads, int64_t rotated_heads, int64_t head_dim,
                float sign) {
  rotate_tokens(packed, cos, sin, positions, begin, end, groups, group_heads, rotated_heads, head_dim, sign);
}

SYNE_MULTIVERSION
void rotate_bf16(bf16* packed, const float* cos, const float* sin, const int64_t* positions, int64_t begin,
                 int64_t end, int64_t groups, int64_t group_heads, int64_t rotated_heads, int64_t head_dim,
                 float sign) {
  rotate_tokens(packed, cos, sin, positions, begin, end, groups, group_heads, rotated_heads, head_dim, sign);
}

}  // namespace

void rope_in_place(DType dtype, void* packed, const float* cos, const float* sin, const int64_t* positions,
                   int64_t tokens, int64_t groups, int64_t group_heads, int64_t rotated_heads, int64_t head_dim,
                   bool inverse) {
  float sign = inverse ? -1.0f : 1.0f;
  parallel_rows(tokens, 16, [&](int64_t begin, int64_t end, int) {
    if (dtype == kFloat32)
      rotate_f32(static_cast<float*>(packed), cos, sin, positions, begin, end, groups, group_heads, rotated_heads,
                 head_dim, sign);
    else
      rotate_bf16(static_cast<bf16*>(packed), cos, sin, positions, begin, end, groups, group_heads, rotated_heads,
                  head_dim, sign);
  });
}

}  // namespace syne
