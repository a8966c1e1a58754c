// Usage in its three definitions, degenerate inputs of the metrics, evaluation of whole sets, labels.
#include "tools/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "backends/backends.h"
#include "core/program.h"
#include "models/classifier.h"
#include "models/image_metrics.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/tools/temp_folder.h"
#include "tools/evaluation.h"
#include "tools/images.h"

namespace sg::tools {
namespace {

using test::TempFolder;

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Metrics, UsageCountsEachDefinitionOverItsOwnSpan) {
  // Four images of two tokens, six codes. Groups of two images: {0,1,2} and {0,3}; all: {0,1,2,3}.
  const Tensor tokens = Tensor::of<std::int32_t>({4, 2}, {0, 1, 2, 0, 3, 3, 0, 3});
  const CodeUsage u = code_usage(tokens, 6, 1, 2, 3);
  EXPECT_DOUBLE_EQ(u.per_256_images, (3.0 / 6 + 2.0 / 6) / 2);
  EXPECT_DOUBLE_EQ(u.over_set, 4.0 / 6);
  // Windows of three tokens: 012 120 203 033 330 303
  EXPECT_DOUBLE_EQ(u.per_65536_tokens, (3 + 3 + 3 + 2 + 2 + 2) / 6.0 / 6);
  const double p[] = {3 / 8.0, 1 / 8.0, 1 / 8.0, 3 / 8.0};
  double entropy = 0;
  for (const double q : p) entropy -= q * std::log(q);
  EXPECT_NEAR(u.perplexity, std::exp(entropy), 1e-12);
}

TEST(Metrics, UsageOfShortSetsIsThatOfTheWholeSetAndALastSmallGroupDoesNotCount) {
  const Tensor tokens = Tensor::of<std::int32_t>({3, 1}, {0, 1, 1});
  const CodeUsage whole = code_usage(tokens, 2);
  EXPECT_DOUBLE_EQ(whole.per_256_images, 1);
  EXPECT_DOUBLE_EQ(whole.per_65536_tokens, 1);
  EXPECT_DOUBLE_EQ(code_usage(Tensor::of<std::int32_t>({3, 1}, {0, 0, 1}), 2, 1, 2).per_256_images, 0.5);
}

TEST(Metrics, UsageOfSeveralBooksIsTheMeanOfTheirs) {
  // Two images, one place, two books of four codes: book 0 sees {0}, book 1 sees {1,2}.
  const CodeUsage u = code_usage(Tensor::of<std::int32_t>({2, 2}, {0, 1, 0, 2}), 4, 2);
  EXPECT_DOUBLE_EQ(u.over_set, (1.0 / 4 + 2.0 / 4) / 2);
  EXPECT_NEAR(u.perplexity, (1.0 + 2.0) / 2, 1e-12);
}

TEST(Metrics, UsageRefusesTokensThatAreNoCodes) {
  EXPECT_NE(error_of([] {
              code_usage(Tensor::of<std::int32_t>({1, 2}, {0, 5}), 5);
            }).find("is 5, the codes are 0 to 4"),
            std::string::npos);
  EXPECT_NE(error_of([] { code_usage(Tensor({DType::i32, {0, 2}}), 5); }), "");
}

TEST(Metrics, FrechetDistanceOfASetToItselfIsZeroAndOfAShiftIsItsSquare) {
  Tensor a({DType::f64, {20, 3}}), b(a.type());
  for (std::int64_t i = 0; i < a.elements(); ++i) {
    a.set(i, std::sin(1.7 * static_cast<double>(i * i)));
    b.set(i, a.at(i) + (i % 3 == 1 ? 2 : 0));
  }
  EXPECT_NEAR(frechet_distance(a, a), 0, 1e-12);
  EXPECT_NEAR(frechet_distance(a, b), 4, 1e-12);
}

TEST(Metrics, FrechetDistanceHasAValueOrAClearErrorForDegenerateSets) {
  EXPECT_DOUBLE_EQ(frechet_distance(Tensor::full({DType::f32, {5, 4}}, 1), Tensor::full({DType::f32, {3, 4}}, 2)), 4);
  const auto with = [](Tensor b) { return error_of([&] { frechet_distance(Tensor({DType::f32, {5, 4}}), b); }); };
  EXPECT_NE(with(Tensor({DType::f32, {1, 4}})).find("1 rows, at least 2"), std::string::npos);
  EXPECT_NE(with(Tensor({DType::f32, {5, 3}})).find("features of 4 and of 3"), std::string::npos);
  EXPECT_NE(with(Tensor({DType::i32, {5, 4}})).find("a real matrix"), std::string::npos);
  EXPECT_NE(with(Tensor::full({DType::f32, {5, 4}}, std::nan(""))).find("column 0 of row 0 is nan"), std::string::npos);
}

TEST(Metrics, InceptionScoreRunsFromOneToTheNumberOfClasses) {
  Tensor same({DType::f32, {40, 4}}), sure(same.type());
  for (std::int64_t i = 0; i < 40; ++i) {
    same.set(4 * i + 1, 1e4);
    sure.set(4 * i + i % 4, 1e4);  // the others' probability is exactly 0
  }
  EXPECT_DOUBLE_EQ(inception_score(same).mean, 1);
  std::vector<std::int64_t> order(40);
  for (std::int64_t i = 0; i < 40; ++i) order[static_cast<std::size_t>(i)] = i;
  EXPECT_NEAR(inception_score(sure, 10, order).mean, 4, 1e-12);
  EXPECT_NEAR(inception_score(sure, 10, order).deviation, 0, 1e-12);
  EXPECT_DOUBLE_EQ(inception_score(Tensor({DType::f32, {12, 1}})).mean, 1) << "one class";
  EXPECT_NE(error_of([&] {
              inception_score(Tensor({DType::f32, {9, 4}}));
            }).find("9 rows, at least 10"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              inception_score(Tensor::full({DType::f32, {20, 4}}, INFINITY));
            }).find("is inf"),
            std::string::npos);
}

