#include "models/transformer_vq.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "models/dropout.h"
#include "models/init.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr std::string_view kAttentions[] = {"vq", "vq-window", "dense-vq", "dense"};
constexpr std::string_view kHeads[] = {"shga", "mqa", "mha"};

template <class E, std::size_t n>
E by_name(const char* what, std::string_view name, const std::string_view (&names)[n]) {
  for (std::size_t i = 0; i < n; ++i)
    if (names[i] == name) return static_cast<E>(i);
  fail(ErrorKind::usage, "unknown {} '{}'; known: {}", what, name, fmt::join(names, ", "));
}

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  fail(ErrorKind::usage, "Transformer-VQ: {}", fmt::format(text, std::forward<Args>(args)...));
}

const TransformerVqConfig& validated(const TransformerVqConfig& config) {
  validate(config);
  return config;
}

// Keys have entries of this size, and codes that start like keys too.
double key_scale(const TransformerVqConfig& c) { return std::pow(static_cast<double>(c.key_width), -0.25); }

QuantizerConfig codebook_config(const TransformerVqConfig& c) {
  QuantizerConfig q = c.quantizer;
  q.dim = c.key_width;
  q.normal_deviation *= key_scale(c);
  return q;
}

Tensor ones(std::int64_t n) { return Tensor::full({DType::f32, {n}}, 1); }

Value without_gain(Value x) { return rms_norm(x, x.tape->constant(1.0, {x.dtype(), {x.shape()[-1]}})); }

// (B,T,heads width) -> (B,heads,T,width)
Value by_head(Value x, std::int64_t heads) {
  const Shape s = x.shape();
  if (heads == 1) return reshape(x, Shape{s[0], 1, s[1], s[2]});
  return transpose(reshape(x, Shape{s[0], s[1], heads, s[2] / heads}), {0, 2, 1, 3});
}

// The (B,T,width) of one head of (B,heads,T,width).
Value one_head(Value x, std::int64_t head) {
  const Shape s = x.shape();
  return reshape(slice_axis(x, 1, head, head + 1), Shape{s[0], s[2], s[3]});
}

Tensor reversed_sinusoids(std::int64_t slots, std::int64_t width, double lambda) {
  const Tensor rows = sinusoids(slots + 1, width, lambda);
  Tensor reversed(rows.type());
  for (std::int64_t i = 0; i <= slots; ++i)
    for (std::int64_t j = 0; j < width; ++j) reversed.set(i * width + j, rows.at((slots - i) * width + j));
  return reversed;
}

}  // namespace

std::string_view to_string(KeyAttention a) { return kAttentions[static_cast<std::size_t>(a)]; }
std::string_view to_string(HeadType h) { return kHeads[static_cast<std::size_t>(h)]; }
KeyAttention key_attention_by_name(std::string_view name) {
  return by_name<KeyAttention>("attention", name, kAttentions);
}
HeadType head_type_by_name(std::string_view name) { return by_name<HeadType>("head type", name, kHeads); }
std::vector<std::string> key_attention_names() { return {std::begin(kAttentions), std::end(kAttentions)}; }
std::vector<std::string> head_type_names() { return {std::begin(kHeads), std::end(kHeads)}; }

QuantizerConfig key_quantizer(std::int64_t codes) {
  QuantizerConfig q;
  q.codes = codes;
  q.codebook = CodebookUpdate::ema_loss;
  q.init = CodebookInit::normal;
  q.ema_decay = 0.99;
  q.gamma = 0;
  return q;
}

std::int64_t TransformerVqConfig::dv() const {
  if (value_width != 0) return value_width;
  return head == HeadType::shga ? 2 * width : width / std::max<std::int64_t>(heads, 1);
}

std::int64_t TransformerVqConfig::codebooks() const {
  return attention == KeyAttention::dense ? 0 : layers * key_heads();
}

