#include "backends/backends.h"
#include "core/error.h"
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

}  // namespace

void add_info(CLI::App& app) {
  CLI::App* command = app.add_subcommand("info", "Version, backends, threads, instruction set.");
  command->footer("Examples:\n  stopgrad info");
  command->callback([] { show_info(); });
}

}  // namespace sg::tools
