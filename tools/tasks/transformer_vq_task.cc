#include "tools/tasks/transformer_vq_task.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>

#include "core/error.h"
#include "core/program_cache.h"

namespace sg::tools {
namespace {

std::string to_string(const TextData& d) {
  return fmt::format("{} tokens, rows of {}, {}", d.vocabulary, d.unit, d.bytes ? "bytes" : "codes") +
         (d.classes() > 0 ? fmt::format(", {} classes", d.classes()) : "");
}

// What to_string() says, as data without tokens.
TextData parse(const std::string& text) {
  TextData d;
  long long vocabulary = 0, unit = 0, classes = 0;
  int end = 0;
  if (std::sscanf(text.c_str(), "%lld tokens, rows of %lld, %n%*5[a-z], %lld classes", &vocabulary, &unit, &end,
                  &classes) < 2 ||
      end == 0 || vocabulary < 2 || unit < 1 || classes < 0 || classes >= vocabulary)
    fail(ErrorKind::io, "the checkpoint is for data of {}; transformer-vq is for streams of tokens", text);
  d.vocabulary = vocabulary;
  d.unit = unit;
  d.bytes = text.compare(static_cast<std::size_t>(end), 5, "bytes") == 0;
  if (unit > 1) d.starts = std::max(classes, 1LL);
  return d;
}

TextData without_tokens(const TaskSetup& setup, const TextData& data) {
  if (setup.data == nullptr) return setup.data_shape.empty() ? TextData{} : parse(setup.data_shape);
  return parse(to_string(data));
}

TransformerVqConfig model_config(const TrainConfig& c, std::int64_t vocabulary) {
  TransformerVqConfig m;
  m.vocabulary = vocabulary;
  m.width = c.dim;
  m.layers = c.layers;
  m.head = head_type_by_name(c.head_type);
  m.heads = m.head == HeadType::shga ? 1 : c.attention_heads;
  m.key_width = c.key_width;
  m.attention = key_attention_by_name(c.attention);
  m.block = c.block;
  m.update = c.update;
  m.sequence = c.sequence;
  m.commitment = c.commitment;
  m.quantizer.codes = c.codes;
  m.quantizer.estimator = estimator_by_name(c.estimator);
  m.quantizer.codebook = codebook_update_by_name(c.codebook);
  m.quantizer.init = codebook_init_by_name(c.init);
  m.quantizer.normal_deviation = c.normal_deviation;
  m.quantizer.ema_decay = c.ema_decay;
  m.quantizer.ema_eps = c.ema_eps;
  m.quantizer.beta = c.beta;
  m.quantizer.inner_rate = c.inner_rate;
  m.quantizer.assignment = assignment_by_name(c.assignment);
  m.quantizer.revival = c.revive;
  m.quantizer.revival_policy = revival_by_name(c.revival_policy);
  m.quantizer.orthogonal = c.orthogonal;
  m.quantizer.entropy = c.entropy;
  m.quantizer.diversity = c.diversity;
  m.quantizer.entropy_temperature = c.entropy_temperature;
  m.drop_embedding = m.drop_residual = c.dropout;
  m.batch = c.batch;
  m.lr = c.lr;
  m.weight_decay = c.weight_decay;
  m.clip = c.clip;
  m.steps = c.steps;
  m.seed = static_cast<std::uint32_t>(c.seed);
  return m;
}

bool remembers(const TransformerVqConfig& c) {
  return c.attention == KeyAttention::vq || c.attention == KeyAttention::vq_window;
}

// Compiled steps of reading, by how many tokens of each lane are read at once. All of them carry the same memory on.
class Reader {
 public:
  Reader(const TransformerVq& model, const TransformerVqMemory& memory, Backend& backend)
      : lanes_(memory.batch()),
        programs_(
            [&model, &memory](Tape& tape, std::span<const TensorType> types) {
              const TransformerVqReading r = build_reading(tape, model, memory, types[0].shape[1]);
              return ProgramCache::Recording{{r.tokens}, {r.logits}};
            },
            backend),
        logits_({DType::f32, {lanes_, model.config().vocabulary}}) {}
  // tokens: as many of each lane, lane after lane. (lanes, vocabulary): logits of what follows.
  const Tensor& read(std::span<const std::int32_t> tokens) {
    const TensorType type{DType::i32, {lanes_, static_cast<std::int64_t>(tokens.size()) / lanes_}};
    ProgramCache::Entry& e = programs_.at({&type, 1});
    e.program->feed(e.recorded.inputs[0], Tensor::of<std::int32_t>(type.shape, tokens));
    e.program->run();
    e.program->fetch_into(e.recorded.fetches[0], logits_);
    return logits_;
  }

