// What lowerings to own kernels share: a Step that is a list of launches, scratch memory whose address is known later,
// launch sizes, and the check of indices.
#pragma once
#include <functional>
#include <tuple>
#include <vector>

#include "backends/cuda/kernels/params.h"
#include "backends/cuda/lowering.h"
#include "backends/cuda/runtime_checks.h"

namespace sg::cuda {

using Index = std::int64_t;
using StepPtr = std::unique_ptr<Step>;

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr std::size_t align256(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

// A count as kernels take it. Error{unsupported} at 2^31 or more: they have 31 bits for it.
unsigned count31(const LowerCtx& ctx, Index n);
Divisor divisor(Index d);

// One thread per element, up to a number of blocks that fills any GPU; kernels go on from there in strides.
Launch spread(Index n, unsigned threads = 256);
// One block per result, with as many whole warps (at most 8) as `work` items keep busy.
Launch block_each(Index blocks, Index work);

// Scratch memory of one step.
class Scratch {
 public:
  Scratch() = default;
  Scratch(LowerCtx& ctx, std::size_t bytes) : where_(std::make_shared<void*>(nullptr)) {
    ctx.scratch(bytes, where_.get());
  }
  // A parameter of a launch: a T* that is known when the step runs.
  template <class T>
  struct Pointer {
    std::shared_ptr<void*> where;
    std::size_t offset;
  };
  template <class T>
  Pointer<T> at(std::size_t offset = 0) const {
    return {where_, offset};
  }

 private:
  std::shared_ptr<void*> where_;
};

template <class T>
T resolve(const T& argument) {
  return argument;
}
template <class T>
T* resolve(const Scratch::Pointer<T>& p) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(*p.where) + p.offset);
}

// Launches of embedded kernels, one after the other. detail(): each kernel's registers and static occupancy.
class Launches final : public Step {
 public:
  explicit Launches(Device& device) : device_(device) {}
  void run() override {
    for (const auto& f : parts_) f();
  }
  std::string detail() const override { return detail_; }

  // Nothing where the grid is empty.
  template <class... A>
  void add(std::string_view file, const std::string& name, const Launch& how, A... arguments) {
    if (how.grid.x == 0) return;
    const Kernel<decltype(resolve(arguments))...> kernel(device_, file, name);
    describe(kernel.handle(), name, how);
    parts_.push_back([kernel, how, bound = std::tuple(std::move(arguments)...)] {
      std::apply([&](const auto&... argument) { kernel(how, resolve(argument)...); }, bound);
    });
  }
  template <class P>
  void zero(P pointer, std::size_t bytes) {
    if (bytes == 0) return;
    parts_.push_back([this, pointer, bytes] { device_.zero(resolve(pointer), bytes); });
  }
  // What enqueues something else: a product.
  void call(std::function<void()> enqueue, const std::string& detail);
  // Kept as long as the step (the slot of an index check).
  void keep(std::shared_ptr<const void> owned) { kept_.push_back(std::move(owned)); }

 private:
  void describe(CUfunction f, const std::string& name, const Launch& how);
  Device& device_;
  std::vector<std::function<void()>> parts_;
  std::vector<std::shared_ptr<const void>> kept_;
  std::string detail_;
};

// The guard of an instruction that looks something up in [0, bound), kept by the step.
IndexGuard guard_indices(Device& device, LowerCtx& ctx, Launches& step, Index bound);

// "f32", ... as kernels are named.
inline std::string name_of(DType t) { return std::string(to_string(t)); }

}  // namespace sg::cuda
