#include "backends/cuda/products.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/launches.h"

namespace sg::cuda {
namespace {

std::atomic<bool> g_tf32{false};

void check(const Device& device, cublasStatus_t r, const char* call) {
  if (r == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorKind::backend, "cuda: {} failed on {}: {}", call, device.name(),
       device.tables().blas.cublasLtGetStatusString_(r));
}

// A handle of cuBLASLt and the call that ends it.
template <class Handle>
class Owned {
 public:
  using End = cublasStatus_t (*)(Handle);
  Owned() = default;
  ~Owned() {
    if (handle_ != nullptr) end_(handle_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  Handle* made(End end) {
    end_ = end;
    return &handle_;
  }
  operator Handle() const { return handle_; }

 private:
  Handle handle_ = nullptr;
  End end_ = nullptr;
};

cudaDataType_t type_of(DType t) { return t == DType::f64 ? CUDA_R_64F : t == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

std::string words(const Product& p) {
  return fmt::format("{}{}x{}x{} {}{}{}", p.batch > 1 ? fmt::format("{} times ", p.batch) : "", p.m, p.n, p.k,
                     to_string(p.in), p.in == DType::f32 && tf32() ? " as tf32" : "",
                     p.in == p.out ? "" : fmt::format(" to {}", to_string(p.out)));
}

}  // namespace

bool tf32() { return g_tf32; }
void set_tf32(bool on) { g_tf32 = on; }

// cuBLASLt's matrices are column-major: a row-major C = A' B' is C^T = B'^T A'^T to it, so that its first operand is
// our B and its second our A, as they are stored.
struct Gemm::Plan {
  Plan(Device& d, const Product& p) : device(d), product(p), text(words(p)) {
    if (p.m == 0 || p.n == 0 || p.batch == 0 || p.k == 0) return;
    const std::int64_t most = std::numeric_limits<std::int32_t>::max();
    if (std::max({p.m, p.n, p.k, p.batch}) > most)
      fail(ErrorKind::unsupported, "cuda: product {} has an extent above {}", text, most);
    const BlasApi& blas = d.tables().blas;
    const cublasLtHandle_t handle = d.blas();
    const bool reduced = p.in == DType::f32 && tf32();
    const cublasComputeType_t sums = p.in == DType::f64 ? CUBLAS_COMPUTE_64F
                                     : reduced          ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                        : CUBLAS_COMPUTE_32F;
    check(d,
          blas.cublasLtMatmulDescCreate_(desc.made(blas.cublasLtMatmulDescDestroy_), sums,
                                         p.in == DType::f64 ? CUDA_R_64F : CUDA_R_32F),
          "cublasLtMatmulDescCreate");
    transpose(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b);
    transpose(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a);
    layout(first, p.in, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.ldb, p.stride_b);
    layout(second, p.in, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.lda, p.stride_a);
    layout(result, p.out, p.m, p.n, p.ldc, p.stride_c);
    find(handle);
  }

  void transpose(cublasLtMatmulDescAttributes_t which, bool on) {
    const cublasOperation_t op = on ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(device, device.tables().blas.cublasLtMatmulDescSetAttribute_(desc, which, &op, sizeof op),
          "cublasLtMatmulDescSetAttribute");
  }
  void layout(Owned<cublasLtMatrixLayout_t>& to, DType type, std::int64_t rows, std::int64_t columns, std::int64_t ld,
              std::int64_t stride) {
    const BlasApi& blas = device.tables().blas;
    check(device,
          blas.cublasLtMatrixLayoutCreate_(to.made(blas.cublasLtMatrixLayoutDestroy_), type_of(type),
                                           static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows),
                                           ld == 0 ? columns : ld),
          "cublasLtMatrixLayoutCreate");
    if (product.batch == 1) return;
    const auto count = static_cast<std::int32_t>(product.batch);
    const auto set = [&](cublasLtMatrixLayoutAttribute_t which, const auto& value) {
      check(device, blas.cublasLtMatrixLayoutSetAttribute_(to, which, &value, sizeof value),
            "cublasLtMatrixLayoutSetAttribute");
    };
    set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count);
    set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride);
  }
  void find(cublasLtHandle_t handle) {
    const BlasApi& blas = device.tables().blas;
    Owned<cublasLtMatmulPreference_t> preference;
    check(device, blas.cublasLtMatmulPreferenceCreate_(preference.made(blas.cublasLtMatmulPreferenceDestroy_)),
          "cublasLtMatmulPreferenceCreate");
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t which, const auto& value) {
      check(device, blas.cublasLtMatmulPreferenceSetAttribute_(preference, which, &value, sizeof value),
            "cublasLtMatmulPreferenceSetAttribute");
    };
    // As much as NVIDIA advises for the architecture.
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{device.arch() >= 90 ? 32u << 20 : 4u << 20});
    // Split sums may meet only in f32 and after all of them are there: neither in C's type nor in the order of arrival.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    for (const auto which : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                             CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      set(which, std::uint32_t{product.alignment});
    int found = 0;
    const cublasStatus_t r = blas.cublasLtMatmulAlgoGetHeuristic_(handle, desc, first, second, result, result,
                                                                  preference, 1, &choice, &found);
    if (r != CUBLAS_STATUS_NOT_SUPPORTED) check(device, r, "cublasLtMatmulAlgoGetHeuristic");
    if (r != CUBLAS_STATUS_SUCCESS || found == 0)
      fail(ErrorKind::unsupported, "cuda: cuBLASLt has no algorithm for product {} on {}", text, device.name());
  }

  Device& device;
  const Product product;
  const std::string text;
  Owned<cublasLtMatmulDesc_t> desc;
  Owned<cublasLtMatrixLayout_t> first, second, result;
  cublasLtMatmulHeuristicResult_t choice{};
};