void validate(const TransformerVqConfig& c) {
  const auto at_least = [](const char* what, std::int64_t value, std::int64_t least) {
    if (value < least) refuse("{} is {}, at least {} is needed", what, value, least);
  };
  at_least("vocabulary", c.vocabulary, 2);
  at_least("width", c.width, 2);
  if (c.width % 2 != 0) refuse("width is {}, an even number is needed: half of it are sines of the position", c.width);
  at_least("layers", c.layers, 1);
  at_least("heads", c.heads, 1);
  if (c.head == HeadType::shga && c.heads != 1) refuse("{} heads: shga has one; take mqa or mha", c.heads);
  at_least("key_width", c.key_width, 1);
  at_least("value_width", c.value_width, 0);
  if (c.value_width == 0 && c.head != HeadType::shga && c.width % c.heads != 0)
    refuse("width {} does not split evenly into {} heads; set value_width", c.width, c.heads);
  at_least("block", c.block, 1);
  at_least("memory", c.memory, 0);
  at_least("batch", c.batch, 1);
  at_least("update", c.update, 1);
  at_least("warmup", c.warmup, 0);
  at_least("steps", c.steps, 0);
  const bool dense = c.attention == KeyAttention::dense || c.attention == KeyAttention::dense_vq;
  if (!dense && c.update % c.block != 0)
    refuse("an update of {} tokens is no multiple of the block of {}", c.update, c.block);
  if (c.sequence < c.update || c.sequence % c.update != 0)
    refuse("a sequence of {} tokens is no multiple of the update of {}", c.sequence, c.update);
  if (dense && c.sequence != c.update)
    refuse("attention {} keeps no memory between updates: sequence {} must be the update of {}", to_string(c.attention),
           c.sequence, c.update);
  const auto share = [](const char* what, double value) {
    if (!(value >= 0 && value < 1)) refuse("{} is {}, expected 0 <= {} < 1", what, value, what);
  };
  share("drop_embedding", c.drop_embedding);
  share("drop_position", c.drop_position);
  share("drop_residual", c.drop_residual);
  share("drop_layer", c.drop_layer);
  share("beta2", c.beta2);
  const auto not_negative = [](const char* what, double value) {
    if (!(value >= 0) || !std::isfinite(value))
      refuse("{} is {}, a finite number of at least 0 is needed", what, value);
  };
  not_negative("commitment", c.commitment);
  not_negative("lr", c.lr);
  not_negative("weight_decay", c.weight_decay);
  not_negative("adam_eps", c.adam_eps);
  not_negative("clip", c.clip);
  if (!(c.position_lambda > 1) || !std::isfinite(c.position_lambda))
    refuse("position_lambda is {}, a finite number above 1 is needed", c.position_lambda);
  if (c.attention == KeyAttention::dense) return;
  if (c.quantizer.metric == Metric::cosine)
    refuse("metric cosine: keys are compared as they are; a cached code must be the key's own row");
  check_codebook_config(codebook_config(c));
}

TransformerVqMemory::TransformerVqMemory(const TransformerVqConfig& c, std::int64_t batch)
    : batch_(batch), key_heads_(c.key_heads()) {
  validate(c);
  if (batch < 1) refuse("a memory of {} lanes, at least 1 is needed", batch);
  if (c.attention != KeyAttention::vq && c.attention != KeyAttention::vq_window)
    refuse("attention {} keeps no memory", to_string(c.attention));
  const std::int64_t m = c.slots(), dk = c.key_width, s = c.quantizer.codes;
  for (std::int64_t i = 0; i < c.layers * key_heads_; ++i) {
    const auto add = [&](const char* kind, TensorType type) {
      return &add_state(fmt::format("memory_{}_{}", i, kind), Tensor(type));
    };
    slots_.push_back({add("keys", {DType::f32, {batch, m, dk}}), add("values", {DType::f32, {batch, m, c.dv()}}),
                      add("indices", {DType::i32, {batch, m}}), add("mean", {DType::f32, {batch, s, c.dv()}}),
                      add("count", {DType::f32, {batch, s}})});
  }
  position_ = &add_state("memory_position", Tensor({DType::i32, {}}));
}

void TransformerVqMemory::restart() { position_->set(Tensor({DType::i32, {}})); }

std::vector<AttentionMemory> TransformerVqMemory::read(Tape& tape, std::size_t layer) const {
  std::vector<AttentionMemory> memories;
  for (std::size_t h = 0; h < static_cast<std::size_t>(key_heads_); ++h) {
    const Slots& s = slots_.at(layer * static_cast<std::size_t>(key_heads_) + h);
    memories.push_back({tape.read(*s.keys), tape.read(*s.values), tape.read(*s.indices), tape.read(*s.mean),
                        tape.read(*s.count), tape.read(*position_)});
  }
  return memories;
}

