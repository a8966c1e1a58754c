#include "backends/cpu/jit/generator.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace sg::cpu::jit {
namespace {

constexpr int kUnroll = 4;
constexpr int kMaxItems = 320;  // of straight-line code: a few pages at most
constexpr std::size_t kMaxCode = 1 << 17;

alignas(32) constexpr std::int32_t kMaskTable[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

}  // namespace

Generator::Generator(const Plan& plan, std::int64_t rows, std::int64_t columns)
    : Xbyak::CodeGenerator(kMaxCode, Xbyak::DontSetProtectRWE),
      plan_(plan),
      p_(*plan.program),
      rows_(rows),
      columns_(columns),
      lanes_(plan.lanes),
      first_temp_(plan.wide ? 28 : 11),
      mask_vector_(15) {
  row_masked_ = rows_ % lanes_ != 0;
  const Reg64 saved[] = {rbx, rbp, r12, r13, r14, r15};
  for (const Reg64& r : saved) push(r);
  mov(rbp, rsp);
  and_(rsp, -64);
  sub(rsp, (kStackSlots + 1) * 64);
  if (plan_.wide) {
    mov(eax, (1u << (columns_ % lanes_)) - 1u);
    kmovw(k1, eax);
    mov(eax, (1u << (rows_ % lanes_)) - 1u);
    kmovw(k2, eax);
  }
  mov(scratch_, ptr[rdi + offsetof(Args, scratch)]);
  mov(folds_, ptr[rdi + offsetof(Args, folds)]);
  mov(common_, reinterpret_cast<std::uint64_t>(plan_.common));
  const auto padded = static_cast<int>(round_up(columns_, lanes_));
  for (const std::int64_t offset : plan_.column_sum)
    if (offset >= 0) {
      vxorps(vec(0), vec(0), vec(0));
      for (int c = 0; c < padded; c += lanes_) vmovups(ptr[scratch_ + static_cast<int>(offset) + c * 4], vec(0));
    }
  for (phase_ = 0; phase_ < plan_.phases; ++phase_) {
    row_phase();
    full_phase();
  }
  finish_block();
  mov(rsp, rbp);
  for (auto it = std::rbegin(saved); it != std::rend(saved); ++it) pop(*it);
  vzeroupper();
  ret();
  emit_constants();
  ready();
  setProtectModeRE();
}

// ---- memory

// base + index + bytes; arrays far from the common address by way of a register.
Xbyak::Address Generator::memory(std::byte* base, const Reg64& index, std::int64_t bytes) {
  const std::int64_t distance = base - plan_.common + bytes;
  if (distance > -(std::int64_t{1} << 30) && distance < std::int64_t{1} << 30)
    return ptr[common_ + index + static_cast<int>(distance)];
  mov(tmp_, reinterpret_cast<std::uint64_t>(base));
  return ptr[tmp_ + index + static_cast<int>(bytes)];
}

// The same for an array of elements of two bytes; index and bytes are those of an array of four.
Xbyak::Address Generator::half_memory(std::byte* base, const Reg64& index, std::int64_t bytes) {
  mov(half_, index);
  shr(half_, 1);
  return memory(base, half_, bytes / 2);
}

// AVX-512 only. In a vector a bf16 number is the f32 number that it is.
void Generator::load_bf16(const Vec& v, const Xbyak::Address& from, bool one_number, bool part) {
  if (one_number)
    vpbroadcastw(v, from);
  else if (part)
    vpmovzxwd(v | mask() | T_z, from);
  else
    vpmovzxwd(v, from);
  vpslld(v, v, 16);
}

void Generator::store_bf16(const Xbyak::Address& to, const Vec& v, bool part) {
  vpsrld(temp(0), v, 16);
  if (part)
    vpmovdw(to | mask(), temp(0));
  else
    vpmovdw(to, temp(0));
}

// To nearest, ties to even: adds half of the last digit that stays, less one where that digit is even. NaN stays quiet.
void Generator::round_to_bf16(const Vec& y) {
  vpsrld(temp(0), y, 16);
  broadcast_bits(temp(1), 1);
  vpandd(temp(0), temp(0), temp(1));
  vpaddd(temp(0), temp(0), y);
  broadcast_bits(temp(1), 0x7FFF);
  vpaddd(temp(0), temp(0), temp(1));
  constexpr std::uint8_t kOrdered = 7;
  vcmpps(k3, y, y, kOrdered);
  broadcast_bits(temp(1), 0x400000);
  vpord(y, y, temp(1));
  vmovdqa32(y | k3, temp(0));
  broadcast_bits(temp(1), 0xFFFF0000u);
  vpandd(y, y, temp(1));
}

Source::Where Generator::source_of(int reg) const {
  const Layout layout = plan_.reg(reg).layout;
  if (plan_.is_input(reg)) {
    switch (layout) {
      case Layout::full:
        return Source::full;
      case Layout::row:
        return Source::row;
      case Layout::column:
        return Source::column;
      case Layout::scalar:
        return Source::scalar;
      case Layout::segment:
        return Source::segment;
      case Layout::table:
        return Source::nowhere;
    }
  }
  if (plan_.is_gathered(reg)) return Source::table_row;
  if (layout == Layout::row) return Source::row_buffer;
  const int made = plan_.phase[ix(plan_.op_of[ix(reg)])];
  if (made == phase_) return Source::nowhere;
  return plan_.store_phase[ix(reg)] == made ? Source::full : Source::put_aside;
}

void Generator::load(const Vec& v, int reg, int at) {
  const std::int64_t bytes = std::int64_t{at} * lanes_ * 4;
  std::byte* const base = plan_.base[ix(reg)];
  const auto whole_or_part = [&](const Xbyak::Address& from) {
    if (!masked(at))
      vmovups(v, from);
    else if (plan_.wide)
      vmovups(v | mask() | T_z, from);
    else
      vmaskmovps(v, vec(mask_vector_), from);
  };
  if (is_bf16(reg)) {
    switch (source_of(reg)) {
      case Source::full:
        return load_bf16(v, half_memory(base, full_, bytes), false, masked(at));
      case Source::column:
        return load_bf16(v, half_memory(base, column_, bytes), false, masked(at));
      case Source::segment:
        return load_bf16(v, half_memory(base, segment_, bytes), false, masked(at));
      case Source::table_row:
        mov(tmp_, ptr[scratch_ + static_cast<int>(plan_.row_place[ix(reg)])]);
        mov(half_, column_);
        shr(half_, 1);
        return load_bf16(v, ptr[tmp_ + half_ + static_cast<int>(bytes / 2)], false, masked(at));
      case Source::row:
        return load_bf16(v, half_memory(base, row_memory_, 0), !over_rows_, over_rows_ && masked(at));
      case Source::scalar:
        mov(tmp_, reinterpret_cast<std::uint64_t>(base));
        return load_bf16(v, ptr[tmp_], true, false);
      default:
        break;  // put aside or per row: in f32
    }
  }
  switch (source_of(reg)) {
    case Source::full:
      whole_or_part(memory(base, full_, bytes));
      return;
    case Source::column:
      whole_or_part(memory(base, column_, bytes));
      return;
    case Source::segment:
      whole_or_part(memory(base, segment_, bytes));
      return;
    case Source::table_row:
      mov(tmp_, ptr[scratch_ + static_cast<int>(plan_.row_place[ix(reg)])]);
      whole_or_part(ptr[tmp_ + column_ + static_cast<int>(bytes)]);
      return;
    case Source::row:
      if (over_rows_)
        whole_or_part(memory(base, row_memory_, 0));
      else
        vbroadcastss(v, memory(base, row_memory_, 0));
      return;
    case Source::scalar:
      mov(tmp_, reinterpret_cast<std::uint64_t>(base));
      vbroadcastss(v, ptr[tmp_]);
      return;
    case Source::row_buffer: {
      const auto from = ptr[scratch_ + row_ + static_cast<int>(plan_.row_buffer[ix(reg)])];
      if (over_rows_)
        vmovups(v, from);
      else
        vbroadcastss(v, from);
      return;
    }
    case Source::put_aside:
      vmovups(v, ptr[aside_ + column_ + static_cast<int>(plan_.aside[ix(reg)] + bytes)]);
      return;
    case Source::nowhere:
      break;
  }
  throw NotGenerated{};
}

void Generator::store(int reg, const Vec& v, int at) {
  if (is_bf16(reg))
    return store_bf16(half_memory(plan_.base[ix(reg)], full_, std::int64_t{at} * lanes_ * 4), v, masked(at));
  const Xbyak::Address to = memory(plan_.base[ix(reg)], full_, std::int64_t{at} * lanes_ * 4);
  if (!masked(at) && plan_.streamed[ix(reg)])
    vmovntps(to, v);
  else if (!masked(at))
    vmovups(to, v);
  else if (plan_.wide)
    vmovups(to | mask(), v);
  else
    vmaskmovps(to, vec(mask_vector_), v);
}

// The next block, a part of it in each phase: a row that is passed over several times would otherwise leave the memory
// idle in all passes but one. Called for `count` vectors of this block.
void Generator::fetch_ahead(int count) {
  constexpr int kLine = 64;
  const int lines = static_cast<int>(
      ceil_div(std::int64_t{count} * lanes_ * 4, kLine * static_cast<std::int64_t>(plan_.full_phases.size())));
  bool any = false;
  for (int r = 0; r < p_.inputs; ++r)
    if (plan_.fetched[ix(r)]) {
      for (int line = 0; line < lines; ++line)
        prefetcht1(memory(plan_.base[ix(r)], ahead_, std::int64_t{line} * kLine));
      any = true;
    }
  if (any) add(ahead_, lines * kLine);
}

void Generator::put_aside(int reg, const Vec& v, int at) {
  vmovups(ptr[aside_ + column_ + static_cast<int>(plan_.aside[ix(reg)] + std::int64_t{at} * lanes_ * 4)], v);
}

// ---- registers within a stretch: values stay until their last use; the one used last of all makes room

int Generator::id_of(int reg, int at) const {
  const Layout layout = plan_.reg(reg).layout;
  return reg * kMaxUnrolled + (layout == Layout::row || layout == Layout::scalar ? 0 : at);
}

int Generator::next_use(int id, int now) const {
  const auto found = uses_.find(id);
  if (found == uses_.end()) return std::numeric_limits<int>::max();
  const auto it = std::lower_bound(found->second.begin(), found->second.end(), now);
  return it == found->second.end() ? std::numeric_limits<int>::max() : *it;
}

int Generator::take(int now) {
  int best = -1, farthest = -1;
  for (int v = 0; v < static_cast<int>(holder_.size()); ++v) {
    const int id = holder_[ix(v)];
    if (id == -2 || std::find(pinned_.begin(), pinned_.end(), v) != pinned_.end()) continue;
    if (id == -1) {
      best = v;
      break;
    }
    if (const int use = next_use(id, now); use > farthest) farthest = use, best = v;
  }
  if (best < 0) throw NotGenerated{};
  if (const int id = holder_[ix(best)]; id >= 0) {
    if (farthest != std::numeric_limits<int>::max() && source_of(id / kMaxUnrolled) == Source::nowhere &&
        slot_of_.find(id) == slot_of_.end()) {
      if (slots_ == kStackSlots) throw NotGenerated{};
      vmovups(ptr[rsp + slots_ * 64], vec(best));
      slot_of_[id] = slots_++;
    }
    vector_of_.erase(id);
  }
  holder_[ix(best)] = -1;
  return best;
}

int Generator::fetch(int reg, int at, int now) {
  const int id = id_of(reg, at);
  int v;
  if (const auto found = vector_of_.find(id); found != vector_of_.end()) {
    v = found->second;
  } else {
    v = take(now);
    if (const auto slot = slot_of_.find(id); slot != slot_of_.end())
      vmovups(vec(v), ptr[rsp + slot->second * 64]);
    else
      load(vec(v), reg, at);
    bind(id, v);
  }
  pinned_.push_back(v);
  return v;
}

void Generator::emit_stretch(const std::vector<Item>& items, bool over_rows, int count, bool mask_last) {
  over_rows_ = over_rows, stretch_count_ = count, stretch_masked_ = mask_last;
  uses_.clear(), vector_of_.clear(), slot_of_.clear();
  slots_ = 0;
  holder_.assign(ix(first_temp_), -1);
  for (const auto& [op, v] : accumulator_)
    for (int k = 0; k < copies_.at(op); ++k) holder_[ix(v - k)] = -2;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const auto use = [&](int reg) {
      auto& list = uses_[id_of(reg, items[i].at)];
      if (list.empty() || list.back() != static_cast<int>(i)) list.push_back(static_cast<int>(i));
    };
    if (items[i].op < 0)
      use(items[i].reg);
    else
      for (const int r : p_.code[ix(items[i].op)].in) use(r);
  }
  if (!plan_.wide && (over_rows ? row_masked_ : mask_last)) {
    const std::int64_t lanes = (over_rows ? rows_ : columns_) % lanes_;
    mov(tmp_, reinterpret_cast<std::uint64_t>(kMaskTable + 8 - lanes));
    vmovups(vec(mask_vector_), ptr[tmp_]);
  }
  for (std::size_t i = 0; i < items.size(); ++i) {
    const int now = static_cast<int>(i);
    pinned_.clear();
    emit(items[i], now);
    for (int& id : holder_)
      if (id >= 0 && next_use(id, now + 1) == std::numeric_limits<int>::max()) vector_of_.erase(id), id = -1;
  }
}

