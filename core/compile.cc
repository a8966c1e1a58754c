// compile(): passes, storage assignment, memory plan, lowering.
#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "core/program_impl.h"
#include "core/reorder.h"
#include "core/row_bundle.h"

namespace sg {
namespace {

std::size_t ix(std::int32_t i) { return static_cast<std::size_t>(i); }

Rewritten copy_of(const Tape& tape) {
  Rewriter r(tape);
  for (std::size_t i = 0; i < tape.instrs().size(); ++i) r.copy(static_cast<std::int32_t>(i));
  return r.finish();
}

class Passes {
 public:
  Passes(const Tape& tape, std::span<const std::int32_t> fetches)
      : current_(copy_of(tape)), fetches_(fetches.begin(), fetches.end()) {}

  void apply(Rewritten next) {
    if (next.tape == nullptr) return;
#ifndef NDEBUG
    next.tape->verify();
#endif
    next.map = compose(current_.map, next.map);
    current_ = std::move(next);
  }
  const Tape& tape() const { return *current_.tape; }
  std::vector<std::int32_t> keep() const {
    std::vector<std::int32_t> values;
    for (std::int32_t v : fetches_) values.push_back(current_.map[ix(v)]);
    return values;
  }
  Rewritten take() { return std::move(current_); }

 private:
  Rewritten current_;
  std::vector<std::int32_t> fetches_;
};

class Lowering final : public LowerCtx {
 public:
  Lowering(Program::Impl& p, std::int32_t index) : p_(p), index_(index) {}
  const Tape& tape() const override { return *p_.tape; }
  const Instr& instr() const override { return p_.tape->instrs()[ix(index_)]; }
  void* data(std::int32_t value) override { return p_.data(value); }
  Variable* variable(std::int32_t value) override {
    return p_.tape->variable_of(p_.tape->instrs()[ix(p_.tape->producer(value))]);
  }
  void scratch(std::size_t bytes, void** where) override {
    p_.scratch_bytes = std::max(p_.scratch_bytes, bytes);
    p_.scratch_users.push_back(where);
  }
  void* persistent(std::size_t bytes) override {
    BackendBuffer& b = p_.buffers.emplace_back(*p_.backend, bytes);
    p_.stats.persistent_bytes += bytes;
    p_.backend->fill(b.data(), std::byte{0}, bytes);
    return b.data();
  }
  std::shared_ptr<void>& shared(const std::string& key) override { return p_.shared[key]; }
  void prelude(std::string kind, std::unique_ptr<Step> step) override {
    (kind == "pack" ? p_.stats.packs : p_.stats.reorders) += 1;
    p_.steps.push_back({std::move(step), std::move(kind), index_});
  }

