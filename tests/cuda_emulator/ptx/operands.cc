#include "tests/cuda_emulator/ptx/operands.h"

#include <fmt/format.h>

#include <algorithm>

namespace sg::ptx {
namespace {

std::size_t round_up(std::size_t n, std::size_t align) { return (n + align - 1) / align * align; }

const std::map<std::string, Special>& special_names() {
  static const std::map<std::string, Special> names = {{"%tid.x", Special::tid_x},
                                                       {"%tid.y", Special::tid_y},
                                                       {"%tid.z", Special::tid_z},
                                                       {"%ntid.x", Special::ntid_x},
                                                       {"%ntid.y", Special::ntid_y},
                                                       {"%ntid.z", Special::ntid_z},
                                                       {"%ctaid.x", Special::ctaid_x},
                                                       {"%ctaid.y", Special::ctaid_y},
                                                       {"%ctaid.z", Special::ctaid_z},
                                                       {"%nctaid.x", Special::nctaid_x},
                                                       {"%nctaid.y", Special::nctaid_y},
                                                       {"%nctaid.z", Special::nctaid_z},
                                                       {"%laneid", Special::laneid},
                                                       {"%warpid", Special::warpid},
                                                       {"%lanemask_eq", Special::lanemask_eq},
                                                       {"%lanemask_le", Special::lanemask_le},
                                                       {"%lanemask_lt", Special::lanemask_lt},
                                                       {"%lanemask_ge", Special::lanemask_ge},
                                                       {"%lanemask_gt", Special::lanemask_gt}};
  return names;
}

}  // namespace

u32 Operands::new_slot(int bytes) {
  const u32 slot = kernel_.slot_count;
  kernel_.slot_count += bytes == 8 ? 2 : 1;
  return slot;
}

void Operands::declare_registers(const std::string& text) {
  const std::size_t space = text.find(' ');
  const int bytes = space == std::string::npos ? -1 : type_bytes(text.substr(1, space - 1));
  if (bytes < 0 || text[0] != '.') refuse(line, "unknown registers: .reg " + text);
  Scope& scope = scopes_.back();
  const int kept = bytes == 1 ? 2 : bytes;
  for (const std::string& name : split(text.substr(space), ',')) {
    const std::size_t open = name.find('<');
    if (open == std::string::npos) {
      scope.names[name] = {bytes == 0 ? fresh_predicate() : new_slot(kept), kept};
      if (bytes != 0) ++kernel_.registers;
      continue;
    }
    const auto count = number(name.substr(open + 1, name.size() - open - 2));
    if (name.back() != '>' || !count || count->bits > 1000000) refuse(line, "unknown registers: .reg " + text);
    scope.ranges[name.substr(0, open)] = {count->bits, kept};
    if (bytes != 0) kernel_.registers += static_cast<int>(count->bits) - 1;
  }
}

const Register* Operands::find_register(const std::string& name) {
  std::size_t digits = name.size();
  while (digits > 0 && name[digits - 1] >= '0' && name[digits - 1] <= '9') --digits;
  const bool numbered =
      digits < name.size() && name.size() - digits < 10 && (name[digits] != '0' || name.size() == digits + 1);
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (const auto it = scope->names.find(name); it != scope->names.end()) return &it->second;
    if (scope->function && !numbered) return nullptr;
    const auto range = numbered ? scope->ranges.find(name.substr(0, digits)) : scope->ranges.end();
    if (range == scope->ranges.end() || std::stoull(name.substr(digits)) >= range->second.first) {
      if (scope->function) return nullptr;
      continue;
    }
    const int bytes = range->second.second;
    return &(scope->names[name] = {bytes == 0 ? fresh_predicate() : new_slot(bytes), bytes});
  }
  return nullptr;
}

