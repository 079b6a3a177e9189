// RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) with the residual addition in front of it.
//
//   summed = x + residual            rounded to the element type, as the unfused pair of ops does
//   y      = weight * summed / sqrt(mean(summed^2) + eps)
//
// All arithmetic in fp32; rows are contiguous, `rows` x `width`.
#include "cpu/kernels.h"

#include <cmath>
#include <vector>

namespace syne {
namespace {

template <typename T>
SYNE_INLINE void forward_rows(const T* x, const T* residual, const T* weight, T* summed, T* y, float* rstd,
                              int64_t begin, int64_t end, int64_t width, float eps) {
  for (int64_t row = begin; row < end; ++row) {
    const T* xr = x + row * width;
    T* yr = y + row * width;
    float squares = 0.0f;
    if (residual) {
      const T* rr = residual + row * width;
      T* sr = summed + row * width;
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < width; ++i) {
        float value = rounded_to<T>(load(xr[i]) + load(rr[i]));
        store(sr[i], value);
        squares += value * value;
      }
      xr = sr;
    } else {
#pragma omp simd reduction(+ : squares)
      for (int64_t i = 0; i < width; ++i) {
        float value = load(xr[i]);
        squares += value * value;
      }
    }
    float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
    rstd[row] = scale;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) store(yr[i], load(xr[i]) * scale * load(weight[i]));
  }
}

// dx = rstd * (w*dy - x_hat * mean(w*dy*x_hat)) [+ dsummed];  dweight += dy * x_hat
template <typename T>
SYNE_INLINE void backward_rows(const T* dy, const T* dsummed, const T* x, const T* weight, const float* rstd, T* dx,
                               float* dweight, int64_t begin, int64_t end, int64_t width) {
  for (int64_t row = begin; row < end; ++row) {
    const T* xr = x + row * width;
    const T* gr = dy + row * width;
    T* out = dx + row * width;
    float scale = rstd[row], dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t i = 0; i < width; ++i) dot += load(gr[i]) * load(weight[i]) * load(xr[i]);
    float mean = dot * scale * scale / static_cast<float>(width);
    if (dsummed) {
      const T* sr = dsummed + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        float value = load(xr[i]), grad = load(gr[i]);
        dweight[i] += grad * value * scale;
        store(out[i], scale * (grad * load(weight[i]) - value * mean) + load(sr[i]));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        float value = load(xr[i]), grad = load(gr[i]);
        dweight[i] += grad * value * scale;
        store(out[i], scale * (grad * load(weight[i]) - value * mean));
      }
    }
  }
}

SYNE_MULTIVERSION
void forward_f32(const float* x, const float* r, const float* w, float* s, float* y, float* rstd, int64_t begin,
                 int64_t end, int64_t width, float eps) {
  forward_rows(x, r, w, s, y, rstd, begin, end, width, eps);
}

SYNE_MULTIVERSION
void forward_bf16(const bf16* x, const bf16* r, const bf16* w, bf16* s, bf16* y, float* rstd, int64_t begin,
                  int64_t end, int64_t width, float eps) {
  forward_rows(x, r, w, s, y, rstd, begin, end, width, eps);
}

SYNE_MULTIVERSION
void backward_f32(const float* dy, const float* ds, const float* x, const float* w, const float* rstd, float* dx,
                  float* dw, int64_t begin, int64_t end, int64_t width) {
  backward_rows(dy, ds, x, w, rstd, dx, dw, begin, end, width);
}

SYNE_MULTIVERSION
void backward_bf16(const bf16* dy, const bf16* ds, const bf16* x, const bf16* w, const float* rstd, bf16* dx,
                   float* dw, int64_t begin, int64_t end, int64_t width) {
  backward_rows(dy, ds, x, w, rstd, dx, dw, begin, end, width);
}

constexpr int64_t kRowGrain = 16;

template <typename T, typename Kernel>
void run_forward(Kernel kernel, const void* x, const void* r, const void* w, void* s, void* y, float* rstd,
                 int64_t rows, int64_t width, float eps) {
  parallel_rows(rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
    kernel(static_cast<const T*>(x), static_cast<const T*>(r), static_cast<const T*>(w), static_cast<T*>(s),
           static_cast<T*>(y), rstd, begin, end, width, eps);
  });
}

template <typename T, typename Kernel>
void run_backward(Kernel kernel, const void* dy, const void* ds, const void* x, const void* w, const float* rstd,
                  void* dx, float* dw, int64_t rows, int64_t width) {
  std::vector<float> partial(static_cast<size_t>(max_threads() * width), 0.0f);
  parallel_rows(rows, kRowGrain, [&](int64_t begin, int64_t end, int thread) {
    kernel(static_cast<const T*>(dy), static_cast<const T*>(ds), static_cast<const T*>(x), static_cast<const T*>(w),
           rstd, static_cast<T*>(dx), partial.data() + thread * width, begin, end, width);
  });
  for (int64_t i = 0; i < width; ++i) dw[i] = 0.0f;
  for (int64_t thread = 0; thread < max_threads(); ++thread)
    for (int64_t i = 0; i < width; ++i) dw[i] += partial[static_cast<size_t>(thread * width + i)];
}

}  // namespace

void rms_norm_forward(DType dtype, const void* x, const void* residual, const void* weight, void* summed, void* y,
                      float* rstd, int64_t rows, int64_t width, float eps) {
  if (dtype == kFloat32)
    run_forward<float>(forward_f32, x, residual, weight, summed, y, rstd, rows, width, eps);
  else
    run_forward<bf16>(forward_bf16, x, residual, weight, summed, y, rstd, rows, width, eps);
}

void rms_norm_backward(DType dtype, const void* dy, const void* dsummed, const void* x, const void* weight,
                       const float* rstd, void* dx, float* dweight, int64_t rows, int64_t width) {
  if (dtype == kFloat32)
    run_backward<float>(backward_f32, dy, dsummed, x, weight, rstd, dx, dweight, rows, width);
  else
    run_backward<bf16>(backward_bf16, dy, dsummed, x, weight, rstd, dx, dweight, rows, width);
}

}  // namespace syne
