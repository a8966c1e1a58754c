#include "core/recompute.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

namespace sg {
namespace {

using Mode = RecomputeOptions::Mode;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

bool is_leaf(Role r) { return r == Role::input || r == Role::constant || r == Role::read; }
bool is_alias(Role r) { return r == Role::alias || r == Role::after || r == Role::stop_gradient; }

constexpr std::int32_t kNoSegment = -1;
// A value this many times smaller than the largest operand of its instruction is kept.
constexpr std::size_t kSmall = 8;
constexpr int kMostSegments = 12;

class Checkpointing {
 public:
  Checkpointing(const Tape& tape, std::span<const std::int32_t> keep)
      : tape_(tape), keep_(keep.begin(), keep.end()), late_(tape.instrs().size(), 0), root_(ix(tape.value_count())) {
    const auto instrs = tape.instrs();
    const auto end = static_cast<std::int32_t>(instrs.size());
    std::iota(root_.begin(), root_.end(), 0);
    forward_end_ = end;
    for (std::int32_t i = 0; i < end; ++i) {
      const Instr& instr = instrs[ix(i)];
      const Role role = op_def(instr.op).role;
      if (is_alias(role)) root_[ix(instr.outputs[0])] = root_[ix(instr.inputs[0])];
      late_[ix(i)] = !is_leaf(role) && (instr.forward_of >= 0 ||
                                        std::any_of(instr.inputs.begin(), instr.inputs.end(),
                                                    [&](std::int32_t v) { return late_[ix(tape.producer(v))] != 0; }));
      if (late_[ix(i)]) forward_end_ = std::min(forward_end_, i);
    }
  }

  bool has_backward() const { return forward_end_ < static_cast<std::int32_t>(tape_.instrs().size()); }

  // Per instruction its segment: one for each run of instructions under one scope.
  std::vector<std::int32_t> by_scope(int depth) const {
    std::vector<std::int32_t> segments(tape_.instrs().size(), kNoSegment);
    std::string current;
    std::int32_t segment = kNoSegment;
    for (std::int32_t i = 0; i < forward_end_; ++i) {
      const Instr& instr = tape_.instrs()[ix(i)];
      if (is_leaf(op_def(instr.op).role)) continue;
      std::string path = tape_.scope_path(instr.scope);
      std::size_t cut = 0;
      for (int d = 0; d < depth && cut != std::string::npos; ++d) cut = path.find('/', cut + (d > 0 ? 1 : 0));
      path = path.substr(0, cut);
      if (segment == kNoSegment || path != current) ++segment;
      current = std::move(path);
      segments[ix(i)] = segment;
    }
    return segments;
  }

  // `count` segments of about equal bytes, each cut where the fewest bytes cross, within a quarter of a segment.
  std::vector<std::int32_t> by_bytes(int count) const {
    const auto instrs = tape_.instrs();
    std::vector<std::int32_t> last(ix(tape_.value_count()), -1);
    for (std::int32_t i = 0; i < forward_end_; ++i)
      for (std::int32_t v : instrs[ix(i)].inputs) last[ix(root_[ix(v)])] = i;
    std::vector<std::size_t> made(ix(forward_end_) + 1, 0);
    std::vector<std::int64_t> change(ix(forward_end_) + 1, 0);
    for (std::int32_t i = 0; i < forward_end_; ++i) {
      made[ix(i) + 1] = made[ix(i)];
      const Role role = op_def(instrs[ix(i)].op).role;
      if (is_leaf(role) || is_alias(role)) continue;
      for (std::int32_t v : instrs[ix(i)].outputs) {
        const auto bytes = tape_.type(v).bytes();
        made[ix(i) + 1] += bytes;
        if (last[ix(v)] <= i) continue;
        change[ix(i) + 1] += static_cast<std::int64_t>(bytes);
        change[ix(last[ix(v)]) + 1 <= ix(forward_end_) ? ix(last[ix(v)]) + 1 : ix(forward_end_)] -=
            static_cast<std::int64_t>(bytes);
      }
    }
    std::vector<std::int64_t> crossing(ix(forward_end_) + 1, 0);  // bytes made before instruction i and used from it on
    for (std::int32_t i = 0; i < forward_end_; ++i) crossing[ix(i) + 1] = crossing[ix(i)] + change[ix(i) + 1];
    const auto position = [&](double share) {
      const auto target = static_cast<std::size_t>(share * static_cast<double>(made.back()));
      return static_cast<std::int32_t>(std::lower_bound(made.begin(), made.end(), target) - made.begin());
    };
    std::vector<std::int32_t> segments(instrs.size(), kNoSegment);
    std::int32_t from = 0;
    for (int k = 0; k < count; ++k) {
      std::int32_t to = forward_end_;
      if (k + 1 < count) {
        const std::int32_t least = std::max(position((k + 0.75) / count), from),
                           most = std::max(std::min(position((k + 1.25) / count), forward_end_), least);
        to = static_cast<std::int32_t>(std::min_element(crossing.begin() + least, crossing.begin() + most + 1) -
                                       crossing.begin());
      }
      for (std::int32_t i = from; i < to; ++i)
        if (!is_leaf(op_def(instrs[ix(i)].op).role)) segments[ix(i)] = k;
      from = std::max(from, to);
    }
    return segments;
  }

