#include "tools/bench_floor.h"

#include <algorithm>

#include "ops/matmul.h"
#include "tools/kernel_lab/lab.h"

namespace sg::tools {

BenchWork large_product(Backend& backend) {
  constexpr std::int64_t kSide = 1024;
  BenchWork work;
  const TensorType square{DType::f32, {kSide, kSide}};
  work.fetches = {matmul(work.tape->input("a", square), work.tape->input("b", square))};
  make_program(work, backend);
  return work;
}

namespace {

// Two buffers of a device.
struct DeviceCopy {
  DeviceCopy(Backend& b, std::size_t n) : backend(b), bytes(n), from(b.allocate(n)), to(b.allocate(n)) {
    backend.fill(from, std::byte{0}, bytes);
  }
  ~DeviceCopy() {
    backend.wait();
    backend.release(from);
    backend.release(to);
  }
  DeviceCopy(const DeviceCopy&) = delete;
  DeviceCopy& operator=(const DeviceCopy&) = delete;
  Backend& backend;
  std::size_t bytes;
  void *from, *to;
};

}  // namespace

std::function<void()> memory_pass(Backend& backend, double read_bytes, double write_bytes) {
  if (backend.on_device()) {
    const auto copy = std::make_shared<DeviceCopy>(
        backend, std::max<std::size_t>(1, static_cast<std::size_t>(read_bytes + write_bytes) / 2));
    return [copy] { copy->backend.copy(copy->to, copy->from, copy->bytes); };
  }
  const auto stream =
      std::make_shared<lab::Stream>(static_cast<std::size_t>(read_bytes), static_cast<std::size_t>(write_bytes));
  return [stream] { stream->run(); };
}

void add_floor(BenchGroup& group, Backend& backend, double read_bytes, double write_bytes, double flop,
               BenchWork& product) {
  const std::size_t memory = group.variants.size();
  group.variants.push_back(
      {.name = "memory", .run = memory_pass(backend, read_bytes, write_bytes), .bytes = read_bytes + write_bytes});
  if (flop > 0)
    group.variants.push_back(
        {.name = "product", .run = [program = &*product.program] { program->run(); }, .flop = product.flop});
  group.reference_name = "floor";
  group.reference = [memory, flop](const BenchGroup& g, std::size_t round) {
    const double moving = g.variants[memory].seconds[round];
    if (flop == 0) return moving;
    const BenchVariant& peak = g.variants[memory + 1];
    return std::max(moving, flop * peak.seconds[round] / peak.flop);
  };
}

Floors::Floors(Backend& backend, const BenchOptions& options)
    : backend_(backend), options_(options), product_(large_product(backend)) {}

BenchGroup Floors::measure(const std::string& title, BenchWork& work) {
  BenchGroup group{.title = title, .variants = {}};
  group.variants.push_back({.name = "work",
                            .run = [program = &*work.program] { program->run(); },
                            .bytes = work.bytes(),
                            .flop = work.flop});
  add_floor(group, backend_, work.read_bytes, work.write_bytes, work.flop, product_);
  sg::tools::measure(group, options_);
  return group;
}

BenchGroup ceilings(Backend& backend, std::size_t bytes, const BenchOptions& options) {
  BenchGroup group{.title = "ceilings", .variants = {}};
  BenchWork product = large_product(backend);
  group.variants = {
      {.name = "product of 1024 x 1024 matrices", .run = [&] { product.program->run(); }, .flop = product.flop},
      {.name = "copy",
       .run = memory_pass(backend, static_cast<double>(bytes), static_cast<double>(bytes)),
       .bytes = 2.0 * static_cast<double>(bytes)}};
  const std::size_t floats = backend.on_device() ? 0 : bytes / sizeof(float);
  const TensorType type{DType::f32, {static_cast<std::int64_t>(floats)}};
  const Tensor a = drawn(type), b = drawn(type);
  Tensor to(type);
  if (!backend.on_device()) {
    constexpr std::int64_t kRepeats = 200000;
    group.variants.push_back({.name = "multiply-add, " + lab::isa(),
                              .run = [] { lab::multiply_add(kRepeats); },
                              .flop = lab::multiply_add(kRepeats)});
    group.variants.push_back(
        {.name = "triad",
         .run = [&] { lab::triad(a.span<float>().data(), b.span<float>().data(), to.span<float>().data(), floats); },
         .bytes = 3.0 * static_cast<double>(bytes)});
  }
  measure(group, options);
  for (BenchVariant& v : group.variants) v.run = nullptr;  // their operands end here
  return group;
}

}  // namespace sg::tools
