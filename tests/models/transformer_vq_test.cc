// Transformer-VQ as a model: its linear form is its dense form, whatever the heads; memories; causality; generation;
// the training step, what it trains, and its settings.
#include "models/transformer_vq.h"

#include <cmath>
#include <set>

#include "core/autodiff.h"
#include "models/sampling.h"
#include "models/transformer_vq_training.h"
#include "ops/estimator_table.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/support.h"

namespace sg::models_test {
namespace {

TransformerVqConfig small(HeadType head = HeadType::shga) {
  TransformerVqConfig c;
  c.vocabulary = 11;
  c.width = 12;
  c.layers = 2;
  c.head = head;
  c.heads = head == HeadType::shga ? 1 : 3;
  c.key_width = 6;
  c.block = 4;
  c.quantizer.codes = 7;
  c.batch = 2;
  c.update = 8;
  c.sequence = 24;
  c.lr = 1e-2;
  c.clip = 0;
  return c;
}

Tensor some_tokens(std::int64_t lanes, std::int64_t n, std::int64_t vocabulary = 11, std::uint32_t seed = 3) {
  HostRandom random(seed, "tokens");
  Tensor t({DType::i32, {lanes, n}});
  for (std::int64_t i = 0; i < lanes * n; ++i) t.set(i, static_cast<double>(random.below(vocabulary)));
  return t;
}

// The offsets u and w start at 0: other values, so that tests see them.
void set_offsets(const TransformerVq& model) {
  for (Variable* v : model.parameters())
    if (v->name().ends_with(".u") || v->name().ends_with(".w"))
      v->set(normal_init(v->type().shape, 0, 1, 9, v->name()));
}

TEST(TransformerVq, LinearFormIsTheDenseForm) {
  for (const HeadType head : {HeadType::shga, HeadType::mqa, HeadType::mha}) {
    TransformerVqConfig c = small(head), d = c;
    d.attention = KeyAttention::dense_vq;
    d.sequence = d.update;
    const TransformerVq linear(c), dense(d);
    set_offsets(linear), set_offsets(dense);
    Tape tape;
    const Value tokens = tape.constant(some_tokens(2, 24));
    const Value a = linear(tokens).logits, b = dense(tokens).logits;
    const auto exact = exactly(tape, {a, b});
    expect_near(exact[0], numbers(exact[1]), 1e-10, std::string(to_string(head)));
    const auto single = run_once(tape, {a, b}, {}, "cpu");
    expect_near(single[0], numbers(single[1]), 1e-5, std::string(to_string(head)));
    expect_near(single[0], numbers(exact[1]), 1e-4, std::string(to_string(head)));
  }
}

TEST(TransformerVq, PlainKeysAreAnotherFunction) {
  TransformerVqConfig c = small();
  c.attention = KeyAttention::dense;
  c.sequence = c.update;
  const TransformerVq plain(c), quantized(small());
  EXPECT_TRUE(plain.quantizers().empty());
  EXPECT_EQ(plain.parameters().size(), quantized.parameters().size()) << "models of the same size";
  Tape tape;
  const Value tokens = tape.constant(some_tokens(1, 8));
  const auto out = run_once(tape, {sum(abs(plain(tokens).logits - quantized(tokens).logits))});
  EXPECT_GT(out[0].item(), 1e-3);
}

TEST(TransformerVq, SegmentsWithMemoryAreOneLongSegment) {
  for (const HeadType head : {HeadType::shga, HeadType::mha}) {
    const TransformerVq model(small(head));
    set_offsets(model);
    const Tensor tokens = some_tokens(2, 24);
    Tape whole;
    const Value logits = model(whole.constant(tokens)).logits;
    const auto expected = run_once(whole, {logits})[0];

    TransformerVqMemory memory(model.config(), 2);
    Tape tape;
    const TransformerVqEvaluation e = build_evaluation(tape, model, &memory, 2, 8);
    (void)e;
    Tape parts;
    const Value input = parts.input("tokens", {DType::i32, {2, 8}});
    const Value part = model(input, {}, &memory).logits;
    advance(parts, memory, 8);
    Program program = compile(parts, {part}, backend("reference"));
    for (int pass = 0; pass < 2; ++pass) {
      memory.restart();  // the second pass finds what the first one left
      for (std::int64_t s = 0; s < 3; ++s) {
        Tensor segment({DType::i32, {2, 8}});
        for (std::int64_t b = 0; b < 2; ++b)
          for (std::int64_t t = 0; t < 8; ++t) segment.set(b * 8 + t, tokens.at(b * 24 + s * 8 + t));
        program.feed(input, segment);
        program.run();
        const Tensor got = program.fetch(part);
        for (std::int64_t b = 0; b < 2; ++b)
          for (std::int64_t i = 0; i < 8 * 11; ++i)
            ASSERT_NEAR(got.at(b * 88 + i), expected.at(b * 24 * 11 + s * 88 + i), 1e-5)
                << pass << " " << s << " " << i;
      }
    }
  }
}

TEST(TransformerVq, NoLaterTokenReachesAnEarlierLogit) {
  const TransformerVq model(small(HeadType::mqa));
  Tape tape;
  const Value input = tape.input("tokens", {DType::i32, {1, 16}});
  const Value logits = model(input).logits;
  Program program = compile(tape, {logits}, backend("cpu"));
  Tensor tokens = some_tokens(1, 16);
  program.feed(input, tokens);
  program.run();
  const Tensor before = program.fetch(logits);
  for (const std::int64_t changed : {15, 9, 4}) {
    tokens.set(changed, std::fmod(tokens.at(changed) + 1, 11));
    program.feed(input, tokens);
    program.run();
    const Tensor after = program.fetch(logits);
    for (std::int64_t i = 0; i < changed * 11; ++i) ASSERT_EQ(after.at(i), before.at(i)) << changed << " moved " << i;
    double moved = 0;
    for (std::int64_t i = changed * 11; i < (changed + 1) * 11; ++i) moved += std::abs(after.at(i) - before.at(i));
    EXPECT_GT(moved, 0);
  }
}

// Token after token with a state of constant size gives the logits of the training form, so greedy text is its argmax.
TEST(TransformerVq, GreedyGenerationIsTheArgmaxOfTrainingLogits) {
  const TransformerVq model(small());
  TransformerVqMemory memory(model.config(), 1);
  Tape reading, writing;
  const Tensor prompt = some_tokens(1, 6);
  const TransformerVqReading read = build_reading(reading, model, memory, 6);
  const TransformerVqReading write = build_reading(writing, model, memory, 1);
  Program reader = compile(reading, {read.logits}, backend("cpu"));
  Program writer = compile(writing, {write.logits}, backend("cpu"));
  reader.feed(read.tokens, prompt);
  reader.run();
  std::vector<double> text = numbers(prompt);
  HostRandom random(1, "unused");
  Tensor logits = reader.fetch(read.logits);
  std::vector<Tensor> steps{logits};
  while (text.size() < 24) {
    text.push_back(sample_token(logits.span<float>(), {.temperature = 0}, random));
    writer.feed(write.tokens, Tensor::of<std::int32_t>({1, 1}, {static_cast<std::int32_t>(text.back())}));
    writer.run();
    logits = writer.fetch(write.logits);
    steps.push_back(logits);
  }
  Tape tape;
  Tensor all({DType::i32, {1, 24}});
  for (std::int64_t i = 0; i < 24; ++i) all.set(i, text[static_cast<std::size_t>(i)]);
  const Value whole = model(tape.constant(all)).logits;
  const auto out = run_once(tape, {whole, argmax(whole)}, {}, "cpu");
  for (std::int64_t t = 5; t + 1 < 24; ++t) {
    EXPECT_EQ(text[static_cast<std::size_t>(t + 1)], out[1].at(t)) << t;
    for (std::int64_t v = 0; v < 11; ++v)
      EXPECT_NEAR(steps[static_cast<std::size_t>(t - 5)].at(v), out[0].at(t * 11 + v), 1e-4) << t;
  }
}

struct Trained {
  explicit Trained(const TransformerVqConfig& c, std::string_view backend_name = "cpu")
      : model(c),
        training(model),
        step(build_train_step(tape, training)),
        program(compile(tape, step.fetches(), backend(backend_name))) {
    program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, c.lr));
  }
  double train(std::int64_t number) {
    const TransformerVqConfig& c = model.config();
    program.feed(step.tokens, some_tokens(c.batch, c.update + 1, c.vocabulary, static_cast<std::uint32_t>(number % 3)));
    program.run();
    return program.fetch_scalar(step.metric("likelihood"));
  }
  TransformerVq model;
  TransformerVqTraining training;
  Tape tape;
  TransformerVqStep step;
  Program program;
};

