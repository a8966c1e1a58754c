// Each command of `bench` on tiny sizes: it runs, its figures are all there and are JSON, wrong words are errors. No
// time is asserted.
#include <cmath>
#include <nlohmann/json.hpp>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "tests/tools/cli.h"
#include "tests/tools/temp_folder.h"
#include "tools/bench_cases.h"
#include "tools/bench_floor.h"
#include "tools/bench_step.h"
#include "tools/files.h"
#include "tools/kernel_lab/lab.h"
#include "tools/task.h"

namespace sg::test {
namespace {

using namespace tools;
using Json = nlohmann::json;

const std::string kQuick = " --rounds 2 --slice 0 --threads 1";

// The figures of the command, which it writes to a file while the table goes to the terminal.
Json figures_of(const std::string& arguments, std::string* table = nullptr) {
  const TempFolder folder;
  const std::filesystem::path file = folder / "figures.json";
  const Outcome out = stopgrad("bench " + arguments + " --json " + file.string());
  EXPECT_EQ(out.code, 0) << out.text;
  if (table != nullptr) *table = out.text;
  const auto bytes = read_file(file);
  Json figures = Json::parse(reinterpret_cast<const char*>(bytes.data()),
                             reinterpret_cast<const char*>(bytes.data()) + bytes.size());
  EXPECT_EQ(figures["threads"], 1);
  EXPECT_FALSE(figures["processor"].get<std::string>().empty());
  return figures;
}

// Every variant of every group has a time and a ratio with its spread.
void expect_groups(const Json& figures, std::size_t groups, std::size_t variants) {
  ASSERT_EQ(figures["groups"].size(), groups);
  for (const Json& group : figures["groups"]) {
    EXPECT_GE(group["variants"].size(), variants) << group["title"];
    for (const Json& v : group["variants"])
      for (const char* quantity : {"seconds", "ratio"}) {
        EXPECT_GT(v[quantity]["median"].get<double>(), 0) << v["name"];
        EXPECT_LE(v[quantity]["least"].get<double>(), v[quantity]["median"].get<double>());
        EXPECT_LE(v[quantity]["median"].get<double>(), v[quantity]["greatest"].get<double>());
      }
  }
}

const std::string kSmallStep =
    "step --repeats 2 --warm 0 --threads 1 --hidden 8 --residual-hidden 4 --codes 16 --code-dim 4 --batch 4";

TEST(Bench, OpsCoverTheWholeListAgainstFloors) {
  std::string table;
  const Json figures = figures_of("ops --sizes 128x16" + kQuick, &table);
  expect_groups(figures, bench_cases().size(), 2);
  EXPECT_EQ(figures["ceilings"]["variants"].size(), 4u);
  for (const BenchCase& c : bench_cases()) SG_EXPECT_CONTAINS(table, c.name);
  const Json one = figures_of("ops --sizes 64x8,32x8 --only softmax" + kQuick);
  expect_groups(one, 4, 2);  // softmax, forward and with gradients, at two sizes
  EXPECT_EQ(one["groups"][0]["variants"][0]["bytes"], 2 * 64 * 8 * 4);
}

TEST(Bench, NearestRotationAndQuantizer) {
  expect_groups(figures_of("nearest --sizes 32x8x16,16x4x8" + kQuick), 2, 4);
  expect_groups(figures_of("quantizer --sizes 32x8x16" + kQuick), 1, 2);
  const Json rotation = figures_of("rotation --sizes 40x16,7x5" + kQuick);
  expect_groups(rotation, 2, 5);
  for (const Json& group : rotation["groups"]) EXPECT_LT(group["largest_difference"].get<double>(), 1e-4);
}

TEST(Bench, StepByItsParts) {
  const Json whole = figures_of(kSmallStep);
  EXPECT_FALSE(whole.contains("floor"));
  const Json floor = figures_of(kSmallStep + " --floor --rounds 2 --slice 0");
  EXPECT_GT(floor["floor"]["step_to_products"]["median"].get<double>(), 0);
  for (const Json& part : floor["parts"]) {
    EXPECT_TRUE(part["product"].get<bool>()) << part["op"];
    EXPECT_GT(part["flop"].get<double>(), 0) << part["op"];
  }
  std::string table;
  const Json parts = figures_of(kSmallStep + " --parts --rounds 2 --slice 0", &table);
  EXPECT_GT(parts["parts"].size(), floor["parts"].size());
  SG_EXPECT_CONTAINS(table, "nearest_code");
  SG_EXPECT_CONTAINS(table, "row_program");
}

TEST(Bench, StepAgainstOneWithOtherSettings) {
  const Json figures = figures_of(kSmallStep + " --against '--estimator rotation' --rounds 2 --slice 0");
  ASSERT_EQ(figures["against"]["variants"].size(), 2u);
  EXPECT_EQ(figures["against"]["variants"][1]["name"], "--estimator rotation");
  EXPECT_GT(figures["against"]["variants"][1]["ratio"]["median"].get<double>(), 0);
  expect_fails("bench " + kSmallStep + " --against '--estimator magic'", 2, "unknown estimator 'magic'");
  expect_fails("bench " + kSmallStep + " --against '--colour blue'", 2, "--against");
}

// --recompute was taken and ignored.
TEST(Bench, StepRecomputes) {
  const Json plain = figures_of(kSmallStep);
  std::string table;
  const Json again = figures_of(kSmallStep + " --recompute scopes", &table);
  EXPECT_FALSE(plain.contains("recompute"));
  EXPECT_GT(again["recompute"]["instructions"].get<int>(), 0);
  EXPECT_EQ(again["recompute"]["largest_live_set_without"], plain["lower_bound_bytes"]);
  EXPECT_LT(again["lower_bound_bytes"].get<double>(), plain["lower_bound_bytes"].get<double>());
  EXPECT_EQ(again["loss"], plain["loss"]);
  SG_EXPECT_CONTAINS(table, "again; largest live set");
}

TEST(Bench, EveryModelHasAStepToTime) {
  const TempFolder folder;
  for (const std::string& model : task_names()) {
    SCOPED_TRACE(model);
    TrainConfig config = default_config(model);
    // The text that it is for by default is a package of its own.
    if (model == "transformer-vq") config.data = folder.write("text", std::string(50000, 'a')).string();
    config.batch = 2;
    config.threads = 1;
    BenchStep step(config);
    EXPECT_TRUE(std::isfinite(step.loss()));
    EXPECT_GT(step.units(), 0);
    EXPECT_FALSE(parts_of(step.program().compiled_tape(), step.backend(), true).empty());
  }
}

TEST(Bench, ScalingDrawsAPicture) {
  const TempFolder folder;
  const std::filesystem::path picture = folder / "scaling.png";
  const Json figures = figures_of(
      "scaling --rounds 1 --repeats 1 --warm 0 --threads 1 --batches 2,4 --codes 8 --code-dims 4 --thread-counts 1 "
      "--with '--hidden 8 --residual-hidden 4 --init uniform' --picture " +
      picture.string());
  ASSERT_EQ(figures["axes"].size(), 4u);
  EXPECT_EQ(figures["axes"][0]["points"][1]["value"], 4);
  for (const Json& axis : figures["axes"])
    for (const Json& point : axis["points"]) EXPECT_GT(point["step_ms"]["median"].get<double>(), 0) << axis["flag"];
  EXPECT_GT(std::filesystem::file_size(picture), 1000u);
}

TEST(Bench, StartRunsProcessesOfItsOwn) {
  const Json figures = figures_of("start vqvae --rounds 1 --threads 1");
  ASSERT_EQ(figures["models"].size(), 1u);
  EXPECT_GT(figures["models"][0]["first_step_s"]["median"].get<double>(), 0);
  EXPECT_GT(figures["models"][0]["peak_rss_mb"]["median"].get<double>(), 1);
}

TEST(Bench, WrongWordsAreErrors) {
  expect_fails("bench", 2, "choose one of: step, start, scaling, ops");
  expect_fails("bench nosuch", 2, "'nosuch' is no benchmark; choose one of: step");
  expect_fails("bench step --nosuch", 2, "--nosuch");
  expect_fails("bench ops --only nosuch", 2, "nothing is called 'nosuch'; there are: add, mul");
  expect_fails("bench ops --sizes 64", 2, "--sizes '64' is not 2 positive numbers");
  expect_fails("bench nearest --sizes 64x8", 2, "--sizes '64x8' is not 3 positive numbers");
  for (const char* size : {"0x8", "8x", "x8", "8x8x", "axb", "8x-8", "8x99999999999999999999"})
    expect_fails(std::string("bench rotation --sizes ") + size, 2, "--sizes");
  expect_fails("bench step nosuch", 2, "model 'nosuch' is unknown");
  expect_fails("bench start nosuch", 2, "model 'nosuch' is unknown");
  expect_fails("bench ops --rounds 0", 2, "--rounds");
}

// What the floors are computed from.
TEST(Bench, CountsOperationsFromShapes) {
  Tape tape;
  const auto input = [&](const char* name, Shape shape) { return tape.input(name, {DType::f32, shape}); };
  const Value x = input("x", {2, 8, 6, 4}), w = input("w", {3, 3, 4, 16});
  const Value y = conv2d(x, w, ConvOptions::square(1, 1));
  const auto flop = [&](Value v) {
    return product_flop(tape, tape.instrs()[static_cast<std::size_t>(tape.producer(v.id))]);
  };
  const double conv = 2.0 * (2 * 8 * 6 * 16) * (3 * 3 * 4);
  EXPECT_EQ(flop(y), conv);
  EXPECT_EQ(flop(conv2d_transpose(y, w, ConvOptions::square(1, 1))), conv);
  EXPECT_EQ(flop(conv2d_weight_grad(x, y, {3, 3}, ConvOptions::square(1, 1))), conv);
  EXPECT_EQ(flop(matmul(input("a", {5, 7}), input("b", {7, 3}))), 2.0 * 5 * 7 * 3);
  EXPECT_EQ(flop(matmul(input("c", {7, 5}), input("d", {3, 7}), true, true)), 2.0 * 5 * 7 * 3);
  EXPECT_EQ(flop(nearest_code(input("z", {9, 4}), input("e", {6, 4}))), 2.0 * 9 * 4 * 6);
  EXPECT_EQ(flop(relu(x)), 0);
}

TEST(Bench, AnIsolatedPartComputesWhatItComputedInTheStep) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {6, 8}});
  const Value y = exp(x) * tape.constant(0.5, {DType::f32, {}}) + sum(x, {-1}, true);
  Program step = compile(tape, {y}, cpu_backend());
  const Tensor data = drawn(x.type());
  step.feed(x, data);
  step.run();
  int regions = 0;
  for (const Instr& instr : step.compiled_tape().instrs()) {
    if (!has_work(instr)) continue;
    ++regions;
    BenchWork alone = isolate(step.compiled_tape(), instr, cpu_backend());
    alone.program->run();
    const Tensor wanted = step.fetch(y), got = alone.program->fetch(alone.fetches[0]);
    for (std::int64_t i = 0; i < wanted.elements(); ++i) EXPECT_EQ(wanted.at(i), got.at(i));
    EXPECT_EQ(alone.read_bytes, 6 * 8 * 4.0);
    EXPECT_EQ(alone.write_bytes, 6 * 8 * 4.0);
  }
  EXPECT_EQ(regions, 1) << "the region was not found whole";
}

