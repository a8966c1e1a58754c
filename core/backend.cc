#include "core/backend.h"

#include <cstring>

namespace sg {

void Backend::fill(void* p, std::byte value, std::size_t bytes) { std::memset(p, static_cast<int>(value), bytes); }
void Backend::copy(void* dst, const void* src, std::size_t bytes) { std::memcpy(dst, src, bytes); }
Backend::Captured Backend::capture(const std::function<void()>&) {
  return {nullptr, fmt::format("backend '{}' replays step by step", name())};
}

Rewritten Backend::fuse(const Tape&, std::span<const std::int32_t>) const { return {nullptr, {}}; }

}  // namespace sg
