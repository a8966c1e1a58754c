// What the command line of stopgrad_tests asked for. Set once in main, before any test runs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace sg::test {

struct Flags {
  std::vector<std::string> backends;  // to hold against the reference backend
  std::vector<std::string> configs;   // names in kConfigs
  std::string op, case_name;          // restrict Conformance and Gradcheck; empty: all
  std::uint32_t seed = 1;
  bool coverage = false;
  std::string cuda;  // "emulated", "checked" (emulated, with races and unwritten memory looked for), "device" or nothing
};

Flags& flags();

// What a build of stopgrad may have; those that this one lacks are counted as skipped.
inline const std::vector<std::string> kKnownBackends{"reference", "cpu", "cuda"};

}  // namespace sg::test
