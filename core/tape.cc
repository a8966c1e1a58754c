#include "core/tape.h"

#include <algorithm>

namespace sg {
namespace {

Attrs leaf_attrs(const TensorType& type, std::string_view key, AttrValue value) {
  return {{key, std::move(value)}, {"dtype", static_cast<std::int64_t>(type.dtype)}, {"shape", type.shape.vec()}};
}

}  // namespace

Tape::Tape() { scopes_.push_back({-1, "", Loc{}}); }

Value Tape::input(std::string_view name, TensorType type, Loc loc) {
  if (inputs_.contains(std::string(name)))
    throw Error(ErrorKind::usage,
                fmt::format("input '{}' is declared twice on this tape\n  at {}", name, sg::to_string(loc)), loc);
  return emit(op_with_role(Role::input), {}, leaf_attrs(type, "name", std::string(name)), loc)[0];
}

Value Tape::constant(double value, TensorType type, Loc loc) {
  return emit(op_with_role(Role::constant), {}, leaf_attrs(type, "value", value), loc)[0];
}

Value Tape::constant(const Tensor& value, Loc loc) {
  constants_.push_back(value);
  return emit(op_with_role(Role::constant), {},
              leaf_attrs(value.type(), "tensor", static_cast<std::int64_t>(constants_.size() - 1)), loc)[0];
}

std::int64_t Tape::variable_index(Variable& variable) {
  for (std::size_t i = 0; i < variables_.size(); ++i)
    if (variables_[i] == &variable) return static_cast<std::int64_t>(i);
  variables_.push_back(&variable);
  reads_.push_back({});
  assigned_.push_back(false);
  return static_cast<std::int64_t>(variables_.size() - 1);
}

Value Tape::read(Variable& variable, Loc loc) {
  const std::int64_t index = variable_index(variable);
  const Value known = reads_[static_cast<std::size_t>(index)];
  return known ? known : emit(op_with_role(Role::read), {}, leaf_attrs(variable.type(), "variable", index), loc)[0];
}

void Tape::assign(Variable& variable, Value value, Loc loc) {
  if (value.type() != variable.type())
    throw Error(value.dtype() != variable.type().dtype ? ErrorKind::dtype : ErrorKind::shape,
                fmt::format("assign: variable '{}' is {}, the value is {}\n  value   {}\n  at {}", variable.name(),
                            sg::to_string(variable.type()), sg::to_string(value.type()), describe(value.id),
                            sg::to_string(loc)),
                loc);
  const std::int64_t index = variable_index(variable);
  if (assigned_[static_cast<std::size_t>(index)])
    throw Error(ErrorKind::usage,
                fmt::format("assign: variable '{}' is assigned twice in one step\n  at {}", variable.name(),
                            sg::to_string(loc)),
                loc);
  emit(op_with_role(Role::assign), std::span(&value, 1), {{"variable", index}}, loc);
}

std::vector<Value> Tape::emit(OpId op, std::span<const Value> inputs, Attrs attrs, Loc loc) {
  const OpDef& def = op_def(op);
  if (override_loc_) loc = origin_loc_;
  std::vector<TensorType> types;
  types.reserve(inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].tape != this)
      throw Error(ErrorKind::usage,
                  fmt::format("{}: operand {} {}\n  at {}", def.name, i,
                              inputs[i].tape == nullptr ? "is a null Value" : "is on another tape", sg::to_string(loc)),
                  loc);
    types.push_back(type(inputs[i].id));
  }
  if (def.arity == kVariadic ? inputs.empty() : static_cast<int>(inputs.size()) != def.arity)
    throw Error(ErrorKind::usage,
                fmt::format("{}: {} operands given, {} expected\n  at {}", def.name, inputs.size(),
                            def.arity == kVariadic ? "at least 1" : std::to_string(def.arity), sg::to_string(loc)),
                loc);
  std::vector<TensorType> out;
  try {
    out = def.infer(types, attrs);
  } catch (const Error& e) {
    std::string text = e.message();
    for (const Value& v : inputs) text += fmt::format("\n  operand {}", describe(v.id));
    throw Error(e.kind(), text + fmt::format("\n  at {}", sg::to_string(loc)), loc);
  }
  const auto index = static_cast<std::int32_t>(instrs_.size());
  if (def.role == Role::read) reads_[static_cast<std::size_t>(attrs.i("variable"))] = {this, value_count()};
  if (def.role == Role::input) inputs_.emplace(attrs.str("name"), Value{this, value_count()});
  if (def.role == Role::assign) assigned_[static_cast<std::size_t>(attrs.i("variable"))] = true;
  if (attrs.has("stream")) stream_ = std::max(stream_, attrs.i("stream") + 1);
  Instr instr{op, std::move(attrs), {}, {}, loc, scope_, forward_of_};
  std::vector<Value> values;
  for (const Value& v : inputs) instr.inputs.push_back(v.id);
  for (TensorType& t : out) {
    instr.outputs.push_back(value_count());
    values.push_back({this, value_count()});
    types_.push_back(t);
    producers_.push_back(index);
  }
  instrs_.push_back(std::move(instr));
  return values;
}

