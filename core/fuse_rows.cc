// Finds regions: which instructions go together, and the row program that each group of them becomes.
#include <algorithm>
#include <map>
#include <optional>
#include <queue>
#include <set>

#include "core/row_space.h"

namespace sg {
namespace {

using Layout = RowProgram::Layout;
using Kind = RowProgram::Kind;

constexpr std::int64_t kLongValue = 65536;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

// With one column, a number per row is one per element, and one per column a single one.
void make_narrow_flat(RowProgram& p) {
  for (auto& reg : p.registers) {
    if (reg.layout == Layout::row) reg.layout = Layout::full;
    if (reg.layout == Layout::column) reg.layout = Layout::scalar;
  }
  for (auto& op : p.code) {
    if (op.kind == Kind::reduce_row) op.kind = Kind::expand;
    if (op.kind == Kind::reduce_columns) op.kind = Kind::reduce_all;
  }
}

class Fuser {
 public:
  Fuser(const Tape& tape, std::span<const std::int32_t> keep, const SupportedFn& fusible, bool singles)
      : tape_(tape),
        keep_(keep),
        singles_(singles),
        instrs_(tape.instrs()),
        group_(instrs_.size()),
        fusible_(instrs_.size()),
        looked_up_(instrs_.size()),
        users_(ix(tape.value_count())),
        layout_(ix(tape.value_count()), Layout::full),
        made_again_(ix(tape.value_count()), -1) {
    for (std::size_t i = 0; i < instrs_.size(); ++i) {
      group_[i] = static_cast<int>(i);
      members_.push_back({static_cast<int>(i)});
      space_.push_back({});
      segments_.push_back(1);
      fusible_[i] = op_def(instrs_[i].op).role == Role::alias || fusible(tape, instrs_[i]);
      for (std::int32_t v : instrs_[i].inputs) users_[ix(v)].push_back(static_cast<int>(i));
    }
  }

  Rewritten run() {
    for (std::size_t i = 0; i < instrs_.size(); ++i)
      if (fusible_[i] && !is_gather(instrs_[i])) place(static_cast<int>(i));
    for (std::size_t i = 0; i < instrs_.size(); ++i)
      looked_up_[i] = fusible_[i] && is_gather(instrs_[i]) && all_can_look_up(static_cast<int>(i));
    return emit();
  }

 private:
  const Instr& at(int i) const { return instrs_[ix(i)]; }
  const TensorType& type(std::int32_t v) const { return tape_.type(v); }
  bool is_alias(int i) const { return op_def(at(i).op).role == Role::alias; }
  int group_of_value(std::int32_t v) const { return group_[ix(tape_.producer(v))]; }
  bool real_group(int g) const { return space_[ix(g)].rows > 0; }

  // The layout that value v has as an operand of instruction i in a group of that space, where the result has shape s.
  // Values made inside the group have the layout that they were given there.
  std::optional<Layout> operand_layout(std::int32_t v, const Shape& s, const Space& space, int group) const {
    const auto outside = layout_under(type(v).shape, s, space);
    if (group < 0 || group_of_value(v) != group) return outside;
    const Layout own = layout_[ix(v)];
    if (!outside) return std::nullopt;
    if (own == *outside) return own;
    // A broadcast value looks full from outside; inside it is still what it was made from.
    return *outside == Layout::full ? std::optional(own) : std::nullopt;
  }