 private:
  Program::Impl& p_;
  std::int32_t index_;
};

std::size_t storage_bytes(const Backend& b, const TensorType& t) {
  return static_cast<std::size_t>(t.shape.elements()) * size_of(b.storage(t.dtype));
}

bool is_leaf(Role r) { return r == Role::input || r == Role::constant || r == Role::read; }
bool is_alias(Role r) { return r == Role::alias || r == Role::after || r == Role::stop_gradient; }

// Whether all numbers of a constant are rows of a table that has as many.
bool are_rows(const Tape& tape, std::int32_t value, std::int64_t rows) {
  const Instr& maker = tape.instrs()[ix(tape.producer(value))];
  if (op_def(maker.op).role != Role::constant || !maker.attrs.has("tensor")) return false;
  const Tensor& t = tape.constant_tensor(maker.attrs.i("tensor"));
  for (std::int64_t i = 0; i < t.elements(); ++i)
    if (t.at(i) < 0 || t.at(i) >= static_cast<double>(rows)) return false;
  return true;
}

// Gathers of an instruction, or of a region: the numbers, and how many rows there are to choose from.
std::vector<std::pair<std::int32_t, std::int64_t>> gathers_of(const Tape& tape, const Instr& instr) {
  if (is_gather(instr)) return {{instr.inputs[1], tape.type(instr.inputs[0]).shape[0]}};
  std::vector<std::pair<std::int32_t, std::int64_t>> found;
  if (op_def(instr.op).role == Role::region)
    for (const RowProgram::Op& op : tape.row_program(instr.attrs.i("program")).code)
      if (op.kind == RowProgram::Kind::gather) found.emplace_back(instr.inputs[ix(op.in[1])], op.attrs.i("rows"));
  return found;
}

// The first instruction after which none can fail while it runs: those that look things up by an index can, but for
// rows by numbers that an earlier one has looked up among as few.
std::int32_t first_safe(const Tape& tape) {
  std::int32_t first = 0;
  std::map<std::int32_t, std::int64_t> known;  // numbers that are below this
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(tape.instrs().size()); ++i) {
    const Instr& instr = tape.instrs()[ix(i)];
    const OpDef& def = op_def(instr.op);
    const bool takes_indices =
        std::any_of(instr.inputs.begin(), instr.inputs.end(), [&](auto v) { return tape.type(v).dtype == DType::i32; });
    if (takes_indices && def.role == Role::plain && !def.elementwise && !def.moves) first = i + 1;
    for (const auto& [numbers, rows] : gathers_of(tape, instr)) {
      if (are_rows(tape, numbers, rows)) continue;
      const auto [it, fresh] = known.try_emplace(numbers, rows);
      if (fresh || rows < it->second) first = i + 1, it->second = rows;
    }
  }
  return first;
}

// Per value, the reading of the variable whose new value it is and over which it may be written as soon as it is known;
// -1 for none. A step that fails must leave every variable as it was, so nothing that can fail may come later.
std::vector<std::int32_t> direct_commits(const Tape& tape, std::span<const std::int32_t> fetches,
                                         const Backend& backend, const CompileOptions& options,
                                         std::span<const std::int32_t> last) {
  std::vector<std::int32_t> read_of(tape.variables().size(), -1), reading(ix(tape.value_count()), -1);
  if (options.check_finite) return reading;
  const auto variable = [](const Instr& instr) { return static_cast<std::size_t>(instr.attrs.i("variable")); };
  for (const Instr& instr : tape.instrs())
    if (op_def(instr.op).role == Role::read) read_of[variable(instr)] = instr.outputs[0];
  const std::vector<std::int32_t> uses = use_counts(tape, fetches);
  const std::int32_t safe = first_safe(tape);
  // A device goes on after a step that failed, until the host looks: only commit() knows then.
  const bool on_device = backend.on_device();
  if (on_device && safe > 0) return reading;
  for (const Instr& instr : tape.instrs()) {
    if (op_def(instr.op).role != Role::assign) continue;
    const std::int32_t v = instr.inputs[0], read = read_of[variable(instr)];
    const std::int32_t maker = tape.producer(v);
    if (read >= 0 && uses[ix(v)] == 1 && maker >= safe && last[ix(read)] == maker &&
        (on_device || backend.host_memory(tape.type(v).dtype)))
      reading[ix(v)] = read;
  }
  return reading;
}

// Gives every value a storage. Aliases share their source's; an elementwise output may take over the place of an input
// that nothing needs afterwards, and a variable's new value that of the old one.
struct StoragePlan {
  std::vector<std::int32_t> of_value;
  std::vector<Storage> storages;
};

StoragePlan assign_storage(const Tape& tape, std::span<const std::int32_t> fetches, const Backend& backend,
                           const CompileOptions& options, bool reuse_in_place, bool keep_all) {
  StoragePlan p;
  const auto instrs = tape.instrs();
  const auto end = static_cast<std::int32_t>(instrs.size());
  p.of_value.assign(ix(tape.value_count()), -1);

  // Storage-level last use: computed over alias groups first, so that reuse sees the whole group's life.
  std::vector<std::int32_t> root(ix(tape.value_count()));
  std::iota(root.begin(), root.end(), 0);
  for (const Instr& instr : instrs)
    if (is_alias(op_def(instr.op).role)) root[ix(instr.outputs[0])] = root[ix(instr.inputs[0])];
  std::vector<std::int32_t> last(ix(tape.value_count()), -1);
  for (std::int32_t i = 0; i < end; ++i) {
    for (std::int32_t v : instrs[ix(i)].outputs) last[ix(root[ix(v)])] = std::max(last[ix(root[ix(v)])], i);
    if (!is_alias(op_def(instrs[ix(i)].op).role))
      for (std::int32_t v : instrs[ix(i)].inputs) last[ix(root[ix(v)])] = std::max(last[ix(root[ix(v)])], i);
  }
  for (const Instr& instr : instrs)
    if (op_def(instr.op).role == Role::assign) last[ix(root[ix(instr.inputs[0])])] = end;
  for (std::int32_t v : fetches) last[ix(root[ix(v)])] = end;
  if (keep_all) std::fill(last.begin(), last.end(), end);
  const std::vector<std::int32_t> over = direct_commits(tape, fetches, backend, options, last);

  for (std::int32_t i = 0; i < end; ++i) {
    const Instr& instr = instrs[ix(i)];
    const Role role = op_def(instr.op).role;
    for (std::size_t k = 0; k < instr.outputs.size(); ++k) {
      const std::int32_t v = instr.outputs[k];
      if (is_alias(role)) {
        p.of_value[ix(v)] = p.of_value[ix(instr.inputs[0])];
        continue;
      }
      const std::size_t bytes = storage_bytes(backend, tape.type(v));
      if (reuse_in_place && over[ix(v)] >= 0) {
        const auto in = std::find(instr.inputs.begin(), instr.inputs.end(), over[ix(v)]) - instr.inputs.begin();
        if (in < static_cast<std::ptrdiff_t>(instr.inputs.size()) &&
            backend.in_place(tape, instr, static_cast<int>(in), static_cast<int>(k))) {
          p.of_value[ix(v)] = p.of_value[ix(over[ix(v)])];
          continue;
        }
      }
      if (reuse_in_place && !is_leaf(role)) {
        for (std::size_t in = 0; in < instr.inputs.size() && p.of_value[ix(v)] < 0; ++in) {
          const std::int32_t from = instr.inputs[in];
          Storage& s = p.storages[ix(p.of_value[ix(from)])];
          const bool dies_here = s.kind == StorageKind::arena && s.last == i && s.bytes == bytes && s.taken != i;
          if (dies_here && backend.in_place(tape, instr, static_cast<int>(in), static_cast<int>(k))) {
            s.last = last[ix(root[ix(v)])], s.taken = i;
            p.of_value[ix(v)] = p.of_value[ix(from)];
          }
        }
        if (p.of_value[ix(v)] >= 0) continue;
      }
      Storage s;
      s.kind = role == Role::input      ? StorageKind::feed
               : role == Role::constant ? StorageKind::constant
               : role == Role::read     ? StorageKind::variable
                                        : StorageKind::arena;
      s.bytes = bytes;
      s.first = i;
      s.last = std::max(last[ix(root[ix(v)])], i);
      s.leaf = is_leaf(role) ? v : -1;
      p.of_value[ix(v)] = static_cast<std::int32_t>(p.storages.size());
      p.storages.push_back(s);
    }
  }
  return p;
}

std::vector<Lifetime> arena_lives(std::span<const Storage> storages, std::vector<std::size_t>* who = nullptr) {
  std::vector<Lifetime> lives;
  for (std::size_t i = 0; i < storages.size(); ++i)
    if (const Storage& s = storages[i]; s.kind == StorageKind::arena) {
      lives.push_back({s.bytes, s.first, s.last});
      if (who != nullptr) who->push_back(i);
    }
  return lives;
}

std::size_t largest_live_set_of(const Tape& tape, std::span<const std::int32_t> fetches, const Backend& backend,
                                const CompileOptions& options) {
  return largest_live_set(arena_lives(assign_storage(tape, fetches, backend, options, true, false).storages));
}

// For the message of an arena that does not fit.
std::string largest_values(const Program::Impl& p, std::vector<std::size_t> storages) {
  constexpr std::size_t kShown = 5;
  const std::size_t n = std::min(kShown, storages.size());
  std::partial_sort(storages.begin(), storages.begin() + static_cast<std::ptrdiff_t>(n), storages.end(),
                    [&](std::size_t a, std::size_t b) { return p.storages[a].bytes > p.storages[b].bytes; });
  std::string text = fmt::format("\n  for the values of a program; its {} largest:", n);
  for (std::size_t k = 0; k < n; ++k) {
    const auto value = std::find(p.storage_of.begin(), p.storage_of.end(), static_cast<std::int32_t>(storages[k]));
    text += fmt::format("\n  {:>10.2f} MB {}", static_cast<double>(p.storages[storages[k]].bytes) / 1e6,
                        p.tape->describe(static_cast<std::int32_t>(value - p.storage_of.begin())));
  }
  return text;
}

void place_storage(Program::Impl& p, bool plan) {
  Backend& b = *p.backend;
  std::vector<std::size_t> who;
  const std::vector<Lifetime> lives = arena_lives(p.storages, &who);
  const MemoryPlan layout = plan_memory(lives);
  p.stats.lower_bound_bytes = layout.lower_bound;
  p.stats.sum_bytes = 0;
  for (std::int32_t v = 0; v < p.tape->value_count(); ++v) {
    const Role role = op_def(p.tape->instrs()[ix(p.tape->producer(v))].op).role;
    if (!is_leaf(role) && !is_alias(role)) p.stats.sum_bytes += storage_bytes(b, p.tape->type(v));
  }
  const std::size_t guard = p.options.guard ? kGuardBytes : 0;
  std::size_t total = layout.total;
  if (!plan) {
    total = 0;
    for (const Lifetime& l : lives)
      total += (l.bytes + kAlignment - 1) / kAlignment * kAlignment + kAlignment + 2 * guard;
  }
  try {
    p.arena = BackendBuffer(b, std::max<std::size_t>(total, kAlignment));
  } catch (const Error& e) {
    throw Error(e.kind(), e.message() + largest_values(p, who), e.loc());
  }
  p.stats.arena_bytes = total;
  auto* base = static_cast<std::byte*>(p.arena.data());
  std::size_t offset = 0;
  for (std::size_t k = 0; k < who.size(); ++k) {
    Storage& s = p.storages[who[k]];
    if (plan) {
      s.data = base + layout.offsets[k];
      continue;
    }
    s.data = base + offset + guard;
    if (guard > 0) {
      const std::int32_t value = static_cast<std::int32_t>(
          std::find(p.storage_of.begin(), p.storage_of.end(), static_cast<std::int32_t>(who[k])) -
          p.storage_of.begin());
      p.guards.push_back({static_cast<std::byte*>(s.data), s.bytes, value});
      b.fill(base + offset, kGuardPattern, kGuardBytes);
      b.fill(static_cast<std::byte*>(s.data) + s.bytes, kGuardPattern, kGuardBytes);
    }
    offset += (s.bytes + kAlignment - 1) / kAlignment * kAlignment + kAlignment + 2 * guard;
  }
  for (Storage& s : p.storages) {
    if (s.kind == StorageKind::arena) continue;
    const Instr& instr = p.tape->instrs()[ix(p.tape->producer(s.leaf))];
    const TensorType& type = p.tape->type(s.leaf);
    if (s.kind == StorageKind::variable) {
      Variable& variable = *p.tape->variable_of(instr);
      s.data = p.home(variable);
      if (s.data != nullptr) {
        p.in_place.push_back(&variable);
        continue;
      }
    }
    s.data = p.buffers.emplace_back(b, s.bytes).data();
    if (s.kind == StorageKind::feed) {
      p.stats.feed_bytes += s.bytes;
      p.feeds.push_back({s.leaf, instr.attrs.str("name")});
    } else if (s.kind == StorageKind::variable) {
      p.stats.persistent_bytes += s.bytes;
      p.uploads.push_back({p.tape->variable_of(instr), s.data});
    } else {
      p.stats.persistent_bytes += s.bytes;
      if (instr.attrs.has("tensor"))
        b.upload(s.data, p.tape->constant_tensor(instr.attrs.i("tensor")).data(), type);
      else
        b.upload(s.data, Tensor::full(type, instr.attrs.d("value")).data(), type);
    }
  }
}

// Commits are made one after the other: a value that lives in a variable's own buffer, or a fetch of one, is copied
// first.
void plan_commits(Program::Impl& p) {
  const auto direct = [&p](const Program::Impl::Commit& c) {
    return p.storages[ix(p.storage_of[ix(c.value)])].data == c.home;
  };
  for (const Instr& instr : p.tape->instrs())
    if (op_def(instr.op).role == Role::assign) {
      Variable* variable = p.tape->variable_of(instr);
      p.commits.push_back({variable, instr.inputs[0], p.home(*variable)});
    }
  auto stage = [&](std::int32_t value) {
    const Storage& s = p.storages[ix(p.storage_of[ix(value)])];
    if (s.kind != StorageKind::variable || p.staged.contains(value)) return;
    void* copy = p.buffers.emplace_back(*p.backend, s.bytes).data();
    p.stats.persistent_bytes += s.bytes;
    p.stages.push_back({s.data, copy, value});
    p.staged.emplace(value, copy);
  };
  if (p.commits.empty()) return;
  for (const auto& c : p.commits)
    if (!direct(c)) stage(c.value);
  for (std::int32_t v : p.fetches) stage(v);
}

void lower_all(Program::Impl& p) {
  const auto instrs = p.tape->instrs();
  for (std::size_t i = 0; i < instrs.size(); ++i) {
    const Role role = op_def(instrs[i].op).role;
    if (is_leaf(role) || is_alias(role) || role == Role::assign) continue;
    bool empty = true;
    for (std::int32_t v : instrs[i].outputs) empty = empty && p.tape->type(v).shape.elements() == 0;
    if (empty) continue;
    Lowering ctx(p, static_cast<std::int32_t>(i));
    auto step = p.backend->lower(ctx);
    SG_CHECK(step != nullptr, "backend '{}' lowered {} to nothing", p.backend->name(), op_def(instrs[i].op).name);
    p.stats.inner_reorders += step->inner_reorders();
    p.steps.push_back({std::move(step), std::string(op_def(instrs[i].op).name), static_cast<std::int32_t>(i)});
  }
  p.stats.scratch_bytes = p.scratch_bytes;
  p.scratch = BackendBuffer(*p.backend, std::max<std::size_t>(p.scratch_bytes, kAlignment));
  for (void** where : p.scratch_users) *where = p.scratch.data();
  p.stats.steps = p.steps.size();
}

// Last of the passes: less work and an order in which fewer bytes live at once.
void order_passes(Passes& passes, Backend& backend, const CompileOptions& options) {
  passes.apply(eliminate_dead_code(passes.tape(), passes.keep()));
  if (!options.plan_memory || !options.reorder) return;
  const std::vector<std::int32_t> keep = passes.keep();
  Rewritten moved = reorder(passes.tape(), keep, [&](const TensorType& t) { return storage_bytes(backend, t); });
  if (moved.tape == nullptr) return;
  std::vector<std::int32_t> moved_keep;
  for (std::int32_t v : keep) moved_keep.push_back(moved.map[ix(v)]);
  if (largest_live_set_of(*moved.tape, moved_keep, backend, options) <
      largest_live_set_of(passes.tape(), keep, backend, options))
    passes.apply(std::move(moved));
}

// The passes from the backend's own to the last. Recomputation comes after fusion: what is computed again is then the
// same instruction, or a part of it that is known to give the same bits.
void backend_passes(Passes& passes, Backend& backend, const CompileOptions& options, bool keep_all,
                    RecomputeReport* report) {
  if (options.fuse) {
    passes.apply(backend.fuse(passes.tape(), passes.keep()));
    if (!keep_all) passes.apply(eliminate_dead_code(passes.tape(), passes.keep()));
    passes.apply(fuse_rows(
        passes.tape(), passes.keep(), [&](const Tape& t, const Instr& i) { return backend.row_op(t, i); },
        backend.bundles_rows()));
    if (backend.bundles_rows()) passes.apply(align_segments(passes.tape()));
  }
  if (keep_all) return;
  if (options.recompute.mode != RecomputeOptions::Mode::none) {
    const auto peak = [&](const Tape& t, std::span<const std::int32_t> keep) {
      Passes rest(t, keep);
      order_passes(rest, backend, options);
      return largest_live_set_of(rest.tape(), rest.keep(), backend, options);
    };
    passes.apply(eliminate_dead_code(passes.tape(), passes.keep()));
    passes.apply(recompute(passes.tape(), passes.keep(), options.recompute, peak, report));
  }
  order_passes(passes, backend, options);
  // Last: which regions are neighbours is known when nothing moves any more.
  if (options.fuse && backend.bundles_rows()) passes.apply(bundle_rows(passes.tape(), passes.keep()));
}

}  // namespace

