#include "models/vqvae.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "models/optim.h"
#include "ops/elementwise.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

VectorQuantizerConfig quantizer_config(const VqVaeConfig& c) {
  VectorQuantizerConfig q;
  q.codes = c.codes;
  q.dim = c.code_dim;
  q.metric = c.metric;
  q.estimator = estimator_by_name(c.estimator);
  q.codebook = c.codebook;
  q.ema_decay = c.ema_decay;
  q.ema_eps = c.ema_eps;
  q.init = c.init;
  q.normal_deviation = c.normal_deviation;
  q.revival = c.revival;
  return q;
}

const VqVaeConfig& validated(const VqVaeConfig& config) {
  validate(config);
  return config;
}

}  // namespace

VqVaeConfig vqvae_preset(std::string_view name) {
  VqVaeConfig c;
  if (name == "fashion") return c;
  if (name == "large") {
    c.height = c.width = 32;
    c.channels = 3;
    c.hidden = 256;
    c.residual = 64;
    c.code_dim = 256;
    c.codes = 1024;
    c.batch = 64;
    return c;
  }
  fail(ErrorKind::usage, "unknown VQ-VAE preset '{}'; known: {}", name, fmt::join(vqvae_presets(), ", "));
}

std::vector<std::string> vqvae_presets() { return {"fashion", "large"}; }

void validate(const VqVaeConfig& c) {
  const auto at_least = [](const char* what, std::int64_t value, std::int64_t least) {
    if (value < least) fail(ErrorKind::usage, "VQ-VAE: {} is {}, at least {} is needed", what, value, least);
  };
  at_least("image channels", c.channels, 1);
  at_least("image height", c.height, 4);
  at_least("image width", c.width, 4);
  if (c.height % 4 != 0 || c.width % 4 != 0)
    fail(ErrorKind::usage,
         "VQ-VAE: images of {} x {}: height and width must be divisible by 4, as two stride-2 layers halve them twice",
         c.height, c.width);
  at_least("hidden", c.hidden, 2);
  if (c.hidden % 2 != 0) fail(ErrorKind::usage, "VQ-VAE: hidden is {}, an even number is needed", c.hidden);
  at_least("residual", c.residual, 1);
  at_least("residual_blocks", c.residual_blocks, 0);
  at_least("code_dim", c.code_dim, 1);
  at_least("codes", c.codes, 1);
  at_least("batch", c.batch, 1);
  at_least("warmup", c.warmup, 0);
  at_least("window", c.window, 1);
  const auto not_negative = [](const char* what, double value) {
    if (!(value >= 0) || !std::isfinite(value))
      fail(ErrorKind::usage, "VQ-VAE: {} is {}, a finite number of at least 0 is needed", what, value);
  };
  not_negative("beta", c.beta);
  not_negative("gamma", c.gamma);
  not_negative("lr", c.lr);
  not_negative("weight_decay", c.weight_decay);
  not_negative("clip", c.clip);
  not_negative("revival", c.revival);
  not_negative("ema_eps", c.ema_eps);
  if (!(c.normal_deviation > 0))
    fail(ErrorKind::usage, "VQ-VAE: normal_deviation is {}, a positive number is needed", c.normal_deviation);
  if (!(c.ema_decay >= 0 && c.ema_decay < 1))
    fail(ErrorKind::usage, "VQ-VAE: ema_decay is {}, a number in [0, 1) is needed", c.ema_decay);
  estimator_by_name(c.estimator);
  const std::vector<std::string> optimizers = optimizer_names();
  if (std::find(optimizers.begin(), optimizers.end(), c.optimizer) == optimizers.end())
    fail(ErrorKind::usage, "unknown optimizer '{}'; known: {}", c.optimizer, fmt::join(optimizers, ", "));
}

VqVaeEncoder::VqVaeEncoder(Module& parent, const VqVaeConfig& c)
    : Module(parent, "encoder"),
      down1_(*this, "down1", c.channels, c.hidden / 2, 4, 2, 1),
      down2_(*this, "down2", c.hidden / 2, c.hidden, 4, 2, 1),
      conv_(*this, "conv", c.hidden, c.hidden, 3, 1, 1),
      out_(*this, "out", c.hidden, c.code_dim, 1) {
  for (std::int64_t i = 1; i <= c.residual_blocks; ++i)
    blocks_.emplace_back(*this, fmt::format("res{}", i), c.hidden, c.residual);
}

Value VqVaeEncoder::operator()(Value images) const {
  const Scope scope(*images.tape, name());
  Value h = conv_(relu(down2_(relu(down1_(images)))));
  for (const ResidualBlock& block : blocks_) h = block(h);
  return out_(relu(h));
}

VqVaeDecoder::VqVaeDecoder(Module& parent, const VqVaeConfig& c)
    : Module(parent, "decoder"),
      in_(*this, "conv", c.code_dim, c.hidden, 3, 1, 1),
      up1_(*this, "up1", c.hidden, c.hidden / 2, 4, 2, 1),
      up2_(*this, "up2", c.hidden / 2, c.channels, 4, 2, 1) {
  for (std::int64_t i = 1; i <= c.residual_blocks; ++i)
    blocks_.emplace_back(*this, fmt::format("res{}", i), c.hidden, c.residual);
}

Value VqVaeDecoder::operator()(Value latents) const {
  const Scope scope(*latents.tape, name());
  Value h = in_(latents);
  for (const ResidualBlock& block : blocks_) h = block(h);
  return up2_(relu(up1_(relu(h))));
}

VqVae::VqVae(const VqVaeConfig& config)
    : Module(config.seed),
      config_(validated(config)),
      encoder_(*this, config_),
      quantizer_(*this, "quantizer", quantizer_config(config_)),
      decoder_(*this, config_) {}

Value VqVae::encode(Value images) const {
  const Shape& s = images.shape();
  if (s.rank() != 4 || s[1] != config_.height || s[2] != config_.width || s[3] != config_.channels)
    fail(ErrorKind::shape, "VQ-VAE: images are {}, expected [N,{},{},{}]", to_string(images.type()), config_.height,
         config_.width, config_.channels);
  return reshape(encoder_(images), std::vector<std::int64_t>{-1, config_.code_dim});
}

Value VqVae::decode_rows(Value rows, std::int64_t n) const {
  return decoder_(reshape(rows, Shape{n, config_.latent_height(), config_.latent_width(), config_.code_dim}));
}

VqVae::Output VqVae::operator()(Value images) const {
  Output out;
  out.rows = encode(images);
  out.quantized = quantizer_(out.rows);
  out.images = decode_rows(out.quantized.z_q, images.shape()[0]);
  return out;
}

Value VqVae::tokens(Value images) const {
  const Value indices = quantizer_.nearest(encode(images));
  return reshape(indices, Shape{images.shape()[0], config_.latent_height(), config_.latent_width()});
}

Value VqVae::decode(Value tokens) const {
  const Shape& s = tokens.shape();
  if (s.rank() != 3 || s[1] != config_.latent_height() || s[2] != config_.latent_width())
    fail(ErrorKind::shape, "VQ-VAE: tokens are {}, expected [N,{},{}]", to_string(tokens.type()),
         config_.latent_height(), config_.latent_width());
  return decode_rows(quantizer_.lookup(tokens), s[0]);
}

}  // namespace sg
