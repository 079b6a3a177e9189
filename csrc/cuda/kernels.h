// The CUDA kernels: the functions of cpu/kernels.h, and some of their own, launched on `stream`. Pointers are to device
// memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

namespace syne {

using std::int64_t;

// megatron_synE/kernels/_native.py has the same codes.
enum DType : int { kFloat32 = 0, kBFloat16 = 1 };

// Why the kernels cannot run on the current device, in the runtime's words; empty where they can.
std::string problem();

void rms_norm_forward(DType dtype, const void* x, const void* residual, const void* weight, void* summed, void* y,
                      float* rstd, int64_t rows, int64_t width, float eps, cudaStream_t stream);
// The gradient of the weight is the sum of `parts` rows of `dweight_parts`, each written by one block.
void rms_norm_backward(DType dtype, const void* dy, const void* dsummed, const void* x, const void* weight,
                       const float* rstd, void* dx, float* dweight_parts, int64_t parts, int64_t rows, int64_t width,
                       cudaStream_t stream);

void rope_in_place(DType dtype, void* packed, const float* cos, const float* sin, const int64_t* positions,
                   int64_t tokens, int64_t groups, int64_t group_heads, int64_t rotated_heads, int64_t head_dim,
                   bool inverse, cudaStream_t stream);
// The packed heads rotated into Q [N, G, R, D], K and V [N, G, D], R = group_heads - 2; and the way back.
void rope_unpack(DType dtype, const void* packed, void* query, void* key, void* value, const float* cos,
                 const float* sin, const int64_t* positions, int64_t tokens, int64_t groups, int64_t group_heads,
                 int64_t head_dim, cudaStream_t stream);
void rope_pack_inverse(DType dtype, void* packed, const void* query, const void* key, const void* value,
                       const float* cos, const float* sin, const int64_t* positions, int64_t tokens, int64_t groups,
                       int64_t group_heads, int64_t head_dim, cudaStream_t stream);

void swiglu_forward(DType dtype, const void* x, void* y, int64_t rows, int64_t width, cudaStream_t stream);
void swiglu_backward(DType dtype, const void* dy, const void* x, void* dx, int64_t rows, int64_t width,
                     cudaStream_t stream);

struct CrossEntropyRows {
  const int64_t* targets;
  const float* scale;
  float *max, *sum, *target_logit;
  int64_t columns, valid, stride;
};

enum CrossEntropyPass : int { kStats = 0, kGradient = 1, kBoth = 2 };

void cross_entropy(DType dtype, void* logits, CrossEntropyPass pass, int64_t count, const CrossEntropyRows& rows,
                   cudaStream_t stream);

void accumulate(DType dtype, float* target, const void* addend, int64_t count, const float* scale,
                cudaStream_t stream);

// The bits of the largest magnitude; a nan where there is one.
void largest_magnitude(DType dtype, const void* values, int64_t count, float* largest, cudaStream_t stream);

// megatron_synE/kernels/fp8.py has the same codes.
enum Format : int { kE4M3 = 0, kE5M2 = 1 };

// The 8-bit numbers next to values / unit: [rows, columns] in `straight`, the transpose in `transposed`; either may be
// null. `unit` is found from the largest magnitude.
void quantize(DType dtype, Format format, const void* values, const float* magnitude, float* unit,
              std::uint8_t* straight, std::uint8_t* transposed, int64_t rows, int64_t columns, cudaStream_t stream);

struct FlatTensor {
  void* values;
  int64_t count;
};

// Elements that a block of the kernels below works on.
constexpr int64_t kChunkElements = 16384;

// One sum for each chunk of each tensor, chunk after chunk and tensor after tensor.
void sum_of_squares(DType dtype, const std::vector<FlatTensor>& tensors, double* chunk_sums, cudaStream_t stream);
void scale_in_place(const std::vector<FlatTensor>& tensors, float factor, cudaStream_t stream);

struct AdamWStep {
  float lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, grad_scale;
};

// Of one parameter, as in cpu/kernels.h; `model_param` is bf16.
struct AdamWBuffers {
  float* param;
  void* model_param;
  std::int16_t* remainder;
  const void* grad;
  void *exp_avg, *exp_avg_sq;
};

struct AdamWTypes {
  DType grad, exp_avg, exp_avg_sq;
};

// All parameters have remainders, or none has. The gradients are multiplied by `*grad_scale` too, if that is not null.
void adamw(const std::vector<AdamWBuffers>& buffers, const std::vector<int64_t>& counts, const AdamWTypes& types,
           const AdamWStep& step, const float* grad_scale, cudaStream_t stream);

}  // namespace syne
