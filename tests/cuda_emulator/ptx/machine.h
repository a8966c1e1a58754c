// A PTX interpreter for tests: it runs the PTX that nvcc embeds and that NVRTC generates, one warp instruction for 32
// lanes at a time, and reports what a careful GPU would. Not a GPU, and says nothing about speed.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace sg::ptx {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

struct Options {
  bool check_races = false;        // shared- and global-memory races between barriers
  bool check_initialised = false;  // reads of shared and fresh global memory that nobody wrote
  std::uint64_t seed = 1;          // order of blocks and warps, and where warps are preempted
  unsigned quantum = 64;           // largest number of instructions that a warp runs before another may
  std::uint64_t max_steps = std::uint64_t{1} << 34;  // warp instructions of a launch; more is reported as endless
};

enum class Fault : std::uint8_t {
  none,
  out_of_bounds,
  misaligned,
  uninitialised,
  race,
  barrier,
  shuffle,
  trap,
  assertion,
  endless,
  bad_launch
};

struct Result {
  Fault fault = Fault::none;
  std::string report;  // kernel, source line, block, thread, address, what was wrong; empty where ok
  std::uint64_t warp_instructions = 0;
  bool ok() const { return fault == Fault::none; }
};

// The memory of the device as the driver knows it.
class Memory {
 public:
  virtual ~Memory() = default;
  // The live allocation that holds address p: its base and size; false where there is none.
  virtual bool find(std::uint64_t p, std::uint64_t& base, std::uint64_t& size) const = 0;
  // One byte per byte of the allocation at base, 0 while it was never written; null where it is not tracked. Launches
  // with check_initialised read it and mark what they write; others do not touch it.
  virtual std::uint8_t* written(std::uint64_t base) = 0;
};

struct Parameter {
  std::size_t offset = 0, size = 0;
};

class Kernel;  // an entry point, decoded

class Module {
 public:
  explicit Module(
      const std::string& text);  // throws std::runtime_error: line number and text of what is not understood
  ~Module();
  const Kernel* find(const std::string& name) const;  // null where there is none
  std::vector<std::string> names() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The PTX in an image as cuModuleLoadData takes it: PTX text, or a fatbin that nvcc wrote with --compress-mode=none.
// Throws std::runtime_error where there is none.
std::string text_of_image(const void* image);

std::vector<Parameter> parameters(const Kernel& kernel);
int registers_declared(const Kernel& kernel);  // virtual registers, not what ptxas would use
std::size_t static_shared_bytes(const Kernel& kernel);
unsigned max_threads(const Kernel& kernel);  // .maxntid, or 1024

// Runs to the end or to the first fault. `dynamic_shared`: bytes. `arguments`: as cuLaunchKernel takes them.
Result launch(const Kernel& kernel, Dim grid, Dim block, std::size_t dynamic_shared, void** arguments, Memory& memory,
              const Options& options = {});

}  // namespace sg::ptx
