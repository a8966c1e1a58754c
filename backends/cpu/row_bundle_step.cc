// Several row programs as one step: chains part by part, so that a part stays in the second-level cache of its thread
// from the first program to the last; updates all at once, their chunks shared out among the threads.
#include <algorithm>

#include "backends/cpu/kernels.h"
#include "backends/cpu/row_runner.h"
#include "core/row_bundle.h"

namespace sg::cpu {
namespace {

using Layout = RowProgram::Layout;

std::size_t ix(std::int64_t i) { return static_cast<std::size_t>(i); }

// What the lowering of one program of the bundle sees: its own inputs and outputs, and scratch beside that of the
// others.
class RegionCtx final : public LowerCtx {
 public:
  RegionCtx(LowerCtx& whole, Instr instr, std::size_t& scratch_bytes,
            std::vector<std::pair<std::size_t, void**>>& users)
      : whole_(whole), instr_(std::move(instr)), scratch_bytes_(scratch_bytes), users_(users) {}
  const Tape& tape() const override { return whole_.tape(); }
  const Instr& instr() const override { return instr_; }
  void* data(std::int32_t value) override { return whole_.data(value); }
  Variable* variable(std::int32_t value) override { return whole_.variable(value); }
  void scratch(std::size_t bytes, void** where) override {
    users_.emplace_back(scratch_bytes_, where);
    scratch_bytes_ += align64(bytes);
  }
  void* persistent(std::size_t bytes) override { return whole_.persistent(bytes); }
  std::shared_ptr<void>& shared(const std::string& key) override { return whole_.shared(key); }
  void prelude(std::string kind, StepPtr step) override { whole_.prelude(std::move(kind), std::move(step)); }

 private:
  LowerCtx& whole_;
  const Instr instr_;
  std::size_t& scratch_bytes_;
  std::vector<std::pair<std::size_t, void**>>& users_;
};

class RowBundleStep final : public Step {
 public:
  explicit RowBundleStep(LowerCtx& ctx) {
    const RowBundle bundle = row_bundle(ctx.tape(), ctx.instr());
    parts_ = bundle.parts;
    std::size_t bytes = 0;
    for (std::size_t k = 0; k < bundle.regions.size(); ++k) {
      const RowBundle::Region& region = bundle.regions[k];
      Instr instr = ctx.instr();
      instr.inputs = region.inputs, instr.outputs = region.outputs;
      RegionCtx own(ctx, std::move(instr), bytes, scratch_users_);
      runners_.push_back(make_row_runner(own, *region.program, hints(bundle, k)));
      if (runners_.back()->worth_threads()) threads_ = omp_get_max_threads();
    }
    scratch_ = Scratch(ctx, bytes);
    for (std::size_t k = 0; k < runners_.size(); ++k)
      for (Index c = 0; c < runners_[k]->chunks(); ++c) {
        chunks_.emplace_back(runners_[k].get(), c);
        work_before_.push_back(work_);
        work_ += runners_[k]->work() / runners_[k]->chunks() + 1;
      }
  }

  void run() override {
    for (const auto& [offset, where] : scratch_users_) *where = scratch_.at<std::byte>(offset);
    const int threads = std::min(threads_, omp_get_max_threads());
    if (parts_ > 1)
      run_chain(threads);
    else
      run_updates(threads);
  }

  std::string detail() const override {
    std::string text = parts_ > 1 ? fmt::format("{} programs in {} parts", runners_.size(), parts_)
                                  : fmt::format("{} programs at once", runners_.size());
    for (const auto& runner : runners_) text += "; [" + runner->detail() + "]";
    return text;
  }

 private:
  // Of a chain: outputs that a later program reads, and what comes from outside and no later program reads, which is
  // then fetched for the next part: so memory is never idle while a part is in the cache.
  static RowHints hints(const RowBundle& bundle, std::size_t region) {
    RowHints hints;
    if (bundle.parts == 1) return hints;
    const RowBundle::Region& own = bundle.regions[region];
    const auto read_later = [&](std::int32_t v) {
      return std::any_of(
          bundle.regions.begin() + static_cast<std::ptrdiff_t>(region) + 1, bundle.regions.end(),
          [&](const auto& r) { return std::find(r.inputs.begin(), r.inputs.end(), v) != r.inputs.end(); });
    };
    const auto made_before = [&](std::int32_t v) {
      return std::any_of(
          bundle.regions.begin(), bundle.regions.begin() + static_cast<std::ptrdiff_t>(region),
          [&](const auto& r) { return std::find(r.outputs.begin(), r.outputs.end(), v) != r.outputs.end(); });
    };
    hints.read_soon.assign(own.program->registers.size(), false);
    hints.fetch_next.assign(own.program->registers.size(), false);
    for (std::size_t k = 0; k < own.outputs.size(); ++k)
      hints.read_soon[ix(own.program->outputs[k])] = read_later(own.outputs[k]);
    for (std::size_t k = 0; k < own.inputs.size(); ++k)
      hints.fetch_next[k] = !read_later(own.inputs[k]) && !made_before(own.inputs[k]);
    return hints;
  }

  void run_chain(int threads) const {
    const Index unit = runners_.front()->unit(), units = ceil_div(parts_, unit);
    const auto run_unit = [&](Index u, int thread) {
      for (Index part = u * unit; part < std::min(parts_, (u + 1) * unit); ++part)
        for (const auto& runner : runners_) runner->run_segment(part, thread);
      Chunks<float>::fence();
    };
    if (threads == 1) {
      for (Index u = 0; u < units; ++u) run_unit(u, 0);
    } else {
#pragma omp parallel for schedule(static) num_threads(threads)
      for (Index u = 0; u < units; ++u) run_unit(u, omp_get_thread_num());
    }
    for (const auto& runner : runners_) runner->combine_rows();
  }

  // Each thread takes a run of chunks, the same ones in every step: what it updates stays in its cache, where it fits.
  void run_updates(int threads) const {
    const auto run_share = [&](int thread, int of) {
      const auto first = [&](Index share) {
        return std::lower_bound(work_before_.begin(), work_before_.end(), work_ * share / of) - work_before_.begin();
      };
      for (auto c = first(thread), end = first(thread + 1); c < end; ++c)
        chunks_[ix(c)].first->run_chunk(chunks_[ix(c)].second, thread);
    };
    if (threads == 1) {
      run_share(0, 1);
    } else {
#pragma omp parallel num_threads(threads)
      run_share(omp_get_thread_num(), omp_get_num_threads());
    }
    for (const auto& runner : runners_) runner->combine();
  }

  Index parts_ = 1;
  int threads_ = 1;
  std::vector<std::unique_ptr<RowRunner>> runners_;
  std::vector<std::pair<const RowRunner*, Index>> chunks_;
  std::vector<Index> work_before_;  // of each chunk
  Index work_ = 0;                  // of all chunks
  std::vector<std::pair<std::size_t, void**>> scratch_users_;
  Scratch scratch_;
};

}  // namespace

StepPtr lower_row_bundle(LowerCtx& ctx, int) { return std::make_unique<RowBundleStep>(ctx); }

bool row_bundle_in_place(const Tape& tape, const Instr& instr, int i, int output) {
  return bundle_in_place(tape, instr, i, output,
                         [&](const RowProgram& program, std::span<const std::int32_t> inputs, int in, int out) {
                           return may_lie_over(program, in, out) && !is_read_across_rows(tape, program, inputs, in);
                         });
}

}  // namespace sg::cpu
