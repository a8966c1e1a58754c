// Which algorithm computes a convolution: chosen by a timed trial once for each shape and kept in a file.
//
// Invariants: 1. with Tuning::off nothing is timed and no file is read: the choice is a formula of the shape, the same
// on every run. 2. Trials and the file never make a compilation fail: what cannot be read is left out, what cannot be
// written stays in memory; tuning_note() says so.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/backend.h"

namespace sg::cpu {

enum class Tuning : std::uint8_t { off, cached, on };
Tuning tuning();
void set_tuning(Tuning tuning);

// formula: winograd, or in bf16 tiles or windows, where it is expected to be faster, else oneDNN. columns: a product
// and a gather. windows: a gather and a product of oneDNN's. tiles: our own products.
enum class ConvAlgorithm : std::uint8_t { formula, direct, automatic, winograd, columns, windows, tiles };

// The algorithm for the convolution that ctx lowers. `possible`: those that can compute it, besides formula.
// formula where tuning is off, or where the file does not know the shape and trials are off.
ConvAlgorithm conv_algorithm(const LowerCtx& ctx, std::span<const ConvAlgorithm> possible);

// What is wrong with the file of results, or how many results there are; "" before it was looked at.
std::string tuning_note();
void forget_tuning();  // what is in memory; the file is read again (tests)
// The calling thread's choice for what it lowers from now on, instead of any other; nullopt: none (tests).
void force_algorithm(std::optional<ConvAlgorithm> algorithm);

}  // namespace sg::cpu
