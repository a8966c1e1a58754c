// The seam between the cuda backend and NVIDIA's libraries: tables of function pointers, typed by NVIDIA's own
// declarations. They are filled from libcuda.so.1, libcublasLt.so and libnvrtc.so when first asked for, or by the
// emulated driver of tests/cuda_emulator. Nothing of the backend calls a CUDA function but through a table, so one binary
// runs with and without a driver.
#pragma once
#include <cublasLt.h>
#include <cuda.h>
#include <nvrtc.h>

#include <string>

namespace sg::cuda {

#define SG_CUDA_DRIVER_FUNCTIONS(X)                                                                                  \
  X(cuInit) X(cuDriverGetVersion) X(cuDeviceGetCount) X(cuDeviceGet) X(cuDeviceGetName) X(cuDeviceGetAttribute)      \
  X(cuDeviceTotalMem) X(cuDevicePrimaryCtxRetain) X(cuDevicePrimaryCtxRelease) X(cuCtxSetCurrent)                    \
  X(cuCtxSynchronize) X(cuMemGetInfo) X(cuModuleLoadDataEx) X(cuModuleUnload) X(cuModuleGetFunction)                 \
  X(cuFuncSetAttribute) X(cuFuncGetAttribute) X(cuFuncGetParamInfo) X(cuLaunchKernel)                                \
  X(cuOccupancyMaxActiveBlocksPerMultiprocessor) X(cuMemAlloc) X(cuMemFree) X(cuMemHostAlloc) X(cuMemFreeHost)       \
  X(cuMemcpyHtoDAsync) X(cuMemcpyDtoHAsync) X(cuMemcpyDtoDAsync) X(cuMemsetD8Async) X(cuStreamCreate)                \
  X(cuStreamDestroy) X(cuStreamSynchronize) X(cuStreamWaitEvent) X(cuStreamBeginCapture) X(cuStreamEndCapture)       \
  X(cuStreamIsCapturing) X(cuEventCreate) X(cuEventDestroy) X(cuEventRecord) X(cuEventQuery) X(cuEventSynchronize)   \
  X(cuEventElapsedTime) X(cuGraphInstantiateWithFlags) X(cuGraphLaunch) X(cuGraphGetNodes) X(cuGraphDestroy)         \
  X(cuGraphExecDestroy) X(cuGetErrorName) X(cuGetErrorString)

#define SG_CUDA_BLAS_FUNCTIONS(X)                                                                                    \
  X(cublasLtCreate) X(cublasLtDestroy) X(cublasLtGetVersion) X(cublasLtGetStatusString)                              \
  X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescDestroy) X(cublasLtMatmulDescSetAttribute)                         \
  X(cublasLtMatrixLayoutCreate) X(cublasLtMatrixLayoutDestroy) X(cublasLtMatrixLayoutSetAttribute)                   \
  X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceDestroy) X(cublasLtMatmulPreferenceSetAttribute)       \
  X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmul)

#define SG_CUDA_NVRTC_FUNCTIONS(X)                                                                                   \
  X(nvrtcVersion) X(nvrtcCreateProgram) X(nvrtcDestroyProgram) X(nvrtcCompileProgram) X(nvrtcGetPTXSize)             \
  X(nvrtcGetPTX) X(nvrtcGetCUBINSize) X(nvrtcGetCUBIN) X(nvrtcGetProgramLogSize) X(nvrtcGetProgramLog)               \
  X(nvrtcGetErrorString) X(nvrtcGetNumSupportedArchs) X(nvrtcGetSupportedArchs)

#define SG_CUDA_MEMBER(f) decltype(&::f) f##_ = nullptr;  // the trailing _ keeps cuda.h's renaming macros (_v2) away
struct DriverApi { SG_CUDA_DRIVER_FUNCTIONS(SG_CUDA_MEMBER) };
struct BlasApi { SG_CUDA_BLAS_FUNCTIONS(SG_CUDA_MEMBER) };
struct NvrtcApi { SG_CUDA_NVRTC_FUNCTIONS(SG_CUDA_MEMBER) };
#undef SG_CUDA_MEMBER

// Each table is whole, or its `no_...` says why it is absent ("libcuda.so.1: cannot open shared object file ...").
struct Tables {
  DriverApi driver;
  BlasApi blas;
  NvrtcApi nvrtc;
  std::string no_driver, no_blas, no_nvrtc;
  bool emulated = false;   // kernels are interpreted on the host: every name and report says so, nothing is timed
};

// From the libraries of this machine, opened once, at the first call. Never throws.
// cuBLASLt and NVRTC are opened only where there is a driver.
const Tables& system_tables();

// Fills the table from libnvrtc, which needs neither driver nor GPU. The reason where it is absent, or nothing.
std::string open_nvrtc(NvrtcApi& table);

}  // namespace sg::cuda
