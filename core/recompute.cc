#include "core/recompute.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <numeric>

#include "core/row_program.h"

namespace sg {
namespace {

using Mode = RecomputeOptions::Mode;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

bool is_leaf(Role r) { return r == Role::input || r == Role::constant || r == Role::read; }
bool is_alias(Role r) { return r == Role::alias || r == Role::after || r == Role::stop_gradient; }

constexpr std::int32_t kNoSegment = -1;
// A value this many times smaller than the largest operand of its instruction, or than what is made with it, is kept.
constexpr std::size_t kSmall = 8;
constexpr int kMostSegments = 12;

// What is recorded again on its own: an instruction, or one output of a region.
struct Node {
  std::int32_t instr;
  std::vector<std::int32_t> outputs;
  std::vector<std::int32_t> needs;  // values: of a region's output also others of its outputs
  std::int32_t scope;
  bool late;           // of the backward part
  bool folds = false;  // a sum over the rows of a region
};

// What is recorded again: per node its segment, and which segments take part.
struct Plan {
  std::vector<std::int32_t> segments;
  std::vector<char> on;
  bool keep_summed = true;  // what sums over rows are taken of is kept
  std::size_t peak = 0;
};

class Checkpointing {
 public:
  Checkpointing(const Tape& tape, std::span<const std::int32_t> keep)
      : tape_(tape),
        keep_(keep.begin(), keep.end()),
        late_(tape.instrs().size(), 0),
        node_of_(ix(tape.value_count())),
        root_(ix(tape.value_count())) {
    const auto instrs = tape.instrs();
    const auto end = static_cast<std::int32_t>(instrs.size());
    std::iota(root_.begin(), root_.end(), 0);
    forward_end_ = end;
    for (std::int32_t i = 0; i < end; ++i) {
      const Instr& instr = instrs[ix(i)];
      const Role role = op_def(instr.op).role;
      if (is_alias(role)) root_[ix(instr.outputs[0])] = root_[ix(instr.inputs[0])];
      const std::size_t first = nodes_.size();
      add_nodes(i);
      // A region that needs nothing late is of the forward part if one of its outputs is: the rest of it can wait.
      const auto late = [&](const Node& n) { return n.late; };
      late_[ix(i)] = !is_leaf(role) && (std::any_of(instr.inputs.begin(), instr.inputs.end(),
                                                    [&](std::int32_t v) { return is_late(v); }) ||
                                        std::all_of(nodes_.begin() + at(first), nodes_.end(), late));
      if (late_[ix(i)]) {
        forward_end_ = std::min(forward_end_, i);
        for (std::size_t n = first; n < nodes_.size(); ++n) nodes_[n].late = true;
      }
    }
    forward_nodes_ = static_cast<std::int32_t>(
        std::find_if(nodes_.begin(), nodes_.end(), [&](const Node& n) { return n.instr >= forward_end_; }) -
        nodes_.begin());
  }

  bool has_backward() const { return forward_end_ < static_cast<std::int32_t>(tape_.instrs().size()); }

  // Per node its segment: one for each scope.
  std::vector<std::int32_t> by_scope(int depth) const {
    std::vector<std::int32_t> segments(nodes_.size(), kNoSegment);
    std::map<std::string, std::int32_t> known;
    for (std::int32_t n = 0; n < forward_nodes_; ++n) {
      if (is_leaf(role_of(nodes_[ix(n)]))) continue;
      std::string path = tape_.scope_path(nodes_[ix(n)].scope);
      std::size_t cut = 0;
      for (int d = 0; d < depth && cut != std::string::npos; ++d) cut = path.find('/', cut + (d > 0 ? 1 : 0));
      segments[ix(n)] = known.try_emplace(path.substr(0, cut), static_cast<std::int32_t>(known.size())).first->second;
    }
    return segments;
  }

