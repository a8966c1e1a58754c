// bench: what a piece of work takes, against what the machine could do.
#include "tools/commands/bench.h"

#include <charconv>

#include "core/error.h"

namespace sg::tools {

void add_bench_options(CLI::App& command, BenchOptions& options, bool threads) {
  command.add_option("--rounds", options.rounds, "rounds, in each of which everything is timed once")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command.add_option("--slice", options.slice, "seconds for which a variant is repeated within a round")
      ->check(CLI::Range(0.0, 60.0))
      ->capture_default_str();
  command.add_option("--json", options.json, "write the figures to this file; - is standard output, without a table");
  if (threads)
    command.add_option("--threads", options.threads, "threads; 0: as many as the processor has")
        ->check(CLI::Range(0, 4096))
        ->capture_default_str();
}

std::vector<std::int64_t> parse_extents(const std::string& flag, const std::string& text, std::size_t count) {
  std::vector<std::int64_t> extents;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    std::int64_t extent = 0;
    const auto [next, error] = std::from_chars(at, end, extent);
    if (error != std::errc{} || extent < 1 || extent > (std::int64_t{1} << 31)) break;
    extents.push_back(extent);
    at = next;
    if (at == end) break;
    if (*at != 'x' || at + 1 == end) {
      extents.clear();
      break;
    }
    ++at;
  }
  if (at != end || extents.size() != count)
    fail(ErrorKind::usage, "{} '{}' is not {} positive numbers with x between them, such as {}", flag, text, count,
         count == 2 ? "6272x64" : "6272x64x512");
  return extents;
}

void add_bench(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "bench", "Time training steps, ops and start-up, against floors that are measured in the same run.");
  add_bench_step(*command);
  add_bench_start(*command);
  add_bench_scaling(*command);
  add_bench_ops(*command);
  add_bench_nearest(*command);
  add_bench_rotation(*command);
  add_bench_quantizer(*command);
  command->require_subcommand(0, 1);
  command->allow_extras();  // after the commands were added, which would inherit it
  command->callback([command] {
    if (!command->get_subcommands().empty()) return;
    std::vector<std::string> names;
    for (const CLI::App* c : command->get_subcommands([](const CLI::App*) { return true; }))
      names.push_back(c->get_name());
    const std::vector<std::string> extras = command->remaining();
    fail(ErrorKind::usage, "bench: {}; choose one of: {}",
         extras.empty() ? "of what?" : fmt::format("'{}' is no benchmark", extras.front()), fmt::join(names, ", "));
  });
  command->footer(
      "Examples:\n  stopgrad bench step\n  stopgrad bench step vqvae --preset large --threads 1 --parts\n  "
      "stopgrad bench ops --only softmax --json ops.json\n  stopgrad bench rotation");
}

}  // namespace sg::tools
