// Cases: what the conformance suite, gradcheck and the coverage table run over. Add one where you add an op: a line in
// the file of its family. A case is a function of input tensors that are drawn from a seed.
#pragma once
#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/tape.h"

namespace sg::test {

using Rng = std::mt19937_64;
using Draw = std::function<Tensor(Rng&)>;  // an input: f32 or i32
using Build = std::function<Value(Tape&, std::span<const Value>)>;

struct Case {
  std::string op;    // of op_list.inc, or the name of a composition
  std::string name;  // unique under its op
  std::vector<Draw> inputs;
  Build build;
  double c = 16;  // tolerance: atol + c eps sqrt(K) scale
  double atol = 1e-6;
  bool pointwise = false;     // each element is compared by its own size, not by that of the whole result
  bool forward_only = false;  // the gradients are not compared (NaN inputs, ties)
  bool gradcheck = true;      // off: at a kink, or too large
  bool decomposes = false;    // an op that only some backends' fuse() makes: the others run its decomposition
  // Compares two results of ops that may choose differently within rounding. Null: as reals or integers.
  std::function<std::string(std::span<const Tensor> inputs, const Tensor& got, const Tensor& want)> compare = nullptr;

  Case& accuracy(double factor, double absolute = 1e-6) {
    c = factor, atol = absolute;
    return *this;
  }
  Case& no_gradient() {
    forward_only = true, gradcheck = false;
    return *this;
  }
  Case& no_gradcheck() {
    gradcheck = false;
    return *this;
  }
  Case& may_decompose() {
    decomposes = true;
    return *this;
  }
  Case& per_element() {
    pointwise = true;
    return *this;
  }
};

class CaseList {
 public:
  // The returned reference lives until the next add.
  Case& add(std::string op, std::string name, std::vector<Draw> inputs, Build build);
  std::vector<Case>& cases() { return cases_; }

 private:
  std::vector<Case> cases_;
};

// One function for each family, each in its own file.
void add_elementwise_cases(CaseList&);
void add_reduce_cases(CaseList&);
void add_shape_cases(CaseList&);
void add_matmul_cases(CaseList&);
void add_conv_cases(CaseList&);
void add_index_cases(CaseList&);
void add_norm_cases(CaseList&);
void add_random_cases(CaseList&);
void add_composition_cases(CaseList&);

const std::vector<Case>& all_cases();

// The inputs of a case under a seed; the same on every machine.
std::vector<Tensor> draw_inputs(const Case& c, std::uint32_t seed);

// Ways to draw an input. Reals are f32; their absolute values keep away from 0 where a name says so.
Draw normal_reals(Shape shape, double scale = 1, double mean = 0);
Draw uniform_reals(Shape shape, double lo, double hi);
Draw nonzero_reals(Shape shape, double lo = 0.3, double hi = 2);  // |x| in [lo, hi], either sign
Draw distinct_reals(Shape shape);                                 // a shuffled grid: no ties, gaps of 0.01
Draw small_integers(Shape shape, int lo, int hi);                 // as reals: sums are exact
Draw indices(Shape shape, int below);                             // i32 in [0, below)
Draw ints(Shape shape, std::vector<std::int32_t> values);
Draw reals(Shape shape, std::vector<float> values);
Draw special_reals(Shape shape);  // NaN, infinities, zeros of both signs, large, tiny

}  // namespace sg::test
