// Whole sets of images to tokens and back, by the tokenizer of a trained model.
#pragma once
#include "core/backend.h"
#include "core/program_cache.h"
#include "tools/data/dataset.h"
#include "tools/task.h"

namespace sg::tools {

// Sets of images, one after the other, by a tokenizer that outlives it.
class ImageEncoder {
 public:
  ImageEncoder(const Tokenizer& tokenizer, Backend& backend);
  // i32 Tokenizer::token_shape(images.count). batch: images at once. A last, shorter batch is filled up.
  Tensor encode(const ImageSet& images, std::int64_t batch);

 private:
  const Tokenizer& tokenizer_;
  ProgramCache programs_;
};

struct DecodedImages {
  Tensor images;            // f32 (N,H,W,C), not clamped
  std::int64_t differ = 0;  // tokens that quantizing the codes again does not give: codes that coincide
};
// tokens: i32 token_shape(N). Error{io} naming `from`, where they come from: another shape, a token that is no code.
DecodedImages decode_tokens(const Tokenizer& tokenizer, const Tensor& tokens, std::int64_t batch, Backend& backend,
                            const std::string& from);

}  // namespace sg::tools