TEST(TransformerVq, TrainingStepIsSoundAndLearns) {
  for (const HeadType head : {HeadType::shga, HeadType::mqa, HeadType::mha}) {
    TransformerVqConfig c = small(head);
    c.drop_embedding = c.drop_position = c.drop_residual = c.drop_layer = 0.05;
    Trained run(c);
    EXPECT_TRUE(audit_step(run.tape, run.step, run.training).problems().empty()) << to_string(head);
    const Audit audit = audit_step(run.tape, run.step, run.training);
    const auto wrong = violations(audit, flow_contract(run.step, run.model));
    EXPECT_TRUE(wrong.empty()) << wrong.front() << audit.to_string();
    const double first = run.train(0);
    EXPECT_NEAR(first, std::log(11.0), 0.7);
    double last = 0;
    for (std::int64_t s = 1; s < 90; ++s) last = run.train(s);
    EXPECT_LT(last, 0.6 * first) << to_string(head);
    EXPECT_EQ(run.training.memory()->position().value().item(), 90 % 3 * 8) << "three updates make a sequence";
    for (const char* name : {"usage_min", "usage_mean"}) {
      EXPECT_GT(run.program.fetch_scalar(run.step.metric(name)), 0) << name;
      EXPECT_LE(run.program.fetch_scalar(run.step.metric(name)), 1) << name;
    }
    EXPECT_NEAR(run.program.fetch_scalar(run.step.metric("bits_per_token")), last / std::log(2.0), 1e-5);
  }
}

