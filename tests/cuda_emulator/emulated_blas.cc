// A stand-in for the cuBLASLt calls that the backend makes: the same signatures, stricter checks. Matrices are
// multiplied by multiply() of emulated_product.cc; nothing here is of the speed or the rounding of cuBLAS.
//
//   D = epilogue(alpha * op(A) * op(B) + beta * C)
//
// Refused where cuBLASLt would be wrong or slow without a word: an algorithm of another problem, pointers that are
// aligned less than was promised, matrices that leave their allocation. A workspace is overwritten with 0xFF.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <set>
#include <type_traits>
#include <vector>

#include "tests/cuda_emulator/emulated_machine.h"
#include "tests/cuda_emulator/emulated_product.h"

namespace sg::cuda::emulated {
namespace {

struct Desc {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  std::int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  std::int32_t transposed_a = CUBLAS_OP_N, transposed_b = CUBLAS_OP_N;
  std::uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  std::uint64_t bias = 0;
  std::int32_t bias_type = -1;  // that of D
};

struct Layout {
  cudaDataType_t type = CUDA_R_32F;
  std::uint64_t rows = 0, cols = 0;
  std::int64_t ld = 0;
  std::int32_t order = CUBLASLT_ORDER_COL;
  std::int32_t batch = 1;
  std::int64_t stride = 0;  // in elements
};

struct Preference {
  std::uint64_t workspace = 0;
  std::array<std::uint32_t, 4> alignment{256, 256, 256, 256};  // A, B, C, D: bytes
};

// What an algorithm was found for.
struct Algorithm {
  std::uint64_t magic, problem, workspace;
  std::array<std::uint32_t, 4> alignment;
};
static_assert(std::is_trivial_v<Algorithm> && sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));
constexpr std::uint64_t kMagic = 0x656d756c61746564;
constexpr std::uint64_t kWorkspace = 1 << 16;  // what algorithms ask for, where they may

// Objects of one kind, by the handle that the caller holds.
template <class T>
struct Handles {
  std::set<T*> live;
  T* make(const T& value) { return *live.insert(new T(value)).first; }
  T* find(const void* handle) const {
    auto* p = static_cast<T*>(const_cast<void*>(handle));
    return live.count(p) != 0 ? p : nullptr;
  }
  bool destroy(const void* handle) {
    T* p = find(handle);
    if (p == nullptr) return false;
    live.erase(p);
    delete p;
    return true;
  }
};

struct Blas {
  Handles<int> handles;
  Handles<Desc> descs;
  Handles<Layout> layouts;
  Handles<Preference> preferences;
};
Blas& blas() {
  static Blas* const instance = new Blas;
  return *instance;
}

Machine& machine() { return Machine::instance(); }

template <class... A>
cublasStatus_t refuse(cublasStatus_t r, fmt::format_string<A...> format, A&&... arguments) {
  machine().refuse(CUDA_ERROR_INVALID_VALUE, format, std::forward<A>(arguments)...);
  return r;
}

// All functions begin here.
template <class F>
cublasStatus_t call(const char* function, F body) {
  cublasStatus_t status = CUBLAS_STATUS_INTERNAL_ERROR;
  const CUresult r = machine().call(function, Needs::nothing, [&] {
    status = body();
    return CUDA_SUCCESS;
  });
  return r == CUDA_SUCCESS ? status : CUBLAS_STATUS_EXECUTION_FAILED;
}

// Of an attribute's value: its bytes, where there are as many as it has.
template <class T, class U>
cublasStatus_t set(const char* function, T& to, const void* from, std::size_t bytes, U*) {
  if (from == nullptr || bytes != sizeof(U))
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: an attribute of {} bytes, {} were given", function, sizeof(U),
                  bytes);
  U value;
  std::memcpy(&value, from, sizeof value);
  to = static_cast<T>(value);
  return CUBLAS_STATUS_SUCCESS;
}
template <class T>
cublasStatus_t set(const char* function, T& to, const void* from, std::size_t bytes) {
  return set(function, to, from, bytes, static_cast<T*>(nullptr));
}

