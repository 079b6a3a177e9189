// megatron_synE._kernels_cuda: the functions of _kernels_cpu with a stream as last argument; those of the optimizer take
// lists of tensors, and RoPE that takes the projection apart and the 8-bit numbers are here only. Results that are sums
// over the device go to memory of the caller: nothing is allocated here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "cuda/kernels.h"

namespace py = pybind11;

namespace {

using syne::DType;
using std::int64_t;
using Address = std::uintptr_t;

template <typename T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

DType type_of(int code) { return static_cast<DType>(code); }

cudaStream_t queue(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

using Addresses = std::vector<Address>;

std::vector<syne::FlatTensor> flat(const Addresses& values, const std::vector<int64_t>& counts) {
  std::vector<syne::FlatTensor> tensors;
  for (size_t i = 0; i < values.size(); ++i) tensors.push_back({at(values[i]), counts[i]});
  return tensors;
}

}  // namespace

PYBIND11_MODULE(_kernels_cuda, m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.doc() = "Training kernels for NVIDIA GPUs; called through megatron_synE.kernels, which validates the arguments.";
  m.attr("cuda_version") = CUDART_VERSION;
  m.def("problem", syne::problem, release());

  m.def(
      "rms_norm_forward",
      [](int dtype, Address x, Address residual, Address weight, Address summed, Address y, Address rstd, int64_t rows,
         int64_t width, float eps, Address stream) {
        syne::rms_norm_forward(type_of(dtype), at(x), at(residual), at(weight), at(summed), at(y), at<float>(rstd),
                               rows, width, eps, queue(stream));
      },
      release());
  m.def(
      "rms_norm_backward",
      [](int dtype, Address dy, Address dsummed, Address x, Address weight, Address rstd, Address dx,
         Address dweight_parts, int64_t parts, int64_t rows, int64_t width, Address stream) {
        syne::rms_norm_backward(type_of(dtype), at(dy), at(dsummed), at(x), at(weight), at<float>(rstd), at(dx),
                                at<float>(dweight_parts), parts, rows, width, queue(stream));
      },
      release());
  m.def(
      "rope_in_place",
      [](int dtype, Address packed, Address cos, Address sin, Address positions, int64_t tokens, int64_t groups,
         int64_t group_heads, int64_t rotated_heads, int64_t head_dim, bool inverse, Address stream) {
        syne::rope_in_place(type_of(dtype), at(packed), at<float>(cos), at<float>(sin), at<int64_t>(positions),
                            tokens, groups, group_heads, rotated_heads, head_dim, inverse, queue(stream));
      },
      release());
  m.def(
      "rope_unpack",
      [](int dtype, Address packed, Address query, Address key, Address value, Address cos, Address sin,
         Address positions, int64_t tokens, int64_t groups, int64_t group_heads, int64_t head_dim, Address stream) {
        syne::rope_unpack(type_of(dtype), at(packed), at(query), at(key), at(value), at<float>(cos), at<float>(sin),
                          at<int64_t>(positions), tokens, groups, group_heads, head_dim, queue(stream));
      },
      release());
  m.def(
      "rope_pack_inverse",
      [](int dtype, Address packed, Address query, Address key, Address value, Address cos, Address sin,
         Address positions, int64_t tokens, int64_t groups, int64_t group_heads, int64_t head_dim, Address stream) {
        syne::rope_pack_inverse(type_of(dtype), at(packed), at(query), at(key), at(value), at<float>(cos), at<float>(sin),
                                at<int64_t>(positions), tokens, groups, group_heads, head_dim, queue(stream));
      },
      release());
  m.def(
      "swiglu_forward",
      [](int dtype, Address x, Address y, int64_t rows, int64_t width, Address stream) {
        syne::swiglu_forward(type_of(dtype), at(x), at(y), rows, width, queue(stream));
      },
      release());
  m.def(
      "swiglu_backward",
      [](int dtype, Address dy, Address x, Address dx, int64_t rows, int64_t width, Address stream) {
        syne::swiglu_backward(type_of(dtype), at(dy), at(x), at(dx), rows, width, queue(stream));
      },
      release());
  m.def(
      "cross_entropy",
      [](int dtype, Address logits, int pass, Address targets, Address scale, Address row_max, Address row_sum,
         Address target_logit, int64_t rows, int64_t columns, int64_t valid_columns, int64_t row_stride,
         Address stream) {
        syne::cross_entropy(type_of(dtype), at(logits), static_cast<syne::CrossEntropyPass>(pass), rows,
                            {at<int64_t>(targets), at<float>(scale), at<float>(row_max), at<float>(row_sum),
                             at<float>(target_logit), columns, valid_columns, row_stride},
                            queue(stream));
      },
      release());
  m.def(
      "accumulate",
      [](int dtype, Address target, Address addend, int64_t count, Address scale, Address stream) {
        syne::accumulate(type_of(dtype), at<float>(target), at(addend), count, at<float>(scale), queue(stream));
      },
      release());
  m.def(
      "largest_magnitude",
      [](int dtype, Address values, int64_t count, Address largest, Address stream) {
        syne::largest_magnitude(type_of(dtype), at(values), count, at<float>(largest), queue(stream));
      },
      release());
  m.def(
      "quantize",
      [](int dtype, int format, Address values, Address magnitude, Address unit, Address straight, Address transposed,
         int64_t rows, int64_t columns, Address stream) {
        syne::quantize(type_of(dtype), static_cast<syne::Format>(format), at(values), at<float>(magnitude),
                       at<float>(unit), at<std::uint8_t>(straight), at<std::uint8_t>(transposed), rows, columns,
                       queue(stream));
      },
      release());
  m.attr("chunk_elements") = syne::kChunkElements;
  m.def(
      "sum_of_squares",
      [](int dtype, const Addresses& values, const std::vector<int64_t>& counts, Address chunk_sums, Address stream) {
        syne::sum_of_squares(type_of(dtype), flat(values, counts), at<double>(chunk_sums), queue(stream));
      },
      release());
  m.def(
      "scale_in_place",
      [](const Addresses& values, const std::vector<int64_t>& counts, float factor, Address stream) {
        syne::scale_in_place(flat(values, counts), factor, queue(stream));
      },
      release());
  m.def(
      "adamw",
      [](int grad_dtype, int exp_avg_dtype, int exp_avg_sq_dtype, const std::vector<std::array<Address, 6>>& buffers,
         const std::vector<int64_t>& counts, float lr, float beta1, float beta2, float eps, float weight_decay,
         float bias_correction1, float bias_correction2, float grad_scale, Address device_grad_scale, Address stream) {
        std::vector<syne::AdamWBuffers> all;
        for (auto [param, model_param, remainder, grad, exp_avg, exp_avg_sq] : buffers)
          all.push_back({at<float>(param), at(model_param), at<std::int16_t>(remainder), at(grad), at(exp_avg),
                         at(exp_avg_sq)});
        syne::adamw(all, counts, {type_of(grad_dtype), type_of(exp_avg_dtype), type_of(exp_avg_sq_dtype)},
                    {lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, grad_scale},
                    at<float>(device_grad_scale), queue(stream));
      },
      release());
}
