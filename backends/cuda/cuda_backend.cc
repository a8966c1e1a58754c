#include "backends/cuda/cuda_backend.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include "backends/cuda/lowering.h"
#include "backends/cuda/runtime_checks.h"
#include "backends/rewrites.h"
#include "ops/op_ids.h"

namespace sg::cuda {
namespace {

struct Row {
  OpId op;
  LowerFn lower;
};

// What cuBLASLt and the codebook search do. Other ops are plain kernels or row programs.
constexpr Row kProducts[] = {
    {OpId::matmul, lower_matmul},
    {OpId::conv2d, lower_conv2d},
    {OpId::conv2d_bias, lower_conv2d},
    {OpId::conv2d_transpose, lower_conv2d_transpose},
    {OpId::conv2d_weight_grad, lower_conv2d_weight_grad},
    {OpId::nearest_code, lower_nearest_code},
};

LowerFn product_lowering(OpId op) {
  for (const Row& row : kProducts)
    if (row.op == op) return row.lower;
  return nullptr;
}

// Operations along rows: as compositions they become part of a row program with their neighbours.
bool better_composed(const Tape& tape, const Instr& instr) {
  switch (instr.op) {
    case OpId::softmax:
    case OpId::log_softmax:
    case OpId::layer_norm:
    case OpId::rms_norm:
      return tape.type(instr.outputs[0]).shape.elements() > 0;
    default:
      return false;
  }
}

// Kernels that read a row before they write it, and then only its own elements.
bool overwrites_its_rows(OpId op) {
  return op == OpId::softmax || op == OpId::log_softmax || op == OpId::layer_norm || op == OpId::rms_norm ||
         op == OpId::group_norm;
}

}  // namespace

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const Tables& tables) : device_(tables), checks_(device_) {}

  Device& device() { return device_; }

  std::string_view name() const override { return "cuda"; }
  std::string describe() const override {
    const Tables& t = device_.tables();
    const auto library = [](std::string_view name, const std::string& missing) {
      return missing.empty() ? std::string(name) : fmt::format("no {} ({})", name, missing);
    };
    return fmt::format("{}, sm_{}, {} multiprocessors; {}, {}", device_.name(), device_.arch(),
                       device_.multiprocessors(), library("cuBLASLt", t.no_blas), library("NVRTC", t.no_nvrtc));
  }

  bool supports(const Tape& tape, const Instr& instr) const override {
    if (instr.op == OpId::conv2d_bias && instr.inputs.size() > 3) return false;  // the skip is a row program
    if (product_lowering(instr.op) != nullptr) return is_real(tape.type(instr.inputs[0]).dtype);
    return plain_lowering(tape, instr) != nullptr || lowers_as_row_program(tape, instr);
  }
  std::unique_ptr<Step> lower(LowerCtx& ctx) override {
    if (const LowerFn lower = product_lowering(ctx.instr().op)) return lower(device_, ctx);
    if (const LowerFn lower = plain_lowering(ctx.tape(), ctx.instr())) return lower(device_, ctx);
    return lower_row_program(device_, ctx);
  }
  bool in_place(const Tape& tape, const Instr& instr, int i, int output) const override {
    if (overwrites_its_rows(instr.op)) return i == 0;
    return lowers_as_row_program(tape, instr) && row_program_in_place(tape, instr, i, output);
  }
  bool row_op(const Tape& tape, const Instr& instr) const override { return cuda::row_op(tape, instr); }
  Rewritten fuse(const Tape& tape, std::span<const std::int32_t> keep) const override {
    RewriteChain chain(tape, keep);
    chain.then(decompose_where(tape, better_composed, name()));
    chain.then(keep_gradient_sums(chain.tape(), chain.keep()));
    chain.then(fuse_conv_bias(chain.tape(), chain.keep()));
    return chain.finish();
  }

  void leave() override { checks_.steps_ran(); }

  void* allocate(std::size_t bytes) override { return device_.allocate(std::max<std::size_t>(bytes, 1)); }
  void release(void* p) override { device_.release(p); }
  void upload(void* dst, const std::byte* src, TensorType type) override {
    if (type.bytes() > 0) device_.upload(dst, src, type.bytes());
  }
  void download(std::byte* dst, const void* src, TensorType type) override {
    checks_.raise();
    if (type.bytes() > 0) device_.download(dst, src, type.bytes());
  }
  bool host_memory(DType) const override { return false; }
  bool on_device() const override { return true; }
  void wait() override {
    checks_.raise();
    device_.synchronize();
  }
  bool emulated() const override { return device_.tables().emulated; }
  void fill(void* p, std::byte value, std::size_t bytes) override {
    if (bytes > 0) device_.fill(p, value, bytes);
  }
  void copy(void* dst, const void* src, std::size_t bytes) override {
    if (bytes > 0) device_.copy(dst, src, bytes);
  }
  void commit(void* dst, const void* src, std::size_t bytes) override {
    if (!checks_.any())
      copy(dst, src, bytes);
    else if (bytes > 0)
      commit_({{static_cast<unsigned>(std::clamp<std::size_t>(bytes / 4096, 1, 1024))}, {256}}, checks_.flags(),
              static_cast<const char*>(src), static_cast<char*>(dst), bytes);
  }
  Captured capture(const std::function<void()>& enqueue) override;

 private:
  Device device_;
  RuntimeChecks checks_;
  const Kernel<const unsigned long long*, const char*, char*, std::size_t> commit_{device_, "shape", "copy_unless"};
};

