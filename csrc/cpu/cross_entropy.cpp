// The part of linear + cross entropy between its matrix products, on one chunk of logits of one vocabulary shard: the
// statistics that tensor-parallel ranks reduce (max, sum of exponentials, target), and, in place, the gradient
//   dlogit = (softmax - onehot(target)) * scale
#include "cpu/kernels.h"

#include <vector>

namespace syne {
namespace {

// Floats of one row at a time: they stay in the first-level cache, and their sum is not one long fp32 chain.
constexpr int64_t kBlock = 2048;

SYNE_INLINE float row_maximum(const float* values, int64_t count) { return maximum_of(values, count); }

// As integers with the sign's magnitude flipped, bf16 values compare as they do as numbers, 32 in one instruction.
SYNE_INLINE float row_maximum(const bf16* values, int64_t count) {
  int16_t largest = -32768;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    int16_t bits = static_cast<int16_t>(values[i].bits);
    int16_t key = static_cast<int16_t>(bits ^ ((bits >> 15) & 0x7fff));
    largest = key > largest ? key : largest;
  }
  if (count == 0) return -std::numeric_limits<float>::infinity();
  return load(bf16{static_cast<uint16_t>(largest ^ ((largest >> 15) & 0x7fff))});
}

// buffer = exp(value - maximum), their sum; NaN where a value is. A shard whose values all are -inf has exponentials of
// zero, not of -inf - -inf. `step` is 0 where the buffer holds one block, to be used again.
template <typename T>
SYNE_INLINE float exponentials(const T* values, float* buffer, int64_t step, float maximum, int64_t columns) {
  double total = 0.0;
  if (maximum == -std::numeric_limits<float>::infinity()) maximum = 0.0f;
  for (int64_t block = 0; block < columns; block += kBlock, buffer += step) {
    int64_t count = block + kBlock < columns ? kBlock : columns - block;
    widen(values + block, buffer, count);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
      buffer[i] = exp_fast(buffer[i] - maximum);
      sum += buffer[i];
    }
    total += sum;
  }
  return static_cast<float>(total);
}

template <typename T>
SYNE_INLINE void stats_row(const T* values, const CrossEntropyRows& rows, int64_t row) {
  int64_t target = rows.targets[row];
  rows.target_logit[row] = target >= 0 && target < rows.valid ? load(values[target]) : 0.0f;
  rows.max[row] = row_maximum(values, rows.valid);
}

// From the exponentials of the row's valid columns.
template <typename T>
SYNE_INLINE void gradient_row(T* values, const float* exponentials, const CrossEntropyRows& rows, int64_t row) {
  float scale = rows.scale[row], factor = scale / rows.sum[row];
#pragma omp simd
  for (int64_t i = 0; i < rows.valid; ++i) store(values[i], exponentials[i] * factor);
  for (int64_t i = rows.valid; i < rows.columns; ++i) store(values[i], 0.0f);
  int64_t target = rows.targets[row];
  if (target >= 0 && target < rows.valid) store(values[target], exponentials[target] * factor - scale);
}

// `buffer` holds a block for the statistics alone, else `valid` floats.
template <typename T>
SYNE_INLINE void run_rows(T* logits, CrossEntropyPass pass, const CrossEntropyRows& rows, float* buffer, int64_t begin,
                          int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* values = logits + row * rows.stride;
    if (pass != kGradient) stats_row(values, rows, row);
    if (pass == kStats) {
      rows.sum[row] = exponentials(values, buffer, 0, rows.max[row], rows.valid);
    } else if (rows.scale[row] == 0.0f) {  // masked: also a row of infinities has gradient zero
      for (int64_t i = 0; i < rows.columns; ++i) store(values[i], 0.0f);
      if (pass == kBoth) rows.sum[row] = 1.0f;
    } else {
      float sum = exponentials(values, buffer, kBlock, rows.max[row], rows.valid);
      if (pass == kBoth) rows.sum[row] = sum;
      gradient_row(values, buffer, rows, row);
    }
  }
}

SYNE_MULTIVERSION
void rows_f32(float* l, CrossEntropyPass pass, const CrossEntropyRows& rows, float* buffer, int64_t begin,
              int64_t end) {
  run_rows(l, pass, rows, buffer, begin, end);
}

SYNE_MULTIVERSION
void rows_bf16(bf16* l, CrossEntropyPass pass, const CrossEntropyRows& rows, float* buffer, int64_t begin,
               int64_t end) {
  run_rows(l, pass, rows, buffer, begin, end);
}

}  // namespace

void cross_entropy(DType dtype, void* logits, CrossEntropyPass pass, int64_t count, const CrossEntropyRows& rows) {
  // A row of 128,256 floats still fits a core's second-level cache.
  auto floats = static_cast<size_t>(pass == kStats ? kBlock : rows.valid);
  parallel_rows(count, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> buffer(floats);
    if (dtype == kFloat32)
      rows_f32(static_cast<float*>(logits), pass, rows, buffer.data(), begin, end);
    else
      rows_bf16(static_cast<bf16*>(logits), pass, rows, buffer.data(), begin, end);
  });
}

}  // namespace syne
