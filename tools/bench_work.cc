#include "tools/bench_work.h"

#include <algorithm>
#include <cmath>

#include "core/philox.h"
#include "core/row_program.h"
#include "ops/op_ids.h"

namespace sg::tools {
namespace {

// Drawing is not what is timed, and arrays are large: numbers repeat after a prime number of elements.
constexpr std::size_t kPeriod = 65521;

const std::vector<float>& normals() {
  static const std::vector<float> numbers = [] {
    std::vector<float> out;
    for (std::uint64_t block = 0; out.size() < kPeriod; ++block)
      for (const double x : normal_block(random_block(1, 0, 0, block))) out.push_back(static_cast<float>(x));
    out.resize(kPeriod);
    return out;
  }();
  return numbers;
}

double bytes_of(const Tape& tape, std::int32_t value) { return static_cast<double>(tape.type(value).bytes()); }

}  // namespace

Tensor drawn(const TensorType& type, const DrawOptions& options) {
  const std::vector<float>& source = normals();
  const auto n = static_cast<std::size_t>(type.shape.elements());
  if (type.dtype == DType::i32) {
    Tensor out(type);
    const auto values = out.span<std::int32_t>();
    for (std::size_t i = 0; i < n; ++i)
      values[i] = static_cast<std::int32_t>(random_block(1, 0, 1, i)[0] % static_cast<std::uint64_t>(options.limit));
    return out;
  }
  Tensor out({DType::f32, type.shape});
  const auto values = out.span<float>();
  for (std::size_t first = 0; first < n; first += kPeriod)
    std::copy_n(source.begin(), std::min(kPeriod, n - first), values.begin() + static_cast<std::ptrdiff_t>(first));
  if (options.positive)
    for (float& x : values) x = std::abs(x) + 0.1f;
  return type.dtype == DType::f32 ? std::move(out) : out.cast(type.dtype);
}

void make_program(BenchWork& work, Backend& backend, const CompileOptions& compile, const DrawOptions& draw) {
  work.program.emplace(sg::compile(*work.tape, work.fetches, backend, compile));
  for (const Instr& instr : work.tape->instrs()) {
    const Role role = op_def(instr.op).role;
    if (role == Role::input) {
      const Value input = work.tape->value(instr.outputs[0]);
      work.program->feed(input, drawn(input.type(), draw));
    }
    if (role == Role::input || role == Role::read) work.read_bytes += bytes_of(*work.tape, instr.outputs[0]);
    if (role == Role::assign) work.write_bytes += bytes_of(*work.tape, instr.inputs[0]);
    work.flop += product_flop(*work.tape, instr);
  }
  for (const Value v : work.fetches) work.write_bytes += static_cast<double>(v.type().bytes());
}

bool is_product(const Instr& instr) {
  switch (instr.op) {
    case OpId::matmul:
    case OpId::matmul_bias:
    case OpId::conv2d:
    case OpId::conv2d_bias:
    case OpId::conv2d_transpose:
    case OpId::conv2d_weight_grad:
      return true;
    default:
      return false;
  }
}

double product_flop(const Tape& tape, const Instr& instr) {
  const auto shape = [&](std::size_t i) -> const Shape& { return tape.type(instr.inputs[i]).shape; };
  const auto elements = [](const Shape& s) { return static_cast<double>(s.elements()); };
  // Each output of a convolution takes every weight of its channel.
  const auto convolution = [&](const Shape& small, const Shape& weights) {
    return weights[3] == 0 ? 0.0 : 2.0 * elements(small) * elements(weights) / static_cast<double>(weights[3]);
  };
  const auto result = [&]() -> const Shape& { return tape.type(instr.outputs[0]).shape; };
  switch (instr.op) {
    case OpId::matmul:
    case OpId::matmul_bias:
      return 2.0 * elements(result()) * static_cast<double>(shape(0)[instr.attrs.i("transpose_a") != 0 ? -2 : -1]);
    case OpId::conv2d:
    case OpId::conv2d_bias:
      return convolution(result(), shape(1));
    case OpId::conv2d_transpose:
      return convolution(shape(0), shape(1));
    case OpId::conv2d_weight_grad:
      return convolution(shape(1), result());
    case OpId::nearest_code:
      return 2.0 * elements(shape(0)) * static_cast<double>(shape(1)[0]);
    default:
      return 0;
  }
}

bool has_work(const Instr& instr) {
  switch (op_def(instr.op).role) {
    case Role::input:
    case Role::constant:
    case Role::read:
    case Role::assign:
    case Role::alias:
    case Role::stop_gradient:
      return false;
    default:
      return true;
  }
}

std::int64_t index_limit(const Tape& tape, const Instr& instr) {
  for (const std::string_view rows : {"rows", "bins", "depth"})
    if (instr.attrs.has(rows)) return instr.attrs.i(rows);
  std::int64_t least = 0;
  for (const std::int32_t input : instr.inputs) {
    const TensorType& type = tape.type(input);
    if (type.dtype != DType::i32 && type.shape.rank() >= 2)
      least = least == 0 ? type.shape[0] : std::min(least, type.shape[0]);
  }
  return std::max<std::int64_t>(least, 1);
}

BenchWork isolate(const Tape& compiled, const Instr& instr, Backend& backend) {
  BenchWork work;
  Tape& tape = *work.tape;
  tape.adopt_pools(compiled);
  std::vector<Value> operands;
  for (std::size_t i = 0; i < instr.inputs.size(); ++i) {
    const std::int32_t input = instr.inputs[i];
    const auto known = std::find(instr.inputs.begin(), instr.inputs.begin() + static_cast<std::ptrdiff_t>(i), input);
    if (known != instr.inputs.begin() + static_cast<std::ptrdiff_t>(i)) {
      operands.push_back(operands[static_cast<std::size_t>(known - instr.inputs.begin())]);
      continue;
    }
    const Instr& producer = compiled.instrs()[static_cast<std::size_t>(compiled.producer(input))];
    const Role role = op_def(producer.op).role;
    if (role == Role::read)
      operands.push_back(tape.read(*compiled.variable_of(producer)));
    else if (role == Role::constant)
      operands.push_back(tape.emit(producer.op, {}, producer.attrs)[0]);
    else
      operands.push_back(tape.input("x" + std::to_string(i), compiled.type(input)));
  }
  work.fetches = tape.emit(instr.op, operands, instr.attrs);
  make_program(work, backend, {.optimize = false}, {.limit = index_limit(compiled, instr)});
  return work;
}

}  // namespace sg::tools
