// Adds a weight gradient to the fp32 main gradient without an fp32 copy of it.
#include "cpu/kernels.h"

namespace syne {
namespace {

template <typename T>
SYNE_INLINE void add_range(float* target, const T* addend, int64_t begin, int64_t end, float scale) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) target[i] += scale * load(addend[i]);
}

SYNE_MULTIVERSION
void add_f32(float* target, const float* addend, int64_t begin, int64_t end, float scale) {
  add_range(target, addend, begin, end, scale);
}

SYNE_MULTIVERSION
void add_bf16(float* target, const bf16* addend, int64_t begin, int64_t end, float scale) {
  add_range(target, addend, begin, end, scale);
}

}  // namespace

void accumulate(DType dtype, float* target, const void* addend, int64_t count, const float* scale_pointer) {
  float scale = scale_pointer ? *scale_pointer : 1.0f;
  parallel_rows(count, 16384, [&](int64_t begin, int64_t end, int) {
    if (dtype == kFloat32)
      add_f32(target, static_cast<const float*>(addend), begin, end, scale);
    else
      add_bf16(target, static_cast<const bf16*>(addend), begin, end, scale);
  });
}

}  // namespace syne
