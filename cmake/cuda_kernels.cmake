# CUDA without CMake's CUDA language: host code is plain C++ that opens NVIDIA's libraries at run time, kernels are fatbins
# embedded in the library. Configures without a GPU or a driver.

set(SG_CUDA AUTO CACHE STRING "Build the cuda backend: AUTO (where the toolkit is found), ON (an error without it), OFF")
set_property(CACHE SG_CUDA PROPERTY STRINGS AUTO ON OFF)
set(SG_CUDA_MACHINE_ARCHS 80 90)  # machine code for these; what is newer is compiled by the driver from the PTX
set(SG_CUDA_PTX_ARCH 80)          # also what the tests interpret

# Sets SG_HAS_CUDA, or SG_NO_CUDA to the reason why not.
set(SG_HAS_CUDA OFF)
set(SG_NO_CUDA "")
if(NOT SG_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SG_CUDA=${SG_CUDA}: it is AUTO, ON or OFF")
elseif(SG_CUDA STREQUAL "OFF")
  set(SG_NO_CUDA "built with SG_CUDA=OFF")
else()
  find_package(CUDAToolkit 12.4 QUIET)  # cuFuncGetParamInfo is of 12.4
  if(NOT CUDAToolkit_FOUND)
    if(CUDAToolkit_VERSION)
      set(SG_NO_CUDA "the CUDA toolkit found is ${CUDAToolkit_VERSION}, 12.4 or newer is needed")
    else()
      set(SG_NO_CUDA "no CUDA toolkit was found when it was built")
    endif()
  elseif(NOT CUDAToolkit_NVCC_EXECUTABLE)
    set(SG_NO_CUDA "the CUDA toolkit found when it was built has no nvcc")
  else()
    foreach(header cuda.h cublasLt.h nvrtc.h)
      find_file(SG_CUDA_HEADER_${header} ${header} PATHS ${CUDAToolkit_INCLUDE_DIRS} NO_DEFAULT_PATH NO_CACHE)
      if(NOT SG_CUDA_HEADER_${header})
        set(SG_NO_CUDA "the CUDA toolkit found when it was built has no ${header}")
      endif()
    endforeach()
  endif()
  if(SG_NO_CUDA STREQUAL "")
    set(SG_HAS_CUDA ON)
  elseif(SG_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SG_CUDA=ON: ${SG_NO_CUDA}. Install the toolkit (nvcc, cuBLAS and NVRTC headers; no GPU or driver "
      "is needed), point -DCUDAToolkit_ROOT=... at it, or configure with -DSG_CUDA=OFF.")
  endif()
endif()
if(SG_HAS_CUDA)
  message(STATUS "cuda backend: on, toolkit ${CUDAToolkit_VERSION}, ${CUDAToolkit_NVCC_EXECUTABLE}")
else()
  message(STATUS "cuda backend: off, ${SG_NO_CUDA}")
endif()

# sg_add_kernels(TARGET FUNCTION a.cu b.cu ...)
# Each file becomes a fatbin in TARGET, which defines `std::span<const sg::cuda::Image> sg::cuda::FUNCTION()`, by name of
# the file. What ptxas says of registers and spills is kept beside the fatbin for the test cuda_registers.
function(sg_add_kernels target function)
  set(codes)
  foreach(arch ${SG_CUDA_MACHINE_ARCHS})
    list(APPEND codes -gencode arch=compute_${arch},code=sm_${arch})
  endforeach()
  list(APPEND codes -gencode arch=compute_${SG_CUDA_PTX_ARCH},code=compute_${SG_CUDA_PTX_ARCH})
  set(folder ${CMAKE_BINARY_DIR}/cuda/${function})
  file(MAKE_DIRECTORY ${folder})
  set(declarations "")
  set(entries "")
  foreach(source ${ARGN})
    get_filename_component(name ${source} NAME_WE)
    get_filename_component(source ${source} ABSOLUTE)
    set(fatbin ${folder}/${name}.fatbin)
    set(symbol sg_${function}_${name})
    add_custom_command(OUTPUT ${fatbin} BYPRODUCTS ${fatbin}.ptxas DEPFILE ${fatbin}.d
      DEPENDS ${source} ${CMAKE_SOURCE_DIR}/cmake/run_nvcc.cmake VERBATIM COMMENT "nvcc ${name}.fatbin"
      COMMAND ${CMAKE_COMMAND} -DSG_PTXAS_LOG=${fatbin}.ptxas -P ${CMAKE_SOURCE_DIR}/cmake/run_nvcc.cmake --
              ${CUDAToolkit_NVCC_EXECUTABLE} -std=c++20 -O3 -lineinfo --expt-relaxed-constexpr -allow-unsupported-compiler
              -ccbin ${CMAKE_CXX_COMPILER} --compress-mode=none -Xptxas=-v ${codes} -I${CMAKE_SOURCE_DIR}
              -MD -MF ${fatbin}.d -MT ${fatbin} -fatbin -o ${fatbin} ${source})
    set(embedding ${folder}/${name}.S)
    file(CONFIGURE OUTPUT ${embedding} @ONLY CONTENT [=[
    .section .rodata
    .balign 16
    .global @symbol@, @symbol@_end
@symbol@:
    .incbin "@fatbin@"
@symbol@_end:
    .byte 0
    .section .note.GNU-stack,"",@progbits
]=])
    set_source_files_properties(${embedding} PROPERTIES OBJECT_DEPENDS ${fatbin})
    target_sources(${target} PRIVATE ${embedding})
    string(APPEND declarations "extern \"C\" const unsigned char ${symbol}[], ${symbol}_end[];\n")
    string(APPEND entries "      {\"${name}\", ${symbol}, ${symbol}_end},\n")
  endforeach()
  set(registry ${folder}/${function}.cc)
  file(CONFIGURE OUTPUT ${registry} @ONLY CONTENT [=[
// Written by sg_add_kernels of cmake/cuda_kernels.cmake.
#include <vector>

#include "backends/cuda/images.h"

@declarations@
namespace sg::cuda {

std::span<const Image> @function@() {
  static const std::vector<Image> images{
@entries@  };
  return images;
}

}  // namespace sg::cuda
]=])
  target_sources(${target} PRIVATE ${registry})
endfunction()
