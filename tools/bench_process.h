// Steps timed in processes of their own: for start-up and peak memory, which one process can tell only once.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sg::tools {

// What `bench step ARGUMENTS --json -` of this very program prints. Error{io} where it fails.
nlohmann::ordered_json step_in_process(const std::vector<std::string>& arguments);

}  // namespace sg::tools
