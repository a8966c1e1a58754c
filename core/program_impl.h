// The inside of a Program, shared by compile.cc (which builds it) and program.cc (which runs it).
#pragma once
#include <deque>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/memory_plan.h"
#include "core/program.h"
#include "core/rewrite.h"

namespace sg {

// Memory of a backend, released with its owner.
class BackendBuffer {
 public:
  BackendBuffer() = default;
  BackendBuffer(Backend& backend, std::size_t bytes) : backend_(&backend), data_(backend.allocate(bytes)), bytes_(bytes) {}
  BackendBuffer(BackendBuffer&& o) noexcept : backend_(o.backend_), data_(std::exchange(o.data_, nullptr)), bytes_(o.bytes_) {}
  BackendBuffer& operator=(BackendBuffer&& o) noexcept {
    std::swap(backend_, o.backend_);
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  ~BackendBuffer() {
    if (data_ != nullptr) backend_->release(data_);
  }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

enum class StorageKind : std::uint8_t { arena, feed, constant, variable };

// The bytes of one value, or of several that alias each other or reuse each other's place.
struct Storage {
  StorageKind kind = StorageKind::arena;
  std::size_t bytes = 0;            // in the backend's storage type
  std::int32_t first = 0, last = 0; // steps, for arena storages
  std::int32_t taken = -1;          // the last step of which an output took it over from an input
  void* data = nullptr;
  std::int32_t leaf = -1;           // the value of the input, constant or read
};

struct StepEntry {
  std::unique_ptr<Step> step;
  std::string kind;                 // op name, or "reorder", "pack"
  std::int32_t instr = -1;
  double seconds = 0;
};

struct Program::Impl {
  Backend* backend = nullptr;
  CompileOptions options;
  std::unique_ptr<Tape> tape;                  // what the passes left
  const Tape* source = nullptr;                // identity of the user's tape: Values are checked against it
  std::vector<std::int32_t> map;               // user's value -> value here, -1 where gone
  std::vector<std::int32_t> fetches;           // values here
  std::vector<std::int32_t> storage_of;        // value -> index into storages
  std::vector<Storage> storages;
  std::vector<BackendBuffer> buffers;          // arena, scratch, and everything that outlives a run
  BackendBuffer arena, scratch;
  std::vector<StepEntry> steps;
  ProgramStats stats;
  std::uint64_t runs = 0;

  struct Feed { std::int32_t value; std::string name; bool fed = false; };
  std::vector<Feed> feeds;
  std::map<std::string, TensorType> unused_inputs;   // declared on the user's tape, needed by nothing
  struct Upload { Variable* variable; void* dst; std::uint64_t version = 0; };
  std::vector<Upload> uploads;                 // variables that need a buffer of this program (another storage type)
  std::vector<Variable*> in_place;             // variables read where they live, which must be up to date before a run
  struct Stage { const void* src; void* dst; std::int32_t value; };
  std::vector<Stage> stages;                   // values that a commit would overwrite, copied before it
  std::unordered_map<std::int32_t, void*> staged;
  struct Commit { Variable* variable; std::int32_t value; void* home; };
  std::vector<Commit> commits;
  struct Guard { std::byte* data; std::size_t bytes; std::int32_t value; };
  std::vector<Guard> guards;

  std::map<std::string, std::shared_ptr<void>> shared;
  std::deque<void**> scratch_users;
  std::size_t scratch_bytes = 0;

  // check_finite: the same work without passes and with every value kept, built when first needed.
  std::unique_ptr<Tape> plain_tape;
  std::vector<Tensor> finite_probe;            // host copies to look at, made at compile time
  std::unique_ptr<Impl> slow;

  void* data(std::int32_t value) const { return storages[static_cast<std::size_t>(storage_of[static_cast<std::size_t>(value)])].data; }
  const void* readable(std::int32_t value) const;   // the staged copy where there is one
  std::int32_t resolve(Value value) const;          // user's Value -> value here; Error{usage}
  // Capture: after two plain runs steps and commits become one replay, or `capture_note` says why not.
  std::unique_ptr<Step> replay;
  std::string capture_note;

  void* home(Variable& variable) const;             // where a new value of the variable is written, null where it is downloaded
  void prepare();                                   // inputs are there, state is up to date
  void enqueue_steps();
  void enqueue_commits();
  void run_steps();
  void run_and_commit();
  void committed();
  void check_guards() const;
  void check_finite();
};

constexpr std::size_t kGuardBytes = 64;
constexpr std::byte kGuardPattern{0xA5};

std::unique_ptr<Program::Impl> build_program(const Tape& tape, std::span<const std::int32_t> fetches, Backend& backend,
                                             const CompileOptions& options, bool keep_all);

}  // namespace sg
