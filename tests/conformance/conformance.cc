#include "tests/conformance/conformance.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/gradcheck.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/support/flags.h"

namespace sg::test {
namespace {

constexpr std::byte kGarbage{0xAB};

Tensor as_config(const Tensor& t, const Config& config) {
  return is_real(t.dtype()) ? t.cast(config.real) : t;
}

class ThreadsFor {
 public:
  explicit ThreadsFor(bool one) : before_(threads()) {
    if (one) set_threads(1);
  }
  ~ThreadsFor() { set_threads(before_); }

 private:
  int before_;
};

// |got - want| <= atol + c eps sqrt(K) scale: K bounds how many terms were summed, scale is the element's own size or
// that of the whole result, because sums cancel. Sums of bf16 are made in f32 and rounded once: there 4 eps, whatever K.
std::string compare_reals(const Case& c, const Tensor& got, const Tensor& want, double terms) {
  double squares = 0;
  std::int64_t finite = 0;
  for (std::int64_t i = 0; i < want.elements(); ++i)
    if (std::isfinite(want.at(i))) squares += want.at(i) * want.at(i), ++finite;
  const double rms = finite ? std::sqrt(squares / static_cast<double>(finite)) : 0;
  const double eps = got.dtype() == DType::f64 ? std::numeric_limits<double>::epsilon()
                                               : static_cast<double>(std::numeric_limits<float>::epsilon());
  const double atol = got.dtype() == DType::f64 ? c.atol * 1e-6 : c.atol;
  constexpr double kBf16Eps = 0x1p-8;
  const double factor =
      got.dtype() == DType::bf16 ? 4 * kBf16Eps : c.c * eps * (c.pointwise ? 1 : std::sqrt(terms));
  for (std::int64_t i = 0; i < want.elements(); ++i) {
    const double a = got.at(i), b = want.at(i);
    if (std::isnan(a) || std::isnan(b) || std::isinf(a) || std::isinf(b)) {
      if ((std::isnan(a) && std::isnan(b)) || a == b) continue;
      return fmt::format("element {} of {} is {}, the reference has {}", i, want.elements(), a, b);
    }
    const double bound = atol + factor * (c.pointwise ? std::abs(b) : std::max(std::abs(b), rms));
    if (std::abs(a - b) > bound)
      return fmt::format("element {} of {} is {:.9g}, the reference has {:.9g}: {:.3g} apart, {:.3g} allowed", i,
                         want.elements(), a, b, std::abs(a - b), bound);
  }
  return {};
}

std::string compare_integers(const Tensor& got, const Tensor& want) {
  for (std::int64_t i = 0; i < want.elements(); ++i)
    if (got.at(i) != want.at(i)) return fmt::format("element {} is {}, the reference has {}", i, got.at(i), want.at(i));
  return {};
}

double most_terms(const CaseResults& r) {
  std::int64_t most = 1;
  for (const auto& t : r.inputs) most = std::max(most, t.elements());
  for (const auto& t : r.values) most = std::max(most, t.elements());
  return static_cast<double>(std::min<std::int64_t>(most, 4096));
}

std::string bits_differ(const CaseResults& a, const CaseResults& b) {
  for (std::size_t i = 0; i < a.values.size(); ++i)
    if (!std::equal(a.values[i].data(), a.values[i].data() + a.values[i].bytes(), b.values[i].data()))
      return fmt::format("result {} differs in its bits between two runs", i);
  return {};
}

}  // namespace

std::vector<Config> configs() {
  std::vector<Config> all(1);
  all[0].name = "default";
  const auto add = [&](std::string name) -> Config& {
    all.push_back({});
    all.back().name = std::move(name);
    return all.back();
  };
  add("nofuse").options.fuse = false;
  add("noplan").options.plan_memory = false;
  add("nocapture").options.capture = false;
  add("replay").runs = 3;
  add("onethread").one_thread = true;
  add("strict").options.strict = true;
  add("guard").options.guard = true;
  add("f64").real = DType::f64;
  return all;
}

const Config& config_by_name(const std::string& name) {
  static const std::vector<Config> all = configs();
  const auto found = std::find_if(all.begin(), all.end(), [&](const Config& c) { return c.name == name; });
  if (found == all.end()) fail(ErrorKind::usage, "unknown config '{}'", name);
  return *found;
}

void record_case(CaseGraph& graph, const Case& c, std::span<const Tensor> inputs, bool with_gradients) {
  for (std::size_t i = 0; i < inputs.size(); ++i)
    graph.inputs.push_back(graph.tape.input(fmt::format("x{}", i), inputs[i].type()));
  graph.output = c.build(graph.tape, graph.inputs);
  if (!with_gradients || c.forward_only || !is_real(graph.output.dtype())) return;
  graph.cotangent = graph.tape.input("u", graph.output.type());
  const Value loss = sum(graph.cotangent * graph.output);
  std::vector<Value> reached;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const auto state = gradient_flow(loss, graph.inputs[i]).state;
    if (state != GradientFlow::State::live && state != GradientFlow::State::zero) continue;
    reached.push_back(graph.inputs[i]);
    graph.wrt.push_back(i);
  }
  // zero: a rule may send nothing to an input that its op is called smooth in (the second of relu_grad).
  if (!reached.empty()) graph.gradients = gradients(loss, reached, IfUnreachable::zero);
}

