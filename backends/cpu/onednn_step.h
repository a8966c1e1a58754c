// A Step made of oneDNN primitives, and the packing of weights.
//
// Invariants: 1. primitives are made once, while lowering, with the user scratchpad mode: two programs may run the same
// cached primitive at the same time. 2. run() only passes argument arrays that are already there. 3. It runs with the
// number of threads that its primitives were made for, whatever was set since: their scratch is sized for it. 4. Any
// number of threads gives the same bits: where oneDNN would split a sum over the threads (the gradient of a
// convolution's weights, products with a long inner axis) the sum is cut by the shape alone (sum_of_parts).
#pragma once
#include <utility>
#include <vector>

#include "backends/cpu/onednn_compat.h"
#include "core/backend.h"

namespace sg::onednn {

const dnnl::engine& engine();
const dnnl::stream& stream();  // of the OpenMP runtime; keeps no state: one serves all programs and threads
dnnl::memory::data_type data_type(DType t);  // of f32 and bf16
std::unique_ptr<Step> zeros(LowerCtx& ctx);  // of an instruction whose only output is a sum of no terms
dnnl::primitive_attr user_scratchpad();  // the attributes that every primitive here starts from

class PrimitiveStep final : public Step {
 public:
  using Args = std::vector<std::pair<int, dnnl::memory>>;
  PrimitiveStep();

  // A memory in the program's scratch, valid within one run() only.
  dnnl::memory in_scratch(const Md& md);
  // Appends a call; `pd` is the primitive's descriptor, asked for its scratchpad and its implementation's name.
  template <class Primitive, class Pd>
  void call(const Pd& pd, Args args) {
    append(Primitive(pd), pd.scratchpad_desc(), std::move(args));
    note(pd.impl_info_str());
  }
  // Appends a plain function, run between the calls (it may read memories in scratch).
  void then(std::function<void()> f, std::string_view name);
  void reorder(const dnnl::memory& from, const dnnl::memory& to);
  void note(std::string_view name);  // appends it to detail()
  // A sum in parts: parts[i] writes its share to sums[i], all of one layout; the shares are then added to sums[0] in
  // order. Each part runs on one thread (make its primitive under OneThread), so the number of threads changes no bit.
  struct Part {
    dnnl::primitive primitive;
    Md scratchpad;
    Args args;
  };
  void sum_of_parts(std::vector<Part> parts, std::vector<dnnl::memory> sums, std::string_view name);
  void reserve(LowerCtx& ctx);  // after the last call: asks for the scratch of all of them

  void run() override;
  std::size_t inner_reorders() const override { return reorders_; }
  std::string detail() const override { return detail_; }

 private:
  struct Call {
    dnnl::primitive primitive;
    std::vector<dnnl_exec_arg_t> args;
    std::function<void()> function;  // instead of a primitive
  };
  struct Slot {
    dnnl::memory memory;
    std::size_t offset;
  };

  void append(dnnl::primitive primitive, const Md& scratchpad, Args args);
  void bind_scratch();

  std::vector<Call> calls_;
  std::vector<dnnl::memory> kept_;  // what the argument arrays point to
  std::vector<Slot> slots_;
  std::size_t scratch_bytes_ = 0, reorders_ = 0;
  void* scratch_ = nullptr;
  void* bound_ = nullptr;
  int threads_;
  std::string detail_;
};

// While it lives, primitives are made for one thread.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int threads_;
};

inline dnnl::memory memory_at(const Md& md, const void* data) { return {md, engine(), const_cast<void*>(data)}; }

// `value`, stored as `plain`, in the layout `wanted`: itself where they are the same, else a buffer of the program that
// a "pack" step fills before its first use in a run. All users of one (value, layout) share it. A variable's reading is
// packed anew only after the variable changed.
dnnl::memory packed(LowerCtx& ctx, std::int32_t value, const Md& plain, const Md& wanted);

// Runs f, turning an exception of oneDNN into Error{backend} that names the op.
template <class F>
auto guarded(const char* op, F f) -> decltype(f()) {
  try {
    return f();
  } catch (const dnnl::error& e) {
    fail(ErrorKind::backend, "{}: oneDNN {} gives no primitive: {} (status {})", op, library_version(), e.message,
         static_cast<int>(e.status));
  }
}

}  // namespace sg::onednn