  // The tape with those segments recorded again where later instructions need them. on[k]: segment k takes part.
  Rewritten rewrite(const std::vector<std::int32_t>& segments, const std::vector<char>& on,
                    RecomputeReport* report) const;

 private:
  // Per value, whether its memory is kept: something other than its own segment and the late part needs it.
  std::vector<char> kept_values(const std::vector<std::int32_t>& segments, const std::vector<char>& on) const {
    const auto instrs = tape_.instrs();
    std::vector<char> kept(ix(tape_.value_count()), 0);
    const auto keep = [&](std::int32_t v) { kept[ix(root_[ix(v)])] = 1; };
    for (std::int32_t v : keep_) keep(v);
    for (std::size_t i = 0; i < instrs.size(); ++i) {
      const Instr& instr = instrs[i];
      const std::int32_t own = segments[i];
      std::size_t largest = 0;
      for (std::int32_t v : instr.inputs) {
        largest = std::max(largest, tape_.type(v).bytes());
        if (!late_[i] && segments[ix(tape_.producer(v))] != own) keep(v);
      }
      const bool recomputed = own != kNoSegment && on[ix(own)];
      for (std::int32_t v : instr.outputs)
        if (!recomputed || (!is_alias(op_def(instr.op).role) && tape_.type(v).bytes() * kSmall <= largest)) keep(v);
      if (op_def(instr.op).role == Role::assign && !late_[i]) keep(instr.inputs[0]);
    }
    for (std::size_t v = 0; v < kept.size(); ++v) kept[v] = kept[ix(root_[v])];
    return kept;
  }

