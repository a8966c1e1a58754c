#include "core/row_bundle.h"

#include <algorithm>
#include <atomic>
#include <numeric>

namespace sg {
namespace {

using Layout = RowProgram::Layout;

// A chain of fewer parts would leave threads without work.
constexpr std::int64_t kMinParts = 16;
// What a part of a chain may touch, to stay in a second-level cache.
constexpr std::size_t kPartBytes = std::size_t{3} << 19;
// Ops that are rather repeated than what they make written.
constexpr std::size_t kRecipeOps = 8;
// Elements of a part that has little of a region: numbers per group or per sample.
constexpr std::int64_t kSmallPart = 1024;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

bool is_alias(Role r) { return r == Role::alias || r == Role::after || r == Role::stop_gradient; }
bool is_leaf(Role r) { return r == Role::input || r == Role::constant || r == Role::read; }

std::atomic<bool>& bundling_on() {
  static std::atomic<bool> on{true};
  return on;
}

// Cut into equal runs of rows, each value of this layout is cut into equal runs of memory.
bool is_of_rows(Layout l) { return l == Layout::full || l == Layout::row || l == Layout::segment; }

bool sums_over_rows(const RowProgram& p) {
  return std::any_of(p.code.begin(), p.code.end(), [](const auto& op) { return RowProgram::over_rows(op.kind); });
}

// One long row, which can be cut anywhere.
bool is_flat(const RowProgram& p) {
  return p.rows == 1 && std::all_of(p.registers.begin(), p.registers.end(), [](const auto& reg) {
           return reg.layout == Layout::full || reg.layout == Layout::scalar;
         });
}

// Such a region can fail when it begins: it stays a step of its own.
bool gathers(const RowProgram& p) {
  return std::any_of(p.code.begin(), p.code.end(), [](const auto& op) { return op.kind == RowProgram::Kind::gather; });
}

// The program with its rows cut into so many segments.
RowProgram in_parts(const RowProgram& p, std::int64_t parts) {
  RowProgram cut = p;
  if (parts == 1 || p.segments == parts) return cut;
  cut.segments = parts;
  if (p.whole) cut.whole = std::make_shared<RowProgram>(in_parts(*p.whole, parts));
  return cut;
}

// The value whose memory this one is.
std::int32_t memory_of(const Tape& tape, std::int32_t v) {
  for (;;) {
    const Instr& made = tape.instrs()[ix(tape.producer(v))];
    if (!is_alias(op_def(made.op).role)) return v;
    v = made.inputs[0];
  }
}
std::vector<std::int32_t> memory_of_values(const Tape& tape) {
  std::vector<std::int32_t> root(ix(tape.value_count()));
  std::iota(root.begin(), root.end(), 0);
  for (const Instr& instr : tape.instrs())
    if (is_alias(op_def(instr.op).role)) root[ix(instr.outputs[0])] = root[ix(instr.inputs[0])];
  return root;
}

struct Bundle {
  std::vector<std::int32_t> members;  // instructions, in order
  std::int64_t parts = 1;
  std::int32_t at = -1;  // the member in whose place it is emitted
};

class Bundler {
 public:
  Bundler(const Tape& tape, std::span<const std::int32_t> keep)
      : tape_(tape),
        instrs_(tape.instrs()),
        root_(memory_of_values(tape)),
        kept_(ix(tape.value_count()), false),
        users_(ix(tape.value_count())),
        bundle_of_(instrs_.size(), -1),
        gone_(ix(tape.value_count()), false) {
    for (const std::int32_t v : keep) kept_[ix(root_[ix(v)])] = true;
    for (std::size_t i = 0; i < instrs_.size(); ++i) {
      const auto index = static_cast<std::int32_t>(i);
      for (std::size_t k = is_alias(role(index)) ? 1 : 0; k < instrs_[i].inputs.size(); ++k)
        users_[ix(root_[ix(instrs_[i].inputs[k])])].push_back(index);
    }
  }

