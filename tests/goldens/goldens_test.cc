// Numbers from PyTorch (tools/make_goldens.py writes the .json files beside this) against every backend of the build.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <optional>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/philox.h"
#include "core/program.h"
#include "models/optim.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/estimator_table.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/goldens/golden.h"

namespace sg::test {
namespace {

// ---- ops

using Inputs = std::map<std::string, Value>;

ConvOptions conv_options(const Json& attrs) {
  ConvOptions o;
  attrs.at("stride").get_to(o.stride);
  attrs.at("pad").get_to(o.pad);
  attrs.at("dilation").get_to(o.dilation);
  attrs.at("groups").get_to(o.groups);
  return o;
}

Value build(const std::string& op, const Json& attrs, const Inputs& in) {
  using Extents = std::array<std::int64_t, 2>;
  const Value x = in.at("x");
  if (op == "conv2d") return conv2d(x, in.at("w"), conv_options(attrs));
  if (op == "conv2d_transpose")
    return conv2d_transpose(x, in.at("w"), conv_options(attrs), attrs.at("size").get<Extents>());
  if (op == "avg_pool")
    return avg_pool(x, attrs.at("window").get<Extents>(), attrs.at("stride").get<Extents>(),
                    attrs.at("pad").get<std::array<std::int64_t, 4>>());
  if (op == "group_norm") return group_norm(x, in.at("gamma"), in.at("beta"), attrs.at("groups"), attrs.at("eps"));
  if (op == "layer_norm") return layer_norm(x, in.at("gamma"), in.at("beta"), attrs.at("eps"));
  if (op == "rms_norm") return rms_norm(x, in.at("gamma"), attrs.at("eps"));
  if (op == "gelu") return gelu(x);
  if (op == "silu") return silu(x);
  if (op == "softplus") return softplus(x);
  if (op == "softmax") return softmax(x);
  if (op == "log_softmax") return log_softmax(x);
  if (op == "cross_entropy") return cross_entropy(x, in.at("labels"));
  if (op == "cross_entropy_of_softmax_squared") return cross_entropy(square(softmax(x)), in.at("labels"));
  throw std::runtime_error("golden of an op that this test cannot build: " + op);
}

void check_op(const Json& c, const Setting& s) {
  Tape tape;
  Inputs in;
  std::vector<std::pair<Value, Tensor>> feeds;
  std::vector<Value> wrt;
  std::vector<std::string> names;
  for (const auto& [name, array] : c.at("inputs").items()) {
    feeds.emplace_back(tape.input(name, {s.dtype, tensor(array, s.dtype).shape()}), tensor(array, s.dtype));
    wrt.push_back(in[name] = feeds.back().first);
    names.push_back(name);
  }
  for (const auto& [name, array] : c.at("integers").items()) {
    feeds.emplace_back(tape.input(name, {DType::i32, tensor(array, DType::i32).shape()}), tensor(array, DType::i32));
    in[name] = feeds.back().first;
  }
  const Tensor cotangent = tensor(c.at("cotangent"), s.dtype);
  feeds.emplace_back(tape.input("cotangent", cotangent.type()), cotangent);
  const Value out = build(c.at("op"), c.at("attrs"), in);
  const Value outs[] = {out}, cotangents[] = {feeds.back().first};
  std::vector<Value> fetches = vjp(outs, cotangents, wrt);
  fetches.push_back(out);
  Program program = compile(tape, fetches, backend(s.backend));
  for (const auto& [value, data] : feeds) program.feed(value, data);
  program.run();
  expect_near(program.fetch(out), c.at("output"), s.tolerance, largest(tensor(c.at("output"), DType::f64)), "output");
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Json& expected = c.at("gradients").at(names[i]);
    expect_near(program.fetch(fetches[i]), expected, s.tolerance, largest(tensor(expected, DType::f64)),
                "gradient in " + names[i]);
  }
}

TEST(Goldens, OpsAgreeWithPyTorch) {
  const Json file = golden("ops.json");
  ASSERT_GE(file.at("ops").size(), 30u);
  for (const Json& c : file.at("ops"))
    for (const Setting& s : settings()) {
      SCOPED_TRACE(c.at("op").get<std::string>() + ", " + c.at("case").get<std::string>() + ", " + s.backend + " " +
                   std::string(to_string(s.dtype)));
      check_op(c, s);
    }
}

// ---- optimizers

std::unique_ptr<Optimizer> make_optimizer(const Json& c, Variable& p) {
  const std::string name = c.at("optimizer");
  const Json& o = c.at("options");
  if (name == "sgd")
    return std::make_unique<Sgd>(
        std::vector{&p}, SgdOptions{o.at("momentum"), o.value("weight_decay", 0.0), o.value("nesterov", false)});
  AdamOptions options;
  if (o.contains("betas")) {
    options.beta1 = o.at("betas")[0];
    options.beta2 = o.at("betas")[1];
  }
  options.eps = o.value("eps", options.eps);
  options.weight_decay = o.value("weight_decay", name == "adamw" ? 1e-2 : 0.0);
  if (name == "adam") return std::make_unique<Adam>(std::vector{&p}, options);
  if (name == "adamw") return std::make_unique<AdamW>(std::vector{&p}, options);
  throw std::runtime_error("golden of an unknown optimizer: " + name);
}

TEST(Goldens, OptimizersAgreeWithPyTorch) {
  const Json file = golden("ops.json");
  ASSERT_GE(file.at("optimizers").size(), 8u);
  for (const Json& c : file.at("optimizers"))
    for (const Setting& s : settings()) {
      SCOPED_TRACE(c.at("optimizer").get<std::string>() + " " + c.at("options").dump() + ", " + s.backend + " " +
                   std::string(to_string(s.dtype)));
      Variable p("p", tensor(c.at("start"), s.dtype));
      const auto optimizer = make_optimizer(c, p);
      Tape tape;
      const Value gradient = tape.input("gradient", p.type()), rate = tape.input("rate", {s.dtype, {}});
      const Value gradients[] = {gradient};
      optimizer->apply(tape, gradients, rate);
      Program program = compile(tape, {}, backend(s.backend));
      for (std::size_t step = 0; step < c.at("values").size(); ++step) {
        program.feed(gradient, tensor(c.at("gradients")[step], s.dtype));
        program.feed(rate, Tensor::full({s.dtype, {}}, c.at("rates")[step].get<double>()));
        program.run();
        expect_near(p.value(), c.at("values")[step], s.tolerance, 1.0, "after step " + std::to_string(step + 1));
      }
    }
}

// ---- estimators

// Row by row: their sizes differ by three orders of magnitude.
void expect_rows_near(const Tensor& actual, const Json& array, const std::vector<double>& tolerance,
                      const std::string& what) {
  const Tensor wanted = tensor(array, DType::f64);
  ASSERT_EQ(actual.shape(), wanted.shape()) << what;
  const auto columns = wanted.shape()[1];
  for (std::int64_t i = 0; i < wanted.shape()[0]; ++i) {
    double size = 0;
    for (std::int64_t j = 0; j < columns; ++j) size = std::max(size, std::abs(wanted.at(i * columns + j)));
    for (std::int64_t j = 0; j < columns; ++j)
      ASSERT_NEAR(actual.at(i * columns + j), wanted.at(i * columns + j), tolerance[static_cast<std::size_t>(i)] * size)
          << what << ", row " << i << ", column " << j;
  }
}

TEST(Goldens, EstimatorsAgreeWithPyTorch) {
  const Json file = golden("estimators.json");
  ASSERT_EQ(file.at("estimators").size(), 18u);
  for (const auto& [golden_name, expected] : file.at("estimators").items())
    for (const Setting& s : settings()) {
      SCOPED_TRACE(golden_name + ", " + s.backend + " " + std::string(to_string(s.dtype)));
      const Tensor z_data = tensor(file.at("z"), s.dtype);
      Tape tape;
      const Value z = tape.input("z", z_data.type()), q = tape.input("q", z_data.type()),
                  g = tape.input("g", z_data.type());
      const Value z_q = estimator_by_name(expected.at("estimator").get<std::string>())(z, q);
      const Value outs[] = {z_q}, cotangents[] = {g}, wrt[] = {z, q};
      const auto gradients = vjp(outs, cotangents, wrt, IfUnreachable::zero);
      Program program = compile(tape, {z_q, gradients[0], gradients[1]}, backend(s.backend));
      program.feed(z, z_data);
      program.feed(q, tensor(file.at("q"), s.dtype));
      program.feed(g, tensor(file.at("g"), s.dtype));
      program.run();
      // Almost opposite rows lose two to three digits in u + v, almost parallel ones in u - v; PyTorch does so too.
      std::vector<double> tolerance(static_cast<std::size_t>(z_data.shape()[0]), 2 * s.tolerance);
      for (const std::size_t row : expected.at("lost_in_float32")) tolerance[row] = 100 * s.tolerance;
      expect_rows_near(program.fetch(z_q), expected.at("forward"), tolerance, "forward");
      expect_rows_near(program.fetch(gradients[0]), expected.at("gradient"), tolerance, "gradient in z");
      expect_rows_near(program.fetch(gradients[1]), expected.at("gradient_in_q"), tolerance, "gradient in q");
    }
}

Value build_estimator(const std::string& function, const Json& attrs, const Inputs& in) {
  const Value z = in.at("z");
  const auto chosen = [&] { return gather_rows(in.at("codes"), in.at("chosen")); };
  if (function == "g_low_rank") return g_low_rank(z, in.at("q"), in.at("u"), in.at("v"));
  if (function == "g_matrix") return g_matrix(z, in.at("q"), in.at("g"));
  if (function == "centred_rotation") return centred_rotation(z, in.at("q"), in.at("origin"));
  if (function == "nsvq") return nsvq(z, in.at("q"), in.at("noise"));
  if (function == "diveq") return diveq(z, in.at("q"), in.at("noise"));
  if (function == "sf_diveq") return sf_diveq(z, in.at("q"), in.at("q_next"), in.at("t"), in.at("noise"));
  if (function == "soft_one_hot")
    return soft_one_hot(z, chosen(), in.at("codes"), attrs.at("tau").get<double>(),
                        in.contains("noise") ? in.at("noise") : Value{});
  if (function == "reinmax") return reinmax(z, chosen(), in.at("codes"), attrs.at("tau"));
  if (function == "index_backpropagation") return index_backpropagation(z, chosen(), in.at("codes"), attrs.at("tau"));
  throw std::runtime_error("golden of an estimator that this test cannot build: " + function);
}

Value decoder_loss(Value x, Value w) {
  const Value y = matmul(x, w);
  return sum(square(tanh(y))) + 0.125 * sum(y * square(y));
}

// The two estimators that are a term of the loss; w is a variable, so that the second decode can stop it.
Value build_loss(const std::string& function, const Inputs& in, Value w) {
  const Value z = in.at("z"), q = in.at("q");
  if (function == "hessian_term") {
    const Value z_q = straight_through(z, q), loss = decoder_loss(z_q, w);
    return loss + hessian_term(loss, z, q, z_q);
  }
  const Value z_q = stop_gradient(q), loss = decoder_loss(z_q, w);
  return loss + exact_gradient_term(loss, z, z_q);
}

TEST(Goldens, EstimatorsOfMoreThanTwoRowsAgreeWithPyTorch) {
  const Json file = golden("estimators.json");
  ASSERT_EQ(file.at("functions").size(), 13u);
  for (const Json& c : file.at("functions"))
    for (const Setting& s : settings()) {
      const std::string function = c.at("function");
      SCOPED_TRACE(function + ", " + s.backend + " " + std::string(to_string(s.dtype)));
      Tape tape;
      Inputs in;
      std::map<std::string, Tensor> data;
      for (const auto& [name, array] : c.at("inputs").items()) data.emplace(name, tensor(array, s.dtype));
      for (const auto& [name, array] : c.at("integers").items()) data.emplace(name, tensor(array, DType::i32));
      std::optional<Variable> w;
      for (const auto& [name, t] : data)
        if (name == "w")
          in.emplace(name, tape.read(w.emplace(name, t)));
        else
          in.emplace(name, tape.input(name, t.type()));
      const Value out = w ? build_loss(function, in, in.at("w")) : build_estimator(function, c.at("attrs"), in);
      std::vector<Value> wrt;
      for (const auto& [name, array] : c.at("gradients").items()) wrt.push_back(in.at(name));
      const Value g = w ? tape.constant(1, out.type()) : tape.input("cotangent", out.type());
      std::vector<Value> fetches = vjp({&out, 1}, {&g, 1}, wrt, IfUnreachable::zero);
      fetches.push_back(out);
      Program program = compile(tape, fetches, backend(s.backend));
      for (const auto& [name, t] : data)
        if (name != "w") program.feed(in.at(name), t);
      if (!w) program.feed(g, tensor(c.at("cotangent"), s.dtype));
      program.run();
      const auto check = [&](Value v, const Json& array, const std::string& what) {
        const double scale = largest(tensor(array, DType::f64));
        expect_near(program.fetch(v), array, 2 * s.tolerance, scale, what);
      };
      check(out, c.at("output"), "output");
      std::size_t i = 0;
      for (const auto& [name, array] : c.at("gradients").items()) check(fetches[i++], array, "gradient in " + name);
    }
}

}  // namespace
}  // namespace sg::test
