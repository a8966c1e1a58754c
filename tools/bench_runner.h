// Times variants of a piece of work in alternation: every round runs each of them, in an order that turns from round to
// round, so that a disturbance of the machine meets all alike. A ratio is taken within a round; what is reported is the
// median over rounds with the least and the greatest.
#pragma once
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace sg {
class Backend;
}

namespace sg::tools {

// What every bench command takes.
struct BenchOptions {
  std::int64_t threads = 0, rounds = 9;
  double slice = 0.02;  // seconds: within a round a variant is repeated until they are over
  std::string backend = "cpu";
  std::string json;  // file for the figures; "-": standard output, and no table
};

struct Spread {
  double median = 0, least = 0, greatest = 0;
};
Spread spread(std::vector<double> values);         // of at least one
std::string to_text(const Spread& s, int digits);  // "1.02 (0.99-1.10)"
nlohmann::ordered_json to_json(const Spread& s);

struct BenchVariant {
  std::string name;
  std::function<void()> run;
  double bytes = 0, flop = 0;        // of one run, counted from shapes; 0: not stated
  std::vector<double> seconds = {};  // of one run, for each round
};

struct BenchGroup {
  std::string title;
  std::vector<BenchVariant> variants;
  std::string reference_name = {};  // what ratios are to
  std::function<double(const BenchGroup&, std::size_t round)> reference =
      {};  // its seconds; null: those of the first variant
  std::string note = {};

  const BenchVariant& variant(std::string_view name) const;  // Error{internal} where there is none
  Spread time(const BenchVariant& variant) const;            // seconds
  Spread ratio(const BenchVariant& variant) const;
};

// Runs each variant twice to warm it up, then the rounds. A time ends when the backend is done with what was enqueued.
void measure(BenchGroup& group, const BenchOptions& options);

// One line a variant, with rates where bytes or operations are known.
std::string to_text(const BenchGroup& group);
nlohmann::ordered_json to_json(const BenchGroup& group);

// Sets the threads; the backend. Error{usage} where it is emulated: its times mean nothing.
Backend& start_bench(const BenchOptions& options);
void refuse_emulated(const Backend& backend);
// Writes what a command measured: the table to standard output unless JSON goes there. The figures get the name of the
// command, the processor, the threads and the instruction set in front. Error{io}.
void report(const BenchOptions& options, std::string_view command, const std::string& table,
            nlohmann::ordered_json figures);

}  // namespace sg::tools
