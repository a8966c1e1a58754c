// The probe on graphs small enough to check by hand, in f64, and on a VQ-VAE of a few weights.
#include "tools/probe.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "core/autodiff.h"
#include "models/losses.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/support/expect.h"
#include "tests/tools/temp_folder.h"
#include "tools/toy.h"

namespace sg::test {
namespace {

using namespace tools;

constexpr std::int64_t kRows = 24, kDim = 3, kCodes = 7;

Tensor wavy(Shape shape, double scale, double phase) {
  Tensor t({DType::f64, shape});
  for (std::int64_t i = 0; i < t.elements(); ++i)
    t.set(i, scale * std::sin(1.7 * static_cast<double>(i) + phase) +
                 0.3 * scale * std::cos(0.37 * static_cast<double>(i)));
  return t;
}

// A linear encoder, a codebook and a decoder with a curve in it. codes: their size against z's.
struct Small {
  explicit Small(double codes_scale)
      : weight("encoder.weight", wavy({4, kDim}, 0.7, 0.1)), codes(wavy({kCodes, kDim}, codes_scale, 2)) {}

  ProbeGraph record(Tape& tape) {
    const Value x = tape.constant(wavy({kRows, 4}, 1.0, 0.5)), w = tape.read(weight);
    const Value z = matmul(x, w), table = tape.constant(codes);
    Lookup lookup;
    lookup.z = z;
    lookup.codes = table;
    lookup.indices = nearest_code(z, table);
    lookup.q = gather_rows(table, lookup.indices);
    lookup.progress = tape.constant(1.0, {DType::f32, {}});
    recording_estimator(seen).def.estimate(lookup);
    const Value z_q = seen.back().z_q;
    const Value decode = tanh(matmul(z_q, tape.constant(wavy({kDim, 5}, 0.8, 1))));
    return {.latents = z,
            .output = decode,
            .target = tape.constant(wavy({kRows, 5}, 0.9, 3)),
            .z_q = z_q,
            .lookups = seen,
            .losses = {{"commitment", commitment_loss(z, lookup.q), 0.25}},
            .balance_commitment = balance,
            .parameters = {w}};
  }

  ProbeResult probe(const ProbeOptions& options) {
    Tape tape;
    const ProbeRecord record = record_probe(this->record(tape), options);
    Program program = compile(tape, record.fetches(), backend("reference"));
    program.run();
    ProbeResult out;
    for (const NamedValue& v : record.common) out.common.emplace_back(v.name, program.fetch_scalar(v.value));
    for (const ProbeRow& row : record.rows) {
      out.rows.push_back({row.name, {}});
      for (const NamedValue& v : row.numbers)
        out.rows.back().second.emplace_back(v.name, program.fetch_scalar(v.value));
    }
    return out;
  }