  // `count` segments of about equal bytes, each cut where the fewest bytes cross, within a quarter of a segment.
  std::vector<std::int32_t> by_bytes(int count) const {
    std::vector<std::int32_t> last(ix(tape_.value_count()), -1);
    for (std::int32_t n = 0; n < forward_nodes_; ++n)
      for (std::int32_t v : nodes_[ix(n)].needs) last[ix(root_[ix(v)])] = n;
    std::vector<std::size_t> made(ix(forward_nodes_) + 1, 0);
    std::vector<std::int64_t> change(ix(forward_nodes_) + 1, 0);
    for (std::int32_t n = 0; n < forward_nodes_; ++n) {
      made[ix(n) + 1] = made[ix(n)];
      const Role role = role_of(nodes_[ix(n)]);
      if (is_leaf(role) || is_alias(role)) continue;
      for (std::int32_t v : nodes_[ix(n)].outputs) {
        const auto bytes = tape_.type(v).bytes();
        made[ix(n) + 1] += bytes;
        if (last[ix(v)] <= n) continue;
        change[ix(n) + 1] += static_cast<std::int64_t>(bytes);
        change[ix(std::min(last[ix(v)] + 1, forward_nodes_))] -= static_cast<std::int64_t>(bytes);
      }
    }
    std::vector<std::int64_t> crossing(ix(forward_nodes_) + 1, 0);  // bytes made before node n and used from it on
    for (std::int32_t n = 0; n < forward_nodes_; ++n) crossing[ix(n) + 1] = crossing[ix(n)] + change[ix(n) + 1];
    const auto position = [&](double share) {
      const auto target = static_cast<std::size_t>(share * static_cast<double>(made.back()));
      return static_cast<std::int32_t>(std::lower_bound(made.begin(), made.end(), target) - made.begin());
    };
    std::vector<std::int32_t> segments(nodes_.size(), kNoSegment);
    std::int32_t from = 0;
    for (int k = 0; k < count; ++k) {
      std::int32_t to = forward_nodes_;
      if (k + 1 < count) {
        const std::int32_t least = std::max(position((k + 0.75) / count), from),
                           most = std::max(std::min(position((k + 1.25) / count), forward_nodes_), least);
        to = static_cast<std::int32_t>(std::min_element(crossing.begin() + least, crossing.begin() + most + 1) -
                                       crossing.begin());
      }
      for (std::int32_t n = from; n < to; ++n)
        if (!is_leaf(role_of(nodes_[ix(n)]))) segments[ix(n)] = k;
      from = std::max(from, to);
    }
    return segments;
  }

  // The tape with what is not kept recorded again where later instructions need it.
  Rewritten rewrite(const Plan& plan, RecomputeReport* report) const;

 private:
  static std::ptrdiff_t at(std::size_t i) { return static_cast<std::ptrdiff_t>(i); }
  const Instr& instr_of(const Node& n) const { return tape_.instrs()[ix(n.instr)]; }
  Role role_of(const Node& n) const { return op_def(instr_of(n).op).role; }
  int output_of(std::int32_t n) const {  // which of its region's outputs a node is
    const std::vector<std::int32_t>& outputs = instr_of(nodes_[ix(n)]).outputs;
    return static_cast<int>(std::find(outputs.begin(), outputs.end(), nodes_[ix(n)].outputs[0]) - outputs.begin());
  }
  const Node& node_of(std::int32_t v) const { return nodes_[ix(node_of_[ix(v)])]; }
  bool is_late(std::int32_t v) const { return node_of(v).late; }
  // The part of a region that makes its `wanted` outputs from its operands and those outputs that are there.
  RowPart make_part(const Instr& region, std::span<const int> wanted, const std::vector<char>& there) const {
    return part_of(tape_.row_program(region.attrs.i("program")), wanted, there);
  }
  static std::vector<std::int32_t> needs_of(const Instr& region, const RowPart& part) {
    std::vector<std::int32_t> values;
    for (const int o : part.operands) values.push_back(o >= 0 ? region.inputs[ix(o)] : region.outputs[ix(~o)]);
    return values;
  }

  void add_node(Node node) {
    for (const std::int32_t v : node.outputs) node_of_[ix(v)] = static_cast<std::int32_t>(nodes_.size());
    nodes_.push_back(std::move(node));
  }
  void add_nodes(std::int32_t i) {
    const Instr& instr = tape_.instrs()[ix(i)];
    const Role role = op_def(instr.op).role;
    if (role != Role::region) {
      add_node({i, instr.outputs, instr.inputs, instr.scope, !is_leaf(role) && instr.forward_of >= 0});
      return;
    }
    const RowProgram& p = tape_.row_program(instr.attrs.i("program"));
    for (std::size_t k = 0; k < instr.outputs.size(); ++k) {
      const int wanted = static_cast<int>(k);
      const std::vector<char> all(instr.outputs.size(), 1);
      Node node{i,
                {instr.outputs[k]},
                needs_of(instr, make_part(instr, {&wanted, 1}, all)),
                p.origins[k].scope,
                p.origins[k].in_gradient};
      node.late = node.late || std::any_of(node.needs.begin(), node.needs.end(), [&](auto v) { return is_late(v); });
      const auto makes = [&](const RowProgram::Op& op) { return op.out == p.outputs[k]; };
      node.folds = RowProgram::over_rows(std::find_if(p.code.begin(), p.code.end(), makes)->kind);
      add_node(std::move(node));
    }
  }

