// Programs by the types of their inputs. The shapes of a program are fixed; where they vary (a prompt read in blocks
// and then token by token, sets of images of another size) each set of types is recorded and compiled when it is first
// used, and kept.
#pragma once
#include <functional>
#include <list>
#include <optional>
#include <span>
#include <vector>

#include "core/program.h"

namespace sg {

class ProgramCache {
 public:
  // What a tape that was recorded for some types takes and gives. inputs[i] is an input of that tape of type types[i];
  // inputs that only say something to the record function may be left unread.
  struct Recording {
    std::vector<Value> inputs, fetches;
  };
  // Records on a fresh tape for inputs of these types. Called again for types whose program was dropped: it shall
  // record the same. The Variables that it reads and assigns must outlive the cache; what several programs assign is
  // one state.
  using Record = std::function<Recording(Tape& tape, std::span<const TensorType> types)>;

  // A compiled set of types. Feed, run and fetch as usual; run() of the cache does it for single uses.
  struct Entry {
    std::vector<TensorType> types;
    Tape tape;
    Recording recorded;
    std::optional<Program> program;  // there once the cache gives the entry out
  };

  // most: programs kept at once, each with its arena; the least recently used is dropped. Error{usage}: below 1.
  ProgramCache(Record record, Backend& backend, std::size_t most = 8, CompileOptions options = {});
  ProgramCache(const ProgramCache&) = delete;
  ProgramCache& operator=(const ProgramCache&) = delete;

  // The program for these types, recorded and compiled now where there is none. Valid until `most` other sets of types
  // were asked for. Errors of recording and compiling pass through; nothing of what failed is kept. Error{usage},
  // {shape}, {dtype}: the recording's inputs are not those of the types.
  Entry& at(std::span<const TensorType> types);
  // Feeds, runs, fetches: one tensor for each of the recording's fetches.
  std::vector<Tensor> run(std::span<const Tensor> inputs);

  std::size_t size() const { return entries_.size(); }  // programs kept
  std::size_t most() const { return most_; }
  std::size_t compilations() const { return compilations_; }  // so far, those of dropped programs included

 private:
  Record record_;
  Backend& backend_;
  std::size_t most_, compilations_ = 0;
  CompileOptions options_;
  std::list<Entry> entries_;  // the most recently used first
};

}  // namespace sg
