// Perceptual distances and the discriminator: LPIPS' form, VGG16's layout, weights from files, who is trained.
#include <unistd.h>

#include "core/gradcheck.h"
#include "core/safetensors.h"
#include "models/classifier.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "tests/models/vqgan_support.h"

namespace sg {
namespace {

using namespace vqgan_test;

struct TempFile {
  std::filesystem::path path;
  explicit TempFile(const char* name)
      : path(std::filesystem::temp_directory_path() / fmt::format("sg_{}_{}", ::getpid(), name)) {}
  ~TempFile() { std::filesystem::remove(path); }
};

TEST(Perceptual, DistanceIsLpipsFormula) {
  // One layer, the images themselves: 2 x 2 places of 2 channels.
  PerceptualDistance d;
  d.features = [](Value x) { return std::vector<Value>{x}; };
  d.weights = {floats({2}, {0.5f, 2})};
  Tape tape;
  const Value x = tape.constant(floats({1, 1, 2, 2}, {3, 4, 1, 0})),
              y = tape.constant(floats({1, 1, 2, 2}, {4, 3, 0, 0}));
  // Place 1: (.6,.8) against (.8,.6); place 2: (1,0) against zeros.
  const double expected = ((0.5 * 0.04 + 2 * 0.04) + 0.5) / 2;
  const std::vector<Tensor> out = run_once(tape, {d(x, y), d(x, x)});
  EXPECT_EQ(out[0].shape(), Shape({1}));
  EXPECT_NEAR(out[0].item(), expected, 1e-6);
  EXPECT_EQ(out[1].item(), 0);
  d.weights.clear();
  Tape plain;
  EXPECT_NEAR(run_once(plain, {d(plain.constant(floats({1, 1, 1, 2}, {3, 4})),
                                 plain.constant(floats({1, 1, 1, 2}, {4, 3})))})[0]
                  .item(),
              0.08, 1e-6);
}

TEST(Perceptual, ZeroFeaturesPassNoGradientAndOthersTheirs) {
  Tape tape;
  const Value x = tape.constant(floats({3, 2}, {0, 0, 3, 4, 1e-20f, 0}));
  const std::vector<Tensor> out = run_once(tape, {unit_channels(x), gradient(sum(unit_channels(x) * 2.0), x)});
  EXPECT_EQ(out[0].at(0), 0);
  EXPECT_NEAR(out[0].at(2), 0.6, 1e-6);
  for (const double g : numbers(out[1])) EXPECT_TRUE(std::isfinite(g));
  EXPECT_EQ(out[1].at(0), 0);
  EXPECT_NEAR(out[1].at(2), 2 * (0.8 * 0.8 - 0.6 * 0.8) / 5, 1e-6);
  const GradcheckResult checked =
      gradcheck([](Tape&, std::span<const Value> in) { return unit_channels(in[0]); },
                std::vector{floats({2, 3}, {1, -2, 3, 0.5f, 0.1f, -0.7f})}, backend("reference"));
  EXPECT_TRUE(checked.ok) << checked.message;
}

// A VGG16 of weights that are nearly all 0: a path of ones through channel 0 makes its outputs known.
StateFile path_of_ones() {
  StateFile file;
  std::int64_t in = 3;
  for (const auto& [number, out] : std::vector<std::pair<int, std::int64_t>>{{0, 64},
                                                                             {2, 64},
                                                                             {5, 128},
                                                                             {7, 128},
                                                                             {10, 256},
                                                                             {12, 256},
                                                                             {14, 256},
                                                                             {17, 512},
                                                                             {19, 512},
                                                                             {21, 512},
                                                                             {24, 512},
                                                                             {26, 512},
                                                                             {28, 512}}) {
    Tensor w({DType::f32, {out, in, 3, 3}}), b({DType::f32, {out}});
    w.set(number == 0 ? 9 + 4 : 4, 1);  // the centre of output 0's kernel; in the first layer of input channel 1
    b.set(1, 7);                        // output 1 is 7 everywhere
    file.tensors.push_back({fmt::format("features.{}.weight", number), w});
    file.tensors.push_back({fmt::format("features.{}.bias", number), b});
    in = out;
  }
  file.tensors.push_back({"classifier.0.bias", Tensor({DType::f32, {5}})});
  return file;
}

TEST(Perceptual, Vgg16ReadsTorchvisionsLayoutAndComparesTheFiveSlices) {
  const TempFile file("vgg.safetensors"), lin("lin.safetensors");
  StateFile state = path_of_ones();
  save_safetensors(file.path, state);
  const Vgg16Features net(file.path);
  EXPECT_TRUE(net.parameters().empty());  // nothing of it can be trained
  Tape tape;
  Tensor images({DType::f32, {1, 16, 18, 3}});
  for (std::int64_t i = 0; i < images.elements(); ++i) images.set(i, i % 3 == 1 ? static_cast<double>(i % 7) / 7 : -1);
  const std::vector<Value> maps = net(tape.constant(images));
  ASSERT_EQ(maps.size(), 5u);
  const std::int64_t sides[5][3] = {{16, 18, 64}, {8, 9, 128}, {4, 4, 256}, {2, 2, 512}, {1, 1, 512}};
  for (std::size_t l = 0; l < 5; ++l) EXPECT_EQ(maps[l].shape(), Shape({1, sides[l][0], sides[l][1], sides[l][2]}));
  const std::vector<Tensor> out = run_once(tape, maps, {}, "cpu");
  const auto green = [&](std::int64_t y, std::int64_t x) { return (images.at((y * 18 + x) * 3 + 1) + 0.088) / 0.448; };
  for (std::int64_t y = 0; y < 16; ++y)
    for (std::int64_t x = 0; x < 18; ++x) {
      EXPECT_NEAR(out[0].at((y * 18 + x) * 64), green(y, x), 1e-5);
      EXPECT_EQ(out[0].at((y * 18 + x) * 64 + 1), 7);
    }
  double highest = 0;
  for (std::int64_t y = 0; y < 4; ++y)
    for (std::int64_t x = 0; x < 4; ++x) highest = std::max(highest, green(y, x));
  EXPECT_NEAR(out[2].at(0), highest, 1e-5);  // two poolings: the maximum of 4 x 4 pixels

  const PerceptualDistance plain = vgg16_distance(file.path);
  EXPECT_NE(plain.description.find("all weights 1"), std::string::npos);
  StateFile weights;
  for (const auto& [l, c] : std::vector<std::pair<int, std::int64_t>>{{0, 64}, {1, 128}, {2, 256}, {3, 512}, {4, 512}})
    weights.tensors.push_back({fmt::format("lin{}.model.1.weight", l), Tensor::full({DType::f32, {1, c, 1, 1}}, 2)});
  save_safetensors(lin.path, weights);
  const PerceptualDistance doubled = vgg16_distance(file.path, lin.path);
  Tape distances;
  const Value x = distances.constant(images), grey = distances.constant(Tensor({DType::f32, {1, 16, 16, 1}}));
  const Value y = distances.constant(Tensor::full(images.type(), 0.3));
  const std::vector<Tensor> d = run_once(distances, {plain(x, y), doubled(x, y), plain(grey, grey)}, {}, "cpu");
  EXPECT_GT(d[0].item(), 0);
  EXPECT_NEAR(d[1].item(), 2 * d[0].item(), 1e-5);
  EXPECT_EQ(d[2].item(), 0);
}

TEST(Perceptual, FilesThatAreNoVggOrNoWeightsAreRefused) {
  const TempFile file("bad.safetensors");
  StateFile state = path_of_ones();
  state.tensors.erase(state.tensors.begin() + 4);
  save_safetensors(file.path, state);
  expect_error(ErrorKind::io, {"no tensor 'features.5.weight'", "[128,64,3,3]"}, [&] { Vgg16Features net(file.path); });
  state = path_of_ones();
  state.tensors[3].value = Tensor({DType::f32, {63}});
  save_safetensors(file.path, state);
  expect_error(ErrorKind::io, {"features.2.bias", "f32[63]", "[64]"}, [&] { Vgg16Features net(file.path); });
  expect_error(ErrorKind::io, {"lin0.model.1.weight"}, [&] { load_lpips_weights(file.path); });
  save_safetensors(file.path, {{{"lin0.model.1.weight", Tensor::full({DType::f32, {1, 64, 1, 1}}, -0.5)}}, {}});
  expect_error(ErrorKind::io, {"-0.5", "not negative"}, [&] { load_lpips_weights(file.path); });
  Tape tape;
  const Value x = tape.constant(Tensor({DType::f32, {1, 4, 4, 1}}));
  expect_error(ErrorKind::usage, {"none"}, [&] { PerceptualDistance{}(x, x); });
}

TEST(Perceptual, OurClassifierIsADistanceThatTrainsNothingOfItself) {
  ClassifierConfig c;
  c.height = 16, c.width = 12, c.channels = 2, c.hidden = 8;
  const auto classifier = std::make_shared<Classifier>(c);
  const PerceptualDistance d = classifier_distance(classifier, "runs/c");
  EXPECT_NE(d.description.find("not LPIPS"), std::string::npos);
  EXPECT_NE(d.description.find("runs/c"), std::string::npos);
  VqGan model(tiny());
  VqGanTraining training(model, d);
  Tape tape;
  const VqGanStep step = build_train_step(tape, training);
  const Audit audit = audit_step(tape, step, training);
  for (const std::string& problem : audit.problems()) ADD_FAILURE() << problem;
  for (const std::string& violation : violations(audit, flow_contract(step, training))) ADD_FAILURE() << violation;
  for (const Variable* v : classifier->parameters())
    for (const Instr& instr : tape.instrs())
      if (op_def(instr.op).role == Role::assign) {
        EXPECT_NE(tape.variable_of(instr), v);
      }
}

TEST(PatchDiscriminator, MapsOfLogitsHaveTheSizeThatIsForetold) {
  for (const auto& [layers, height, width] :
       std::vector<std::array<std::int64_t, 3>>{{1, 16, 12}, {2, 28, 28}, {3, 28, 30}, {3, 64, 33}}) {
    Module root(1);
    const PatchDiscriminatorConfig config{.ndf = 2, .layers = layers};
    const PatchDiscriminator d(root, "d", 1, config);
    Tape tape;
    const Value logits = d(tape.input("x", {DType::f32, {2, height, width, 1}}));
    const auto size = patch_map_size(config, height, width);
    EXPECT_EQ(logits.shape(), Shape({2, size[0], size[1], 1}));
  }
}

TEST(PatchDiscriminator, InitialValuesAreTheReleasedOnes) {
  Module root(5);
  const PatchDiscriminator d(root, "d", 3, {.ndf = 16, .layers = 2});
  const auto moments = [](const Tensor& t) {
    double sum = 0, squares = 0;
    for (const double x : numbers(t)) sum += x, squares += x * x;
    const double mean = sum / static_cast<double>(t.elements());
    return std::pair(mean, std::sqrt(squares / static_cast<double>(t.elements()) - mean * mean));
  };
  const auto [conv_mean, conv_deviation] = moments(d.find("d.conv1_weight").value());
  EXPECT_NEAR(conv_mean, 0, 1e-3);
  EXPECT_NEAR(conv_deviation, 0.02, 1e-3);
  const auto [norm_mean, norm_deviation] = moments(d.find("d.norm2.weight").value());
  EXPECT_NEAR(norm_mean, 1, 0.01);
  EXPECT_NEAR(norm_deviation, 0.02, 0.006);
  expect_error(ErrorKind::usage, {"d.conv1_bias"}, [&] { d.find("d.conv1_bias"); });  // the batch norm has one
}

TEST(BatchNorm, ShapesItCannotNormaliseAreRefusedAndPassesFollowEachOther) {
  Module root(1);
  const BatchNorm layer(root, "norm", 3);
  Tape tape;
  StepUpdates updates(tape);
  const Value one = tape.constant(Tensor({DType::f32, {1, 1, 1, 3}})),
              wrong = tape.constant(Tensor({DType::f32, {2, 4}}));
  expect_error(ErrorKind::shape, {"one number per channel"}, [&] { layer(one, Pass{.updates = &updates}); });
  expect_error(ErrorKind::shape, {"f32[2,4]", "(N,...,3)"}, [&] { layer(wrong); });
  const auto rows = [&](double v) { return tape.constant(Tensor::full({DType::f32, {2, 3}}, v)); };
  layer(rows(1), Pass{.updates = &updates});
  layer(rows(2), Pass{.updates = &updates});
  updates.commit();
  run_once(tape, {});
  // .9 (.9 * 0 + .1 * 1) + .1 * 2, and variances of 0
  EXPECT_NEAR(root.find("norm.running_mean").value().at(0), 0.29, 1e-6);
  EXPECT_NEAR(root.find("norm.running_var").value().at(2), 0.81, 1e-6);
}

}  // namespace
}  // namespace sg
