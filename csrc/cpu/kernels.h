// The host kernels. Every pointer is to contiguous memory unless a stride is given; sizes and strides count elements.
#pragma once

#include "cpu/common.h"

namespace syne {

// rms_norm.cpp: `residual`, `summed` and `dsummed` may be null; `rstd` is [rows], `dweight` [width].
void rms_norm_forward(DType dtype, const void* x, const void* residual, const void* weight, void* summed, void* y,
                      float* rstd, int64_t rows, int64_t width, float eps);
void rms_norm_backward(DType dtype, const void* dy, const void* dsummed, const void* x, const void* weight,
                       const float* rstd, void* dx, float* dweight, int64_t rows, int64_t width);

// rope.cpp: rotates in place the first `rotated_heads` of every `group_heads` heads; cos and sin are
// [num_positions, head_dim / 2], `positions` is [tokens].
void rope_in_place(DType dtype, void* packed, const float* cos, const float* sin, const int64_t* positions,
                   int64_t tokens, int64_t groups, int64_t group_heads, int64_t rotated_heads, int64_t head_dim,
                   bool inverse);

// swiglu.cpp: x is [rows, 2 * width], gate first.
void swiglu_forward(DType dtype, const void* x, void* y, int64_t rows, int64_t width);
void swiglu_backward(DType dtype, const void* dy, const void* x, void* dx, int64_t rows, int64_t width);

// cross_entropy.cpp: logits are [rows, columns]; columns from `valid` on are padding. `targets` are columns of this
// shard; a target outside [0, valid) is another shard's.
struct CrossEntropyRows {
  const int64_t* targets;
  const float* scale;  // of the row's gradient; 0 where the token is masked
  float *max, *sum, *target_logit;
  int64_t columns, valid, stride;
};

enum CrossEntropyPass : int {
  kStats = 0,     // max, sum of exp(logit - max) and target_logit; the logits stay
  kGradient = 1,  // logits -> gradient, with a given max and sum
  kBoth = 2,      // both in one pass
};

void cross_entropy(DType dtype, void* logits, CrossEntropyPass pass, int64_t count, const CrossEntropyRows& rows);

// softmax.cpp: causal softmax of scores [rows, columns]; rows are whole runs of `queries` x `repeats`, and query i of a
// run sees the columns [0, columns - queries + i]. `logsumexp` is [rows].
void causal_softmax_forward(DType dtype, void* scores, float* logsumexp, int64_t rows, int64_t columns,
                            int64_t queries, int64_t repeats, float scale);
// scores -> probabilities, dprobabilities -> gradient of the scores, both in place.
void causal_softmax_backward(DType dtype, void* scores, void* dprobabilities, const float* logsumexp, int64_t rows,
                             int64_t columns, int64_t queries, int64_t repeats, float scale);

// wgrad.cpp: target += *scale * addend; a null `scale` is 1
void accumulate(DType dtype, float* target, const void* addend, int64_t count, const float* scale);

// adamw.cpp
double sum_of_squares(DType dtype, const void* values, int64_t count);
void scale_in_place(float* values, int64_t count, float factor);

struct AdamWStep {
  float lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, grad_scale;
};

// The parameter is either fp32 `param`, with the bf16 copy that the forward pass reads in `model_param` (or null), or
// bf16 `model_param` and what it lacks in `remainder`; then `param` is null.
struct AdamWTensors {
  float* param;
  bf16* model_param;
  int16_t* remainder;
  const void* grad;
  void *exp_avg, *exp_avg_sq;
  DType grad_dtype, exp_avg_dtype, exp_avg_sq_dtype;
};

void adamw(const AdamWTensors& tensors, int64_t count, const AdamWStep& step);

}  // namespace syne