std::size_t Operands::place_shared(const Declaration& d) {
  const std::size_t offset = round_up(kernel_.shared_bytes, d.align);
  kernel_.shared_bytes = offset + d.element * d.count;
  return shared_[d.name] = offset;
}
void Operands::declare_shared(const std::string& text) { place_shared(declaration(text, line)); }
void Operands::declare_local(const std::string& text) {
  const Declaration d = declaration(text, line);
  const std::size_t offset = round_up(kernel_.local_bytes, d.align);
  local_[d.name] = offset;
  kernel_.local_bytes = round_up(offset + d.element * d.count, 16);
}
void Operands::declare_kernel_parameter(const std::string& text) {
  if (!text.starts_with(".param")) refuse(line, "unknown parameter: " + text);
  const Declaration d = declaration(text.substr(6), line);
  const std::size_t offset = round_up(kernel_.parameter_bytes, d.align), size = d.element * d.count;
  if (size == 0) refuse(line, "a parameter without size: " + text);
  parameters_[d.name] = offset;
  kernel_.parameters.push_back({offset, size});
  kernel_.parameter_bytes = offset + size;
}
void Operands::declare_call_parameter(const std::string& text) {
  scopes_.back().parameters[declaration(text, line).name] = std::make_shared<CallParameter>();
}
std::shared_ptr<Operands::CallParameter> Operands::find_parameter(const std::string& name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (const auto it = scope->parameters.find(name); it != scope->parameters.end()) return it->second;
    if (scope->function) break;
  }
  return nullptr;
}
bool Operands::is_call_parameter(const std::string& name) const { return find_parameter(name) != nullptr; }
Register Operands::call_parameter(const std::string& name, u64 offset, int bytes) {
  const auto parameter = find_parameter(name);
  if (!parameter || bytes < 2) refuse(line, "unknown parameter of a call: " + name);
  const auto [it, fresh] = parameter->try_emplace(offset);
  if (fresh) it->second = {new_slot(bytes), bytes};
  if (it->second.bytes != bytes)
    refuse(line, fmt::format("parameter {} is used as {} and {} bytes", name, it->second.bytes, bytes));
  return it->second;
}
void Operands::bind_parameter(const std::string& name, const std::string& argument) {
  Scope callee = std::move(scopes_.back());
  scopes_.pop_back();
  callee.parameters[name] = find_parameter(argument);
  scopes_.push_back(std::move(callee));
  if (!is_call_parameter(name)) refuse(line, "unknown argument of a call: " + argument);
}
std::size_t Operands::parameter_offset(const std::string& name) {
  const auto it = parameters_.find(name);
  if (it == parameters_.end()) refuse(line, "no such parameter: " + name);
  return it->second;
}

u32 Operands::constant(u64 bits, int bytes) {
  if (bytes == 8) {
    const auto [it, fresh] = constants64_.try_emplace(bits, kernel_.slot_count);
    if (fresh) kernel_.constants64.emplace_back(new_slot(8), bits);
    return it->second;
  }
  const u32 value = static_cast<u32>(bits) & (bytes == 4 ? ~0u : bytes == 2 ? 0xffffu : 0xffu);
  const auto [it, fresh] = constants32_.try_emplace(value, kernel_.slot_count);
  if (fresh) kernel_.constants32.emplace_back(new_slot(4), value);
  return it->second;
}

u32 Operands::special(const std::string& name) {
  const auto known = special_names().find(name);
  if (known == special_names().end()) return kNoSlot;
  const auto [it, fresh] = specials_.try_emplace(name, kernel_.slot_count);
  if (fresh) kernel_.specials.emplace_back(new_slot(4), known->second);
  return it->second;
}

bool Operands::dynamic_shared(const std::string& name) const {
  const auto it = names_.shared.find(name);
  return it != names_.shared.end() && it->second.count == 0;
}
u32 Operands::dynamic_address(u64 offset, int bytes) {
  const auto [it, fresh] = dynamic_.try_emplace({offset, bytes}, kernel_.slot_count);
  if (fresh) new_slot(bytes);
  return it->second;
}
void Operands::finish() {
  for (const auto& [name, d] : names_.shared)
    if (d.count == 0) kernel_.dynamic_align = std::max(kernel_.dynamic_align, d.align);
  const u64 base = round_up(kernel_.shared_bytes, kernel_.dynamic_align);
  for (const auto& [key, slot] : dynamic_) {
    if (key.second == 8)
      kernel_.constants64.emplace_back(slot, base + key.first);
    else
      kernel_.constants32.emplace_back(slot, static_cast<u32>(base + key.first));
  }
}