void Generator::emit(const Item& item, int now) {
  if (item.op < 0) {
    const Vec v = vec(fetch(item.reg, item.at, now));
    store(item.reg, v, item.at);
    return;
  }
  const RowProgram::Op& op = p_.code[ix(item.op)];
  const RowKernel& kernel = plan_.kernels[ix(item.op)];
  std::vector<Vec> x;
  for (const int r : op.in) x.push_back(vec(fetch(r, item.at, now)));
  switch (op.kind) {
    case Kind::reduce_row:
      accumulate(static_cast<Reduction>(kernel.code), accumulator(item.op, item.at), x[0], masked(item.at));
      return;
    case Kind::reduce_all:
      if (over_rows_) {
        vxorps(temp(1), temp(1), temp(1));
        accumulate(Reduction::sum, temp(1), x[0], masked(item.at));
        fold_lanes(Reduction::sum, temp(1));
        add_to_fold(item.op, temp(1));
      } else {
        accumulate(Reduction::sum, accumulator(item.op, item.at), x[0], masked(item.at));
      }
      return;
    case Kind::reduce_columns:
    case Kind::reduce_segments: {
      const auto place = ptr[scratch_ + column_ +
                             static_cast<int>(plan_.column_sum[ix(item.op)] + std::int64_t{item.at} * lanes_ * 4)];
      vaddps(temp(0), x[0], place);
      vmovups(place, temp(0));
      return;
    }
    case Kind::gather:  // is read where it is
    case Kind::expand:
    case Kind::elementwise:
      break;
  }
  const int v = take(now);
  const Vec y = vec(v);
  if (op.kind == Kind::expand)
    vmovaps(y, x[0]);
  else
    elementwise(op, kernel, y, x);
  if (is_bf16(op.out) && op.kind == Kind::elementwise && !exact_in_bf16(kernel)) round_to_bf16(y);
  bind(id_of(op.out, item.at), v);
  if (over_rows_) {
    vmovups(ptr[scratch_ + static_cast<int>(plan_.row_buffer[ix(op.out)])], y);
    return;
  }
  if (plan_.store_phase[ix(op.out)] == phase_ && !plan_.store_last[ix(op.out)]) store(op.out, y, item.at);
  if (plan_.aside[ix(op.out)] >= 0) put_aside(op.out, y, item.at);
}

