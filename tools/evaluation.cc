#include "tools/evaluation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <span>

#include "core/program.h"
#include "tools/data/loader.h"

namespace sg::tools {

EvaluationResult evaluate_model(const VqVae& model, const ImageSet& images, std::int64_t batch, Backend& backend) {
  const auto start = std::chrono::steady_clock::now();
  const VqVaeConfig& c = model.config();
  batch = std::min(batch, images.count);
  Tape tape;
  const Evaluation evaluation = build_evaluation(tape, model, batch);
  Program program = compile(
      tape, {evaluation.squared_error, evaluation.quantization_error, evaluation.relative_error, evaluation.counts},
      backend);

  Tensor pixels({DType::f32, {batch, c.height, c.width, c.channels}}), weights({DType::f32, {batch}}),
      counts(evaluation.counts.type());
  std::vector<std::int32_t> indices(static_cast<std::size_t>(batch));
  std::vector<double> totals(static_cast<std::size_t>(counts.elements()));
  double squared = 0, quantization = 0, relative = 0;
  for (std::int64_t first = 0; first < images.count; first += batch) {
    // A last, shorter batch is filled with its own first image at weight 0.
    const std::int64_t here = std::min(batch, images.count - first);
    for (std::int64_t i = 0; i < batch; ++i) {
      indices[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i < here ? first + i : first);
      weights.set(i, i < here ? 1 : 0);
    }
    copy_images(images, indices, pixels);
    program.feed(evaluation.images, pixels);
    program.feed(evaluation.weights, weights);
    program.run();
    squared += program.fetch_scalar(evaluation.squared_error);
    quantization += program.fetch_scalar(evaluation.quantization_error);
    relative += program.fetch_scalar(evaluation.relative_error);
    program.fetch_into(evaluation.counts, counts);
    for (std::size_t k = 0; k < totals.size(); ++k) totals[k] += counts.at(static_cast<std::int64_t>(k));
  }

  EvaluationResult r;
  r.images = images.count;
  const Quantizer& quantizer = model.quantizer();
  r.codes = quantizer.all_codes();
  const double n = static_cast<double>(images.count), rows = n * static_cast<double>(evaluation.rows);
  r.mse = squared / (n * static_cast<double>(images.image_bytes()));
  r.psnr = -10 * std::log10(r.mse);
  r.quantization_mse = quantization / (rows * static_cast<double>(evaluation.width));
  r.relative_error = relative / rows;
  const auto per_book = static_cast<std::size_t>(quantizer.codes());
  for (std::size_t book = 0; book < totals.size(); book += per_book) {
    const std::span<const double> counted(totals.data() + book, per_book);
    const double all = std::accumulate(counted.begin(), counted.end(), 0.0);
    double entropy = 0;
    for (const double count : counted)
      if (count > 0) entropy -= count / all * std::log(count / all), r.usage += 1 / static_cast<double>(r.codes);
    r.perplexity += std::exp(entropy) / static_cast<double>(quantizer.books());
  }
  r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return r;
}

Pictures reconstruct(const VqVae& model, const ImageSet& images, std::int64_t count, Backend& backend) {
  const VqVaeConfig& c = model.config();
  count = std::min(count, images.count);
  Tape tape;
  const Evaluation evaluation = build_evaluation(tape, model, count);
  Program program = compile(tape, {evaluation.reconstructions}, backend);
  Pictures out{Tensor({DType::f32, {count, c.height, c.width, c.channels}}), Tensor()};
  std::vector<std::int32_t> indices(static_cast<std::size_t>(count));
  std::iota(indices.begin(), indices.end(), 0);
  copy_images(images, indices, out.originals);
  program.feed(evaluation.images, out.originals);
  program.run();
  out.reconstructions = program.fetch(evaluation.reconstructions);
  return out;
}

}  // namespace sg::tools
