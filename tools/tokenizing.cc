#include "tools/tokenizing.h"

#include <algorithm>

#include "core/error.h"
#include "core/program.h"
#include "tools/data/loader.h"

namespace sg::tools {

ImageEncoder::ImageEncoder(const Tokenizer& tokenizer, Backend& backend)
    : tokenizer_(tokenizer),
      programs_(
          [this](Tape& tape, std::span<const TensorType> types) {
            const Encoding encoding = tokenizer_.encode(tape, types[0].shape[0]);
            return ProgramCache::Recording{{encoding.images}, {encoding.tokens}};
          },
          backend) {}

Tensor ImageEncoder::encode(const ImageSet& images, std::int64_t batch) {
  batch = std::min(batch, images.count);
  const TensorType type{DType::f32, {batch, images.height, images.width, images.channels}};
  ProgramCache::Entry& e = programs_.at({&type, 1});
  Program& program = *e.program;
  const Value input = e.recorded.inputs[0], output = e.recorded.fetches[0];
  Tensor pixels(type), some(output.type());
  Tensor tokens({DType::i32, tokenizer_.token_shape(images.count)});
  const std::int64_t per_image = tokens.elements() / images.count;
  std::vector<std::int32_t> indices(static_cast<std::size_t>(batch));
  for (std::int64_t first = 0; first < images.count; first += batch) {
    const std::int64_t here = std::min(batch, images.count - first);
    for (std::int64_t i = 0; i < batch; ++i)
      indices[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i < here ? first + i : first);
    copy_images(images, indices, pixels);
    program.feed(input, pixels);
    program.run();
    program.fetch_into(output, some);
    std::copy_n(some.span<std::int32_t>().begin(), here * per_image,
                tokens.span<std::int32_t>().begin() + first * per_image);
  }
  return tokens;
}

DecodedImages decode_tokens(const Tokenizer& tokenizer, const Tensor& tokens, std::int64_t batch, Backend& backend,
                            const std::string& from) {
  const Shape& s = tokens.shape();
  if (tokens.dtype() != DType::i32 || s.rank() < 2 || s[0] < 1 || s != tokenizer.token_shape(s[0])) {
    const Shape one = tokenizer.token_shape(1);
    std::string wanted = "N";
    for (int i = 1; i < one.rank(); ++i) wanted += fmt::format(",{}", one[i]);
    fail(ErrorKind::io, "{} holds {}; this model decodes i32[{}]", from, to_string(tokens.type()), wanted);
  }
  const auto values = tokens.span<std::int32_t>();
  for (std::size_t i = 0; i < values.size(); ++i)
    if (values[i] < 0 || values[i] >= tokenizer.codes())
      fail(ErrorKind::io, "{}: token {} is {}; this model has codes 0 to {}", from, i, values[i],
           tokenizer.codes() - 1);

  const std::int64_t n = s[0], per_image = s.elements() / n;
  batch = std::min(batch, n);
  Tape tape;
  const Decoding decoding = tokenizer.decode(tape, batch);
  Program program = compile(tape, {decoding.images, decoding.tokens_again}, backend);
  Tensor some(decoding.tokens.type()), again(decoding.tokens.type()), images(decoding.images.type());
  std::vector<std::int64_t> shape = images.shape().vec();
  shape[0] = n;
  DecodedImages out{Tensor({DType::f32, Shape(shape)})};
  const std::int64_t pixels = out.images.elements() / n;
  for (std::int64_t first = 0; first < n; first += batch) {
    const std::int64_t here = std::min(batch, n - first);
    std::copy_n(values.begin() + first * per_image, here * per_image, some.span<std::int32_t>().begin());
    program.feed(decoding.tokens, some);
    program.run();
    program.fetch_into(decoding.images, images);
    program.fetch_into(decoding.tokens_again, again);
    for (std::int64_t i = 0; i < here * per_image; ++i) out.differ += again.at(i) != some.at(i);
    std::copy_n(images.span<float>().begin(), here * pixels, out.images.span<float>().begin() + first * pixels);
  }
  return out;
}

}  // namespace sg::tools
