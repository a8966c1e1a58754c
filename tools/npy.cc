#include "tools/npy.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "core/safetensors.h"
#include "tools/files.h"

namespace sg::tools {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

// The header is a Python dictionary literal: {'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }.
// Returns what follows 'key': up to the end of the text, or nothing where the key is missing.
std::optional<std::string_view> after_key(std::string_view header, std::string_view key) {
  for (const char quote : {'\'', '"'}) {
    const std::string quoted = quote + std::string(key) + quote;
    const std::size_t at = header.find(quoted);
    if (at == std::string_view::npos) continue;
    std::string_view rest = header.substr(at + quoted.size());
    const std::size_t start = rest.find_first_not_of(" :");
    return start == std::string_view::npos ? std::string_view{} : rest.substr(start);
  }
  return std::nullopt;
}

std::vector<std::int64_t> parse_shape(std::string_view text, const std::string& file) {
  const std::size_t close = text.find(')');
  if (text.empty() || text.front() != '(' || close == std::string_view::npos)
    fail(ErrorKind::io, "{}: the .npy header has no shape", file);
  std::vector<std::int64_t> dims;
  std::size_t i = 1;
  while (i < close) {
    const char c = text[i];
    if (c == ' ' || c == ',') {
      ++i;
      continue;
    }
    std::int64_t extent = 0;
    const std::size_t first = i;
    for (; i < close && std::isdigit(static_cast<unsigned char>(text[i])); ++i) {
      if (extent > std::numeric_limits<std::int64_t>::max() / 10 - 9)
        fail(ErrorKind::io, "{}: the .npy header has an absurd shape {}", file, text.substr(0, close + 1));
      extent = extent * 10 + (text[i] - '0');
    }
    if (i == first)
      fail(ErrorKind::io, "{}: the .npy header has a malformed shape {}", file, text.substr(0, close + 1));
    dims.push_back(extent);
  }
  return dims;
}

}  // namespace

Tensor read_npy(const std::filesystem::path& path) {
  const std::string file = path.string();
  const std::vector<std::byte> bytes = read_file(path);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.size() < 10 || text.substr(0, kMagic.size()) != kMagic) fail(ErrorKind::io, "{} is not a .npy file", file);
  const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<unsigned char>(text[i])); };
  const std::size_t version = byte(6);
  if (version < 1 || version > 3) fail(ErrorKind::io, "{}: .npy version {} is unknown", file, version);
  const std::size_t prefix = version == 1 ? 10 : 12;
  if (text.size() < prefix) fail(ErrorKind::io, "{}: truncated .npy header", file);
  const std::size_t header_size =
      version == 1 ? byte(8) | byte(9) << 8 : byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
  if (text.size() - prefix < header_size)
    fail(ErrorKind::io, "{}: the .npy header says it is {} bytes long, the file has {}", file, header_size,
         text.size() - prefix);
  const std::string_view header = text.substr(prefix, header_size);
  const std::string_view data = text.substr(prefix + header_size);

  const auto descr = after_key(header, "descr"), order = after_key(header, "fortran_order"),
             shape = after_key(header, "shape");
  if (!descr || !order || !shape) fail(ErrorKind::io, "{}: the .npy header lacks descr, fortran_order or shape", file);
  if (order->substr(0, 5) != "False")
    fail(ErrorKind::io, "{}: Fortran order; save it with numpy.ascontiguousarray", file);
  const std::string_view kind = descr->size() >= 5 ? descr->substr(1, 3) : std::string_view{};
  const bool wide = kind == "<i8";
  if (!wide && kind != "<i4" && kind != "<f4" && kind != "<f8")
    fail(ErrorKind::io, "{}: element type {} is not one of <i4, <i8, <f4, <f8", file, kind);
  const DType dtype = kind == "<f4" ? DType::f32 : kind == "<f8" ? DType::f64 : DType::i32;

  const std::vector<std::int64_t> dims = parse_shape(*shape, file);
  if (dims.size() > static_cast<std::size_t>(Shape::kMaxRank))
    fail(ErrorKind::io, "{}: {} axes; at most {} are supported", file, dims.size(), Shape::kMaxRank);
  // Sizes come from the file: compare by division, so that a lying header can neither overflow nor allocate.
  const std::size_t item = wide ? 8 : size_of(dtype);
  std::size_t elements = 1;
  for (const std::int64_t d : dims) {
    const auto extent = static_cast<std::size_t>(d);
    if (extent != 0 && elements > data.size() / extent)
      elements = std::numeric_limits<std::size_t>::max() / 16;
    else
      elements *= extent;
  }
  if (elements > data.size() / item || elements * item != data.size())
    fail(ErrorKind::io, "{}: the .npy header's shape does not fit the {} bytes of data that follow it", file,
         data.size());

  Tensor out({dtype, Shape(dims)});
  if (!wide) {
    if (!data.empty()) std::memcpy(out.data(), data.data(), data.size());
    return out;
  }
  const auto values = out.span<std::int32_t>();
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::int64_t v = 0;
    std::memcpy(&v, data.data() + i * 8, 8);
    if (v < std::numeric_limits<std::int32_t>::min() || v > std::numeric_limits<std::int32_t>::max())
      fail(ErrorKind::io, "{}: element {} is {}, beyond 32 bits", file, i, v);
    values[i] = static_cast<std::int32_t>(v);
  }
  return out;
}

void write_npy(const std::filesystem::path& path, const Tensor& value) {
  if (value.dtype() == DType::bf16)
    fail(ErrorKind::dtype, "{}: the .npy format has no bf16; cast to f32 first", path.string());
  const char* descr = value.dtype() == DType::f32 ? "<f4" : value.dtype() == DType::f64 ? "<f8" : "<i4";
  std::string shape;
  for (const std::int64_t d : value.shape()) shape += std::to_string(d) + ", ";
  if (value.shape().rank() > 1) shape.resize(shape.size() - 2);
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", descr, shape);
  header.append(63 - (10 + header.size()) % 64, ' ');  // the data start at a multiple of 64
  header += '\n';
  std::string file(kMagic);
  file += std::string_view("\x01\x00", 2);
  file += static_cast<char>(header.size() & 0xff);
  file += static_cast<char>(header.size() >> 8);
  file += header;
  file.append(reinterpret_cast<const char*>(value.data()), value.bytes());
  write_text_atomically(path, file);
}

}  // namespace sg::tools
