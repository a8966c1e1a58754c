// The layout of a fatbin: a header of 16 bytes (magic, version, its own size, size of what follows), then entries, each
// with a header of its own that begins with kind, its size, and the size of the entry's content.
#include <cstring>
#include <stdexcept>

#include "tests/cuda_emulator/ptx/machine.h"

namespace sg::ptx {

std::string text_of_image(const void* image) {
  const char* at = static_cast<const char*>(image);
  auto read = [](const char* p, auto type) {
    decltype(type) x;
    std::memcpy(&x, p, sizeof x);
    return x;
  };
  constexpr std::uint32_t kMagic = 0xba55ed50;
  constexpr std::uint16_t kPtx = 1;
  constexpr std::uint64_t kCompressed = 0x2000 | 0x8000;
  if (read(at, std::uint32_t{}) != kMagic) return std::string(at);  // text
  const char* end = at + 16 + read(at + 8, std::uint64_t{});
  for (at += read(at + 6, std::uint16_t{}); at < end;) {
    const auto header = read(at + 4, std::uint32_t{});
    const auto size = read(at + 8, std::uint64_t{});
    if (read(at, std::uint16_t{}) == kPtx) {
      if (read(at + 40, std::uint64_t{}) & kCompressed) throw std::runtime_error("the PTX of a fatbin is compressed");
      return std::string(at + header, strnlen(at + header, size));
    }
    at += header + size;
  }
  throw std::runtime_error("a fatbin without PTX");
}

}  // namespace sg::ptx
