// Whole sets of images to tokens and back, by the tokenizer of a trained model.
#pragma once
#include "core/backend.h"
#include "tools/data/dataset.h"
#include "tools/task.h"

namespace sg::tools {

// i32 Tokenizer::token_shape(images.count). batch: images at once.
Tensor encode_images(const Tokenizer& tokenizer, const ImageSet& images, std::int64_t batch, Backend& backend);

struct DecodedImages {
  Tensor images;            // f32 (N,H,W,C), not clamped
  std::int64_t differ = 0;  // tokens that quantizing the codes again does not give: codes that coincide
};
// tokens: i32 token_shape(N). Error{io} naming `from`, where they come from: another shape, a token that is no code.
DecodedImages decode_tokens(const Tokenizer& tokenizer, const Tensor& tokens, std::int64_t batch, Backend& backend,
                            const std::string& from);

}  // namespace sg::tools