  Variable weight;
  Tensor codes;
  bool balance = false;
  std::deque<ProbedLookup> seen;
};

const Numbers& row(const ProbeResult& result, std::string_view name) {
  for (const auto& [key, numbers] : result.rows)
    if (key == name) return numbers;
  ADD_FAILURE() << "no row " << name;
  return result.rows.at(0).second;
}

Value unit_centred(const Lookup& l) { return rotation_trick(l.z - l.origin, l.q - l.origin) + l.origin; }

TEST(Probe, StraightThroughAgainstItself) {
  const ProbeResult r = Small(0.5).probe({.estimators = {"ste", "rotation"}, .steps = {1e-3}, .shift = 0});
  ASSERT_EQ(r.rows.size(), 3u) << "ste is there once";
  const Numbers& ste = row(r, "ste");
  for (const char* name : {"cosine_ste", "ratio_ste", "cosine_parameters", "ratio_parameters"})
    EXPECT_NEAR(number(ste, name), 1, 1e-12) << name;
  EXPECT_LT(number(ste, "cosine_exact"), 0.999) << "quantization matters here";
  EXPECT_NE(number(row(r, "rotation"), "cosine_parameters"), 1);
  EXPECT_EQ(number(ste, "loss"), number(r.common, "loss"));
}

TEST(Probe, ScalarGScalesByTheNorms) {
  Small small(0.05);
  Tape tape;
  const ProbeGraph graph = small.record(tape);
  const Lookup& l = graph.lookups[0].lookup;
  const double lambda = eval(mean(norm(l.q, {-1})) / mean(norm(l.z, {-1})), backend("reference")).item();
  small.seen.clear();
  const ProbeResult r = small.probe({.estimators = {"g-scalar"}});
  const Numbers& scaled = row(r, "g-scalar");
  EXPECT_LT(lambda, 0.3);
  EXPECT_NEAR(number(scaled, "cosine_ste"), 1, 1e-12);
  EXPECT_NEAR(number(scaled, "ratio_ste"), lambda, 1e-12);
  EXPECT_NEAR(number(scaled, "ratio_parameters"), lambda, 1e-12);
  const double g = number(scaled, "gradient");
  EXPECT_NEAR(number(scaled, "share"), g / (g + number(r.common, "losses")), 1e-12);
}

// The formula of the paper, row by row on the host: lambda R^T g.
TEST(Probe, RotationIsTheFormula) {
  Small small(0.3);
  Tape tape;
  const ProbeGraph graph = small.record(tape);
  const Lookup& l = graph.lookups[0].lookup;
  const Value loss = mean_squared_error(graph.output, graph.target), ste = gradient(loss, graph.latents);
  Program program = compile(tape, {l.z, l.q, ste}, backend("reference"));
  program.run();
  const Tensor z = program.fetch(l.z), q = program.fetch(l.q), g = program.fetch(ste);
  double dot = 0, rotated2 = 0, ste2 = 0;
  for (std::int64_t n = 0; n < kRows; ++n) {
    std::array<double, kDim> u{}, v{}, w{};
    double zn = 0, qn = 0, wn = 0;
    for (std::int64_t d = 0; d < kDim; ++d) {
      zn += z.at(n * kDim + d) * z.at(n * kDim + d);
      qn += q.at(n * kDim + d) * q.at(n * kDim + d);
    }
    zn = std::sqrt(zn), qn = std::sqrt(qn);
    for (std::size_t d = 0; d < kDim; ++d) {
      u[d] = z.at(n * kDim + static_cast<std::int64_t>(d)) / zn;
      v[d] = q.at(n * kDim + static_cast<std::int64_t>(d)) / qn;
      w[d] = u[d] + v[d];
      wn += w[d] * w[d];
    }
    double wg = 0, vg = 0;
    for (std::size_t d = 0; d < kDim; ++d) {
      w[d] /= std::sqrt(wn);
      wg += w[d] * g.at(n * kDim + static_cast<std::int64_t>(d));
      vg += v[d] * g.at(n * kDim + static_cast<std::int64_t>(d));
    }
    for (std::size_t d = 0; d < kDim; ++d) {
      const double at = g.at(n * kDim + static_cast<std::int64_t>(d));
      const double rotated = qn / zn * (at - 2 * wg * w[d] + 2 * vg * u[d]);
      dot += rotated * at, rotated2 += rotated * rotated, ste2 += at * at;
    }
  }
  small.seen.clear();
  const ProbeResult r = small.probe({.estimators = {"rotation"}});
  EXPECT_NEAR(number(row(r, "rotation"), "cosine_ste"), dot / std::sqrt(rotated2 * ste2), 1e-12);
  EXPECT_NEAR(number(row(r, "rotation"), "ratio_ste"), std::sqrt(rotated2 / ste2), 1e-12);
}

TEST(Probe, DecodingZPredictsItsOwnStep) {
  const std::vector<double> steps{1e-2, 1e-3, 1e-4};
  const ProbeResult r = Small(0.5).probe({.estimators = {"ste", "exact"}, .steps = steps});
  for (const char* name : {"decode(z)", "exact"}) {
    const Numbers& exact = row(r, name);
    EXPECT_NEAR(number(exact, "cosine_exact"), 1, 1e-12);
    double last = 1;
    for (const double step : steps) {
      const double error = std::abs(number(exact, fmt::format("decode_ratio@{:g}", step)) - 1);
      EXPECT_LT(error, last / 5) << name << ": of first order in the step";
      last = error;
    }
    EXPECT_LT(last, 1e-3) << name;
    EXPECT_LT(number(exact, "decode@0.01"), 0) << "the loss falls";
  }
  EXPECT_GT(std::abs(number(row(r, "ste"), "decode_ratio@0.0001") - 1), 1e-2) << "it is not the gradient there";
  EXPECT_EQ(number(row(r, "ste"), "quantized@0.0001"), 0) << "no code changes in so small a step";
  EXPECT_EQ(number(row(r, "ste"), "moved@0.0001"), 0);
}

TEST(Probe, ShiftMovesTheRotationOnly) {
  BoundEstimator centred("ste");
  centred.def.name = "turned-about-the-mean";
  centred.def.estimate = unit_centred;
  centred.def.needs_origin = true;
  const auto at = [&](double shift) {
    return Small(0.5).probe({.estimators = {"rotation", centred}, .steps = {}, .shift = shift});
  };
  const ProbeResult near = at(3), far = at(1e4);
  EXPECT_EQ(number(row(near, "ste"), "shift_change"), 0);
  EXPECT_GT(number(row(near, "rotation"), "shift_change"), 0.1);
  EXPECT_LT(number(row(near, "turned-about-the-mean"), "shift_change"), 1e-12);
  EXPECT_LT(number(row(far, "turned-about-the-mean"), "shift_change"), 1e-9);
  EXPECT_LT(number(row(near, "rotation"), "shift_cosine_ste"), 0.9999);
  EXPECT_NEAR(number(row(far, "rotation"), "shift_cosine_ste"), 1, 1e-6) << "far from the origin it is the ste";
}

TEST(Probe, BalancedCommitmentHasItsWeightAsShare) {
  Small small(0.02);
  small.balance = true;
  const ProbeResult r = small.probe({.estimators = {"rotation"}, .steps = {}});
  for (const char* name : {"ste", "rotation"}) EXPECT_NEAR(number(row(r, name), "share"), 1 / 1.25, 1e-12) << name;
}

TEST(Probe, RefusesWhatItCannotDo) {
  SG_EXPECT_ERROR(usage, "is not positive", Small(0.5).probe({.estimators = {}, .steps = {0.0}}));
  Tape tape;
  ProbeGraph empty;
  empty.latents = tape.constant(1.0, {DType::f64, {2}});
  SG_EXPECT_ERROR(usage, "looks up no codes", record_probe(empty, {}));
}

VqVaeConfig tiny_config() {
  VqVaeConfig c;
  c.height = c.width = 8;
  c.hidden = 8;
  c.residual = 4;
  c.residual_blocks = 1;
  c.quantizer.dim = 4;
  c.quantizer.codes = 16;
  c.batch = 6;
  return c;
}

Tensor pictures(const VqVaeConfig& c, double phase) {
  Tensor images({DType::f32, {c.batch, c.height, c.width, c.channels}});
  for (std::int64_t i = 0; i < images.elements(); ++i)
    images.set(i, 0.5 + 0.5 * std::sin(0.31 * static_cast<double>(i) + phase));
  return images;
}

// The gradients of a training step of the same model are those that the probe finds.
TEST(Probe, AgreesWithATrainingStep) {
  for (const char* metric : {"euclidean", "cosine"}) {
    VqVaeConfig c = tiny_config();
    c.quantizer.estimator = "rotation";
    c.quantizer.metric = metric_by_name(metric);
    const Tensor images = pictures(c, 0);
    VqVae model(c);
    VqVaeTraining training(model);
    Tape tape;
    const TrainStep step = build_train_step(tape, training);
    Program program = compile(tape, step.fetches(), backend("cpu"));
    program.feed(step.images, images);
    program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, 0));
    program.run();
    const auto metric_of = [&](std::string_view name) { return program.fetch_scalar(step.metric(name)); };

