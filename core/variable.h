// Variable: named state that outlives a step (a parameter, a moment of Adam, an EMA count, a random counter).
// A tape reads it with Tape::read (the value at the start of the step) and writes it with Tape::assign (committed at
// the end of the step). Its address and its buffer stay where they are for its whole life: programs keep both.
#pragma once
#include <string>

#include "core/tensor.h"

namespace sg {

class Variable {
 public:
  Variable(std::string name, Tensor initial) : name_(std::move(name)), value_(std::move(initial)) {}
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

  const std::string& name() const { return name_; }
  const TensorType& type() const { return value_.type(); }
  const Tensor& value() const { return value_; }
  void set(const Tensor& value);       // copies; Error{shape|dtype} naming the variable where the types differ
  // For backends and loaders that write in place: call touch() afterwards.
  std::byte* data() { return value_.data(); }
  void touch() { ++version_; }
  std::uint64_t version() const { return version_; }  // grows with every change; caches of packed weights compare it

 private:
  std::string name_;
  Tensor value_;
  std::uint64_t version_ = 1;
};

}  // namespace sg
