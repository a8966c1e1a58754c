// What the tests of the cuda backend share. They run on whichever device stopgrad_tests was given (--cuda=emulated or
// --cuda=device), and are skipped with the reason where it has none.
#pragma once
#include <gtest/gtest.h>

#include <vector>

#include "backends/backends.h"
#include "backends/cuda/cuda_backend.h"
#include "core/program.h"
#include "tests/support/expect.h"

namespace sg::test {

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!cuda::no_cuda().empty()) GTEST_SKIP() << cuda::no_cuda();
  }
  static Backend& cuda_backend() { return backend("cuda"); }
  static cuda::Device& device() { return cuda::device_of(cuda_backend()); }
  static const cuda::Device::Counters& counters() { return device().counters(); }
};

// The value on both backends, of a tape that needs no input.
struct Both {
  Tensor cuda, cpu;
};
inline Both on_both(Value v, CompileOptions options = {}) {
  return {eval(v, backend("cuda"), options), eval(v, backend("cpu"), options)};
}

}  // namespace sg::test