  const Tape& tape_;
  std::vector<std::int32_t> keep_;
  std::vector<char> late_;          // per instruction: a VJP, or what depends on one
  std::vector<std::int32_t> root_;  // per value: the one whose memory it is
  std::int32_t forward_end_ = 0;    // the first late instruction
};

Rewritten Checkpointing::rewrite(const std::vector<std::int32_t>& segments, const std::vector<char>& on,
                                 RecomputeReport* report) const {
  const auto instrs = tape_.instrs();
  const std::vector<char> kept = kept_values(segments, on);
  std::vector<Value> copies(ix(tape_.value_count()));
  std::vector<char> copied(instrs.size(), 0), used(on.size(), 0);
  Rewriter r(tape_);
  Value token;  // the newest value of the late part: copies come after it
  const auto operand = [&](std::int32_t v) { return copies[ix(v)] ? copies[ix(v)] : r.mapped(v); };

  const auto record_again = [&](std::int32_t value) {
    std::vector<std::int32_t> wanted, stack{value};
    while (!stack.empty()) {
      const std::int32_t v = stack.back(), i = tape_.producer(v);
      stack.pop_back();
      if (kept[ix(v)] || copied[ix(i)]) continue;
      copied[ix(i)] = 1;
      wanted.push_back(i);
      for (std::int32_t in : instrs[ix(i)].inputs) stack.push_back(in);
    }
    std::sort(wanted.begin(), wanted.end());
    for (std::int32_t i : wanted) {
      const Instr& instr = instrs[ix(i)];
      std::vector<Value> inputs;
      bool ordered = false;
      for (std::int32_t v : instr.inputs) {
        inputs.push_back(operand(v));
        ordered = ordered || copies[ix(v)];
      }
      r.at(i);
      if (!ordered) {
        // A variable's reading stays as it is where another operand will do: backends know it by its producer.
        std::size_t first = 0;
        while (first + 1 < inputs.size() && is_leaf(op_def(instrs[ix(tape_.producer(instr.inputs[first]))].op).role))
          ++first;
        if (is_leaf(op_def(instrs[ix(tape_.producer(instr.inputs[first]))].op).role)) first = 0;
        inputs[first] = r.out().emit1(op_with_role(Role::after), {inputs[first], token}, {}, instr.loc);
      }
      const std::vector<Value> made = r.out().emit(instr.op, inputs, instr.attrs);
      for (std::size_t k = 0; k < made.size(); ++k)
        if (!kept[ix(instr.outputs[k])]) copies[ix(instr.outputs[k])] = made[k];
      used[ix(segments[ix(i)])] = 1;
      if (report != nullptr && !is_alias(op_def(instr.op).role)) ++report->instructions;
    }
  };

  for (std::size_t i = 0; i < instrs.size(); ++i) {
    const Instr& instr = instrs[i];
    const auto index = static_cast<std::int32_t>(i);
    if (!late_[i]) {
      r.copy(index);
      if (index < forward_end_ && !instr.outputs.empty() && !is_leaf(op_def(instr.op).role))
        token = r.mapped(instr.outputs[0]);
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
  return r.finish();
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

  struct Plan {
    std::vector<std::int32_t> segments;
    std::vector<char> on;
    std::size_t peak;
  };
  const auto peak_of = [&](const std::vector<std::int32_t>& segments, const std::vector<char>& on) {
    const Rewritten changed = checkpointing.rewrite(segments, on, nullptr);
    std::vector<std::int32_t> kept;
    for (std::int32_t v : keep) kept.push_back(changed.map[ix(v)]);
    return peak(*changed.tape, kept);
  };
  // All segments, then without those, the last first, whose recomputation the limit does not ask for.
  const auto plan_for = [&](std::vector<std::int32_t> segments) {
    const std::int32_t count = *std::max_element(segments.begin(), segments.end()) + 1;
    Plan plan{std::move(segments), std::vector<char>(ix(count), 1), 0};
    plan.peak = peak_of(plan.segments, plan.on);
    const std::size_t limit = options.mode == Mode::budget ? std::max(plan.peak, options.budget_bytes) : plan.peak;
    for (std::int32_t k = count; k-- > 0;) {
      plan.on[ix(k)] = 0;
      if (const std::size_t without = peak_of(plan.segments, plan.on); without <= limit)
        plan.peak = without;
      else
        plan.on[ix(k)] = 1;
    }
    return plan;
  };
  Plan best{{}, {}, report->before};
  if (options.mode == Mode::scopes) {
    if (Plan plan = plan_for(checkpointing.by_scope(options.scope_depth)); plan.peak < best.peak)
      best = std::move(plan);
  } else {
    for (int count = 2; count <= kMostSegments && best.peak > options.budget_bytes; ++count)
      if (Plan plan = plan_for(checkpointing.by_bytes(count)); plan.peak < best.peak) best = std::move(plan);
  }
  if (best.segments.empty()) return {nullptr, {}};
  report->after = best.peak;
  return checkpointing.rewrite(best.segments, best.on, report);
}

}  // namespace sg