std::vector<const Case*> selected_cases() {
  std::vector<const Case*> selected;
  for (const auto& c : all_cases())
    if ((flags().op.empty() || c.op == flags().op) && (flags().case_name.empty() || c.name == flags().case_name))
      selected.push_back(&c);
  return selected;
}

CaseResults run_case(const Case& c, Backend& backend, const Config& config, std::uint32_t seed) {
  const ThreadsFor threads_for(config.one_thread);
  CaseResults results;
  for (const auto& t : draw_inputs(c, seed)) results.inputs.push_back(as_config(t, config));
  CaseGraph graph;
  record_case(graph, c, results.inputs, true);
  std::vector<Value> fetches{graph.output};
  fetches.insert(fetches.end(), graph.gradients.begin(), graph.gradients.end());
  CompileOptions options = config.options;
  options.strict = options.strict && !c.decomposes;
  Program program = compile(graph.tape, fetches, backend, options);
  for (std::size_t i = 0; i < results.inputs.size(); ++i) program.feed(graph.inputs[i], results.inputs[i]);
  if (graph.cotangent) {
    Rng rng(seed + 77);
    program.feed(graph.cotangent, normal_reals(graph.output.shape())(rng).cast(graph.output.dtype()));
  }
  for (int run = 0; run < config.runs; ++run) {
    if (run > 0) program.fill_arena(kGarbage);
    program.run();
  }
  for (const auto& fetch : fetches) results.values.push_back(program.fetch(fetch));
  return results;
}

std::string compare_results(const Case& c, const CaseResults& got, const CaseResults& want) {
  if (got.values.size() != want.values.size()) return "another number of results";
  for (std::size_t i = 0; i < want.values.size(); ++i) {
    const Tensor &a = got.values[i], &b = want.values[i];
    const std::string which = i == 0 ? "output: " : fmt::format("gradient {}: ", i - 1);
    if (a.type() != b.type()) return which + to_string(a.type()) + " instead of " + to_string(b.type());
    const std::string difference = i == 0 && c.compare  ? c.compare(got.inputs, a, b)
                                   : is_real(b.dtype()) ? compare_reals(c, a, b, most_terms(want))
                                                        : compare_integers(a, b);
    if (!difference.empty()) return which + difference;
  }
  return {};
}

std::string repro(const Case& c, const std::string& backend, const std::string& config, std::uint32_t seed) {
  return fmt::format("FAILED --op={} --case={} --backend={} --config={} --seed={}", c.op, c.name, backend, config,
                     seed);
}

namespace {

void run_conformance(const Case& c) {
  const std::uint32_t seed = flags().seed;
  for (const bool f64 : {false, true}) {
    Config oracle;
    oracle.real = f64 ? DType::f64 : DType::f32;
    const CaseResults want = run_case(c, backend("reference"), oracle, seed);
    for (const auto& name : flags().backends) {
      for (const auto& config_name : flags().configs) {
        const Config& config = config_by_name(config_name);
        if (config.real != oracle.real) continue;
        try {
          const CaseResults got = run_case(c, backend(name), config, seed);
          std::string difference = compare_results(c, got, want);
          if (difference.empty() && config.runs > 1)
            difference = bits_differ(got, run_case(c, backend(name), config, seed));
          if (!difference.empty()) ADD_FAILURE() << repro(c, name, config_name, seed) << "\n  " << difference;
        } catch (const Error& e) {
          ADD_FAILURE() << repro(c, name, config_name, seed) << "\n  " << e.what();
        }
      }
    }
  }
}

void run_gradcheck(const Case& c) {
  const GraphFn build = [&](Tape& tape, std::span<const Value> x) { return c.build(tape, x); };
  const std::vector<Tensor> inputs = draw_inputs(c, flags().seed);
  CaseGraph graph;
  record_case(graph, c, inputs, true);
  GradcheckOptions options;
  options.seed = flags().seed;
  options.wrt.assign(inputs.size(), false);
  for (const auto i : graph.wrt) options.wrt[i] = true;
  const GradcheckResult result = gradcheck(build, inputs, backend("reference"), options);
  if (!result.ok)
    ADD_FAILURE() << fmt::format("FAILED --gtest_filter=Gradcheck.{}.{} --seed={}\n  order {}: {}", c.op, c.name,
                                 flags().seed, result.order, result.message);
}

// gtest's own class for one test, made for each case.
class CaseTest : public testing::Test {
 public:
  CaseTest(const Case& c, void (*body)(const Case&)) : case_(c), body_(body) {}
  void TestBody() override { body_(case_); }

 private:
  const Case& case_;
  void (*body_)(const Case&);
};

void register_one(const char* suite, const Case& c, void (*body)(const Case&)) {
  testing::RegisterTest(suite, (c.op + "." + c.name).c_str(), nullptr, nullptr, __FILE__, __LINE__,
                        [&c, body]() -> testing::Test* { return new CaseTest(c, body); });
}

// Whether gradcheck has something to check: a real output that some real input reaches.
bool has_gradient(const Case& c) {
  if (!c.gradcheck || c.forward_only) return false;
  try {
    CaseGraph graph;
    record_case(graph, c, draw_inputs(c, 1), true);
    return !graph.gradients.empty();
  } catch (const Error&) {
    return true;  // the test itself reports it
  }
}

}  // namespace

void register_case_tests() {
  for (const Case* c : selected_cases()) {
    register_one("Conformance", *c, run_conformance);
    if (has_gradient(*c)) register_one("Gradcheck", *c, run_gradcheck);
  }
}

}  // namespace sg::test
