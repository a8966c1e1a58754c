// Optimizers as instructions: they append their update to the tape and keep their state in Variables, so that one
// Program::run() is one whole training step and a checkpoint of the variables is all that a resume needs.
// Formulas are those of PyTorch's optimizers of the same names.
#pragma once
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/tape.h"

namespace sg {

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // The parameters' values after one step, in their order; the optimizer's own state is assigned. grads[i] has the type
  // of parameter i; lr is a real scalar, an input as a rule. Error{usage|shape}: as many gradients as parameters, same
  // types.
  std::vector<Value> update(Tape& tape, std::span<const Value> grads, Value lr, Loc loc = Loc::current());
  // update(), and the parameters are assigned.
  void apply(Tape& tape, std::span<const Value> grads, Value lr, Loc loc = Loc::current());

  std::span<Variable* const> parameters() const { return parameters_; }
  std::vector<Variable*> state();  // named "<name>...": what a checkpoint holds besides the parameters

 protected:
  explicit Optimizer(std::vector<Variable*> parameters, std::string name = "optimizer")
      : parameters_(std::move(parameters)), name_(std::move(name)) {}
  Variable& add_state(std::string name, TensorType type);  // zeros
  std::vector<Variable*> add_moments(
      std::string_view kind);  // one per parameter, of its type: "<name>.<kind>.<parameter>"
  // Assigns the state; returns the new values. Runs at the user's line, within a scope "optimizer".
  virtual std::vector<Value> record(Tape& tape, std::span<const Value> grads, Value lr, Loc loc) = 0;

  std::vector<Variable*> parameters_;
  std::string name_;

 private:
  std::deque<Variable> state_;
};

struct SgdOptions {
  double momentum = 0;      // b <- momentum b + g
  double weight_decay = 0;  // g <- g + weight_decay p
  bool nesterov = false;    // steps along g + momentum b instead of b
};
class Sgd final : public Optimizer {
 public:
  explicit Sgd(std::vector<Variable*> parameters, SgdOptions options = {});

 private:
  std::vector<Value> record(Tape& tape, std::span<const Value> grads, Value lr, Loc loc) override;
  SgdOptions options_;
  std::vector<Variable*> momentum_;  // empty without momentum
};

struct AdamOptions {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  std::string name = "optimizer";  // what its state's names begin with: two optimizers of one run need two
};
// m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,  p <- p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps) (1412.6980)
// weight_decay is added to the gradient: g + weight_decay p. The bias corrections are computed on the tape in f64.
class Adam : public Optimizer {
 public:
  explicit Adam(std::vector<Variable*> parameters, AdamOptions options = {})
      : Adam(std::move(parameters), options, false) {}

 protected:
  Adam(std::vector<Variable*> parameters, AdamOptions options, bool decoupled);

 private:
  std::vector<Value> record(Tape& tape, std::span<const Value> grads, Value lr, Loc loc) override;
  AdamOptions options_;
  bool decoupled_;
  Variable* steps_;  // f64 scalar: t of the last step
  std::vector<Variable*> m_, v_;
};

// Adam with decoupled decay: p <- (1 - lr weight_decay) p before the step. (1711.05101)
class AdamW final : public Adam {
 public:
  explicit AdamW(std::vector<Variable*> parameters,
                 AdamOptions options = {.beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 1e-2})
      : Adam(std::move(parameters), options, true) {}
};

// "sgd" (momentum 0.9), "adam", "adamw". Error{usage} listing them.
std::unique_ptr<Optimizer> optimizer_by_name(std::string_view name, std::vector<Variable*> parameters,
                                             double weight_decay = 0);
std::vector<std::string> optimizer_names();

// Gradients scaled by min(1, max_norm / (norm + 1e-6)), norm being the Euclidean norm of all of them together.
// max_norm 0: as they are.
struct ClippedGradients {
  std::vector<Value> grads;
  Value norm;  // before clipping
};
Value global_norm(std::span<const Value> grads, Loc loc = Loc::current());
ClippedGradients clip_by_global_norm(std::span<const Value> grads, double max_norm, Loc loc = Loc::current());

}  // namespace sg
