#include "models/vqgan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "models/attention.h"
#include "ops/elementwise.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

using Attention = VqGanStage::Attention;

constexpr double kNormEps = 1e-6;

QuantizerConfig quantizer_config(const VqGanConfig& c) {
  QuantizerConfig q = c.quantizer;
  q.side = c.latent_height() == c.latent_width() ? c.latent_height() : 0;
  return q;
}

const VqGanConfig& validated(const VqGanConfig& config) {
  validate(config);
  return config;
}

std::int64_t width(const VqGanConfig& c, std::int64_t level) {
  return c.ch * c.ch_mult[static_cast<std::size_t>(level)];
}

Attention stage_attention(const VqGanConfig& c, std::int64_t level) {
  return c.attention && level + 1 == c.levels() ? Attention::after_each : Attention::none;
}

Attention middle_attention(const VqGanConfig& c) { return c.attention ? Attention::between : Attention::none; }

Value to_signed(Value images) { return 2.0 * images - 1.0; }
Value to_unit(Value output) { return 0.5 * output + 0.5; }

void check_images(const VqGanConfig& c, Value images) {
  const Shape& s = images.shape();
  if (s.rank() != 4 || s[1] != c.height || s[2] != c.width || s[3] != c.channels)
    fail(ErrorKind::shape, "VQ-GAN: images are {}, expected [N,{},{},{}]", to_string(images.type()), c.height, c.width,
         c.channels);
}

}  // namespace

VqGanConfig::VqGanConfig() {
  quantizer.beta = 0.25;
  quantizer.gamma = 1;
}

VqGanConfig vqgan_preset(std::string_view name) {
  VqGanConfig c;
  if (name == "fashion") return c;
  if (name == "small") {
    c.ch = 16;
    c.groups = 4;
    return c;
  }
  if (name == "f16") {
    c.height = c.width = 256;
    c.channels = 3;
    c.ch = 128;
    c.ch_mult = {1, 1, 2, 2, 4};
    c.res_blocks = 2;
    c.groups = 32;
    c.latent = c.quantizer.dim = 256;
    c.quantizer.codes = 1024;
    c.discriminator = {.ndf = 64, .layers = 3};
    c.disc_start = 250001;
    c.disc_warmup = 0;
    c.batch = 12;
    c.lr = 4.5e-6 * 12;
    return c;
  }
  fail(ErrorKind::usage, "unknown VQ-GAN preset '{}'; known: {}", name, fmt::join(vqgan_presets(), ", "));
}

std::vector<std::string> vqgan_presets() { return {"fashion", "small", "f16"}; }

void validate(const VqGanConfig& c) {
  const auto at_least = [](const char* what, std::int64_t value, std::int64_t least) {
    if (value < least) fail(ErrorKind::usage, "VQ-GAN: {} is {}, at least {} is needed", what, value, least);
  };
  at_least("image channels", c.channels, 1);
  at_least("ch", c.ch, 1);
  if (c.ch_mult.empty() || c.ch_mult.size() > 16)
    fail(ErrorKind::usage, "VQ-GAN: ch_mult has {} numbers, one for each of 1 to 16 levels is needed",
         c.ch_mult.size());
  for (const std::int64_t m : c.ch_mult) at_least("a number of ch_mult", m, 1);
  at_least("res_blocks", c.res_blocks, 1);
  at_least("groups", c.groups, 1);
  at_least("latent", c.latent, 1);
  at_least("image height", c.height, c.down());
  at_least("image width", c.width, c.down());
  if (c.height % c.down() != 0 || c.width % c.down() != 0)
    fail(ErrorKind::usage,
         "VQ-GAN: images of {} x {}: height and width must be divisible by {}, as {} levels halve them {} times",
         c.height, c.width, c.down(), c.levels(), c.levels() - 1);
  at_least("code_dim", c.quantizer.dim, 1);
  at_least("codes", c.quantizer.codes, 1);
  at_least("batch", c.batch, 1);
  at_least("warmup", c.warmup, 0);
  at_least("window", c.window, 1);
  at_least("disc_start", c.disc_start, 0);
  at_least("disc_warmup", c.disc_warmup, 0);
  if (c.disc_warmup > c.disc_start)
    fail(ErrorKind::usage,
         "VQ-GAN: the discriminator cannot train for {} steps (disc_warmup) before step {} (disc_start)", c.disc_warmup,
         c.disc_start);
  const auto not_negative = [](const char* what, double value) {
    if (!(value >= 0) || !std::isfinite(value))
      fail(ErrorKind::usage, "VQ-GAN: {} is {}, a finite number of at least 0 is needed", what, value);
  };
  not_negative("perceptual_weight", c.perceptual_weight);
  const auto positive = [](const char* what, double value) {
    if (!(value > 0) || !std::isfinite(value))
      fail(ErrorKind::usage,
           "VQ-GAN: {} is {}, a finite number above 0 is needed; to train without the adversary, give a disc_start "
           "after "
           "the last step",
           what, value);
  };
  positive("disc_weight", c.disc_weight);
  positive("disc_factor", c.disc_factor);
  not_negative("lr", c.lr);
  not_negative("beta", c.quantizer.beta);
  not_negative("gamma", c.quantizer.gamma);
  not_negative("revival", c.quantizer.revival);
  not_negative("ema_eps", c.quantizer.ema_eps);
  patch_map_size(c.discriminator, c.height, c.width);
}

