// .npy files, settings, run folders, pictures.
#include <cmath>

#include "core/safetensors.h"
#include "tests/support/expect.h"
#include "tests/tools/temp_folder.h"
#include "tools/config.h"
#include "tools/curves.h"
#include "tools/data/dataset.h"
#include "tools/images.h"
#include "tools/npy.h"
#include "tools/plot.h"
#include "tools/run_folder.h"
#include "tools/session.h"

namespace sg::test {
namespace {

using namespace tools;

std::string npy(const std::string& header, const std::string& data) {
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size()) + '\0' + header + data;
}

TEST(Npy, RoundTrip) {
  const TempFolder folder;
  for (const Tensor& t :
       {Tensor::of<float>({2, 3}, {1, 2, 3, 4, 5, -6.5f}), Tensor::of<double>({4}, {0.1, 1e300, -0.0, 3}),
        Tensor::of<std::int32_t>({1, 2, 2}, {1, -2, 2147483647, 4}), Tensor::full({DType::f32, {}}, 7),
        Tensor({DType::i32, {0, 3}})}) {
    write_npy(folder / "t.npy", t);
    EXPECT_TRUE(same_bits(read_npy(folder / "t.npy"), t)) << to_string(t.type());
    EXPECT_EQ((slurp(folder / "t.npy").size() - t.bytes()) % 64, 0u);
  }
}

TEST(Npy, HasNoBf16) {
  const TempFolder folder;
  SG_EXPECT_ERROR(dtype, "cast to f32", write_npy(folder / "t.npy", Tensor({DType::bf16, {2}})));
}

TEST(Npy, ReadsNumpysInt64) {
  const TempFolder folder;
  const std::string header = "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }\n";
  expect_values(read_npy(folder.write(
                    "a.npy", npy(header, std::string("\x05\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", 16)))),
                {5, -1});
  SG_EXPECT_ERROR(
      io, "beyond 32 bits",
      read_npy(folder.write("a.npy", npy(header, std::string("\x05\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0", 16)))));
}

TEST(Npy, RefusesBadFiles) {
  const TempFolder folder;
  const auto refused = [&](const std::string& bytes, std::string_view why) {
    SG_EXPECT_ERROR(io, why, read_npy(folder.write("bad.npy", bytes)));
  };
  const auto header = [](const std::string& descr, const std::string& order, const std::string& shape) {
    return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
  };
  SG_EXPECT_ERROR(io, "cannot open", read_npy(folder / "missing.npy"));
  refused("", "is not a .npy file");
  refused("PNG and so on, long enough", "is not a .npy file");
  refused(std::string("\x93NUMPY\x09\x00\x10\x00", 10), "version 9");
  refused(std::string("\x93NUMPY\x01\x00\xff\xff", 10), "the .npy header says it is 65535 bytes long");
  refused(npy("{}\n", ""), "lacks descr");
  refused(npy(header("<f4", "True", "(2,)"), std::string(8, 'x')), "Fortran order");
  refused(npy(header(">f4", "False", "(2,)"), std::string(8, 'x')), "element type >f4");
  refused(npy(header("|O", "False", "(2,)"), std::string(8, 'x')), "element type");
  refused(npy(header("<f4", "False", "(3,)"), std::string(8, 'x')), "does not fit");
  refused(npy(header("<f4", "False", "(1,)"), std::string(8, 'x')), "does not fit");
  refused(npy(header("<f4", "False", "(-2,)"), std::string(8, 'x')), "malformed shape");
  refused(npy(header("<f4", "False", "(4294967296, 4294967296, 4294967296)"), std::string(8, 'x')), "does not fit");
  refused(npy(header("<f4", "False", "(99999999999999999999,)"), std::string(8, 'x')), "absurd shape");
  refused(npy(header("<f4", "False", "(1,1,1,1,1,1,2)"), std::string(8, 'x')), "7 axes");
}

TEST(Config, WritesEveryFieldAndReadsItBack) {
  const TempFolder folder;
  TrainConfig config;
  config.data = "a \"quoted\" \\ folder";
  config.estimator = "rotation", config.lr = 0.1 + 0.2, config.codes = 7, config.check_finite = true, config.beta = 3;
  config.grid = {8, 5, 5};
  const std::string text = to_toml(config);
  for (const ConfigField& field : config_fields())
    EXPECT_EQ(contains(text, fmt::format("\n{} = ", field.key)), has_field("vqvae", field)) << field.key;
  const TrainConfig back = read_config(folder.write("c.toml", text), {});
  for (const ConfigField& field : config_fields()) EXPECT_EQ(text_of(back, field), text_of(config, field)) << field.key;
  EXPECT_EQ(back.lr, 0.1 + 0.2);
  EXPECT_EQ(back.grid, config.grid);
}

TEST(Config, SetsAFieldFromText) {
  TrainConfig config;
  const auto set = [&](std::string_view key, const std::string& text) {
    set_from_text(config, *find_field(key), text);
  };
  set("grid", "8,5,5"), set("lr", "1e-2"), set("codes", "3"), set("shared_books", "true"), set("estimator", "rotation");
  EXPECT_EQ(config.grid, (std::vector<std::int64_t>{8, 5, 5}));
  EXPECT_EQ(config.lr, 1e-2);
  EXPECT_EQ(config.codes, 3);
  EXPECT_TRUE(config.shared_books);
  EXPECT_EQ(config.estimator, "rotation");
  SG_EXPECT_ERROR(usage, "--grid '8,,5'", set("grid", "8,,5"));
  SG_EXPECT_ERROR(usage, "--codes '3.5': a whole number is needed", set("codes", "3.5"));
  SG_EXPECT_ERROR(usage, "--lr 'fast': a number is needed", set("lr", "fast"));
  SG_EXPECT_ERROR(usage, "--shared-books 'maybe'", set("shared_books", "maybe"));
}

// Every field of the quantizer's settings has a flag, and the flag sets that field.
TEST(Config, ReachesTheQuantizer) {
  TrainConfig config;
  config.model = "vqvae", config.codes = 17, config.code_dim = 5, config.estimator = "rotation";
  config.metric = "cosine", config.codebook = "loss", config.init = "normal", config.normal_deviation = 0.5;
  config.ema_decay = 0.8, config.ema_eps = 1e-3, config.inner_rate = 0.3, config.revive = 2;
  config.beta = 0.1, config.gamma = 0.2, config.origin_decay = 0.7, config.balance_commitment = true;
  config.entropy_temperature = 0.5, config.heads = 5, config.levels = 6, config.code_width = 7;
  config.dither = 0.4, config.grid = {3, 4}, config.scales = {1, 7}, config.phi = 0.1;
  config.steps = 123;
  QuantizerConfig q;
  q.codes = 17, q.dim = 5, q.estimator = "rotation", q.metric = Metric::cosine, q.codebook = CodebookUpdate::loss;
  q.init = CodebookInit::normal, q.normal_deviation = 0.5, q.ema_decay = 0.8, q.ema_eps = 1e-3, q.inner_rate = 0.3;
  q.revival = 2, q.beta = 0.1, q.gamma = 0.2, q.origin_decay = 0.7, q.entropy_temperature = 0.5, q.heads = 5;
  q.levels = 6, q.code_dim = 7, q.dither = 0.4, q.grid = {3, 4}, q.scales = {1, 7}, q.phi = 0.1;
  const VqVaeConfig model = model_config(config, {28, 28, 1});
  EXPECT_TRUE(model.quantizer == q);
  EXPECT_TRUE(model.balance_commitment);
  EXPECT_EQ(model.steps, 123);
  EXPECT_EQ(model_config(config, {28, 28, 1}, 9).steps, 9);
}

TEST(Config, RefusesWhatItDoesNotKnow) {
  const TempFolder folder;
  const auto refused = [&](std::string_view text, std::string_view why) {
    SG_EXPECT_ERROR(usage, why, read_config(folder.write("c.toml", text), {}));
  };
  refused("codes = 3\ncoeds = 4\n", "c.toml:2: unknown setting 'coeds'");
  refused("codes = \"many\"\n", "c.toml:1: 'codes' must be a whole number");
  refused("codes = 2.5\n", "'codes' must be a whole number");
  refused("lr = true\n", "'lr' must be a number");
  refused("estimator = 3\n", "'estimator' must be text");
  refused("codes = = 3\n", "not valid TOML");
  refused("preset = \"tiny\"\n", "tiny");
  SG_EXPECT_ERROR(io, "cannot open", read_config(folder / "missing.toml", {}));
  EXPECT_EQ(read_config(folder.write("c.toml", "codes = 9\npreset = \"large\"\n"), {}).codes, 9)
      << "a preset goes under the other keys";
}

TEST(Config, ValidateNamesTheFlag) {
  const auto refused = [](auto set, std::string_view why) {
    TrainConfig config;
    set(config);
    SG_EXPECT_ERROR(usage, why, validate(config));
  };
  validate(TrainConfig{});
  refused([](TrainConfig& c) { c.codes = 0; }, "--codes is 0; it must be from 1");
  refused([](TrainConfig& c) { c.code_dim = 0; }, "--code-dim");
  refused([](TrainConfig& c) { c.batch = 0; }, "--batch");
  refused([](TrainConfig& c) { c.steps = 0; }, "--steps");
  refused([](TrainConfig& c) { c.lr = std::nan(""); }, "--lr");
  refused([](TrainConfig& c) { c.lr = 0; }, "--lr is 0; it must be above 0");
  refused([](TrainConfig& c) { c.beta = -1; }, "--beta");
  refused([](TrainConfig& c) { c.ema_decay = 1; }, "--ema-decay");
  refused([](TrainConfig& c) { c.model = "vq-gan"; }, "model 'vq-gan' is unknown; choose one of: vqvae");
  refused([](TrainConfig& c) { c.estimator = "magic"; },
          "--estimator: unknown estimator 'magic'; there are: ste, rotation");
  refused([](TrainConfig& c) { c.estimator = "ste:2"; }, "--estimator: estimator 'ste:2'");
  refused([](TrainConfig& c) { c.quantizer = "magic"; }, "--quantizer 'magic' is unknown; choose one of: vq");
  refused([](TrainConfig& c) { c.codebook = "magic"; }, "--codebook 'magic' is unknown; choose one of: loss, ema");
  refused([](TrainConfig& c) { c.grid = {8, 1}; }, "--grid is 1; it must be from 2");
  refused([](TrainConfig& c) { c.backend = "abacus"; }, "--backend 'abacus' is unknown; choose one of: ");
  refused([](TrainConfig& c) { c.optimizer = "lion"; }, "--optimizer");
  refused([](TrainConfig& c) { c.metric = "manhattan"; }, "--metric");
  refused([](TrainConfig& c) { c.codes = 1 << 24, c.code_dim = 1 << 16; }, "at most 4 GB");
}

TEST(RunFolder, RefusesWhatItCannotUse) {
  const TempFolder folder;
  EXPECT_TRUE(std::filesystem::is_directory(RunFolder::create(folder / "a/b/c").path()));
  folder.write("full/file", "x");
  SG_EXPECT_ERROR(io, "is not empty", RunFolder::create(folder / "full"));
  SG_EXPECT_ERROR(io, "is not a folder", RunFolder::create(folder / "full/file"));
  SG_EXPECT_ERROR(io, "cannot make the folder", RunFolder::create(folder / "full/file/below"));
  SG_EXPECT_ERROR(io, "cannot make the folder", RunFolder::create("/proc/stopgrad-run"));
  SG_EXPECT_ERROR(io, "no such folder", RunFolder::open(folder / "nowhere"));
  SG_EXPECT_ERROR(io, "it has no config.toml", RunFolder::open(folder / "a"));
  if (geteuid() != 0) {
    std::filesystem::create_directory(folder / "locked");
    std::filesystem::permissions(folder / "locked",
                                 std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
    SG_EXPECT_ERROR(io, "cannot write into the folder", RunFolder::create(folder / "locked"));
    std::filesystem::permissions(folder / "locked", std::filesystem::perms::owner_all);
  }
}

TEST(MetricsLog, DropsWhatCameAfterTheCheckpointAndTornLines) {
  const TempFolder folder;
  std::vector<Metrics> history;
  {
    MetricsLog log(folder / "m.jsonl", 0, history);
    for (int i = 1; i <= 5; ++i) log.append({{"step", i}, {"loss", i == 3 ? std::nan("") : 0.1 * i}});
    log.flush();
  }
  folder.write("m.jsonl", slurp(folder / "m.jsonl") + "{\"step\": 6, \"lo");
  MetricsLog log(folder / "m.jsonl", 4, history);
  ASSERT_EQ(history.size(), 4u);
  EXPECT_TRUE(std::isnan(metric(history[2], "loss")));
  EXPECT_EQ(metric(history[3], "loss"), 0.4);
  log.append({{"step", 5}});
  log.flush();
  EXPECT_EQ(read_metrics(folder / "m.jsonl").size(), 5u);
  folder.write("bad.jsonl", "{}\nnonsense\n");
  SG_EXPECT_ERROR(io, "line 2 is not a JSON object", read_metrics(folder / "bad.jsonl"));
}

TEST(Images, PngRoundTrip) {
  const TempFolder folder;
  Image image(5, 5, 3, 0);
  for (std::size_t i = 0; i < image.pixels.size(); ++i) image.pixels[i] = static_cast<std::uint8_t>(3 * i);
  save_png(folder / "a.png", image);
  EXPECT_EQ(read_images({folder / "a.png"}, 5, 3).pixels, image.pixels);
  SG_EXPECT_ERROR(io, "nowhere", save_png(folder / "nowhere/a.png", image));
}

TEST(Images, GridPutsReconstructionsBelowOriginals) {
  const Tensor white = Tensor::full({DType::f32, {3, 8, 8, 1}}, 2.0),
               black = Tensor::full({DType::f32, {3, 8, 8, 1}}, -1.0);
  Image grid = reconstruction_grid(white, black, 3);
  EXPECT_EQ(grid.channels, 1);
  EXPECT_GE(grid.height, 160);
  const int x = 20;
  EXPECT_EQ(grid.at(x, 20)[0], 255);
  EXPECT_EQ(grid.at(x, grid.height * 3 / 4)[0], 0);
}

TEST(Plot, DrawsCurvesAndSurvivesEmptyAndBadNumbers) {
  const auto ink = [](const Image& image) {
    return std::count_if(image.pixels.begin(), image.pixels.end(), [](int v) { return v < 200; });
  };
  Panel panel{"title", "step", false, false, {{"a", {1, 2, 3}, {1, 4, 9}, {}, false}}};
  const Image one = draw_panels({panel}, 1);
  panel.curves[0].y = {NAN, INFINITY, NAN};
  const Image none = draw_panels({panel}, 1);
  EXPECT_GT(ink(one), ink(none));
  panel.log_y = true;
  panel.curves[0].y = {0, -1, 1e-30};
  draw_panels({panel, panel, panel}, 2);
  panel.curves[0].y = {5, 5, 5};
  EXPECT_GT(ink(draw_panels({panel}, 1)), ink(none));
  EXPECT_GT(draw_curves({}, {}).pixels.size(), 0u);
  EXPECT_GT(draw_curves({}, {{"loss", true, false, {{"loss", "total"}}}}).pixels.size(), 0u);
}

}  // namespace
}  // namespace sg::test
