// Variable: named state that outlives a step (a parameter, a moment of Adam, an EMA count, a random counter).
// A tape reads it with Tape::read (the value at the start of the step) and writes it with Tape::assign (committed at
// the end of the step). Its address and its buffers stay where they are for its whole life: programs keep both.
// Where a backend has memory of its own (Backend::on_device) the value lives in a buffer there from step to step, and the
// host's copy is made when somebody looks.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace sg {

class Backend;

class Variable {
 public:
  Variable(std::string name, Tensor initial) : name_(std::move(name)), value_(std::move(initial)) {}
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;
  ~Variable();

  const std::string& name() const { return name_; }
  const TensorType& type() const { return value_.type(); }
  const Tensor& value() const { to_host(); return value_; }   // waits for the device where the newest value is there
  void set(const Tensor& value);       // copies; Error{shape|dtype} naming the variable where the types differ
  // For backends and loaders that write in place: call touch() afterwards.
  std::byte* data() { to_host(); return value_.data(); }
  void touch() { host_version_ = ++version_; }
  std::uint64_t version() const { return version_; }  // grows with every change; caches of packed weights compare it

  // The buffer on a backend that is on_device(), made at the first call, holding the newest value when this returns.
  void* resident(Backend& backend);
  void touch_resident(Backend& backend);   // after a write to that buffer

 private:
  struct Residence {
    std::weak_ptr<Backend* const> backend;
    void* data = nullptr;
    std::uint64_t version = 0;
  };
  Residence& residence(Backend& backend);
  void to_host() const { if (host_version_ != version_) download(); }
  void download() const;

  std::string name_;
  mutable Tensor value_;
  std::uint64_t version_ = 1;
  mutable std::uint64_t host_version_ = 1;
  std::vector<Residence> residences_;
};

}  // namespace sg