Value Tape::emit1(OpId op, std::initializer_list<Value> inputs, Attrs attrs, Loc loc) {
  return emit(op, std::span<const Value>(inputs.begin(), inputs.size()), std::move(attrs), loc)[0];
}

std::int64_t Tape::add_program(std::shared_ptr<const RowProgram> program) {
  programs_.push_back(std::move(program));
  return static_cast<std::int64_t>(programs_.size() - 1);
}

Variable* Tape::variable_of(const Instr& instr) const {
  const Role role = op_def(instr.op).role;
  return role == Role::read || role == Role::assign ? variables_[static_cast<std::size_t>(instr.attrs.i("variable"))]
                                                    : nullptr;
}

Value Tape::find_input(std::string_view name) const {
  const auto it = inputs_.find(std::string(name));
  return it == inputs_.end() ? Value{} : it->second;
}

std::string Tape::name_of(std::int32_t value) const {
  const Instr& instr = instrs_[static_cast<std::size_t>(producer(value))];
  const Role role = op_def(instr.op).role;
  if (role == Role::input) return fmt::format("input '{}'", instr.attrs.str("name"));
  if (role == Role::read) return fmt::format("variable '{}'", variable_of(instr)->name());
  return fmt::format("%{}", value);
}

std::string Tape::scope_path(std::int32_t scope) const {
  std::string path;
  for (; scope > 0; scope = scopes_[static_cast<std::size_t>(scope)].parent)
    path = scopes_[static_cast<std::size_t>(scope)].name + (path.empty() ? "" : "/") + path;
  return path;
}

void Tape::push_scope(std::string_view name, Loc loc) {
  scopes_.push_back({scope_, std::string(name), loc});
  scope_ = static_cast<std::int32_t>(scopes_.size() - 1);
}

void Tape::pop_scope() { scope_ = scopes_[static_cast<std::size_t>(scope_)].parent; }

void Tape::set_origin(Origin o) {
  scope_ = o.scope;
  forward_of_ = o.forward_of;
  origin_loc_ = o.loc;
  override_loc_ = o.override_loc;
}

void Tape::adopt_pools(const Tape& other) {
  SG_CHECK(instrs_.empty(), "pools are adopted by an empty tape");
  scopes_ = other.scopes_;
  variables_ = other.variables_;
  reads_.assign(variables_.size(), {});
  assigned_.assign(variables_.size(), false);
  constants_ = other.constants_;
  programs_ = other.programs_;
  stream_ = other.stream_;
}