// ---- phases

// What is per row, for all rows of the block at once.
void Generator::row_phase() {
  std::vector<Item> items;
  for (std::size_t i = 0; i < p_.code.size(); ++i) {
    const RowProgram::Op& op = p_.code[i];
    if (plan_.phase[i] != phase_) continue;
    const bool sum_of_rows = op.kind == Kind::reduce_all && plan_.reg(op.in[0]).layout == Layout::row;
    if (sum_of_rows || (op.kind == Kind::elementwise && plan_.reg(op.out).layout == Layout::row))
      items.push_back({static_cast<int>(i), 0, -1});
  }
  if (items.empty()) return;
  if (items.size() > kMaxItems) throw NotGenerated{};
  accumulator_.clear();
  xor_(row_, row_);
  mov(row_memory_, ptr[rdi + offsetof(Args, row)]);
  emit_stretch(items, true, 1, false);
}

void Generator::full_phase() {
  std::vector<Item> of_one;
  std::vector<int> reductions;
  accumulator_.clear();
  for (std::size_t i = 0; i < p_.code.size(); ++i) {
    const RowProgram::Op& op = p_.code[i];
    if (plan_.phase[i] != phase_ || op.kind == Kind::gather) continue;
    const bool from_full = !op.in.empty() && plan_.reg(op.in[0]).layout == Layout::full;
    if (op.kind == Kind::reduce_row || (op.kind == Kind::reduce_all && from_full))
      reductions.push_back(static_cast<int>(i));
    else if (plan_.reg(op.out).layout != Layout::full && plan_.column_sum[i] < 0)
      continue;
    of_one.push_back({static_cast<int>(i), 0, -1});
  }
  for (const int r : p_.outputs)
    if (plan_.reg(r).layout == Layout::full && plan_.store_phase[ix(r)] == phase_ &&
        (plan_.store_last[ix(r)] || plan_.is_gathered(r) || plan_.phase[ix(plan_.op_of[ix(r)])] != phase_))
      of_one.push_back({-1, 0, r});
  if (of_one.empty()) return;
  if (of_one.size() > kMaxItems || reductions.size() > ix(first_temp_ / 2)) throw NotGenerated{};
  const auto reduction = [&](int op) {
    return p_.code[ix(op)].kind == Kind::reduce_all ? Reduction::sum
                                                    : static_cast<Reduction>(plan_.kernels[ix(op)].code);
  };
  // A sum has one vector whatever else is summed: its order must not depend on what it shares a program with.
  copies_.clear();
  const int several = ceil_div(columns_, lanes_) > kMaxUnrolled && !reductions.empty()
                          ? std::clamp(first_temp_ / 3 / static_cast<int>(reductions.size()), 1, kUnroll)
                          : 1;
  int last = first_temp_ - 1;
  for (const int op : reductions) {
    accumulator_[op] = last;
    copies_[op] = reduction(op) == Reduction::sum ? 1 : several;
    last -= copies_[op];
  }

  xor_(row_, row_);
  xor_(column_, column_);
  if (plan_.cut) mov(segment_, ptr[rdi + offsetof(Args, segment)]);
  mov(full_, ptr[rdi + offsetof(Args, full)]);
  const auto& phases = plan_.full_phases;
  const auto turn = std::find(phases.begin(), phases.end(), phase_) - phases.begin();
  constexpr std::int64_t kLine = 64;
  const std::int64_t block = rows_ * columns_ * 4, next = plan_.fetch_distance > 0 ? plan_.fetch_distance : block;
  lea(ahead_,
      ptr[full_ + static_cast<int>(next + block * turn / static_cast<std::int64_t>(phases.size()) / kLine * kLine)]);
  mov(row_memory_, ptr[rdi + offsetof(Args, row)]);
  mov(aside_, scratch_);
  Xbyak::Label next_row;
  L(next_row);
  find_rows(of_one);
  for (const int op : reductions)
    for (int k = 0; k < copies_.at(op); ++k) {
      const Vec acc = accumulator(op, k);
      if (reduction(op) == Reduction::sum)
        vxorps(acc, acc, acc);
      else
        broadcast_number(acc,
                         (reduction(op) == Reduction::max ? -1.0f : 1.0f) * std::numeric_limits<float>::infinity());
    }
  columns(of_one);
  for (const int op : reductions)
    for (int k = 1; k < copies_.at(op); ++k) accumulate(reduction(op), accumulator(op, 0), accumulator(op, k), false);
  for (const int op : reductions) {
    const Vec acc = accumulator(op, 0);
    if (p_.code[ix(op)].kind == Kind::reduce_all) {
      fold_lanes(Reduction::sum, acc);
      add_to_fold(op, acc);
    } else {
      fold_lanes(reduction(op), acc);
      vmovss(ptr[scratch_ + row_ + static_cast<int>(plan_.row_buffer[ix(p_.code[ix(op)].out)])],
             Xbyak::Xmm(acc.getIdx()));
    }
  }
  if (rows_ == 1) return;
  add(full_, static_cast<int>(columns_ * 4));
  add(row_memory_, 4);
  add(aside_, static_cast<int>(plan_.aside_row));
  add(row_, 4);
  cmp(row_, static_cast<int>(rows_ * 4));
  jl(next_row, T_NEAR);
}

