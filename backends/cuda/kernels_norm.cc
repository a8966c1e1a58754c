// Rows of the last axis, and random numbers.
#include "backends/cuda/kernels.h"

namespace sg::cuda {
namespace {

struct Rows {
  Index rows;
  unsigned columns;
};
Rows rows_of(const LowerCtx& ctx) {
  const Shape& s = ctx.in_type(0).shape;
  const Index columns = s.rank() == 0 ? 1 : s[-1];
  const Index rows = columns == 0 ? 0 : s.elements() / columns;
  return {count31(ctx, rows), count31(ctx, columns)};
}

// The op's own name is the kernel's.
std::string kernel_name(const LowerCtx& ctx) {
  return std::string(op_def(ctx.instr().op).name) + "_" + name_of(ctx.out_type().dtype);
}

}  // namespace

StepPtr lower_softmax(Device& device, LowerCtx& ctx) {
  const Rows r = rows_of(ctx);
  auto step = std::make_unique<Launches>(device);
  step->add("norm", kernel_name(ctx), block_each(r.rows, r.columns), ctx.in<void>(0), ctx.out<void>(), r.columns);
  return step;
}

StepPtr lower_cross_entropy(Device& device, LowerCtx& ctx) {
  const Rows r = rows_of(ctx);
  auto step = std::make_unique<Launches>(device);
  const IndexGuard guard = guard_indices(device, ctx, *step, r.columns);
  step->add("norm", kernel_name(ctx), block_each(r.rows, r.columns), ctx.in<void>(0), ctx.in<int>(1), ctx.out<void>(),
            r.columns, guard);
  return step;
}

StepPtr lower_layer_norm(Device& device, LowerCtx& ctx) {
  const Rows r = rows_of(ctx);
  auto step = std::make_unique<Launches>(device);
  step->add("norm", kernel_name(ctx), block_each(r.rows, r.columns), ctx.in<void>(0), ctx.in<void>(1), ctx.in<void>(2),
            ctx.out<void>(), r.columns, ctx.attrs().d("eps"));
  return step;
}

StepPtr lower_rms_norm(Device& device, LowerCtx& ctx) {
  const Rows r = rows_of(ctx);
  auto step = std::make_unique<Launches>(device);
  step->add("norm", kernel_name(ctx), block_each(r.rows, r.columns), ctx.in<void>(0), ctx.in<void>(1), ctx.out<void>(),
            r.columns, ctx.attrs().d("eps"));
  return step;
}

StepPtr lower_group_norm(Device& device, LowerCtx& ctx) {
  const Shape& s = ctx.in_type(0).shape;
  const Index samples = s[0], c = s[-1], groups = ctx.attrs().i("groups");
  const Index n = samples * groups == 0 ? 0 : s.elements() / samples / groups;
  Launch how = block_each(groups, n);
  how.grid.y = count31(ctx, samples);
  auto step = std::make_unique<Launches>(device);
  step->add("norm", kernel_name(ctx), how, ctx.in<void>(0), ctx.in<void>(1), ctx.in<void>(2), ctx.out<void>(),
            count31(ctx, n), count31(ctx, c), divisor(c / groups), ctx.attrs().d("eps"));
  return step;
}

StepPtr lower_random(Device& device, LowerCtx& ctx) {
  const unsigned n = count31(ctx, ctx.out_type().shape.elements());
  auto step = std::make_unique<Launches>(device);
  step->add("random", kernel_name(ctx), spread(ceil_div(n, 4)), ctx.in<int>(0), ctx.out<void>(), n,
            static_cast<unsigned>(ctx.attrs().i("stream")));
  return step;
}

}  // namespace sg::cuda
