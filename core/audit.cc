#include "core/audit.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

namespace sg {
namespace {

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

using State = GradientFlow::State;

// What the values that a tape assigns are made of.
class Updates {
 public:
  explicit Updates(const Tape& tape)
      : tape_(tape), zero_(known_zeros(tape)), informed_(tape.variables().size(), false) {
    const auto instrs = tape.instrs();
    assigns_.assign(tape.variables().size(), -1);
    for (std::size_t i = 0; i < instrs.size(); ++i)
      if (op_def(instrs[i].op).role == Role::assign)
        assigns_[ix(instrs[i].attrs.i("variable"))] = static_cast<std::int32_t>(i);
    // A variable is informed where its new value depends on a gradient, data or randomness, perhaps by way of another
    // informed variable. The rest (Adam's moments under a zero gradient, a step count) only repeats itself.
    for (bool changed = true; changed;) {
      changed = false;
      for (std::size_t v = 0; v < assigns_.size(); ++v) {
        if (informed_[v]) continue;
        const UpdateKind kind = kind_of(v);
        if (kind == UpdateKind::gradient || kind == UpdateKind::rule) informed_[v] = changed = true;
      }
    }
  }

  std::int32_t assign_of(std::size_t variable) const { return assigns_[variable]; }

  UpdateKind kind_of(std::size_t variable) const {
    if (assigns_[variable] < 0) return UpdateKind::none;
    const auto instrs = tape_.instrs();
    const std::int32_t assigned = instrs[ix(assigns_[variable])].inputs[0];
    const Instr& source = instrs[ix(tape_.producer(assigned))];
    if (op_def(source.op).role == Role::read && ix(source.attrs.i("variable")) == variable) return UpdateKind::none;

    bool data = false;
    std::vector<char> seen(instrs.size(), 0);
    std::vector<std::int32_t> stack{tape_.producer(assigned)};
    while (!stack.empty()) {
      const std::int32_t i = stack.back();
      stack.pop_back();
      if (std::exchange(seen[ix(i)], 1)) continue;
      const Instr& instr = instrs[ix(i)];
      const Role role = op_def(instr.op).role;
      if (zero_[ix(instr.outputs[0])]) continue;  // what IfUnreachable::zero gives, and what scaling makes of it
      if (instr.forward_of >= 0) return UpdateKind::gradient;
      // A number that is fed or kept (a rate) brings no news of the data; an array does.
      if (role == Role::input) data = data || tape_.type(instr.outputs[0]).shape.rank() > 0;
      if (role == Role::read) {
        const std::size_t other = ix(instr.attrs.i("variable"));
        const bool fixed_array = assigns_[other] < 0 && tape_.type(instr.outputs[0]).shape.rank() > 0;
        data = data || (other != variable && (fixed_array || informed_[other]));
      }
      if (op_def(instr.op).grad == GradKind::none && !instr.inputs.empty()) data = true;  // randomness
      for (std::int32_t v : instr.inputs) stack.push_back(tape_.producer(v));
    }
    return data ? UpdateKind::rule : UpdateKind::itself;
  }

 private:
  const Tape& tape_;
  std::vector<char> zero_;
  std::vector<std::int32_t> assigns_;  // per variable of the tape: its assign, or -1
  std::vector<bool> informed_;
};

std::string_view cell_of(State state) {
  switch (state) {
    case State::live:
      return "trains";
    case State::blocked:
      return "blocked";
    case State::zero:
      return "zero";
    case State::unconnected:
      break;
  }
  return "-";
}

// An update in the matrix, and in messages.
std::string update_of(const AuditRow& row) {
  switch (row.update) {
    case UpdateKind::none:
      return "-";
    case UpdateKind::itself:
      return "from itself";
    case UpdateKind::gradient:
      return "from gradients";
    case UpdateKind::rule:
      return "by a rule";
  }
  return {};
}

bool names_cuts(const GradientFlow& flow) { return flow.state == State::blocked || flow.state == State::zero; }

bool alike(const AuditRow& a, const AuditRow& b) {
  return a.parameter == b.parameter && a.read == b.read && a.update == b.update && a.assigned_at == b.assigned_at &&
         std::equal(a.terms.begin(), a.terms.end(), b.terms.begin(), b.terms.end(),
                    [](const GradientFlow& x, const GradientFlow& y) {
                      return x.state == y.state && (!names_cuts(x) || x.cuts == y.cuts);
                    });
}

// The dotted names of the modules that both are in: "encoder.res1" of encoder.res1.w and encoder.res1.b.
std::string common_module(std::string_view a, std::string_view b) {
  std::size_t end = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()) && a[i] == b[i]; ++i)
    if (a[i] == '.') end = i;
  return std::string(a.substr(0, end));
}