TEST(TransformerVq, CodebooksFollowTheirKeys) {
  TransformerVqConfig c = small();
  c.lr = 0;
  c.weight_decay = 0;
  Trained run(c);
  run.train(0);
  const double before = run.program.fetch_scalar(run.step.metric("relative_error"));
  for (std::int64_t s = 1; s < 300; ++s) run.train(s);
  EXPECT_LT(run.program.fetch_scalar(run.step.metric("relative_error")), 0.7 * before);
}

TEST(TransformerVq, ResumeIsExact) {
  TransformerVqConfig c = small();
  c.drop_residual = 0.2;
  Trained whole(c), first(c), second(c);
  for (std::int64_t s = 0; s < 10; ++s) whole.train(s);
  for (std::int64_t s = 0; s < 4; ++s) first.train(s);
  const auto from = first.training.checkpoint(), to = second.training.checkpoint();
  std::set<std::string> names;
  for (std::size_t i = 0; i < from.size(); ++i) {
    EXPECT_TRUE(names.insert(from[i]->name()).second) << from[i]->name() << " twice";
    to[i]->set(from[i]->value());
  }
  for (std::int64_t s = 4; s < 10; ++s) second.train(s);
  const auto a = whole.training.checkpoint(), b = second.training.checkpoint();
  for (std::size_t i = 0; i < a.size(); ++i) expect_same_bits(a[i]->value(), b[i]->value(), a[i]->name());
}

TEST(TransformerVq, EveryEstimatorAndDenseFormTrains) {
  for (const std::string& name : estimator_names()) {
    TransformerVqConfig c = small();
    c.layers = 1;
    c.quantizer.estimator = estimator_by_name(name);
    Trained run(c);
    EXPECT_TRUE(std::isfinite(run.train(0))) << name;
    EXPECT_TRUE(std::isfinite(run.train(1))) << name;
    EXPECT_TRUE(audit_step(run.tape, run.step, run.training).problems().empty()) << name;
  }
  for (const KeyAttention attention : {KeyAttention::vq_window, KeyAttention::dense_vq, KeyAttention::dense}) {
    TransformerVqConfig c = small();
    c.attention = attention;
    if (attention != KeyAttention::vq_window) c.sequence = c.update;
    Trained run(c);
    const double first = run.train(0);
    for (std::int64_t s = 1; s < 60; ++s) run.train(s);
    EXPECT_LT(run.train(0), 0.8 * first) << to_string(attention);
  }
}