 private:
  std::int64_t lanes_;
  ProgramCache programs_;
  Tensor logits_;
};

class RowGenerator : public TokenGenerator {
 public:
  RowGenerator(const TransformerVq& model, const TextData& data, std::int64_t rows, Backend& backend)
      : memory_(model.config(), rows),
        reader_(model, memory_, backend),
        length_(data.unit - 1),
        classes_(data.classes()),
        starts_(static_cast<std::size_t>(rows), static_cast<std::int32_t>(data.contents())),
        logits_({DType::f32, {rows, data.contents()}}) {}

  std::int64_t sequences() const override { return memory_.batch(); }
  std::int64_t vocabulary() const override { return logits_.shape()[1]; }
  std::int64_t longest() const override { return length_; }
  std::int64_t classes() const override { return classes_; }
  void begin(std::span<const std::int32_t> classes) override {
    if (classes.size() != (classes_ > 0 ? starts_.size() : 0))
      fail(ErrorKind::usage, "transformer-vq: {} classes for {} sequences {}", classes.size(), sequences(),
           classes_ > 0 ? "that have a class each" : "that have none");
    for (std::size_t i = 0; i < classes.size(); ++i) {
      if (classes[i] < 0 || classes[i] >= classes_)
        fail(ErrorKind::usage, "transformer-vq: class {}; classes are 0 to {}", classes[i], classes_ - 1);
      starts_[i] = static_cast<std::int32_t>(vocabulary()) + classes[i];
    }
    memory_.restart();
  }
  // A row starts with a token after those of the data, which is never drawn.
  const Tensor& next(std::span<const std::int32_t> previous) override {
    const Tensor& all = reader_.read(previous.empty() ? std::span<const std::int32_t>(starts_) : previous);
    const auto from = all.span<float>();
    const std::int64_t width = all.shape()[1];
    for (std::int64_t r = 0; r < sequences(); ++r)
      std::copy_n(from.begin() + r * width, vocabulary(), logits_.span<float>().begin() + r * vocabulary());
    return logits_;
  }

 private:
  TransformerVqMemory memory_;
  Reader reader_;
  std::int64_t length_, classes_;
  std::vector<std::int32_t> starts_;  // of the rows that are made
  Tensor logits_;
};

}  // namespace

TransformerVqTask::TransformerVqTask(const TaskSetup& setup)
    : Task(setup.config),
      data_(setup.data == nullptr ? TextData{}
                                  : load_text(config().data, config().data_dir, config().limit, config().conditional)),
      vocabulary_(without_tokens(setup, data_)),
      model_(model_config(config(), vocabulary_.vocabulary)),
      training_(model_) {}

std::vector<Variable*> TransformerVqTask::state() {
  std::vector<Variable*> all = model_.state();
  if (training_.memory() != nullptr)
    for (Variable* v : training_.memory()->state()) all.push_back(v);
  return all;
}

const TextData& TransformerVqTask::data() const {
  if (data_.train.empty()) fail(ErrorKind::usage, "{}: made without data, which are needed here", config().model);
  return data_;
}

std::string TransformerVqTask::data_shape() const { return to_string(vocabulary_); }

SegmentSizes TransformerVqTask::sizes() const {
  const TransformerVqConfig& c = model_.config();
  return {c.batch, c.update, c.sequence};
}

std::int64_t TransformerVqTask::steps_per_epoch() const {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(data().train.size()) / units_per_step());
}

