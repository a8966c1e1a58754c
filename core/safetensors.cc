#include "core/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <tuple>
#include <utility>

namespace sg {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Bytes = std::span<const std::byte>;

static_assert(std::endian::native == std::endian::little, "the format is little-endian and is copied as it is");

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the limit of the format's own reader
constexpr std::uint64_t kLengthBytes = 8;
constexpr const char* kMetadata = "__metadata__";

[[noreturn]] void fail_errno(std::string_view what, const fs::path& path, int error) {
  fail(ErrorKind::io, "cannot {} '{}': {}", what, path.string(), std::generic_category().message(error));
}

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  bool ok() const { return fd_ >= 0; }
  int get() const { return fd_; }
  bool close() { return ::close(std::exchange(fd_, -1)) == 0; }

 private:
  int fd_;
};

struct RemoveUnlessDone {
  const fs::path& path;
  bool done = false;
  ~RemoveUnlessDone() {
    if (!done) ::unlink(path.c_str());
  }
};

void write_all(const Descriptor& file, const fs::path& path, Bytes bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(file.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("write", path, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

// The file that a save replaces: what a symbolic link points to, so that the link stays. A device or a folder is
// refused: renaming over it would take its place.
fs::path destination(const fs::path& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return path;
  if (!S_ISREG(info.st_mode)) fail(ErrorKind::io, "cannot write '{}': it is not a regular file", path.string());
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  return error ? path : real;
}

// The temporary name is a fixed one: what a killed process leaves behind is overwritten by the next save.
void write_pieces(const fs::path& given, std::span<const Bytes> pieces) {
  const fs::path path = destination(given);
  fs::path temporary = path;
  temporary += ".tmp";

  Descriptor file(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
  if (!file.ok()) fail_errno("create", temporary, errno);
  RemoveUnlessDone guard{temporary};
  for (const Bytes piece : pieces) write_all(file, temporary, piece);
  if (::fsync(file.get()) != 0 || !file.close()) fail_errno("write", temporary, errno);
  if (::rename(temporary.c_str(), path.c_str()) != 0) fail_errno("replace", path, errno);
  guard.done = true;

  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  const Descriptor dir(folder, O_RDONLY | O_DIRECTORY);
  if (!dir.ok()) fail_errno("open", folder, errno);
  // EINVAL: a file system whose folders cannot be synced.
  if (::fsync(dir.get()) != 0 && errno != EINVAL) fail_errno("sync", folder, errno);
}

const char* format_name(DType t) { return t == DType::f32 ? "F32" : t == DType::f64 ? "F64" : t == DType::i32 ? "I32" : "BF16"; }

struct Entry {
  std::string name;
  TensorType type;
  std::uint64_t begin = 0, end = 0;  // in the data section
};

// Reads and checks one file. Every reject() names the file and what is wrong with it.
class Loader {
 public:
  explicit Loader(const fs::path& path) : path_(path), file_(path, O_RDONLY | O_NONBLOCK) {
    if (!file_.ok()) fail_errno("open", path, errno);
    struct stat info {};
    if (::fstat(file_.get(), &info) != 0) fail_errno("read", path, errno);
    if (!S_ISREG(info.st_mode)) fail(ErrorKind::io, "cannot read '{}': it is not a regular file", path.string());
    size_ = static_cast<std::uint64_t>(info.st_size);
  }

  StateFile load() {
    const std::string header = read_header();
    data_bytes_ = size_ - kLengthBytes - header.size();
    const json root = parse(header);
    StateFile state;
    std::vector<Entry> entries;
    for (const auto& [name, value] : root.items()) {
      if (name == kMetadata) {
        state.metadata = metadata(value);
      } else {
        entries.push_back(entry(name, value));
      }
    }
    check_layout(entries);
    for (Entry& e : entries) {
      Tensor tensor(e.type);
      read(tensor.data(), tensor.bytes());
      state.tensors.push_back({std::move(e.name), std::move(tensor)});
    }
    return state;
  }

 private:
  template <class... Args>
  [[noreturn]] void reject(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorKind::io, "'{}' is not a valid safetensors file: {}", path_.string(),
         fmt::format(format, std::forward<Args>(args)...));
  }

  void read(void* to, std::size_t bytes) {
    auto* p = static_cast<char*>(to);
    while (bytes > 0) {
      const ssize_t n = ::read(file_.get(), p, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail_errno("read", path_, errno);
      if (n == 0) reject("it was cut short while it was read");
      p += n;
      bytes -= static_cast<std::size_t>(n);
    }
  }

  std::string read_header() {
    if (size_ < kLengthBytes)
      reject("{} bytes long, shorter than the length of the header ({} bytes)", size_, kLengthBytes);
    std::uint64_t length = 0;
    read(&length, sizeof length);
    if (length > kMaxHeader) reject("header length {} is above the limit of {} bytes", length, kMaxHeader);
    if (length > size_ - kLengthBytes)
      reject("header length {}, but only {} bytes follow", length, size_ - kLengthBytes);
    std::string header(length, '\0');
    read(header.data(), header.size());
    if (header.empty() || header.front() != '{') reject("the header does not start with '{{'");
    return header;
  }

  // JSON, but for what a header never holds and a parser would let through: names given twice (of which it would keep
  // one) and deep nesting.
  json parse(const std::string& header) const {
    std::vector<std::set<std::string>> names;
    const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
      if (depth > 3) reject("the header is nested too deeply");
      if (event == json::parse_event_t::object_start) names.emplace_back();
      if (event == json::parse_event_t::object_end) names.pop_back();
      if (event == json::parse_event_t::key && !names.back().insert(parsed.get<std::string>()).second)
        reject("the header names '{}' twice", parsed.get<std::string>());
      return true;
    };
    try {
      return json::parse(header, check);
    } catch (const json::exception& e) {
      reject("malformed JSON header: {}", e.what());
    }
  }

  std::map<std::string, std::string> metadata(const json& value) const {
    if (!value.is_object()) reject("{} is not an object", kMetadata);
    std::map<std::string, std::string> texts;
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) reject("{} '{}' is not a text", kMetadata, key);
      texts[key] = text.get<std::string>();
    }
    return texts;
  }

  const json& field(const std::string& tensor, const json& value, const char* key, json::value_t type) const {
    const auto it = value.find(key);
    if (it == value.end()) reject("tensor '{}' has no {}", tensor, key);
    if (it->type() != type) reject("tensor '{}' has a malformed {}", tensor, key);
    return *it;
  }

  std::uint64_t whole_number(const std::string& tensor, const json& value, const char* key) const {
    if (!value.is_number_unsigned())
      reject("tensor '{}': {} holds {}, not a whole number >= 0", tensor, key, value.dump());
    return value.get<std::uint64_t>();
  }

  Entry entry(const std::string& name, const json& value) const {
    if (!value.is_object()) reject("tensor '{}' is not described by an object", name);
    Entry e{name, {}, 0, 0};

    const auto dtype = field(name, value, "dtype", json::value_t::string).get<std::string>();
    const auto known = {DType::f32, DType::f64, DType::i32, DType::bf16};
    const auto* it = std::find_if(known.begin(), known.end(), [&](DType t) { return dtype == format_name(t); });
    if (it == known.end()) reject("tensor '{}' has dtype '{}'; F32, F64, BF16 and I32 can be read", name, dtype);
    e.type.dtype = *it;

    const json& shape = field(name, value, "shape", json::value_t::array);
    if (shape.size() > Shape::kMaxRank)
      reject("tensor '{}' has rank {}, above {}", name, shape.size(), Shape::kMaxRank);
    std::vector<std::int64_t> dims;
    std::int64_t span = 1;
    for (const json& extent : shape) {
      const std::uint64_t n = whole_number(name, extent, "shape");
      // Extents of 0 are left out, so that no later product of some extents overflows either.
      if (__builtin_mul_overflow(span, std::max<std::uint64_t>(n, 1), &span))
        reject("tensor '{}': the size of shape {} overflows", name, shape.dump());
      dims.push_back(static_cast<std::int64_t>(n));
    }
    try {
      e.type.shape = Shape(dims);
    } catch (const Error& error) {
      reject("tensor '{}': {}", name, error.message());
    }

    const json& offsets = field(name, value, "data_offsets", json::value_t::array);
    if (offsets.size() != 2) reject("tensor '{}' has {} data_offsets instead of 2", name, offsets.size());
    e.begin = whole_number(name, offsets[0], "data_offsets");
    e.end = whole_number(name, offsets[1], "data_offsets");
    if (e.begin > e.end) reject("tensor '{}': data_offsets [{}, {}] run backwards", name, e.begin, e.end);
    if (e.end > data_bytes_)
      reject("tensor '{}' ends at byte {} of the data, which has {} bytes", name, e.end, data_bytes_);
    if (e.end - e.begin != e.type.bytes())
      reject("tensor '{}' of type {} takes {} bytes, but its data_offsets span {}", name, to_string(e.type),
             e.type.bytes(), e.end - e.begin);
    return e;
  }

  // The tensors, sorted by place, must cover the data section from its first byte to its last, each byte once.
  void check_layout(std::vector<Entry>& entries) const {
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
    });
    std::uint64_t covered = 0;
    for (const Entry& e : entries) {
      if (e.begin < covered) reject("tensor '{}' starts at byte {} inside the one before it", e.name, e.begin);
      if (e.begin > covered) reject("bytes {} to {} of the data belong to no tensor", covered, e.begin);
      covered = e.end;
    }
    if (covered != data_bytes_) reject("bytes {} to {} of the data belong to no tensor", covered, data_bytes_);
  }

  const fs::path& path_;
  Descriptor file_;
  std::uint64_t size_ = 0, data_bytes_ = 0;
};

}  // namespace