struct Group {
  const AuditRow* first;
  std::string module;  // common to all of them
  std::int64_t count = 1;
  std::string label() const { return count == 1 ? first->variable->name() : fmt::format("{}.* ({})", module, count); }
};

std::vector<Group> groups_of(std::span<const AuditRow> rows) {
  std::vector<Group> groups;
  for (const AuditRow& row : rows) {
    if (!groups.empty() && alike(*groups.back().first, row)) {
      Group& g = groups.back();
      const std::string module =
          common_module(g.count == 1 ? g.first->variable->name() : g.module + ".", row.variable->name());
      if (!module.empty()) {
        g.module = module;
        ++g.count;
        continue;
      }
    }
    groups.push_back({&row, {}});
  }
  return groups;
}

using Table = std::vector<std::vector<std::string>>;

std::string aligned(const Table& table) {
  std::vector<std::size_t> widths;
  for (const auto& line : table) {
    widths.resize(std::max(widths.size(), line.size()));
    for (std::size_t k = 0; k < line.size(); ++k) widths[k] = std::max(widths[k], line[k].size());
  }
  std::string text;
  for (const auto& line : table) {
    std::string row;
    for (std::size_t k = 0; k < line.size(); ++k) row += fmt::format("{:<{}}  ", line[k], widths[k]);
    text += row.substr(0, row.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

// Lines of "  name: blocked by" and the cuts, for a row that nothing trains.
std::string why_untrained(const Audit& a, const AuditRow& row) {
  std::string text;
  for (std::size_t t = 0; t < a.terms.size(); ++t) {
    const GradientFlow& flow = row.terms[t];
    if (flow.state == State::unconnected) {
      text += fmt::format("\n  {}: does not depend on it", a.terms[t]);
      continue;
    }
    text += fmt::format("\n  {}: {}", a.terms[t],
                        flow.state == State::zero ? "the gradient is zero whatever the numbers are, by" : "blocked by");
    for (std::int32_t cut : flow.cuts) text += fmt::format("\n    {}", a.cuts.at(cut));
  }
  return text;
}

std::string terms_that_train(const Audit& a, const AuditRow& row) {
  std::vector<std::string> names;
  for (std::size_t t = 0; t < a.terms.size(); ++t)
    if (row.terms[t].state == State::live) names.push_back("'" + a.terms[t] + "'");
  return fmt::format("{}", fmt::join(names, ", "));
}

bool matches(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0, star = std::string_view::npos, mark = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p, ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

bool holds(FlowIs expected, State state) {
  switch (expected) {
    case FlowIs::live:
      return state == State::live;
    case FlowIs::blocked:
      return state == State::blocked;
    case FlowIs::unconnected:
      return state == State::unconnected;
    case FlowIs::zero:
      return state == State::zero;
    case FlowIs::not_live:
      return state != State::live;
  }
  return false;
}

std::string_view wish(FlowIs expected) {
  switch (expected) {
    case FlowIs::live:
      return "is to train";
    case FlowIs::blocked:
      return "is to be blocked from";
    case FlowIs::unconnected:
      return "is not to depend on";
    case FlowIs::zero:
      return "is to give a gradient of zero to";
    case FlowIs::not_live:
      return "is not to train";
  }
  return {};
}

}  // namespace

bool AuditRow::trained() const {
  return std::any_of(terms.begin(), terms.end(), [](const GradientFlow& f) { return f.state == State::live; });
}

Audit audit(const Tape& tape, std::span<const AuditTerm> terms, std::span<Variable* const> parameters,
            std::span<Variable* const> state) {
  Audit result;
  const auto instrs = tape.instrs();
  const auto variables = tape.variables();
  std::vector<Value> reads(variables.size());
  Tape* const values_of = terms.empty() ? nullptr : terms.front().loss.tape;
  for (const AuditTerm& term : terms) {
    if (term.loss.tape != &tape)
      fail(ErrorKind::usage, "audit: the loss of term '{}' is null or on another tape", term.name);
    if (std::find(result.terms.begin(), result.terms.end(), term.name) != result.terms.end())
      fail(ErrorKind::usage, "audit: two terms are named '{}'", term.name);
    if (term.loss.shape().elements() != 1 || !is_real(term.loss.dtype()))
      fail(ErrorKind::shape, "audit: term '{}' is {}, a loss is one real number", term.name,
           to_string(term.loss.type()));
    result.terms.push_back(term.name);
  }
  std::vector<bool> read(variables.size(), false);
  for (const Instr& instr : instrs)
    if (op_def(instr.op).role == Role::read) {
      const std::size_t v = ix(instr.attrs.i("variable"));
      read[v] = true;
      reads[v] = {values_of, instr.outputs[0]};
    }

  const Updates updates(tape);
  std::vector<Value> wrt;  // of the rows that are read
  std::vector<std::size_t> rows_of_wrt;
  const auto add_rows = [&](std::span<Variable* const> list, bool parameter) {
    for (const Variable* variable : list) {
      AuditRow row;
      row.variable = variable;
      row.parameter = parameter;
      row.terms.resize(terms.size());
      const auto at =
          static_cast<std::size_t>(std::find(variables.begin(), variables.end(), variable) - variables.begin());
      if (at < variables.size()) {
        row.read = read[at];
        row.update = updates.kind_of(at);
        row.assigned_by = updates.assign_of(at);
        if (row.assigned_by >= 0) {
          const Instr& assign = instrs[ix(row.assigned_by)];
          const std::string path = tape.scope_path(assign.scope);
          row.assigned_at = to_string(assign.loc) + (path.empty() ? "" : " in " + path);
        }
        if (read[at]) {
          wrt.push_back(reads[at]);
          rows_of_wrt.push_back(result.rows.size());
        }
      }
      result.rows.push_back(std::move(row));
    }
  };
  add_rows(parameters, true);
  add_rows(state, false);

  for (std::size_t t = 0; t < terms.size(); ++t) {
    std::vector<GradientFlow> flows = gradient_flows(terms[t].loss, wrt);
    for (std::size_t k = 0; k < wrt.size(); ++k) {
      for (std::int32_t cut : flows[k].cuts)
        if (!result.cuts.contains(cut))
          result.cuts.emplace(cut, fmt::format("%{} {}", instrs[ix(cut)].outputs[0], tape.describe_instr(cut)));
      result.rows[rows_of_wrt[k]].terms[t] = std::move(flows[k]);
    }
  }
  return result;
}

std::string Audit::to_string() const {
  const bool assigns = std::any_of(rows.begin(), rows.end(), [](const AuditRow& r) { return r.assigned_by >= 0; });
  std::map<std::int32_t, std::size_t> number;  // of a cut, in order of appearance
  std::vector<std::int32_t> numbered;
  Table table{{""}};
  for (const std::string& term : terms) table[0].push_back(term);
  if (assigns) table[0].push_back("updated");
  bool state_begun = false;
  for (const Group& group : groups_of(rows)) {
    const AuditRow& row = *group.first;
    if (!row.parameter && !std::exchange(state_begun, true)) table.push_back({"state"});
    std::vector<std::string> line{group.label()};
    for (const GradientFlow& flow : row.terms) {
      std::string cell(cell_of(flow.state));
      if (names_cuts(flow)) {
        std::vector<std::size_t> marks;
        for (std::int32_t cut : flow.cuts) {
          const auto [at, added] = number.emplace(cut, numbered.size() + 1);
          if (added) numbered.push_back(cut);
          marks.push_back(at->second);
        }
        cell += fmt::format(" [{}]", fmt::join(marks, ","));
      }
      line.push_back(std::move(cell));
    }
    if (assigns)
      line.push_back(row.update == UpdateKind::none ? "-" : fmt::format("{}, {}", update_of(row), row.assigned_at));
    table.push_back(std::move(line));
  }
  std::string text = aligned(table);
  if (!numbered.empty()) text += "cuts\n";
  for (std::size_t k = 0; k < numbered.size(); ++k) text += fmt::format("  [{}] {}\n", k + 1, cuts.at(numbered[k]));
  return text;
}

std::vector<std::string> Audit::problems() const {
  const bool whole_step = std::any_of(
      rows.begin(), rows.end(), [](const AuditRow& r) { return r.parameter && r.update == UpdateKind::gradient; });
  std::vector<std::string> found;
  for (const AuditRow& row : rows) {
    const std::string& name = row.variable->name();
    if (!row.parameter) {
      if (whole_step && !row.read && row.assigned_by < 0)
        found.push_back(fmt::format("state '{}' is neither read nor assigned by this step", name));
    } else if (!row.trained() && row.update != UpdateKind::gradient && row.update != UpdateKind::rule) {
      found.push_back(fmt::format(
          "parameter '{}' gets no gradient from any loss term{}{}", name,
          row.update == UpdateKind::itself
              ? fmt::format("; what it is assigned at {} depends on itself and on numbers only", row.assigned_at)
              : " and no update",
          why_untrained(*this, row)));
    } else if (row.trained() && row.update == UpdateKind::rule) {
      found.push_back(
          fmt::format("parameter '{}' is overwritten at {} by a value without any gradient in it, while {} {} it: one "
                      "of the two is "
                      "lost",
                      name, row.assigned_at, terms_that_train(*this, row), "would train"));
    } else if (row.trained() && row.update != UpdateKind::gradient && whole_step) {
      found.push_back(fmt::format("parameter '{}' gets a gradient from {} but is {}; is it missing in the optimizer?",
                                  name, terms_that_train(*this, row),
                                  row.update == UpdateKind::none
                                      ? "never assigned"
                                      : fmt::format("assigned at {} from itself and numbers only", row.assigned_at)));
    }
  }
  return found;
}

std::vector<std::string> violations(const Audit& audit, std::span<const FlowExpectation> expectations) {
  std::vector<std::string> found;
  for (const FlowExpectation& e : expectations) {
    bool any_term = false, any_variable = false;
    for (const std::string& term : audit.terms) any_term = any_term || matches(e.term, term);
    for (const AuditRow& row : audit.rows) any_variable = any_variable || matches(e.variable, row.variable->name());
    if (!any_term) found.push_back(fmt::format("no loss term is named '{}'", e.term));
    if (!any_variable) found.push_back(fmt::format("no variable is named '{}'", e.variable));
    for (std::size_t t = 0; t < audit.terms.size(); ++t)
      for (const AuditRow& row : audit.rows) {
        if (!matches(e.term, audit.terms[t]) || !matches(e.variable, row.variable->name())) continue;
        const GradientFlow& flow = row.terms[t];
        if (holds(e.expected, flow.state)) continue;
        std::string text =
            fmt::format("term '{}' {} '{}', but ", audit.terms[t], wish(e.expected), row.variable->name());
        switch (flow.state) {
          case State::live:
            text += "its gradient arrives there";
            break;
          case State::unconnected:
            text += "does not depend on it";
            break;
          case State::zero:
            text += "the gradient is zero whatever the numbers are, by";
            break;
          case State::blocked:
            text += "is blocked by";
            break;
        }
        if (names_cuts(flow))
          for (std::int32_t cut : flow.cuts) text += "\n  " + audit.cuts.at(cut);
        found.push_back(std::move(text));
      }
  }
  return found;
}

}  // namespace sg
