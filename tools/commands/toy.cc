// toy: gradient estimators in the plane, drawn.
#include "tools/toy.h"

#include <nlohmann/json.hpp>

#include "backends/backends.h"
#include "core/error.h"
#include "tools/commands/commands.h"

namespace sg::tools {
namespace {

struct ToyArguments {
  std::vector<std::string> estimators{"ste", "rotation"};
  std::string out, backend = "cpu";
  std::int64_t seeds = 1;
  ToyOptions options;
  bool json = false;
};

void toy(const ToyArguments& a) {
  Backend& backend = sg::backend(a.backend);
  std::vector<std::pair<std::string, ToyRun>> drawn;
  nlohmann::ordered_json out = {{"steps", a.options.steps}, {"seeds", a.seeds}, {"estimators", {}}};
  if (!a.json)
    fmt::print("  {:<24} {:>10} {:>10} {:>14} {:>14} {:>12}\n", "", "f(q) first", "last", "|z-q|^2 first", "last",
               "codes, last");
  for (const std::string& name : a.estimators) {
    double first = 0, last = 0, q_first = 0, q_last = 0, used = 0;
    nlohmann::ordered_json runs = nlohmann::ordered_json::array();
    for (std::int64_t s = 0; s < a.seeds; ++s) {
      ToyOptions options = a.options;
      options.seed += static_cast<std::uint32_t>(s);
      ToyRun run = run_toy(name, options, backend);
      const double share = 1.0 / static_cast<double>(a.seeds);
      first += share * run.loss.front(), last += share * run.loss.back(), used += share * run.used.back();
      q_first += share * run.quantization.front(), q_last += share * run.quantization.back();
      runs.push_back({{"seed", options.seed},
                      {"loss", run.loss.back()},
                      {"quantization", run.quantization.back()},
                      {"used", run.used.back()}});
      if (s == 0) drawn.emplace_back(name, std::move(run));
    }
    out["estimators"][name] = {{"loss_first", first},    {"loss", last}, {"quantization_first", q_first},
                               {"quantization", q_last}, {"used", used}, {"runs", runs}};
    if (!a.json)
      fmt::print("  {:<24} {:>10.4g} {:>10.4g} {:>14.4g} {:>14.4g} {:>12.3g}\n", name, first, last, q_first, q_last,
                 used);
  }
  if (!a.out.empty()) save_png(a.out, draw_toys(drawn, drawn.size() > 4 ? 3 : drawn.size() > 1 ? 2 : 1));
  if (a.json) fmt::print("{}\n", out.dump(2));
}

}  // namespace

void add_toy(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "toy", "Vector quantization in the plane: points fall down Himmelblau's function of their codes.");
  const auto a = std::make_shared<ToyArguments>();
  command->add_option("--estimators", a->estimators, "names, with commas between them")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--out", a->out, "PNG to draw the first seed's paths into");
  command->add_option("--points", a->options.points, "points")->check(CLI::Range(1, 10000))->capture_default_str();
  command->add_option("--codes", a->options.codes, "codes")->check(CLI::Range(1, 10000))->capture_default_str();
  command->add_option("--steps", a->options.steps, "steps")->check(CLI::Range(0, 100000))->capture_default_str();
  command->add_option("--lr", a->options.lr, "length of a step against the gradient")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--ema-decay", a->options.ema_decay, "of the codes' averages")->capture_default_str();
  command->add_option("--gamma", a->options.gamma, "weight of the commitment |z - q|^2 of each point")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--seed", a->options.seed, "of the points")->capture_default_str();
  command->add_option("--seeds", a->seeds, "how many seeds, from that one on; figures are means")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--backend", a->backend, "where it runs")->capture_default_str();
  command->add_flag("--json", a->json, "print JSON");
  command->footer(
      "Examples:\n"
      "  stopgrad toy --out toy.png\n"
      "  stopgrad toy --estimators ste,rotation,centred --seeds 10 --gamma 1");
  command->callback([a] { toy(*a); });
}

}  // namespace sg::tools
