// Decoding of what computes and branches; decode_memory.cc has memory and what the lanes of a warp do together.
#include "tests/cuda_emulator/ptx/decode.h"

#include <fmt/format.h>

#include <algorithm>

namespace sg::ptx {

const Forms& all_forms() {
  static const Forms forms = [] {
    Forms f;
    add_integer_forms(f);
    add_carry_forms(f);
    add_bit_forms(f);
    add_float_forms(f);
    add_half_forms(f);
    add_convert_forms(f);
    return f;
  }();
  return forms;
}

bool Decoder::Op::take(std::string_view modifier) {
  const auto it = std::find(modifiers.begin(), modifiers.end(), modifier);
  if (it == modifiers.end()) return false;
  modifiers.erase(it);
  return true;
}

void Decoder::unknown(const Op& op) const { refuse(origin_.line, "unknown instruction: " + op.text); }
void Decoder::expect_operands(const Op& op, std::size_t least, std::size_t most) const {
  if (op.operands.size() < least || op.operands.size() > most)
    refuse(origin_.line, fmt::format("{} operands: {}", op.operands.size(), op.text));
}
u32 Decoder::list(const std::vector<u32>& slots) {
  const u32 first = static_cast<u32>(kernel_.slots.size());
  kernel_.slots.insert(kernel_.slots.end(), slots.begin(), slots.end());
  return first;
}
void Decoder::emit(const Instruction& in) {
  kernel_.code.push_back(in);
  if (in.checked == nullptr) kernel_.code.back().checked = in.fn;
  kernel_.origins.push_back(origin_);
}
void Decoder::emit(Op& op) {
  if (!op.modifiers.empty()) unknown(op);
  emit(op.in);
}

void Decoder::label(const std::string& name) {
  if (!labels_.emplace(local_label(name), static_cast<s32>(kernel_.code.size())).second)
    refuse(operands.line, "label twice: " + name);
}
void Decoder::branch_targets(const std::string& name, const std::string& list) { targets_[name] = split(list, ','); }

void Decoder::instruction(const std::string& text, int line) {
  operands.line = line;
  origin_ = {line, location_[0], location_[1], location_[2], location_[3], text};
  Op op;
  op.text = text;
  std::string rest = text;
  if (rest[0] == '@') {
    const std::size_t end = rest.find(' ');
    if (end == std::string::npos) refuse(line, "unknown instruction: " + text);
    op.in.guard = static_cast<s32>(operands.predicate(rest.substr(1, end - 1), op.in.guard_negated));
    rest = trimmed(rest.substr(end));
  }
  const std::size_t end = rest.find(' ');
  std::vector<std::string> parts = split(rest.substr(0, end), '.');
  if (parts.empty()) refuse(line, "unknown instruction: " + text);
  op.base = parts[0];
  op.modifiers.assign(parts.begin() + 1, parts.end());
  if (end != std::string::npos) op.operands = split(rest.substr(end), ',');
  const auto handler = handlers().find(op.base);
  (this->*(handler == handlers().end() ? &Decoder::by_table : handler->second))(op);
}

void Decoder::finish() {
  Op end;
  end.text = "ret (at the end of the body)";
  origin_ = {operands.line, 0, 0, 0, 0, end.text};
  end.in.kind = Kind::exit;
  emit(end);
  std::map<std::string, s32> tables;
  for (const Fix& fix : fixes_) {
    auto place = [&](const std::string& name) {
      const auto it = labels_.find(name);
      if (it == labels_.end()) refuse(fix.line, "no such label: " + name);
      return it->second;
    };
    Instruction& in = kernel_.code[fix.instruction];
    if (in.kind == Kind::branch) {
      in.target = place(fix.label);
      continue;
    }
    const auto targets = targets_.find(fix.label);
    if (targets == targets_.end()) refuse(fix.line, "no such table of labels: " + fix.label);
    const auto [table, fresh] = tables.try_emplace(fix.label, static_cast<s32>(kernel_.tables.size()));
    if (fresh) {
      kernel_.tables.emplace_back();
      for (const std::string& name : targets->second) kernel_.tables.back().push_back(place(name));
    }
    in.target = table->second;
  }
  operands.finish();
}

const std::map<std::string, Decoder::Handler>& Decoder::handlers() {
  static const std::map<std::string, Handler> all = {{"mov", &Decoder::mov},
                                                     {"cvt", &Decoder::cvt},
                                                     {"set", &Decoder::set},
                                                     {"bra", &Decoder::branch},
                                                     {"brx", &Decoder::branch_table},
                                                     {"ret", &Decoder::exit},
                                                     {"exit", &Decoder::exit},
                                                     {"trap", &Decoder::trap},
                                                     {"bar", &Decoder::barrier_or_warp_barrier},
                                                     {"barrier", &Decoder::barrier},
                                                     {"ld", &Decoder::load},
                                                     {"ldu", &Decoder::load},
                                                     {"st", &Decoder::store},
                                                     {"atom", &Decoder::atomic},
                                                     {"red", &Decoder::atomic},
                                                     {"cp", &Decoder::copy_async},
                                                     {"membar", &Decoder::fence},
                                                     {"fence", &Decoder::fence},
                                                     {"prefetch", &Decoder::prefetch},
                                                     {"prefetchu", &Decoder::prefetch},
                                                     {"call", &Decoder::call},
                                                     {"shfl", &Decoder::shuffle},
                                                     {"vote", &Decoder::vote},
                                                     {"match", &Decoder::match},
                                                     {"redux", &Decoder::redux},
                                                     {"activemask", &Decoder::active_mask},
                                                     {"mma", &Decoder::matrix_product},
                                                     {"ldmatrix", &Decoder::load_matrix}};
  return all;
}

namespace {

std::string key_of(const std::string& base, const std::vector<std::string>& modifiers) {
  std::string key = base;
  for (const std::string& m : modifiers) key += "." + m;
  return key;
}
const Form* find_form(const std::string& key) {
  const auto it = all_forms().find(key);
  return it == all_forms().end() ? nullptr : &it->second;
}
BoolOp take_bool_op(std::vector<std::string>& modifiers) {
  if (modifiers.size() < 2) return BoolOp::none;
  const std::string op = modifiers[1];
  const BoolOp found = op == "and"   ? BoolOp::logical_and
                       : op == "or"  ? BoolOp::logical_or
                       : op == "xor" ? BoolOp::logical_xor
                                     : BoolOp::none;
  if (found != BoolOp::none) modifiers.erase(modifiers.begin() + 1);
  return found;
}

}  // namespace

void Decoder::by_table(Op& op) {
  const BoolOp bool_op = op.base == "setp" ? take_bool_op(op.modifiers) : BoolOp::none;
  const Form* form = find_form(key_of(op.base, op.modifiers));
  if (form == nullptr) unknown(op);
  op.modifiers.clear();
  if (form->compare)
    compare_form(op, *form, bool_op);
  else
    plain_form(op, *form, false);
}

void Decoder::plain_form(Op& op, const Form& form, bool conversion) {
  expect_operands(op, form.widths.size(), form.widths.size());
  op.in.fn = form.fn;
  u32* const slots[] = {&op.in.d, &op.in.a, &op.in.b, &op.in.c, &op.in.e};
  for (std::size_t i = 0; i < form.widths.size(); ++i) {
    const std::string& text = op.operands[i];
    const int bytes = form.widths[i];
    if (i == 0 && bytes == 0) {
      const Register* r = operands.find_register(text);
      if (r == nullptr || r->bytes != 0) refuse(origin_.line, "not a predicate: " + text);
      op.in.d = r->slot;
    } else if (i == 0) {
      op.in.d = operands.destination(text, bytes);
    } else if (bytes == 0) {
      *slots[i] = operands.predicate(text, op.in.negated);
      if (op.in.negated) refuse(origin_.line, "an inverted predicate: " + op.text);
    } else {
      *slots[i] = operands.source(text, bytes, conversion && bytes < 4);
      if (const Register* r = operands.find_register(text); conversion && r != nullptr && r->bytes > 4 && bytes < 4)
        unknown(op);
    }
  }
  emit(op);
}

void Decoder::compare_form(Op& op, const Form& form, BoolOp bool_op) {
  const bool test = op.base == "testp";
  const std::size_t count = test ? 2 : bool_op == BoolOp::none ? 3 : 4;
  expect_operands(op, count, count);
  op.in.fn = form.fn;
  op.in.mode = static_cast<u8>(bool_op);
  const std::vector<std::string> results = split(op.operands[0], '|');
  if (results.empty() || results.size() > 2) unknown(op);
  u32* const slots[] = {&op.in.d, &op.in.d2};
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i] == "_") continue;
    const Register* r = operands.find_register(results[i]);
    if (r == nullptr || r->bytes != 0) refuse(origin_.line, "not a predicate: " + results[i]);
    *slots[i] = r->slot;
  }
  op.in.a = operands.source(op.operands[1], form.widths[1]);
  op.in.b = test ? op.in.a : operands.source(op.operands[2], form.widths[2]);
  if (bool_op != BoolOp::none) op.in.c = operands.predicate(op.operands[3], op.in.negated);
  emit(op);
}

