// What the host kernels share: bf16, vectorisable exp, instruction-set dispatch, a parallel loop over rows.
//
// Kernels are plain loops that the compiler vectorises. SYNE_MULTIVERSION compiles a function three times (AVX-512,
// AVX2, baseline) and the loader picks one for the machine; a function called from it must be SYNE_INLINE, so that its
// body is compiled for the same instruction set. OpenMP regions stay outside multiversioned functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) && !defined(SYNE_PORTABLE)
#define SYNE_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define SYNE_HAS_MULTIVERSION 1
#else
#define SYNE_MULTIVERSION
#define SYNE_HAS_MULTIVERSION 0
#endif
#define SYNE_INLINE inline __attribute__((always_inline))

namespace syne {

using std::int64_t;

// Element types of the bindings; megatron_synE/kernels/_native.py has the same codes.
enum DType : int { kFloat32 = 0, kBFloat16 = 1 };

struct bf16 {
  uint16_t bits;
};

SYNE_INLINE float load(float value) { return value; }

SYNE_INLINE float load(bf16 value) {
  uint32_t wide = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &wide, 4);
  return result;
}

SYNE_INLINE void store(float& target, float value) { target = value; }

// Round to nearest even; a NaN stays a quiet NaN.
SYNE_INLINE void store(bf16& target, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  uint32_t quiet_nan = (bits >> 16) | 0x40u;
  target.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// The value that `store` would leave in a T, still in fp32.
template <typename T>
SYNE_INLINE float rounded_to(float value);

template <>
SYNE_INLINE float rounded_to<float>(float value) {
  return value;
}

template <>
SYNE_INLINE float rounded_to<bf16>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  uint32_t quiet_nan = (bits | 0x400000u) & 0xffff0000u;
  bits = (bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Loops over one element type vectorise well, mixed ones badly: a kernel converts a row, computes in fp32, converts back.
template <typename T>
SYNE_INLINE void widen(const T* source, float* target, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) target[i] = load(source[i]);
}

template <typename T>
SYNE_INLINE void narrow(const float* source, T* target, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) store(target[i], source[i]);
}

SYNE_INLINE float maximum_of(const float* values, int64_t count) {
  float maximum = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : maximum)
  for (int64_t i = 0; i < count; ++i) maximum = values[i] > maximum ? values[i] : maximum;
  return maximum;
}

// exp for the range of a float, relative error below 2e-7; Cody-Waite reduction and a degree-6 polynomial. The
// comparisons are written so that NaN passes them and remains.
SYNE_INLINE float exp_fast(float x) {
  x = x > 88.3762626f ? 88.3762626f : x;
  float clamped = x < -87.3365447f ? -87.3365447f : x;
  float scaled = clamped * 1.44269504088896341f;
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  float shifted = scaled + 12582912.0f;
  uint32_t exponent;
  std::memcpy(&exponent, &shifted, 4);
  float whole = shifted - 12582912.0f;
  float r = clamped - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t power_bits = (exponent - 0x4b400000u + 127u) << 23;
  float power;
  std::memcpy(&power, &power_bits, 4);
  return x < -87.3365447f ? 0.0f : p * power;
}

SYNE_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp_fast(-x)); }

inline int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls body(begin, end, thread) on contiguous pieces of [0, count), one a thread, none smaller than `grain`.
template <typename Body>
inline void parallel_rows(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  int64_t threads = max_threads();
  int64_t pieces = (count + grain - 1) / grain;
  if (pieces < threads) threads = pieces;
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
      int64_t size = omp_get_num_threads(), thread = omp_get_thread_num();
      body(count * thread / size, count * (thread + 1) / size, static_cast<int>(thread));
    }
    return;
  }
#endif
  body(0, count, 0);
}

}  // namespace syne
