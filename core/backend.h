// What a backend gives to the compiler: which instructions it has kernels for, and a Step for each. Everything else
// (passes, memory plan, replay) is the same for all backends.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/rewrite.h"
#include "core/tape.h"

namespace sg {

// One lowered instruction. run() is called once per replay, in order, from one thread; it must not allocate.
class Step {
 public:
  virtual ~Step() = default;
  virtual void run() = 0;
  virtual std::size_t inner_reorders() const { return 0; }  // layout changes that run() makes, for explain()
  virtual std::string detail() const { return {}; }     // for explain(): the primitive's implementation, a reorder, ...
};

// A step that is one function. Most steps need nothing more.
class FunctionStep final : public Step {
 public:
  explicit FunctionStep(std::function<void()> f, std::string detail = {}) : f_(std::move(f)), detail_(std::move(detail)) {}
  void run() override { f_(); }
  std::string detail() const override { return detail_; }

 private:
  std::function<void()> f_;
  std::string detail_;
};

// Handed to Backend::lower for one instruction. Addresses are fixed for the life of the Program. Buffers hold the
// backend's storage type (Backend::storage), row-major, 64-byte aligned.
class LowerCtx {
 public:
  virtual ~LowerCtx() = default;
  virtual const Tape& tape() const = 0;
  virtual const Instr& instr() const = 0;
  virtual void* data(std::int32_t value) = 0;            // the buffer of an input or output of the instruction
  virtual Variable* variable(std::int32_t value) = 0;    // the variable, where the value is its start-of-step reading; else null
  // Memory that is shared by all steps of the program, valid during one run() of one step only. The address is
  // written to *where before the first run.
  virtual void scratch(std::size_t bytes, void** where) = 0;
  // Memory of this program alone that keeps its contents between runs (a packed weight), zeroed at first.
  virtual void* persistent(std::size_t bytes) = 0;
  // A cache shared by the lowerings of one program, for results that several instructions can use (a packed weight):
  // returns the stored pointer slot for a key, null at first.
  virtual std::shared_ptr<void>& shared(const std::string& key) = 0;
  // Appends a step before the one that lower() returns: a layout change. Listed and counted as `kind` ("reorder", "pack").
  virtual void prelude(std::string kind, std::unique_ptr<Step> step) = 0;

  const TensorType& type(std::int32_t value) const { return tape().type(value); }
  const TensorType& in_type(int i) const { return type(instr().inputs[static_cast<std::size_t>(i)]); }
  const TensorType& out_type(int i = 0) const { return type(instr().outputs[static_cast<std::size_t>(i)]); }
  template <class T> const T* in(int i) { return static_cast<const T*>(data(instr().inputs[static_cast<std::size_t>(i)])); }
  template <class T> T* out(int i = 0) { return static_cast<T*>(data(instr().outputs[static_cast<std::size_t>(i)])); }
  const Attrs& attrs() const { return instr().attrs; }
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual std::string describe() const = 0;                                   // for `info`: libraries, instruction set, threads
  virtual DType storage(DType t) const { return t; }                          // element type of a buffer of that tape type
  virtual bool supports(const Tape& tape, const Instr& instr) const = 0;      // whether lower() has a kernel for it
  virtual std::unique_ptr<Step> lower(LowerCtx& ctx) = 0;
  // Whether an output of the instruction may be written over input i while it runs (elementwise kernels, row programs).
  virtual bool in_place(const Tape& tape, const Instr& instr, int i, int output) const = 0;
  // Backend-specific rewrites on the compiler's own copy, after decomposition (a convolution that takes its bias along).
  // Called where CompileOptions::fuse is on. `keep`: values that must survive (fetches). Returns a null tape where nothing changed.
  virtual Rewritten fuse(const Tape& tape, std::span<const std::int32_t> keep) const;

  // Whether the instruction may be part of a row program (core/row_program.h) on this backend, and lower() takes the
  // instructions of Role::region that come of it.
  virtual bool row_op(const Tape&, const Instr&) const { return false; }

  // Whether lower() takes instructions of Role::bundle: several regions as one step (core/row_bundle.h).
  virtual bool bundles_rows() const { return false; }

  // Called before and after the steps of a run, also where one throws: floating-point modes of the threads that compute.
  virtual void enter() {}
  virtual void leave() {}

  // Whether buffers are memory that the host may not touch. State then lives there from step to step (Variable::resident),
  // and the host has a copy of it when it looks. The calls below this line may then return before their work is done, in
  // order with the steps; download() waits.
  virtual bool on_device() const { return false; }
  virtual void wait() {}                                 // until everything is done that was enqueued; Errors of steps come out here
  // Whether a stand-in on the host runs what is meant for a device: results count, times mean nothing.
  virtual bool emulated() const { return false; }
  virtual void fill(void* p, std::byte value, std::size_t bytes);
  virtual void copy(void* dst, const void* src, std::size_t bytes);
  // The new value of a variable goes to its place. Does nothing where a step before it found an error that is not
  // reported yet: a step that fails leaves every variable as it was.
  virtual void commit(void* dst, const void* src, std::size_t bytes) { copy(dst, src, bytes); }
  // Everything that `enqueue` makes the backend do, as one step that does it again at the same addresses. Null with the
  // reason in `note` where that is not possible; nothing was done then. Where it is, `note` says what was made.
  struct Captured { std::unique_ptr<Step> replay; std::string note; };
  virtual Captured capture(const std::function<void()>& enqueue);
  // Ends with the backend: those who keep its buffers ask whether there still is one to release them to.
  std::weak_ptr<Backend* const> lifetime() const { return self_; }

  virtual void* allocate(std::size_t bytes) = 0;                              // 64-byte aligned; Error{backend} when out of memory
  virtual void release(void* p) = 0;
  virtual void upload(void* dst, const std::byte* src, TensorType type) = 0;  // host array -> buffer, converting to storage()
  virtual void download(std::byte* dst, const void* src, TensorType type) = 0;
  virtual bool host_memory(DType t) const { return storage(t) == t; }         // buffers of that type are plain host arrays

 private:
  std::shared_ptr<Backend* const> self_ = std::make_shared<Backend* const>(this);
};

// Defined in backends/backends.cc. Error{backend} listing what this build has where the name is unknown.
Backend& backend(std::string_view name);
std::vector<std::string_view> backend_names();

}  // namespace sg