std::unique_ptr<Program::Impl> build_program(const Tape& tape, std::span<const std::int32_t> fetches, Backend& backend,
                                             const CompileOptions& options, bool keep_all) {
  auto p = std::make_unique<Program::Impl>();
  p->backend = &backend;
  p->options = options;
  p->source = &tape;
  Passes passes(tape, fetches);
  if (!keep_all) passes.apply(eliminate_dead_code(passes.tape(), passes.keep()));
  // Before arithmetic, which would compute b - a of constants, and after it, which may show that two values are one.
  if (options.exact_forward) passes.apply(apply_exact_forward(passes.tape()));
  if (options.optimize) passes.apply(simplify(passes.tape()));
  if (options.exact_forward && options.optimize) passes.apply(apply_exact_forward(passes.tape()));
  passes.apply(forward_aliases(passes.tape()));
  if (!keep_all) passes.apply(eliminate_dead_code(passes.tape(), passes.keep()));
  passes.apply(decompose_unsupported(
      passes.tape(), [&](const Tape& t, const Instr& i) { return backend.supports(t, i); }, backend.name(),
      options.strict, &p->stats.decomposed));
  if (options.optimize) passes.apply(simplify(passes.tape()));
  backend_passes(passes, backend, options, keep_all, &p->stats.recompute);
  p->fetches = passes.keep();
  Rewritten done = passes.take();
  p->tape = std::move(done.tape);
  p->map = std::move(done.map);

  for (const Instr& instr : tape.instrs())
    if (op_def(instr.op).role == Role::input && p->map[ix(instr.outputs[0])] < 0)
      p->unused_inputs.emplace(instr.attrs.str("name"), tape.type(instr.outputs[0]));

  const bool plan = options.plan_memory && !options.guard && !keep_all;
  StoragePlan storage = assign_storage(*p->tape, p->fetches, backend, options, plan, keep_all);
  p->storage_of = std::move(storage.of_value);
  p->storages = std::move(storage.storages);
  place_storage(*p, plan);
  plan_commits(*p);
  lower_all(*p);
  if (options.check_finite) {
    p->plain_tape = copy_of(tape).tape;
    for (std::int32_t v : p->fetches) p->finite_probe.emplace_back(p->tape->type(v));
    for (const auto& c : p->commits) p->finite_probe.emplace_back(p->tape->type(c.value));
  }
  return p;
}

