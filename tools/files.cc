#include "tools/files.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "core/error.h"
#include "core/safetensors.h"

namespace sg::tools {

std::vector<std::byte> read_file(const std::filesystem::path& path) {
  std::error_code ec;
  if (std::filesystem::is_directory(path, ec))
    fail(ErrorKind::io, "{} is a folder; a file was expected", path.string());
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) fail(ErrorKind::io, "cannot open {}: {}", path.string(), std::strerror(errno));
  std::vector<std::byte> bytes;
  std::byte chunk[1 << 16];
  for (std::size_t got; (got = std::fread(chunk, 1, sizeof chunk, file.get())) > 0;)
    bytes.insert(bytes.end(), chunk, chunk + got);
  if (std::ferror(file.get())) fail(ErrorKind::io, "cannot read {}: {}", path.string(), std::strerror(errno));
  return bytes;
}

void write_text_atomically(const std::filesystem::path& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace sg::tools
