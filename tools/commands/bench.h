// The parts of `stopgrad bench`: each adds one command to it.
#pragma once
#include "tools/bench_runner.h"
#include "tools/commands/commands.h"

namespace sg::tools {

void add_bench_step(CLI::App& bench);
void add_bench_start(CLI::App& bench);
void add_bench_scaling(CLI::App& bench);
void add_bench_ops(CLI::App& bench);
void add_bench_nearest(CLI::App& bench);
void add_bench_rotation(CLI::App& bench);
void add_bench_quantizer(CLI::App& bench);

// Adds --rounds, --slice, --json, and --threads where `threads`.
void add_bench_options(CLI::App& command, BenchOptions& options, bool threads = true);

// "6272x64" as extents. Error{usage} naming the flag where there are not `count` of them, all positive.
std::vector<std::int64_t> parse_extents(const std::string& flag, const std::string& text, std::size_t count);

}  // namespace sg::tools
