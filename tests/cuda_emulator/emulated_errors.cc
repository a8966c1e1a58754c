// Names and words of what the emulated driver answers.
#include <algorithm>
#include <iterator>

#include "tests/cuda_emulator/emulated_machine.h"

namespace sg::cuda::emulated {
namespace {

struct Row {
  CUresult result;
  const char* name;
  const char* words;
};
#define SG_ROW(result, words) \
  { result, #result, words }
constexpr Row kRows[] = {
    SG_ROW(CUDA_SUCCESS, "no error"),
    SG_ROW(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    SG_ROW(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    SG_ROW(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    SG_ROW(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    SG_ROW(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    SG_ROW(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    SG_ROW(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    SG_ROW(CUDA_ERROR_INVALID_PTX, "a PTX JIT compilation failed"),
    SG_ROW(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    SG_ROW(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    SG_ROW(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    SG_ROW(CUDA_ERROR_NOT_READY, "device not ready"),
    SG_ROW(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    SG_ROW(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    SG_ROW(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"),
    SG_ROW(CUDA_ERROR_ASSERT, "device-side assert triggered"),
    SG_ROW(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    SG_ROW(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    SG_ROW(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    SG_ROW(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    SG_ROW(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    SG_ROW(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences"),
    SG_ROW(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began"),
    SG_ROW(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    SG_ROW(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    SG_ROW(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    SG_ROW(CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef SG_ROW

CUresult look_up(CUresult r, const char* Row::*what, const char** text) {
  const auto row = std::find_if(std::begin(kRows), std::end(kRows), [&](const Row& x) { return x.result == r; });
  *text = row == std::end(kRows) ? nullptr : (*row).*what;
  return row == std::end(kRows) ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

}  // namespace

CUresult error_name(CUresult r, const char** text) { return look_up(r, &Row::name, text); }

void fill_errors(DriverApi& table) {
  table.cuGetErrorName_ = [](CUresult r, const char** text) -> CUresult { return error_name(r, text); };
  table.cuGetErrorString_ = [](CUresult r, const char** text) -> CUresult {
    Machine& m = Machine::instance();
    const std::lock_guard lock(m.mutex);
    const CUresult found = look_up(r, &Row::words, text);
    if (found != CUDA_SUCCESS || r != m.failure || r == CUDA_SUCCESS) return found;
    thread_local std::string with_report;  // a real driver knows no more than the words
    with_report = std::string(*text) + "\n" + m.report;
    *text = with_report.c_str();
    return CUDA_SUCCESS;
  };
}

}  // namespace sg::cuda::emulated