    Probe probe(c, {.estimators = {"rotation"}, .steps = {0.01}}, backend("cpu"));
    const ProbeResult r = probe.run(images);
    const Numbers& rotation = row(r, "rotation");
    const double g = metric_of("grad_reconstruction"), losses = metric_of("grad_commitment");
    EXPECT_NEAR(number(r.common, "loss"), metric_of("reconstruction"), 1e-6) << metric;
    EXPECT_NEAR(number(r.common, "norm_ratio"), metric_of("norm_ratio"), 1e-6) << metric;
    EXPECT_NEAR(number(rotation, "gradient"), g, 1e-4 * g) << metric;
    EXPECT_NEAR(number(rotation, "share"), g / (g + losses), 1e-4) << metric;
    EXPECT_NEAR(number(row(r, "ste"), "cosine_parameters"), 1, 1e-5) << metric;
  }
}

// The decoder's forward is there once for all estimators of exact forward value, and once for decoding z.
TEST(Probe, EstimatorsShareTheForward) {
  const VqVaeConfig c = tiny_config();
  const auto steps = [&](std::vector<BoundEstimator> estimators) {
    std::deque<ProbedLookup> seen;
    VqVaeConfig recording = c;
    recording.quantizer.estimator = recording_estimator(seen);
    const VqVae model(recording);
    Tape tape;
    const Value images = tape.input("images", {DType::f32, {c.batch, c.height, c.width, c.channels}});
    ProbeGraph graph =
        record_forward(tape, model, seen, images, tape.constant(Tensor::of<std::int32_t>({2}, {1, 0})), {});
    graph.parameters.clear();
    const ProbeRecord record = record_probe(graph, {.estimators = std::move(estimators), .steps = {}});
    const Program program = compile(tape, record.fetches(), backend("reference"));
    return count_ops(program.compiled_tape(), "conv2d_transpose");
  };
  EXPECT_GT(steps({}), 0);
  EXPECT_EQ(steps({}), steps({"rotation", "reflection", "g-scalar"}));
}