  // The layout of i's result where it joins a group of that space; nothing where it does not fit.
  std::optional<Layout> fit(int i, const Space& space, int group) const {
    const Instr& instr = at(i);
    if (!agree(cut_of(tape_, instr), group < 0 ? 1 : segments_[ix(group)])) return std::nullopt;
    const OpDef& def = op_def(instr.op);
    const std::int32_t out = instr.outputs[0];
    const Shape& s = type(out).shape;
    if (s.elements() == 0 || (group >= 0 && !same_real_type(i, members_[ix(group)].front()))) return std::nullopt;
    if (def.role == Role::alias) {
      const std::int32_t in = instr.inputs[0];
      if (group < 0 || group_of_value(in) != group) return std::nullopt;
      const Layout own = layout_[ix(in)];
      if (own == Layout::full && columns_of(s) == space.columns && s.elements() == space.rows * space.columns)
        return own;
      if (own == Layout::row && s.elements() == space.rows) return own;
      return std::nullopt;
    }
    if (def.reduction) {
      const std::int32_t in = instr.inputs[0];
      const Shape& t = type(in).shape;
      const auto& axes = instr.attrs.ints("axes");
      const bool inside = group >= 0 && group_of_value(in) == group;
      const Layout own = inside ? layout_[ix(in)] : Layout::full;
      const bool all = static_cast<int>(axes.size()) == t.rank();
      if (all && t.elements() == space.rows && own == Layout::row && is_sum(instr)) return Layout::scalar;
      if (t.elements() != space.rows * space.columns || columns_of(t) != space.columns) return std::nullopt;
      if (inside && !accumulates_nothing(in)) return std::nullopt;
      if (all) return is_sum(instr) && own == Layout::full ? std::optional(Layout::scalar) : std::nullopt;
      if (axes.size() == 1 && axes[0] == t.rank() - 1) return Layout::row;
      if (!is_sum(instr) || own != Layout::full) return std::nullopt;
      if (static_cast<int>(axes.size()) == t.rank() - 1 && axes.back() == t.rank() - 2) return Layout::column;
      const std::int64_t segments = axes.empty() ? 0 : segments_of_sum(t, axes);
      if (segments == 1) return Layout::column;
      if (segments > 1 && segments < space.rows) return Layout::segment;
      return std::nullopt;
    }
    const bool broadcast = def.moves;
    if (s.elements() == space.rows * space.columns && columns_of(s) == space.columns && space.columns > 0) {
      Layout narrowest = Layout::scalar;
      bool fits = true;
      for (std::int32_t v : instr.inputs) {
        const auto l = operand_layout(v, s, space, group);
        if (!l || (group >= 0 && group_of_value(v) == group && !accumulates_nothing(v)))
          fits = false;
        else if (broadcast)
          narrowest = *l;
      }
      // A broadcast keeps the layout of its operand; the operand must be made in the group for that to help anyone.
      if (fits) return broadcast ? narrowest : Layout::full;
    }
    // One number per row: only what continues from a row value of the group.
    if (group >= 0 && s.elements() == space.rows && !broadcast) {
      bool from_row = false;
      for (std::int32_t v : instr.inputs) {
        const bool inside = group_of_value(v) == group;
        if (inside && !accumulates_nothing(v)) return std::nullopt;
        if (inside && layout_[ix(v)] == Layout::row)
          from_row = true;
        else if (inside && layout_[ix(v)] == Layout::full && space.columns != 1)
          return std::nullopt;
        if (type(v).shape.elements() != 1 && type(v).shape.elements() != space.rows) return std::nullopt;
        if (type(v).shape.elements() != 1 && type(v).shape != s && type(v).shape.elements() != s.elements())
          return std::nullopt;
      }
      if (from_row) return Layout::row;
    }
    return std::nullopt;
  }

  // A region computes in one real type, bf16 in f32; i32 values are masks.
  std::optional<DType> real_type(int i) const {
    const auto computed_in = [](DType t) { return t == DType::bf16 ? DType::f32 : t; };
    for (std::int32_t v : at(i).outputs)
      if (is_real(type(v).dtype)) return computed_in(type(v).dtype);
    for (std::int32_t v : at(i).inputs)
      if (is_real(type(v).dtype)) return computed_in(type(v).dtype);
    return std::nullopt;
  }
  bool same_real_type(int i, int j) const { return real_type(i) == real_type(j); }

  static bool is_sum(const Instr& instr) { return op_def(instr.op).accumulates; }
  // Values that fold over all rows are known only after the last row: nothing in the same group may use them.
  bool accumulates_nothing(std::int32_t v) const { return !folded_.contains(v); }

  Space own_space(int i) const {
    const Instr& instr = at(i);
    const OpDef& def = op_def(instr.op);
    if (def.role == Role::alias) return {};
    const Shape& s = def.reduction ? type(instr.inputs[0]).shape : type(instr.outputs[0]).shape;
    return s.elements() <= 1 ? Space{} : space_of(s);
  }

