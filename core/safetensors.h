// State files in the safetensors format: an 8-byte little-endian header length, a JSON header, raw tensors. Files are
// written to a temporary name in the same folder, synced and renamed, so an interrupted save leaves the old file whole.
#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace sg {

struct NamedTensor { std::string name; Tensor value; };
struct StateFile {
  std::vector<NamedTensor> tensors;
  std::map<std::string, std::string> metadata;   // "__metadata__"
  const Tensor* find(std::string_view name) const;
};

// Error{io}: cannot open or write, disk full (the old file stays).
void save_safetensors(const std::filesystem::path& path, const StateFile& state);
// Error{io} naming what is wrong: truncated, header length beyond the file, malformed JSON, unknown dtype, offsets that
// overlap, leave gaps, run past the end or disagree with the shape. Nothing is allocated from an unchecked size.
StateFile load_safetensors(const std::filesystem::path& path);

// The same discipline for any file: writes `bytes` to a temporary name, syncs, renames. Error{io}.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);

}  // namespace sg