  // Per value, whether its memory is kept: something other than its own segment and the late part needs it.
  std::vector<char> kept_values(const Plan& plan) const {
    std::vector<char> kept(ix(tape_.value_count()), 0);
    const auto keep = [&](std::int32_t v) { kept[ix(root_[ix(v)])] = 1; };
    for (std::int32_t v : keep_) keep(v);
    for (std::size_t n = 0; n < nodes_.size(); ++n) {
      const Node& node = nodes_[n];
      const Role role = role_of(node);
      const std::int32_t own = plan.segments[n];
      std::size_t largest = 0;
      for (std::int32_t v : instr_of(node).outputs) largest = std::max(largest, tape_.type(v).bytes());
      for (std::int32_t v : node.needs) {
        largest = std::max(largest, tape_.type(v).bytes());
        const bool summed = plan.keep_summed && node.folds;
        if (!node.late && (summed || plan.segments[ix(node_of_[ix(v)])] != own)) keep(v);
      }
      const bool recomputed = own != kNoSegment && plan.on[ix(own)] && !node.folds;
      for (std::int32_t v : node.outputs)
        if (!recomputed || (!is_alias(role) && tape_.type(v).bytes() * kSmall <= largest)) keep(v);
      if (role == Role::assign && !node.late) keep(node.needs[0]);
    }
    for (std::size_t v = 0; v < kept.size(); ++v) kept[v] = kept[ix(root_[v])];
    return kept;
  }