Gemm::Gemm(Device& device, const Product& product) : plan_(std::make_shared<const Plan>(device, product)) {}

std::size_t Gemm::workspace_bytes() const { return plan_->choice.workspaceSize; }

std::string Gemm::detail() const { return "cuBLASLt " + plan_->text; }

void Gemm::run(const void* a, const void* b, void* c, void* workspace) const {
  const Product& p = plan_->product;
  Device& device = plan_->device;
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  if (p.k == 0) {
    const std::int64_t elements = p.batch * p.m * p.n;
    if (!p.accumulate) device.zero(c, static_cast<std::size_t>(elements) * size_of(p.out));
    return;
  }
  // Factors of the type of the sums.
  const float one = 1, zero = 0;
  const double one64 = 1, zero64 = 0;
  const bool wide = p.in == DType::f64;
  const void* const alpha = wide ? static_cast<const void*>(&one64) : &one;
  const void* const none = wide ? static_cast<const void*>(&zero64) : &zero;
  check(device,
        device.tables().blas.cublasLtMatmul_(device.blas(), plan_->desc, alpha, b, plan_->first, a, plan_->second,
                                             p.accumulate ? alpha : none, c, plan_->result, c, plan_->result,
                                             &plan_->choice.algo, workspace, workspace_bytes(), device.stream()),
        ("cublasLtMatmul of " + plan_->text).c_str());
}

namespace {

class ProductStep final : public Step {
 public:
  ProductStep(Device& device, LowerCtx& ctx, const Product& product)
      : gemm_(device, product), a_(ctx.in<void>(0)), b_(ctx.in<void>(1)), c_(ctx.out<void>()) {
    if (gemm_.workspace_bytes() > 0) ctx.scratch(gemm_.workspace_bytes(), &workspace_);
  }
  void run() override { gemm_.run(a_, b_, c_, workspace_); }
  std::string detail() const override { return gemm_.detail(); }

 private:
  const Gemm gemm_;
  const void *a_, *b_;
  void *c_, *workspace_ = nullptr;
};

}  // namespace

StepPtr lower_matmul(Device& device, LowerCtx& ctx) {
  const Shape &a = ctx.in_type(0).shape, &c = ctx.out_type().shape;
  Product p;
  p.transpose_a = ctx.attrs().i("transpose_a") != 0;
  p.transpose_b = ctx.attrs().i("transpose_b") != 0;
  p.m = c[-2];
  p.n = c[-1];
  p.k = a[p.transpose_a ? -2 : -1];
  p.batch = 1;
  for (int i = 0; i + 2 < c.rank(); ++i) p.batch *= c[i];
  p.stride_a = p.m * p.k;
  p.stride_b = p.k * p.n;
  p.stride_c = p.m * p.n;
  p.in = ctx.in_type(0).dtype;
  p.out = ctx.out_type().dtype;
  return std::make_unique<ProductStep>(device, ctx, p);
}

}  // namespace sg::cuda
