// A training step to time, of any model by its settings, and its parts.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "core/program.h"
#include "tools/bench_work.h"
#include "tools/config.h"

namespace sg::tools {

// The compiled training step of a model, fed once with drawn data: zeros as input take another time than data do.
// Making one runs it once.
class BenchStep {
 public:
  explicit BenchStep(const TrainConfig& config, bool profile = false);  // Error{usage}
  ~BenchStep();
  BenchStep(const BenchStep&) = delete;
  BenchStep& operator=(const BenchStep&) = delete;

  void run();  // and reads the loss back
  double loss() const { return loss_; }
  const Program& program() const;
  Backend& backend() const;
  const std::string& data() const { return data_; }  // "128 images of 28x28x1"
  double units() const;                              // of a step
  std::string unit() const;                          // "images"

  // What went before: milliseconds of recording, compiling and the first run, and seconds since the process was started
  // at its end; instructions recorded.
  double record_ms = 0, compile_ms = 0, first_run_ms = 0, first_step_s = 0;
  std::size_t instructions = 0;

 private:
  struct State;
  std::unique_ptr<State> state_;
  std::string data_;
  double loss_ = 0;
};

// Instructions of a compiled step that are the same work: one of them as a program of its own, and how often.
struct StepPart {
  std::string name, what;  // the op; its types
  bool product = false;
  int count = 1;
  BenchWork work;
};
std::vector<StepPart> parts_of(const Tape& compiled, Backend& backend, bool products_only);

}  // namespace sg::tools
