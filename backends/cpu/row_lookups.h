// Which rows a row program looks up where they lie (core/row_program.h), instead of a step that writes them: gathers,
// and operands whose rows repeat.
#pragma once
#include "core/rewrite.h"

namespace sg::cpu {

// Whether the readers of a gather's rows gain by looking them up: a program of full values alone works on one long row,
// with whole vectors, and by rows where it looks some up.
bool worth_looking_up(const Tape& tape, const Instr& gather);

// Operands of elementwise instructions whose rows repeat, (T,D) beside (N,T,D): the embeddings of positions, a mask of
// scores. Each becomes a gather of its T rows by constant numbers, where the instruction then joins its neighbours.
Rewritten look_up_repeated_rows(const Tape& tape);

}  // namespace sg::cpu
