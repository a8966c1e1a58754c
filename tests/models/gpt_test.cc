#include "models/gpt.h"

#include "core/autodiff.h"
#include "core/gradcheck.h"
#include "tests/models/support.h"

namespace sg::models_test {
namespace {

GptConfig small() {
  GptConfig c;
  c.vocabulary = 11;
  c.length = 6;
  c.dim = 8;
  c.layers = 2;
  c.heads = 2;
  c.batch = 3;
  c.seed = 4;
  return c;
}

Tensor ints(Shape shape, const std::vector<std::int32_t>& v) { return Tensor::of<std::int32_t>(shape, v); }

const std::vector<std::int32_t> kTokens{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3};

TEST(Gpt, StartsNearEvenOdds) {
  const Gpt model(small());
  Tape tape;
  const GptEvaluation e = build_evaluation(tape, model, 3);
  const auto out = run_once(tape, {e.nats}, {{e.tokens, ints({3, 6}, kTokens)}, {e.weights, floats({3}, {1, 1, 0})}});
  EXPECT_NEAR(out[0].item() / 12, std::log(11.0), 0.05) << "nats per token of two sequences, the third has weight 0";
}

// Which logits change where one token does: those after it, and only those.
TEST(Gpt, SeesEarlierTokensOnly) {
  const Gpt model(small());
  const auto logits = [&](const std::vector<std::int32_t>& tokens) {
    Tape tape;
    return run_once(tape, {model.logits(tape.constant(ints({1, 6}, tokens)))})[0];
  };
  const std::vector<std::int32_t> base(kTokens.begin(), kTokens.begin() + 6);
  const Tensor before = logits(base);
  for (std::int64_t changed = 0; changed < 6; ++changed) {
    std::vector<std::int32_t> other = base;
    other[static_cast<std::size_t>(changed)] = 10;
    const Tensor after = logits(other);
    for (std::int64_t t = 0; t < 6; ++t) {
      double difference = 0;
      for (std::int64_t v = 0; v < 11; ++v) difference += std::abs(after.at(t * 11 + v) - before.at(t * 11 + v));
      if (t <= changed)
        EXPECT_EQ(difference, 0) << "token " << changed << " reaches the logits of token " << t;
      else
        EXPECT_GT(difference, 1e-7) << "token " << changed << " does not reach the logits of token " << t;
    }
  }
}

TEST(Gpt, CachedStepsGiveTheLogitsOfTheWholeSequence) {
  GptConfig config = small();
  config.classes = 4;
  const Gpt model(config);
  const Tensor classes = ints({3}, {2, 0, 3}), tokens = ints({3, 6}, kTokens);
  for (const char* name : {"reference", "cpu"}) {
    Tape whole;
    const Tensor expected =
        run_once(whole, {model.logits(whole.constant(tokens), whole.constant(classes))}, {}, name)[0];

    GptGenerator generator(model, 3, backend(name));
    for (int round = 0; round < 2; ++round) {  // the second with what the first left in the cache
      generator.begin(std::vector<std::int32_t>{2, 0, 3});
      std::vector<std::int32_t> previous;
      for (std::int64_t t = 0; t < 6; ++t) {
        const Tensor& out = generator.next(previous);
        previous.clear();
        for (std::int64_t n = 0; n < 3; ++n) {
          for (std::int64_t v = 0; v < 11; ++v)
            EXPECT_NEAR(out.at(n * 11 + v), expected.at((n * 6 + t) * 11 + v), 1e-6)
                << name << ", sequence " << n << ", position " << t;
          previous.push_back(static_cast<std::int32_t>(tokens.at(n * 6 + t)));
        }
      }
      expect_error(ErrorKind::usage, {"6 tokens at most"}, [&] { generator.next(previous); });
    }
  }
}

TEST(Gpt, GeneratesTheSameForTheSameSeedHoweverManyAtOnce) {
  const Gpt model(small());
  GptGenerator three(model, 3, backend("cpu")), one(model, 1, backend("cpu"));
  const Tensor a = generate(three, 6, {}, 7), b = generate(three, 6, {}, 7), c = generate(three, 6, {}, 8);
  expect_same_bits(a, b);
  EXPECT_FALSE(std::equal(a.data(), a.data() + a.bytes(), c.data())) << "another seed";
  const Tensor first = generate(one, 6, {}, 7);
  for (std::int64_t t = 0; t < 6; ++t) EXPECT_EQ(first.at(t), a.at(t));
  expect_error(ErrorKind::usage, {"7 tokens", "1 to 6"}, [&] { generate(one, 7, {}, 7); });
  expect_error(ErrorKind::usage, {"1 classes given"}, [&] { generate(one, 6, {}, 7, std::vector<std::int32_t>{0}); });
}

TEST(Gpt, EveryParameterIsTrained) {
  GptConfig config = small();
  config.classes = 2;
  Gpt model(config);
  GptTraining training(model);
  Tape tape;
  const GptTrainStep step = build_train_step(tape, training);
  const Audit found = audit(tape, step.terms, training.optimizer().parameters(), model.state());
  EXPECT_TRUE(found.problems().empty()) << found.problems().front();
}

TEST(Gpt, LearnsASequenceByHeart) {
  GptConfig config = small();
  config.dropout = 0.05;
  config.corruption = 0.05;
  Gpt model(config);
  GptTraining training(model);
  Tape tape;
  const GptTrainStep step = build_train_step(tape, training);
  Program program = compile(tape, {step.loss}, backend("cpu"));
  program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, 1e-2));
  program.feed(step.tokens, ints({3, 6}, kTokens));
  double first = 0;
  for (int i = 0; i < 150; ++i) {
    program.run();
    if (i == 0) first = program.fetch_scalar(step.loss);
  }
  EXPECT_NEAR(first, std::log(11.0), 0.1);
  Tape held;
  const GptEvaluation e = build_evaluation(held, model, 3);
  const auto out = run_once(held, {e.nats}, {{e.tokens, ints({3, 6}, kTokens)}, {e.weights, floats({3}, {1, 1, 1})}});
  // Which of three sequences it is can be told from the first token only: log 3 nats each.
  EXPECT_LT(out[0].item(), 3 * std::log(3.0) + 1.0);
}

