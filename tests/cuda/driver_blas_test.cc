// The stand-in for cuBLASLt: products against sums in double, and every argument that it refuses.
#include <cmath>
#include <functional>
#include <random>

#include "tests/cuda/driver_support.h"

namespace sg::test {
namespace {

std::uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float from_bf16(std::uint16_t x) { return std::bit_cast<float>(std::uint32_t{x} << 16); }

struct Spec {
  std::uint64_t m = 5, n = 7, k = 9;
  bool transposed_a = false, transposed_b = false;
  cublasLtOrder_t order_a = CUBLASLT_ORDER_COL, order_b = CUBLASLT_ORDER_COL, order_d = CUBLASLT_ORDER_COL;
  std::int64_t pad = 0;  // of each line
  int batch = 1;
  cudaDataType_t in = CUDA_R_32F, out = CUDA_R_32F;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  std::uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  double alpha = 1, beta = 0;
};

class EmulatedBlas : public EmulatedTest {
 protected:
  void SetUp() override {
    EmulatedTest::SetUp();
    ASSERT_EQ(blas().cublasLtCreate_(&handle_), CUBLAS_STATUS_SUCCESS);
  }
  void TearDown() override {
    EXPECT_EQ(blas().cublasLtDestroy_(handle_), CUBLAS_STATUS_SUCCESS);
    EmulatedTest::TearDown();
  }
  const cuda::BlasApi& blas() const { return tables().blas; }
  cublasLtHandle_t handle() const { return handle_; }

  static void expect_refused(cublasStatus_t got, cublasStatus_t wanted, const std::string& words) {
    EXPECT_EQ(got, wanted);
    SG_EXPECT_CONTAINS(report(), words);
    clear();
  }

