// Places values with known lifetimes into one arena, so that values which are never alive together share bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sg {

struct Lifetime {
  std::size_t bytes = 0;         // rounded up to the alignment by the planner
  std::int32_t first = 0;        // step that makes it
  std::int32_t last = 0;         // last step that uses it; >= first
};

struct MemoryPlan {
  std::vector<std::size_t> offsets;     // one per lifetime, multiples of kAlignment
  std::size_t total = 0;                // arena size
  std::size_t lower_bound = 0;          // the most bytes alive at any one step: no plan can be smaller
  std::size_t sum = 0;                  // without reuse
};

constexpr std::size_t kAlignment = 64;

// The most bytes alive at any one step, each value rounded up to the alignment.
std::size_t largest_live_set(std::span<const Lifetime> lifetimes);

// Several orders of placing are tried until one comes near the bound. Invariant of the result: lifetimes that share a step do not share a byte.
MemoryPlan plan_memory(std::span<const Lifetime> lifetimes);

}  // namespace sg
