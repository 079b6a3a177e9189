// Whether the kernels run on the current device.
#include "cuda/common.cuh"

namespace syne {
namespace {

__global__ void empty_kernel() {}

}  // namespace

std::string problem() {
  // Fails where the driver is older than the runtime, and where no code was compiled for the device.
  cudaFuncAttributes attributes;
  cudaError_t status = cudaFuncGetAttributes(&attributes, empty_kernel);
  if (status == cudaSuccess) return {};
  cudaGetLastError();  // or the next launch would report it
  return cudaGetErrorString(status);
}

}  // namespace syne
