#include "tools/evaluation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <numeric>

#include "core/program.h"
#include "models/image_metrics.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tools/data/loader.h"

namespace sg::tools {
namespace {

// Runs a program on all images of a set, batch after batch; a last, shorter batch is filled with its own first image.
// each(first, count) is called after each run: images first to first + count - 1 lie in rows 0 to count - 1.
template <class Each>
void for_each_batch(Program& program, Value input, const ImageSet& images, Each each) {
  Tensor pixels(input.type());
  const std::int64_t batch = input.shape()[0];
  std::vector<std::int32_t> indices(static_cast<std::size_t>(batch));
  for (std::int64_t first = 0; first < images.count; first += batch) {
    const std::int64_t here = std::min(batch, images.count - first);
    for (std::int64_t i = 0; i < batch; ++i)
      indices[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i < here ? first + i : first);
    copy_images(images, indices, pixels);
    program.feed(input, pixels);
    program.run();
    each(first, here);
  }
}

// One value (N, ...) of a batch, collected over all images.
class Collected {
 public:
  Collected(Value value, std::int64_t images) : value_(value), batch_(value.type()) {
    std::vector<std::int64_t> shape = value.shape().vec();
    shape[0] = images;
    all_ = Tensor({value.dtype(), Shape(shape)});
  }
  void take(const Program& program, std::int64_t first, std::int64_t count) {
    program.fetch_into(value_, batch_);
    const std::size_t row = batch_.bytes() / static_cast<std::size_t>(batch_.shape()[0]);
    std::copy_n(batch_.data(), row * static_cast<std::size_t>(count),
                all_.data() + row * static_cast<std::size_t>(first));
  }
  Value value() const { return value_; }
  const Tensor& all() const { return all_; }
  double mean() const {
    double total = 0;
    for (std::int64_t i = 0; i < all_.elements(); ++i) total += all_.at(i);
    return total / static_cast<double>(all_.elements());
  }

