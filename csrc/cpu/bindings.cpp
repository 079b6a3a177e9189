// megatron_synE._kernels_cpu. Pointers arrive as integers (0 for none): Python has checked dtype, shape, contiguity.
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>

#ifdef __GLIBC__
#include <malloc.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "cpu/kernels.h"

namespace py = pybind11;

namespace {

using syne::DType;
using Address = std::uintptr_t;

template <typename T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

DType type_of(int code) { return static_cast<DType>(code); }

// Whether libraries that ask for the maker's name take their fastest path here.
bool made_by_intel() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

std::string instruction_set() {
#if SYNE_HAS_MULTIVERSION
  __builtin_cpu_init();
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512cd");
  if (avx512) return "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "portable";
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

// Buffers of at least `mmap_bytes` get pages of their own and give them back when freed; the heap of the smaller ones
// keeps up to `keep_bytes` of free pages at its end. False where not supported. By default glibc raises the first limit
// to 32 MiB as it goes, and freed activations stay in a fragmented heap; setting it fixes the second one at 128 KiB,
// and each step touches fresh pages again.
bool set_heap_limits(int mmap_bytes, int keep_bytes) {
#ifdef __GLIBC__
  return mallopt(M_MMAP_THRESHOLD, mmap_bytes) == 1 && mallopt(M_TRIM_THRESHOLD, keep_bytes) == 1;
#else
  (void)mmap_bytes, (void)keep_bytes;
  return false;
#endif
}

// Zeroes private memory by giving its whole pages back: the system hands out zeros where they are touched again, and
// what is only read takes no memory.
void clear_pages(Address begin, int64_t bytes) {
  Address end = begin + static_cast<Address>(bytes);
#ifdef __linux__
  Address page = static_cast<Address>(sysconf(_SC_PAGESIZE));
  Address first = (begin + page - 1) / page * page, last = end / page * page;
  if (first < last && madvise(at(first), last - first, MADV_DONTNEED) == 0) {
    std::memset(at(begin), 0, first - begin);
    std::memset(at(last), 0, end - last);
    return;
  }
#endif
  std::memset(at(begin), 0, end - begin);
}

}  // namespace

PYBIND11_MODULE(_kernels_cpu, m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.doc() = "Training kernels of the host; called through megatron_synE.kernels, which validates the arguments.";
  m.def("instruction_set", &instruction_set, "The instruction set that this machine's dispatch picks.");
  m.def("made_by_intel", &made_by_intel, "Whether the processor is Intel's.");
  m.def("has_openmp", &has_openmp);
  m.def("max_threads", &syne::max_threads);
  m.def("set_heap_limits", &set_heap_limits);
  m.def("clear_pages", &clear_pages, release());

  m.def(
      "rms_norm_forward",
      [](int dtype, Address x, Address residual, Address weight, Address summed, Address y, Address rstd, int64_t rows,
         int64_t width, float eps) {
        syne::rms_norm_forward(type_of(dtype), at(x), at(residual), at(weight), at(summed), at(y), at<float>(rstd),
                               rows, width, eps);
      },
      release());
  m.def(
      "rms_norm_backward",
      [](int dtype, Address dy, Address dsummed, Address x, Address weight, Address rstd, Address dx, Address dweight,
         int64_t rows, int64_t width) {
        syne::rms_norm_backward(type_of(dtype), at(dy), at(dsummed), at(x), at(weight), at<float>(rstd), at(dx),
                                at<float>(dweight), rows, width);
      },
      release());
  m.def(
      "rope_in_place",
      [](int dtype, Address packed, Address cos, Address sin, Address positions, int64_t tokens, int64_t groups,
         int64_t group_heads, int64_t rotated_heads, int64_t head_dim, bool inverse) {
        syne::rope_in_place(type_of(dtype), at(packed), at<float>(cos), at<float>(sin), at<int64_t>(positions),
                            tokens, groups, group_heads, rotated_heads, head_dim, inverse);
      },
      release());
  m.def(
      "swiglu_forward",
      [](int dtype, Address x, Address y, int64_t rows, int64_t width) {
        syne::swiglu_forward(type_of(dtype), at(x), at(y), rows, width);
      },
      release());
  m.def(
      "swiglu_backward",
      [](int dtype, Address dy, Address x, Address dx, int64_t rows, int64_t width) {
        syne::swiglu_backward(type_of(dtype), at(dy), at(x), at(dx), rows, width);
      },
      release());
  m.def(
      "cross_entropy",
      [](int dtype, Address logits, int pass, Address targets, Address scale, Address row_max, Address row_sum,
         Address target_logit, int64_t rows, int64_t columns, int64_t valid_columns, int64_t row_stride) {
        syne::cross_entropy(type_of(dtype), at(logits), static_cast<syne::CrossEntropyPass>(pass), rows,
                            {at<int64_t>(targets), at<float>(scale), at<float>(row_max), at<float>(row_sum),
                             at<float>(target_logit), columns, valid_columns, row_stride});
      },
      release());
  m.def(
      "causal_softmax_forward",
      [](int dtype, Address scores, Address logsumexp, int64_t rows, int64_t columns, int64_t queries, int64_t repeats,
         float scale) {
        syne::causal_softmax_forward(type_of(dtype), at(scores), at<float>(logsumexp), rows, columns, queries, repeats,
                                     scale);
      },
      release());
  m.def(
      "causal_softmax_backward",
      [](int dtype, Address scores, Address dprobabilities, Address logsumexp, int64_t rows, int64_t columns,
         int64_t queries, int64_t repeats, float scale) {
        syne::causal_softmax_backward(type_of(dtype), at(scores), at(dprobabilities), at<float>(logsumexp), rows,
                                      columns, queries, repeats, scale);
      },
      release());
  m.def(
      "accumulate",
      [](int dtype, Address target, Address addend, int64_t count, Address scale) {
        syne::accumulate(type_of(dtype), at<float>(target), at(addend), count, at<float>(scale));
      },
      release());
  m.def(
      "sum_of_squares",
      [](int dtype, Address values, int64_t count) { return syne::sum_of_squares(type_of(dtype), at(values), count); },
      release());
  m.def(
      "scale_in_place",
      [](Address values, int64_t count, float factor) { syne::scale_in_place(at<float>(values), count, factor); },
      release());
  m.def(
      "adamw",
      [](int grad_dtype, int exp_avg_dtype, int exp_avg_sq_dtype, Address param, Address model_param,
         Address remainder, Address grad, Address exp_avg, Address exp_avg_sq, int64_t count, float lr, float beta1,
         float beta2, float eps, float weight_decay, float bias_correction1, float bias_correction2, float grad_scale) {
        syne::adamw({at<float>(param), at<syne::bf16>(model_param), at<int16_t>(remainder), at(grad), at(exp_avg),
                     at(exp_avg_sq), type_of(grad_dtype), type_of(exp_avg_dtype), type_of(exp_avg_sq_dtype)},
                    count, {lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, grad_scale});
      },
      release());
}