// set = setp into a predicate of its own, and a selection: -1 or 1.0 against 0.
void Decoder::set(Op& op) {
  const BoolOp bool_op = take_bool_op(op.modifiers);
  const std::string to = op.modifiers.size() == 3 ? op.modifiers[1] : std::string();
  if (to != "u32" && to != "s32" && to != "f32") unknown(op);
  const Form* form = find_form("setp." + op.modifiers[0] + "." + op.modifiers[2]);
  if (form == nullptr) unknown(op);
  expect_operands(op, bool_op == BoolOp::none ? 3 : 4, bool_op == BoolOp::none ? 3 : 4);
  op.modifiers.clear();
  Instruction in = op.in;
  in.fn = form->fn;
  in.mode = static_cast<u8>(bool_op);
  in.d = operands.fresh_predicate();
  in.a = operands.source(op.operands[1], form->widths[1]);
  in.b = operands.source(op.operands[2], form->widths[2]);
  if (bool_op != BoolOp::none) in.c = operands.predicate(op.operands[3], in.negated);
  emit(in);
  op.in.fn = find_form("selp.b32")->fn;
  op.in.d = operands.destination(op.operands[0], 4);
  op.in.a = operands.constant(to == "f32" ? 0x3f800000u : ~0u, 4);
  op.in.b = operands.constant(0, 4);
  op.in.c = in.d;
  emit(op);
}

