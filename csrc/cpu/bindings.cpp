// megatron_synE._kernels_cpu. Pointers arrive as integers: Python has checked dtype, shape and contiguity.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/common.h"

namespace py = pybind11;

namespace {

std::string instruction_set() {
#if SYNE_HAS_MULTIVERSION
  __builtin_cpu_init();
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
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

}  // namespace

PYBIND11_MODULE(_kernels_cpu, m) {
  m.doc() = "Training kernels of the host; called through megatron_synE.kernels, which validates the arguments.";
  m.def("instruction_set", &instruction_set, "The instruction set that this machine's dispatch picks.");
  m.def("has_openmp", &has_openmp);
  m.def("max_threads", &syne::max_threads);
}
