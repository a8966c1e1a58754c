// Decoding of memory accesses, barriers, calls and what the lanes of a warp do together.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "tests/cuda_emulator/ptx/decode.h"
#include "tests/cuda_emulator/ptx/exchange.h"
#include "tests/cuda_emulator/ptx/memory.h"

namespace sg::ptx {

namespace {

LaneFn move_fn(int bytes) { return all_forms().at(bytes == 8 ? "mov.b64" : bytes == 4 ? "mov.b32" : "mov.b16").fn; }

}  // namespace

bool Decoder::take_space(Op& op, Space& space) {
  static const std::pair<const char*, Space> kSpaces[] = {{"global", Space::global},     {"const", Space::global},
                                                          {"shared", Space::shared},     {"shared::cta", Space::shared},
                                                          {"local", Space::local},       {"param", Space::param},
                                                          {"param::entry", Space::param}};
  for (const auto& [name, known] : kSpaces)
    if (op.take(name)) {
      space = known;
      return true;
    }
  space = Space::generic;
  return false;
}

std::string Decoder::take_type(Op& op) {
  const std::string type = op.last();
  if (type_bytes(type) <= 0) unknown(op);
  op.modifiers.pop_back();
  return type;
}

// Hints of caching mean nothing here; ordering does.
void Decoder::take_memory_modifiers(Op& op) {
  for (const char* strong : {"volatile", "relaxed", "acquire", "release", "acq_rel", "cv"})
    if (op.take(strong)) op.in.strong = true;
  for (const char* scope : {"cta", "gpu", "sys"}) op.take(scope);
  for (const char* hint : {"weak", "ca", "cg", "cs", "lu", "nc", "wb", "wt", "L1::evict_normal", "L1::evict_unchanged",
                           "L1::evict_first", "L1::evict_last", "L1::no_allocate", "L2::64B", "L2::128B", "L2::256B"})
    op.take(hint);
}

// Registers of {a, b, ...} or of one operand: all of the same bytes, no fewer than the element's.
u32 Decoder::vector_slots(Op& op, const std::string& text, int bytes, bool write, int& register_bytes) {
  const bool vector = text[0] == '{';
  const std::vector<std::string> parts = vector ? split(between(text, '{', '}'), ',') : std::vector<std::string>{text};
  if (parts.size() != op.in.count) unknown(op);
  register_bytes = 0;
  for (const std::string& part : parts)
    if (const Register* r = operands.find_register(part)) {
      if (register_bytes != 0 && register_bytes != r->bytes) unknown(op);
      register_bytes = r->bytes;
    }
  if (register_bytes == 0) register_bytes = std::max(bytes, 2);
  if (register_bytes < bytes) refuse(origin_.line, "a register smaller than the element: " + op.text);
  std::vector<u32> slots;
  for (const std::string& part : parts)
    slots.push_back(!write                  ? operands.source(part, register_bytes)
                    : vector && part == "_" ? kNoSlot
                                            : operands.destination(part, register_bytes));
  return list(slots);
}

void Decoder::load(Op& op) {
  expect_operands(op, 2, 2);
  const std::string type = take_type(op);
  const int bytes = type_bytes(type);
  take_space(op, op.in.space);
  take_memory_modifiers(op);
  op.in.count = op.take("v4") ? 4 : op.take("v2") ? 2 : 1;
  op.in.size = static_cast<u8>(bytes);
  std::string name;
  u64 offset = 0;
  if (op.in.space == Space::param && split_offset(between(op.operands[1], '[', ']'), name, offset) &&
      operands.is_call_parameter(name)) {
    if (op.in.count != 1) unknown(op);
    op.in.a = operands.call_parameter(name, offset, bytes).slot;
    op.in.d = operands.destination(op.operands[0], bytes);
    op.in.fn = move_fn(bytes);
    return emit(op);
  }
  int register_bytes = 0;
  op.in.list = vector_slots(op, op.operands[0], bytes, true, register_bytes);
  operands.address(op.operands[1], op.in);
  const MemoryFns fns = op.in.space == Space::param ? load_parameter_fns(bytes, is_signed_type(type), register_bytes)
                                                    : load_fns(bytes, is_signed_type(type), register_bytes);
  if (fns.fn == nullptr) unknown(op);
  op.in.fn = fns.fn;
  op.in.checked = fns.checked;
  emit(op);
}

void Decoder::store(Op& op) {
  expect_operands(op, 2, 2);
  const std::string type = take_type(op);
  const int bytes = type_bytes(type);
  take_space(op, op.in.space);
  take_memory_modifiers(op);
  op.in.count = op.take("v4") ? 4 : op.take("v2") ? 2 : 1;
  op.in.size = static_cast<u8>(bytes);
  if (op.in.space == Space::param) {  // an argument of a call
    std::string name;
    u64 offset = 0;
    if (op.in.count != 1 || !split_offset(between(op.operands[0], '[', ']'), name, offset)) unknown(op);
    op.in.a = operands.source(op.operands[1], bytes);
    op.in.d = operands.call_parameter(name, offset, bytes).slot;
    op.in.fn = move_fn(bytes);
    return emit(op);
  }
  int register_bytes = 0;
  op.in.list = vector_slots(op, op.operands[1], bytes, false, register_bytes);
  operands.address(op.operands[0], op.in);
  const MemoryFns fns = store_fns(bytes, register_bytes);
  if (fns.fn == nullptr) unknown(op);
  op.in.fn = fns.fn;
  op.in.checked = fns.checked;
  emit(op);
}

void Decoder::atomic(Op& op) {
  static const std::pair<const char*, Atomic> kOps[] = {
      {"add", Atomic::add}, {"min", Atomic::min},    {"max", Atomic::max},  {"exch", Atomic::exch},
      {"cas", Atomic::cas}, {"and", Atomic::op_and}, {"or", Atomic::op_or}, {"xor", Atomic::op_xor},
      {"inc", Atomic::inc}, {"dec", Atomic::dec}};
  const std::string type = take_type(op);
  const int bytes = type_bytes(type);
  take_space(op, op.in.space);
  take_memory_modifiers(op);
  op.in.strong = false;
  op.in.size = static_cast<u8>(bytes);
  Atomic what = Atomic::add;
  for (const auto& [name, known] : kOps)
    if (op.take(name)) {
      what = known;
      op.in.fn = atomic_fn(known, type);
    }
  if (op.in.fn == nullptr || op.in.space == Space::local || op.in.space == Space::param) unknown(op);
  const std::size_t first = op.base == "atom" ? 1 : 0, count = first + (what == Atomic::cas ? 3 : 2);
  expect_operands(op, count, count);
  if (first == 1 && op.operands[0] != "_") op.in.d = operands.destination(op.operands[0], bytes);
  operands.address(op.operands[first], op.in);
  op.in.b = operands.source(op.operands[first + 1], bytes);
  if (what == Atomic::cas) op.in.c = operands.source(op.operands[first + 2], bytes);
  emit(op);
}

void Decoder::copy_async(Op& op) {
  if (!op.take("async")) unknown(op);
  if (op.take("commit_group")) {
    expect_operands(op, 0, 0);
    op.in.fn = copy_commit;
    return emit(op);
  }
  if (op.take("wait_all")) {
    expect_operands(op, 0, 0);
    op.in.fn = copy_wait;
    op.in.mode = 1;
    return emit(op);
  }
  if (op.take("wait_group")) {
    expect_operands(op, 1, 1);
    const auto n = number(op.operands[0]);
    if (!n || n->bits > 64) unknown(op);
    op.in.fn = copy_wait;
    op.in.offset = static_cast<s64>(n->bits);
    return emit(op);
  }
  const bool whole_line = op.take("cg");
  if (!whole_line && !op.take("ca")) unknown(op);
  take_memory_modifiers(op);
  if ((!op.take("shared") && !op.take("shared::cta")) || !op.take("global")) unknown(op);
  expect_operands(op, 3, 4);
  const auto bytes = number(op.operands[2]);
  if (!bytes || (bytes->bits != 16 && (whole_line || (bytes->bits != 4 && bytes->bits != 8)))) unknown(op);
  op.in.size = static_cast<u8>(bytes->bits);
  Instruction source;
  operands.address(op.operands[1], source);
  operands.address(op.operands[0], op.in);
  if (!source.address64 || source.a == kNoSlot) unknown(op);
  op.in.offset2 = op.in.offset;
  op.in.b = source.a;
  op.in.offset = source.offset;
  if (op.operands.size() == 4) op.in.c = operands.source(op.operands[3], 4);
  op.in.fn = ptx::copy_async;
  emit(op);
}

void Decoder::fence(Op& op) {
  expect_operands(op, 0, 0);
  op.take("sc");
  op.take("acq_rel");
  op.in.fn = ptx::fence;
  if (op.take("cta"))
    op.in.fn = [](Warp&, const Instruction&, u32) {};  // no block learns of another by it
  else if (!op.take("gl") && !op.take("gpu") && !op.take("sys"))
    unknown(op);
  emit(op);
}

void Decoder::prefetch(Op& op) {
  op.modifiers.clear();
  expect_operands(op, 1, 1);
  operands.address(op.operands[0], op.in);
  op.in.fn = [](Warp&, const Instruction&, u32) {};
  emit(op);
}

void Decoder::barrier_or_warp_barrier(Op& op) {
  if (op.take("warp")) return warp_barrier(op);
  barrier(op);
}
void Decoder::warp_barrier(Op& op) {
  if (!op.take("sync")) unknown(op);
  expect_operands(op, 1, 1);
  op.in.kind = Kind::converge;
  op.in.e = operands.source(op.operands[0], 4);
  op.in.fn = ptx::warp_barrier;
  emit(op);
}

// Barrier 0 for the whole block; the others are refused.
void Decoder::barrier(Op& op) {
  op.take("cta");
  op.take("aligned");
  op.in.kind = Kind::barrier;
  const bool reduces = op.take("red");
  if (!reduces && !op.take("sync")) unknown(op);
  const std::size_t id = reduces ? 1 : 0;
  expect_operands(op, reduces ? 3 : 1, reduces ? 4 : 2);
  const auto n = number(op.operands[id]);
  if (!n || n->bits != 0 || op.operands.size() != (reduces ? 3u : 1u))
    refuse(origin_.line, "a barrier other than number 0 of the whole block: " + op.text);
  if (reduces) {
    const BarrierRed how = op.take("popc")  ? BarrierRed::popc
                           : op.take("and") ? BarrierRed::all
                           : op.take("or")  ? BarrierRed::any
                                            : BarrierRed::none;
    if (how == BarrierRed::none || !op.take(how == BarrierRed::popc ? "u32" : "pred")) unknown(op);
    op.in.mode = static_cast<u8>(how);
    op.in.d = how == BarrierRed::popc ? operands.destination(op.operands[0], 4) : operands.predicate(op.operands[0]);
    op.in.b = operands.predicate(op.operands[2], op.in.negated);
  }
  emit(op);
}

namespace {

std::string text_at(const Run& run, u64 p) {
  u64 base = 0, size = 0;
  if (!run.kernel->module->find(p, base, size)) return "?";
  const char* text = reinterpret_cast<const char*>(p);
  return std::string(text, strnlen(text, base + size - p));
}
// message, file, line, function, size of a character
void assertion_failed(Warp& warp, const Instruction& in, u32 mask) {
  const u32* slots = warp.kernel->slots.data() + in.list;
  const int l = first_lane(mask);
  stop(warp, in, l, Fault::assertion,
       fmt::format("{} ({}:{})", text_at(*warp.run, lanes<u64>(warp, slots[0])[l]),
                   text_at(*warp.run, lanes<u64>(warp, slots[1])[l]), lanes<u32>(warp, slots[2])[l]));
}

}  // namespace

void Decoder::call(Op& op) {
  op.take("uni");
  std::vector<std::string> parts = op.operands;
  std::string result;
  if (!parts.empty() && parts[0].starts_with('(')) {
    result = between(parts[0], '(', ')');
    parts.erase(parts.begin());
  }
  const std::string name = parts.empty() ? std::string() : parts[0];
  const auto function = names_.functions.find(name);
  if (function == names_.functions.end()) refuse(origin_.line, "call of a function that is not declared: " + op.text);
  const std::vector<std::string> arguments =
      parts.size() > 1 ? split(between(parts[1], '(', ')'), ',') : std::vector<std::string>{};
  if (function->second.body) return call_inline(op, function->second, result, arguments);
  if (name == "__assertfail" && arguments.size() == 5) {
    std::vector<u32> slots;
    for (std::size_t i = 0; i < 5; ++i) slots.push_back(operands.call_parameter(arguments[i], 0, i == 2 ? 4 : 8).slot);
    op.in.list = list(slots);
    op.in.fn = assertion_failed;
  } else if (name == "vprintf") {  // prints nothing: 0 characters
    op.in.fn = move_fn(4);
    op.in.d = operands.call_parameter(result, 0, 4).slot;
    op.in.a = operands.constant(0, 4);
  } else {
    refuse(origin_.line, "call of a function without body: " + op.text);
  }
  emit(op);
}

// The function's body in the place of the call, with its own names; its `ret` is a branch to the end.
void Decoder::call_inline(Op& op, const Function& function, const std::string& result,
                          const std::vector<std::string>& arguments) {
  if (op.in.guard >= 0 || !op.modifiers.empty()) unknown(op);
  if (call_depth_ == 8) refuse(origin_.line, "calls within calls, eight deep: " + op.text);
  if (arguments.size() != function.parameters.size() || result.empty() != function.result.empty())
    refuse(origin_.line, "a call with other parameters than the function's: " + op.text);
  const int line = operands.line;
  operands.open_scope(true);
  if (!result.empty()) operands.bind_parameter(function.result, result);
  for (std::size_t i = 0; i < arguments.size(); ++i) operands.bind_parameter(function.parameters[i], arguments[i]);
  const std::string suffix = std::exchange(suffix_, fmt::format("@{}", ++calls_));
  const Location here = location_;
  ++call_depth_;
  Reader body = *function.body;
  decode_body(body, *this);
  label("return");
  --call_depth_;
  suffix_ = suffix;
  location(here);
  operands.close_scope();
  operands.line = line;
}

void Decoder::shuffle(Op& op) {
  static const std::pair<const char*, Shuffle> kModes[] = {
      {"up", Shuffle::up}, {"down", Shuffle::down}, {"bfly", Shuffle::bfly}, {"idx", Shuffle::idx}};
  if (!op.take("sync") || !op.take("b32")) unknown(op);
  const std::size_t before = op.modifiers.size();
  for (const auto& [name, mode] : kModes)
    if (op.take(name)) op.in.mode = static_cast<u8>(mode);
  if (before != 1) unknown(op);
  expect_operands(op, 5, 5);
  const std::vector<std::string> results = split(op.operands[0], '|');
  if (results.empty() || results.size() > 2) unknown(op);
  op.in.kind = Kind::converge;
  op.in.fn = ptx::shuffle;
  op.in.d = operands.destination(results[0], 4);
  if (results.size() == 2) op.in.d2 = operands.predicate(results[1]);
  op.in.a = operands.source(op.operands[1], 4);
  op.in.b = operands.source(op.operands[2], 4);
  op.in.c = operands.source(op.operands[3], 4);
  op.in.e = operands.source(op.operands[4], 4);
  emit(op);
}

void Decoder::vote(Op& op) {
  if (!op.take("sync")) unknown(op);
  const bool ballot = op.take("ballot");
  const Vote mode = ballot ? Vote::ballot : op.take("any") ? Vote::any : op.take("all") ? Vote::all : Vote::uni;
  if (mode == Vote::uni && !op.take("uni")) unknown(op);
  if (!op.take(ballot ? "b32" : "pred")) unknown(op);
  expect_operands(op, 3, 3);
  op.in.kind = Kind::converge;
  op.in.fn = ptx::vote;
  op.in.mode = static_cast<u8>(mode);
  op.in.d = ballot ? operands.destination(op.operands[0], 4) : operands.predicate(op.operands[0]);
  op.in.b = operands.predicate(op.operands[1], op.in.negated);
  op.in.e = operands.source(op.operands[2], 4);
  emit(op);
}

void Decoder::match(Op& op) {
  if (!op.take("sync")) unknown(op);
  const bool any = op.take("any");
  if (!any && !op.take("all")) unknown(op);
  const bool wide = op.take("b64");
  if (!wide && !op.take("b32")) unknown(op);
  expect_operands(op, 3, 3);
  const std::vector<std::string> results = split(op.operands[0], '|');
  if (results.empty() || results.size() > (any ? 1u : 2u)) unknown(op);
  op.in.kind = Kind::converge;
  op.in.fn = any ? (wide ? match_any<u64> : match_any<u32>) : (wide ? match_all<u64> : match_all<u32>);
  op.in.d = operands.destination(results[0], 4);
  if (results.size() == 2) op.in.d2 = operands.predicate(results[1]);
  op.in.a = operands.source(op.operands[1], wide ? 8 : 4);
  op.in.e = operands.source(op.operands[2], 4);
  emit(op);
}

void Decoder::redux(Op& op) {
  static const std::pair<const char*, Redux> kModes[] = {
      {"add.s32", Redux::add},    {"add.u32", Redux::add},   {"min.s32", Redux::min_s},
      {"max.s32", Redux::max_s},  {"min.u32", Redux::min_u}, {"max.u32", Redux::max_u},
      {"and.b32", Redux::op_and}, {"or.b32", Redux::op_or},  {"xor.b32", Redux::op_xor}};
  expect_operands(op, 3, 3);
  if (!op.take("sync") || op.modifiers.size() != 2) unknown(op);
  const std::string key = op.modifiers[0] + "." + op.modifiers[1];
  const auto* mode = std::find_if(std::begin(kModes), std::end(kModes), [&](const auto& m) { return m.first == key; });
  if (mode == std::end(kModes)) unknown(op);
  op.modifiers.clear();
  op.in.kind = Kind::converge;
  op.in.fn = ptx::redux;
  op.in.mode = static_cast<u8>(mode->second);
  op.in.d = operands.destination(op.operands[0], 4);
  op.in.a = operands.source(op.operands[1], 4);
  op.in.e = operands.source(op.operands[2], 4);
  emit(op);
}

void Decoder::active_mask(Op& op) {
  if (!op.take("b32")) unknown(op);
  expect_operands(op, 1, 1);
  op.in.fn = ptx::active_mask;
  op.in.d = operands.destination(op.operands[0], 4);
  emit(op);
}

void Decoder::matrix_product(Op& op) {
  static const struct {
    const char *shape, *type;
    Matrix mode;
    u8 depth;
  } kKnown[] = {{"m16n8k4", "tf32", Matrix::tf32, 4}, {"m16n8k8", "tf32", Matrix::tf32, 8},
                {"m16n8k8", "bf16", Matrix::bf16, 8}, {"m16n8k16", "bf16", Matrix::bf16, 16},
                {"m16n8k8", "f16", Matrix::f16, 8},   {"m16n8k16", "f16", Matrix::f16, 16}};
  expect_operands(op, 4, 4);
  const std::vector<std::string> m = op.modifiers;  // sync aligned shape row col d a b c
  if (m.size() != 9 || m[0] != "sync" || m[1] != "aligned" || m[3] != "row" || m[4] != "col" || m[5] != "f32" ||
      m[6] != m[7] || m[8] != "f32")
    unknown(op);
  for (const auto& known : kKnown)
    if (m[2] == known.shape && m[6] == known.type) {
      op.in.mode = static_cast<u8>(known.mode);
      op.in.count = known.depth;
      op.in.fn = ptx::matrix_product;
    }
  if (op.in.fn == nullptr) unknown(op);
  op.modifiers.clear();
  const std::size_t b = static_cast<std::size_t>(op.in.count) / (m[6] == "tf32" ? 4 : 8);
  const std::size_t sizes[] = {4, 2 * b, b, 4};
  std::vector<u32> slots;
  for (std::size_t i = 0; i < 4; ++i) {
    std::vector<std::string> parts = split(between(op.operands[i], '{', '}'), ',');
    if (parts.empty()) parts = {op.operands[i]};
    if (parts.size() != sizes[i]) unknown(op);
    for (const std::string& part : parts)
      slots.push_back(i == 0 ? operands.destination(part, 4) : operands.source(part, 4));
  }
  op.in.list = list(slots);
  op.in.kind = Kind::converge;
  op.in.e = operands.constant(kAllLanes, 4);
  emit(op);
}

void Decoder::load_matrix(Op& op) {
  expect_operands(op, 2, 2);
  if (!op.take("sync") || !op.take("aligned") || !op.take("m8n8") || !op.take("b16")) unknown(op);
  take_space(op, op.in.space);
  if (op.in.space != Space::shared && op.in.space != Space::generic) unknown(op);
  op.in.mode = op.take("trans") ? 1 : 0;
  op.in.count = op.take("x4") ? 4 : op.take("x2") ? 2 : 1;
  if (op.in.count == 1 && !op.take("x1")) unknown(op);
  int register_bytes = 0;
  op.in.list = vector_slots(op, op.operands[0], 4, true, register_bytes);
  const std::vector<u32> slots(kernel_.slots.end() - op.in.count, kernel_.slots.end());
  if (register_bytes != 4 || std::find(slots.begin(), slots.end(), kNoSlot) != slots.end()) unknown(op);
  operands.address(op.operands[1], op.in);
  op.in.kind = Kind::converge;
  op.in.fn = ptx::load_matrix;
  op.in.e = operands.constant(kAllLanes, 4);
  emit(op);
}

}  // namespace sg::ptx
