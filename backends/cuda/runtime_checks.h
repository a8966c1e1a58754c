// Errors that only the device sees while it runs: an index out of range. A kernel leaves the first one in a word of its
// own; the host looks at the next point where it waits for the device anyhow, and throws then.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "backends/cuda/device.h"

namespace sg::cuda {

class RuntimeChecks {
 public:
  explicit RuntimeChecks(Device& device);
  ~RuntimeChecks();
  RuntimeChecks(const RuntimeChecks&) = delete;
  RuntimeChecks& operator=(const RuntimeChecks&) = delete;

  // Those of a device, while it has a backend.
  static RuntimeChecks& of(Device& device);

  // A word for one step: the number of its slot, free again when the handle goes. Error{backend} where none is left.
  struct Slot {
    RuntimeChecks& checks;
    unsigned number;
    ~Slot();
  };
  std::shared_ptr<const Slot> slot(std::string_view op, std::int64_t bound, Loc loc);
  unsigned long long* flags() const { return flags_; }  // on the device

  bool any() const { return !entries_.empty(); }          // whether some living program has such a step

  void steps_ran() { pending_ = true; }
  // Error{attribute} naming op, index, position, bound and the user's line, where a step saw such an index since the
  // last call. Waits for the device where steps ran since then and any of them has a slot.
  void raise();

 private:
  struct Entry {
    std::string op;
    std::int64_t bound = 0;
    Loc loc;
  };
  Device& device_;
  unsigned long long* flags_ = nullptr;
  std::map<unsigned, Entry> entries_;
  bool pending_ = false;
};

}  // namespace sg::cuda