  Rewritten run() {
    find_chains();
    find_updates();
    if (bundles_.empty()) return {nullptr, {}};
    return emit();
  }

 private:
  const Instr& at(std::int32_t i) const { return instrs_[ix(i)]; }
  Role role(std::int32_t i) const { return op_def(at(i).op).role; }
  const RowProgram& program(std::int32_t i) const { return tape_.row_program(at(i).attrs.i("program")); }
  std::int32_t maker(std::int32_t value) const { return tape_.producer(root_[ix(value)]); }
  // Whether f holds for what makes the value, and for what it comes after.
  template <class F>
  bool all_before(std::int32_t value, F f) const {
    if (!f(maker(value))) return false;
    for (std::int32_t i = tape_.producer(value); is_alias(role(i)); i = tape_.producer(at(i).inputs[0]))
      for (std::size_t k = 1; k < at(i).inputs.size(); ++k)
        if (!f(maker(at(i).inputs[k]))) return false;
    return true;
  }

  // --- chains -------------------------------------------------------------------------------------------------------

  void find_chains() {
    Bundle chain;
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(instrs_.size()); ++i) {
      if (is_alias(role(i)) || is_leaf(role(i))) continue;
      if (role(i) == Role::region && joins(chain, i)) continue;
      close(chain);
      if (role(i) == Role::region) joins(chain, i);
    }
    close(chain);
  }

  // Adds region i to the chain where it can be run part by part with it.
  bool joins(Bundle& chain, std::int32_t i) const {
    const RowProgram& p = program(i);
    if (p.rows == 1 || gathers(p) || (p.segments == 1 && sums_over_rows(p))) return false;
    const std::int64_t parts = std::max(chain.parts, p.segments);
    if (parts > 1 && p.segments > 1 && p.segments != parts) return false;
    if (p.rows % parts != 0) return false;
    for (const std::int32_t m : chain.members)
      if (program(m).rows % parts != 0 || (program(m).segments > 1 && program(m).segments != parts)) return false;
    for (std::size_t k = 0; k < at(i).inputs.size(); ++k) {
      const std::int32_t v = at(i).inputs[k], made = maker(v);
      const auto outside = [&](std::int32_t m) {
        return std::find(chain.members.begin(), chain.members.end(), m) == chain.members.end();
      };
      if (!outside(made) && !(is_of_rows(p.registers[k].layout) && made_by_rows(made, v))) return false;
      if (!all_before(v, [&](std::int32_t m) { return m == made || outside(m); })) return false;
    }
    chain.members.push_back(i);
    chain.parts = parts;
    return true;
  }
  bool made_by_rows(std::int32_t region, std::int32_t value) const {
    const auto& outputs = at(region).outputs;
    const auto k = std::find(outputs.begin(), outputs.end(), root_[ix(value)]) - outputs.begin();
    const RowProgram& p = program(region);
    return is_of_rows(p.registers[ix(p.outputs[ix(k)])].layout);
  }

  // Keeps the chain where passes over the same large value follow each other, and a part of it stays in the cache.
  void close(Bundle& chain) {
    std::vector<std::int32_t> large;  // memory that a region reads or writes in full
    std::size_t bytes = 0;
    bool shared = false;
    for (const std::int32_t m : chain.members) {
      const RowProgram& p = program(m);
      std::vector<std::int32_t> own;
      const auto note = [&](std::int32_t value, int reg) {
        const std::int32_t v = root_[ix(value)];
        if (p.registers[ix(reg)].layout != Layout::full || std::find(own.begin(), own.end(), v) != own.end()) return;
        own.push_back(v);
        if (std::find(large.begin(), large.end(), v) != large.end())
          shared = shared || p.rows * p.columns > chain.parts * p.columns;
        else
          large.push_back(v), bytes += p.bytes(reg);
      };
      for (std::size_t k = 0; k < at(m).inputs.size(); ++k) note(at(m).inputs[k], static_cast<int>(k));
      for (std::size_t k = 0; k < at(m).outputs.size(); ++k) note(at(m).outputs[k], p.outputs[k]);
    }
    if (chain.members.size() > 1 && shared && chain.parts >= kMinParts && bytes / ix(chain.parts) <= kPartBytes) {
      chain.at = chain.members.back();
      add(std::move(chain));
    }
    chain = {};
  }

