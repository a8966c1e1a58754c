#include "tests/conformance/cases.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace sg::test {
namespace {

// std::*_distribution differs between standard libraries; these do not.
double unit(Rng& rng) { return static_cast<double>(rng() >> 11) * 0x1p-53; }

double gaussian(Rng& rng) {
  const double radius = std::sqrt(-2 * std::log(1 - unit(rng)));
  return radius * std::cos(6.283185307179586 * unit(rng));
}

template <class F>
Tensor filled(const Shape& shape, DType dtype, F&& element) {
  Tensor t({dtype, shape});
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, element(i));
  return t;
}

}  // namespace

Case& CaseList::add(std::string op, std::string name, std::vector<Draw> inputs, Build build) {
  Case c;
  c.op = std::move(op), c.name = std::move(name), c.inputs = std::move(inputs), c.build = std::move(build);
  cases_.push_back(std::move(c));
  return cases_.back();
}

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = [] {
    CaseList list;
    add_elementwise_cases(list);
    add_reduce_cases(list);
    add_shape_cases(list);
    add_matmul_cases(list);
    add_conv_cases(list);
    add_index_cases(list);
    add_norm_cases(list);
    add_random_cases(list);
    add_composition_cases(list);
    return std::move(list.cases());
  }();
  return cases;
}

std::vector<Tensor> draw_inputs(const Case& c, std::uint32_t seed) {
  std::uint64_t key = 1469598103934665603ull;  // FNV-1a of the case's name: every case has numbers of its own
  for (const char ch : c.op + "." + c.name) key = (key ^ static_cast<unsigned char>(ch)) * 1099511628211ull;
  Rng rng(key + seed);
  std::vector<Tensor> tensors;
  for (const auto& draw : c.inputs) tensors.push_back(draw(rng));
  return tensors;
}

Draw normal_reals(Shape shape, double scale, double mean) {
  return [=](Rng& rng) { return filled(shape, DType::f32, [&](auto) { return mean + scale * gaussian(rng); }); };
}

Draw uniform_reals(Shape shape, double lo, double hi) {
  return [=](Rng& rng) { return filled(shape, DType::f32, [&](auto) { return lo + (hi - lo) * unit(rng); }); };
}

Draw nonzero_reals(Shape shape, double lo, double hi) {
  return [=](Rng& rng) {
    return filled(shape, DType::f32, [&](auto) {
      const double size = lo + (hi - lo) * unit(rng);
      return rng() & 1 ? size : -size;
    });
  };
}

Draw distinct_reals(Shape shape) {
  return [=](Rng& rng) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(shape.elements()));
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng() % i]);
    const double middle = static_cast<double>(order.size()) / 2;
    return filled(shape, DType::f32, [&](std::int64_t i) {
      return 0.01 * (static_cast<double>(order[static_cast<std::size_t>(i)]) - middle);
    });
  };
}

Draw small_integers(Shape shape, int lo, int hi) {
  return [=](Rng& rng) {
    return filled(shape, DType::f32,
                  [&](auto) { return lo + static_cast<double>(rng() % static_cast<std::uint64_t>(hi - lo + 1)); });
  };
}

Draw indices(Shape shape, int below) {
  return [=](Rng& rng) {
    return filled(shape, DType::i32,
                  [&](auto) { return static_cast<double>(rng() % static_cast<std::uint64_t>(below)); });
  };
}

Draw ints(Shape shape, std::vector<std::int32_t> values) {
  return [=](Rng&) { return Tensor::of<std::int32_t>(shape, std::span<const std::int32_t>(values)); };
}

Draw reals(Shape shape, std::vector<float> values) {
  return [=](Rng&) { return Tensor::of<float>(shape, std::span<const float>(values)); };
}

Draw special_reals(Shape shape) {
  return [=](Rng& rng) {
    constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    constexpr float specials[] = {nan, inf, -inf, 0.0f, -0.0f, 1.0f, -1.0f, 1e30f, -1e30f, 1e-30f, 0.5f, 2.5f};
    Tensor t({DType::f32, shape});
    for (auto& x : t.span<float>()) x = specials[rng() % std::size(specials)];
    return t;
  };
}

}  // namespace sg::test
