// bench ops, nearest, rotation, quantizer: pieces of a step against what bounds them.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "backends/backends.h"
#include "backends/cpu/row_jit.h"
#include "core/autodiff.h"
#include "core/error.h"
#include "models/quantizers/quantizer.h"
#include "models/statistics.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/matmul.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "tools/bench_cases.h"
#include "tools/bench_floor.h"
#include "tools/commands/bench.h"
#include "tools/kernel_lab/lab.h"

namespace sg::tools {
namespace {

using Int = std::int64_t;
using Json = nlohmann::ordered_json;

struct SizedBench {
  BenchOptions options;
  std::vector<std::string> sizes, only;
};

void add_sizes(CLI::App& command, SizedBench& bench, const std::string& what) {
  command.add_option("--sizes", bench.sizes, what)->delimiter(',')->capture_default_str();
}

// ---- ops

// The cases whose name begins with one of `only`; all where that is empty. Error{usage} listing them.
std::vector<const BenchCase*> chosen_cases(const std::vector<std::string>& only) {
  std::vector<const BenchCase*> out;
  std::string names;
  for (const BenchCase& c : bench_cases()) names += (names.empty() ? "" : ", ") + c.name;
  for (const std::string& start : only)
    if (std::none_of(bench_cases().begin(), bench_cases().end(),
                     [&](const BenchCase& c) { return c.name.starts_with(start); }))
      fail(ErrorKind::usage, "--only: nothing is called '{}'; there are: {}", start, names);
  for (const BenchCase& c : bench_cases())
    if (only.empty() || std::any_of(only.begin(), only.end(), [&](const auto& s) { return c.name.starts_with(s); }))
      out.push_back(&c);
  return out;
}

void bench_ops(const SizedBench& a) {
  Backend& backend = start_bench(a.options);
  const std::vector<const BenchCase*> cases = chosen_cases(a.only);
  std::vector<std::vector<Int>> sizes;
  std::size_t largest = 0;
  for (const std::string& text : a.sizes) {
    sizes.push_back(parse_extents("--sizes", text, 2));
    largest = std::max(largest, static_cast<std::size_t>(sizes.back()[0] * sizes.back()[1]) * sizeof(float));
  }
  const BenchGroup limits = ceilings(backend, largest, a.options);
  std::string table = to_text(limits);
  Json groups = Json::array();
  Floors floors(backend, a.options);
  for (const std::vector<Int>& size : sizes) {
    table += fmt::format("\n{} x {} f32\n  {:<34} {:>26} {:>8} {:>8}   time / floor\n", size[0], size[1], "", "ms",
                         "GB/s", "floor");
    for (const BenchCase* c : cases) {
      BenchWork work;
      c->record(work, size[0], size[1]);
      make_program(work, backend, {}, {c->index_limit(size[0], size[1]), c->positive});
      const BenchGroup group = floors.measure(c->name, work);
      const BenchVariant& v = group.variants[0];
      const Spread t = group.time(v), ratio = group.ratio(v);
      table += fmt::format("  {:<34} {:>26} {:>8.1f} {:>8.3f}   {}\n", c->name,
                           to_text({1e3 * t.median, 1e3 * t.least, 1e3 * t.greatest}, 3), v.bytes / t.median * 1e-9,
                           1e3 * t.median / ratio.median, to_text(ratio, 2));
      Json json = to_json(group);
      json["rows"] = size[0];
      json["columns"] = size[1];
      json["region"] = c->region;
      groups.push_back(json);
    }
  }
  report(a.options, "bench ops", table, {{"ceilings", to_json(limits)}, {"groups", groups}});
}

// ---- nearest code

void bench_nearest(const SizedBench& a) {
  Backend& backend = start_bench(a.options);
  std::string table;
  Json groups = Json::array();
  for (const std::string& text : a.sizes) {
    const std::vector<Int> size = parse_extents("--sizes", text, 3);
    const Int n = size[0], d = size[1], k = size[2];
    const TensorType rows{DType::f32, {n, d}}, codes{DType::f32, {k, d}};
    const auto work = [&](auto record, const TensorType& table_type, const CompileOptions& compile = {}) {
      auto w = std::make_shared<BenchWork>();
      const Value z = w->tape->input("z", rows);
      w->fetches = {record(z, w->tape->input("codes", table_type))};
      make_program(*w, backend, compile);
      return w;
    };
    BenchGroup group{.title = fmt::format("nearest code, N {} D {} K {}", n, d, k), .variants = {}};
    const auto add = [&](std::string name, const std::shared_ptr<BenchWork>& w) {
      group.variants.push_back(
          {.name = std::move(name), .run = [w] { w->program->run(); }, .bytes = w->bytes(), .flop = w->flop});
    };
    add("bare product, codes (K,D)", work([](Value z, Value c) { return matmul(z, c, false, true); }, codes));
    add("bare product, codes (D,K)", work([](Value z, Value c) { return matmul(z, c); }, {DType::f32, {d, k}}));
    add("nearest_code", work([](Value z, Value c) { return nearest_code(z, c); }, codes));
    add("distances, then argmin", work([](Value z, Value c) { return argmax(distance_logits(z, c)); }, codes));
    group.reference_name = "bare product";
    group.reference = [](const BenchGroup& g, std::size_t round) {
      return std::min(g.variants[0].seconds[round], g.variants[1].seconds[round]);
    };
    measure(group, a.options);
    table += to_text(group) + "\n";
    Json json = to_json(group);
    json.update({{"n", n}, {"d", d}, {"k", k}});
    groups.push_back(json);
  }
  report(a.options, "bench nearest", table, {{"groups", groups}});
}

// ---- rotation

// Switches generated code off for what is compiled while it lives.
class Interpreted {
 public:
  Interpreted() : before_(cpu::code_generation()) { cpu::set_code_generation(false); }
  ~Interpreted() { cpu::set_code_generation(before_); }
  Interpreted(const Interpreted&) = delete;
  Interpreted& operator=(const Interpreted&) = delete;

