#include "core/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

namespace sg {
namespace {

std::size_t rounded(std::size_t bytes) {
  return (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
}

// By falling key, each in the smallest gap that is free for its whole life. Quadratic; by size it is within a few per
// cent of the bound for most programs.
template <class Key>
void place_in_order(std::span<const Lifetime> lives, Key key, MemoryPlan& plan) {
  std::vector<std::size_t> order(lives.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return key(lives[a]) > key(lives[b]); });
  std::vector<std::size_t> placed;  // sorted by offset
  for (std::size_t i : order) {
    const std::size_t need = rounded(lives[i].bytes);
    std::size_t offset = 0, best = 0, best_gap = SIZE_MAX;
    for (std::size_t j : placed) {
      if (lives[j].last < lives[i].first || lives[j].first > lives[i].last) continue;
      if (plan.offsets[j] >= offset + need && plan.offsets[j] - offset < best_gap) {
        best_gap = plan.offsets[j] - offset;
        best = offset;
      }
      offset = std::max(offset, plan.offsets[j] + rounded(lives[j].bytes));
    }
    plan.offsets[i] = best_gap == SIZE_MAX ? offset : best;
    plan.total = std::max(plan.total, plan.offsets[i] + need);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [&](std::size_t a, std::size_t b) { return plan.offsets[a] < plan.offsets[b]; }),
                  i);
  }
}

// In order of time with a best-fit list of free blocks: n log n, for very long tapes.
void place_by_time(std::span<const Lifetime> lives, MemoryPlan& plan) {
  std::vector<std::size_t> births(lives.size()), deaths(lives.size());
  std::iota(births.begin(), births.end(), std::size_t{0});
  std::iota(deaths.begin(), deaths.end(), std::size_t{0});
  std::stable_sort(births.begin(), births.end(),
                   [&](std::size_t a, std::size_t b) { return lives[a].first < lives[b].first; });
  std::stable_sort(deaths.begin(), deaths.end(),
                   [&](std::size_t a, std::size_t b) { return lives[a].last < lives[b].last; });
  std::map<std::size_t, std::size_t> by_offset;     // free blocks: offset -> size
  std::multimap<std::size_t, std::size_t> by_size;  // size -> offset
  auto forget = [&](std::size_t offset, std::size_t size) {
    by_offset.erase(offset);
    for (auto [it, end] = by_size.equal_range(size); it != end; ++it)
      if (it->second == offset) {
        by_size.erase(it);
        break;
      }
  };
  auto give = [&](std::size_t offset, std::size_t size) {
    auto next = by_offset.lower_bound(offset);
    if (next != by_offset.end() && next->first == offset + size) {
      size += next->second;
      forget(next->first, next->second);
    }
    auto prev = by_offset.lower_bound(offset);
    if (prev != by_offset.begin() && (--prev)->first + prev->second == offset) {
      offset = prev->first;
      size += prev->second;
      forget(prev->first, prev->second);
    }
    by_offset.emplace(offset, size);
    by_size.emplace(size, offset);
  };
  std::size_t dead = 0;
  for (std::size_t i : births) {
    for (; dead < deaths.size() && lives[deaths[dead]].last < lives[i].first; ++dead)
      give(plan.offsets[deaths[dead]], rounded(lives[deaths[dead]].bytes));
    const std::size_t need = rounded(lives[i].bytes);
    if (const auto fit = by_size.lower_bound(need); fit != by_size.end()) {
      const auto [size, offset] = *fit;
      forget(offset, size);
      plan.offsets[i] = offset;
      if (size > need) give(offset + need, size - need);
    } else {
      plan.offsets[i] = plan.total;
      plan.total += need;
    }
  }
}

}  // namespace

std::size_t largest_live_set(std::span<const Lifetime> lives) {
  std::map<std::int32_t, std::int64_t> change;
  for (const Lifetime& l : lives) {
    change[l.first] += static_cast<std::int64_t>(rounded(l.bytes));
    change[l.last + 1] -= static_cast<std::int64_t>(rounded(l.bytes));
  }
  std::int64_t alive = 0, most = 0;
  for (const auto& [step, delta] : change) most = std::max(most, alive += delta);
  return static_cast<std::size_t>(most);
}

MemoryPlan plan_memory(std::span<const Lifetime> lives) {
  constexpr std::size_t kQuadraticLimit = 6000;
  constexpr double kGoodEnough = 1.01;
  MemoryPlan best;
  for (const Lifetime& l : lives) best.sum += rounded(l.bytes);
  best.lower_bound = largest_live_set(lives);
  best.total = SIZE_MAX;
  const auto good = [&](double factor) {
    return static_cast<double>(best.total) <= factor * static_cast<double>(best.lower_bound);
  };
  const auto offer = [&](auto place) {
    MemoryPlan plan{std::vector<std::size_t>(lives.size()), 0, best.lower_bound, best.sum};
    place(plan);
    if (plan.total < best.total) best = std::move(plan);
  };
  if (lives.size() <= kQuadraticLimit) {
    const auto by = [&](auto key) {
      if (!good(kGoodEnough)) offer([&](MemoryPlan& plan) { place_in_order(lives, key, plan); });
    };
    const auto life = [](const Lifetime& l) { return static_cast<double>(l.last - l.first + 1); };
    by([](const Lifetime& l) { return static_cast<double>(l.bytes); });
    by([&](const Lifetime& l) { return static_cast<double>(l.bytes) * life(l); });
    by([&](const Lifetime& l) { return static_cast<double>(l.bytes) * std::sqrt(life(l)); });
    by([&](const Lifetime& l) { return life(l); });
  }
  if (!good(kGoodEnough)) offer([&](MemoryPlan& plan) { place_by_time(lives, plan); });
  return best;
}

}  // namespace sg