cublasStatus_t set_desc(cublasLtMatmulDesc_t handle, cublasLtMatmulDescAttributes_t which, const void* value,
                        std::size_t bytes) {
  static constexpr const char* name = "cublasLtMatmulDescSetAttribute";
  return call(name, [&] {
    Desc* d = blas().descs.find(handle);
    if (d == nullptr) return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: no such descriptor", name);
    switch (which) {
      case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        return set(name, d->pointer_mode, value, bytes);
      case CUBLASLT_MATMUL_DESC_TRANSA:
        return set(name, d->transposed_a, value, bytes);
      case CUBLASLT_MATMUL_DESC_TRANSB:
        return set(name, d->transposed_b, value, bytes);
      case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return set(name, d->epilogue, value, bytes);
      case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return set(name, d->bias, value, bytes);
      case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return set(name, d->bias_type, value, bytes);
      default:
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "{}: attribute {} is not emulated", name, static_cast<int>(which));
    }
  });
}

cublasStatus_t set_layout(cublasLtMatrixLayout_t handle, cublasLtMatrixLayoutAttribute_t which, const void* value,
                          std::size_t bytes) {
  static constexpr const char* name = "cublasLtMatrixLayoutSetAttribute";
  return call(name, [&] {
    Layout* l = blas().layouts.find(handle);
    if (l == nullptr) return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: no such layout", name);
    switch (which) {
      case CUBLASLT_MATRIX_LAYOUT_TYPE:
        return set(name, l->type, value, bytes, static_cast<std::uint32_t*>(nullptr));
      case CUBLASLT_MATRIX_LAYOUT_ORDER:
        return set(name, l->order, value, bytes);
      case CUBLASLT_MATRIX_LAYOUT_ROWS:
        return set(name, l->rows, value, bytes);
      case CUBLASLT_MATRIX_LAYOUT_COLS:
        return set(name, l->cols, value, bytes);
      case CUBLASLT_MATRIX_LAYOUT_LD:
        return set(name, l->ld, value, bytes);
      case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        return set(name, l->batch, value, bytes);
      case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return set(name, l->stride, value, bytes);
      default:
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "{}: attribute {} is not emulated", name, static_cast<int>(which));
    }
  });
}