TEST(Probe, MeansAreOverBatches) {
  const VqVaeConfig c = tiny_config();
  Probe probe(c, {.estimators = {"rotation"}}, backend("cpu"));
  const ProbeResult a = probe.run(pictures(c, 0)), b = probe.run(pictures(c, 1)), mean = mean_of({a, b});
  EXPECT_NE(number(a.common, "loss"), number(b.common, "loss"));
  EXPECT_NEAR(number(mean.common, "loss"), (number(a.common, "loss") + number(b.common, "loss")) / 2, 1e-12);
  EXPECT_NEAR(number(row(mean, "rotation"), "ratio_ste"),
              (number(row(a, "rotation"), "ratio_ste") + number(row(b, "rotation"), "ratio_ste")) / 2, 1e-12);
}

nlohmann::json output_of(const std::string& arguments) {
  const std::string command = std::string(SG_STOPGRAD_BINARY) + " " + arguments;
  std::FILE* pipe = popen(command.c_str(), "r");
  std::string text;
  std::array<char, 4096> chunk{};
  for (std::size_t got; (got = std::fread(chunk.data(), 1, chunk.size(), pipe)) > 0;) text.append(chunk.data(), got);
  EXPECT_EQ(pclose(pipe), 0) << command;
  return arguments.find("--json") == std::string::npos ? nlohmann::json(text) : nlohmann::json::parse(text);
}

