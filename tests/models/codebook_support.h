// Shared by the tests of codebooks: a quantizer under test, a whole step of it, random rows.
#pragma once
#include <memory>

#include "backends/backends.h"
#include "models/init.h"
#include "models/quantizers/vector_quantizer.h"
#include "ops/elementwise.h"
#include "tests/models/support.h"

namespace sg::models_test {

inline const std::vector<CodebookUpdate> kRules{
    CodebookUpdate::loss,   CodebookUpdate::ema,         CodebookUpdate::ema_loss, CodebookUpdate::simvq,
    CodebookUpdate::affine, CodebookUpdate::alternating, CodebookUpdate::frozen};

inline QuantizerConfig codebook_config(CodebookUpdate rule, std::int64_t codes, std::int64_t dim) {
  QuantizerConfig config;
  config.codes = codes;
  config.dim = dim;
  config.codebook = rule;
  return config;
}

inline Tensor random_rows(Shape shape, std::uint32_t seed, double deviation = 1) {
  return normal_init(shape, 0, deviation, seed, "rows");
}

// A quantizer on a tape of its own; one step of it with step(), which records losses and the update.
struct Codebook {
  explicit Codebook(QuantizerConfig config, std::uint32_t seed = 7)
      : root(seed), quantizer(root, "vq", std::move(config)) {}
  QuantizeContext training(std::int32_t step = 0) {
    return {.random = tape.constant(Tensor::of<std::int32_t>({2}, {11, step})), .progress = {}, .mask = {}};
  }
  Quantized step(Value z, const QuantizeContext& context) {
    Quantized out = quantizer(z, context);
    StepUpdates updates(tape);
    quantizer.update(out, context, updates);
    updates.commit();
    return out;
  }
  std::vector<double> variable(const std::string& name) const { return numbers(root.find("vq." + name).value()); }

  Module root;
  VectorQuantizer quantizer;
  Tape tape;
};

// Of another dtype, so that what the reference backend computes in double is fetched in double.
inline Value in_double(Value x) { return cast(x, DType::f64); }

}  // namespace sg::models_test
