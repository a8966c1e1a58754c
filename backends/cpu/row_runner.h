// A row program that is ready to run: by generated code or by the interpreter, whole or a part at a time.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "backends/cpu/row_chunks.h"
#include "backends/cpu/row_jit.h"
#include "core/row_program.h"

namespace sg::cpu {

// What does not change with the executor is in Chunks (row_chunks.h), where it is documented.
class RowRunner {
 public:
  virtual ~RowRunner() = default;
  virtual void run() const = 0;
  virtual Index chunks() const = 0;
  virtual void run_chunk(Index chunk, int thread) const = 0;
  virtual void combine() const = 0;
  virtual Index unit() const = 0;
  virtual void run_segment(Index segment, int thread) const = 0;
  virtual void combine_rows() const = 0;
  virtual bool worth_threads() const = 0;
  virtual Index work() const = 0;
  virtual std::string detail() const = 0;
};

// One whose pieces are those of Chunks<T>: Self::run_piece(piece, scratch of the thread, folds of the chunk).
template <class Self, class T>
class ChunkedRunner : public RowRunner {
 public:
  void run() const override { chunks_.run(piece()); }
  Index chunks() const override { return chunks_.chunks(); }
  void run_chunk(Index chunk, int thread) const override { chunks_.run_chunk(chunk, thread, piece()); }
  void combine() const override { chunks_.combine(); }
  Index unit() const override { return chunks_.unit(); }
  void run_segment(Index segment, int thread) const override { chunks_.run_segment(segment, thread, piece()); }
  void combine_rows() const override { chunks_.combine_rows(); }
  bool worth_threads() const override { return chunks_.worth_threads(); }
  Index work() const override { return chunks_.work(); }

 protected:
  Chunks<T> chunks_;

 private:
  auto piece() const {
    return [self = static_cast<const Self*>(this)](Index k, std::byte* scratch, double* folds) {
      self->run_piece(k, scratch, folds);
    };
  }
};

// For the program of ctx.instr(), whose inputs and outputs are the instruction's. hints: where it is one
// of a chain.
std::unique_ptr<RowRunner> make_row_runner(LowerCtx& ctx, const RowProgram& program, const RowHints& hints);

// Whether an output may be written over an input of the program, as far as their layouts go.
bool may_lie_over(const RowProgram& program, int input, int output);

}  // namespace sg::cpu
