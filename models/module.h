// Module: owner of Variables with dotted names ("decoder.res1.conv1.weight"). Parameters are trained by an optimizer;
// state (an EMA codebook, a count) is not. A module is constructed as a member of its parent and registers itself
// there:
//
//   struct Mlp : Module {
//     explicit Mlp(std::uint32_t seed) : Module(seed) {}
//     Linear in{*this, "in", 784, 128}, out{*this, "out", 128, 10};
//     Value operator()(Operand x) const { return out(relu(in(x))); }
//   };
//
// Invariants: addresses of modules and Variables never change (neither copied nor moved); names are unique in a module.
// Forward functions are ordinary members, not virtual. Not thread-safe.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "core/variable.h"

namespace sg {

class Module {
 public:
  explicit Module(std::uint32_t seed = 0) : seed_(seed) {}  // a root; its path is ""
  Module(Module& parent, std::string_view name);            // Error{usage}: a name that is empty, dotted or taken
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // This module's own variables, then those of its sub-modules, in order of construction.
  std::vector<Variable*> parameters() const;
  std::vector<Variable*> state() const;
  std::vector<Variable*> variables() const;     // parameters, then state
  Variable& find(std::string_view name) const;  // by full name; Error{usage} where there is none

  const std::string& name() const { return name_; }
  const std::string& path() const { return path_; }
  std::uint32_t seed() const { return seed_; }  // of initial values, the root's everywhere

 protected:
  // The full name that a variable of this module called `name` has: path + "." + name. It keys the initial values.
  std::string full_name(std::string_view name) const;
  Variable& add_parameter(std::string_view name, Tensor initial);
  Variable& add_state(std::string_view name, Tensor initial);

 private:
  Variable& add(std::string_view name, Tensor initial, std::vector<Variable*>& list);
  void claim(std::string_view name);
  std::uint32_t seed_;
  std::string name_, path_;
  std::vector<std::string> names_;  // of variables and sub-modules
  std::deque<Variable> owned_;
  std::vector<Variable*> parameters_, state_;
  std::vector<const Module*> children_;
};

}  // namespace sg
