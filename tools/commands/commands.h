// The commands of the program. Each add_* declares one on the parser; its work runs when the parser met it.
#pragma once
#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tools/config.h"
#include "tools/session.h"

namespace sg::tools {

void add_train(CLI::App& app);
void add_evaluate(CLI::App& app);
void add_encode(CLI::App& app);
void add_decode(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_sample(CLI::App& app);
void add_generate(CLI::App& app);
void add_tape(CLI::App& app);
void add_audit(CLI::App& app);
void add_compare(CLI::App& app);
void add_info(CLI::App& app);
void add_bench(CLI::App& app);
void add_probe(CLI::App& app);
void add_toy(CLI::App& app);

// Flags for the settings of some groups, by the group's name up to a parenthesis. Values given on the command line go
// over those of a config file or a run. --help of a command that was given a model (in its positional `model_option`)
// shows the flags and the defaults of that model, otherwise those of all.
class ConfigFlags {
 public:
  // except: keys that the command has flags of its own for.
  ConfigFlags(CLI::App& command, std::vector<std::string_view> groups, const std::string& model_option = "",
              std::vector<std::string_view> except = {});
  bool given(std::string_view key) const;
  // `base`, then its preset where --preset was given, then the other flags that were given. Error{usage}: a flag that
  // the model of `base` has not.
  TrainConfig over(TrainConfig base) const;
  void show_only(std::string_view model) const;  // in --help
  std::vector<std::string_view> given_keys() const;

 private:
  struct Flag {
    const ConfigField* field;
    CLI::Option* option;
  };
  TrainConfig values_;
  std::vector<Flag> flags_;
};

// What `tape` and `audit` are asked about: a run folder, or a model by name with the sizes of its preset. Made without
// data: only sizes matter there.
std::unique_ptr<Task> describe(const std::string& what, const ConfigFlags& flags);

// "vqvae, ae, ...", for help texts.
std::string model_list();

}  // namespace sg::tools
