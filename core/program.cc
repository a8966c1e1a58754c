// Running a compiled program: feed, run, commit, fetch, explain. Nothing here allocates between the first run and the
// last, except explain() and error messages.
#include "core/program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "core/program_impl.h"

namespace sg {
namespace {

std::size_t ix(std::int32_t i) { return static_cast<std::size_t>(i); }

template <class T>
std::int64_t first_non_finite(std::span<const T> values) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(static_cast<double>(values[i]))) return static_cast<std::int64_t>(i);
  return -1;
}

std::int64_t first_non_finite(const Tensor& t) {
  if (t.dtype() == DType::f32) return first_non_finite(t.span<float>());
  if (t.dtype() == DType::f64) return first_non_finite(t.span<double>());
  if (t.dtype() == DType::bf16) return first_non_finite(t.span<BFloat16>());
  return -1;
}

// The floating-point modes of the backend, for as long as this lives.
struct Running {
  explicit Running(Backend& b) : backend(b) { backend.enter(); }
  ~Running() { backend.leave(); }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  Backend& backend;
};

std::string range_of(const Tensor& t) {
  if (t.elements() == 0) return "empty";
  double lo = INFINITY, hi = -INFINITY;
  std::int64_t bad = 0;
  for (std::int64_t i = 0; i < t.elements(); ++i) {
    const double v = t.at(i);
    if (!std::isfinite(v))
      ++bad;
    else
      lo = std::min(lo, v), hi = std::max(hi, v);
  }
  return bad == t.elements()
             ? fmt::format("all {} elements are NaN or infinite", bad)
             : fmt::format("min {:g}, max {:g}{}", lo, hi, bad > 0 ? fmt::format(", {} not finite", bad) : "");
}

}  // namespace

const void* Program::Impl::readable(std::int32_t value) const {
  const auto it = staged.find(value);
  return it != staged.end() ? it->second : data(value);
}

std::int32_t Program::Impl::resolve(Value value) const {
  if (value.tape != source || value.id < 0 || ix(value.id) >= map.size())
    fail(ErrorKind::usage, "fetch: the value is null or not from the tape that this program was compiled from");
  const std::int32_t v = map[ix(value.id)];
  if (v < 0 || std::find(fetches.begin(), fetches.end(), v) == fetches.end())
    fail(ErrorKind::usage, "fetch: %{} was not among the fetches given to compile()", value.id);
  if (runs == 0) fail(ErrorKind::usage, "fetch: the program has not run yet");
  return v;
}

void Program::Impl::prepare() {
  for (const Feed& f : feeds)
    if (!f.fed) fail(ErrorKind::usage, "run: input '{}' ({}) was never fed", f.name, to_string(tape->type(f.value)));
  for (Upload& u : uploads)
    if (u.version != u.variable->version()) {
      backend->upload(u.dst, u.variable->value().data(), u.variable->type());
      u.version = u.variable->version();
    }
  for (Variable* v : in_place)  // another backend may hold the newest value
    if (backend->on_device())
      v->resident(*backend);
    else
      v->data();
}