TaskStep TransformerVqTask::record(Tape& tape, IfUnreachable untrained) {
  const TransformerVqStep step = build_train_step(tape, training_, untrained);
  TaskStep out{
      step.learning_rate, step.metrics, step.terms, flow_contract(step, model_), {step.total, step.likelihood}};
  if (step.out.commitment) out.forward.push_back(step.out.commitment);
  return out;
}

std::vector<std::string> TransformerVqTask::parts() const {
  return remembers(model_.config()) ? std::vector<std::string>{"evaluate", "generate"}
                                    : std::vector<std::string>{"evaluate"};
}

void TransformerVqTask::record_part(Tape& tape, std::string_view part) {
  if (part == "evaluate")
    build_evaluation(tape, model_, training_.memory(), model_.config().batch, model_.config().update);
  else
    build_reading(tape, model_, *training_.memory(), 1);
}

Tensor TransformerVqTask::segment_of(std::int64_t step) const {
  const SegmentSizes s = sizes();
  Tensor tokens({DType::i32, {s.batch, s.update + 1}});
  copy_segment(data().train, data().unit, s, static_cast<std::uint32_t>(config().seed), step, tokens);
  return tokens;
}

void TransformerVqTask::start(Backend& backend) {
  const Tensor segment = segment_of(0);
  Tensor tokens({DType::i32, {sizes().batch, sizes().update}});
  for (std::int64_t b = 0; b < sizes().batch; ++b)
    for (std::int64_t t = 0; t < sizes().update; ++t)
      tokens.set(b * sizes().update + t, segment.at(b * (sizes().update + 1) + t));
  initialize_codebooks(model_, tokens, backend);
}

void TransformerVqTask::feed(Program& program, std::int64_t step) { program.feed("tokens", segment_of(step)); }

std::vector<std::string> TransformerVqTask::heading() const {
  const TransformerVqConfig& c = model_.config();
  std::vector<std::string> lines{
      fmt::format("{} on {}: {} training and {} held-out tokens of {} ({})", config().model, data().name,
                  data().train.size(), data().test.size(), data().vocabulary, data().origin),
      fmt::format("{} lanes of sequences of {} tokens, {} of them a step", c.batch, c.sequence, c.update)};
  if (c.codebooks() > 0)
    lines.push_back(fmt::format("attention {}: keys in {} codebooks: {}", config().attention, c.codebooks(),
                                model_.quantizers().front()->describe()));
  else
    lines.push_back("attention dense: keys are not quantized, every token sees the others of its step");
  return lines;
}

std::string TransformerVqTask::progress(const Metrics& m) const {
  std::string line = fmt::format("loss {:.4f}  bits/{} {:.3f}", metric(m, "loss"), vocabulary_.bytes ? "byte" : "token",
                                 metric(m, "bits_per_token"));
  if (model_.config().codebooks() > 0)
    line +=
        fmt::format("  codes used {:.0f} %  error {:.3f}", 100 * metric(m, "usage_mean"), metric(m, "relative_error"));
  return line;
}

std::vector<CurvePanel> TransformerVqTask::curves() const {
  return {
      {vocabulary_.bytes ? "bits per byte" : "bits per token", false, false, {{"bits_per_token", "training"}}},
      {"commitment |k - c|^2", true, false, {{"commitment", "sum over codebooks"}}},
      {"codes used in a step, fraction", false, true, {{"usage_mean", "mean over codebooks"}, {"usage_min", "least"}}},
      {"perplexity of the codes", false, true, {{"perplexity", "mean over codebooks"}}},
      {"relative quantization error |k-c|^2 / |k|^2", true, false, {{"relative_error", "mean"}}}};
}