 private:
  bool before_;
};

double largest_difference(const Tensor& a, const Tensor& b) {
  double largest = 0;
  for (Int i = 0; i < a.elements(); ++i) largest = std::max(largest, std::abs(a.at(i) - b.at(i)));
  return largest;
}

void bench_rotation(const SizedBench& a) {
  Backend& backend = start_bench(a.options);
  std::string table;
  Json groups = Json::array();
  for (const std::string& text : a.sizes) {
    const std::vector<Int> size = parse_extents("--sizes", text, 2);
    const TensorType type{DType::f32, {size[0], size[1]}};
    // The forward value is computed, not taken from q as the pass for exact forward values would.
    const auto work = [&](bool fuse) {
      auto w = std::make_shared<BenchWork>();
      const Value z = w->tape->input("z", type), q = w->tape->input("q", type), g = w->tape->input("g", type);
      const Value out = rotation_trick(z, q);
      w->fetches = {out, gradients(sum(out * g), std::vector<Value>{z})[0]};
      make_program(*w, backend, {.fuse = fuse, .exact_forward = false});
      // Three arrays that differ, which one seed does not give.
      Tensor values = drawn(type);
      for (const Value input : {q, g}) {
        const auto x = values.span<float>();
        std::reverse(x.begin(), x.begin() + (input.id == q.id ? values.elements() : values.elements() / 2 + 1));
        w->program->feed(input, values);
      }
      return w;
    };
    const auto generated = work(true), by_op = work(false);
    const auto interpreted = [&] {
      const Interpreted now;
      return work(true);
    }();
    const double bytes = generated->bytes();

    // A kernel written by hand for the processor; on a device only its results are of interest.
    Tensor z = drawn(type), q = z, g, out(type), gz(type);
    std::reverse(q.span<float>().begin(), q.span<float>().end());
    g = q;
    std::reverse(g.span<float>().begin(), g.span<float>().begin() + (g.elements() / 2 + 1));
    const auto by_hand = [&] {
      lab::rotation(z.span<float>().data(), q.span<float>().data(), g.span<float>().data(), out.span<float>().data(),
                    gz.span<float>().data(), size[0], size[1]);
    };
    BenchGroup group{.title = fmt::format("rotation trick, forward and backward, {} x {}", size[0], size[1]),
                     .variants = {}};
    const auto add = [&](std::string name, const std::shared_ptr<BenchWork>& w) {
      group.variants.push_back({.name = std::move(name), .run = [w] { w->program->run(); }, .bytes = bytes});
    };
    if (!backend.on_device())
      group.variants.push_back({.name = "by hand, " + lab::isa(), .run = by_hand, .bytes = bytes});
    add("generated", generated);
    if (!backend.on_device()) add("interpreted", interpreted);
    add("op by op", by_op);
    group.variants.push_back(
        {.name = "memory", .run = memory_pass(backend, generated->read_bytes, generated->write_bytes), .bytes = bytes});
    measure(group, a.options);
    if (backend.on_device()) by_hand();
    const double difference = std::max(largest_difference(out, generated->program->fetch(generated->fetches[0])),
                                       largest_difference(gz, generated->program->fetch(generated->fetches[1])));
    group.note = fmt::format("by hand and generated differ by at most {:.1e}", difference);
    table += to_text(group) + "\n";
    Json json = to_json(group);
    json.update({{"rows", size[0]}, {"columns", size[1]}, {"largest_difference", difference}});
    groups.push_back(json);
  }
  report(a.options, "bench rotation", table, {{"groups", groups}});
}

// ---- quantizer

// A quantizer as a layer: rows in, z_q and the losses forward, the gradient in the rows backward, the codebook's
// update.
std::shared_ptr<BenchWork> layer(const QuantizerConfig& config, Int rows, Backend& backend) {
  struct Layer : Module {
    explicit Layer(const QuantizerConfig& c) : Module(1), quantizer(make_quantizer(*this, "quantizer", c)) {}
    std::unique_ptr<Quantizer> quantizer;
    Variable random{"random", Tensor::of<std::int32_t>({2}, {1, 0})};
  };
  auto w = std::make_shared<BenchWork>();
  const auto owner = std::make_shared<Layer>(config);
  w->kept.push_back(owner);
  Tape& tape = *w->tape;
  const Value z = tape.input("z", {DType::f32, {rows, config.dim}});
  QuantizeContext context;
  context.random = tape.read(owner->random);
  const Quantized out = (*owner->quantizer)(z, context);
  const Value g = tape.input("g", out.z_q.type());
  const Value loss = sum(out.z_q * g) + out.total_loss();
  StepUpdates updates(tape);
  w->fetches = {out.z_q, out.indices, gradients(loss, std::vector<Value>{z})[0]};
  owner->quantizer->update(out, context, updates);
  updates.commit();
  advance_random_state(tape, owner->random);
  make_program(*w, backend);
  return w;
}

void bench_quantizer(const SizedBench& a) {
  Backend& backend = start_bench(a.options);
  std::string table;
  Json groups = Json::array();
  for (const std::string& text : a.sizes) {
    const std::vector<Int> size = parse_extents("--sizes", text, 3);
    QuantizerConfig config;
    config.dim = size[1];
    config.codes = size[2];
    config.codebook = CodebookUpdate::ema;
    config.init = CodebookInit::normal;
    BenchGroup group{
        .title = fmt::format("vq layer, forward, backward, moving averages: N {} D {} K {}", size[0], size[1], size[2]),
        .variants = {}};
    for (const char* estimator : {"ste", "rotation"}) {
      config.estimator = estimator;
      const auto w = layer(config, size[0], backend);
      group.variants.push_back(
          {.name = estimator, .run = [w] { w->program->run(); }, .bytes = w->bytes(), .flop = w->flop});
    }
    measure(group, a.options);
    table += to_text(group) + "\n";
    Json json = to_json(group);
    json.update({{"n", size[0]}, {"d", size[1]}, {"k", size[2]}});
    groups.push_back(json);
  }
  report(a.options, "bench quantizer", table, {{"groups", groups}});
}

CLI::App* add_sized(CLI::App& bench, const std::string& name, const std::string& help,
                    const std::shared_ptr<SizedBench>& a, std::vector<std::string> sizes, const std::string& extents,
                    void (*run)(const SizedBench&)) {
  CLI::App* command = bench.add_subcommand(name, help);
  a->sizes = std::move(sizes);
  add_bench_options(*command, a->options);
  command->add_option("--backend", a->options.backend, "what to measure: cpu or cuda")->capture_default_str();
  add_sizes(*command, *a, extents);
  command->callback([a, run] { run(*a); });
  return command;
}

}  // namespace

void add_bench_ops(CLI::App& bench) {
  const auto a = std::make_shared<SizedBench>();
  CLI::App* command = add_sized(bench, "ops", "Each op and each composition against its floor.", a,
                                {"6272x64", "262144x256"}, "ROWSxCOLUMNS of the arrays", bench_ops);
  command->add_option("--only", a->only, "cases whose names begin with these")->delimiter(',');
  command->footer("Examples:\n  stopgrad bench ops\n  stopgrad bench ops --only softmax,adam --sizes 65536x256");
}

void add_bench_nearest(CLI::App& bench) {
  add_sized(bench, "nearest", "The nearest-code search against the bare product of rows and codes.",
            std::make_shared<SizedBench>(), {"6272x64x512", "65536x64x1024", "16384x32x16384", "65536x256x8192"},
            "NxDxK: rows, their length, codes", bench_nearest)
      ->footer("Examples:\n  stopgrad bench nearest\n  stopgrad bench nearest --sizes 6272x64x512 --threads 1");
}

void add_bench_rotation(CLI::App& bench) {
  add_sized(bench, "rotation", "The rotation trick, forward and backward, against a kernel written by hand.",
            std::make_shared<SizedBench>(), {"6272x64", "65536x256"}, "ROWSxCOLUMNS", bench_rotation)
      ->footer("Examples:\n  stopgrad bench rotation\n  stopgrad bench rotation --sizes 6272x64 --threads 1");
}

void add_bench_quantizer(CLI::App& bench) {
  add_sized(bench, "quantizer", "A vector quantizer as a layer: forward, backward, update of the codebook.",
            std::make_shared<SizedBench>(), {"6272x64x512", "4096x256x1024"}, "NxDxK: rows, their length, codes",
            bench_quantizer)
      ->footer("Examples:\n  stopgrad bench quantizer\n  stopgrad bench quantizer --sizes 6272x64x512 --json -");
}

}  // namespace sg::tools