  // --- updates ------------------------------------------------------------------------------------------------------

  void find_updates() {
    Bundle updates;
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(instrs_.size()); ++i) {
      if (role(i) != Role::region || bundle_of_[ix(i)] >= 0 || gathers(program(i)) || !is_update(i)) continue;
      if (updates.members.empty() || !available(i, updates.at)) {
        close_updates(updates);
        updates.at = i;
      }
      updates.members.push_back(i);
    }
    close_updates(updates);
  }

  void close_updates(Bundle& updates) {
    if (updates.members.size() > 1) add(std::move(updates));
    updates = {};
  }

  bool is_update(std::int32_t i) const {
    bool any = false;
    for (const std::int32_t v : at(i).outputs) {
      const bool assigned = !kept_[ix(v)] && !users_[ix(v)].empty() &&
                            std::all_of(users_[ix(v)].begin(), users_[ix(v)].end(),
                                        [&](std::int32_t u) { return role(u) == Role::assign; });
      if (!assigned && tape_.type(v).shape.elements() != 1) return false;
      any = any || assigned;
    }
    return any;
  }

  // Whether the operands of region i are there when instruction `begin` runs, and nobody else reads the variables that
  // it may be written over from then on.
  bool available(std::int32_t i, std::int32_t begin) const {
    return std::all_of(at(i).inputs.begin(), at(i).inputs.end(), [&](std::int32_t v) {
      const std::int32_t made = maker(v);
      const auto is_there = [&](std::int32_t m) { return is_leaf(role(m)) || m < begin; };
      if (!all_before(v, is_there)) return false;
      if (!is_leaf(role(made))) return true;
      const auto& users = users_[ix(root_[ix(v)])];
      return role(made) != Role::read ||
             std::all_of(users.begin(), users.end(), [&](std::int32_t u) { return u == i || u < begin; });
    });
  }

  // --- the new tape -------------------------------------------------------------------------------------------------

  void add(Bundle bundle) {
    for (const std::int32_t m : bundle.members) bundle_of_[ix(m)] = static_cast<std::int32_t>(bundles_.size());
    bundles_.push_back(std::move(bundle));
  }