cublasStatus_t set_preference(cublasLtMatmulPreference_t handle, cublasLtMatmulPreferenceAttributes_t which,
                              const void* value, std::size_t bytes) {
  static constexpr const char* name = "cublasLtMatmulPreferenceSetAttribute";
  return call(name, [&] {
    Preference* p = blas().preferences.find(handle);
    if (p == nullptr) return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: no such preference", name);
    switch (which) {
      case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return set(name, p->workspace, value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return set(name, p->alignment[0], value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return set(name, p->alignment[1], value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return set(name, p->alignment[2], value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return set(name, p->alignment[3], value, bytes);
      case CUBLASLT_MATMUL_PREF_SEARCH_MODE:  // one algorithm is all there is
      case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: {
        std::uint32_t ignored = 0;
        return set(name, ignored, value, bytes);
      }
      default:
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "{}: attribute {} is not emulated", name, static_cast<int>(which));
    }
  });
}

std::size_t size_of(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_64F:
      return 8;
    case CUDA_R_32F:
      return 4;
    case CUDA_R_16BF:
      return 2;
    default:
      return 0;
  }
}

bool has_bias(const Desc& d) {
  return d.epilogue == CUBLASLT_EPILOGUE_BIAS || d.epilogue == CUBLASLT_EPILOGUE_RELU_BIAS;
}

// Elements from the first to one past the last of all matrices of a layout.
std::uint64_t extent(const Layout& l) {
  if (l.rows == 0 || l.cols == 0) return 0;
  const std::uint64_t lines = l.order == CUBLASLT_ORDER_COL ? l.cols : l.rows;
  const std::uint64_t length = l.order == CUBLASLT_ORDER_COL ? l.rows : l.cols;
  return static_cast<std::uint64_t>(l.batch - 1) * static_cast<std::uint64_t>(l.stride) +
         (lines - 1) * static_cast<std::uint64_t>(l.ld) + length;
}

// Whether matrices of a batch share elements: they lie one after the other, or their lines take turns.
bool overlap(const Layout& l) {
  const std::uint64_t stride = static_cast<std::uint64_t>(l.stride), count = static_cast<std::uint64_t>(l.batch);
  const std::uint64_t length = l.order == CUBLASLT_ORDER_COL ? l.rows : l.cols;
  if (count == 1 || stride >= extent({l.type, l.rows, l.cols, l.ld, l.order})) return false;
  return stride < length || static_cast<std::uint64_t>(l.ld) < (count - 1) * stride + length;
}

struct Problem {
  Desc desc;
  std::array<Layout, 4> layouts;  // A, B, C, D
  std::uint64_t m = 0, n = 0, k = 0;
};
constexpr std::array kNames{"A", "B", "C", "D"};

cublasStatus_t check_types(const char* function, const Problem& p) {
  const Desc& d = p.desc;
  const cudaDataType_t a = p.layouts[0].type, b = p.layouts[1].type, c = p.layouts[2].type, out = p.layouts[3].type;
  bool known = false;
  switch (d.compute) {
    case CUBLAS_COMPUTE_64F:
      known = d.scale == CUDA_R_64F && a == CUDA_R_64F && out == CUDA_R_64F;
      break;
    case CUBLAS_COMPUTE_32F:
      known = d.scale == CUDA_R_32F && ((a == CUDA_R_32F && out == CUDA_R_32F) ||
                                        (a == CUDA_R_16BF && (out == CUDA_R_16BF || out == CUDA_R_32F)));
      break;
    case CUBLAS_COMPUTE_32F_FAST_TF32:
      known = d.scale == CUDA_R_32F && a == CUDA_R_32F && out == CUDA_R_32F;
      break;
    default:
      break;
  }
  if (known && b == a && c == out) return CUBLAS_STATUS_SUCCESS;
  return refuse(CUBLAS_STATUS_NOT_SUPPORTED,
                "{}: compute type {} with scale type {} and matrices of types {}, {}, {}, {}", function,
                static_cast<int>(d.compute), static_cast<int>(d.scale), static_cast<int>(a), static_cast<int>(b),
                static_cast<int>(c), static_cast<int>(out));
}

cublasStatus_t check(const char* function, Problem& p, const std::array<const void*, 5>& handles) {
  const Desc* desc = blas().descs.find(handles[0]);
  if (desc == nullptr) return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: no such descriptor", function);
  p.desc = *desc;
  for (std::size_t i = 0; i < 4; ++i) {
    const Layout* l = blas().layouts.find(handles[i + 1]);
    if (l == nullptr) return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: no such layout of {}", function, kNames[i]);
    p.layouts[i] = *l;
    if (l->order != CUBLASLT_ORDER_COL && l->order != CUBLASLT_ORDER_ROW)
      return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "{}: {} is neither by columns nor by rows", function, kNames[i]);
    const std::uint64_t length = l->order == CUBLASLT_ORDER_COL ? l->rows : l->cols;
    if (l->ld < 1 || static_cast<std::uint64_t>(l->ld) < length)
      return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: leading dimension {} of {}, which is {} x {}", function, l->ld,
                    kNames[i], l->rows, l->cols);
    if (l->batch < 1 || l->batch != p.layouts[0].batch || l->stride < 0)
      return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: {} products in a batch of {}, {} of A", function, l->batch,
                    kNames[i], p.layouts[0].batch);
  }
  const Layout &a = p.layouts[0], &b = p.layouts[1], &c = p.layouts[2], &d = p.layouts[3];
  if (p.desc.transposed_a > CUBLAS_OP_T || p.desc.transposed_b > CUBLAS_OP_T)
    return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "{}: an operation other than N and T", function);
  const bool ta = p.desc.transposed_a == CUBLAS_OP_T, tb = p.desc.transposed_b == CUBLAS_OP_T;
  p.m = ta ? a.cols : a.rows;
  p.k = ta ? a.rows : a.cols;
  p.n = tb ? b.rows : b.cols;
  if ((tb ? b.cols : b.rows) != p.k || d.rows != p.m || d.cols != p.n || c.rows != p.m || c.cols != p.n)
    return refuse(CUBLAS_STATUS_INVALID_VALUE,
                  "{}: shapes disagree: op(A) {} x {}, op(B) {} x {}, C {} x {}, D {} x {}", function, p.m, p.k,
                  tb ? b.cols : b.rows, p.n, c.rows, c.cols, d.rows, d.cols);
  if (p.m == 0 || p.n == 0 || p.k == 0)
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: an empty product, {} x {} x {}", function, p.m, p.n, p.k);
  if (c.order != d.order || c.ld != d.ld || c.stride != d.stride)
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: C and D are laid out differently", function);
  if (overlap(d))
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: the products of a batch overlap", function);
  if (p.desc.pointer_mode != CUBLASLT_POINTER_MODE_HOST)
    return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "{}: alpha and beta on the device are not emulated", function);
  switch (p.desc.epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
    case CUBLASLT_EPILOGUE_RELU:
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_RELU_BIAS:
      break;
    default:
      return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "{}: epilogue {} is not emulated", function, p.desc.epilogue);
  }
  if (has_bias(p.desc)) {
    if (d.order != CUBLASLT_ORDER_COL)
      return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "{}: a bias, where D is by rows", function);
    if (p.desc.bias_type != -1 && p.desc.bias_type != static_cast<std::int32_t>(d.type))
      return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "{}: the bias is of another type than D", function);
  }
  return check_types(function, p);
}

