// SwiGLU (Shazeer 2020, arXiv 2002.05202) on the concatenated output of linear_fc1: y = silu(gate) * up.
#include "cpu/kernels.h"

namespace syne {
namespace {

template <typename T>
SYNE_INLINE void forward_rows(const T* x, T* y, int64_t begin, int64_t end, int64_t width) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = x + row * 2 * width;
    const T* up = gate + width;
    T* out = y + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      float g = load(gate[i]);
      store(out[i], g * sigmoid(g) * load(up[i]));
    }
  }
}

// silu'(g) = sigmoid(g) * (1 + g * (1 - sigmoid(g)))
template <typename T>
SYNE_INLINE void backward_rows(const T* dy, const T* x, T* dx, int64_t begin, int64_t end, int64_t width) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = x + row * 2 * width;
    const T* up = gate + width;
    const T* grad = dy + row * width;
    T* dgate = dx + row * 2 * width;
    T* dup = dgate + width;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) {
      float g = load(gate[i]), u = load(up[i]), d = load(grad[i]);
      float s = sigmoid(g);
      store(dgate[i], d * u * s * (1.0f + g * (1.0f - s)));
      store(dup[i], d * g * s);
    }
  }
}

SYNE_MULTIVERSION
void forward_f32(const float* x, float* y, int64_t begin, int64_t end, int64_t width) {
  forward_rows(x, y, begin, end, width);
}

SYNE_MULTIVERSION
void forward_bf16(const bf16* x, bf16* y, int64_t begin, int64_t end, int64_t width) {
  forward_rows(x, y, begin, end, width);
}

SYNE_MULTIVERSION
void backward_f32(const float* dy, const float* x, float* dx, int64_t begin, int64_t end, int64_t width) {
  backward_rows(dy, x, dx, begin, end, width);
}

SYNE_MULTIVERSION
void backward_bf16(const bf16* dy, const bf16* x, bf16* dx, int64_t begin, int64_t end, int64_t width) {
  backward_rows(dy, x, dx, begin, end, width);
}

}  // namespace

void swiglu_forward(DType dtype, const void* x, void* y, int64_t rows, int64_t width) {
  parallel_rows(rows, 8, [&](int64_t begin, int64_t end, int) {
    if (dtype == kFloat32)
      forward_f32(static_cast<const float*>(x), static_cast<float*>(y), begin, end, width);
    else
      forward_bf16(static_cast<const bf16*>(x), static_cast<bf16*>(y), begin, end, width);
  });
}

void swiglu_backward(DType dtype, const void* dy, const void* x, void* dx, int64_t rows, int64_t width) {
  parallel_rows(rows, 8, [&](int64_t begin, int64_t end, int) {
    if (dtype == kFloat32)
      backward_f32(static_cast<const float*>(dy), static_cast<const float*>(x), static_cast<float*>(dx), begin, end,
                   width);
    else
      backward_bf16(static_cast<const bf16*>(dy), static_cast<const bf16*>(x), static_cast<bf16*>(dx), begin, end,
                    width);
  });
}

}  // namespace syne