  Rewritten emit() {
    Rewriter r(tape_);
    std::vector<char> done(instrs_.size(), 0);
    std::vector<std::int32_t> waiting;  // aliases of what a chain makes
    // Copies a leaf or an alias that is needed before its turn.
    const auto need = [&](const auto& self, std::int32_t value) -> void {
      const std::int32_t i = tape_.producer(value);
      if (done[ix(i)] != 0 || !(is_leaf(role(i)) || is_alias(role(i)))) return;
      for (const std::int32_t v : at(i).inputs) self(self, v);
      done[ix(i)] = 1;
      r.copy(i);
    };
    const auto pending = [&](std::int32_t value) {
      const std::int32_t b = bundle_of_[ix(maker(value))], i = tape_.producer(value);
      if (is_alias(role(i)) && done[ix(i)] == 0) return true;
      return b >= 0 && done[ix(bundles_[ix(b)].at)] == 0;
    };
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(instrs_.size()); ++i) {
      if (done[ix(i)] != 0) continue;
      if (is_alias(role(i)) && std::any_of(at(i).inputs.begin(), at(i).inputs.end(), pending)) {
        waiting.push_back(i);
        continue;
      }
      const std::int32_t b = bundle_of_[ix(i)];
      if (b < 0) {
        done[ix(i)] = 1;
        if (!is_alias(role(i)) || !gone_[ix(root_[ix(at(i).inputs[0])])]) r.copy(i);
        continue;
      }
      if (bundles_[ix(b)].at != i) continue;
      const auto inside = [&](std::int32_t v) { return bundle_of_[ix(maker(v))] == b; };
      for (const std::int32_t m : bundles_[ix(b)].members)
        for (const std::int32_t v : at(m).inputs)
          if (!inside(v)) need(need, v);
      emit_bundle(r, bundles_[ix(b)]);
      for (const std::int32_t m : bundles_[ix(b)].members) done[ix(m)] = 1;
      for (const std::int32_t w : waiting)
        if (done[ix(w)] == 0 && std::none_of(at(w).inputs.begin(), at(w).inputs.end(), pending)) {
          done[ix(w)] = 1;
          if (!gone_[ix(root_[ix(at(w).inputs[0])])]) r.copy(w);
        }
    }
    return r.finish();
  }

  // A region of the bundle, with the values of this tape that it reads and makes.
  struct Member {
    RowProgram program;
    std::vector<std::int32_t> inputs, outputs;
  };

  void emit_bundle(Rewriter& r, const Bundle& bundle) {
    std::vector<Member> members;
    for (const std::int32_t m : bundle.members) {
      members.push_back({in_parts(program(m), bundle.parts), at(m).inputs, at(m).outputs});
    }
    if (bundle.parts > 1) make_again(members, bundle);
    std::vector<std::int64_t> programs, types, operands;
    std::vector<std::int32_t> outputs;
    std::vector<Value> inputs;
    // Places of operands: an input counted from 0, or -1 - output.
    for (Member& member : members) {
      for (const std::int32_t v : member.inputs) {
        const auto made = std::find(outputs.begin(), outputs.end(), root_[ix(v)]);
        if (made != outputs.end()) {
          operands.push_back(-1 - (made - outputs.begin()));
          continue;
        }
        const Value operand = r.mapped(v);
        const auto known =
            std::find_if(inputs.begin(), inputs.end(), [&](const Value& w) { return w.id == operand.id; });
        operands.push_back(known - inputs.begin());
        if (known == inputs.end()) inputs.push_back(operand);
      }
      for (const std::int32_t v : member.outputs) {
        outputs.push_back(v);
        types.push_back(static_cast<std::int64_t>(tape_.type(v).dtype));
        types.push_back(tape_.type(v).shape.rank());
        for (const std::int64_t extent : tape_.type(v).shape) types.push_back(extent);
      }
      programs.push_back(r.out().add_program(std::make_shared<RowProgram>(std::move(member.program))));
    }
    for (std::int64_t& place : operands)
      if (place < 0) place = static_cast<std::int64_t>(inputs.size()) - 1 - place;
    r.at(bundle.members.back());
    const std::vector<Value> made =
        r.out().emit(op_with_role(Role::bundle), inputs,
                     {{"programs", programs}, {"operands", operands}, {"types", types}, {"parts", bundle.parts}});
    for (std::size_t k = 0; k < outputs.size(); ++k) r.replace(outputs[k], made[k]);
  }

  // Large values that only regions of the chain read, and that a few ops make of what is in the cache anyway, are made
  // again by each of them: written, they would leave the cache in the end, and nobody would ever read them there.
  void make_again(std::vector<Member>& members, const Bundle& bundle) {
    for (std::size_t i = 0; i < members.size(); ++i)
      for (std::size_t k = 0; k < members[i].outputs.size();) {
        const std::int32_t v = members[i].outputs[k];
        const std::vector<RowProgram::Op> recipe = recipe_of(members[i].program, members[i].program.outputs[k]);
        std::vector<std::size_t> readers;
        bool again = !recipe.empty() && !kept_[ix(v)] &&
                     std::all_of(users_[ix(v)].begin(), users_[ix(v)].end(), [&](std::int32_t u) {
                       return std::find(bundle.members.begin(), bundle.members.end(), u) != bundle.members.end();
                     });
        for (std::size_t j = i + 1; again && j < members.size(); ++j) {
          const RowProgram &from = members[i].program, &to = members[j].program;
          for (std::size_t in = 0; in < members[j].inputs.size(); ++in)
            if (root_[ix(members[j].inputs[in])] == v) {
              again = again && to.registers[in].layout == Layout::full && to.rows == from.rows &&
                      to.columns == from.columns && !sums_along_rows(to);
              if (readers.empty() || readers.back() != j) readers.push_back(j);
            }
        }
        if (!again || readers.empty()) {
          ++k;
          continue;
        }
        for (const std::size_t j : readers) inline_value(members[j], members[i], k, recipe);
        remember_whole(members[i].program);
        members[i].program.outputs.erase(members[i].program.outputs.begin() + static_cast<std::ptrdiff_t>(k));
        if (!members[i].program.origins.empty())
          members[i].program.origins.erase(members[i].program.origins.begin() + static_cast<std::ptrdiff_t>(k));
        members[i].outputs.erase(members[i].outputs.begin() + static_cast<std::ptrdiff_t>(k));
        drop_unused(members[i]);
        gone_[ix(v)] = true;
      }
    std::erase_if(members, [](const Member& m) { return m.outputs.empty(); });
  }

  // The cut of its rows, and with it the bits of its sums over them, stays that of the program before it was changed.
  static void remember_whole(RowProgram& p) {
    if (!p.whole) p.whole = std::make_shared<RowProgram>(p);
  }

  // What makes a register of a program of one pass over the row; empty where that is more than a few ops.
  static std::vector<RowProgram::Op> recipe_of(const RowProgram& p, int reg) {
    std::vector<RowProgram::Op> recipe;
    if (p.registers[ix(reg)].layout != Layout::full || sums_along_rows(p)) return recipe;
    std::vector<bool> wanted(p.registers.size(), false);
    wanted[ix(reg)] = true;
    for (std::size_t i = p.code.size(); i-- > 0;)
      if (wanted[ix(p.code[i].out)]) {
        recipe.insert(recipe.begin(), p.code[i]);
        for (const int in : p.code[i].in) wanted[ix(in)] = true;
      }
    if (recipe.size() > kRecipeOps) recipe.clear();
    return recipe;
  }
  static bool sums_along_rows(const RowProgram& p) {
    return std::any_of(p.code.begin(), p.code.end(),
                       [](const auto& op) { return op.kind == RowProgram::Kind::reduce_row; });
  }

  // Puts the recipe of output k of `from` in place of the reading of that output.
  void inline_value(Member& to, const Member& from, std::size_t k, const std::vector<RowProgram::Op>& recipe) const {
    remember_whole(to.program);
    const RowProgram &p = to.program, &q = from.program;
    const std::int32_t v = from.outputs[k];
    RowProgram next = p;
    next.registers.clear(), next.code.clear();
    std::vector<std::int32_t> inputs;
    std::vector<int> of_p(p.registers.size(), -1), of_q(q.registers.size(), -1);
    const auto input = [&](std::int32_t value, RowProgram::Register reg) {
      for (std::size_t in = 0; in < inputs.size(); ++in)
        if (root_[ix(inputs[in])] == root_[ix(value)] && next.registers[in].layout == reg.layout)
          return static_cast<int>(in);
      inputs.push_back(value), next.registers.push_back(reg);
      return static_cast<int>(inputs.size() - 1);
    };
    for (int in = 0; in < p.inputs; ++in)
      if (root_[ix(to.inputs[ix(in)])] != v) of_p[ix(in)] = input(to.inputs[ix(in)], p.registers[ix(in)]);
    for (const RowProgram::Op& op : recipe)
      for (const int in : op.in)
        if (in < q.inputs) of_q[ix(in)] = input(from.inputs[ix(in)], q.registers[ix(in)]);
    next.inputs = static_cast<int>(inputs.size());
    const auto add = [&](RowProgram::Op op, std::vector<int>& names, const RowProgram& of) {
      for (int& in : op.in) in = names[ix(in)];
      names[ix(op.out)] = static_cast<int>(next.registers.size());
      next.registers.push_back(of.registers[ix(op.out)]);
      op.out = names[ix(op.out)];
      next.code.push_back(std::move(op));
    };
    for (const RowProgram::Op& op : recipe) add(op, of_q, q);
    for (int in = 0; in < p.inputs; ++in)
      if (root_[ix(to.inputs[ix(in)])] == v) of_p[ix(in)] = of_q[ix(q.outputs[k])];
    for (const RowProgram::Op& op : p.code) add(op, of_p, p);
    for (int& out : next.outputs) out = of_p[ix(out)];
    to.program = std::move(next);
    to.inputs = std::move(inputs);
  }

  // Ops and inputs that nothing needs any more.
  static void drop_unused(Member& member) {
    RowProgram& p = member.program;
    std::vector<bool> wanted(p.registers.size(), false);
    for (const int out : p.outputs) wanted[ix(out)] = true;
    for (std::size_t i = p.code.size(); i-- > 0;)
      if (wanted[ix(p.code[i].out)])
        for (const int in : p.code[i].in) wanted[ix(in)] = true;
    std::vector<int> name(p.registers.size(), -1);
    std::vector<RowProgram::Register> registers;
    std::vector<std::int32_t> inputs;
    for (std::size_t r = 0; r < p.registers.size(); ++r) {
      if (!wanted[r]) continue;
      name[r] = static_cast<int>(registers.size());
      registers.push_back(p.registers[r]);
      if (static_cast<int>(r) < p.inputs) inputs.push_back(member.inputs[r]);
    }
    std::erase_if(p.code, [&](const RowProgram::Op& op) { return !wanted[ix(op.out)]; });
    for (RowProgram::Op& op : p.code) {
      for (int& in : op.in) in = name[ix(in)];
      op.out = name[ix(op.out)];
    }
    for (int& out : p.outputs) out = name[ix(out)];
    p.registers = std::move(registers);
    p.inputs = static_cast<int>(inputs.size());
    member.inputs = std::move(inputs);
  }

  const Tape& tape_;
  std::span<const Instr> instrs_;
  std::vector<std::int32_t> root_;                // per value
  std::vector<bool> kept_;                        // per root
  std::vector<std::vector<std::int32_t>> users_;  // per root, those that are no aliases
  std::vector<std::int32_t> bundle_of_;           // per instruction
  std::vector<Bundle> bundles_;
  std::vector<bool> gone_;  // per root: made again by all that read it
};

}  // namespace