std::uint64_t fingerprint(const Problem& p) {
  std::uint64_t h = 0xcbf29ce484222325ull;
  const auto mix = [&](auto x) { h = (h ^ static_cast<std::uint64_t>(x)) * 0x100000001b3ull; };
  for (const auto x : {std::uint64_t(p.desc.compute), std::uint64_t(p.desc.transposed_a),
                       std::uint64_t(p.desc.transposed_b), std::uint64_t(p.desc.epilogue), p.m, p.n, p.k})
    mix(x);
  for (const Layout& l : p.layouts) {
    mix(l.type), mix(l.ld), mix(l.order), mix(l.batch), mix(l.stride);
  }
  return h;
}

cublasStatus_t get_heuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                             cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                             cublasLtMatmulPreference_t preference, int wanted,
                             cublasLtMatmulHeuristicResult_t* results, int* found) {
  static constexpr const char* name = "cublasLtMatmulAlgoGetHeuristic";
  return call(name, [&] {
    *found = 0;
    const Preference* pref = blas().preferences.find(preference);
    if (blas().handles.find(handle) == nullptr || pref == nullptr || wanted < 1 || results == nullptr)
      return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: no such handle or preference, or no result is wanted", name);
    Problem p;
    if (const cublasStatus_t r = check(name, p, {desc, a, b, c, d}); r != CUBLAS_STATUS_SUCCESS) return r;
    const Algorithm algorithm{kMagic, fingerprint(p), std::min(pref->workspace, kWorkspace), pref->alignment};
    results[0] = {};
    std::memcpy(&results[0].algo, &algorithm, sizeof algorithm);
    results[0].workspaceSize = algorithm.workspace;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].wavesCount = 1;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
  });
}