bool Operands::symbol(const std::string& name, u64& address) {
  if (const auto it = shared_.find(name); it != shared_.end()) {
    address = it->second;
  } else if (const auto module_shared = names_.shared.find(name); module_shared != names_.shared.end()) {
    address = place_shared(module_shared->second);
  } else if (const auto local = local_.find(name); local != local_.end()) {
    address = local->second;
  } else if (const auto parameter = parameters_.find(name); parameter != parameters_.end()) {
    address = parameter->second;
  } else if (const auto variable = kernel_.module->variables.find(name); variable != kernel_.module->variables.end()) {
    address = reinterpret_cast<u64>(variable->second.data);
  } else {
    return false;
  }
  return true;
}

u32 Operands::source(const std::string& text, int bytes, bool or_wider, int* register_bytes) {
  if (register_bytes != nullptr) *register_bytes = std::max(bytes, 2);
  if (const Register* r = find_register(text)) {
    if (r->bytes == 0 || (or_wider ? r->bytes < bytes : r->bytes != std::max(bytes, 2)))
      refuse(line, fmt::format("register {} has {} bytes where {} are meant", text, r->bytes, bytes));
    if (register_bytes != nullptr) *register_bytes = r->bytes;
    return r->slot;
  }
  if (const auto n = number(text)) {
    if (n->float_bytes != 0 && n->float_bytes != bytes)
      refuse(line, fmt::format("constant {} where {} bytes are meant", text, bytes));
    return constant(n->bits, bytes);
  }
  if (text == "WARP_SZ") return constant(kLanes, bytes);
  if (const u32 slot = special(text); slot != kNoSlot) {
    if (bytes != 4) refuse(line, fmt::format("{} has 4 bytes where {} are meant", text, bytes));
    return slot;
  }
  std::string name;
  u64 offset = 0, base = 0;
  if ((bytes == 4 || bytes == 8) && split_offset(text, name, offset)) {
    if (dynamic_shared(name)) return dynamic_address(offset, bytes);
    if (symbol(name, base)) return constant(base + offset, bytes);
  }
  refuse(line, "unknown operand: " + text);
}

u32 Operands::destination(const std::string& text, int bytes) {
  const Register* r = find_register(text);
  if (r == nullptr) refuse(line, "not a register: " + text);
  if (r->bytes != std::max(bytes, 2))
    refuse(line, fmt::format("register {} has {} bytes where {} are meant", text, r->bytes, bytes));
  return r->slot;
}
u32 Operands::predicate(const std::string& text) {
  const Register* r = find_register(text);
  if (r != nullptr && r->bytes == 0) return r->slot;
  const auto n = number(text);
  if (!n || n->float_bytes != 0) refuse(line, "not a predicate: " + text);
  return n->bits != 0 ? 1 : 0;
}
u32 Operands::predicate(const std::string& text, bool& negated) {
  negated = !text.empty() && text[0] == '!';
  return predicate(negated ? trimmed(text.substr(1)) : text);
}

void Operands::address(const std::string& text, Instruction& in) {
  const std::string inside = between(text, '[', ']');
  std::string name;
  u64 offset = 0, base = 0;
  if (inside.empty() || !split_offset(inside, name, offset)) refuse(line, "unknown address: " + text);
  in.site = kernel_.site_count++;
  in.offset = static_cast<s64>(offset);
  if (const Register* r = find_register(name)) {
    if (r->bytes < 4) refuse(line, "an address of less than 4 bytes: " + text);
    in.a = r->slot;
    in.address64 = r->bytes == 8;
  } else if (const auto n = number(name)) {
    in.offset += static_cast<s64>(n->bits);
  } else if (dynamic_shared(name)) {
    in.a = dynamic_address(0, 4);
  } else if (symbol(name, base)) {
    in.offset += static_cast<s64>(base);
  } else {
    refuse(line, "unknown address: " + text);
  }
}

}  // namespace sg::ptx