RowBundle row_bundle(const Tape& tape, const Instr& instr) {
  RowBundle bundle;
  bundle.parts = instr.attrs.i("parts");
  std::size_t operand = 0, output = 0;
  const auto& places = instr.attrs.ints("operands");
  for (const std::int64_t index : instr.attrs.ints("programs")) {
    RowBundle::Region region{&tape.row_program(index), {}, {}};
    for (int k = 0; k < region.program->inputs; ++k) {
      const std::size_t place = ix(places[operand++]), inputs = instr.inputs.size();
      region.inputs.push_back(place < inputs ? instr.inputs[place] : instr.outputs[place - inputs]);
    }
    for (std::size_t k = 0; k < region.program->outputs.size(); ++k) region.outputs.push_back(instr.outputs[output++]);
    bundle.regions.push_back(std::move(region));
  }
  return bundle;
}

Rewritten align_segments(const Tape& tape) {
  std::vector<std::int64_t> parts(ix(tape.value_count()), 1);  // that a value comes in, made segment by segment
  Rewriter r(tape);
  bool changed = false;
  for (std::size_t i = 0; i < tape.instrs().size(); ++i) {
    const Instr& instr = tape.instrs()[i];
    const Role role = op_def(instr.op).role;
    const auto index = static_cast<std::int32_t>(i);
    if (is_alias(role)) parts[ix(instr.outputs[0])] = parts[ix(instr.inputs[0])];
    if (role != Role::region) {
      r.copy(index);
      continue;
    }
    const RowProgram& p = tape.row_program(instr.attrs.i("program"));
    std::int64_t segments = p.segments;
    if (segments == 1)
      for (std::size_t k = 0; k < instr.inputs.size(); ++k)
        if (is_of_rows(p.registers[k].layout)) segments = std::max(segments, parts[ix(instr.inputs[k])]);
    const std::int64_t runs = is_flat(p) ? p.columns : p.rows;  // what can be cut
    const bool small = runs > 1 && runs % segments == 0 && p.rows * p.columns / segments <= kSmallPart;
    if (p.segments == 1 && !small) segments = 1;
    for (std::size_t k = 0; k < instr.outputs.size(); ++k) {
      const Layout l = p.registers[ix(p.outputs[k])].layout;
      if (l == Layout::segment || (small && is_of_rows(l))) parts[ix(instr.outputs[k])] = segments;
    }
    if (segments == p.segments) {
      r.copy(index);
      continue;
    }
    auto cut = std::make_shared<RowProgram>(in_parts(p, segments));
    if (is_flat(p)) cut->rows = segments, cut->columns = p.columns / segments;
    Attrs attrs = instr.attrs;
    attrs.set("program", r.out().add_program(std::move(cut)));
    r.at(index);
    const std::vector<Value> made = r.out().emit(instr.op, r.mapped_inputs(instr), attrs);
    for (std::size_t k = 0; k < made.size(); ++k) r.replace(instr.outputs[k], made[k]);
    changed = true;
  }
  return changed ? r.finish() : Rewritten{nullptr, {}};
}