  const Tape& tape_;
  std::vector<std::int32_t> keep_;
  std::vector<char> late_;  // per instruction: a VJP, or what depends on one
  std::vector<Node> nodes_;
  std::vector<std::int32_t> node_of_;                 // per value
  std::vector<std::int32_t> root_;                    // per value: the one whose memory it is
  std::int32_t forward_end_ = 0, forward_nodes_ = 0;  // the first late instruction, its first node
};

// Records the part of a region that makes its `wanted` outputs, which it returns.
std::vector<Value> emit_part(Rewriter& r, const Instr& region, const RowPart& part, std::span<const int> wanted,
                             std::span<const Value> operands) {
  std::vector<std::int64_t> types;
  for (const int k : wanted) {
    const TensorType& type = r.in().type(region.outputs[ix(k)]);
    types.push_back(static_cast<std::int64_t>(type.dtype));
    types.push_back(type.shape.rank());
    for (std::int64_t d : type.shape) types.push_back(d);
  }
  return r.out().emit(region.op, operands, {{"program", r.out().add_program(part.program)}, {"types", types}});
}

// Regions without the outputs that nothing uses. A null tape where all are used.
Rewritten drop_unused_outputs(const Tape& tape, std::span<const std::int32_t> keep) {
  const std::vector<std::int32_t> uses = use_counts(tape, keep);
  Rewriter r(tape);
  bool dropped = false;
  for (std::size_t i = 0; i < tape.instrs().size(); ++i) {
    const Instr& instr = tape.instrs()[i];
    const auto index = static_cast<std::int32_t>(i);
    std::vector<int> wanted;
    for (std::size_t k = 0; k < instr.outputs.size(); ++k)
      if (uses[ix(instr.outputs[k])] > 0) wanted.push_back(static_cast<int>(k));
    if (op_def(instr.op).role != Role::region || wanted.size() == instr.outputs.size()) {
      r.copy(index);
      continue;
    }
    const RowPart part = part_of(tape.row_program(instr.attrs.i("program")), wanted, {});
    std::vector<Value> operands;
    for (const int o : part.operands) operands.push_back(r.mapped(instr.inputs[ix(o)]));
    r.at(index);
    const std::vector<Value> made = emit_part(r, instr, part, wanted, operands);
    for (std::size_t k = 0; k < made.size(); ++k) r.replace(instr.outputs[ix(wanted[k])], made[k]);
    dropped = true;
  }
  return dropped ? r.finish() : Rewritten{nullptr, {}};
}

std::vector<std::int32_t> mapped(std::span<const std::int32_t> values, const Rewritten& by) {
  std::vector<std::int32_t> result;
  for (std::int32_t v : values) result.push_back(by.map[ix(v)]);
  return result;
}

Rewritten Checkpointing::rewrite(const Plan& plan, RecomputeReport* report) const {
  const auto instrs = tape_.instrs();
  const std::vector<char> kept = kept_values(plan);
  std::vector<Value> copies(ix(tape_.value_count()));
  std::vector<char> copied(nodes_.size(), 0), used(plan.on.size(), 0);
  Rewriter r(tape_);
  Value token;  // the newest value of the late part: copies come after it
  const auto operand = [&](std::int32_t v) { return copies[ix(v)] ? copies[ix(v)] : r.mapped(v); };
  const auto part_now = [&](const Instr& region, std::span<const int> wanted) {
    std::vector<char> there;
    for (std::int32_t v : region.outputs) there.push_back(kept[ix(v)] || copies[ix(v)]);
    return make_part(region, wanted, there);
  };
  const auto is_leaf_value = [&](std::int32_t v) { return is_leaf(op_def(instrs[ix(tape_.producer(v))].op).role); };

  // Records instruction i again, or of a region the part that makes those nodes.
  const auto record = [&](std::int32_t i, std::span<const std::int32_t> nodes) {
    const Instr& instr = instrs[ix(i)];
    std::vector<std::int32_t> needs = instr.inputs;
    std::vector<int> wanted;
    RowPart part;
    const bool region = op_def(instr.op).role == Role::region;
    if (region) {
      for (const std::int32_t n : nodes) wanted.push_back(output_of(n));
      part = part_now(instr, wanted);
      needs = needs_of(instr, part);
    }
    std::vector<Value> inputs;
    bool ordered = false;
    for (std::int32_t v : needs) {
      inputs.push_back(operand(v));
      ordered = ordered || copies[ix(v)];
    }
    r.at(i);
    if (!ordered) {
      // A variable's reading stays as it is where another operand will do: backends know it by its producer.
      std::size_t first = 0;
      while (first + 1 < inputs.size() && is_leaf_value(needs[first])) ++first;
      if (is_leaf_value(needs[first])) first = 0;
      inputs[first] = r.out().emit1(op_with_role(Role::after), {inputs[first], token}, {}, instr.loc);
    }
    const std::vector<Value> made =
        region ? emit_part(r, instr, part, wanted, inputs) : r.out().emit(instr.op, inputs, instr.attrs);
    for (std::size_t k = 0; k < made.size(); ++k) {
      const std::int32_t v = instr.outputs[region ? ix(wanted[k]) : k];
      if (!kept[ix(v)]) copies[ix(v)] = made[k];
    }
    if (report != nullptr && !is_alias(op_def(instr.op).role)) ++report->instructions;
  };
  // Of other outputs of its region only what is there: made for its sake, they would wait for their own use.
  const auto needs_now = [&](std::int32_t n) {
    const Node& node = nodes_[ix(n)];
    if (role_of(node) != Role::region) return node.needs;
    const int wanted = output_of(n);
    return needs_of(instr_of(node), part_now(instr_of(node), {&wanted, 1}));
  };
  const auto record_again = [&](std::int32_t value) {
    std::vector<std::int32_t> wanted, stack{value};
    while (!stack.empty()) {
      const std::int32_t v = stack.back(), n = node_of_[ix(v)];
      stack.pop_back();
      if (kept[ix(v)] || copied[ix(n)]) continue;
      copied[ix(n)] = 1;
      used[ix(plan.segments[ix(n)])] = 1;
      wanted.push_back(n);
      for (std::int32_t in : needs_now(n)) stack.push_back(in);
    }
    std::sort(wanted.begin(), wanted.end());
    for (std::size_t from = 0; from < wanted.size();) {
      const std::int32_t i = nodes_[ix(wanted[from])].instr;
      std::size_t to = from;
      while (to < wanted.size() && nodes_[ix(wanted[to])].instr == i) ++to;
      record(i, std::span(wanted).subspan(from, to - from));
      from = to;
    }
  };

  for (std::size_t i = 0; i < instrs.size(); ++i) {
    const Instr& instr = instrs[i];
    const auto index = static_cast<std::int32_t>(i);
    if (!late_[i]) {
      r.copy(index);
      // A value that stays in any case, if there is one: what nothing else uses is dropped.
      if (index < forward_end_ && !is_leaf(op_def(instr.op).role))
        for (std::int32_t v : instr.outputs)
          if (kept[ix(v)] || !token) token = r.mapped(v);
      continue;
    }
    std::vector<Value> inputs;
    for (std::int32_t v : instr.inputs) {
      if (!kept[ix(v)]) record_again(v);
      inputs.push_back(operand(v));
    }
    r.at(index);
    const std::vector<Value> made = r.out().emit(instr.op, inputs, instr.attrs);
    for (std::size_t k = 0; k < made.size(); ++k) r.replace(instr.outputs[k], made[k]);
    if (!made.empty()) token = made[0];
  }
  if (report != nullptr) report->segments = ix(std::count(used.begin(), used.end(), 1));
  Rewritten result = r.finish();
  const auto apply = [&](Rewritten next) {
    next.map = compose(result.map, next.map);
    result = std::move(next);
  };
  for (;;) {
    apply(eliminate_dead_code(*result.tape, mapped(keep_, result)));
    Rewritten dropped = drop_unused_outputs(*result.tape, mapped(keep_, result));
    if (dropped.tape == nullptr) break;
    apply(std::move(dropped));
  }
  return result;
}

}  // namespace

RecomputeOptions recompute_by_name(const std::string& text) {
  const std::size_t colon = text.find(':');
  const std::string word = text.substr(0, colon);
  double number = 0;
  bool good = colon == std::string::npos;
  if (!good) {
    const std::string argument = text.substr(colon + 1);
    char* end = nullptr;
    number = std::strtod(argument.c_str(), &end);
    good = !argument.empty() && *end == '\0' && number > 0 && number < 1e9;
  }
  RecomputeOptions options;
  if (good && text == "none") return options;
  if (good && word == "scopes" && (colon == std::string::npos || number == std::floor(number))) {
    options.mode = Mode::scopes;
    if (colon != std::string::npos) options.scope_depth = static_cast<int>(number);
    return options;
  }
  if (good && word == "budget" && colon != std::string::npos) {
    options.mode = Mode::budget;
    options.budget_bytes = static_cast<std::size_t>(number * 1e6);
    return options;
  }
  fail(ErrorKind::usage, "recompute: '{}' is none of: none, scopes, scopes:DEPTH, budget:MEGABYTES", text);
}

std::string RecomputeReport::to_string(const RecomputeOptions& options) const {
  const auto mb = [](std::size_t bytes) { return static_cast<double>(bytes) / 1e6; };
  std::string text = segments == 0 ? fmt::format("recompute: nothing, the largest live set stays {:.2f} MB", mb(before))
                                   : fmt::format(
                                         "recompute: {} instructions of {} segments again; largest live set "
                                         "{:.2f} MB, without {:.2f} MB",
                                         instructions, segments, mb(after), mb(before));
  if (options.mode == Mode::budget && after > options.budget_bytes)
    text += fmt::format("; the budget of {:.2f} MB is out of reach", mb(options.budget_bytes));
  return text;
}

Rewritten recompute(const Tape& tape, std::span<const std::int32_t> keep, const RecomputeOptions& options,
                    const PeakFn& peak, RecomputeReport* report) {
  *report = {};
  report->before = report->after = peak(tape, keep);
  const Checkpointing checkpointing(tape, keep);
  const bool enough = options.mode == Mode::budget && report->before <= options.budget_bytes;
  if (options.mode == Mode::none || enough || !checkpointing.has_backward()) return {nullptr, {}};

  const auto peak_of = [&](const Plan& plan) {
    const Rewritten changed = checkpointing.rewrite(plan, nullptr);
    return peak(*changed.tape, mapped(keep, changed));
  };
  const std::size_t budget = options.mode == Mode::budget ? options.budget_bytes : 0;
  // All segments, then without those, the last first, whose recomputation the limit does not ask for.
  const auto plan_for = [&](const std::vector<std::int32_t>& segments) {
    const std::int32_t count = *std::max_element(segments.begin(), segments.end()) + 1;
    const auto whole = [&](bool keep_summed) {
      Plan plan{segments, std::vector<char>(ix(count), 1), keep_summed};
      plan.peak = peak_of(plan);
      return plan;
    };
    Plan plan = whole(true);
    // More work, for what is made once more reaches further back.
    if (Plan more = whole(false); std::max(more.peak, budget) < plan.peak) plan = std::move(more);
    const std::size_t limit = std::max(plan.peak, budget);
    for (std::int32_t k = count; k-- > 0;) {
      plan.on[ix(k)] = 0;
      if (const std::size_t without = peak_of(plan); without <= limit)
        plan.peak = without;
      else
        plan.on[ix(k)] = 1;
    }
    return plan;
  };
  Plan best{{}, {}, true, report->before};
  if (options.mode == Mode::scopes) {
    if (Plan plan = plan_for(checkpointing.by_scope(options.scope_depth)); plan.peak < best.peak)
      best = std::move(plan);
  } else {
    for (int count = 2; count <= kMostSegments && best.peak > options.budget_bytes; ++count)
      if (Plan plan = plan_for(checkpointing.by_bytes(count)); plan.peak < best.peak) best = std::move(plan);
  }
  if (best.segments.empty()) return {nullptr, {}};
  report->after = best.peak;
  return checkpointing.rewrite(best, report);
}

}  // namespace sg
