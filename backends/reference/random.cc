// Random numbers: element e of an instruction is lane e % 4 of Philox block e / 4 (core/philox.h).
#include "backends/reference/kernels.h"
#include "core/philox.h"

namespace sg::reference {
namespace {

// Values of an f32 tape type are rounded to float, so that they equal those of a backend that stores floats.
StepPtr random(LowerCtx& ctx, std::array<double, 4> (*map)(const PhiloxBlock&)) {
  return make_step([map, elements = static_cast<std::uint64_t>(ctx.out_type().shape.elements()),
                    single = ctx.out_type().dtype == DType::f32,
                    stream = static_cast<std::uint32_t>(ctx.attrs().i("stream")), state = ctx.in<std::int32_t>(0),
                    dst = ctx.out<double>()] {
    const auto seed = static_cast<std::uint32_t>(state[0]), step = static_cast<std::uint32_t>(state[1]);
    std::array<double, 4> values{};
    for (std::uint64_t e = 0; e < elements; ++e) {
      if (e % 4 == 0) values = map(random_block(seed, step, stream, e / 4));
      dst[e] = single ? static_cast<double>(static_cast<float>(values[e % 4])) : values[e % 4];
    }
  });
}

}  // namespace

StepPtr uniform(LowerCtx& ctx) { return random(ctx, uniform_block); }
StepPtr normal(LowerCtx& ctx) { return random(ctx, normal_block); }

}  // namespace sg::reference