  void place(int i) {
    std::vector<int> candidates;
    auto consider = [&](int g) {
      if (real_group(g) && std::find(candidates.begin(), candidates.end(), g) == candidates.end())
        candidates.push_back(g);
    };
    for (std::int32_t v : at(i).inputs) consider(group_of_value(v));
    const std::size_t producers = candidates.size();
    for (std::int32_t v : at(i).inputs)
      if (type(v).shape.elements() > 1)
        for (int u : users_[ix(v)])
          if (u < i) consider(group_[ix(u)]);
    int home = -1;
    for (std::size_t k = 0; k < candidates.size(); ++k) {
      const int g = candidates[k];
      if (home >= 0 && (k >= producers || space_[ix(home)] != space_[ix(g)])) continue;
      const auto layout = fit(i, space_[ix(g)], g);
      if (!layout) continue;
      if (home < 0) {
        if (reaches_through_others(g, i)) continue;
        join(i, g, *layout);
        home = g;
      } else if (agree(segments_[ix(home)], segments_[ix(g)]) && !path_between(home, g) && !uses_folds_of(home, g) &&
                 !uses_folds_of(g, home)) {
        merge(g, home);
      }
    }
    if (home >= 0) return;
    const Space space = own_space(i);
    if (space.rows == 0) return;
    if (const auto layout = fit(i, space, -1)) {
      const int own = group_[ix(i)];
      space_[ix(own)] = space;
      join(i, own, *layout);
    }
  }

  bool uses_folds_of(int user, int maker) const {
    for (int m : members_[ix(user)])
      for (std::int32_t v : at(m).inputs)
        if (group_of_value(v) == maker && folded_.contains(v)) return true;
    return false;
  }

  void note_fold(int i, Layout layout) {
    if (op_def(at(i).op).reduction && layout != Layout::row) folded_.insert(at(i).outputs[0]);
  }

  void join(int i, int g, Layout layout) {
    members_[ix(group_[ix(i)])].clear();
    group_[ix(i)] = g;
    members_[ix(g)].push_back(i);
    segments_[ix(g)] = std::max(segments_[ix(g)], cut_of(tape_, at(i)));
    layout_[ix(at(i).outputs[0])] = layout;
    note_fold(i, layout);
  }

  void merge(int from, int to) {
    for (int m : members_[ix(from)]) {
      group_[ix(m)] = to;
      members_[ix(to)].push_back(m);
    }
    members_[ix(from)].clear();
    space_[ix(from)] = {};
    segments_[ix(to)] = std::max(segments_[ix(to)], segments_[ix(from)]);
    std::sort(members_[ix(to)].begin(), members_[ix(to)].end());
  }

  // Whether instruction i depends on group g by a path that leaves g.
  bool reaches_through_others(int g, int i) {
    start_search();
    for (std::int32_t v : at(i).inputs)
      if (group_of_value(v) != g) push(group_of_value(v));
    return search_for(g);
  }
  // Whether a path leads from one group to the other, either way, through a third.
  bool path_between(int a, int b) { return path(a, b) || path(b, a); }
  bool path(int from, int to) {
    start_search();
    for (int m : members_[ix(to)])
      for (std::int32_t v : at(m).inputs)
        if (const int g = group_of_value(v); g != to && g != from) push(g);
    return search_for(from);
  }

  void start_search() {
    ++stamp_;
    stack_.clear();
    seen_.resize(members_.size(), 0);
  }
  void push(int g) {
    if (seen_[ix(g)] == stamp_) return;
    seen_[ix(g)] = stamp_;
    stack_.push_back(g);
  }
  bool search_for(int target) {
    while (!stack_.empty()) {
      const int g = stack_.back();
      stack_.pop_back();
      if (g == target) return true;
      for (int m : members_[ix(g)])
        for (std::int32_t v : at(m).inputs)
          if (group_of_value(v) != g) push(group_of_value(v));
    }
    return false;
  }

  // Whether v is not written by its region but made again by those that use it: one sum or product of one value of its
  // size, which they read in its place, and of narrower ones. They get the same bits and read as many bytes.
  bool made_again(std::int32_t v) {
    signed char& known = made_again_[ix(v)];
    if (known < 0) known = can_be_made_again(v) ? 1 : 0;
    return known > 0;
  }
  bool can_be_made_again(std::int32_t v) {
    const int i = tape_.producer(v), g = group_[ix(i)];
    const Role role = op_def(at(i).op).role;
    if ((role != Role::add && role != Role::sub && role != Role::mul) || !real_group(g) || space_[ix(g)].columns == 1 ||
        layout_[ix(v)] != Layout::full || std::find(keep_.begin(), keep_.end(), v) != keep_.end())
      return false;
    int full = 0;
    for (std::int32_t w : at(i).inputs) {
      if (group_of_value(w) == g || made_again(w)) return false;
      const auto layout = layout_under(type(w).shape, type(v).shape, space_[ix(g)]);
      if (*layout == Layout::full && (++full > 1 || size_of(type(w).dtype) > size_of(type(v).dtype))) return false;
    }
    const std::int64_t cut = cut_of(tape_, at(i));
    bool inside = false;
    for (int u : users_[ix(v)]) {
      const int h = group_[ix(u)];
      inside = inside || h == g;
      if (h == g) continue;
      if (space_[ix(h)] != space_[ix(g)] || (cut > 1 && cut != segments_[ix(h)]) || !same_real_type(u, i)) return false;
    }
    return inside && full == 1;
  }