 private:
  cublasLtHandle_t handle_ = nullptr;
};

// A matrix on the device and its numbers on the host, element (i, j) of item b.
struct Operand {
  cublasLtMatrixLayout_t layout = nullptr;
  CUdeviceptr data = 0;
  std::uint64_t rows, cols;
  std::int64_t ld, stride;
  cublasLtOrder_t order;
  cudaDataType_t type;
  std::vector<double> values;  // as stored, padding included
  double at(int b, std::uint64_t i, std::uint64_t j) const { return values[index(b, i, j)]; }
  std::size_t index(int b, std::uint64_t i, std::uint64_t j) const {
    const std::uint64_t ld64 = static_cast<std::uint64_t>(ld);
    return static_cast<std::size_t>(b * stride) + (order == CUBLASLT_ORDER_COL ? j * ld64 + i : i * ld64 + j);
  }
};

// Everything that a call of cublasLtMatmul takes, to be spoilt one by one.
class Call {
 public:
  using Upload = std::function<CUdeviceptr(const std::vector<double>&, cudaDataType_t)>;
  Call(const cuda::BlasApi& blas, cublasLtHandle_t handle, CUstream stream, const Spec& spec, const Upload& upload)
      : blas_(blas), handle_(handle), stream_(stream), spec_(spec) {
    const bool ta = spec.transposed_a, tb = spec.transposed_b;
    a = make(ta ? spec.k : spec.m, ta ? spec.m : spec.k, spec.order_a, spec.in);
    b = make(tb ? spec.n : spec.k, tb ? spec.k : spec.n, spec.order_b, spec.in);
    d = make(spec.m, spec.n, spec.order_d, spec.out);
    c = make(spec.m, spec.n, spec.order_d, spec.out);
    for (Operand* o : {&a, &b, &c, &d}) o->data = upload(o->values, o->type);
    for (std::uint64_t i = 0; i < spec.m; ++i) bias_values.push_back(draw(spec.out));
    bias = upload(bias_values, spec.out);
    workspace = upload(std::vector<double>(workspace_bytes / 4), CUDA_R_32F);
    scale = spec.compute == CUBLAS_COMPUTE_64F ? CUDA_R_64F : CUDA_R_32F;
    check(blas.cublasLtMatmulDescCreate_(&desc, spec.compute, scale));
    const std::int32_t op_a = ta ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    set(CUBLASLT_MATMUL_DESC_TRANSA, op_a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, op_b);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, spec.epilogue);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    check(blas.cublasLtMatmulPreferenceCreate_(&preference));
    const std::uint64_t most = workspace_bytes;
    check(blas.cublasLtMatmulPreferenceSetAttribute_(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, 8));
  }
  ~Call() {
    check(blas_.cublasLtMatmulDescDestroy_(desc));
    check(blas_.cublasLtMatmulPreferenceDestroy_(preference));
    for (const Operand* o : {&a, &b, &c, &d}) check(blas_.cublasLtMatrixLayoutDestroy_(o->layout));
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  template <class T>
  void set(cublasLtMatmulDescAttributes_t which, T value) {
    check(blas_.cublasLtMatmulDescSetAttribute_(desc, which, &value, sizeof value));
  }
  template <class T>
  void set(const Operand& o, cublasLtMatrixLayoutAttribute_t which, T value) {
    check(blas_.cublasLtMatrixLayoutSetAttribute_(o.layout, which, &value, sizeof value));
  }
  cublasStatus_t find() {
    int found = 0;
    const cublasStatus_t r = blas_.cublasLtMatmulAlgoGetHeuristic_(handle_, desc, a.layout, b.layout, c.layout,
                                                                   d.layout, preference, 1, &result, &found);
    EXPECT_EQ(found, r == CUBLAS_STATUS_SUCCESS ? 1 : 0);
    return r;
  }
  cublasStatus_t run() {
    const float alpha = static_cast<float>(spec_.alpha), beta = static_cast<float>(spec_.beta);
    const bool wide = scale == CUDA_R_64F;
    const auto pointer = [](CUdeviceptr p) { return reinterpret_cast<void*>(p); };
    const void* const by = wide ? static_cast<const void*>(&spec_.alpha) : &alpha;
    const void* const plus = wide ? static_cast<const void*>(&spec_.beta) : &beta;
    return blas_.cublasLtMatmul_(handle_, desc, by, pointer(a.data), a.layout, pointer(b.data), b.layout, plus,
                                 pointer(c.data), c.layout, pointer(d.data), d.layout, &result.algo, pointer(workspace),
                                 workspace_bytes, stream_);
  }
  double wanted(int item, std::uint64_t i, std::uint64_t j) const {
    double sum = 0;
    for (std::uint64_t x = 0; x < spec_.k; ++x)
      sum += (spec_.transposed_a ? a.at(item, x, i) : a.at(item, i, x)) *
             (spec_.transposed_b ? b.at(item, j, x) : b.at(item, x, j));
    sum = spec_.alpha * sum + spec_.beta * c.at(item, i, j);
    if (spec_.epilogue == CUBLASLT_EPILOGUE_BIAS || spec_.epilogue == CUBLASLT_EPILOGUE_RELU_BIAS)
      sum += bias_values[i];
    const bool relu = spec_.epilogue == CUBLASLT_EPILOGUE_RELU || spec_.epilogue == CUBLASLT_EPILOGUE_RELU_BIAS;
    return relu ? std::max(sum, 0.0) : sum;
  }

  Operand a, b, c, d;
  CUdeviceptr bias = 0, workspace = 0;
  std::size_t workspace_bytes = 1 << 16;
  cudaDataType_t scale = CUDA_R_32F;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulHeuristicResult_t result{};
  std::vector<double> bias_values;

 private:
  static void check(cublasStatus_t r) { EXPECT_EQ(r, CUBLAS_STATUS_SUCCESS) << cuda::emulated_report(); }
  double draw(cudaDataType_t type) {
    const double x = std::uniform_real_distribution<double>(-1, 1)(random_);
    return type == CUDA_R_64F   ? x
           : type == CUDA_R_32F ? double{static_cast<float>(x)}
                                : double{from_bf16(to_bf16(static_cast<float>(x)))};
  }
  Operand make(std::uint64_t rows, std::uint64_t cols, cublasLtOrder_t order, cudaDataType_t type) {
    const bool by_column = order == CUBLASLT_ORDER_COL;
    Operand o;
    o.rows = rows, o.cols = cols, o.order = order, o.type = type;
    o.ld = static_cast<std::int64_t>(by_column ? rows : cols) + spec_.pad;
    o.stride = o.ld * static_cast<std::int64_t>(by_column ? cols : rows);
    for (std::int64_t i = 0; i < o.stride * spec_.batch; ++i) o.values.push_back(draw(type));
    check(blas_.cublasLtMatrixLayoutCreate_(&o.layout, type, rows, cols, o.ld));
    const auto as = static_cast<std::int32_t>(order);
    set(o, CUBLASLT_MATRIX_LAYOUT_ORDER, as);
    set(o, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(spec_.batch));
    set(o, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, o.stride);
    return o;
  }

  const cuda::BlasApi& blas_;
  cublasLtHandle_t handle_;
  CUstream stream_;
  Spec spec_;
  std::mt19937 random_{5};
};

class EmulatedProducts : public EmulatedBlas {
 protected:
  CUdeviceptr upload_as(const std::vector<double>& values, cudaDataType_t type) {
    if (type == CUDA_R_64F) return upload(values);
    if (type == CUDA_R_32F) return upload(std::vector<float>(values.begin(), values.end()));
    std::vector<std::uint16_t> narrow;
    for (const double x : values) narrow.push_back(to_bf16(static_cast<float>(x)));
    return upload(narrow);
  }
  std::vector<double> download_as(CUdeviceptr p, std::size_t count, cudaDataType_t type) {
    if (type == CUDA_R_64F) return download<double>(p, count);
    std::vector<double> wide;
    if (type == CUDA_R_32F)
      for (const float x : download<float>(p, count)) wide.push_back(x);
    else
      for (const std::uint16_t x : download<std::uint16_t>(p, count)) wide.push_back(from_bf16(x));
    return wide;
  }
  Call call(const Spec& spec) {
    return Call(blas(), handle(), stream(), spec,
                [this](const std::vector<double>& v, cudaDataType_t t) { return upload_as(v, t); });
  }
  void expect_right(Call& call, const Spec& spec, double tolerance) {
    const std::vector<double> got = download_as(call.d.data, call.d.values.size(), spec.out);
    std::vector<bool> inside(got.size(), false);
    for (int item = 0; item < spec.batch; ++item)
      for (std::uint64_t i = 0; i < spec.m; ++i)
        for (std::uint64_t j = 0; j < spec.n; ++j) {
          const std::size_t at = call.d.index(item, i, j);
          inside[at] = true;
          ASSERT_NEAR(got[at], call.wanted(item, i, j), tolerance) << item << ", " << i << ", " << j;
        }
    for (std::size_t i = 0; i < got.size(); ++i)
      if (!inside[i]) {
        ASSERT_EQ(got[i], call.d.values[i]) << "between the lines, at " << i;
      }
  }
  void expect_right(const Spec& spec, double tolerance) {
    Call c = call(spec);
    ASSERT_EQ(c.find(), CUBLAS_STATUS_SUCCESS) << report();
    ASSERT_EQ(c.run(), CUBLAS_STATUS_SUCCESS) << report();
    expect_right(c, spec, tolerance);
  }
};

TEST_F(EmulatedProducts, EveryLayout) {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true})
      for (const auto order_a : {CUBLASLT_ORDER_COL, CUBLASLT_ORDER_ROW})
        for (const auto order_b : {CUBLASLT_ORDER_COL, CUBLASLT_ORDER_ROW})
          for (const auto order_d : {CUBLASLT_ORDER_COL, CUBLASLT_ORDER_ROW})
            expect_right({.transposed_a = ta,
                          .transposed_b = tb,
                          .order_a = order_a,
                          .order_b = order_b,
                          .order_d = order_d,
                          .pad = 3,
                          .batch = 2},
                         1e-5);
}