// The held-out stream in `batch` lanes, one after the other. Each lane's memory is carried through; where sequences are
// whole rows, it is dropped after each, as in training. Tokens that start a row are read and not counted.
std::vector<Figure> TransformerVqTask::evaluate(Backend& backend) {
  const std::vector<std::int32_t>& test = data().test;
  const auto n = static_cast<std::int64_t>(test.size());
  const std::int64_t t = model_.config().update,
                     batch = std::min(model_.config().batch, std::max<std::int64_t>(n / 2, 1));
  const std::int64_t units = (n + data().unit - 1) / data().unit, lane = (units + batch - 1) / batch * data().unit;
  std::unique_ptr<TransformerVqMemory> memory;
  if (remembers(model_.config())) memory = std::make_unique<TransformerVqMemory>(model_.config(), batch);
  Tape tape;
  const TransformerVqEvaluation e = build_evaluation(tape, model_, memory.get(), batch, t);
  std::vector<Value> fetches{e.nats};
  fetches.insert(fetches.end(), e.counts.begin(), e.counts.end());
  Program program = compile(tape, fetches, backend);
  Tensor tokens(e.tokens.type()), weights(e.weights.type());
  std::vector<std::vector<double>> counts(e.counts.size());
  double nats = 0, counted = 0;
  const std::int64_t sequence = model_.config().sequence;
  const bool whole_rows = data().starts > 0 && sequence % data().unit == 0;
  for (std::int64_t first = 0; first < lane; first += t) {
    if (memory != nullptr && whole_rows && first % sequence == 0) memory->restart();
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t i = 0; i <= t; ++i) {
        const std::int64_t here = first + i, at = b * lane + here;
        const std::int32_t token = here <= lane && at < n ? test[static_cast<std::size_t>(at)] : 0;
        tokens.set(b * (t + 1) + i, token);
        if (i == 0) continue;
        const bool counts_here = here <= lane && at < n && token < data().contents();
        weights.set(b * t + i - 1, counts_here);
        counted += counts_here;
      }
    program.feed(e.tokens, tokens);
    program.feed(e.weights, weights);
    program.run();
    nats += program.fetch_scalar(e.nats);
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const Tensor c = program.fetch(e.counts[i]);
      counts[i].resize(static_cast<std::size_t>(c.elements()));
      for (std::int64_t j = 0; j < c.elements(); ++j) counts[i][static_cast<std::size_t>(j)] += c.at(j);
    }
  }
  const double bits = nats / counted / std::numbers::ln2;
  const char* each = vocabulary_.bytes ? "byte" : "token";
  std::vector<Figure> figures{
      {"tokens", counted, "", ""},
      {fmt::format("bits_per_{}", each), bits, "held-out likelihood", fmt::format("{:.4f} bits per {}", bits, each)}};
  if (counts.empty()) return figures;
  double least = 1, mean = 0, perplexity = 0;
  for (const auto& book : counts) {
    double used = 0, total = 0, entropy = 0;
    for (const double c : book) used += c > 0, total += c;
    for (const double c : book)
      if (c > 0) entropy -= c / total * std::log(c / total);
    const double share = used / static_cast<double>(book.size());
    least = std::min(least, share);
    mean += share / static_cast<double>(counts.size());
    perplexity += std::exp(entropy) / static_cast<double>(counts.size());
  }
  figures.push_back({"usage_min", least, "", ""});
  figures.push_back(
      {"usage_mean", mean, "codes used",
       fmt::format("{:.1f} % in the mean over codebooks, {:.1f} % in the least", 100 * mean, 100 * least)});
  figures.push_back({"perplexity", perplexity, "code perplexity", fmt::format("{:.1f}", perplexity)});
  return figures;
}

std::string TransformerVqTask::evaluated_on() const {
  return fmt::format("the {} held-out tokens of {}", data().test.size(), data().name);
}