  // Whether all that read the rows of gather i are regions of its rows and columns: then each looks them up itself.
  // They read as many bytes, and nobody writes any. Somebody else would need the rows in memory.
  bool all_can_look_up(int i) const {
    const Space space = space_of(type(at(i).outputs[0]).shape);
    // Of one row or one column a region makes a long row, which is cut anywhere.
    if (space.rows <= 1 || space.columns <= 1) return false;
    std::vector<std::int32_t> names{at(i).outputs[0]};  // the rows under all their shapes
    bool any = false;
    for (std::size_t k = 0; k < names.size(); ++k) {
      if (std::find(keep_.begin(), keep_.end(), names[k]) != keep_.end()) return false;
      for (int u : users_[ix(names[k])]) {
        any = true;
        if (is_alias(u))
          names.push_back(at(u).outputs[0]);
        else if (space_[ix(group_[ix(u)])] != space)
          return false;
      }
    }
    return any;
  }
  // The gather whose rows v is, in any shape, where its readers look them up; else -1.
  int looked_up_by(std::int32_t v) const {
    while (is_alias(tape_.producer(v))) v = at(tape_.producer(v)).inputs[0];
    return looked_up_[ix(tape_.producer(v))] ? tape_.producer(v) : -1;
  }

  Rewritten emit();
  void add_singles(std::vector<char>& worth) const;
  void emit_region(Rewriter& r, const std::vector<int>& members);

