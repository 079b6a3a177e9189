// Stands in for CUDA's header: the conversion to 8-bit numbers that saturates, as the real one documents it.
#pragma once
#include <algorithm>
#include <cmath>

#include "cuda_runtime.h"

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

// To the nearest, halves to even; beyond the largest number that one, and every NaN becomes 0x7f.
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t, __nv_fp8_interpretation_t format) {
  if (std::isnan(value)) return 0x7f;
  int fraction_bits = format == __NV_E4M3 ? 3 : 2, least_exponent = format == __NV_E4M3 ? -6 : -14;
  double magnitude = std::min(std::fabs(value), format == __NV_E4M3 ? 448.0f : 57344.0f);
  int exponent = magnitude == 0.0 ? least_exponent : std::max(std::ilogb(magnitude), least_exponent);
  // In units of the last place; the leading one of a number that is not subnormal adds to the exponent.
  double units = std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent));
  int bits = ((exponent - least_exponent) << fraction_bits) + static_cast<int>(units);
  return static_cast<__nv_fp8_storage_t>(bits | (std::signbit(value) ? 0x80 : 0));
}

inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 values, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t format) {
  return static_cast<__nv_fp8x2_storage_t>(__nv_cvt_float_to_fp8(values.y, saturation, format) << 8 |
                                           __nv_cvt_float_to_fp8(values.x, saturation, format));
}
