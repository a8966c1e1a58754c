#include "models/module.h"

#include <algorithm>

namespace sg {

Module::Module(Module& parent, std::string_view name)
    : seed_(parent.seed_), name_(name), path_(parent.full_name(name)) {
  parent.claim(name);
  parent.children_.push_back(this);
}

std::string Module::full_name(std::string_view name) const {
  return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
}

void Module::claim(std::string_view name) {
  const std::string where = path_.empty() ? "the root" : "'" + path_ + "'";
  if (name.empty() || name.find('.') != std::string_view::npos)
    fail(ErrorKind::usage, "Module: '{}' cannot name a part of {}: a name has at least one character and no dot", name,
         where);
  if (std::find(names_.begin(), names_.end(), name) != names_.end())
    fail(ErrorKind::usage, "Module: {} already has a part named '{}'", where, name);
  names_.emplace_back(name);
}

Variable& Module::add(std::string_view name, Tensor initial, std::vector<Variable*>& list) {
  claim(name);
  Variable& variable = owned_.emplace_back(full_name(name), std::move(initial));
  list.push_back(&variable);
  return variable;
}

Variable& Module::add_parameter(std::string_view name, Tensor initial) {
  return add(name, std::move(initial), parameters_);
}
Variable& Module::add_state(std::string_view name, Tensor initial) { return add(name, std::move(initial), state_); }

std::vector<Variable*> Module::parameters() const {
  std::vector<Variable*> all = parameters_;
  for (const Module* child : children_)
    for (Variable* v : child->parameters()) all.push_back(v);
  return all;
}

std::vector<Variable*> Module::state() const {
  std::vector<Variable*> all = state_;
  for (const Module* child : children_)
    for (Variable* v : child->state()) all.push_back(v);
  return all;
}

std::vector<Variable*> Module::variables() const {
  std::vector<Variable*> all = parameters();
  for (Variable* v : state()) all.push_back(v);
  return all;
}

Variable& Module::find(std::string_view name) const {
  for (Variable* v : variables())
    if (v->name() == name) return *v;
  fail(ErrorKind::usage, "Module: no variable is named '{}'", name);
}

}  // namespace sg
