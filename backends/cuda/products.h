// Matrix products by cuBLASLt: a plan made once, while a program is compiled, and run any number of times.
#pragma once
#include <memory>
#include <string>

#include "backends/cuda/device.h"
#include "core/dtype.h"

namespace sg::cuda {

// Row-major C (m,n) = A' B' with sums in f32 (f64 for f64), where A is (m,k), or (k,m) and A' its transpose; B
// likewise. `batch` such products, each so many elements after the last. f32 operands are multiplied as they are unless
// tf32() is on.
struct Product {
  std::int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  std::int64_t lda = 0, ldb = 0, ldc = 0;  // elements from row to row as stored; 0: dense
  std::int64_t batch = 1, stride_a = 0, stride_b = 0, stride_c = 0;
  DType in = DType::f32, out = DType::f32;  // of A and B; of C: as A, or f32 for bf16
  bool accumulate = false;                  // C += A' B'
  unsigned alignment = 64;                  // bytes, of every pointer that run() is given
};

// Nothing is written where C has no elements; zeros where k = 0 (C must be dense then).
// The same product gives the same bits every time: partial sums along k are kept in f32 in the workspace, and added in
// a fixed order.
class Gemm {
 public:
  // Asks cuBLASLt for its best algorithm. Error{backend} where the library is absent, Error{unsupported} where it has
  // none.
  Gemm(Device& device, const Product& product);
  std::size_t workspace_bytes() const;  // of device memory, 256-byte aligned, that run() may overwrite
  void run(const void* a, const void* b, void* c, void* workspace) const;  // enqueues
  std::string detail() const;

 private:
  struct Plan;
  std::shared_ptr<const Plan> plan_;
};

}  // namespace sg::cuda