// The kernel that rotation is measured against, against the reference backend.
TEST(Bench, RotationByHandIsTheRotationTrick) {
  for (const auto& [rows, columns] : {std::pair<std::int64_t, std::int64_t>{5, 3}, {33, 64}, {19, 300}}) {
    Tape tape;
    const TensorType type{DType::f32, {rows, columns}};
    Tensor z = drawn(type), q = drawn({DType::f32, {rows + 1, columns}}), g = drawn({DType::f32, {rows + 2, columns}});
    std::reverse(q.span<float>().begin(), q.span<float>().end());
    const auto first_rows = [&](const Tensor& t) {
      return Tensor::of<float>(type.shape, t.span<float>().first(static_cast<std::size_t>(type.shape.elements())));
    };
    q = first_rows(q);
    std::rotate(g.span<float>().begin(), g.span<float>().begin() + columns + 1, g.span<float>().end());
    g = first_rows(g);
    const Value vz = tape.constant(z), out = rotation_trick(vz, tape.constant(q));
    const Value gz = gradients(sum(out * tape.constant(g)), std::vector<Value>{vz})[0];
    Program program = compile(tape, {out, gz}, reference_backend(), {.exact_forward = false});
    program.run();
    Tensor got(type), got_gradient(type);
    lab::rotation(z.span<float>().data(), q.span<float>().data(), g.span<float>().data(), got.span<float>().data(),
                  got_gradient.span<float>().data(), rows, columns);
    const Tensor wanted = program.fetch(out), wanted_gradient = program.fetch(gz);
    for (std::int64_t i = 0; i < wanted.elements(); ++i) {
      EXPECT_NEAR(got.at(i), wanted.at(i), 1e-4) << rows << "x" << columns << " at " << i;
      EXPECT_NEAR(got_gradient.at(i), wanted_gradient.at(i), 1e-4) << rows << "x" << columns << " at " << i;
    }
  }
}

TEST(Bench, SpreadIsMedianLeastAndGreatest) {
  EXPECT_EQ(spread({3, 1, 2}).median, 2);
  EXPECT_EQ(spread({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(spread({4, 1, 2, 3}).least, 1);
  EXPECT_EQ(spread({4, 1, 2, 3}).greatest, 4);
  BenchGroup group{.title = "g", .variants = {{.name = "a", .run = nullptr}, {.name = "b", .run = nullptr}}};
  group.variants[0].seconds = {1, 2, 4};
  group.variants[1].seconds = {2, 2, 2};
  EXPECT_EQ(group.ratio(group.variants[1]).median, 1);
  EXPECT_EQ(group.ratio(group.variants[1]).greatest, 2);
}

}  // namespace
}  // namespace sg::test