 private:
  Value value_;
  Tensor batch_, all_;
};

Value input_of(Tape& tape, const ImageSet& images, std::int64_t batch) {
  return tape.input("images",
                    {DType::f32, {std::min(batch, images.count), images.height, images.width, images.channels}});
}

}  // namespace

double accuracy(const Tensor& logits, std::span<const std::int32_t> labels) {
  const std::int64_t classes = logits.shape()[-1];
  const auto values = logits.span<float>();
  SG_CHECK(std::ssize(labels) * classes == std::ssize(values), "{}", std::ssize(labels));
  std::int64_t right = 0;
  for (std::int64_t i = 0; i < std::ssize(labels); ++i) {
    const auto row = values.begin() + i * classes;
    right += std::max_element(row, row + classes) - row == labels[static_cast<std::size_t>(i)];
  }
  return static_cast<double>(right) / static_cast<double>(labels.size());
}

double cross_entropy(const Tensor& logits, std::span<const std::int32_t> labels) {
  const std::int64_t classes = logits.shape()[-1];
  double total = 0;
  for (std::int64_t i = 0; i < std::ssize(labels); ++i) {
    double most = logits.at(i * classes), sum = 0;
    for (std::int64_t c = 1; c < classes; ++c) most = std::max(most, logits.at(i * classes + c));
    for (std::int64_t c = 0; c < classes; ++c) sum += std::exp(logits.at(i * classes + c) - most);
    total += std::log(sum) + most - logits.at(i * classes + labels[static_cast<std::size_t>(i)]);
  }
  return total / static_cast<double>(labels.size());
}

std::vector<Figure> figures_of(const EvaluationResult& r, std::span<const ImageJudge> judges) {
  SG_CHECK(judges.size() == r.judgements.size(), "{} judges, {} judgements", judges.size(), r.judgements.size());
  std::vector<Figure> all{
      {"images", static_cast<double>(r.images), "", ""},
      {"mse", r.mse, "reconstruction MSE", fmt::format("{:.6f}   (mean over pixels of images in [0,1])", r.mse)},
      {"l1", r.l1, "reconstruction L1", fmt::format("{:.6f}   (mean of |x - x^|)", r.l1)},
      {"psnr", r.psnr, "PSNR", fmt::format("{:.2f} dB   (10 log10(1 / MSE))", r.psnr)}};
  if (!std::isnan(r.ssim))
    all.push_back({"ssim", r.ssim, "SSIM", fmt::format("{:.4f}   (mean over images, 11x11 Gaussian windows)", r.ssim)});
  if (r.codes > 0) {
    const auto share = [&](double usage, const char* over) {
      return fmt::format("{:.2f} %   ({} of {} codes)", 100 * usage, over, r.codes);
    };
    all.push_back({"codes", static_cast<double>(r.codes), "", ""});
    all.push_back({"usage", r.usage, "codes used",
                   fmt::format("{:.0f} of {} ({:.1f} %)   (seen at least once in the whole set)",
                               std::round(r.usage * static_cast<double>(r.codes)), r.codes, 100 * r.usage)});
    all.push_back({"usage_256_images", r.usage_256_images, "usage, 256 images",
                   share(r.usage_256_images, "seen in 256 images, mean over groups,")});
    all.push_back({"usage_65536_tokens", r.usage_65536_tokens, "usage, 65536 tokens",
                   share(r.usage_65536_tokens, "seen in a window of 65536 tokens, mean,")});
    all.push_back({"perplexity", r.perplexity, "perplexity",
                   fmt::format("{:.1f}   (of the codes of the whole set)", r.perplexity)});
  }
  if (!std::isnan(r.relative_error)) {
    all.push_back({"relative_error", r.relative_error, "relative error",
                   fmt::format("{:.4f}   (mean of |z-q|^2 / |z|^2)", r.relative_error)});
    all.push_back({"quantization_mse", r.quantization_mse, "quantization MSE",
                   fmt::format("{:.6f}   (mean of (z-q)^2; its scale is the encoder's)", r.quantization_mse)});
  }
  const auto score = [](const InceptionScore& s) { return fmt::format("{:.4f} +- {:.4f}", s.mean, s.deviation); };
  for (std::size_t i = 0; i < judges.size(); ++i) {
    const ImageJudge& judge = judges[i];
    const Judgement& j = r.judgements[i];
    all.push_back({judge.distance, j.frechet, judge.distance_name,
                   fmt::format("{:.5f}   ({}{})", j.frechet, judge.remark,
                               r.images <= judge.features ? "; fewer images than features: biased" : "")});
    all.push_back(
        {judge.score, j.made.mean, judge.score_name,
         fmt::format("{}   (of the originals: {}; {} splits)", score(j.made), score(j.originals), kScoreSplits)});
    all.push_back({judge.score + "_deviation", j.made.deviation, "", ""});
    all.push_back({judge.score + "_originals", j.originals.mean, "", ""});
    if (!j.accuracy_made) continue;
    all.push_back(
        {"classifier_accuracy", *j.accuracy_made, "classifier accuracy",
         fmt::format("{:.2f} %   (of the originals: {:.2f} %)", 100 * *j.accuracy_made, 100 * *j.accuracy_originals)});
    all.push_back({"classifier_accuracy_originals", *j.accuracy_originals, "", ""});
  }
  return all;
}

Answers answers_of(const ImageJudge& judge, const ImageSet& images, std::int64_t batch, Backend& backend) {
  judge.check(images);
  Tape tape;
  const Value input = input_of(tape, images, batch);
  const ImageJudge::Seen seen = judge.see(input);
  Program program = compile(tape, {seen.features, seen.logits}, backend);
  Collected features(seen.features, images.count), logits(seen.logits, images.count);
  for_each_batch(program, input, images, [&](std::int64_t first, std::int64_t count) {
    features.take(program, first, count);
    logits.take(program, first, count);
  });
  return {features.all(), logits.all()};
}

ImageModel image_model(const VqVae& model) {
  return {[&model](Value images) {
            const VqVae::Output out = model(images);
            return Made{out.images, out.quantized.z, out.quantized.q, out.quantized.indices};
          },
          model.quantizer().codes(), model.quantizer().books()};
}

EvaluationResult evaluate_images(const ImageModel& model, const ImageSet& images, std::int64_t batch, Backend& backend,
                                 std::span<const ImageJudge> judges) {
  const auto start = std::chrono::steady_clock::now();
  for (const ImageJudge& judge : judges) judge.check(images);
  Tape tape;
  const Value input = input_of(tape, images, batch);
  const std::int64_t n = input.shape()[0];
  const Made made = model.make(input);

  std::deque<Collected> collected;  // pointers to its elements are kept
  const auto collect = [&](Value value) { return &collected.emplace_back(value, images.count); };
  const Collected* squared = collect(image_squared_error(made.images, input));
  const Collected* absolute = collect(image_absolute_error(made.images, input));
  const Collected *ssim = nullptr, *tokens = nullptr, *error = nullptr, *relative = nullptr;
  std::vector<std::pair<const Collected*, const Collected*>> seen;  // features and logits of each judge
  if (std::min(images.height, images.width) >= kSsimWindow) ssim = collect(structural_similarity(made.images, input));
  if (made.tokens) tokens = collect(reshape(made.tokens, {n, -1}));
  if (made.z && made.q) {
    const Value row_error = sum(square(made.z - made.q), {-1});
    const Value row_relative = row_error / maximum(sum(square(made.z), {-1}), 1e-30);
    error = collect(mean(reshape(row_error / static_cast<double>(made.z.shape()[-1]), {n, -1}), {1}));
    relative = collect(mean(reshape(row_relative, {n, -1}), {1}));
  }
  for (const ImageJudge& judge : judges) {
    const ImageJudge::Seen values = judge.see(as_stored(made.images));
    const Collected* features = collect(values.features);
    seen.emplace_back(features, collect(values.logits));
  }

  std::vector<Value> fetches;
  for (const Collected& c : collected) fetches.push_back(c.value());
  Program program = compile(tape, fetches, backend);
  for_each_batch(program, input, images, [&](std::int64_t first, std::int64_t count) {
    for (Collected& c : collected) c.take(program, first, count);
  });

  EvaluationResult r;
  r.images = images.count;
  r.mse = squared->mean();
  r.l1 = absolute->mean();
  r.psnr = -10 * std::log10(r.mse);
  if (ssim != nullptr) r.ssim = ssim->mean();
  if (tokens != nullptr) {
    r.codes = model.codes * model.books;
    const CodeUsage usage = code_usage(tokens->all(), model.codes, model.books);
    r.usage = usage.over_set, r.usage_256_images = usage.per_256_images;
    r.usage_65536_tokens = usage.per_65536_tokens, r.perplexity = usage.perplexity;
  }
  if (error != nullptr) {
    r.quantization_mse = error->mean();
    r.relative_error = relative->mean();
  }
  for (std::size_t i = 0; i < judges.size(); ++i) {
    const Answers originals = answers_of(judges[i], images, batch, backend);
    const auto& [features, logits] = seen[i];
    Judgement& j = r.judgements.emplace_back();
    j.frechet = frechet_distance(originals.features, features->all());
    j.originals = inception_score(originals.logits);
    j.made = inception_score(logits->all());
    if (!judges[i].labels || images.labels.empty()) continue;
    j.accuracy_originals = accuracy(originals.logits, images.labels);
    j.accuracy_made = accuracy(logits->all(), images.labels);
  }
  r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return r;
}

EvaluationResult evaluate_model(const VqVae& model, const ImageSet& images, std::int64_t batch, Backend& backend,
                                std::span<const ImageJudge> judges) {
  return evaluate_images(image_model(model), images, batch, backend, judges);
}

Pictures reconstruct(const VqVae& model, const ImageSet& images, std::int64_t count, Backend& backend) {
  return reconstruct(image_model(model), images, count, backend);
}

Pictures reconstruct(const ImageModel& model, const ImageSet& images, std::int64_t count, Backend& backend) {
  count = std::min(count, images.count);
  Tape tape;
  const Value input = input_of(tape, images, count);
  const Value made = model.make(input).images;
  Program program = compile(tape, {made}, backend);
  Pictures out{Tensor(input.type()), Tensor()};
  std::vector<std::int32_t> indices(static_cast<std::size_t>(count));
  std::iota(indices.begin(), indices.end(), 0);
  copy_images(images, indices, out.originals);
  program.feed(input, out.originals);
  program.run();
  out.reconstructions = program.fetch(made);
  return out;
}

}  // namespace sg::tools