TEST(Metrics, SsimIsOneForEqualImagesAndNeedsAWindow) {
  Tape tape;
  const Value x = tape.constant(0.25, {DType::f64, {2, 11, 12, 2}});
  const Tensor index = eval(structural_similarity(x, x), backend("reference"));
  for (std::int64_t i = 0; i < 2; ++i) EXPECT_DOUBLE_EQ(index.at(i), 1);
  const Value small = tape.constant(0.0, {DType::f32, {2, 10, 12, 1}});
  EXPECT_NE(error_of([&] { structural_similarity(small, small); }).find("no window of 11 x 11"), std::string::npos);
}

// Halves each image; rows and tokens are made up.
Made halved(Value images) {
  Made made;
  made.images = 0.5 * images;
  return made;
}

TEST(Evaluation, FiguresOfAKnownModelAreExact) {
  ImageSet images{5, 12, 12, 1, std::vector<std::uint8_t>(5 * 144, 204)};  // 0.8 everywhere
  const EvaluationResult r = evaluate_images({halved}, images, 2, backend("reference"));
  EXPECT_EQ(r.images, 5);
  EXPECT_NEAR(r.mse, 0.16, 1e-7);
  EXPECT_NEAR(r.l1, 0.4, 1e-7);
  EXPECT_NEAR(r.psnr, -10 * std::log10(0.16), 1e-6);
  const double c1 = 1e-4, luminance = (2 * 0.32 + c1) / (0.64 + 0.16 + c1);  // without variance only this is left
  EXPECT_NEAR(r.ssim, luminance, 1e-3);
  EXPECT_EQ(r.codes, 0);
  EXPECT_TRUE(std::isnan(r.usage) && std::isnan(r.relative_error)) << "no quantizer: no figures of one";
  EXPECT_TRUE(r.judgements.empty());
}

TEST(Evaluation, AJudgeSeesTheModelsImagesAsAnEightBitFileHoldsThem) {
  const ImageSet images = draw_shapes(40, 12, 1, 3);
  ClassifierConfig config;
  config.height = config.width = 12;
  config.hidden = 4;
  config.classes = kShapeKinds;
  const std::vector<ImageJudge> judge{classifier_judge(std::make_shared<Classifier>(config), "runs/c")};
  // What rounding to 8 bits and clamping undo leaves no distance at all.
  const ImageModel nearly{[](Value x) { return Made{x + 0.001, {}, {}, {}}; }};
  const EvaluationResult r = evaluate_images(nearly, images, 16, backend("cpu"), judge);
  ASSERT_EQ(r.judgements.size(), 1u);
  EXPECT_NEAR(r.judgements[0].frechet, 0, 1e-6);
  EXPECT_EQ(judge[0].features, 16);
  EXPECT_NEAR(r.judgements[0].originals.mean, r.judgements[0].made.mean, 1e-9);
  EXPECT_EQ(*r.judgements[0].accuracy_originals, *r.judgements[0].accuracy_made);
  EXPECT_GT(evaluate_images({halved}, images, 16, backend("cpu"), judge).judgements[0].frechet, 1e-5);
  ImageSet other = draw_shapes(12, 16, 1, 3);
  EXPECT_NE(error_of([&] { evaluate_images({halved}, other, 4, backend("cpu"), judge); }).find("12x12x1; these are"),
            std::string::npos);
}

