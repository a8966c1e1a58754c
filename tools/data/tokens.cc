#include "tools/data/tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "tools/files.h"
#include "tools/npy.h"

namespace sg::tools {
namespace {

using Path = std::filesystem::path;

// NAME.npy -> NAME.test.npy for "test.npy".
Path beside(const Path& path, std::string_view ending) {
  return path.parent_path() / (path.stem().string() + "." + std::string(ending));
}

Tensor read_indices(const Path& path, int least_rank) {
  Tensor t = read_npy(path);
  if (t.dtype() != DType::i32 || t.shape().rank() < least_rank || t.elements() == 0)
    fail(ErrorKind::io, "{} holds {}; expected i32 ({})", path.string(), to_string(t.type()),
         least_rank > 1 ? "sequences, tokens of each" : "sequences");
  return t;
}

// The set, checked against what data say of it.
TokenSet read_set(const Path& tokens, const Path& labels) {
  TokenSet set{read_indices(tokens, 2)};
  if (!std::filesystem::exists(labels)) return set;
  const Tensor t = read_indices(labels, 1);
  if (t.elements() != set.count())
    fail(ErrorKind::io, "{} has {} labels, {} has {} sequences", labels.string(), t.elements(), tokens.string(),
         set.count());
  const auto values = t.span<std::int32_t>();
  set.labels.assign(values.begin(), values.end());
  return set;
}

void check(const Path& path, const char* what, std::span<const std::int32_t> values, std::int64_t below) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (values[i] < 0 || values[i] >= below)
      fail(ErrorKind::io, "{}: {} {} is {}, it is in 0 to {}", path.string(), what, i, values[i], below - 1);
}

std::int64_t greatest(std::span<const std::int32_t> values) {
  return values.empty() ? -1 : *std::max_element(values.begin(), values.end());
}

// The last tenth, or one sequence, leaves `set`.
TokenSet held_out(TokenSet& set, const Path& path) {
  const std::int64_t n = set.count(), length = set.length(), kept = n - std::max<std::int64_t>(n / 10, 1);
  if (kept < 1) fail(ErrorKind::io, "{} has one sequence; two are needed, as one is held out", path.string());
  const auto part = [&](std::int64_t first, std::int64_t last) {
    std::vector<std::int64_t> shape = set.tokens.shape().vec();
    shape[0] = last - first;
    TokenSet some{Tensor({DType::i32, Shape(shape)})};
    std::copy_n(set.tokens.span<std::int32_t>().begin() + first * length, (last - first) * length,
                some.tokens.span<std::int32_t>().begin());
    if (!set.labels.empty()) some.labels.assign(set.labels.begin() + first, set.labels.begin() + last);
    return some;
  };
  TokenSet rest = part(kept, n);
  set = part(0, kept);
  return rest;
}

}  // namespace

void write_token_files(const Path& path, const TokenData& data) {
  if (path.extension() != ".npy") fail(ErrorKind::usage, "{}: the name of a token file ends with .npy", path.string());
  const auto write = [&](const TokenSet& set, const Path& tokens, const Path& labels) {
    write_npy(tokens, set.tokens);
    if (set.labels.empty())
      std::filesystem::remove(labels);  // of an earlier set of this name
    else
      write_npy(labels, Tensor::of<std::int32_t>({set.count()}, set.labels));
  };
  write(data.train, path, beside(path, "labels.npy"));
  write(data.test, beside(path, "test.npy"), beside(path, "test.labels.npy"));
  const nlohmann::ordered_json about = {
      {"vocabulary", data.vocabulary}, {"classes", data.classes}, {"origin", data.origin}};
  write_text_atomically(beside(path, "json"), about.dump(2) + "\n");
}

TokenData read_token_files(const Path& path) {
  TokenData data;
  data.train = read_set(path, beside(path, "labels.npy"));
  const Path test = beside(path, "test.npy");
  data.test =
      std::filesystem::exists(test) ? read_set(test, beside(path, "test.labels.npy")) : held_out(data.train, path);
  if (data.test.length() != data.train.length())
    fail(ErrorKind::io, "{} has sequences of {} tokens, {} of {}", path.string(), data.train.length(), test.string(),
         data.test.length());

  const auto train = data.train.tokens.span<std::int32_t>(), held = data.test.tokens.span<std::int32_t>();
  if (const Path about = beside(path, "json"); std::filesystem::exists(about)) {
    const std::vector<std::byte> bytes = read_file(about);
    const auto json = nlohmann::json::parse(reinterpret_cast<const char*>(bytes.data()),
                                            reinterpret_cast<const char*>(bytes.data()) + bytes.size(), nullptr, false);
    const auto whole = [&](const char* key) {
      return json.is_object() && json.contains(key) && json.at(key).is_number_integer();
    };
    if (!whole("vocabulary") || !whole("classes") || json.at("vocabulary").get<std::int64_t>() < 1)
      fail(ErrorKind::io, "{} does not say vocabulary and classes as `tokenize` writes them", about.string());
    data.vocabulary = json.at("vocabulary");
    data.classes = json.at("classes");
    data.origin = json.value("origin", path.string());
  } else {
    data.vocabulary = std::max(greatest(train), greatest(held)) + 1;
    data.classes = std::max(greatest(data.train.labels), greatest(data.test.labels)) + 1;
    data.origin = path.string();
  }
  check(path, "token", train, data.vocabulary);
  check(test, "token", held, data.vocabulary);
  if (data.train.labels.empty() || data.test.labels.empty()) data.classes = 0;
  if (data.classes > 0) {
    check(beside(path, "labels.npy"), "label", data.train.labels, data.classes);
    check(beside(path, "test.labels.npy"), "label", data.test.labels, data.classes);
  }
  return data;
}

void copy_tokens(const TokenSet& set, std::span<const std::int32_t> indices, Tensor& tokens, Tensor* classes) {
  const std::int64_t length = set.length();
  const auto from = set.tokens.span<std::int32_t>();
  auto to = tokens.span<std::int32_t>().begin();
  for (std::size_t i = 0; i < indices.size(); ++i) {
    to = std::copy_n(from.begin() + indices[i] * length, length, to);
    if (classes != nullptr)
      classes->set(static_cast<std::int64_t>(i), set.labels[static_cast<std::size_t>(indices[i])]);
  }
}

}  // namespace sg::tools
