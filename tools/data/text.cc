#include "tools/data/text.h"

#include <algorithm>
#include <filesystem>
#include <span>

#include "core/error.h"
#include "models/init.h"
#include "tools/data/dataset.h"
#include "tools/data/tokens.h"
#include "tools/files.h"

namespace sg::tools {
namespace {

namespace fs = std::filesystem;

constexpr const char* kWordNet = "/usr/share/wordnet/data.noun";
constexpr std::size_t kTenth = 10;  // of a text is held out

TextData from_bytes(const fs::path& path, std::int64_t limit) {
  std::vector<std::byte> bytes = read_file(path);
  if (limit > 0 && bytes.size() > static_cast<std::size_t>(limit)) bytes.resize(static_cast<std::size_t>(limit));
  if (bytes.size() < 2 * kTenth)
    fail(ErrorKind::io, "{} has {} bytes; a text to learn from has at least {}", path.string(), bytes.size(),
         2 * kTenth);
  TextData data;
  data.origin = path.string();
  const std::size_t kept = bytes.size() - bytes.size() / kTenth;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    (i < kept ? data.train : data.test).push_back(std::to_integer<std::int32_t>(bytes[i]));
  return data;
}

// Rows, each after the first separator, or after that of its label.
template <class T>
std::vector<std::int32_t> rows(const T* values, std::int64_t count, std::int64_t length, std::int64_t separator,
                               std::span<const std::int32_t> labels) {
  std::vector<std::int32_t> out;
  out.reserve(static_cast<std::size_t>(count * (length + 1)));
  for (std::int64_t r = 0; r < count; ++r) {
    out.push_back(static_cast<std::int32_t>(separator) + (labels.empty() ? 0 : labels[static_cast<std::size_t>(r)]));
    for (std::int64_t i = 0; i < length; ++i) out.push_back(static_cast<std::int32_t>(values[r * length + i]));
  }
  return out;
}

// The start tokens of rows over `contents` tokens: one for each class, or one.
void add_starts(TextData& data, std::int64_t contents, std::int64_t classes, bool conditional,
                const std::string& from) {
  if (conditional && classes == 0)
    fail(ErrorKind::usage, "--conditional: {} has no classes; labels are needed beside its rows", from);
  data.starts = conditional ? classes : 1;
  data.vocabulary = contents + data.starts;
}

TextData from_tokens(const fs::path& path, std::int64_t limit, bool conditional) {
  const TokenData tokens = read_token_files(path);
  TextData data;
  data.origin = tokens.origin;
  data.bytes = false;
  data.unit = tokens.train.length() + 1;
  add_starts(data, tokens.vocabulary, tokens.classes, conditional, path.string());
  const auto stream = [&](const TokenSet& set) {
    const std::int64_t count = limit > 0 ? std::min(limit, set.count()) : set.count();
    return rows(set.tokens.span<std::int32_t>().data(), count, set.length(), data.contents(),
                conditional ? std::span<const std::int32_t>(set.labels) : std::span<const std::int32_t>());
  };
  data.train = stream(tokens.train);
  data.test = stream(tokens.test);
  return data;
}

TextData from_images(const std::string& name, const std::string& folder, std::int64_t limit, bool conditional) {
  const Dataset images = load_dataset({.name = name, .folder = folder, .limit = limit});
  TextData data;
  data.origin = images.origin;
  const auto length = static_cast<std::int64_t>(images.train.image_bytes());
  data.unit = length + 1;
  add_starts(data, 256, images.classes, conditional, images.name);
  const auto stream = [&](const ImageSet& set) {
    return rows(set.pixels.data(), set.count, length, data.contents(),
                conditional ? std::span<const std::int32_t>(set.labels) : std::span<const std::int32_t>());
  };
  data.train = stream(images.train);
  data.test = stream(images.test);
  return data;
}

}  // namespace

TextData load_text(const std::string& name, const std::string& data_dir, std::int64_t limit, bool conditional) {
  std::error_code ec;
  TextData data;
  if (name == "wordnet") {
    if (!fs::exists(kWordNet, ec))
      fail(ErrorKind::io,
           "the text 'wordnet' is {}, which is not there: apt-get install wordnet-base, or name any file with --data",
           kWordNet);
    data = from_bytes(kWordNet, limit);
  } else if (const fs::path path = name; fs::is_regular_file(path, ec)) {
    data = path.extension() == ".npy" ? from_tokens(path, limit, conditional) : from_bytes(path, limit);
  } else if (fs::is_directory(path, ec) || name == "fashion-mnist" || name == "mnist" || name == "cifar10" ||
             name == "synthetic") {
    data = from_images(name, data_dir, limit, conditional);
  } else {
    fail(ErrorKind::io,
         "there is no file '{}' to read; --data is 'wordnet' (Debian package wordnet-base), a file of text, an .npy "
         "file of tokens, a folder of pictures, or a set of images (fashion-mnist, mnist, cifar10, synthetic)",
         name);
  }
  if (conditional && data.starts == 0)
    fail(ErrorKind::usage, "--conditional: {} is one text, which has no classes", name);
  data.name = name;
  return data;
}

void copy_segment(const std::vector<std::int32_t>& tokens, std::int64_t unit, const SegmentSizes& sizes,
                  std::uint32_t seed, std::int64_t step, Tensor& out) {
  const std::int64_t updates = sizes.sequence / sizes.update, number = step / updates, part = step % updates;
  if (static_cast<std::int64_t>(tokens.size()) < sizes.sequence + 1)
    fail(ErrorKind::io, "the data have {} tokens to train on; a sequence of {} and the token after it do not fit",
         tokens.size(), sizes.sequence);
  const std::int64_t places = (static_cast<std::int64_t>(tokens.size()) - sizes.sequence - 1) / unit + 1;
  HostRandom random(seed, fmt::format("text sequence {}", number));
  const auto to = out.span<std::int32_t>();
  for (std::int64_t b = 0; b < sizes.batch; ++b) {
    const std::int64_t start = random.below(places) * unit + part * sizes.update;
    std::copy_n(tokens.begin() + start, sizes.update + 1, to.begin() + b * (sizes.update + 1));
  }
}

}  // namespace sg::tools
