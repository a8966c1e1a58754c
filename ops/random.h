// Random numbers as functions of state: Philox4x32-10 (Salmon et al. 2011) keyed by (seed, step, instruction, element).
// state is i32 [2] = {seed, step}; the same state gives the same numbers on every backend and in every replay.
// Advance it with tape.assign(state_variable, state + advance) once a step (advance_random_state does).
#pragma once
#include "core/tape.h"

namespace sg {

Value uniform(Operand state, Shape shape, DType dtype = DType::f32);   // [0,1), multiples of 2^-24
Value normal(Operand state, Shape shape, DType dtype = DType::f32);    // N(0,1), Box-Muller
// As uniform(), but the numbers belong to a value of the tape: each call with the same key, state and shape gives the same
// ones. For two places that must draw alike.
Value uniform_of(Value key, Operand state, Shape shape, DType dtype = DType::f32);
void advance_random_state(Tape& tape, Variable& state, Loc loc = Loc::current());  // state[1] += 1 at the end of the step

}  // namespace sg