const Tensor* StateFile::find(std::string_view name) const {
  const auto it = std::find_if(tensors.begin(), tensors.end(), [&](const NamedTensor& t) { return t.name == name; });
  return it == tensors.end() ? nullptr : &it->value;
}

void save_safetensors(const std::filesystem::path& path, const StateFile& state) {
  std::vector<const NamedTensor*> order;
  for (const NamedTensor& t : state.tensors) order.push_back(&t);
  // The widest elements first: each tensor is then aligned to its element for readers that map the file.
  std::stable_sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return size_of(a->value.dtype()) > size_of(b->value.dtype());
  });

  json root = json::object();
  if (!state.metadata.empty()) root[kMetadata] = state.metadata;
  std::uint64_t offset = 0;
  for (const NamedTensor* t : order) {
    if (t->name == kMetadata || root.contains(t->name))
      fail(ErrorKind::usage, "save_safetensors: the name '{}' is reserved or given twice", t->name);
    const std::uint64_t end = offset + t->value.bytes();
    root[t->name] = {{"dtype", format_name(t->value.dtype())},
                     {"shape", t->value.shape().vec()},
                     {"data_offsets", std::vector<std::uint64_t>{offset, end}}};
    offset = end;
  }
  std::string header;
  try {
    header = root.dump();
  } catch (const json::exception& e) {
    fail(ErrorKind::usage, "save_safetensors: a name or a metadata text is not UTF-8: {}", e.what());
  }
  header.resize((header.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  if (header.size() > kMaxHeader)
    fail(ErrorKind::usage, "save_safetensors: the header of {} bytes is above the limit of {}", header.size(),
         kMaxHeader);

  const std::uint64_t length = header.size();
  std::vector<Bytes> pieces{std::as_bytes(std::span(&length, 1)), std::as_bytes(std::span(header))};
  for (const NamedTensor* t : order) pieces.emplace_back(t->value.data(), t->value.bytes());
  write_pieces(path, pieces);
}

StateFile load_safetensors(const std::filesystem::path& path) { return Loader(path).load(); }

void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  write_pieces(path, std::span(&bytes, 1));
}

}  // namespace sg
