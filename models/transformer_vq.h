// Transformer-VQ (Lingle 2309.16354): a causal language model over tokens whose attention has quantized keys, so that
// time and memory for each token do not grow with the number of tokens.
//
// Layer, with RMS for rms_norm and RMS0 for the same without a gain, scale = dk^(-1/4):
//   x~ = RMS(x);  q = scale RMS0(W_q x~), k = scale RMS0(W_k x~), v = silu(W_v x~), g = silu(W_g x~)
//   k^ = estimator(k, nearest code)        a codebook in every layer, for each key head
//   y  = x + dropout(W_o (attention(q, k^, v) * g))
// with relative positions r_d = scale W_r sin-cos(d) for distances d up to the window's M, and offsets u, w
// (transformer_vq_attention.h). Heads:
//   shga   one head with a gate (the paper's); such a layer needs no feed-forward part
//   mqa    several query heads on one key and value head, no gate; then x + W2 gelu(W1 RMS(x)), W1 (d, 4d)
//   mha    several heads with keys, values and a codebook each; otherwise as mqa
// Logits are W_h RMS(x) + b of the last layer.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "models/layers.h"
#include "models/quantizers/vector_quantizer.h"
#include "models/transformer_vq_attention.h"

namespace sg {

// What keys are, and how far attention reaches.
enum class KeyAttention : std::uint8_t {
  vq,         // quantized keys, window and cache: linear in T
  vq_window,  // quantized keys, window only
  dense_vq,   // the function of vq with T x T scores; it starts at each call, without a memory
  dense,      // keys as they are, T x T scores, without a memory
};
enum class HeadType : std::uint8_t { shga, mqa, mha };
std::string_view to_string(KeyAttention);
std::string_view to_string(HeadType);
KeyAttention key_attention_by_name(std::string_view name);  // Error{usage} listing them
HeadType head_type_by_name(std::string_view name);
std::vector<std::string> key_attention_names();
std::vector<std::string> head_type_names();

// The quantizer of keys as the paper has it: ste, EMA as a loss with decay 0.99, codes that start like keys.
QuantizerConfig key_quantizer(std::int64_t codes = 512);

struct TransformerVqConfig {
  std::int64_t vocabulary = 256;  // tokens are 0 ... vocabulary - 1
  std::int64_t width = 256;       // d of x
  std::int64_t layers = 4;        // attention layers (the paper counts two as one)
  HeadType head = HeadType::shga;
  std::int64_t heads = 1;        // 1 for shga
  std::int64_t key_width = 64;   // dk
  std::int64_t value_width = 0;  // dv of a head; 0: 2 width for shga, width / heads otherwise
  KeyAttention attention = KeyAttention::vq;
  std::int64_t block = 128;                     // L
  std::int64_t memory = 0;                      // M, slots of window behind the block; 0: L
  bool gradient_to_memory = true;               // within one update; between updates none flows
  double position_lambda = 1e5;                 // longest wavelength / 2 pi of positions
  QuantizerConfig quantizer = key_quantizer();  // its dim is key_width; gamma is not used
  double commitment = 1e-4;  // weight of the commitment: mean over tokens of sum over layers and heads of |k - sg c|^2
  // Dropout of the embedding, the sines of positions, what a layer adds, and of all that a layer adds to a sequence.
  double drop_embedding = 0, drop_position = 0, drop_residual = 0, drop_layer = 0;

  // Training. A sequence is trained on in updates: each starts from what the one before left (truncated
  // backpropagation), the first of a sequence from nothing.
  std::int64_t batch = 8;
  std::int64_t update = 512;     // tokens of a lane in a step, a multiple of block
  std::int64_t sequence = 2048;  // tokens until memories are dropped, a multiple of update
  double lr = 4e-4, beta2 = 0.98, adam_eps = 1e-9, weight_decay = 2e-4, clip = 0.1;  // AdamW; clip 0: none
  std::int64_t warmup = 0, steps = 0;
  bool cosine_decay = false;
  std::uint32_t seed = 1;

  std::int64_t slots() const { return memory == 0 ? block : memory; }
  std::int64_t dv() const;
  std::int64_t key_heads() const { return head == HeadType::mha ? heads : 1; }
  std::int64_t codebooks() const;  // of all layers; 0 for dense
  bool operator==(const TransformerVqConfig&) const = default;
};
// Error{usage} naming the field that cannot be, alone or with the others.
void validate(const TransformerVqConfig& config);

// What a model remembers of a batch of token streams: Variables named "memory...", all of constant size. Starts empty.
class TransformerVqMemory : public Module {
 public:
  TransformerVqMemory(const TransformerVqConfig& config, std::int64_t batch);
  void restart();                                    // the next token is the first of a sequence
  Variable& position() const { return *position_; }  // i32 []
  // Of layer i, one for each key head, as they are at the start of the step; and assigned at its end.
  std::vector<AttentionMemory> read(Tape& tape, std::size_t layer) const;
  void assign(std::size_t layer, std::span<const AttentionMemory> memories) const;
  std::int64_t batch() const { return batch_; }

 private:
  struct Slots {
    Variable *keys, *values, *indices, *mean, *count;
  };
  std::int64_t batch_, key_heads_;
  std::vector<Slots> slots_;  // layer after layer, head after head
  Variable* position_;
};

class TransformerVq : public Module {
 public:
  explicit TransformerVq(const TransformerVqConfig& config);  // Error{usage}

  struct Output {
    Value logits;                      // (B,T,vocabulary)
    std::vector<Quantized> quantized;  // of each codebook, layer after layer; empty for dense
    Value commitment;                  // unweighted; null for dense
  };
  // tokens i32 (B,T), T a multiple of `block`. memory: where the tokens continue what it holds, and afterwards it holds
  // them: assigns its Variables, all but the position, which advance() moves. Null: the tokens start a sequence and
  // nothing is kept. block 0: the config's; a generation of token after token has 1, with the same function.
  // Error{shape|usage}.
  Output operator()(Value tokens, const QuantizeContext& context = {}, const TransformerVqMemory* memory = nullptr,
                    std::int64_t block = 0) const;

  const TransformerVqConfig& config() const { return config_; }
  std::span<const std::unique_ptr<VectorQuantizer>> quantizers() const { return quantizers_; }

 private:
  struct Layer : Module {
    Layer(Module& parent, std::string_view name, const TransformerVqConfig& c);
    std::int64_t query_heads, key_heads, dk, dv;
    Variable* gain;
    Linear query, key, value, position, out;
    Variable *u, *w;
    std::unique_ptr<Linear> gate;   // shga
    Variable* feed_gain = nullptr;  // mqa, mha
    std::unique_ptr<Linear> feed_in, feed_out;
  };
  Value layer_step(const Layer& layer, std::size_t index, Value x, const QuantizeContext& context,
                   std::vector<AttentionMemory>& memories, std::int64_t block, Output& out) const;

  TransformerVqConfig config_;
  Embedding embedding_;
  std::deque<Layer> layers_;
  std::vector<std::unique_ptr<VectorQuantizer>> quantizers_;
  Variable* gain_;
  Linear head_;
};

// position += tokens, and back to 0 where it reaches `sequence` (0: never; it then stays below 2^30).
void advance(Tape& tape, const TransformerVqMemory& memory, std::int64_t tokens, std::int64_t sequence = 0);

}  // namespace sg
