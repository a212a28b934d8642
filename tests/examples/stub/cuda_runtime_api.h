// The part of the CUDA runtime's interface that examples/cpp uses, written anew for its test; "device" memory is the
// process's own.
#pragma once

#include <cstddef>

enum cudaError_t { cudaSuccess = 0, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
typedef struct CUstream_st* cudaStream_t;
#define cudaStreamPerThread ((cudaStream_t)0x2)

extern "C" {
cudaError_t cudaGetDeviceCount(int* count);
char const* cudaGetErrorString(cudaError_t error);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpyAsync(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
}