Product product_of(const Problem& p, double alpha, double beta, const std::array<std::uint64_t, 4>& at) {
  const auto element = [](cudaDataType_t t) {
    return t == CUDA_R_64F ? Element::f64 : t == CUDA_R_32F ? Element::f32 : Element::bf16;
  };
  const auto matrix = [&](std::size_t i, bool transposed) {
    const Layout& l = p.layouts[i];
    const bool by_column = (l.order == CUBLASLT_ORDER_COL) != transposed;
    return Matrix{reinterpret_cast<unsigned char*>(at[i]), element(l.type), by_column ? 1 : l.ld, by_column ? l.ld : 1,
                  l.stride};
  };
  Product q;
  q.a = matrix(0, p.desc.transposed_a == CUBLAS_OP_T);
  q.b = matrix(1, p.desc.transposed_b == CUBLAS_OP_T);
  q.c = matrix(2, false);
  q.d = matrix(3, false);
  q.m = static_cast<std::int64_t>(p.m);
  q.n = static_cast<std::int64_t>(p.n);
  q.k = static_cast<std::int64_t>(p.k);
  q.batch = p.layouts[0].batch;
  q.alpha = alpha;
  q.beta = beta;
  q.tf32 = p.desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  q.relu = p.desc.epilogue == CUBLASLT_EPILOGUE_RELU || p.desc.epilogue == CUBLASLT_EPILOGUE_RELU_BIAS;
  if (has_bias(p.desc)) q.bias = {reinterpret_cast<unsigned char*>(p.desc.bias), q.d.type, 1, 0, 0};
  return q;
}

// Whether the elements of a layout were all written: line by line, because what is between lines may not be.
bool readable(const Layout& l, std::uint64_t at, const char* which) {
  Machine& m = machine();
  const std::size_t size = size_of(l.type);
  const std::string by = fmt::format("cublasLtMatmul: {}", which);
  const bool inside = m.memory.holds(at, extent(l) * size);
  if (!inside || !m.options.check_initialised) return inside || m.readable(at, extent(l) * size, by);
  const bool by_column = l.order == CUBLASLT_ORDER_COL;
  const std::uint64_t lines = by_column ? l.cols : l.rows, length = by_column ? l.rows : l.cols;
  for (std::int64_t i = 0; i < l.batch; ++i)
    for (std::uint64_t j = 0; j < lines; ++j) {
      const std::uint64_t first = static_cast<std::uint64_t>(i * l.stride) + j * static_cast<std::uint64_t>(l.ld);
      if (!m.readable(at + first * size, length * size, by)) return false;
    }
  return true;
}

void mark_written(const Layout& l, std::uint64_t at) {
  if (!machine().options.check_initialised) return;
  const std::size_t size = size_of(l.type);
  const bool by_column = l.order == CUBLASLT_ORDER_COL;
  const std::uint64_t lines = by_column ? l.cols : l.rows, length = by_column ? l.rows : l.cols;
  for (std::int64_t i = 0; i < l.batch; ++i)
    for (std::uint64_t j = 0; j < lines; ++j)
      machine().memory.mark_written(
          at + (static_cast<std::uint64_t>(i * l.stride) + j * static_cast<std::uint64_t>(l.ld)) * size, length * size);
}