std::int64_t group_count(std::int64_t channels, std::int64_t wanted) {
  if (channels < 1 || wanted < 1)
    fail(ErrorKind::usage, "group norm: {} groups wanted for {} channels; at least 1 of each is needed", wanted,
         channels);
  std::int64_t groups = std::min(channels, wanted);
  while (channels % groups != 0) --groups;
  if (groups == 1 && channels > 1 && wanted > 1)
    fail(ErrorKind::usage,
         "group norm: {} channels have no divisor from 2 to {}; take another width, or ask for 1 group", channels,
         wanted);
  return groups;
}

VqGanResBlock::VqGanResBlock(Module& parent, std::string_view name, std::int64_t in, std::int64_t out,
                             std::int64_t groups)
    : Module(parent, name),
      norm1_(*this, "norm1", group_count(in, groups), in, kNormEps),
      conv1_(*this, "conv1", in, out, 3, 1, 1),
      norm2_(*this, "norm2", group_count(out, groups), out, kNormEps),
      conv2_(*this, "conv2", out, out, 3, 1, 1) {
  if (in != out) shortcut_.emplace(*this, "shortcut", in, out, 1);
}

Value VqGanResBlock::operator()(Value x) const {
  const Scope scope(*x.tape, name());
  const Value h = conv2_(silu(norm2_(conv1_(silu(norm1_(x))))));
  return (shortcut_ ? (*shortcut_)(x) : x) + h;
}

VqGanAttention::VqGanAttention(Module& parent, std::string_view name, std::int64_t channels, std::int64_t groups)
    : Module(parent, name),
      norm_(*this, "norm", group_count(channels, groups), channels, kNormEps),
      query_(*this, "query", channels, channels),
      key_(*this, "key", channels, channels),
      value_(*this, "value", channels, channels),
      out_(*this, "out", channels, channels) {}

Value VqGanAttention::operator()(Value x) const {
  const Scope scope(*x.tape, name());
  const Shape s = x.shape();
  const Value places = reshape(norm_(x), {s[0], s[1] * s[2], s[3]});
  return x + reshape(out_(attention(query_(places), key_(places), value_(places))), s);
}

VqGanStage::VqGanStage(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, std::int64_t blocks,
                       std::int64_t groups, Attention attention)
    : Module(parent, name) {
  for (std::int64_t i = 0; i < blocks; ++i) {
    blocks_.emplace_back(*this, fmt::format("res{}", i + 1), i == 0 ? in : out, out, groups);
    if (attention == Attention::after_each || (attention == Attention::between && i + 1 < blocks))
      attention_.emplace_back(*this, fmt::format("attention{}", i + 1), out, groups);
  }
}

Value VqGanStage::operator()(Value x) const {
  const Scope scope(*x.tape, name());
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    x = blocks_[i](x);
    if (i < attention_.size()) x = attention_[i](x);
  }
  return x;
}

