// Stands in for CUDA's header: what csrc/cuda/kernels.h, bindings.cpp and host code ask of the runtime.
#pragma once
#include <cstddef>

#define CUDART_VERSION 0

typedef struct HostCudaStream* cudaStream_t;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetLastError();
cudaError_t cudaMemsetAsync(void* target, int value, std::size_t bytes, cudaStream_t stream);
const char* cudaGetErrorString(cudaError_t error);
