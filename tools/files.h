// Whole files in memory, with the checks that every reader needs.
#pragma once
#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

namespace sg::tools {

// Error{io} naming the file where it cannot be opened or read, or is a folder.
std::vector<std::byte> read_file(const std::filesystem::path& path);
void write_text_atomically(const std::filesystem::path& path, std::string_view text);

}  // namespace sg::tools
