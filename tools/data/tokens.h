// Sets of token sequences on disk: what `tokenize` writes and a prior is trained on.
//   NAME.npy              i32 (N, ...): the training sequences, one row of tokens each in raster order
//   NAME.test.npy         the held-out ones
//   NAME.labels.npy, NAME.test.labels.npy   i32 (N): the class of each; may be missing
//   NAME.json             {"vocabulary", "classes", "origin"}
// An .npy file of anybody's will do alone: the vocabulary is then the greatest token + 1, and the last tenth of the
// sequences is held out.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace sg::tools {

struct TokenSet {
  Tensor tokens;                          // i32 (N, ...)
  std::vector<std::int32_t> labels = {};  // one per sequence, from 0 on; empty: not known

  std::int64_t count() const { return tokens.shape()[0]; }
  std::int64_t length() const { return tokens.shape().elements() / tokens.shape()[0]; }  // of a sequence
};

struct TokenData {
  TokenSet train, test;
  std::int64_t vocabulary = 0, classes = 0;  // classes 0: no labels
  std::string origin;                        // for people: the run that made them, or the file
};

// Several files, each written atomically. Error{io}; Error{usage}: `path` does not end with .npy.
void write_token_files(const std::filesystem::path& path, const TokenData& data);

// Error{io} naming the file that is missing, no .npy of i32 (N, ...), or disagrees with another: a token outside the
// vocabulary, other lengths, labels that are too few or outside the classes.
TokenData read_token_files(const std::filesystem::path& path);

// Writes the sequences `indices` into `tokens` i32 (n, length) and, where not null, their labels into `classes` i32
// (n).
void copy_tokens(const TokenSet& set, std::span<const std::int32_t> indices, Tensor& tokens, Tensor* classes);

}  // namespace sg::tools