TEST(TransformerVq, KMeansSetsEveryCodebook) {
  TransformerVqConfig c = small(HeadType::mha);
  c.quantizer.init = CodebookInit::kmeans;
  const TransformerVq model(c);
  const auto error = [&] {
    Tape tape;
    const TransformerVq::Output out = model(tape.constant(some_tokens(4, 16)));
    return run_once(tape, {out.commitment})[0].item();
  };
  const double before = error();
  initialize_codebooks(model, some_tokens(4, 16), backend("cpu"));
  EXPECT_LT(error(), 0.6 * before);
}

TEST(TransformerVq, EvaluationWeighsTokens) {
  const TransformerVq model(small());
  Tape tape;
  const TransformerVqEvaluation e = build_evaluation(tape, model, nullptr, 2, 8);
  const Tensor tokens = some_tokens(2, 9);
  Tensor one({DType::f32, {2, 8}});
  one.set(11, 1);
  const double all =
      run_once(tape, {e.nats}, {{e.tokens, tokens}, {e.weights, Tensor::full({DType::f32, {2, 8}}, 1)}})[0].item();
  const double single = run_once(tape, {e.nats}, {{e.tokens, tokens}, {e.weights, one}})[0].item();
  EXPECT_GT(all, 10 * std::log(2.0));
  EXPECT_GT(single, 0);
  EXPECT_LT(single, all);
}

TEST(TransformerVq, ErrorsNameTheSetting) {
  const auto refused = [](const std::vector<std::string>& parts, auto change) {
    TransformerVqConfig c = small();
    change(c);
    expect_error(ErrorKind::usage, parts, [&] { TransformerVq model(c); });
  };
  refused({"vocabulary"}, [](auto& c) { c.vocabulary = 1; });
  refused({"width is 13"}, [](auto& c) { c.width = 13; });
  refused({"shga"}, [](auto& c) { c.heads = 2; });
  refused({"update of 10", "block of 4"}, [](auto& c) { c.update = 10; });
  refused({"sequence of 20", "update of 8"}, [](auto& c) { c.sequence = 20; });
  refused({"dense", "sequence 24"}, [](auto& c) { c.attention = KeyAttention::dense; });
  refused({"drop_layer"}, [](auto& c) { c.drop_layer = 1; });
  refused({"codes"}, [](auto& c) { c.quantizer.codes = 0; });
  refused({"cosine"}, [](auto& c) { c.quantizer.metric = Metric::cosine; });
  refused({"12", "5 heads"}, [](auto& c) { c.head = HeadType::mqa, c.heads = 5; });
  refused({"commitment"}, [](auto& c) { c.commitment = -1; });
  expect_error(ErrorKind::usage, {"unknown attention 'linear'", "vq-window"}, [] { key_attention_by_name("linear"); });
  expect_error(ErrorKind::usage, {"head type", "mqa"}, [] { head_type_by_name("x"); });
  const TransformerVq model(small());
  Tape tape;
  expect_error(ErrorKind::shape, {"f32[2]"}, [&] { model(tape.constant(1.0, {DType::f32, {2}})); });
  const TransformerVqMemory memory(model.config(), 3);
  expect_error(ErrorKind::shape, {"2 lanes", "3"}, [&] { model(tape.constant(some_tokens(2, 8)), {}, &memory); });
  TransformerVqConfig dense = small();
  dense.attention = KeyAttention::dense;
  dense.sequence = dense.update;
  expect_error(ErrorKind::usage, {"keeps no memory"}, [&] { TransformerVqMemory(dense, 2); });
}

}  // namespace
}  // namespace sg::models_test