TEST(Evaluation, AnyNumberOfJudgesEachUnderItsOwnNames) {
  const ImageSet images = draw_shapes(20, 12, 1, 3);
  ClassifierConfig config;
  config.height = config.width = 12;
  config.hidden = 4;
  config.classes = kShapeKinds;
  ImageJudge own;  // whose features are mean and least pixel, and whose logits are these
  own.distance = "fid_own", own.distance_name = "FID (own)", own.score = "is_own", own.score_name = "IS (own)";
  own.features = 2;
  own.see = [](Value x) {
    const Value rows = concat({mean(x, {1, 2}), min(x, {1, 2})}, 1);
    return ImageJudge::Seen{rows, rows};
  };
  const std::vector<ImageJudge> judges{classifier_judge(std::make_shared<Classifier>(config), "runs/c"), own};
  const EvaluationResult r = evaluate_images({halved}, images, 16, backend("cpu"), judges);
  const std::vector<Figure> figures = figures_of(r, judges);
  EXPECT_GT(value_of(figures, "fid_classifier_features"), 0);
  EXPECT_GT(value_of(figures, "fid_own"), 0);
  EXPECT_NE(value_of(figures, "fid_own"), value_of(figures, "fid_classifier_features"));
  EXPECT_GE(value_of(figures, "is_own"), 1);
  EXPECT_FALSE(std::isnan(value_of(figures, "classifier_accuracy")));
  EXPECT_EQ(r.judgements[1].accuracy_made, std::nullopt) << "its logits are of no labels";
  const std::string text = to_text(figures);
  EXPECT_NE(text.find("FID (own)"), std::string::npos);
  EXPECT_NE(text.find("not comparable with FID"), std::string::npos);
  EXPECT_EQ(text.find("\nFID "), std::string::npos) << "never plain";
}

TEST(Labels, OfDrawnShapesIdxFilesAndFolders) {
  const Dataset drawn = load_dataset({.name = "synthetic", .limit = 50});
  EXPECT_EQ(drawn.classes, kShapeKinds);
  EXPECT_EQ(std::ssize(drawn.train.labels), 50);
  EXPECT_NO_THROW(require_labels(drawn));

  TempFolder folder;
  Image grey(4, 4, 1, 100);
  for (const char* name : {"train/cat/1.png", "train/cat/2.png", "train/dog/old/3.png", "test/dog/4.png"}) {
    std::filesystem::create_directories((folder.path() / name).parent_path());
    save_png(folder.path() / name, grey);
  }
  const Dataset classes = load_dataset({.name = folder.path().string(), .image_size = 4});
  EXPECT_EQ(classes.classes, 2);
  EXPECT_EQ(classes.train.labels, (std::vector<std::int32_t>{0, 0, 1}));
  EXPECT_EQ(classes.test.labels, (std::vector<std::int32_t>{1}));

  save_png(folder.path() / "train/5.png", grey);
  const Dataset mixed = load_dataset({.name = folder.path().string(), .image_size = 4});
  EXPECT_EQ(mixed.classes, 0);
  EXPECT_NE(error_of([&] { require_labels(mixed); }).find("no labels for its training images"), std::string::npos);

  std::filesystem::remove(folder.path() / "train/5.png");
  const auto bytes = [&](const char* name, std::vector<unsigned char> values) {
    folder.write(name, std::string(values.begin(), values.end()));
  };
  bytes("train-images-idx3-ubyte", {0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9});
  bytes("t10k-images-idx3-ubyte", {0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 9});
  bytes("train-labels-idx1-ubyte", {0, 0, 8, 1, 0, 0, 0, 2, 4, 1});
  bytes("t10k-labels-idx1-ubyte", {0, 0, 8, 1, 0, 0, 0, 1, 6});
  const Dataset idx = load_dataset({.name = folder.path().string()});
  EXPECT_EQ(idx.train.labels, (std::vector<std::int32_t>{4, 1}));
  EXPECT_EQ(idx.classes, 7);
  bytes("train-labels-idx1-ubyte", {0, 0, 8, 1, 0, 0, 0, 3, 4, 1, 2});
  EXPECT_NE(error_of([&] { load_dataset({.name = folder.path().string()}); }).find("3 labels for 2 images"),
            std::string::npos);
  bytes("train-labels-idx1-ubyte", {0, 0, 8, 1, 0, 0, 0, 2, 4});
  EXPECT_NE(error_of([&] { load_dataset({.name = folder.path().string()}); }).find("says 2 labels, the file has 1"),
            std::string::npos);
}

}  // namespace
}  // namespace sg::tools