namespace {

// A captured step. The graph holds addresses of the program's and the variables' buffers, which outlive it.
class Replay final : public Step {
 public:
  Replay(Device& device, CUgraphExec graph) : device_(device), graph_(graph) {}
  ~Replay() override { device_.destroy(graph_); }
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;
  void run() override { device_.replay(graph_); }

 private:
  Device& device_;
  CUgraphExec graph_;
};

}  // namespace

Backend::Captured CudaBackend::capture(const std::function<void()>& enqueue) {
  std::size_t nodes = 0;
  try {
    device_.begin_capture();
    enqueue();
    auto replay = std::make_unique<Replay>(device_, device_.end_capture(&nodes));
    return {std::move(replay), fmt::format("a step is replayed as one graph of {} nodes", nodes)};
  } catch (const Error& e) {
    device_.abandon_capture();
    return {nullptr, "the step is not replayed as one graph: " + e.message()};
  }
}

std::unique_ptr<Backend> make_cuda_backend(const Tables& tables) { return std::make_unique<CudaBackend>(tables); }

Device& device_of(Backend& backend) {
  auto* cuda = dynamic_cast<CudaBackend*>(&backend);
  if (cuda == nullptr) fail(ErrorKind::usage, "backend '{}' has no GPU", backend.name());
  return cuda->device();
}

namespace {

// The process's backend: made when first asked for, and never destroyed, because the driver's own library may be gone
// by the time that static objects are.
struct Process {
  std::mutex mutex;
  const Tables* tables = nullptr;
  CudaBackend* backend = nullptr;
  std::optional<std::string> absent;  // set once it was tried

  void open() {
    const std::lock_guard lock(mutex);
    if (absent) return;
    if (tables == nullptr) tables = &system_tables();
    try {
      backend = new CudaBackend(*tables);
      absent.emplace();
    } catch (const Error& e) {
      absent = e.message();
    }
  }
};
Process& process() {
  static Process* const instance = new Process;
  return *instance;
}

}  // namespace

void set_cuda_tables(const Tables& tables) {
  Process& p = process();
  const std::lock_guard lock(p.mutex);
  if (p.absent) fail(ErrorKind::usage, "set_cuda_tables: backend 'cuda' is in use already");
  p.tables = &tables;
}

const std::string& no_cuda() {
  process().open();
  return *process().absent;
}

}  // namespace sg::cuda

namespace sg {

Backend& cuda_backend() {
  if (const std::string& why = cuda::no_cuda(); !why.empty()) throw Error(ErrorKind::backend, why);
  return *cuda::process().backend;
}

}  // namespace sg