std::string Tape::describe_instr(std::int32_t index) const {
  const Instr& instr = instrs_[static_cast<std::size_t>(index)];
  std::string text = fmt::format("{}   {}", op_def(instr.op).name, sg::to_string(instr.loc));
  const std::string path = scope_path(instr.scope);
  if (!path.empty()) text += fmt::format("   in {}", path);
  // The nearest caller in another file: a library's own scopes say nothing to its user.
  for (std::int32_t s = instr.scope; s > 0; s = scopes_[static_cast<std::size_t>(s)].parent) {
    const Loc caller = scopes_[static_cast<std::size_t>(s)].loc;
    if (std::string_view(caller.file_name()) == instr.loc.file_name()) continue;
    text += fmt::format(" called from {}", sg::to_string(caller));
    break;
  }
  return text;
}

std::string Tape::describe(std::int32_t value) const {
  const std::int32_t instr = producer(value);
  const std::string name = name_of(value), id = fmt::format("%{}", value);
  return fmt::format("{} {}   {}{}", id, sg::to_string(type(value)), name == id ? "" : name + "   ",
                     describe_instr(instr));
}

void Tape::verify() const {
  std::vector<bool> made(types_.size(), false), read(variables_.size(), false), assigned(variables_.size(), false);
  for (std::size_t i = 0; i < instrs_.size(); ++i) {
    const Instr& instr = instrs_[i];
    const OpDef& def = op_def(instr.op);
    std::vector<TensorType> in;
    for (std::int32_t v : instr.inputs) {
      SG_CHECK(v >= 0 && v < value_count() && made[static_cast<std::size_t>(v)],
               "instruction {} ({}) uses %{} before it is made", i, def.name, v);
      in.push_back(type(v));
    }
    const auto out = def.infer(in, instr.attrs);
    SG_CHECK(out.size() == instr.outputs.size(), "instruction {} ({}) has {} outputs, inference gives {}", i, def.name,
             instr.outputs.size(), out.size());
    for (std::size_t k = 0; k < out.size(); ++k) {
      const std::int32_t v = instr.outputs[k];
      SG_CHECK(!made[static_cast<std::size_t>(v)], "%{} is made twice", v);
      SG_CHECK(out[k] == type(v), "%{} of instruction {} ({}) is recorded as {}, inference gives {}", v, i, def.name,
               sg::to_string(type(v)), sg::to_string(out[k]));
      SG_CHECK(producer(v) == static_cast<std::int32_t>(i), "%{} does not point back at instruction {}", v, i);
      made[static_cast<std::size_t>(v)] = true;
    }
    if (def.role == Role::read || def.role == Role::assign) {
      auto& seen = def.role == Role::read ? read : assigned;
      const auto k = static_cast<std::size_t>(instr.attrs.i("variable"));
      SG_CHECK(!seen[k], "variable '{}' is used twice by {}", variables_[k]->name(), def.name);
      seen[k] = true;
    }
  }
}

std::string Tape::to_string() const {
  std::string text;
  std::int32_t scope = 0;
  for (const Instr& instr : instrs_) {
    const OpDef& def = op_def(instr.op);
    if (instr.scope != scope) text += fmt::format("# {}\n", scope_path(scope = instr.scope));
    std::string line = "  ";
    for (std::size_t i = 0; i < instr.outputs.size(); ++i)
      line += fmt::format("{}%{} {}", i ? ", " : "", instr.outputs[i], sg::to_string(type(instr.outputs[i])));
    if (!instr.outputs.empty()) line += " = ";
    line += def.name;
    if (const Variable* v = variable_of(instr)) line += fmt::format(" '{}'", v->name());
    for (std::int32_t v : instr.inputs) line += fmt::format(" %{}", v);
    Attrs shown;
    for (const auto& [key, value] : instr.attrs)
      if (def.arity != 0 || instr.attrs.has("stream") || (key != "dtype" && key != "shape" && key != "variable"))
        if (def.role != Role::assign) shown.set(key, value);
    const std::string attrs = sg::to_string(shown);
    if (!attrs.empty()) line += " " + attrs;
    text += line + "\n";
  }
  return text;
}

}  // namespace sg