TEST(Gpt, CorruptionChangesInputsInTrainingOnly) {
  GptConfig config = small();
  config.corruption = 0.9;
  config.dropout = 0;
  const Gpt model(config);
  Tape tape;
  const Value tokens = tape.constant(ints({3, 6}, kTokens));
  const Value state = tape.constant(ints({2}, {1, 0}));
  const auto out = run_once(tape, {model.logits(tokens), model.logits(tokens), model.logits(tokens, {}, state)});
  expect_same_bits(out[0], out[1]);
  for (std::int64_t v = 0; v < 11; ++v) EXPECT_EQ(out[0].at(v), out[2].at(v)) << "the start token is never replaced";
  double difference = 0;
  for (std::int64_t i = 0; i < out[0].elements(); ++i) difference += std::abs(out[0].at(i) - out[2].at(i));
  EXPECT_GT(difference, 1e-3);
}

TEST(Gpt, RefusesWhatMakesNoSense) {
  GptConfig config = small();
  config.heads = 3;
  expect_error(ErrorKind::usage, {"dim 8", "3 heads"}, [&] { Gpt model(config); });
  config = small();
  config.vocabulary = 0;
  expect_error(ErrorKind::usage, {"vocabulary is 0"}, [&] { validate(config); });
  config = small();
  config.corruption = 1;
  expect_error(ErrorKind::usage, {"corruption is 1"}, [&] { validate(config); });
  const Gpt model(small());
  Tape tape;
  expect_error(ErrorKind::shape, {"at most 6"}, [&] { model.logits(tape.constant(ints({2, 9}, kTokens))); });
  expect_error(ErrorKind::usage, {"0 classes", "some are given"}, [&] {
    model.logits(tape.constant(ints({3, 6}, kTokens)), tape.constant(ints({3}, {0, 0, 0})));
  });
}

}  // namespace
}  // namespace sg::models_test
