// Reductions over any axes, and of order: argmax, argmin, quantile.
#include <algorithm>

#include "backends/cuda/kernels.h"

namespace sg::cuda {
namespace {

// Neighbouring axes that are all kept or all reduced are one; extents of 1 are none.
Reduction axes_of(const LowerCtx& ctx, const Shape& shape, const std::vector<std::int64_t>& axes) {
  Reduction r;
  Index stride = 1, results = 1, extent = 1;
  int last = -1;  // 1: the axis before was reduced, 0: kept
  std::array<Index, 3> kept{}, reduced{};
  for (int d = shape.rank() - 1; d >= 0; --d) {
    if (shape[d] == 1) continue;
    const bool is_reduced = std::find(axes.begin(), axes.end(), d) != axes.end();
    Walk& walk = is_reduced ? r.reduced : r.kept;
    auto& extents = is_reduced ? reduced : kept;
    if (last != static_cast<int>(is_reduced)) {
      walk.strides[walk.rank] = stride;
      extents[static_cast<std::size_t>(walk.rank++)] = 1;
    }
    extents[static_cast<std::size_t>(walk.rank - 1)] *= shape[d];
    (is_reduced ? extent : results) *= shape[d];
    stride *= shape[d];
    last = static_cast<int>(is_reduced);
  }
  for (int k = 0; k < 3; ++k) {
    r.kept.dims[k] = divisor(kept[static_cast<std::size_t>(k)]);
    r.reduced.dims[k] = divisor(reduced[static_cast<std::size_t>(k)]);
  }
  r.results = count31(ctx, results);
  r.extent = count31(ctx, extent);
  return r;
}

// A block per part where the reduced elements lie next to each other and are many, else a thread.
bool by_blocks(const Reduction& r) {
  const bool contiguous = r.reduced.rank > 0 && r.reduced.strides[0] == 1;
  return r.extent >= 64 && (contiguous || r.results < 32);
}

// Parts so that enough threads are busy; they depend on the shape alone.
void split(Reduction& r) {
  constexpr Index kBlocks = 512, kThreads = Index{1} << 15, kLeastOfBlock = 4096, kLeastOfThread = 64;
  const Index wanted = by_blocks(r) ? kBlocks : kThreads, least = by_blocks(r) ? kLeastOfBlock : kLeastOfThread;
  const Index parts = std::clamp<Index>(std::min(wanted / std::max(1u, r.results), r.extent / least), 1, 1024);
  r.piece = static_cast<unsigned>(std::max<Index>(1, ceil_div(r.extent, parts)));
  r.parts = static_cast<unsigned>(std::max<Index>(1, ceil_div(r.extent, r.piece)));
}

template <class In, class Out>
void add_pass(Launches& step, const std::string& op, const std::string& types, const Reduction& r, In in, Out out) {
  const Index all = Index{r.results} * r.parts;
  const bool blocks = by_blocks(r);
  step.add("reduce", fmt::format("{}_{}_{}", op, blocks ? "blocks" : "threads", types),
           blocks ? block_each(all, r.piece) : spread(all), in, out, r);
}

}  // namespace

StepPtr lower_reduction(Device& device, LowerCtx& ctx) {
  const TensorType& in = ctx.in_type(0);
  const OpId id = ctx.instr().op;
  const std::string op = id == OpId::sum ? "sum" : id == OpId::reduce_max ? "max" : "min";
  Reduction r = axes_of(ctx, in.shape, ctx.attrs().ints("axes"));
  split(r);
  const std::string type = name_of(in.dtype);
  const auto* x = ctx.in<std::byte>(0);
  auto* y = ctx.out<std::byte>();
  auto step = std::make_unique<Launches>(device);
  if (r.parts == 1) {
    add_pass(*step, op, type + "_" + type, r, x, y);
    return step;
  }
  const std::string held = id == OpId::sum && is_real(in.dtype) ? "f64" : type;
  const Scratch scratch(ctx, std::size_t{r.parts} * r.results * (held == "f64" ? 8 : 4));
  const auto partial = scratch.at<std::byte>();
  add_pass(*step, op, type + "_" + held, r, x, partial);
  Reduction join;
  join.results = r.results;
  join.extent = join.piece = r.parts;
  join.kept.rank = join.reduced.rank = 1;
  join.kept.dims[0] = divisor(r.results), join.kept.strides[0] = 1;
  join.reduced.dims[0] = divisor(r.parts), join.reduced.strides[0] = r.results;
  add_pass(*step, op, held + "_" + type, join, partial, y);
  return step;
}

StepPtr lower_arg_reduction(Device& device, LowerCtx& ctx) {
  const Shape& shape = ctx.in_type(0).shape;
  const auto axis = static_cast<int>(ctx.attrs().i("axis"));
  Index inner = 1;
  for (int d = axis + 1; d < shape.rank(); ++d) inner *= shape[d];
  const unsigned results = count31(ctx, ctx.out_type().shape.elements()), extent = count31(ctx, shape[axis]);
  const std::string op = ctx.instr().op == OpId::argmax ? "argmax" : "argmin", type = name_of(ctx.in_type(0).dtype);
  auto step = std::make_unique<Launches>(device);
  if (inner == 1 && extent >= 16) {
    constexpr unsigned kThreads = 128, kRows = kThreads / 32;
    const Launch how{{static_cast<unsigned>(ceil_div(results, kRows))}, {kThreads}};
    step->add("reduce", op + "_warps_" + type, how, ctx.in<void>(0), ctx.out<int>(), results, extent);
  } else {
    step->add("reduce", op + "_threads_" + type, spread(results), ctx.in<void>(0), ctx.out<int>(), results, extent,
              divisor(inner));
  }
  return step;
}

// Quantile q of n elements lies at position q (n - 1) of their order, between two neighbours: two order statistics
// each.
StepPtr lower_quantile(Device& device, LowerCtx& ctx) {
  constexpr std::size_t kDigits = 256;
  const DType t = ctx.in_type(0).dtype;
  const unsigned n = count31(ctx, ctx.in_type(0).shape.elements());
  const std::vector<double>& q = ctx.attrs().reals("q");
  std::vector<unsigned> wanted;
  std::vector<double> fractions;
  for (const double at : q) {
    const double position = at * (static_cast<double>(n) - 1);
    const auto below = n == 0 ? 0u : static_cast<unsigned>(position);
    wanted.push_back(below);
    wanted.push_back(n == 0 ? 0u : std::min(below + 1, n - 1));
    fractions.push_back(position - static_cast<double>(below));
  }
  const auto cuts = static_cast<unsigned>(q.size()), statistics = 2 * cuts;
  auto* wanted_there = static_cast<unsigned*>(ctx.persistent(wanted.size() * sizeof(unsigned)));
  auto* fractions_there = static_cast<double*>(ctx.persistent(fractions.size() * sizeof(double)));
  device.upload(wanted_there, wanted.data(), wanted.size() * sizeof(unsigned));
  device.upload(fractions_there, fractions.data(), fractions.size() * sizeof(double));

  const std::size_t ranks_at = align256(statistics * 8), counts_at = ranks_at + align256(statistics * 4),
                    nan_at = counts_at + statistics * kDigits * 4;
  const Scratch scratch(ctx, nan_at + 4);
  const auto prefixes = scratch.at<unsigned long long>();
  const auto ranks = scratch.at<unsigned>(ranks_at), counts = scratch.at<unsigned>(counts_at),
             has_nan = scratch.at<unsigned>(nan_at);
  auto step = std::make_unique<Launches>(device);
  step->add("order", "select_start", Launch{{statistics}, {256}}, wanted_there, prefixes, ranks, counts, has_nan);
  constexpr Index kElementsOfBlock = 4096;
  Launch count{{static_cast<unsigned>(std::clamp<Index>(ceil_div(n, kElementsOfBlock), 1, 1024)), statistics}, {256}};
  for (int shift = static_cast<int>(size_of(t)) * 8 - 8; shift >= 0; shift -= 8) {
    step->add("order", "count_digits_" + name_of(t), count, ctx.in<void>(0), n, static_cast<unsigned>(shift), prefixes,
              counts, has_nan);
    step->add("order", "select_digit", Launch{{statistics}, {256}}, prefixes, ranks, counts);
  }
  step->add("order", "interpolate_" + name_of(t), spread(cuts, 128), prefixes, fractions_there, has_nan,
            ctx.out<void>(), cuts);
  return step;
}

}  // namespace sg::cuda
