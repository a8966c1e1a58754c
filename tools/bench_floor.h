// Floors: the least time that a piece of work can take on this machine, from what it has to move and to multiply.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tools/bench_runner.h"
#include "tools/bench_work.h"

namespace sg::tools {

// Measures pieces of work next to their floors, which is the longer of two times taken in the same rounds:
//   memory   a pass over memory that reads and writes as many bytes in the same proportion and computes nothing; so a
//            piece that stays in a cache is compared with that cache
//   product  its multiplications and additions at the rate of one large product of f32 matrices
class Floors {
 public:
  Floors(Backend& backend, const BenchOptions& options);

  // The group has the variants "work", "memory" and, where there is something to multiply, "product".
  BenchGroup measure(const std::string& title, BenchWork& work);

 private:
  Backend& backend_;
  BenchOptions options_;
  BenchWork product_;
};

// Variants "memory" and "product" after those that are there, for work of so many bytes and operations, and the
// reference of the group is the longer. `product` outlives the group.
void add_floor(BenchGroup& group, Backend& backend, double read_bytes, double write_bytes, double flop,
               BenchWork& product);

// The pass over memory: on a device a copy there, which moves as many bytes in all.
std::function<void()> memory_pass(Backend& backend, double read_bytes, double write_bytes);

// A product of square matrices, large enough to run at the processor's rate.
BenchWork large_product(Backend& backend);

// What the backend's machine gives, each measured: the product and a copy of arrays of so many bytes; where it is the
// processor also multiplications and additions of registers, and the triad of such arrays.
BenchGroup ceilings(Backend& backend, std::size_t bytes, const BenchOptions& options);

}  // namespace sg::tools