cublasStatus_t check_pointers(const Problem& p, const std::array<std::uint64_t, 4>& at, double beta,
                              const Algorithm* algorithm, std::uint64_t workspace, std::size_t workspace_bytes) {
  Machine& m = machine();
  for (std::size_t i = 0; i < 4; ++i) {
    if (i == 2 && beta == 0 && at[2] == 0) continue;
    const std::size_t size = size_of(p.layouts[i].type);
    if (!m.memory.holds(at[i], extent(p.layouts[i]) * size))
      return refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmul: {}, {} bytes at {:#x}, is not inside one allocation",
                    kNames[i], extent(p.layouts[i]) * size, at[i]);
    const std::size_t wanted = algorithm == nullptr ? 16 : std::max<std::size_t>(algorithm->alignment[i], size);
    if (at[i] % wanted != 0)
      return refuse(CUBLAS_STATUS_INVALID_VALUE,
                    "cublasLtMatmul: {} at {:#x} is not aligned to {} bytes, as was promised", kNames[i], at[i],
                    wanted);
  }
  const auto overlap = [&](std::size_t i) {
    const std::uint64_t end = at[i] + extent(p.layouts[i]) * size_of(p.layouts[i].type);
    return at[i] < at[3] + extent(p.layouts[3]) * size_of(p.layouts[3].type) && at[3] < end;
  };
  if (overlap(0) || overlap(1) || (beta != 0 && at[2] != at[3] && overlap(2)))
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmul: D overlaps what is read");
  if (has_bias(p.desc) && !m.memory.holds(p.desc.bias, p.m * size_of(p.layouts[3].type)))
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmul: the bias, {} elements, is not inside one allocation",
                  p.m);
  if (algorithm != nullptr && workspace_bytes < algorithm->workspace)
    return refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmul: a workspace of {} bytes, the algorithm needs {}",
                  workspace_bytes, algorithm->workspace);
  if (workspace_bytes > 0 && (!m.memory.holds(workspace, workspace_bytes) || workspace % 256 != 0))
    return refuse(
        CUBLAS_STATUS_INVALID_VALUE,
        "cublasLtMatmul: the workspace, {} bytes at {:#x}, is not inside one allocation or not aligned to 256",
        workspace_bytes, workspace);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t matmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* A,
                      cublasLtMatrixLayout_t a, const void* B, cublasLtMatrixLayout_t b, const void* beta,
                      const void* C, cublasLtMatrixLayout_t c, void* D, cublasLtMatrixLayout_t d,
                      const cublasLtMatmulAlgo_t* algo, void* workspace, std::size_t workspace_bytes,
                      cudaStream_t stream) {
  static constexpr const char* name = "cublasLtMatmul";
  return call(name, [&] {
    Machine& m = machine();
    if (m.failure != CUDA_SUCCESS) return CUBLAS_STATUS_EXECUTION_FAILED;
    if (blas().handles.find(handle) == nullptr || alpha == nullptr || beta == nullptr)
      return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: no such handle, or no alpha or beta", name);
    if (current_context() == nullptr || !m.streams.known(stream))
      return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: no current context, or no such stream", name);
    Problem p;
    if (const cublasStatus_t r = check(name, p, {desc, a, b, c, d}); r != CUBLAS_STATUS_SUCCESS) return r;
    Algorithm algorithm{};
    if (algo != nullptr) {
      std::memcpy(&algorithm, algo, sizeof algorithm);
      if (algorithm.magic != kMagic || algorithm.problem != fingerprint(p))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "{}: the algorithm was found for another product", name);
    }
    const auto scalar = [&](const void* x) {
      return p.desc.scale == CUDA_R_64F ? *static_cast<const double*>(x) : double{*static_cast<const float*>(x)};
    };
    const auto address = [](const void* x) { return reinterpret_cast<std::uint64_t>(x); };
    const double by = scalar(alpha), plus = scalar(beta);
    const std::array<std::uint64_t, 4> at{address(A), address(B), address(C), address(D)};
    const std::uint64_t work = address(workspace);
    const cublasStatus_t r = check_pointers(p, at, plus, algo == nullptr ? nullptr : &algorithm, work, workspace_bytes);
    if (r != CUBLAS_STATUS_SUCCESS) return r;
    ++m.counters.products;
    const CUresult queued = m.enqueue(stream, [&m, p, at, by, plus, work, workspace_bytes] {
      if (!readable(p.layouts[0], at[0], "A") || !readable(p.layouts[1], at[1], "B")) return;
      if (plus != 0 && !readable(p.layouts[2], at[2], "C")) return;
      if (has_bias(p.desc) && !m.readable(p.desc.bias, p.m * size_of(p.layouts[3].type), "cublasLtMatmul: the bias"))
        return;
      if (!m.writable(at[3], extent(p.layouts[3]) * size_of(p.layouts[3].type), "cublasLtMatmul: D")) return;
      if (workspace_bytes > 0) {
        if (!m.writable(work, workspace_bytes, "cublasLtMatmul: the workspace")) return;
        std::memset(reinterpret_cast<void*>(work), 0xFF, std::min<std::size_t>(workspace_bytes, kWorkspace));
      }
      multiply(product_of(p, by, plus, at));
      mark_written(p.layouts[3], at[3]);
    });
    return queued == CUDA_SUCCESS ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
  });
}

}  // namespace

