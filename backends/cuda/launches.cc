#include "backends/cuda/launches.h"

#include <algorithm>
#include <bit>

namespace sg::cuda {

unsigned count31(const LowerCtx& ctx, Index n) {
  if (n >= Index{1} << 31)
    fail(ErrorKind::unsupported, "backend 'cuda': {} over {} elements; its kernels count below 2^31",
         op_def(ctx.instr().op).name, n);
  return static_cast<unsigned>(n);
}

Divisor divisor(Index d) {
  SG_CHECK(d >= 0 && d < Index{1} << 31, "divisor {}", d);
  if (d <= 1) return {1, 1, 0};
  const auto by = static_cast<std::uint64_t>(d);
  const auto shift = static_cast<unsigned>(std::bit_width(by - 1));
  const std::uint64_t magic = (std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift) - by) / by + 1;
  return {static_cast<unsigned>(d), static_cast<unsigned>(magic), shift};
}

Launch spread(Index n, unsigned threads) {
  constexpr Index kMaxBlocks = 8192;
  return {{static_cast<unsigned>(std::min(ceil_div(n, threads), kMaxBlocks))}, {threads}};
}

Launch block_each(Index blocks, Index work) {
  const Index warps = std::clamp<Index>(ceil_div(work, 32 * 4), 1, 8);
  return {{static_cast<unsigned>(blocks)}, {static_cast<unsigned>(warps * 32)}};
}

void Launches::describe(CUfunction f, const std::string& name, const Launch& how) {
  const auto threads = static_cast<int>(how.block.x * how.block.y * how.block.z);
  detail_ +=
      fmt::format("{}{}, {} registers, {} blocks of {} per multiprocessor", detail_.empty() ? "" : "; ", name,
                  device_.facts(f, name).registers, device_.blocks_per_multiprocessor(f, threads, how.shared), threads);
}

void Launches::call(std::function<void()> enqueue, const std::string& detail) {
  detail_ += (detail_.empty() ? "" : "; ") + detail;
  parts_.push_back(std::move(enqueue));
}

IndexGuard guard_indices(Device& device, LowerCtx& ctx, Launches& step, Index bound) {
  RuntimeChecks& checks = RuntimeChecks::of(device);
  auto slot = checks.slot(op_def(ctx.instr().op).name, bound, ctx.instr().loc);
  const unsigned number = slot->number;
  step.keep(std::move(slot));
  return {checks.flags(), number, count31(ctx, bound)};
}

}  // namespace sg::cuda
