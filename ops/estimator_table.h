// The table of gradient estimators by name, for flags and files: one row per estimator. A program adds its own rows
// with register_estimator() before it uses them; an estimator needs nothing else to be trained, audited and compared.
//
// Names may carry arguments: "radius:0.5", "two-parameter:1:0.5"; those that are left out have the row's default.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/estimators.h"

namespace sg {

// One lookup of a training step, as an estimator may see it. Rows are those that were compared. `assign`, `estimate`
// and `losses` of one lookup get the same z, codes, random and progress, so that they can draw the same noise
// (uniform_of).
struct Lookup {
  Value z;                        // (N,D) the encoder's rows
  Value codes;                    // (K,D) the codebook
  Value indices;                  // i32 (N); null while they are being assigned
  Value q;                        // (N,D) gather_rows(codes, indices); null while they are being assigned
  Value mask;                     // f32 (N): 1 a row, 0 padding (z and q are 0 there); null: all are rows. For means over
                                  // rows: mean_of_rows (ops/masks.h)
  Value random;                   // i32 [2], the step's random state (see ops/random.h); null in evaluation
  Value origin;                   // (D) running mean of z, stopped; only where the row says needs_origin
  Value progress;                 // f32 scalar in [0,1]: share of the run that is done, for schedules
  std::vector<double> arguments;  // as many as the row has parameters
};

struct EstimatorParameter {
  std::string name;
  double value;  // default
  double least, most;
};

struct EstimatorDef {
  std::string name;
  std::string formula;   // z_q as a composition, with sg[.]
  std::string jacobian;  // d z_q / d z; what reaches q too, if anything does
  std::string source;    // paper
  std::vector<EstimatorParameter> parameters;
  // z_q (N,D). Not called in evaluation, where z_q is q.
  std::function<Value(const Lookup&)> estimate;
  // Indices i32 (N) where they are not those of the nearest code: by sampling, or by another score. In evaluation
  // (random is null) without noise.
  std::function<Value(const Lookup&)> assign;
  // For estimators that need more than z and q: a scalar of forward value 0 that is added to the training loss, given
  // the loss as a function of z_q (on the tape).
  std::function<Value(Value loss, const Lookup&, Value z_q)> loss_term;
  // Further losses of the quantizer that belong to the estimator (a KL term): named scalars with weights.
  struct Term {
    std::string name;
    Value value;
    double weight;
  };
  std::function<std::vector<Term>(const Lookup&)> losses;
  bool rows_only = false;     // `estimate` looks at z, q and the arguments only, and the row has no other function
  bool exact_forward = true;  // z_q is the code's row bit for bit
  // Where that depends on the arguments: decides exact_forward when they are bound.
  std::function<bool(const std::vector<double>&)> exact_forward_if;
  bool reaches_codes = false;  // a gradient goes through z_q to q or to the codes
  bool needs_origin = false;
};

// A row with its arguments: what a quantizer is configured with. Converts from a plain function of z and q.
struct BoundEstimator {
  template <class F>
  requires(std::is_invocable_r_v<Value, const F&, Value, Value> && !std::is_same_v<F, BoundEstimator>)
      BoundEstimator(F function, std::string name = "custom")  // NOLINT(google-explicit-constructor)
      : BoundEstimator(from_function(std::move(function), std::move(name))) {}
  BoundEstimator(EstimatorDef def, std::vector<double> arguments);
  BoundEstimator(std::string_view text);   // NOLINT(google-explicit-constructor): estimator_by_name(text)
  BoundEstimator(const std::string& text)  // NOLINT(google-explicit-constructor)
      : BoundEstimator(std::string_view(text)) {}
  BoundEstimator(const char* text) : BoundEstimator(std::string_view(text)) {}  // NOLINT(google-explicit-constructor)

  std::string text() const;  // "name" or "name:argument:...", as estimator_by_name reads it
  bool operator==(const BoundEstimator& other) const { return text() == other.text(); }
  // z_q of rows and their codes, for rows_only estimators; Error{usage} for the others.
  Value operator()(Value z, Value q) const;

  EstimatorDef def;
  std::vector<double> arguments;

 private:
  static BoundEstimator from_function(Estimator function, std::string name);
};

// Adds a row. Error{usage}: a name that is empty, taken or has a ':' or ',', no `estimate`, a default out of its range.
// Not thread-safe: call it at the start of main().
void register_estimator(EstimatorDef def);
void register_estimator(std::string name, Estimator function, std::string formula = "", std::string jacobian = "");

// "name" or "name:argument:..."; Error{usage} listing the rows, or naming the argument and its range.
BoundEstimator estimator_by_name(std::string_view text);
std::vector<std::string> estimator_names();
std::vector<std::string> rows_only_estimator_names();  // those that operator()(z, q) serves
const std::vector<EstimatorDef>& estimator_table();

}  // namespace sg
