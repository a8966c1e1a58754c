#include "backends/cuda/runtime_checks.h"

#include <mutex>
#include <vector>

namespace sg::cuda {
namespace {

constexpr unsigned kSlots = 8192;  // 64 KiB; word 0 says whether any other is set

struct Registry {
  std::mutex mutex;
  std::map<const Device*, RuntimeChecks*> of;
};
Registry& registry() {
  static Registry instance;
  return instance;
}

}  // namespace

RuntimeChecks::RuntimeChecks(Device& device) : device_(device) {
  constexpr std::size_t bytes = kSlots * sizeof(unsigned long long);
  flags_ = static_cast<unsigned long long*>(device.allocate(bytes));
  device.zero(flags_, bytes);
  const std::lock_guard lock(registry().mutex);
  registry().of[&device] = this;
}

RuntimeChecks::~RuntimeChecks() {
  {
    const std::lock_guard lock(registry().mutex);
    registry().of.erase(&device_);
  }
  device_.release(flags_);
}

RuntimeChecks& RuntimeChecks::of(Device& device) {
  const std::lock_guard lock(registry().mutex);
  const auto it = registry().of.find(&device);
  SG_CHECK(it != registry().of.end(), "the device has no backend");
  return *it->second;
}

RuntimeChecks::Slot::~Slot() { checks.entries_.erase(number); }

std::shared_ptr<const RuntimeChecks::Slot> RuntimeChecks::slot(std::string_view op, std::int64_t bound, Loc loc) {
  unsigned number = 1;  // the lowest that is free: programs are lowered in order, so the first error is the lowest
  for (const auto& [taken, entry] : entries_) {
    if (taken != number) break;
    ++number;
  }
  if (number >= kSlots)
    fail(ErrorKind::backend, "cuda: {} instructions of living programs check indices, {} can", number, kSlots - 1);
  entries_[number] = {std::string(op), bound, loc};
  return std::shared_ptr<const Slot>(new Slot{*this, number});
}

void RuntimeChecks::raise() {
  if (!std::exchange(pending_, false) || entries_.empty()) return;
  unsigned long long any = 0;
  device_.download(&any, flags_, sizeof any);
  if (any == 0) return;
  std::vector<unsigned long long> words(kSlots);
  device_.download(words.data(), flags_, kSlots * sizeof any);
  device_.zero(flags_, kSlots * sizeof any);
  for (const auto& [number, entry] : entries_) {
    const unsigned long long word = words[number];
    if (word == 0) continue;
    const auto position = ~static_cast<std::uint32_t>(word >> 32);
    const auto index = static_cast<std::int32_t>(static_cast<std::uint32_t>(word));
    throw Error(ErrorKind::attribute,
                fmt::format("{}: index {} at position {} is outside [0, {})\n  at {}", entry.op, index, position,
                            entry.bound, to_string(entry.loc)),
                entry.loc);
  }
}

}  // namespace sg::cuda
