// tape: the instructions of a model, as text or as a graph.
#include <fmt/ranges.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "core/error.h"
#include "tools/commands/commands.h"
#include "tools/files.h"
#include "tools/graph.h"
#include "tools/session.h"

extern char** environ;

namespace sg::tools {
namespace {

struct TapeArguments {
  std::string what, format = "text", part = "forward", out;
  std::unique_ptr<ConfigFlags> flags;
};

// Removes itself.
struct TemporaryFile {
  std::filesystem::path path = std::filesystem::temp_directory_path() / fmt::format("stopgrad-tape-{}.dot", getpid());
  ~TemporaryFile() {
    std::error_code ec;
    std::filesystem::remove(path, ec);
  }
};

bool on_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  for (std::string_view rest = path == nullptr ? "" : path; !rest.empty();) {
    const std::size_t colon = rest.find(':');
    if (access((std::filesystem::path(rest.substr(0, colon)) / program).c_str(), X_OK) == 0) return true;
    rest = colon == std::string_view::npos ? std::string_view{} : rest.substr(colon + 1);
  }
  return false;
}

std::string to_svg(const std::string& dot) {
  if (!on_path("dot"))
    fail(ErrorKind::unsupported,
         "tape: --format svg needs the program `dot` of graphviz (sudo apt-get install graphviz); --format dot and "
         "text do not");
  TemporaryFile in, out;
  out.path += ".svg";
  write_text_atomically(in.path, dot);
  std::string program = "dot", kind = "-Tsvg", to = "-o", target = out.path.string(), source = in.path.string();
  char* const argv[] = {program.data(), kind.data(), to.data(), target.data(), source.data(), nullptr};
  pid_t child = 0;
  int status = 0;
  if (posix_spawnp(&child, "dot", nullptr, nullptr, argv, environ) != 0 || waitpid(child, &status, 0) != child ||
      status != 0)
    fail(ErrorKind::io, "tape: `dot` failed on the graph; --format dot gives it as it is");
  const std::vector<std::byte> bytes = read_file(out.path);
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

void show_tape(const TapeArguments& a) {
  const std::unique_ptr<Task> task = describe(a.what, *a.flags);
  Tape tape;
  std::vector<Value> roots;  // none: the whole tape is shown
  if (a.part == "forward" || a.part == "step") {
    const TaskStep step = task->record(tape, IfUnreachable::error);
    if (a.part == "forward") roots = step.forward;
  } else {
    const std::vector<std::string> parts = task->parts();
    if (std::find(parts.begin(), parts.end(), a.part) == parts.end())
      fail(ErrorKind::usage, "tape: {} has no part '{}'; it has: forward, step{}{}", task->config().model, a.part,
           parts.empty() ? "" : ", ", fmt::join(parts, ", "));
    task->record_part(tape, a.part);
  }
  const std::vector<std::int32_t> shown = roots.empty() ? all_instructions(tape) : instructions_behind(tape, roots);

  std::string text = a.format == "text" ? to_text(tape, shown)
                                        : to_dot(tape, shown, fmt::format("{} ({})", task->config().model, a.part));
  if (a.format == "svg") text = to_svg(text);
  if (a.out.empty()) {
    std::fwrite(text.data(), 1, text.size(), stdout);
  } else {
    write_text_atomically(a.out, text);
    fmt::print("{} instructions -> {}\n", shown.size(), a.out);
  }
}

}  // namespace

void add_tape(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "tape", "Show the instructions that a model records: text, or a graph in which stop-gradients stand out.");
  const auto a = std::make_shared<TapeArguments>();
  command->add_option("WHAT", a->what, fmt::format("model ({}) or run folder", model_list()))->required();
  command->add_option("--format", a->format, "text, dot or svg (needs graphviz)")
      ->check(CLI::IsMember({"text", "dot", "svg"}))
      ->capture_default_str();
  command
      ->add_option("--part", a->part,
                   "forward (what the losses are made of), step (gradients, optimizer and all), "
                   "or what else the model has (vqvae: evaluate, encode, decode)")
      ->capture_default_str();
  command->add_option("--out", a->out, "file to write; without it the standard output");
  a->flags =
      std::make_unique<ConfigFlags>(*command, std::vector<std::string_view>{"Model", "Quantizer", "Training"}, "WHAT");
  command->footer(
      "Examples:\n"
      "  stopgrad tape vqvae --estimator rotation\n"
      "  stopgrad tape vqvae --format svg --out vqvae.svg\n"
      "  stopgrad tape runs/first --part step");
  command->callback([a] { show_tape(*a); });
}

}  // namespace sg::tools