Rewritten bundle_rows(const Tape& tape, std::span<const std::int32_t> keep) {
  if (!bundling_on()) return {nullptr, {}};
  return Bundler(tape, keep).run();
}

void set_row_bundles(bool on) { bundling_on() = on; }

bool bundle_in_place(const Tape& tape, const Instr& instr, int input, int output, const RegionInPlaceFn& in_region) {
  const auto &programs = instr.attrs.ints("programs"), &places = instr.attrs.ints("operands");
  const std::int64_t inputs = static_cast<std::int64_t>(instr.inputs.size()), parts = instr.attrs.i("parts");
  const auto value_at = [&](std::int64_t place) {
    return place < inputs ? instr.inputs[ix(place)] : instr.outputs[ix(place - inputs)];
  };
  // The region that makes the output, and where it reads the input.
  std::size_t maker = 0, first_operand = 0;
  int first_output = 0;
  for (;; ++maker) {
    const RowProgram& p = tape.row_program(programs[maker]);
    if (output < first_output + static_cast<int>(p.outputs.size())) break;
    first_output += static_cast<int>(p.outputs.size());
    first_operand += ix(p.inputs);
  }
  const RowProgram& own = tape.row_program(programs[maker]);
  const auto begin = places.begin() + static_cast<std::ptrdiff_t>(first_operand), end = begin + own.inputs;
  const auto read = std::find(begin, end, static_cast<std::int64_t>(input));
  if (read == end) return false;
  std::vector<std::int32_t> values;
  for (auto place = begin; place != end; ++place) values.push_back(value_at(*place));
  if (!in_region(own, values, static_cast<int>(read - begin), output - first_output)) return false;
  // Nobody reads the input afterwards: earlier regions of a chain are done with this part, and may need another part
  // only when its turn comes.
  const std::int32_t memory = memory_of(tape, instr.inputs[ix(input)]);
  std::size_t operand = 0;
  for (std::size_t region = 0; region < programs.size(); ++region) {
    const RowProgram& p = tape.row_program(programs[region]);
    for (int k = 0; k < p.inputs; ++k, ++operand)
      if (region != maker && memory_of(tape, value_at(places[operand])) == memory &&
          (region > maker || parts == 1 || !is_of_rows(p.registers[ix(k)].layout)))
        return false;
  }
  return true;
}

}  // namespace sg
