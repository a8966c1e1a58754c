// Random numbers: element e of an instruction is lane e % 4 of Philox block e / 4 (core/philox.h), computed in double
// and rounded to the element type, so that every backend gives the same bits.
#include "backends/cpu/lowering.h"
#include "core/philox.h"

namespace sg::cpu {
namespace {

template <auto kMap>
StepPtr lower_random(LowerCtx& ctx, Index grain) {
  return with_real(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([grain, n = ctx.out_type().shape.elements(),
                      stream = static_cast<std::uint32_t>(ctx.attrs().i("stream")), state = ctx.in<std::int32_t>(0),
                      y = ctx.out<T>()] {
      const auto seed = static_cast<std::uint32_t>(state[0]), step = static_cast<std::uint32_t>(state[1]);
      parallel_chunks(n, grain, 4, [&](Index begin, Index end) {
        for (Index e = begin; e < end; e += 4) {
          const auto values = kMap(random_block(seed, step, stream, static_cast<std::uint64_t>(e) / 4));
          for (Index i = e; i < std::min(end, e + 4); ++i)
            y[i] = static_cast<T>(values[static_cast<std::size_t>(i - e)]);
        }
      });
    });
  });
}

}  // namespace

StepPtr lower_uniform(LowerCtx& ctx, int) { return lower_random<uniform_block>(ctx, kDearGrain); }
StepPtr lower_normal(LowerCtx& ctx, int) { return lower_random<normal_block>(ctx, kDearGrain / 4); }

}  // namespace sg::cpu