void TransformerVqMemory::assign(std::size_t layer, std::span<const AttentionMemory> memories) const {
  for (std::size_t h = 0; h < memories.size(); ++h) {
    const Slots& s = slots_.at(layer * static_cast<std::size_t>(key_heads_) + h);
    const AttentionMemory& m = memories[h];
    Tape& tape = *m.keys.tape;
    tape.assign(*s.keys, m.keys);
    tape.assign(*s.values, m.values);
    tape.assign(*s.indices, m.indices);
    tape.assign(*s.mean, m.mean);
    tape.assign(*s.count, m.count);
  }
}

void advance(Tape& tape, const TransformerVqMemory& memory, std::int64_t tokens, std::int64_t sequence) {
  const auto number = [&tape](std::int64_t n) { return tape.constant(static_cast<double>(n), {DType::i32, {}}); };
  const Value next = tape.read(memory.position()) + number(tokens);
  const std::int64_t end = sequence > 0 ? sequence : std::int64_t{1} << 30;
  tape.assign(memory.position(),
              where(less(next, number(end)), next, sequence > 0 ? number(0) : tape.read(memory.position())));
}

TransformerVq::Layer::Layer(Module& parent, std::string_view name, const TransformerVqConfig& c)
    : Module(parent, name),
      query_heads(c.heads),
      key_heads(c.key_heads()),
      dk(c.key_width),
      dv(c.dv()),
      gain(&add_parameter("gain", ones(c.width))),
      query(*this, "query", c.width, c.heads * dk, false),
      key(*this, "key", c.width, key_heads * dk, false),
      value(*this, "value", c.width, key_heads * dv, false),
      position(*this, "position", c.width, c.heads * dk, false),
      out(*this, "out", c.heads * dv, c.width, false),
      u(&add_parameter("u", Tensor({DType::f32, {c.heads, dk}}))),
      w(&add_parameter("w", Tensor({DType::f32, {c.heads, dk}}))) {
  if (c.head == HeadType::shga) {
    gate = std::make_unique<Linear>(*this, "gate", c.width, dv, false);
  } else {
    feed_gain = &add_parameter("feed_gain", ones(c.width));
    feed_in = std::make_unique<Linear>(*this, "feed_in", c.width, 4 * c.width);
    feed_out = std::make_unique<Linear>(*this, "feed_out", 4 * c.width, c.width);
  }
}

TransformerVq::TransformerVq(const TransformerVqConfig& config)
    : Module(config.seed),
      config_(validated(config)),
      embedding_(*this, "embedding", config_.vocabulary, config_.width),
      gain_(&add_parameter("gain", ones(config_.width))),
      head_(*this, "head", config_.width, config_.vocabulary) {
  for (std::int64_t i = 0; i < config_.layers; ++i) {
    Layer& layer = layers_.emplace_back(*this, fmt::format("layer{}", i), config_);
    if (config_.attention == KeyAttention::dense) continue;
    for (std::int64_t h = 0; h < config_.key_heads(); ++h)
      quantizers_.push_back(std::make_unique<VectorQuantizer>(
          layer, config_.key_heads() == 1 ? "keys" : fmt::format("keys{}", h), codebook_config(config_)));
  }
}

