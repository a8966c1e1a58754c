#include "backends/backends.h"
#include "core/error.h"
#include "models/quantizers/quantizer.h"
#include "tools/commands/commands.h"
#include "tools/data/dataset.h"

namespace sg::tools {
namespace {

std::string instruction_set() {
#if defined(__x86_64__)
  std::string out = "x86-64";
  if (__builtin_cpu_supports("avx2")) out += " avx2";
  if (__builtin_cpu_supports("fma")) out += " fma";
  if (__builtin_cpu_supports("avx512f")) out += " avx512f";
  if (__builtin_cpu_supports("avx512bw")) out += " avx512bw";
  if (__builtin_cpu_supports("avx512vnni")) out += " avx512vnni";
  return out;
#elif defined(__aarch64__)
  return "aarch64 neon";
#else
  return "generic";
#endif
}

void show_info() {
  fmt::print("stopgrad {}\n", SG_VERSION);
  fmt::print("processor: {}\n", instruction_set());
  fmt::print("threads:   {}\n", threads());
  fmt::print("backends:\n");
  const std::string backends = describe_backends();
  for (std::string_view rest = backends; !rest.empty();) {
    const std::size_t end = rest.find('\n');
    fmt::print("  {}\n", rest.substr(0, end));
    rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
  }
  fmt::print("data sets are looked for in:\n");
  for (const auto& folder : data_search_path()) fmt::print("  {}\n", folder.string());
}

void show_estimators() {
  for (const EstimatorDef& def : estimator_table()) {
    std::string name = def.name, arguments;
    for (const EstimatorParameter& p : def.parameters) {
      name += ":" + p.name;
      arguments += fmt::format("{}{} from {:g} to {:g}, {:g} where it is left out", arguments.empty() ? "" : "; ",
                               p.name, p.least, p.most, p.value);
    }
    fmt::print("{}\n  z_q       {}\n  dz_q/dz   {}\n", name, def.formula.empty() ? "not stated" : def.formula,
               def.jacobian.empty() ? "not stated" : def.jacobian);
    if (!arguments.empty()) fmt::print("  arguments {}\n", arguments);
    if (!def.source.empty()) fmt::print("  source    {}\n", def.source);
  }
}

void show_quantizers() {
  for (const QuantizerDef& def : quantizer_table()) fmt::print("{:<20} {}\n", def.name, def.summary);
}

struct InfoArguments {
  bool estimators = false, quantizers = false;
};

}  // namespace

void add_info(CLI::App& app) {
  CLI::App* command = app.add_subcommand("info", "Version, backends, threads, instruction set; what names stand for.");
  const auto a = std::make_shared<InfoArguments>();
  command->add_flag("--estimators", a->estimators, "what --estimator may be, with formula, Jacobian and source");
  command->add_flag("--quantizers", a->quantizers, "what --quantizer may be");
  command->footer("Examples:\n  stopgrad info\n  stopgrad info --estimators");
  command->callback([a] {
    if (a->estimators) show_estimators();
    if (a->quantizers) show_quantizers();
    if (!a->estimators && !a->quantizers) show_info();
  });
}

}  // namespace sg::tools
