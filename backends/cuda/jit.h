// Kernels made at run time: CUDA C++ text to a loaded module, through NVRTC. What was compiled is kept in memory and,
// by default, on disk; its key is everything that the result depends on (text, architecture, options, version of
// NVRTC).
//
// A file of the cache holds the whole key and a checksum. One that is short, altered, of another key or not ours at all
// counts as absent and is written anew. It is written under a name of its own, synced and renamed, so that a reader
// sees a whole file or none, whoever else writes. A folder that cannot be written costs compiling again, nothing else.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "backends/cuda/device.h"

namespace sg::cuda {

// What NVRTC makes of the text for that architecture (80, 90, ...): machine code where this NVRTC knows it, else PTX of
// the newest one below it; always PTX for an emulated device. Error{internal} with the log and the text where it does
// not compile, Error{backend} where there is no NVRTC. Thread safe.
std::string compile_text(const Tables& tables, int arch, const std::string& text);

// The kernel of that name in the module made of the text, which is loaded once for each device. Thread safe.
CUfunction jit_kernel(Device& device, const std::string& text, const std::string& kernel);

// Folder of the disk cache: $STOPGRAD_CUDA_CACHE ("off" or empty: none), else $XDG_CACHE_HOME/stopgrad/cuda, else
// ~/.cache/stopgrad/cuda. Empty: none. set_: for what is compiled from now on; nothing: as the environment says.
std::string jit_cache_folder();
void set_jit_cache_folder(std::optional<std::string> folder);

// Where compile_text() had its results from, since the process began. `rejected`: files of the cache that were not
// valid.
struct JitCounters {
  std::uint64_t compiled = 0, from_memory = 0, from_disk = 0, rejected = 0;
};
JitCounters jit_counters();
void forget_compiled();  // empties the memory cache (tests)

}  // namespace sg::cuda