std::unique_ptr<TokenGenerator> TransformerVqTask::generator(std::int64_t sequences, Backend& backend) {
  if (vocabulary_.starts == 0 || !remembers(model_.config())) return nullptr;
  return std::make_unique<RowGenerator>(model_, vocabulary_, sequences, backend);
}

std::vector<std::int32_t> TransformerVqTask::generate(std::span<const std::int32_t> given, std::int64_t length,
                                                      const SamplingOptions& options, std::uint32_t seed,
                                                      Backend& backend, std::int64_t row_class) {
  const TransformerVqConfig& c = model_.config();
  if (!remembers(c))
    fail(ErrorKind::usage, "generate: the run's attention is {}, which keeps no memory; train one with --attention vq",
         sg::to_string(c.attention));
  if (length < 1) fail(ErrorKind::usage, "generate: {} tokens; at least 1", length);
  validate(options);
  std::vector<std::int32_t> prompt(given.begin(), given.end());
  const std::int64_t classes = vocabulary_.classes();
  if (classes > 0 ? row_class < 0 || row_class >= classes : row_class >= 0)
    fail(ErrorKind::usage, "generate: {}; the run's rows have {}",
         row_class < 0 ? "--class is needed" : fmt::format("--class {}", row_class),
         classes > 0 ? fmt::format("classes 0 to {}", classes - 1) : "no classes");
  if (vocabulary_.starts > 0)
    prompt.insert(prompt.begin(),
                  static_cast<std::int32_t>(vocabulary_.contents() + std::max<std::int64_t>(row_class, 0)));
  if (prompt.empty()) prompt.push_back('\n');
  for (const std::int32_t token : prompt)
    if (token < 0 || token >= c.vocabulary)
      fail(ErrorKind::usage, "generate: token {} of the prompt; tokens are 0 to {}", token, c.vocabulary - 1);

  TransformerVqMemory memory(c, 1);
  Reader reader(model_, memory, backend);
  std::size_t read = 0;
  const auto block = static_cast<std::size_t>(c.block);
  // All but at least the last token in steps of a block.
  for (; read + block < prompt.size(); read += block) reader.read(std::span(prompt).subspan(read, block));
  for (; read + 1 < prompt.size(); ++read) reader.read(std::span(prompt).subspan(read, 1));
  const Tensor* logits = &reader.read(std::span(prompt).last(1));
  HostRandom random(seed, "generate");
  std::vector<std::int32_t> out;
  for (std::int64_t i = 0; i < length; ++i) {
    out.push_back(sample_token(logits->span<float>(), options, random));
    if (i + 1 < length) logits = &reader.read(std::span(out).last(1));
  }
  return out;
}

TaskDef transformer_vq_task() {
  const auto sized = [](std::int64_t dim, std::int64_t layers, std::int64_t codes, std::int64_t block) {
    return [=](TrainConfig& c) {
      c.data = "wordnet";
      c.dim = dim, c.layers = layers, c.codes = codes, c.block = block, c.update = 4 * block, c.sequence = 16 * block;
      c.codebook = "ema-loss", c.init = "normal", c.revive = 0, c.dropout = 0, c.batch = 8;
      c.optimizer = "adamw", c.weight_decay = 2e-4, c.clip = 1, c.lr = 1e-3, c.schedule = "cosine", c.warmup = 50;
      c.steps = 1000;
    };
  };
  return {"transformer-vq",
          "language model with quantized keys and linear-time attention, on text, images as bytes, or tokens",
          "transformer estimator codes codebook",
          [](const TaskSetup& setup) { return std::make_unique<TransformerVqTask>(setup); },
          {{"small", sized(128, 4, 128, 64)}, {"base", sized(256, 8, 256, 128)}},
          [](const TrainConfig& c) {
            if (c.optimizer != "adamw")
              fail(ErrorKind::usage, "--optimizer {}: transformer-vq is trained by adamw (betas 0.9 and 0.98)",
                   c.optimizer);
            validate(model_config(c, 256));
          }};
}

}  // namespace sg::tools