// Where the rows lie that are read at this one.
void Generator::find_rows(const std::vector<Item>& of_one) {
  for (const RowProgram::Op& op : p_.code) {
    if (op.kind != Kind::gather) continue;
    const bool read = std::any_of(of_one.begin(), of_one.end(), [&](const Item& item) {
      if (item.op < 0) return item.reg == op.out;
      const std::vector<int>& in = p_.code[ix(item.op)].in;
      return std::find(in.begin(), in.end(), op.out) != in.end();
    });
    if (!read) continue;
    movsxd(tmp_, dword[memory(plan_.base[ix(op.in[1])], row_memory_, 0).getRegExp()]);
    imul(tmp_, tmp_, static_cast<int>(p_.columns * static_cast<std::int64_t>(size_of(plan_.reg(op.out).dtype))));
    mov(half_, reinterpret_cast<std::uint64_t>(plan_.base[ix(op.in[0])]));
    add(tmp_, half_);
    mov(ptr[scratch_ + static_cast<int>(plan_.row_place[ix(op.out)])], tmp_);
  }
}

// One row: whole vectors of columns in a loop, a few at a time, then what is left.
void Generator::columns(const std::vector<Item>& of_one) {
  const auto repeat = [&](int count) {
    std::vector<Item> items;
    for (int k = 0; k < count; ++k)
      for (Item item : of_one) {
        item.at = k;
        items.push_back(item);
      }
    return items;
  };
  const bool tail = columns_ % lanes_ != 0;
  const auto vectors = static_cast<int>(ceil_div(columns_, lanes_));
  const int per_one = static_cast<int>(of_one.size());
  const int together = std::clamp(kMaxItems / per_one, 1, kUnroll);
  if (vectors <= std::min(kMaxUnrolled, kMaxItems / per_one)) {
    fetch_ahead(vectors);
    emit_stretch(repeat(vectors), false, vectors, tail);
    return;
  }
  const int whole = static_cast<int>(columns_ / lanes_), loops = whole / together;
  const int left = vectors - loops * together, step = together * lanes_ * 4;
  mov(loop_, loops);
  Xbyak::Label again;
  L(again);
  fetch_ahead(together);
  emit_stretch(repeat(together), false, together, false);
  add(column_, step);
  add(full_, step);
  if (plan_.cut) add(segment_, step);
  dec(loop_);
  jnz(again, T_NEAR);
  if (left > 0) emit_stretch(repeat(left), false, left, tail);
  sub(full_, step * loops);
  if (plan_.cut) sub(segment_, step * loops);
  xor_(column_, column_);
}