TEST(Probe, CommandProbesARun) {
  const TempFolder folder;
  const std::string run = (folder / "run").string();
  output_of(
      "train vqvae --data synthetic --limit 40 --image-size 8 --hidden 8 --residual-hidden 4 --residual-blocks 1 "
      "--codes 16 --code-dim 4 --batch 8 --steps 3 --threads 1 --init uniform --codebook loss --revive 0 --out " +
      run);
  const std::string flags = run + " --estimators rotation,g-scalar --step 0.001,0.1 --json";
  const auto now = output_of("probe " + flags + " --batch-index 2 --batches 2 --shift 2");
  EXPECT_EQ(now["step"], 3);
  ASSERT_EQ(now["batches"].size(), 2u);
  const auto& mean = now["mean"]["estimators"];
  EXPECT_EQ(mean.size(), 4u);
  EXPECT_NEAR(mean["ste"]["cosine_ste"].get<double>(), 1, 1e-5);
  EXPECT_NEAR(mean["g-scalar"]["cosine_ste"].get<double>(), 1, 1e-5);
  EXPECT_EQ(mean["ste"]["shift_change"], 0);
  EXPECT_GT(mean["rotation"]["shift_change"], 0.01);
  for (const char* name : {"decode@0.001", "quantized_ratio@0.1", "moved@0.1"})
    EXPECT_TRUE(mean["rotation"].contains(name));
  const auto start = output_of("probe " + flags + " --at-start");
  EXPECT_EQ(start["step"], 0);
  EXPECT_NE(start["mean"]["common"]["loss"], now["mean"]["common"]["loss"]);
  SG_EXPECT_CONTAINS(output_of("probe " + run).get<std::string>(), "actual/predicted");
}

// Under the straight-through estimator the points of one code move alike; without a radial gradient on circles.
TEST(Toy, PointsMoveAsTheEstimatorSays) {
  const ToyOptions once{.points = 40, .codes = 5, .steps = 1, .lr = 1e-4};
  const auto move = [](const ToyRun& run, std::int64_t i) { return run.points[1].at(i) - run.points[0].at(i); };
  const ToyRun ste = run_toy("ste", once, backend("reference"));
  std::array<std::int64_t, 5> first{-1, -1, -1, -1, -1};
  int alike = 0;
  for (std::int64_t p = 0; p < once.points; ++p) {
    std::int64_t& other = first[static_cast<std::size_t>(ste.indices[0].at(p))];
    if (other < 0) {
      other = p;
      continue;
    }
    ++alike;
    for (std::int64_t d = 0; d < 2; ++d) EXPECT_NEAR(move(ste, 2 * p + d), move(ste, 2 * other + d), 2e-6);
  }
  EXPECT_GT(alike, 20);
  const ToyRun released = run_toy("rotation-released", once, backend("reference"));
  double far = 0;
  for (std::int64_t p = 0; p < once.points; ++p) {
    const double x = released.points[0].at(2 * p), y = released.points[0].at(2 * p + 1);
    const double dx = move(released, 2 * p), dy = move(released, 2 * p + 1);
    EXPECT_NEAR(x * dx + y * dy, 0, 1e-5) << p;
    far = std::max(far, std::hypot(dx, dy));
  }
  EXPECT_GT(far, 1e-3);
}

TEST(Toy, DescendsAndRepeats) {
  const ToyOptions options{.points = 30, .codes = 6};
  const ToyRun a = run_toy("ste", options, backend("cpu")), b = run_toy("ste", options, backend("cpu"));
  EXPECT_LT(a.loss.back(), a.loss.front() / 4);
  EXPECT_TRUE(same_bits(a.points.back(), b.points.back()));
  ToyOptions held = options;
  held.gamma = 20;
  EXPECT_LT(run_toy("ste", held, backend("cpu")).quantization.back(), a.quantization.back() / 2);
  const TempFolder folder;
  const auto out =
      output_of("toy --estimators ste,rotation --steps 5 --seeds 2 --json --out " + (folder / "toy.png").string());
  EXPECT_EQ(out["estimators"]["rotation"]["runs"].size(), 2u);
  EXPECT_LT(out["estimators"]["ste"]["loss"], out["estimators"]["ste"]["loss_first"]);
  EXPECT_GT(std::filesystem::file_size(folder / "toy.png"), 1000u);
}

}  // namespace
}  // namespace sg::test
