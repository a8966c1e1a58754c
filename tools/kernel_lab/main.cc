// kernel_lab: what the libraries underneath and the machine give when nothing else is in the way.
//   kernel_lab ceilings                 arithmetic and memory
//   kernel_lab convolutions fashion     a step's convolutions: oneDNN's primitives, bare, against the cpu backend
//   kernel_lab products 6272x64x512     oneDNN's matrix product M x K by K x N, f32 and bf16
//   kernel_lab fused 262144x256         oneDNN's softmax, layer norm and gelu against compositions as row programs
#include <CLI/CLI.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "backends/backends.h"
#include "backends/cpu/onednn_step.h"
#include "backends/cpu/plain_loops.h"
#include "core/error.h"
#include "models/vqvae_training.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/op_ids.h"
#include "tools/bench_floor.h"
#include "tools/commands/bench.h"

namespace sg::tools {
namespace {

using onednn::Dims;
using onednn::Md;
using Type = dnnl::memory::data_type;
using Json = nlohmann::ordered_json;

const dnnl::stream& stream() {
  static const dnnl::stream s(onednn::engine());
  return s;
}

// Memory of that layout, filled with the numbers that the backend's inputs get.
dnnl::memory filled(const Md& md) {
  dnnl::memory out(md, onednn::engine());
  const Dims dims = md.dims();
  const Tensor values = drawn({DType::f32, Shape(std::vector<std::int64_t>(dims.begin(), dims.end()))});
  Dims strides(dims.size(), 1);
  for (std::size_t i = dims.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * dims[i];
  dnnl::memory plain = onednn::memory_at(Md(dims, Type::f32, strides), values.data());
  dnnl::reorder(plain, out).execute(stream(), plain, out);
  dnnl::stream(stream()).wait();
  return out;
}

using Arguments = std::unordered_map<int, dnnl::memory>;

BenchVariant variant(std::string name, const dnnl::primitive& primitive, Arguments arguments, double flop) {
  return {.name = std::move(name),
          .run =
              [primitive, arguments = std::move(arguments), s = stream()]() mutable {
                primitive.execute(s, arguments);
                s.wait();
              },
          .flop = flop};
}

// ---- convolutions

// The convolution of an instruction of a compiled tape as oneDNN's primitive of the same pass: NHWC, direct, weights in
// the layout that the primitive asks for. Nothing where oneDNN refuses.
std::optional<BenchVariant> bare_convolution(const Tape& tape, const Instr& instr, Type type) {
  const auto shape = [&](std::int32_t value) -> const Shape& { return tape.type(value).shape; };
  const bool forward = instr.op == OpId::conv2d || instr.op == OpId::conv2d_bias,
             transposed = instr.op == OpId::conv2d_transpose;
  const Shape &first = shape(instr.inputs[0]), &second = shape(instr.inputs[1]), &out = shape(instr.outputs[0]);
  const ConvShape s = forward      ? conv_shape(instr.attrs, first, out, second)
                      : transposed ? conv_shape(instr.attrs, out, first, second)
                                   : conv_shape(instr.attrs, first, second, out);
  if (s.groups != 1) return std::nullopt;
  const auto nhwc = dnnl::memory::format_tag::nhwc;
  onednn::ConvDesc d;
  d.src = Md({s.n, s.c, s.h, s.w}, type, nhwc);
  d.dst = Md({s.n, s.o, s.ho, s.wo}, type, nhwc);
  d.weights = Md({s.o, s.c, s.kh, s.kw}, type, dnnl::memory::format_tag::any);
  d.strides = {s.stride_h, s.stride_w};
  d.dilation = {s.dilation_h - 1, s.dilation_w - 1};
  d.pad_before = {s.pad_top, s.pad_left};
  d.pad_after = {s.pad_bottom, s.pad_right};
  d.has_bias = instr.op == OpId::conv2d_bias;
  if (d.has_bias) d.bias = Md({s.o}, Type::f32, dnnl::memory::format_tag::x);
  const std::string name = type == Type::f32 ? "oneDNN f32" : "oneDNN bf16";
  const double flop = product_flop(tape, instr);
  const dnnl::primitive_attr attr;
  try {
    if (forward) {
      const auto pd = onednn::forward_pd(d, attr, onednn::engine());
      Arguments args = {{DNNL_ARG_SRC, filled(d.src)},
                        {DNNL_ARG_WEIGHTS, filled(pd.weights_desc())},
                        {DNNL_ARG_DST, dnnl::memory(d.dst, onednn::engine())}};
      if (d.has_bias) args.emplace(DNNL_ARG_BIAS, filled(d.bias));
      return variant(name, dnnl::convolution_forward(pd), std::move(args), flop);
    }
    if (transposed) {
      const auto pd = onednn::backward_data_pd(d, attr, onednn::engine());
      return variant(name, dnnl::convolution_backward_data(pd),
                     {{DNNL_ARG_DIFF_DST, filled(d.dst)},
                      {DNNL_ARG_WEIGHTS, filled(pd.weights_desc())},
                      {DNNL_ARG_DIFF_SRC, dnnl::memory(d.src, onednn::engine())}},
                     flop);
    }
    const auto pd = onednn::backward_weights_pd(d, attr, onednn::engine());
    return variant(name, dnnl::convolution_backward_weights(pd),
                   {{DNNL_ARG_SRC, filled(d.src)},
                    {DNNL_ARG_DIFF_DST, filled(d.dst)},
                    {DNNL_ARG_DIFF_WEIGHTS, dnnl::memory(pd.diff_weights_desc(), onednn::engine())}},
                   flop);
  } catch (const dnnl::error&) {
    return std::nullopt;
  }
}

void convolutions(const std::string& preset, const BenchOptions& options) {
  start_bench(options);
  VqVae model(vqvae_preset(preset));
  VqVaeTraining training(model);
  Tape tape;
  const TrainStep step = build_train_step(tape, training);
  const Program program = compile(tape, step.fetches(), cpu_backend());
  const Tape& compiled = program.compiled_tape();

  std::map<std::string, int> counts;
  const auto key = [&](const Instr& instr) {
    std::string out(op_def(instr.op).name);
    for (const std::int32_t v : instr.inputs) out += " " + to_string(compiled.type(v).shape);
    return out + " -> " + to_string(compiled.type(instr.outputs[0]).shape);
  };
  const auto is_convolution = [](const Instr& instr) { return is_product(instr) && instr.op != OpId::matmul; };
  for (const Instr& instr : compiled.instrs())
    if (is_convolution(instr)) ++counts[key(instr)];
  std::string table;
  Json groups = Json::array();
  std::map<std::string, double> sums;
  for (const Instr& instr : compiled.instrs()) {
    if (!is_convolution(instr) || counts[key(instr)] == 0) continue;
    const int count = std::exchange(counts[key(instr)], 0);
    BenchGroup group{.title = fmt::format("{} x {}", count, key(instr)), .variants = {}};
    BenchWork work = isolate(compiled, instr, cpu_backend());
    group.variants.push_back({.name = "cpu backend", .run = [&work] { work.program->run(); }, .flop = work.flop});
    for (const Type type : {Type::f32, Type::bf16})
      if (auto v = bare_convolution(compiled, instr, type)) group.variants.push_back(std::move(*v));
    measure(group, options);
    for (const BenchVariant& v : group.variants) sums[v.name] += count * group.time(v).median;
    table += to_text(group);
    groups.push_back(to_json(group));
  }
  table += "\nall of a step's convolutions, each measured alone (sums of medians), ms\n";
  for (const auto& [name, seconds] : sums) table += fmt::format("  {:<20} {:.2f}\n", name, 1e3 * seconds);
  report(options, "kernel_lab convolutions", table, {{"preset", preset}, {"sums_seconds", sums}, {"groups", groups}});
}

// ---- products

void products(const std::vector<std::string>& sizes, const BenchOptions& options) {
  start_bench(options);
  std::string table;
  Json groups = Json::array();
  for (const std::string& text : sizes) {
    const auto size = parse_extents("sizes", text, 3);
    const std::int64_t m = size[0], k = size[1], n = size[2];
    BenchGroup group{.title = fmt::format("product, {} x {} by {} x {}", m, k, k, n), .variants = {}};
    for (const Type type : {Type::f32, Type::bf16})
      for (const bool transposed : {true, false}) {
        const Md a({m, k}, type, Dims{k, 1}), c({m, n}, Type::f32, Dims{n, 1}),
            b({k, n}, type, transposed ? Dims{1, k} : Dims{n, 1});
        try {
          const auto pd = onednn::matmul_pd(a, b, {}, c, {}, onednn::engine());
          group.variants.push_back(variant(
              fmt::format("{}, second side ({})", type == Type::f32 ? "f32" : "bf16", transposed ? "N,K" : "K,N"),
              dnnl::matmul(pd),
              {{DNNL_ARG_SRC, filled(a)},
               {DNNL_ARG_WEIGHTS, filled(b)},
               {DNNL_ARG_DST, dnnl::memory(c, onednn::engine())}},
              2.0 * static_cast<double>(m) * static_cast<double>(k) * static_cast<double>(n)));
        } catch (const dnnl::error& e) {
          table += fmt::format("bf16 is left out: {}\n", e.message);
        }
      }
    measure(group, options);
    table += to_text(group) + "\n";
    groups.push_back(to_json(group));
  }
  report(options, "kernel_lab products", table, {{"groups", groups}});
}

// ---- fused operations

#if DNNL_VERSION_MAJOR >= 3
auto softmax_pd(const Md& md) {
  return dnnl::softmax_forward::primitive_desc(onednn::engine(), dnnl::prop_kind::forward_inference,
                                               dnnl::algorithm::softmax_accurate, md, md, 1);
}
auto layer_norm_pd(const Md& md) {
  return dnnl::layer_normalization_forward::primitive_desc(
      onednn::engine(), dnnl::prop_kind::forward_inference, md, md, 1e-5f,
      dnnl::normalization_flags::use_scale | dnnl::normalization_flags::use_shift);
}
auto gelu_pd(const Md& md) {
  return dnnl::eltwise_forward::primitive_desc(onednn::engine(), dnnl::prop_kind::forward_inference,
                                               dnnl::algorithm::eltwise_gelu_erf, md, md);
}
#else
auto softmax_pd(const Md& md) {
  return dnnl::softmax_forward::primitive_desc({dnnl::prop_kind::forward_inference, md, 1}, onednn::engine());
}
auto layer_norm_pd(const Md& md) {
  return dnnl::layer_normalization_forward::primitive_desc(
      {dnnl::prop_kind::forward_inference, md, 1e-5f,
       dnnl::normalization_flags::use_scale | dnnl::normalization_flags::use_shift},
      onednn::engine());
}
auto gelu_pd(const Md& md) {
  return dnnl::eltwise_forward::primitive_desc(
      {dnnl::prop_kind::forward_inference, dnnl::algorithm::eltwise_gelu_erf, md, 0.0f, 0.0f}, onednn::engine());
}
#endif

void fused(const std::vector<std::string>& sizes, const BenchOptions& options) {
  start_bench(options);
  std::string table;
  Json groups = Json::array();
  for (const std::string& text : sizes) {
    const auto size = parse_extents("sizes", text, 2);
    const Md md({size[0], size[1]}, Type::f32, Dims{size[1], 1}), column({size[1]}, Type::f32, Dims{1});
    const dnnl::memory src = filled(md), dst(md, onednn::engine()), scale = filled(column), shift = filled(column);
    const auto run = [&](const std::string& name, BenchVariant theirs, auto record) {
      BenchWork work;
      record(work);
      make_program(work, cpu_backend());
      theirs.bytes = work.bytes();
      BenchGroup group{.title = fmt::format("{}, {} x {}", name, size[0], size[1]), .variants = {std::move(theirs)}};
      group.variants.push_back({.name = "composition", .run = [&work] { work.program->run(); }, .bytes = work.bytes()});
      measure(group, options);
      table += to_text(group) + "\n";
      groups.push_back(to_json(group));
    };
    const Shape shape{size[0], size[1]};
    const auto input = [&](BenchWork& w) { return w.tape->input("x", {DType::f32, shape}); };
    run("softmax",
        variant("oneDNN", dnnl::softmax_forward(softmax_pd(md)), {{DNNL_ARG_SRC, src}, {DNNL_ARG_DST, dst}}, 0),
        [&](BenchWork& w) { w.fetches = {softmax(input(w))}; });
    const Arguments norm = {{DNNL_ARG_SRC, src}, {DNNL_ARG_DST, dst}, {DNNL_ARG_SCALE, scale}, {DNNL_ARG_SHIFT, shift}};
    run("layer norm", variant("oneDNN", dnnl::layer_normalization_forward(layer_norm_pd(md)), norm, 0),
        [&](BenchWork& w) {
          const TensorType type{DType::f32, {size[1]}};
          w.fetches = {layer_norm(input(w), w.tape->input("gamma", type), w.tape->input("beta", type))};
        });
    run("gelu", variant("oneDNN", dnnl::eltwise_forward(gelu_pd(md)), {{DNNL_ARG_SRC, src}, {DNNL_ARG_DST, dst}}, 0),
        [&](BenchWork& w) { w.fetches = {gelu(input(w))}; });
  }
  report(options, "kernel_lab fused", table, {{"groups", groups}});
}

int run_lab(int argc, char** argv) {
  CLI::App app("kernel_lab: what the libraries underneath and the machine give, measured bare.");
  app.require_subcommand(1);
  BenchOptions options;
  std::size_t megabytes = 256;
  std::string preset = "fashion";
  std::vector<std::string> product_sizes = {"1024x1024x1024", "6272x64x512"}, fused_sizes = {"6272x64", "262144x256"};
  const auto command = [&](const char* name, const char* help) {
    CLI::App* c = app.add_subcommand(name, help);
    add_bench_options(*c, options);
    return c;
  };
  CLI::App* c = command("ceilings", "Arithmetic and memory.");
  c->add_option("--megabytes", megabytes, "of each array")->check(CLI::Range(1, 16384))->capture_default_str();
  c->callback([&] {
    start_bench(options);
    const BenchGroup group = ceilings(cpu_backend(), megabytes << 20, options);
    report(options, "kernel_lab ceilings", to_text(group), {{"groups", {to_json(group)}}});
  });
  c = command("convolutions", "A step's convolutions by oneDNN's primitives and by the cpu backend.");
  c->add_option("preset", preset, "of the vqvae")->capture_default_str();
  c->callback([&] { convolutions(preset, options); });
  c = command("products", "oneDNN's matrix product.");
  c->add_option("sizes", product_sizes, "MxKxN")->capture_default_str();
  c->callback([&] { products(product_sizes, options); });
  c = command("fused", "oneDNN's fused operations against compositions.");
  c->add_option("sizes", fused_sizes, "ROWSxCOLUMNS")->capture_default_str();
  c->callback([&] { fused(fused_sizes, options); });
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  } catch (const Error& e) {
    fmt::print(stderr, "kernel_lab: {}\n", e.message());
    return e.kind() == ErrorKind::usage ? 2 : 1;
  }
}

}  // namespace
}  // namespace sg::tools

int main(int argc, char** argv) { return sg::tools::run_lab(argc, argv); }
