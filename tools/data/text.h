// Streams of tokens for language models: the bytes of a file, images in raster order, rows of a token file. Segments
// are a function of (seed, step) alone, so that a resumed run sees what the interrupted one would have seen.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace sg::tools {

struct TextData {
  std::vector<std::int32_t> train, test;  // test: the held-out tail
  std::int64_t vocabulary = 256;
  std::int64_t unit = 1;    // sequences start at multiples of it: 1, or the length of a row with its separator
  std::int64_t starts = 0;  // the last tokens of the vocabulary, which stand before rows and are no part of the data:
                            // none, one that separates rows, or one for each class of a row
  bool bytes = true;  // whether a token is a byte: bits per token are then bits per byte
  std::string name, origin;

  std::int64_t contents() const { return vocabulary - starts; }  // tokens that data consist of: 0 to contents() - 1
  std::int64_t classes() const { return starts > 1 ? starts : 0; }
};

// data:  "wordnet"         the nouns' glosses of the Debian package wordnet-base
//        FILE              its bytes; the last tenth is held out
//        FILE.npy          rows of i32 tokens, as `tokenize` writes them, each after a separator
//        fashion-mnist, mnist, cifar10, synthetic, or a folder of pictures: pixels as bytes in raster order, channels
//                          innermost, each image after a separator
// limit: only so many tokens (of rows: rows) from the start; 0: all. conditional: the separator of a row says its
// class. Error{io}: missing, with what to install, or too short; Error{usage}: conditional, and there are no classes.
// data_dir as in DataOptions.
TextData load_text(const std::string& data, const std::string& data_dir = {}, std::int64_t limit = 0,
                   bool conditional = false);

struct SegmentSizes {
  std::int64_t batch, update, sequence;  // lanes, tokens of a step, tokens until memories are dropped
};
// Tokens of step `step` (from 0) into `out` i32 (batch, update + 1): lane b goes on with a sequence that starts at a
// place drawn for each sequence and lane; the last token of a step is the first of the next. Error{io}: fewer tokens
// than a sequence.
void copy_segment(const std::vector<std::int32_t>& tokens, std::int64_t unit, const SegmentSizes& sizes,
                  std::uint32_t seed, std::int64_t step, Tensor& out);

}  // namespace sg::tools
