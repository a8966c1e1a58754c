#include "backends/cpu/onednn_step.h"

#include <omp.h>

#include <algorithm>

namespace sg::onednn {
namespace {

constexpr std::size_t kAlign = 64;
constexpr std::int64_t kDearSum = 32768;  // elements that are worth waking a thread for

class ThreadCount {
 public:
  explicit ThreadCount(int wanted) : saved_(omp_get_max_threads()) {
    if (saved_ != wanted) omp_set_num_threads(wanted);
    changed_ = saved_ != wanted;
  }
  ~ThreadCount() {
    if (changed_) omp_set_num_threads(saved_);
  }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int saved_;
  bool changed_;
};

class PackStep final : public Step {
 public:
  PackStep(const Variable* variable, std::unique_ptr<PrimitiveStep> reorder)
      : variable_(variable), reorder_(std::move(reorder)) {}
  void run() override {
    if (variable_ && variable_->version() == packed_version_) return;
    reorder_->run();
    if (variable_) packed_version_ = variable_->version();
  }
  std::string detail() const override { return reorder_->detail(); }

 private:
  const Variable* variable_;
  std::uint64_t packed_version_ = 0;  // versions of variables start at 1
  std::unique_ptr<PrimitiveStep> reorder_;
};

}  // namespace

const dnnl::engine& engine() {
  static const dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

const dnnl::stream& stream() {
  static const dnnl::stream s(engine());
  return s;
}

dnnl::memory::data_type data_type(DType t) {
  SG_CHECK(t == DType::f32 || t == DType::bf16, "no oneDNN type for {}", to_string(t));
  return t == DType::f32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
}

std::unique_ptr<Step> zeros(LowerCtx& ctx) {
  return std::make_unique<FunctionStep>(
      [y = ctx.out<std::byte>(), bytes = ctx.out_type().bytes()] { std::fill_n(y, bytes, std::byte{0}); }, "zeros");
}

dnnl::primitive_attr user_scratchpad() {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

PrimitiveStep::PrimitiveStep() : threads_(omp_get_max_threads()) {}

dnnl::memory PrimitiveStep::in_scratch(const Md& md) {
  dnnl::memory memory(md, engine(), DNNL_MEMORY_NONE);
  slots_.push_back({memory, scratch_bytes_});
  scratch_bytes_ += (md.get_size() + kAlign - 1) / kAlign * kAlign;
  return memory;
}

void PrimitiveStep::append(dnnl::primitive primitive, const Md& scratchpad, Args args) {
  if (scratchpad.get_size() != 0) args.emplace_back(DNNL_ARG_SCRATCHPAD, in_scratch(scratchpad));
  Call call{std::move(primitive), {}, {}};
  for (auto& [index, memory] : args) {
    call.args.push_back({index, memory.get()});
    kept_.push_back(std::move(memory));
  }
  calls_.push_back(std::move(call));
}

void PrimitiveStep::note(std::string_view name) {
  if (!detail_.empty()) detail_ += ", ";
  detail_ += name;
}

void PrimitiveStep::then(std::function<void()> f, std::string_view name) {
  calls_.push_back({{}, {}, std::move(f)});
  note(name);
}

void PrimitiveStep::sum_of_parts(std::vector<Part> parts, std::vector<dnnl::memory> sums, std::string_view name) {
  std::vector<Call> calls;
  for (Part& part : parts) {
    if (part.scratchpad.get_size() != 0) part.args.emplace_back(DNNL_ARG_SCRATCHPAD, in_scratch(part.scratchpad));
    Call& call = calls.emplace_back(Call{std::move(part.primitive), {}, {}});
    for (auto& [index, memory] : part.args) {
      call.args.push_back({index, memory.get()});
      kept_.push_back(std::move(memory));
    }
  }
  const auto count = static_cast<std::int64_t>(sums[0].get_desc().get_size() / sizeof(float));
  const auto run_parts = [this, calls = std::move(calls), sums = std::move(sums), count] {
    const auto n = static_cast<std::int64_t>(calls.size());
    dnnl_status_t worst = dnnl_success;
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < n; ++i) {
      const Call& call = calls[static_cast<std::size_t>(i)];
      const auto status = dnnl_primitive_execute(call.primitive.get(), stream().get(),
                                                 static_cast<int>(call.args.size()), call.args.data());
      if (status != dnnl_success) {
#pragma omp critical
        worst = status;
      }
    }
    if (worst != dnnl_success)
      fail(ErrorKind::backend, "oneDNN {}: {} failed with status {}", library_version(), detail_,
           static_cast<int>(worst));
    auto* sum = static_cast<float*>(sums[0].get_data_handle());
    for (std::size_t k = 1; k < sums.size(); ++k) {
      const auto* share = static_cast<const float*>(sums[k].get_data_handle());
#pragma omp parallel for simd schedule(static) if (count > kDearSum)
      for (std::int64_t i = 0; i < count; ++i) sum[i] += share[i];
    }
  };
  calls_.push_back({{}, {}, run_parts});
  note(fmt::format("{} in {} parts", name, parts.size()));
}

OneThread::OneThread() : threads_(omp_get_max_threads()) { omp_set_num_threads(1); }
OneThread::~OneThread() { omp_set_num_threads(threads_); }

void PrimitiveStep::reorder(const dnnl::memory& from, const dnnl::memory& to) {
  const dnnl::reorder::primitive_desc pd(engine(), from.get_desc(), engine(), to.get_desc(), user_scratchpad());
  append(dnnl::reorder(pd), pd.scratchpad_desc(), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
  note("reorder");
  ++reorders_;
}

void PrimitiveStep::reserve(LowerCtx& ctx) {
  if (scratch_bytes_ != 0) ctx.scratch(scratch_bytes_, &scratch_);
}

void PrimitiveStep::bind_scratch() {
  for (auto& slot : slots_) slot.memory.set_data_handle(static_cast<std::byte*>(scratch_) + slot.offset);
  bound_ = scratch_;
}

void PrimitiveStep::run() {
  if (bound_ != scratch_) bind_scratch();
  const ThreadCount as_made(threads_);
  for (const Call& call : calls_) {
    if (call.function) {
      call.function();
      continue;
    }
    const auto status = dnnl_primitive_execute(call.primitive.get(), stream().get(), static_cast<int>(call.args.size()),
                                               call.args.data());
    if (status != dnnl_success)
      fail(ErrorKind::backend, "oneDNN {}: {} failed with status {}", library_version(), detail_,
           static_cast<int>(status));
  }
}

dnnl::memory packed(LowerCtx& ctx, std::int32_t value, const Md& plain, const Md& wanted) {
  if (plain == wanted) return memory_at(plain, ctx.data(value));
  using Buffers = std::vector<dnnl::memory>;
  auto& slot = ctx.shared(fmt::format("onednn packed %{}", value));
  if (!slot) slot = std::make_shared<Buffers>();
  auto& buffers = *static_cast<Buffers*>(slot.get());
  for (const auto& have : buffers)
    if (have.get_desc() == wanted) return have;
  buffers.push_back(memory_at(wanted, ctx.persistent(wanted.get_size())));
  auto step = std::make_unique<PrimitiveStep>();
  step->reorder(memory_at(plain, ctx.data(value)), buffers.back());
  step->reserve(ctx);
  ctx.prelude("pack", std::make_unique<PackStep>(ctx.variable(value), std::move(step)));
  return buffers.back();
}

}  // namespace sg::onednn
