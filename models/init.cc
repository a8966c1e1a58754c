#include "models/init.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/philox.h"

namespace sg {
namespace {

std::uint64_t fnv1a(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return hash;
}

thread_local bool zero_values = false;

}  // namespace

ZeroInitialValues::ZeroInitialValues() : before_(std::exchange(zero_values, true)) {}
ZeroInitialValues::~ZeroInitialValues() { zero_values = before_; }

// Stream and step are the halves of the name's hash: the low numbers that a tape's own random instructions use stay
// free.
HostRandom::HostRandom(std::uint32_t seed, std::string_view name)
    : seed_(seed),
      stream_(static_cast<std::uint32_t>(fnv1a(name)) | 0x80000000u),
      step_(static_cast<std::uint32_t>(fnv1a(name) >> 32)) {}

double HostRandom::next(bool gaussian) {
  const PhiloxBlock block = random_block(seed_, step_, stream_, drawn_ / 4);
  const auto numbers = gaussian ? normal_block(block) : uniform_block(block);
  return numbers[drawn_++ % 4];
}

double HostRandom::uniform() { return next(false); }
double HostRandom::normal() { return next(true); }

std::int64_t HostRandom::below(std::int64_t n) {
  return std::min(n - 1, static_cast<std::int64_t>(uniform() * static_cast<double>(n)));
}

Tensor uniform_init(Shape shape, double lo, double hi, std::uint32_t seed, std::string_view name) {
  Tensor t({DType::f32, shape});
  if (zero_values) return t;
  HostRandom random(seed, name);
  for (float& x : t.span<float>()) x = static_cast<float>(lo + (hi - lo) * random.uniform());
  return t;
}

Tensor normal_init(Shape shape, double mean, double deviation, std::uint32_t seed, std::string_view name) {
  Tensor t({DType::f32, shape});
  if (zero_values) return t;
  HostRandom random(seed, name);
  for (float& x : t.span<float>()) x = static_cast<float>(mean + deviation * random.normal());
  return t;
}

Tensor fan_in_uniform(Shape shape, std::int64_t fan_in, std::uint32_t seed, std::string_view name) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(std::max<std::int64_t>(fan_in, 1)));
  return uniform_init(shape, -bound, bound, seed, name);
}

}  // namespace sg