void Program::Impl::enqueue_steps() {
  const Running running(*backend);
  if (!options.profile) {
    for (StepEntry& s : steps) s.step->run();
  } else {
    for (StepEntry& s : steps) {
      const auto start = std::chrono::steady_clock::now();
      s.step->run();
      s.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
  }
}

void Program::Impl::run_steps() {
  prepare();
  enqueue_steps();
  if (!guards.empty()) check_guards();
}

void Program::Impl::check_guards() const {
  static_assert(kGuardBytes % sizeof(std::int32_t) == 0);
  const auto intact = [&](const std::byte* p) {
    std::byte copy[kGuardBytes];
    backend->download(copy, p, {DType::i32, {static_cast<std::int64_t>(kGuardBytes / sizeof(std::int32_t))}});
    return std::all_of(copy, copy + kGuardBytes, [](std::byte b) { return b == kGuardPattern; });
  };
  for (const Guard& g : guards)
    if (!intact(g.data - kGuardBytes) || !intact(g.data + g.bytes))
      throw Error(ErrorKind::internal,
                  fmt::format("a kernel wrote {} the buffer of {}", intact(g.data - kGuardBytes) ? "behind" : "before",
                              tape->describe(g.value)));
}

void* Program::Impl::home(Variable& variable) const {
  if (backend->on_device()) return variable.resident(*backend);
  return backend->host_memory(variable.type().dtype) ? variable.data() : nullptr;
}

void Program::Impl::enqueue_commits() {
  for (const Stage& s : stages) backend->copy(s.dst, s.src, storages[ix(storage_of[ix(s.value)])].bytes);
  for (const Commit& c : commits) {
    const void* from = readable(c.value);
    if (from == c.home) continue;  // it was written there at once
    if (c.home != nullptr)
      backend->commit(c.home, from, c.variable->type().bytes());
    else
      backend->download(c.variable->data(), from, c.variable->type());
  }
}

void Program::Impl::committed() {
  for (const Commit& c : commits)
    if (backend->on_device())
      c.variable->touch_resident(*backend);
    else
      c.variable->touch();
}

void Program::Impl::run_and_commit() {
  prepare();
  const auto enqueue = [this] {
    enqueue_steps();
    enqueue_commits();
  };
  constexpr std::uint64_t kPlainRuns = 2;  // what is made at the first use of a step exists by then
  if (backend->on_device() && options.capture && runs == kPlainRuns && guards.empty() && !options.profile) {
    Backend::Captured captured = backend->capture(enqueue);
    replay = std::move(captured.replay);
    capture_note = std::move(captured.note);
  }
  if (replay != nullptr) {
    const Running running(*backend);
    replay->run();
  } else {
    enqueue_steps();
    if (!guards.empty()) check_guards();
    enqueue_commits();
  }
  committed();
}

// Looks at everything that is about to leave the step; where something is not finite, finds out where it began.
void Program::Impl::check_finite() {
  std::vector<std::int32_t> leaving = fetches;
  for (const Commit& c : commits) leaving.push_back(c.value);
  std::int32_t bad = -1;
  for (std::size_t k = 0; k < leaving.size() && bad < 0; ++k) {
    backend->download(finite_probe[k].data(), data(leaving[k]), tape->type(leaving[k]));
    if (first_non_finite(finite_probe[k]) >= 0) bad = leaving[k];
  }
  if (bad < 0) return;

  if (slow == nullptr) {
    CompileOptions plain;
    plain.fuse = plain.plan_memory = plain.capture = plain.optimize = false;
    plain.strict = options.strict;
    plain.exact_forward = options.exact_forward;
    slow = build_program(*plain_tape, {}, *backend, plain, true);
  }
  for (Feed& f : slow->feeds)
    for (const Feed& mine : feeds)
      if (mine.name == f.name) {
        Tensor copy(tape->type(mine.value));
        backend->download(copy.data(), data(mine.value), copy.type());
        backend->upload(slow->data(f.value), copy.data(), copy.type());
        f.fed = true;
      }
  for (Feed& f : slow->feeds) f.fed = true;  // inputs that the program itself never needed
  slow->run_steps();
  const Tape& t = *slow->tape;
  auto host = [&](std::int32_t v) {
    Tensor copy(t.type(v));
    backend->download(copy.data(), slow->data(v), copy.type());
    return copy;
  };
  for (std::size_t i = 0; i < t.instrs().size(); ++i) {
    const Instr& instr = t.instrs()[i];
    for (std::int32_t out : instr.outputs) {
      const Tensor value = host(out);
      const std::int64_t at = first_non_finite(value);
      if (at < 0) continue;
      const Role role = op_def(instr.op).role;
      std::string text = fmt::format("{} is not finite (element {} is {})\n  first made by {}", t.name_of(out), at,
                                     value.at(at), t.describe(out));
      if (role == Role::input)
        text = fmt::format("{} holds {} at element {}: the data fed is not finite", t.name_of(out), value.at(at), at);
      for (std::int32_t in : instr.inputs)
        text += fmt::format("\n  operand {}: {}", t.describe(in), range_of(host(in)));
      if (instr.forward_of >= 0) text += "\n  in the gradient of the instruction at that line";
      throw Error(ErrorKind::non_finite, text + "\n  no variable was changed", instr.loc);
    }
  }
  throw Error(ErrorKind::non_finite,
              fmt::format("{} is not finite; run without passes, every value is finite\n  no variable was changed",
                          tape->describe(bad)));
}

Program::Program(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Program::Program(Program&&) noexcept = default;
Program& Program::operator=(Program&&) noexcept = default;
Program::~Program() = default;

void Program::feed(Value input, const Tensor& value) {
  Impl& p = *impl_;
  if (input.tape != p.source || input.id < 0 || ix(input.id) >= p.map.size())
    fail(ErrorKind::usage, "feed: the value is null or not from the tape that this program was compiled from");
  const std::int32_t v = p.map[ix(input.id)];
  if (v < 0) return;
  const Instr& instr = p.tape->instrs()[ix(p.tape->producer(v))];
  if (op_def(instr.op).role != Role::input) fail(ErrorKind::usage, "feed: {} is not an input", p.tape->describe(v));
  feed(instr.attrs.str("name"), value);
}

void Program::feed(std::string_view name, const Tensor& value) {
  Impl& p = *impl_;
  for (Impl::Feed& f : p.feeds) {
    if (f.name != name) continue;
    const TensorType& type = p.tape->type(f.value);
    if (type != value.type())
      fail(type.dtype != value.dtype() ? ErrorKind::dtype : ErrorKind::shape,
           "feed: input '{}' is {}, the tensor fed is {}", name, to_string(type), to_string(value.type()));
    p.backend->upload(p.data(f.value), value.data(), type);
    f.fed = true;
    return;
  }
  if (p.unused_inputs.contains(std::string(name))) return;
  std::string have;
  for (const Impl::Feed& f : p.feeds) have += fmt::format("{}'{}'", have.empty() ? "" : ", ", f.name);
  fail(ErrorKind::usage, "feed: no input '{}'; this program has {}", name, have.empty() ? "none" : have);
}

void Program::run() {
  Impl& p = *impl_;
  if (p.options.check_finite) {
    p.run_steps();
    p.check_finite();
    p.enqueue_commits();
    p.committed();
  } else {
    p.run_and_commit();
  }
  ++p.runs;
}

Tensor Program::fetch(Value value) const {
  const std::int32_t v = impl_->resolve(value);
  Tensor out(impl_->tape->type(v));
  impl_->backend->download(out.data(), impl_->readable(v), out.type());
  return out;
}

void Program::fetch_into(Value value, Tensor& out) const {
  const std::int32_t v = impl_->resolve(value);
  const TensorType& type = impl_->tape->type(v);
  if (out.type() != type)
    fail(ErrorKind::shape, "fetch_into: the value is {}, the tensor is {}", to_string(type), to_string(out.type()));
  impl_->backend->download(out.data(), impl_->readable(v), type);
}

double Program::fetch_scalar(Value value) const {
  const std::int32_t v = impl_->resolve(value);
  const TensorType& type = impl_->tape->type(v);
  if (type.shape.elements() != 1)
    fail(ErrorKind::shape, "fetch_scalar: the value is {}, not one number", to_string(type));
  alignas(8) std::byte buffer[8];
  impl_->backend->download(buffer, impl_->readable(v), type);
  const auto as = [&](auto value) {
    std::memcpy(&value, buffer, sizeof value);
    return static_cast<double>(value);
  };
  switch (type.dtype) {
    case DType::f32:
      return as(float{});
    case DType::f64:
      return as(double{});
    case DType::i32:
      return as(std::int32_t{});
    case DType::bf16:
      return as(BFloat16{});
  }
  return 0;
}

const Tape& Program::compiled_tape() const { return *impl_->tape; }
ProgramStats Program::stats() const { return impl_->stats; }

void Program::fill_arena(std::byte pattern) {
  Impl& p = *impl_;
  if (!p.guards.empty()) return;  // the pattern between buffers must stay
  p.backend->fill(p.arena.data(), pattern, p.arena.bytes());
  p.backend->fill(p.scratch.data(), pattern, p.scratch.bytes());
}

std::vector<std::pair<std::string, double>> Program::profile() const {
  std::map<std::string, double> by_kind;
  for (const StepEntry& s : impl_->steps) by_kind[s.kind] += s.seconds;
  std::vector<std::pair<std::string, double>> rows(by_kind.begin(), by_kind.end());
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  const auto runs = static_cast<double>(std::max<std::uint64_t>(impl_->runs, 1));
  for (auto& row : rows) row.second /= runs;
  return rows;
}

std::string Program::explain() const {
  const Impl& p = *impl_;
  const ProgramStats& s = p.stats;
  auto mb = [](std::size_t bytes) { return static_cast<double>(bytes) / 1e6; };
  std::string text = fmt::format(
      "program on backend '{}': {} steps ({} reorders of activations, {} packs of weights, {} reorders inside steps, "
      "{} "
      "ops decomposed)\n",
      p.backend->name(), s.steps, s.reorders, s.packs, s.inner_reorders, s.decomposed);
  if (p.options.recompute.mode != RecomputeOptions::Mode::none)
    text += p.stats.recompute.to_string(p.options.recompute) + "\n";
  text += fmt::format(
      "memory: arena {:.2f} MB = {:.3f} x the largest live set ({:.2f} MB), {:.1f} % of the sum of all values ({:.2f} "
      "MB)\n",
      mb(s.arena_bytes),
      static_cast<double>(s.arena_bytes) / static_cast<double>(std::max<std::size_t>(s.lower_bound_bytes, 1)),
      mb(s.lower_bound_bytes),
      100.0 * static_cast<double>(s.arena_bytes) / static_cast<double>(std::max<std::size_t>(s.sum_bytes, 1)),
      mb(s.sum_bytes));
  text += fmt::format("        kept between runs {:.2f} MB, scratch {:.2f} MB, inputs {:.2f} MB\n",
                      mb(s.persistent_bytes), mb(s.scratch_bytes), mb(s.feed_bytes));
  if (!p.capture_note.empty()) text += p.capture_note + "\n";
  std::map<std::string, std::size_t> counts;
  for (const StepEntry& e : p.steps) ++counts[e.kind];
  if (p.options.profile && p.runs > 0) {
    double total = 0;
    for (const auto& [kind, seconds] : profile()) total += seconds;
    text += fmt::format("time per run {:.3f} ms, by kind of step:\n", total * 1e3);
    for (const auto& [kind, seconds] : profile())
      text += fmt::format("  {:<22} {:>5} steps {:>10.3f} ms {:>6.1f} %\n", kind, counts[kind], seconds * 1e3,
                          100 * seconds / std::max(total, 1e-12));
  } else {
    text += "steps by kind:";
    for (const auto& [kind, n] : counts) text += fmt::format(" {} {}", n, kind);
    text += "\n";
  }
  text += "steps:\n";
  const auto runs = static_cast<double>(std::max<std::uint64_t>(p.runs, 1));
  for (const StepEntry& e : p.steps) {
    const Instr& instr = p.tape->instrs()[ix(e.instr)];
    std::string line = fmt::format("  {:<20}", e.kind);
    constexpr std::size_t kShown = 8;
    for (std::size_t k = 0; k < std::min(kShown, instr.outputs.size()); ++k)
      line += fmt::format(" {}", to_string(p.tape->type(instr.outputs[k])));
    if (instr.outputs.size() > kShown) line += fmt::format(" and {} more", instr.outputs.size() - kShown);
    if (p.options.profile) line += fmt::format("  {:.3f} ms", e.seconds / runs * 1e3);
    const std::string detail = e.step->detail(), scope = p.tape->scope_path(instr.scope);
    if (!detail.empty()) line += "  [" + detail + "]";
    text += line + (scope.empty() ? "" : "  " + scope) + "  " + to_string(instr.loc) + "\n";
  }
  return text;
}

}  // namespace sg