namespace {

// Parts of a register, lowest first; parts of T each. kNoSlot: `_`, which is dropped.
template <class T, class Part>
void pack(Warp& warp, const Instruction& in, u32 mask) {
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    T x = 0;
    for (u32 i = 0; i < in.count; ++i)
      x |= static_cast<T>(static_cast<T>(static_cast<Part>(lanes<Part>(warp, warp.kernel->slots[in.list + i])[l]))
                          << (8 * sizeof(Part) * i));
    lanes<T>(warp, in.d)[l] = x;
  }
}
template <class T, class Part>
void unpack(Warp& warp, const Instruction& in, u32 mask) {
  for (u32 m = mask; m != 0; m &= m - 1) {
    const int l = first_lane(m);
    const T x = lanes<T>(warp, in.a)[l];
    for (u32 i = 0; i < in.count; ++i)
      if (const u32 slot = warp.kernel->slots[in.list + i]; slot != kNoSlot)
        lanes<Part>(warp, slot)[l] = static_cast<Part>(x >> (8 * sizeof(Part) * i));
  }
}

}  // namespace

void Decoder::mov(Op& op) {
  expect_operands(op, 2, 2);
  const bool from_vector = op.operands[1][0] == '{', to_vector = op.operands[0][0] == '{';
  if (!from_vector && !to_vector) return by_table(op);
  const std::string type = op.last();
  const int bytes = type_bytes(type);
  if (from_vector == to_vector || type[0] != 'b' || bytes < 4 || !op.take(type)) unknown(op);
  const std::vector<std::string> parts = split(between(op.operands[from_vector ? 1 : 0], '{', '}'), ',');
  const int part = parts.empty() ? 0 : bytes / static_cast<int>(parts.size());
  if ((parts.size() != 2 && parts.size() != 4) || part < 2) unknown(op);
  std::vector<u32> slots;
  for (const std::string& p : parts)
    slots.push_back(from_vector ? operands.source(p, part) : p == "_" ? kNoSlot : operands.destination(p, part));
  op.in.count = static_cast<u8>(parts.size());
  op.in.list = list(slots);
  if (from_vector) {
    op.in.d = operands.destination(op.operands[0], bytes);
    op.in.fn = bytes == 4 ? pack<u32, u16> : part == 4 ? pack<u64, u32> : pack<u64, u16>;
  } else {
    op.in.a = operands.source(op.operands[1], bytes);
    op.in.fn = bytes == 4 ? unpack<u32, u16> : part == 4 ? unpack<u64, u32> : unpack<u64, u16>;
  }
  emit(op);
}

