#include "tools/bench_process.h"

#include <array>
#include <cstdio>
#include <filesystem>

#include "core/error.h"

namespace sg::tools {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

nlohmann::ordered_json step_in_process(const std::vector<std::string>& arguments) {
  std::string command = quoted(std::filesystem::read_symlink("/proc/self/exe").string()) + " bench step --json -";
  for (const std::string& argument : arguments) command += " " + quoted(argument);
  std::FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) fail(ErrorKind::io, "bench: cannot run {}", command);
  std::string text;
  std::array<char, 4096> chunk{};
  for (std::size_t got; (got = std::fread(chunk.data(), 1, chunk.size(), pipe)) > 0;) text.append(chunk.data(), got);
  if (pclose(pipe) != 0) fail(ErrorKind::io, "bench: {} failed", command);
  return nlohmann::ordered_json::parse(text);
}

}  // namespace sg::tools
