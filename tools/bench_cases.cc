#include "tools/bench_cases.h"

#include <algorithm>

#include "core/autodiff.h"
#include "models/optim.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg::tools {
namespace {

using Int = std::int64_t;

constexpr Int kGroups = 8;  // of group_norm: with rows x columns as (rows / 64, 64, columns) maps
constexpr Int kRowsOfImage = 64, kRowsPerTableRow = 16;

struct Sizes {
  Int rows, columns;
  TensorType full() const { return {DType::f32, {rows, columns}}; }
  TensorType column() const { return {DType::f32, {columns}}; }
  TensorType indices() const { return {DType::i32, {rows}}; }
  Int table_rows() const { return std::max<Int>(1, rows / kRowsPerTableRow); }
  TensorType table() const { return {DType::f32, {table_rows(), columns}}; }
};

using Unary = Value (*)(Operand);
using Binary = Value (*)(Operand, Operand);

BenchCase unary(std::string name, Unary f, bool positive = false) {
  return {std::move(name), false,
          [f](BenchWork& w, Int rows, Int columns) {
            w.fetches = {f(w.tape->input("x", Sizes{rows, columns}.full()))};
          },
          positive};
}

BenchCase binary(std::string name, Binary f) {
  return {std::move(name), false, [f](BenchWork& w, Int rows, Int columns) {
            const TensorType type = Sizes{rows, columns}.full();
            w.fetches = {f(w.tape->input("a", type), w.tape->input("b", type))};
          }};
}

// An op or composition of one array, and of no, one or two parameters (columns).
using Rows = Value (*)(std::span<const Value> inputs);

BenchCase of_rows(std::string name, Rows f, int parameters, bool backward) {
  return {name + (backward ? " forward+backward" : ""), true, [=](BenchWork& w, Int rows, Int columns) {
            const Sizes s{rows, columns};
            std::vector<Value> inputs = {w.tape->input("x", s.full())};
            for (const char* parameter : {"gamma", "beta"})
              if (static_cast<int>(inputs.size()) <= parameters) inputs.push_back(w.tape->input(parameter, s.column()));
            const Value y = f(inputs);
            w.fetches = backward ? with_gradients(y, inputs) : std::vector<Value>{y};
          }};
}

Value of_group_norm(std::span<const Value> in) {
  const Value x = in[0];
  const Int rows = x.shape()[0], columns = x.shape()[1], image = rows % kRowsOfImage == 0 ? kRowsOfImage : 1;
  const Value images = reshape(x, {rows / image, image, columns});
  return reshape(group_norm(images, in[1], in[2], columns % kGroups == 0 ? kGroups : 1), x.shape());
}

void record_adam(BenchWork& w, Int rows, Int columns) {
  struct State {
    explicit State(const TensorType& type) : parameter("p", drawn(type)), adam({&parameter}) {}
    Variable parameter;
    Adam adam;
  };
  const TensorType type = Sizes{rows, columns}.full();
  const auto state = std::make_shared<State>(type);
  w.kept.push_back(state);
  state->adam.apply(*w.tape, std::vector<Value>{w.tape->input("g", type)}, w.tape->constant(1e-3, {DType::f32, {}}));
}

std::vector<BenchCase> make_cases() {
  std::vector<BenchCase> cases = {
      binary("add", [](Operand a, Operand b) { return a + b; }),
      binary("mul", [](Operand a, Operand b) { return a * b; }),
      binary("div", [](Operand a, Operand b) { return a / b; }),
      unary("relu", relu),
      unary("exp", exp),
      unary("log", log, true),
      unary("sqrt", sqrt, true),
      unary("tanh", tanh),
      unary("sigmoid", sigmoid),
      unary("silu", silu),
      unary("softplus", softplus),
      unary("gelu", gelu),
      unary("sum of rows", [](Operand x) { return sum(x, {-1}); }),
      unary("sum of columns", [](Operand x) { return sum(x, {0}); }),
      unary("sum of all", [](Operand x) { return sum(x); }),
      unary("max of rows", [](Operand x) { return max(x, {-1}); }),
      unary("argmax of rows", [](Operand x) { return argmax(x); }),
      unary("transpose",
            [](Operand x) {
              return transpose(x, {1, 0});
            }),
  };
  const auto op = [&](std::string name, auto record) {
    cases.push_back({std::move(name), false, [record](BenchWork& w, Int rows, Int columns) {
                       w.fetches = {record(*w.tape, Sizes{rows, columns})};
                     }});
  };
  op("gather_rows", [](Tape& t, Sizes s) { return gather_rows(t.input("t", s.table()), t.input("i", s.indices())); });
  op("scatter_add_rows", [](Tape& t, Sizes s) {
    return scatter_add_rows(t.input("i", s.indices()), t.input("x", s.full()), s.table_rows());
  });
  op("histogram", [](Tape& t, Sizes s) { return histogram(t.input("i", s.indices()), s.table_rows()); });
  op("normal", [](Tape& t, Sizes s) { return normal(t.input("state", {DType::i32, {2}}), s.full().shape); });
  op("matmul by columns x columns", [](Tape& t, Sizes s) {
    return matmul(t.input("x", s.full()), t.input("w", {DType::f32, {s.columns, s.columns}}));
  });

  const auto add = [&](const char* name, int parameters, Rows f) {
    cases.push_back(of_rows(name, f, parameters, false));
    cases.push_back(of_rows(name, f, parameters, true));
  };
  add("softmax", 0, [](std::span<const Value> in) { return softmax(in[0]); });
  add("log_softmax", 0, [](std::span<const Value> in) { return log_softmax(in[0]); });
  add("layer_norm", 2, [](std::span<const Value> in) { return layer_norm(in[0], in[1], in[2]); });
  add("rms_norm", 1, [](std::span<const Value> in) { return rms_norm(in[0], in[1]); });
  add("group_norm", 2, of_group_norm);
  cases.push_back(of_rows(
      "gelu", [](std::span<const Value> in) { return gelu(in[0]); }, 0, true));
  cases.push_back({.name = "cross_entropy forward+backward",
                   .region = true,
                   .record =
                       [](BenchWork& w, Int rows, Int columns) {
                         const Sizes s{rows, columns};
                         const Value x = w.tape->input("x", s.full()), labels = w.tape->input("i", s.indices());
                         w.fetches = with_gradients(cross_entropy(x, labels), std::vector<Value>{x});
                       },
                   .labels = true});
  cases.push_back({"adam", true, record_adam});
  cases.push_back({"rotation_trick forward+backward", true, [](BenchWork& w, Int rows, Int columns) {
                     const TensorType type = Sizes{rows, columns}.full();
                     const Value z = w.tape->input("z", type), q = w.tape->input("q", type);
                     w.fetches = with_gradients(rotation_trick(z, q), std::vector<Value>{z});
                   }});
  return cases;
}

}  // namespace

Int BenchCase::index_limit(Int rows, Int columns) const { return labels ? columns : Sizes{rows, columns}.table_rows(); }

std::vector<Value> with_gradients(Value y, std::span<const Value> wrt) {
  const Value cotangent = y.tape->input("cotangent", y.type());
  std::vector<Value> out = {y};
  for (const Value gradient : gradients(sum(y * cotangent), wrt, IfUnreachable::zero)) out.push_back(gradient);
  return out;
}

const std::vector<BenchCase>& bench_cases() {
  static const std::vector<BenchCase> cases = make_cases();
  return cases;
}

}  // namespace sg::tools
