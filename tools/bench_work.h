// Pieces of work to time: small programs with inputs of their own, and the instructions of a compiled step, each as a
// program of its own.
#pragma once
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/program.h"
#include "core/tape.h"

namespace sg::tools {

// Numbers for an input: normal, of a fixed seed; positive: |x| + 0.1. i32: from 0 up to below `limit`.
struct DrawOptions {
  std::int64_t limit = 1;
  bool positive = false;
};
Tensor drawn(const TensorType& type, const DrawOptions& options = {});

// A program with what it refers to. The inputs are fed.
struct BenchWork {
  std::vector<std::shared_ptr<void>> kept;  // variables, modules
  std::unique_ptr<Tape> tape = std::make_unique<Tape>();
  std::vector<Value> fetches;
  std::optional<Program> program;
  // What has to move: inputs and variables read, fetches and variables assigned. And what has to be multiplied and
  // added in products and convolutions.
  double read_bytes = 0, write_bytes = 0, flop = 0;

  double bytes() const { return read_bytes + write_bytes; }
};

// Compiles work.tape for work.fetches, feeds it and counts.
void make_program(BenchWork& work, Backend& backend, const CompileOptions& compile = {}, const DrawOptions& draw = {});

// Multiplications and additions of a product, a convolution or a nearest-code search, from its shapes; 0 of all others.
double product_flop(const Tape& tape, const Instr& instr);
bool is_product(const Instr& instr);  // a matrix product or a convolution

// How many values an index that the instruction takes may have, as far as its types and attributes tell.
std::int64_t index_limit(const Tape& tape, const Instr& instr);

// The instruction alone, on drawn inputs; variables and constants are the tape's own.
BenchWork isolate(const Tape& compiled, const Instr& instr, Backend& backend);

// Whether there is work in it at all: leaves, assigns and aliases are none.
bool has_work(const Instr& instr);

}  // namespace sg::tools