Program compile(const Tape& tape, std::span<const Value> fetches, Backend& backend, CompileOptions options) {
  std::vector<std::int32_t> ids;
  for (const Value& v : fetches) {
    if (v.tape != &tape) fail(ErrorKind::usage, "compile: a fetch is null or on another tape than the one compiled");
    ids.push_back(v.id);
  }
  return Program(build_program(tape, ids, backend, options, false));
}

Program compile(const Tape& tape, std::initializer_list<Value> fetches, Backend& backend, CompileOptions options) {
  return compile(tape, std::span<const Value>(fetches.begin(), fetches.size()), backend, options);
}

Tensor eval(Value value, Backend& backend, CompileOptions options) {
  SG_CHECK(value.tape != nullptr, "eval of a null Value");
  // Assignments of the tape are not part of what was asked for: keep only what the value needs.
  Rewriter r(*value.tape);
  for (std::size_t i = 0; i < value.tape->instrs().size(); ++i)
    if (op_def(value.tape->instrs()[i].op).role != Role::assign) r.copy(static_cast<std::int32_t>(i));
  const Rewritten pure = r.finish();
  const Value wanted = pure.tape->value(pure.map[ix(value.id)]);
  Program program = compile(*pure.tape, {wanted}, backend, options);
  program.run();
  return program.fetch(wanted);
}

}  // namespace sg