TEST_F(EmulatedProducts, SizesAroundTilesAndBlocks) {
  for (const std::uint64_t m : {1, 15, 16, 17, 33})
    for (const std::uint64_t n : {1, 6, 7, 40})
      for (const std::uint64_t k : {1, 256, 300}) expect_right({.m = m, .n = n, .k = k}, 1e-4);
}

TEST_F(EmulatedProducts, EveryTypeAndEpilogue) {
  for (const std::uint32_t epilogue :
       {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU_BIAS})
    for (const double beta : {0.0, -0.5}) {
      const Spec base{.epilogue = epilogue, .alpha = 1.5, .beta = beta};
      Spec spec = base;
      expect_right(spec, 1e-5);
      spec.in = CUDA_R_16BF;
      expect_right(spec, 1e-5);
      spec.out = CUDA_R_16BF;
      expect_right(spec, 0.05);
      spec = base;
      spec.in = spec.out = CUDA_R_64F;
      spec.compute = CUBLAS_COMPUTE_64F;
      expect_right(spec, 1e-14);
    }
}

TEST_F(EmulatedProducts, Tf32RoundsWhatGoesIn) {
  const Spec exact{.m = 32, .n = 32, .k = 64};
  expect_right(exact, 1e-5);
  Spec rounded = exact;
  rounded.compute = CUBLAS_COMPUTE_32F_FAST_TF32;
  expect_right(rounded, 2e-2);
  Call c = call(rounded);
  ASSERT_EQ(c.find(), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(c.run(), CUBLAS_STATUS_SUCCESS);
  const std::vector<double> got = download_as(c.d.data, c.d.values.size(), CUDA_R_32F);
  double worst = 0;
  for (std::uint64_t i = 0; i < 32; ++i)
    for (std::uint64_t j = 0; j < 32; ++j)
      worst = std::max(worst, std::abs(got[c.d.index(0, i, j)] - c.wanted(0, i, j)));
  EXPECT_GT(worst, 1e-4) << "ten bits of fraction, not 23";
}

TEST_F(EmulatedProducts, RunLazilyAndInGraphs) {
  const Spec spec;
  Call c = call(spec);
  ASSERT_EQ(c.find(), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(api().cuStreamBeginCapture_(stream(), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), CUDA_SUCCESS);
  ASSERT_EQ(c.run(), CUBLAS_STATUS_SUCCESS);
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  ASSERT_EQ(api().cuStreamEndCapture_(stream(), &graph), CUDA_SUCCESS);
  ASSERT_EQ(api().cuGraphInstantiateWithFlags_(&exec, graph, 0), CUDA_SUCCESS);
  EXPECT_EQ(download_as(c.d.data, c.d.values.size(), CUDA_R_32F), c.d.values) << "nothing ran yet";
  ASSERT_EQ(api().cuGraphLaunch_(exec, stream()), CUDA_SUCCESS);
  expect_right(c, spec, 1e-5);
  EXPECT_EQ(api().cuGraphExecDestroy_(exec), CUDA_SUCCESS);
  EXPECT_EQ(api().cuGraphDestroy_(graph), CUDA_SUCCESS);
}

TEST_F(EmulatedProducts, AWorkspaceIsOverwritten) {
  Call c = call({});
  ASSERT_EQ(c.find(), CUBLAS_STATUS_SUCCESS);
  EXPECT_GT(c.result.workspaceSize, 0u);
  ASSERT_EQ(c.run(), CUBLAS_STATUS_SUCCESS);
  EXPECT_TRUE(std::isnan(download<float>(c.workspace, 1)[0]));
}

TEST_F(EmulatedProducts, WhatCannotBeIsRefused) {
  constexpr auto invalid = CUBLAS_STATUS_INVALID_VALUE, unsupported = CUBLAS_STATUS_NOT_SUPPORTED;
  const struct {
    const char* words;
    cublasStatus_t answer;
    std::function<void(Call&)> spoil;
    Spec spec;
  } before[] = {
      // before an algorithm is looked for
      {"leading dimension 4 of A",
       invalid,
       [](Call& c) { c.set(c.a, CUBLASLT_MATRIX_LAYOUT_LD, std::int64_t{4}); },
       {}},
      {"shapes disagree", invalid, [](Call& c) { c.set(c.b, CUBLASLT_MATRIX_LAYOUT_ROWS, std::uint64_t{8}); }, {}},
      {"shapes disagree", invalid, [](Call& c) { c.set(c.d, CUBLASLT_MATRIX_LAYOUT_COLS, std::uint64_t{8}); }, {}},
      {"empty product",
       invalid,
       [](Call& c) {
         c.set(c.a, CUBLASLT_MATRIX_LAYOUT_COLS, std::uint64_t{0});
         c.set(c.b, CUBLASLT_MATRIX_LAYOUT_ROWS, std::uint64_t{0});
       },
       {}},
      {"in a batch of B",
       invalid,
       [](Call& c) { c.set(c.b, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, std::int32_t{2}); },
       {}},
      {"laid out differently", invalid, [](Call& c) { c.set(c.c, CUBLASLT_MATRIX_LAYOUT_LD, std::int64_t{6}); }, {}},
      {"of a batch overlap",
       invalid,
       [](Call& c) {
         for (const Operand* o : {&c.c, &c.d}) c.set(*o, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, std::int64_t{34});
       },
       {.batch = 2}},
      {"epilogue",
       unsupported,
       [](Call& c) { c.set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<std::uint32_t>(CUBLASLT_EPILOGUE_GELU)); },
       {}},
      {"D is by rows", unsupported, [](Call&) {}, {.order_d = CUBLASLT_ORDER_ROW, .epilogue = CUBLASLT_EPILOGUE_BIAS}},
      {"compute type", unsupported, [](Call&) {}, {.in = CUDA_R_16BF, .compute = CUBLAS_COMPUTE_32F_FAST_TF32}},
      {"compute type", unsupported, [](Call&) {}, {.in = CUDA_R_64F, .out = CUDA_R_64F}},
      {"compute type", unsupported, [](Call&) {}, {.out = CUDA_R_16BF}},
      {"alpha and beta on the device",
       unsupported,
       [](Call& c) {
         c.set(CUBLASLT_MATMUL_DESC_POINTER_MODE, static_cast<std::int32_t>(CUBLASLT_POINTER_MODE_DEVICE));
       },
       {}},
  };
  for (const auto& wrong : before) {
    SCOPED_TRACE(wrong.words);
    Call c = call(wrong.spec);
    wrong.spoil(c);
    expect_refused(c.find(), wrong.answer, wrong.words);
  }

  const struct {
    const char* words;
    std::function<void(Call&)> spoil;
  } after[] = {
      {"found for another product",
       [](Call& c) { c.set(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<std::uint32_t>(CUBLASLT_EPILOGUE_RELU)); }},
      {"found for another product", [](Call& c) { c.result.algo = {}; }},
      {"A, 180 bytes", [](Call& c) { c.a.data += 256; }},
      {"D, 140 bytes", [](Call& c) { c.d.data = 0; }},
      {"B at", [](Call& c) { c.b.data = c.workspace + 64; }},
      {"D overlaps", [](Call& c) { c.d.data = c.a.data; }},
      {"the algorithm needs", [](Call& c) { c.workspace_bytes = 8; }},
      {"the workspace", [](Call& c) { c.workspace += 256; }},
      {"the workspace", [](Call& c) { c.workspace += 128, c.workspace_bytes -= 128; }},
  };
  for (const auto& wrong : after) {
    SCOPED_TRACE(wrong.words);
    Call c = call({});
    const std::uint64_t half = c.workspace_bytes / 2;
    ASSERT_EQ(blas().cublasLtMatmulPreferenceSetAttribute_(c.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                           &half, sizeof half),
              CUBLAS_STATUS_SUCCESS);
    ASSERT_EQ(c.find(), CUBLAS_STATUS_SUCCESS);
    wrong.spoil(c);
    expect_refused(c.run(), invalid, wrong.words);
  }
}

TEST_F(EmulatedProducts, AttributesAndHandlesAreChecked) {
  Call c = call({});
  const std::int32_t wide = 0;
  const std::int64_t wider = 0;
  expect_refused(blas().cublasLtMatmulDescSetAttribute_(c.desc, CUBLASLT_MATMUL_DESC_TRANSA, &wider, sizeof wider),
                 CUBLAS_STATUS_INVALID_VALUE, "an attribute of 4 bytes, 8 were given");
  expect_refused(blas().cublasLtMatmulDescSetAttribute_(c.desc, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &wide, 4),
                 CUBLAS_STATUS_NOT_SUPPORTED, "is not emulated");
  cublasLtMatrixLayout_t half = nullptr;
  expect_refused(blas().cublasLtMatrixLayoutCreate_(&half, CUDA_R_16F, 2, 2, 2), CUBLAS_STATUS_NOT_SUPPORTED, "type");
  expect_refused(blas().cublasLtMatrixLayoutDestroy_(half), CUBLAS_STATUS_INVALID_VALUE, "no such layout");
  cublasLtHandle_t handle = nullptr;
  ASSERT_EQ(api().cuCtxSetCurrent_(nullptr), CUDA_SUCCESS);
  expect_refused(blas().cublasLtCreate_(&handle), CUBLAS_STATUS_NOT_INITIALIZED, "no current context");
  ASSERT_EQ(api().cuCtxSetCurrent_(context()), CUDA_SUCCESS);
}

TEST_F(EmulatedProducts, OperandsThatNobodyWroteAreReported) {
  open({.check_initialised = true});
  Call c = call({.pad = 2});
  ASSERT_EQ(c.find(), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(c.run(), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(synchronize(), CUDA_SUCCESS) << report();
  const CUdeviceptr written = std::exchange(c.b.data, allocate(c.b.values.size() * sizeof(float)));
  ASSERT_EQ(c.run(), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(synchronize(), CUDA_ERROR_LAUNCH_FAILED);
  SG_EXPECT_CONTAINS(report(), "cublasLtMatmul: B");
  clear();
  c.b.data = written;
}

}  // namespace
}  // namespace sg::test