// Per-row outputs to memory, sums down the columns (of everything, or of a segment) into the folds.
void Generator::finish_block() {
  over_rows_ = true;
  mov(row_memory_, ptr[rdi + offsetof(Args, row)]);
  if (!plan_.wide && row_masked_) {
    mov(tmp_, reinterpret_cast<std::uint64_t>(kMaskTable + 8 - rows_ % lanes_));
    vmovups(vec(mask_vector_), ptr[tmp_]);
  }
  for (const int r : p_.outputs) {
    if (plan_.reg(r).layout != Layout::row) continue;
    vmovups(vec(0), ptr[scratch_ + static_cast<int>(plan_.row_buffer[ix(r)])]);
    if (is_bf16(r)) {
      store_bf16(half_memory(plan_.base[ix(r)], row_memory_, 0), vec(0), row_masked_);
      continue;
    }
    const Xbyak::Address to = memory(plan_.base[ix(r)], row_memory_, 0);
    if (!row_masked_)
      vmovups(to, vec(0));
    else if (plan_.wide)
      vmovups(to | k2, vec(0));
    else
      vmaskmovps(to, vec(mask_vector_), vec(0));
  }
  for (std::size_t i = 0; i < p_.code.size(); ++i) {
    if (plan_.column_sum[i] < 0) continue;
    const int half = lanes_ / 2;
    const auto padded = static_cast<int>(round_up(columns_, lanes_));
    for (int c = 0; c < padded; c += half) {
      const auto place = ptr[folds_ + static_cast<int>(plan_.fold[i] + c) * 8];
      vcvtps2pd(vec(0), ptr[scratch_ + static_cast<int>(plan_.column_sum[i]) + c * 4]);
      vaddpd(vec(0), vec(0), place);
      vmovups(place, vec(0));
    }
  }
}

}  // namespace sg::cpu::jit
