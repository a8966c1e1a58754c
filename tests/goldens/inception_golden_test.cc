// FID's Inception-v3 against PyTorch's numbers (tools/goldens/inception.py), with made-up weights.
#include <cmath>

#include "core/error.h"
#include "core/program.h"
#include "models/inception.h"
#include "ops/shape_ops.h"
#include "tests/goldens/golden.h"
#include "tests/support/expect.h"
#include "tools/judge.h"

namespace sg::test {
namespace {

// Restates the generator's `fill`.
StateFile weights_of(const Json& file) {
  StateFile state;
  std::uint32_t stream = 0;
  for (const auto& [name, shape] : file.at("tensors").items()) {  // sorted, as the generator's are
    Tensor t({DType::f32, Shape(shape.get<std::vector<std::int64_t>>())});
    const std::vector<double> u = uniforms(file.at("seed"), 0, stream++, t.elements());
    const double bound = std::sqrt(6.0 * static_cast<double>(t.shape()[0]) / static_cast<double>(t.elements()));
    const bool positive = name.ends_with("bn.weight") || name.ends_with("running_var");
    const auto to = t.span<float>();
    for (std::size_t i = 0; i < u.size(); ++i)
      to[i] = static_cast<float>(t.shape().rank() > 1 ? (2 * u[i] - 1) * bound
                                 : positive           ? 0.5 + u[i]
                                                      : 0.2 * (u[i] - 0.5));
    state.tensors.push_back({name, std::move(t)});
  }
  return state;
}

class InceptionGolden : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    file_ = new Json(golden("inception.json"));
    state_ = new StateFile(weights_of(*file_));
  }
  static void TearDownTestSuite() {
    delete file_;
    delete state_;
  }
  static Json* file_;
  static StateFile* state_;
};
Json* InceptionGolden::file_;
StateFile* InceptionGolden::state_;

TEST_F(InceptionGolden, FeaturesAndLogitsAgreeWithPyTorch) {
  const InceptionV3 network(*state_, "made-up");
  EXPECT_TRUE(network.parameters().empty()) << "nothing of it can be trained";
  std::uint32_t number = 0;
  for (const Json& c : file_->at("cases")) {
    const auto shape = c.at("shape").get<std::vector<std::int64_t>>();
    const std::int64_t side = c.at("side"), kept = file_->at("kept");
    Tensor images({DType::f32, Shape(shape)});
    const std::vector<double> u =
        uniforms(file_->at("seed"), 1, file_->at("image_stream").get<std::uint32_t>() + number++, images.elements());
    for (std::size_t i = 0; i < u.size(); ++i)
      images.span<float>()[i] = static_cast<float>(std::floor(256 * u[i]) / 255);
    Tape tape;
    const Value x = tape.constant(images), resized = resize_bilinear(x, side, side), pooled = network.pooled(x, side),
                logits = network.logits_of(pooled);
    ASSERT_EQ(pooled.shape(), Shape({shape[0], InceptionV3::kFeatures}));
    ASSERT_EQ(logits.shape(), Shape({shape[0], InceptionV3::kClasses}));
    Program program = compile(tape, {resized, pooled, logits}, backend("cpu"));
    program.run();
    const Tensor row = program.fetch(resized), features = program.fetch(pooled), answers = program.fetch(logits);
    for (std::size_t i = 0; i < c.at("resized").size(); ++i)
      EXPECT_NEAR(row.at((side + 7 * static_cast<std::int64_t>(i)) * shape[3]), c.at("resized")[i].get<double>(), 1e-6)
          << i;
    // Its 94 convolutions lie between: f32 against f64.
    const auto check = [&](const Tensor& all, const Json& some) {
      std::size_t i = 0;
      const std::int64_t width = all.shape()[1];
      for (std::int64_t r = 0; r < shape[0]; ++r)
        for (std::int64_t k = 0; k < width; k += kept, ++i)
          EXPECT_NEAR(all.at(r * width + k), some[i].get<double>(), 1e-4) << "image " << r << ", " << k;
      EXPECT_EQ(i, some.size());
    };
    check(features, c.at("features"));
    check(answers, c.at("logits"));
  }
}

TEST_F(InceptionGolden, FilesThatAreNotItsWeightsAreRefused) {
  StateFile state = *state_;
  const auto at = std::find_if(state.tensors.begin(), state.tensors.end(),
                               [](const NamedTensor& t) { return t.name == "Mixed_6c.branch7x7dbl_3.conv.weight"; });
  ASSERT_NE(at, state.tensors.end());
  at->value = Tensor({DType::f32, {160, 160, 7, 1}});
  SG_EXPECT_ERROR(io, "weights.safetensors: tensor 'Mixed_6c.branch7x7dbl_3.conv.weight' is f32[160,160,7,1]",
                  InceptionV3(state, "weights.safetensors"));
  state.tensors.erase(at);
  SG_EXPECT_ERROR(io, "no tensor 'Mixed_6c.branch7x7dbl_3.conv.weight' [160,160,1,7]",
                  InceptionV3(state, "weights.safetensors"));
  SG_EXPECT_ERROR(io, "nowhere.safetensors", tools::inception_judge("nowhere.safetensors"));
}

TEST_F(InceptionGolden, OfImagesThatItCannotSee) {
  const InceptionV3 network(*state_, "made-up");
  Tape tape;
  SG_EXPECT_ERROR(shape, "(N,H,W,1 or 3)", network.pooled(tape.constant(Tensor({DType::f32, {1, 8, 8, 2}}))));
  SG_EXPECT_ERROR(shape, "a side of 74", network.pooled(tape.constant(Tensor({DType::f32, {1, 8, 8, 1}})), 74));
}

}  // namespace
}  // namespace sg::test
