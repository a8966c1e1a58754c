// Recomputation (gradient checkpointing, Chen et al., arXiv:1604.06174) as a pass: values of the forward part that only
// later instructions need are dropped, and recorded again before those instructions.
//
// Invariants: 1. a recorded copy is the same instruction with the same attributes on the same operands, or a part of such
// a region: the same kernel, the same bits; a random instruction keeps its stream and its state, which is that of the
// start of the step. 2. A copy starts from kept values through `after`, so no later pass can merge it with the first one or move it
// there.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "core/error.h"
#include "core/rewrite.h"

namespace sg {

struct RecomputeOptions {
  // none; scopes: the forward instructions of one scope (encoder, decoder/res0) are one segment; budget: segments are
  // chosen so that the largest live set stays below budget_bytes, or is as small as they can make it.
  enum class Mode : std::uint8_t { none, scopes, budget } mode = Mode::none;
  int scope_depth = 1;  // names of a scope's path that count
  std::size_t budget_bytes = 0;
};

// From words: "none", "scopes", "scopes:2" (depth), "budget:200" (megabytes). Error{usage} saying so.
RecomputeOptions recompute_by_name(const std::string& text);

struct RecomputeReport {
  std::size_t segments = 0;                              // that are recorded again
  std::size_t instructions = 0;                          // recorded again, aliases not counted
  std::size_t before = 0, after = 0;                     // largest live set, bytes
  std::string to_string(const RecomputeOptions&) const;  // one line
};

// Bytes of the largest live set of the tape once it is compiled to the end.
using PeakFn = std::function<std::size_t(const Tape&, std::span<const std::int32_t> keep)>;

// A segment is a part of the forward instructions, of regions also of some outputs. Of its values those are kept which others
// use or `keep` names, which are small beside what they are made from (indices, sums), or, if the peak is no higher so, of which
// sums over rows are taken. Segments whose recomputation does not lower the peak are left alone. A null tape where none does.
Rewritten recompute(const Tape& tape, std::span<const std::int32_t> keep, const RecomputeOptions& options,
                    const PeakFn& peak, RecomputeReport* report);

}  // namespace sg