  const Tape& tape_;
  std::span<const std::int32_t> keep_;
  bool singles_;
  std::span<const Instr> instrs_;
  std::vector<int> group_;
  std::vector<char> fusible_;
  std::vector<char> looked_up_;            // per instruction: a gather that its readers do
  std::vector<std::vector<int>> members_;  // per group, sorted
  std::vector<Space> space_;               // per group; rows 0 where it is not a region
  std::vector<std::int64_t> segments_;     // per group: the cut of its rows, 1 where there is none
  std::vector<std::vector<int>> users_;    // per value
  std::vector<Layout> layout_;             // per value made in a region
  std::vector<signed char> made_again_;    // per value; -1 where it is not known yet
  std::set<std::int32_t> folded_;
  std::vector<int> stack_, seen_;
  int stamp_ = 0;
};

// Groups of one op that keep a chain of regions together: a sum over segments, or what all comes from regions and all
// goes to regions.
void Fuser::add_singles(std::vector<char>& worth) const {
  std::vector<std::size_t> added;
  for (std::size_t g = 0; g < members_.size(); ++g) {
    if (worth[g] != 0 || !real_group(static_cast<int>(g))) continue;
    int op = -1, ops = 0;
    for (int m : members_[g])
      if (!is_alias(m)) op = m, ++ops;
    if (ops != 1) continue;
    const std::int32_t v = at(op).outputs[0];
    const auto in_region = [&](std::int32_t value) {
      int made = tape_.producer(value);
      while (is_alias(made)) made = tape_.producer(at(made).inputs[0]);
      const Role role = op_def(at(made).op).role;
      return role == Role::read || role == Role::constant || role == Role::input || worth[ix(group_[ix(made)])] != 0;
    };
    const auto feeds_regions = [&](const auto& self, std::int32_t value) -> bool {
      const auto& users = users_[ix(value)];
      return !users.empty() && std::all_of(users.begin(), users.end(), [&](int u) {
        return is_alias(u) ? self(self, at(u).outputs[0]) : worth[ix(group_[ix(u)])] != 0;
      });
    };
    if (layout_[ix(v)] == Layout::segment ||
        (std::all_of(at(op).inputs.begin(), at(op).inputs.end(), in_region) && feeds_regions(feeds_regions, v)))
      added.push_back(g);
  }
  for (const std::size_t g : added) worth[g] = 1;
}

Rewritten Fuser::emit() {
  // Groups of a single op, or of aliases alone, gain nothing; but a long elementwise op is a program like any other.
  const auto worth_it = [&](std::size_t g) {
    std::int64_t ops = 0;
    bool is_long = false;
    for (int m : members_[g]) {
      if (is_alias(m)) continue;
      ++ops;
      for (std::int32_t v : at(m).inputs) ops += looked_up_by(v) >= 0 ? 1 : 0;
      is_long = op_def(at(m).op).elementwise && type(at(m).outputs[0]).shape.elements() >= kLongValue;
    }
    return ops > 1 || is_long;
  };
  std::vector<char> worth(members_.size(), 0);
  for (std::size_t g = 0; g < members_.size(); ++g) worth[g] = real_group(static_cast<int>(g)) && worth_it(g);
  if (singles_) add_singles(worth);
  for (std::size_t g = 0; g < members_.size(); ++g) {
    if (real_group(static_cast<int>(g)) && worth[g] == 0) {
      space_[g] = {};
      const std::vector<int> members = members_[g];
      members_[g].clear();
      for (int m : members) {
        group_[ix(m)] = m;
        members_[ix(m)] = {m};
      }
    }
  }
  // Topological order of the groups, earliest first member first.
  std::vector<int> waiting(members_.size(), 0);
  std::vector<std::vector<int>> next(members_.size());
  for (std::size_t g = 0; g < members_.size(); ++g)
    for (int m : members_[g])
      for (std::int32_t v : at(m).inputs)
        if (const int p = group_of_value(v); p != static_cast<int>(g)) {
          next[ix(p)].push_back(static_cast<int>(g));
          ++waiting[g];
        }
  // A group is as early as the first member of the earliest that needs it: a forward region that something of the
  // backward part has entered would wait for all of that else, and the forward part behind it.
  std::vector<int> rank(members_.size(), 0), order, inputs_left = waiting;
  for (std::size_t g = 0; g < members_.size(); ++g)
    if (!members_[g].empty()) {
      rank[g] = members_[g].front();
      if (waiting[g] == 0) order.push_back(static_cast<int>(g));
    }
  for (std::size_t k = 0; k < order.size(); ++k)
    for (int n : next[ix(order[k])])
      if (--inputs_left[ix(n)] == 0) order.push_back(n);
  for (std::size_t k = order.size(); k-- > 0;)
    for (int n : next[ix(order[k])]) rank[ix(order[k])] = std::min(rank[ix(order[k])], rank[ix(n)]);
  auto later = [&](int a, int b) {
    return std::pair(rank[ix(a)], members_[ix(a)].front()) > std::pair(rank[ix(b)], members_[ix(b)].front());
  };
  std::priority_queue<int, std::vector<int>, decltype(later)> ready(later);
  for (std::size_t g = 0; g < members_.size(); ++g)
    if (!members_[g].empty() && waiting[g] == 0) ready.push(static_cast<int>(g));
  Rewriter r(tape_);
  std::size_t emitted = 0;
  while (!ready.empty()) {
    const int g = ready.top();
    ready.pop();
    if (real_group(g))
      emit_region(r, members_[ix(g)]);
    else
      for (int m : members_[ix(g)]) r.copy(m);
    emitted += members_[ix(g)].size();
    for (int n : next[ix(g)])
      if (--waiting[ix(n)] == 0) ready.push(n);
  }
  SG_CHECK(emitted == instrs_.size(), "fusion made a cycle: {} of {} instructions ordered", emitted, instrs_.size());
  return r.finish();
}

void Fuser::emit_region(Rewriter& r, const std::vector<int>& members) {
  const int g = group_[ix(members.front())];
  auto program = std::make_shared<RowProgram>();
  RowProgram& p = *program;
  p.rows = space_[ix(g)].rows;
  p.columns = space_[ix(g)].columns;
  p.segments = segments_[ix(g)];
  std::map<std::pair<std::int32_t, Layout>, int> inputs;
  std::vector<std::int32_t> input_values;
  std::map<std::int32_t, int> made, remade;  // value -> register, numbered after the inputs
  struct Draft {
    RowProgram::Op op;
    std::vector<bool> is_input;
  };
  std::vector<Draft> drafts;
  std::vector<RowProgram::Register> input_registers, own_registers;

  auto input = [&](std::int32_t v, Layout layout) {
    const auto [it, fresh] = inputs.try_emplace({v, layout}, static_cast<int>(input_registers.size()));
    if (fresh) {
      input_registers.push_back({layout, type(v).dtype});
      input_values.push_back(v);
    }
    return it->second;
  };
  auto own = [&](Layout layout, DType dtype) {
    own_registers.push_back({layout, dtype});
    return static_cast<int>(own_registers.size() - 1);
  };
  auto look_up = [&](int gather) {
    const Instr& instr = at(gather);
    const std::int32_t table = instr.inputs[0], rows = instr.outputs[0];
    const auto [it, fresh] = remade.try_emplace(rows, -1);
    if (!fresh) return it->second;
    it->second = own(Layout::full, type(rows).dtype);
    drafts.push_back({{Kind::gather,
                       instr.op,
                       {{"rows", type(table).shape[0]}},
                       {input(table, Layout::table), input(instr.inputs[1], Layout::row)},
                       it->second,
                       instr.loc},
                      {true, true}});
    return it->second;
  };
  // A value from outside becomes an operand of the op.
  auto take = [&](Draft& d, std::int32_t v, Layout layout) {
    const int gather = looked_up_by(v);
    d.op.in.push_back(gather >= 0 ? look_up(gather) : input(v, layout));
    d.is_input.push_back(gather < 0);
  };
  // The register of a value that another region made and did not write.
  auto again = [&](std::int32_t v) {
    const auto [it, fresh] = remade.try_emplace(v, -1);
    if (!fresh) return it->second;
    const Instr& instr = at(tape_.producer(v));
    Draft d{{Kind::elementwise, instr.op, instr.attrs, {}, own(Layout::full, type(v).dtype)}, {}};
    it->second = d.op.out;
    for (std::int32_t w : instr.inputs) take(d, w, *layout_under(type(w).shape, type(v).shape, space_[ix(g)]));
    drafts.push_back(std::move(d));
    return it->second;
  };
  auto layout_of_register = [&](int reg, bool is_input) {
    return is_input ? input_registers[ix(reg)].layout : own_registers[ix(reg)].layout;
  };

  for (int m : members) {
    const Instr& instr = at(m);
    const OpDef& def = op_def(instr.op);
    const std::int32_t out = instr.outputs[0];
    const Layout layout = layout_[ix(out)];
    if (def.role == Role::alias) {
      made[out] = made.at(instr.inputs[0]);
      continue;
    }
    Draft d{{Kind::elementwise, instr.op, instr.attrs, {}, 0}, {}};
    for (std::int32_t v : instr.inputs) {
      if (const auto it = made.find(v); it != made.end() && group_of_value(v) == g) {
        d.op.in.push_back(it->second);
        d.is_input.push_back(false);
        continue;
      }
      if (made_again(v)) {
        d.op.in.push_back(again(v));
        d.is_input.push_back(false);
        continue;
      }
      Layout l = Layout::full;
      if (layout == Layout::row && !def.reduction)
        l = type(v).shape.elements() == 1 ? Layout::scalar : Layout::row;
      else if (!def.reduction)
        l = *layout_under(type(v).shape, type(out).shape, space_[ix(g)]);
      take(d, v, l);
    }
    if (def.moves) {
      // A broadcast inside a region is its operand, read in another shape; from outside it is the input itself.
      if (!d.is_input[0]) {
        made[out] = d.op.in[0];
        continue;
      }
      d.op.kind = Kind::expand;
    } else if (def.reduction) {
      d.op.kind = layout == Layout::row       ? Kind::reduce_row
                  : layout == Layout::column  ? Kind::reduce_columns
                  : layout == Layout::segment ? Kind::reduce_segments
                                              : Kind::reduce_all;
    }
    // Kernels need one operand of the result's own layout (a reduction along rows needs a full one).
    const bool folds_everything =
        d.op.kind == Kind::reduce_all && type(instr.inputs[0]).shape.elements() == p.rows * p.columns;
    const bool wants_full = d.op.kind == Kind::reduce_row || d.op.kind == Kind::reduce_columns ||
                            d.op.kind == Kind::reduce_segments || folds_everything ||
                            (d.op.kind == Kind::elementwise && layout == Layout::full);
    bool has_full = false;
    for (std::size_t k = 0; k < d.op.in.size(); ++k)
      has_full = has_full || layout_of_register(d.op.in[k], d.is_input[k]) == Layout::full;
    if (wants_full && !has_full) {
      const DType dtype = d.is_input[0] ? input_registers[ix(d.op.in[0])].dtype : own_registers[ix(d.op.in[0])].dtype;
      const int wide = own(Layout::full, dtype);
      drafts.push_back({{Kind::expand, instr.op, {}, {d.op.in[0]}, wide}, {d.is_input[0]}});
      d.op.in[0] = wide;
      d.is_input[0] = false;
    }
    d.op.out = own(d.op.kind == Kind::expand ? Layout::full : layout, type(out).dtype);
    made[out] = d.op.out;
    drafts.push_back(std::move(d));
  }

  // What others need. A value that is a broadcast of something narrower is written out in full.
  struct Leaving {
    std::int32_t value;
    int reg;
  };
  std::vector<Leaving> leaving;
  std::map<int, std::size_t> slot;  // own register -> output position
  std::vector<std::pair<std::int32_t, std::size_t>> values_out;
  for (int m : members) {
    const std::int32_t v = at(m).outputs[0];
    const bool outside =
        std::find(keep_.begin(), keep_.end(), v) != keep_.end() ||
        std::any_of(users_[ix(v)].begin(), users_[ix(v)].end(), [&](int u) { return group_[ix(u)] != g; });
    if (!outside || made_again(v)) continue;
    int reg = made.at(v);
    const Layout l = own_registers[ix(reg)].layout;
    if (p.extent(l) != type(v).shape.elements()) {
      const int wide = own(Layout::full, type(v).dtype);
      drafts.push_back({{Kind::expand, at(m).op, {}, {reg}, wide}, {false}});
      reg = wide;
    }
    const auto [it, fresh] = slot.try_emplace(reg, leaving.size());
    if (fresh) leaving.push_back({v, reg});
    values_out.emplace_back(v, it->second);
  }
  const int first_own = static_cast<int>(input_registers.size());
  p.inputs = first_own;
  p.registers = input_registers;
  p.registers.insert(p.registers.end(), own_registers.begin(), own_registers.end());
  for (Draft& d : drafts) {
    for (std::size_t k = 0; k < d.op.in.size(); ++k)
      if (!d.is_input[k]) d.op.in[k] += first_own;
    d.op.out += first_own;
    p.code.push_back(std::move(d.op));
  }
  std::vector<std::int64_t> types;
  for (const Leaving& l : leaving) {
    p.outputs.push_back(l.reg + first_own);
    const Instr& maker = at(tape_.producer(l.value));
    p.origins.push_back({maker.scope, maker.forward_of >= 0});
    types.push_back(static_cast<std::int64_t>(type(l.value).dtype));
    types.push_back(type(l.value).shape.rank());
    for (std::int64_t d : type(l.value).shape) types.push_back(d);
  }
  if (p.columns == 1) make_narrow_flat(p);
  // Without rows to speak of the space is one long row, which can be cut anywhere.
  const bool flat = std::all_of(p.registers.begin(), p.registers.end(), [](const auto& reg) {
    return reg.layout == Layout::full || reg.layout == Layout::scalar;
  });
  if (flat) {
    p.columns *= p.rows;
    p.rows = p.segments = 1;
  }

  r.at(members.back());
  std::vector<Value> operands;
  for (std::int32_t v : input_values) operands.push_back(r.mapped(v));
  const std::int64_t index = r.out().add_program(program);
  const std::vector<Value> results =
      r.out().emit(op_with_role(Role::region), operands, {{"program", index}, {"types", types}});
  for (const auto& [v, k] : values_out) {
    if (type(v).shape == results[k].shape())
      r.replace(v, results[k]);
    else
      r.replace(v, r.out().emit1(op_with_role(Role::alias), {results[k]}, {{"shape", type(v).shape.vec()}}));
  }
}

}  // namespace

Rewritten fuse_rows(const Tape& tape, std::span<const std::int32_t> keep, const SupportedFn& fusible, bool singles) {
  constexpr std::size_t kLimit = 20000;  // beyond, the searches for cycles would dominate compile time
  if (tape.instrs().size() > kLimit) return {nullptr, {}};
  return Fuser(tape, keep, fusible, singles).run();
}

}  // namespace sg
