#include "tests/cuda_emulator/emulated_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace sg::cuda::emulated {
namespace {
constexpr std::size_t kRange = std::size_t{1} << 40;  // addresses only: nothing is behind what was not given out
constexpr std::size_t kAlignment = 512;               // of cuMemAlloc, in practice
constexpr std::size_t kPage = 4096;
std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }
}  // namespace

DeviceMemory::DeviceMemory() {
  void* p = mmap(nullptr, kRange, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::runtime_error("emulated device: no range of addresses");
  range_ = static_cast<unsigned char*>(p);
}

void DeviceMemory::change(unsigned char* first, std::size_t bytes, int protection) {
  if (mprotect(first, bytes, protection) != 0) throw std::runtime_error("emulated device: mprotect failed");
}

void DeviceMemory::protect(int protection) const {
  // From the oldest live allocation on: what lies before it stays closed for ever.
  const std::size_t first = blocks_.empty() ? next_ : blocks_.begin()->first - reinterpret_cast<std::uint64_t>(range_);
  const std::size_t begin = first / kPage * kPage, end = rounded(next_, kPage);
  if (end > begin) change(range_ + begin, end - begin, protection);
}

DeviceMemory::Open::Open(DeviceMemory& memory) : memory_(memory) {
  if (memory_.open_++ == 0) memory_.protect(PROT_READ | PROT_WRITE);
}

DeviceMemory::Open::~Open() {
  if (--memory_.open_ == 0) memory_.protect(PROT_NONE);
}

std::uint64_t DeviceMemory::allocate(std::size_t bytes, std::size_t limit, bool tracked) {
  if (bytes >= kPage) next_ = rounded(next_, kPage);  // so that its pages can go back
  if (bytes > limit || live_bytes_ > limit - bytes || bytes > kRange - next_ - 2 * kPage) return 0;
  const std::uint64_t base = reinterpret_cast<std::uint64_t>(range_ + next_);
  next_ += rounded(bytes, kAlignment) + kAlignment;  // a gap: what runs over an end is in no allocation
  Block& block = blocks_[base];
  block.bytes = bytes;
  if (tracked) block.written.assign(bytes, 0);
  live_bytes_ += bytes;
  unsigned char* const first = reinterpret_cast<unsigned char*>(base / kPage * kPage);
  const std::size_t pages = rounded(base + bytes, kPage) - reinterpret_cast<std::uint64_t>(first);
  change(first, pages, PROT_READ | PROT_WRITE);
  std::memset(reinterpret_cast<void*>(base), 0xFF, bytes);
  if (open_ == 0) change(first, pages, PROT_NONE);
  return base;
}

bool DeviceMemory::release(std::uint64_t base) {
  const auto found = blocks_.find(base);
  if (found == blocks_.end()) return false;
  // Mapped anew and closed: its pages go back, and no later mprotect has to walk over them.
  const std::uint64_t begin = rounded(base, kPage), end = (base + found->second.bytes) / kPage * kPage;
  if (end > begin && mmap(reinterpret_cast<void*>(begin), end - begin, open_ > 0 ? PROT_READ | PROT_WRITE : PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
    throw std::runtime_error("emulated device: mmap failed");
  live_bytes_ -= found->second.bytes;
  blocks_.erase(found);
  return true;
}

void DeviceMemory::release_all() {
  while (!blocks_.empty()) release(blocks_.begin()->first);
}

void* DeviceMemory::allocate_pinned(std::size_t bytes) {
  void* p = std::aligned_alloc(kPage, rounded(bytes, kPage));
  if (p == nullptr) return nullptr;
  std::memset(p, 0xFF, bytes);
  pinned_[reinterpret_cast<std::uint64_t>(p)].bytes = bytes;
  return p;
}

bool DeviceMemory::release_pinned(void* p) {
  if (pinned_.erase(reinterpret_cast<std::uint64_t>(p)) == 0) return false;
  std::free(p);
  return true;
}

DeviceMemory::Blocks::const_iterator DeviceMemory::holding(const Blocks& blocks, std::uint64_t p, std::size_t bytes) {
  auto after = blocks.upper_bound(p);
  if (after == blocks.begin()) return blocks.end();
  const auto block = std::prev(after);
  const std::uint64_t offset = p - block->first;
  return offset <= block->second.bytes && bytes <= block->second.bytes - offset ? block : blocks.end();
}

bool DeviceMemory::holds(std::uint64_t p, std::size_t bytes) const {
  return holding(blocks_, p, bytes) != blocks_.end();
}

bool DeviceMemory::pinned(const void* p, std::size_t bytes) const {
  return holding(pinned_, reinterpret_cast<std::uint64_t>(p), bytes) != pinned_.end();
}

void DeviceMemory::mark_written(std::uint64_t p, std::size_t bytes) {
  const auto block = holding(blocks_, p, bytes);
  if (block == blocks_.end() || block->second.written.empty()) return;
  auto& written = blocks_[block->first].written;
  std::fill_n(written.begin() + static_cast<std::ptrdiff_t>(p - block->first), bytes, std::uint8_t{1});
}

void DeviceMemory::copied(std::uint64_t dst, std::uint64_t src, std::size_t bytes) {
  const auto from = holding(blocks_, src, bytes);
  if (from == blocks_.end() || from->second.written.empty()) return mark_written(dst, bytes);
  const auto to = holding(blocks_, dst, bytes);
  if (to == blocks_.end() || to->second.written.empty()) return;
  std::memmove(blocks_[to->first].written.data() + (dst - to->first), from->second.written.data() + (src - from->first),
               bytes);
}

bool DeviceMemory::all_written(std::uint64_t p, std::size_t bytes) const {
  const auto block = holding(blocks_, p, bytes);
  if (block == blocks_.end() || block->second.written.empty()) return true;
  const auto begin = block->second.written.begin() + static_cast<std::ptrdiff_t>(p - block->first);
  return std::all_of(begin, begin + static_cast<std::ptrdiff_t>(bytes), [](std::uint8_t w) { return w != 0; });
}

void DeviceMemory::stop_tracking() {
  for (auto& [base, block] : blocks_) block.written = {};
}

bool DeviceMemory::find(std::uint64_t p, std::uint64_t& base, std::uint64_t& size) const {
  for (const Blocks* blocks : {&blocks_, &pinned_}) {
    const auto block = holding(*blocks, p, 1);
    if (block == blocks->end()) continue;
    base = block->first;
    size = block->second.bytes;
    return true;
  }
  return false;
}

std::uint8_t* DeviceMemory::written(std::uint64_t base) {
  const auto block = blocks_.find(base);
  return block == blocks_.end() || block->second.written.empty() ? nullptr : block->second.written.data();
}

}  // namespace sg::cuda::emulated
