// generate: tokens that a trained transformer-vq continues a prompt with.
#include "core/error.h"
#include "tools/commands/commands.h"
#include "tools/npy.h"
#include "tools/session.h"
#include "tools/tasks/transformer_vq_task.h"

namespace sg::tools {
namespace {

struct Arguments {
  std::string run, prompt, out;
  std::int64_t length = 256, seed = 1, klass = -1;
  SamplingOptions options;
  std::unique_ptr<ConfigFlags> flags;
};

void generate(const Arguments& a) {
  const RestoredTask run = restore_task(
      a.run,
      [&](const TrainConfig& saved) {
        TrainConfig config = a.flags->over(saved);
        config.epochs = 0;  // the length of the run does not matter any more
        return config;
      },
      nullptr);
  auto* task = dynamic_cast<TransformerVqTask*>(run.task.get());
  if (task == nullptr)
    fail(ErrorKind::usage, "generate: {} is a run of {}; only transformer-vq continues a text", a.run,
         run.task->config().model);
  if (!task->of_bytes() && a.out.empty())
    fail(ErrorKind::usage, "generate: the tokens of {} are no text; --out FILE.npy is needed", a.run);
  std::vector<std::int32_t> prompt;
  for (const char c : a.prompt) prompt.push_back(static_cast<unsigned char>(c));
  const std::vector<std::int32_t> tokens = task->generate(
      prompt, a.length, a.options, static_cast<std::uint32_t>(a.seed), start_backend(run.task->config()), a.klass);
  if (!a.out.empty()) {
    write_npy(a.out, Tensor::of<std::int32_t>({1, a.length}, std::span<const std::int32_t>(tokens)));
    fmt::print("{} tokens -> {}\n", a.length, a.out);
    return;
  }
  std::string text = a.prompt;
  for (const std::int32_t token : tokens) text += static_cast<char>(token);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt with a trained transformer-vq.");
  auto a = std::make_shared<Arguments>();
  command->add_option("RUN", a->run, "run folder")->required();
  command->add_option("--prompt", a->prompt, "text that comes first; empty: a line break");
  command->add_option("--length", a->length, "tokens to make")->capture_default_str()->check(CLI::Range(1, 1 << 24));
  command->add_option("--class", a->klass, "class of the row to make, where the run was trained with --conditional");
  command->add_option("--temperature", a->options.temperature, "logits are divided by it; 0: always the likeliest")
      ->capture_default_str();
  command->add_option("--top-k", a->options.top_k, "draw from the k likeliest; 0: all")->capture_default_str();
  command->add_option("--top-p", a->options.top_p, "draw from the fewest likeliest of this probability together")
      ->capture_default_str();
  command->add_option("--seed", a->seed, "the same seed gives the same text")
      ->capture_default_str()
      ->check(CLI::Range(0, 2147483647));
  command->add_option("--out", a->out, "write the tokens to this .npy file instead");
  a->flags = std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Run"});
  command->footer(
      "Examples:\n"
      "  stopgrad generate runs/text --prompt 'a small ' --length 400 --temperature 0.8 --top-p 0.95\n"
      "  stopgrad generate runs/tokens --length 49 --out new.npy");
  command->callback([a] { generate(*a); });
}

}  // namespace sg::tools
