// Transformer-VQ (models/transformer_vq.h) over text, images as bytes, or tokens.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "models/sampling.h"
#include "models/transformer_vq_training.h"
#include "tools/data/text.h"
#include "tools/task.h"

namespace sg::tools {

class TransformerVqTask : public Task {
 public:
  explicit TransformerVqTask(const TaskSetup& setup);

  std::vector<Variable*> checkpoint() override { return training_.checkpoint(); }
  std::vector<Variable*> model() override { return model_.variables(); }
  std::vector<Variable*> parameters() override { return model_.parameters(); }
  std::vector<Variable*> state() override;
  Variable& step() override { return training_.step(); }

  std::string data_shape() const override;
  std::int64_t steps_per_epoch() const override;
  std::string unit() const override { return "tokens"; }
  std::int64_t units_per_step() const override { return model_.config().batch * model_.config().update; }

  TaskStep record(Tape& tape, IfUnreachable untrained) override;
  std::vector<std::string> parts() const override;
  void record_part(Tape& tape, std::string_view part) override;
  void start(Backend& backend) override;
  void feed(Program& program, std::int64_t step) override;

  std::vector<std::string> heading() const override;
  std::string progress(const Metrics& m) const override;
  std::vector<CurvePanel> curves() const override;
  std::vector<Figure> evaluate(Backend& backend) override;
  std::string evaluated_on() const override;

  // Of a model of rows: each sequence is the first row after a separator. Null where the data have no rows or attention
  // keeps no memory.
  std::unique_ptr<TokenGenerator> generator(std::int64_t sequences, Backend& backend) override;

  // `length` tokens after the prompt, drawn one by one; the same for the same seed. Of rows, the prompt comes after the
  // token that starts one, of class row_class where rows have classes (else -1); of a text, an empty one is a line
  // break. Error{usage}: attention that keeps no memory, a token outside the vocabulary, a class that is missing or
  // does not exist.
  std::vector<std::int32_t> generate(std::span<const std::int32_t> prompt, std::int64_t length,
                                     const SamplingOptions& options, std::uint32_t seed, Backend& backend,
                                     std::int64_t row_class = -1);
  bool of_bytes() const { return vocabulary_.bytes && vocabulary_.starts == 0; }  // whether tokens make a text

 private:
  const TextData& data() const;  // Error{usage}: made without data
  SegmentSizes sizes() const;
  Tensor segment_of(std::int64_t step) const;

  TextData data_;        // empty without data
  TextData vocabulary_;  // the same without tokens
  TransformerVq model_;
  TransformerVqTraining training_;
};

}  // namespace sg::tools