void Decoder::cvt(Op& op) {
  if (op.modifiers.size() < 2) unknown(op);
  const std::string from = op.modifiers.back(), to = op.modifiers[op.modifiers.size() - 2];
  const int from_bytes = type_bytes(from), to_bytes = type_bytes(to);
  if (is_integer_type(from) && is_integer_type(to)) {
    expect_operands(op, 2, 2);
    op.modifiers.resize(op.modifiers.size() - 2);
    op.in.negated = op.take("sat");
    int source_bytes = 0;
    op.in.a = operands.source(op.operands[1], from_bytes, true, &source_bytes);
    const Register* d = operands.find_register(op.operands[0]);
    if (d == nullptr || d->bytes < std::max(to_bytes, 2))
      refuse(origin_.line, "no register for the result: " + op.text);
    op.in.d = d->slot;
    op.in.size = static_cast<u8>(d->bytes);
    op.in.mode = static_cast<u8>(IntegerType{from_bytes, is_signed_type(from)}.encoded() |
                                 IntegerType{to_bytes, is_signed_type(to)}.encoded() << 4);
    op.in.fn = integer_conversion(d->bytes, source_bytes);
    return emit(op);
  }
  const Form* form = find_form(key_of("cvt", op.modifiers));
  if (form == nullptr) unknown(op);
  op.modifiers.clear();
  const Register* d = op.operands.empty() ? nullptr : operands.find_register(op.operands[0]);
  if (!is_integer_type(to) || to_bytes >= 4 || d == nullptr || d->bytes != 2) return plain_form(op, *form, true);
  // A narrow integer in a register of 2 bytes: as in one of 4, and its upper half cleared.
  expect_operands(op, 2, 2);
  op.in.d = d->slot;
  op.in.a = operands.source(op.operands[1], form->widths[1], true);
  op.in.fn = form->fn;
  Instruction clear = op.in;
  emit(op);
  clear.fn = find_form("and.b32")->fn;
  clear.a = clear.d;
  clear.b = operands.constant(0xffff, 4);
  emit(clear);
}

void Decoder::branch(Op& op) {
  op.take("uni");
  expect_operands(op, 1, 1);
  op.in.kind = Kind::branch;
  fixes_.push_back({kernel_.code.size(), local_label(op.operands[0]), origin_.line});
  emit(op);
}
void Decoder::branch_table(Op& op) {
  op.take("uni");
  if (!op.take("idx")) unknown(op);
  expect_operands(op, 2, 2);
  op.in.kind = Kind::branch_table;
  op.in.a = operands.source(op.operands[0], 4);
  fixes_.push_back({kernel_.code.size(), local_label(op.operands[1]), origin_.line});
  emit(op);
}
void Decoder::exit(Op& op) {
  op.take("uni");
  expect_operands(op, 0, 0);
  if (call_depth_ > 0 && op.base == "ret") {
    op.in.kind = Kind::branch;
    fixes_.push_back({kernel_.code.size(), local_label("return"), origin_.line});
    return emit(op);
  }
  op.in.kind = Kind::exit;
  emit(op);
}
void Decoder::trap(Op& op) {
  expect_operands(op, 0, 0);
  op.in.fn = [](Warp& warp, const Instruction& in, u32 mask) { stop(warp, in, first_lane(mask), Fault::trap, "trap"); };
  emit(op);
}

}  // namespace sg::ptx