VqGanEncoder::VqGanEncoder(Module& parent, const VqGanConfig& c, std::int64_t code_dim)
    : Module(parent, "encoder"),
      in_(*this, "in", c.channels, c.ch, 3, 1, 1),
      middle_(*this, "middle", width(c, c.levels() - 1), width(c, c.levels() - 1), 2, c.groups, middle_attention(c)),
      norm_(*this, "norm", group_count(width(c, c.levels() - 1), c.groups), width(c, c.levels() - 1), kNormEps),
      out_(*this, "out", width(c, c.levels() - 1), c.latent, 3, 1, 1),
      quant_(*this, "quant_conv", c.latent, code_dim, 1) {
  for (std::int64_t l = 0; l < c.levels(); ++l) {
    stages_.emplace_back(*this, fmt::format("level{}", l), l == 0 ? c.ch : width(c, l - 1), width(c, l), c.res_blocks,
                         c.groups, stage_attention(c, l));
    if (l + 1 < c.levels())
      samplers_.emplace_back(*this, fmt::format("down{}", l), width(c, l), width(c, l),
                             std::array<std::int64_t, 2>{3, 3}, ConvOptions{.stride = {2, 2}, .pad = {0, 0, 1, 1}});
  }
}

Value VqGanEncoder::operator()(Value x) const {
  const Scope scope(*x.tape, name());
  Value h = in_(x);
  for (std::size_t l = 0; l < stages_.size(); ++l) {
    h = stages_[l](h);
    if (l < samplers_.size()) h = samplers_[l](h);
  }
  return quant_(out_(silu(norm_(middle_(h)))));
}

VqGanDecoder::VqGanDecoder(Module& parent, const VqGanConfig& c, std::int64_t code_dim)
    : Module(parent, "decoder"),
      post_quant_(*this, "post_quant_conv", code_dim, c.latent, 1),
      in_(*this, "in", c.latent, width(c, c.levels() - 1), 3, 1, 1),
      middle_(*this, "middle", width(c, c.levels() - 1), width(c, c.levels() - 1), 2, c.groups, middle_attention(c)),
      norm_(*this, "norm", group_count(width(c, 0), c.groups), width(c, 0), kNormEps),
      out_(*this, "out", width(c, 0), c.channels, 3, 1, 1) {
  for (std::int64_t l = c.levels() - 1; l >= 0; --l) {
    stages_.emplace_back(*this, fmt::format("level{}", l), width(c, std::min(l + 1, c.levels() - 1)), width(c, l),
                         c.res_blocks + 1, c.groups, stage_attention(c, l));
    if (l > 0) samplers_.emplace_back(*this, fmt::format("up{}", l), width(c, l), width(c, l), 3, 1, 1);
  }
}

Value VqGanDecoder::operator()(Value latents) const {
  const Scope scope(*latents.tape, name());
  Value h = middle_(in_(post_quant_(latents)));
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    h = stages_[i](h);
    if (i < samplers_.size()) h = samplers_[i](upsample(h, 2, 2));
  }
  return out_(silu(norm_(h)));
}

Variable& VqGanDecoder::last_weight() const { return find(full_name("out.weight")); }

VqGan::VqGan(const VqGanConfig& config)
    : Module(config.seed),
      config_(validated(config)),
      quantizer_(make_quantizer(*this, "quantizer", quantizer_config(config_))),
      encoder_(*this, config_, quantizer_->dim()),
      decoder_(*this, config_, quantizer_->dim()) {}

Value VqGan::encode(Value images) const {
  check_images(config_, images);
  return encoder_(to_signed(images));
}

VqGan::Output VqGan::operator()(Value images, const QuantizeContext& context) const {
  check_images(config_, images);
  Output out;
  out.input = to_signed(images);
  out.latents = encoder_(out.input);
  out.quantized = (*quantizer_)(out.latents, context);
  out.output = decoder_(out.quantized.z_q);
  out.images = to_unit(out.output);
  return out;
}

Shape VqGan::token_shape(std::int64_t n) const {
  return quantizer_->index_shape({n, config_.latent_height(), config_.latent_width(), quantizer_->dim()});
}

Value VqGan::tokens(Value images) const { return quantizer_->encode(encode(images)); }

Value VqGan::decode(Value tokens) const {
  const Shape& s = tokens.shape();
  if (s.rank() < 1 || s != token_shape(s[0]))
    fail(ErrorKind::shape, "VQ-GAN: tokens are {}, expected {}", to_string(tokens.type()),
         to_string(TensorType{DType::i32, token_shape(s.rank() < 1 ? 1 : s[0])}));
  return to_unit(decoder_(quantizer_->decode(tokens)));
}

}  // namespace sg
