// Reverse-mode differentiation by appending VJP instructions to the same tape, to any order.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "core/tape.h"

namespace sg {

enum class IfUnreachable : std::uint8_t { error, zero };

// d loss / d wrt[i], each of the shape of wrt[i]. loss must be a real scalar (Error{shape}). Only what lies between some
// wrt and the loss is differentiated. A wrt that no gradient reaches is an Error{unreachable_gradient} which names each
// barrier or piecewise op that cuts a path, with the line that wrote it, or says that no path exists; with
// IfUnreachable::zero it gets a constant zero.
std::vector<Value> gradients(Value loss, std::span<const Value> wrt, IfUnreachable = IfUnreachable::error,
                             Loc loc = Loc::current());
std::vector<Value> gradients(Value loss, std::initializer_list<Value> wrt, IfUnreachable = IfUnreachable::error,
                             Loc loc = Loc::current());
Value gradient(Value loss, Value wrt, IfUnreachable = IfUnreachable::error, Loc loc = Loc::current());

// Vector-Jacobian product: sum_i cotangents[i]^T d outputs[i] / d wrt[j].
std::vector<Value> vjp(std::span<const Value> outputs, std::span<const Value> cotangents, std::span<const Value> wrt,
                       IfUnreachable = IfUnreachable::error, Loc loc = Loc::current());

// A report of how the gradient of `loss` reaches `wrt`: live, blocked (by which instructions, at which user lines) or
// unconnected. Nothing is executed and nothing is recorded.
std::string explain_gradient(Value loss, Value wrt);

// The same as data. live: a gradient arrives. zero: one arrives, but it is 0 whatever the numbers are, for every path is
// multiplied by a constant 0 or cancels another (r - straight_through(r, q) in r). blocked: the loss depends on it only
// through instructions that pass no gradient. unconnected: it does not depend on it.
// cuts: indices of the instructions that end a path from wrt towards the loss, in record order; where the state is zero,
// those that make it so.
struct GradientFlow {
  enum class State : std::uint8_t { live, blocked, unconnected, zero } state = State::unconnected;
  std::vector<std::int32_t> cuts;
};
GradientFlow gradient_flow(Value loss, Value wrt);
// Of one loss to many values, by one reverse pass over the tape.
std::vector<GradientFlow> gradient_flows(Value loss, std::span<const Value> wrt);

// Per value, whether all its elements are 0 whatever is fed: constants, and what moving or multiplying makes of them.
std::vector<char> known_zeros(const Tape& tape);

}  // namespace sg