void fill_blas(BlasApi& table) {
  table.cublasLtCreate_ = [](cublasLtHandle_t* handle) -> cublasStatus_t {
    return call("cublasLtCreate", [&] {
      if (current_context() == nullptr)
        return refuse(CUBLAS_STATUS_NOT_INITIALIZED, "cublasLtCreate: the calling thread has no current context");
      *handle = reinterpret_cast<cublasLtHandle_t>(blas().handles.make(0));
      return CUBLAS_STATUS_SUCCESS;
    });
  };
  table.cublasLtDestroy_ = [](cublasLtHandle_t handle) -> cublasStatus_t {
    return call("cublasLtDestroy", [&] {
      return blas().handles.destroy(handle) ? CUBLAS_STATUS_SUCCESS
                                            : refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLtDestroy: no such handle");
    });
  };
  table.cublasLtGetVersion_ = []() -> std::size_t { return CUBLAS_VERSION; };
  table.cublasLtGetStatusString_ = [](cublasStatus_t status) -> const char* {
    switch (status) {
      case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
      case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
      case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
      case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
      case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
      default:
        return "unknown status";
    }
  };
  table.cublasLtMatmulDescCreate_ = [](cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                       cudaDataType_t scale) -> cublasStatus_t {
    return call("cublasLtMatmulDescCreate", [&] {
      *desc = reinterpret_cast<cublasLtMatmulDesc_t>(blas().descs.make(Desc{.compute = compute, .scale = scale}));
      return CUBLAS_STATUS_SUCCESS;
    });
  };
  table.cublasLtMatmulDescDestroy_ = [](cublasLtMatmulDesc_t desc) -> cublasStatus_t {
    return call("cublasLtMatmulDescDestroy", [&] {
      return blas().descs.destroy(desc)
                 ? CUBLAS_STATUS_SUCCESS
                 : refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmulDescDestroy: no such descriptor");
    });
  };
  table.cublasLtMatmulDescSetAttribute_ = set_desc;
  table.cublasLtMatrixLayoutCreate_ = [](cublasLtMatrixLayout_t* layout, cudaDataType type, std::uint64_t rows,
                                         std::uint64_t cols, std::int64_t ld) -> cublasStatus_t {
    return call("cublasLtMatrixLayoutCreate", [&] {
      if (size_of(type) == 0)
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatrixLayoutCreate: type {} is not emulated",
                      static_cast<int>(type));
      *layout = reinterpret_cast<cublasLtMatrixLayout_t>(blas().layouts.make(Layout{type, rows, cols, ld}));
      return CUBLAS_STATUS_SUCCESS;
    });
  };
  table.cublasLtMatrixLayoutDestroy_ = [](cublasLtMatrixLayout_t layout) -> cublasStatus_t {
    return call("cublasLtMatrixLayoutDestroy", [&] {
      return blas().layouts.destroy(layout)
                 ? CUBLAS_STATUS_SUCCESS
                 : refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatrixLayoutDestroy: no such layout");
    });
  };
  table.cublasLtMatrixLayoutSetAttribute_ = set_layout;
  table.cublasLtMatmulPreferenceCreate_ = [](cublasLtMatmulPreference_t* preference) -> cublasStatus_t {
    return call("cublasLtMatmulPreferenceCreate", [&] {
      *preference = reinterpret_cast<cublasLtMatmulPreference_t>(blas().preferences.make({}));
      return CUBLAS_STATUS_SUCCESS;
    });
  };
  table.cublasLtMatmulPreferenceDestroy_ = [](cublasLtMatmulPreference_t preference) -> cublasStatus_t {
    return call("cublasLtMatmulPreferenceDestroy", [&] {
      return blas().preferences.destroy(preference)
                 ? CUBLAS_STATUS_SUCCESS
                 : refuse(CUBLAS_STATUS_INVALID_VALUE, "cublasLtMatmulPreferenceDestroy: no such preference");
    });
  };
  table.cublasLtMatmulPreferenceSetAttribute_ = set_preference;
  table.cublasLtMatmulAlgoGetHeuristic_ = get_heuristic;
  table.cublasLtMatmul_ = matmul;
}

}  // namespace sg::cuda::emulated