Value TransformerVq::layer_step(const Layer& layer, std::size_t index, Value x, const QuantizeContext& context,
                                std::vector<AttentionMemory>& memories, std::int64_t block, Output& out) const {
  Tape& tape = *x.tape;
  const Scope scope(tape, layer.name());
  const TransformerVqConfig& c = config_;
  const double scale = key_scale(c);
  const std::int64_t b = x.shape()[0], t = x.shape()[1], group = layer.query_heads / layer.key_heads;
  const Value normed = rms_norm(x, tape.read(*layer.gain));
  const Value q = scale * without_gain(by_head(layer.query(normed), layer.query_heads));
  const Value k = scale * without_gain(by_head(layer.key(normed), layer.key_heads));
  const Value v = by_head(silu(layer.value(normed)), layer.key_heads);
  const Value waves = dropout(tape.constant(reversed_sinusoids(c.slots(), c.width, c.position_lambda)), c.drop_position,
                              context.random);
  const Value relative =
      scale * transpose(reshape(layer.position(waves), Shape{c.slots() + 1, layer.query_heads, layer.dk}), {1, 0, 2});
  const Value u = scale * tape.read(*layer.u), w = scale * tape.read(*layer.w);

  std::vector<Value> outputs;
  for (std::int64_t h = 0; h < layer.key_heads; ++h) {
    const auto mine = [&](Value per_query_head, std::int64_t axis) {
      return slice_axis(per_query_head, axis, h * group, (h + 1) * group);
    };
    AttentionHead head{.q = mine(q, 1),
                       .keys = one_head(k, h),
                       .values = one_head(v, h),
                       .indices = {},
                       .codes = {},
                       .u = mine(u, 0),
                       .w = mine(w, 0),
                       .relative = mine(relative, 0)};
    if (c.attention != KeyAttention::dense) {
      const VectorQuantizer& quantizer =
          *quantizers_[index * static_cast<std::size_t>(layer.key_heads) + static_cast<std::size_t>(h)];
      Quantized quantized = quantizer(head.keys, context);
      head.keys = quantized.z_q;
      head.indices = quantized.indices;
      head.codes = quantized.lookup.codes;
      const Value commitment = static_cast<double>(layer.dk) * quantized.loss("commitment");
      out.commitment = out.commitment ? out.commitment + commitment : commitment;
      out.quantized.push_back(std::move(quantized));
    }
    const bool linear = c.attention == KeyAttention::vq || c.attention == KeyAttention::vq_window;
    outputs.push_back(linear ? vq_attention(head, memories[static_cast<std::size_t>(h)],
                                            {.block = block,
                                             .cache = c.attention == KeyAttention::vq,
                                             .gradient_to_memory = c.gradient_to_memory})
                             : dense_attention(head));
  }
  Value merged = outputs.size() == 1 ? outputs.front() : concat(outputs, 1);  // (B,heads,T,dv)
  merged = reshape(transpose(merged, {0, 2, 1, 3}), Shape{b, t, layer.query_heads * layer.dv});
  if (layer.gate) merged = merged * silu((*layer.gate)(normed));
  const auto added = [&](Value branch) {
    return dropout_shared(dropout(branch, c.drop_residual, context.random), c.drop_layer, context.random, {1, 2});
  };
  x = x + added(layer.out(merged));
  if (layer.feed_in) x = x + added((*layer.feed_out)(gelu((*layer.feed_in)(rms_norm(x, tape.read(*layer.feed_gain))))));
  return x;
}

TransformerVq::Output TransformerVq::operator()(Value tokens, const QuantizeContext& context,
                                                const TransformerVqMemory* memory, std::int64_t block) const {
  const Shape shape = tokens.shape();
  if (shape.rank() != 2 || tokens.dtype() != DType::i32)
    fail(ErrorKind::shape, "Transformer-VQ: tokens are {}, expected i32 (B,T)", to_string(tokens.type()));
  if (memory != nullptr && memory->batch() != shape[0])
    fail(ErrorKind::shape, "Transformer-VQ: {} lanes of tokens, the memory has {}", shape[0], memory->batch());
  if (block == 0) block = std::min(config_.block, shape[1]);
  Tape& tape = *tokens.tape;
  const bool linear = config_.attention == KeyAttention::vq || config_.attention == KeyAttention::vq_window;
  if (memory != nullptr && !linear) refuse("attention {} keeps no memory", to_string(config_.attention));

  Output out;
  Value x = dropout(embedding_(tokens), config_.drop_embedding, context.random);
  std::size_t i = 0;
  for (const Layer& layer : layers_) {
    std::vector<AttentionMemory> memories;
    if (memory != nullptr) {
      memories = memory->read(tape, i);
    } else if (linear) {
      const std::int64_t b = shape[0], m = config_.slots(), s = config_.quantizer.codes;
      const auto zeros = [&](Shape of, DType d = DType::f32) { return tape.constant(0.0, {d, of}); };
      memories.assign(static_cast<std::size_t>(config_.key_heads()),
                      {zeros({b, m, config_.key_width}), zeros({b, m, config_.dv()}), zeros({b, m}, DType::i32),
                       zeros({b, s, config_.dv()}), zeros({b, s}), zeros({}, DType::i32)});
    }
    x = layer_step(layer, i, x, context, memories, block, out);
    if (memory != nullptr) memory->assign(i, memories);
    ++i;
  }
  out.logits = head_(rms_norm(x, tape.read(*gain_)));
  return out;
}

}  // namespace sg
