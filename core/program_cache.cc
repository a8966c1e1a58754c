#include "core/program_cache.h"

#include <algorithm>

namespace sg {
namespace {

void check_inputs(const ProgramCache::Entry& e) {
  const std::vector<Value>& inputs = e.recorded.inputs;
  if (inputs.size() != e.types.size())
    fail(ErrorKind::usage, "ProgramCache: {} types were asked for and the record function gave {} inputs",
         e.types.size(), inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Value& v = inputs[i];
    if (v.tape != &e.tape)
      fail(ErrorKind::usage, "ProgramCache: input {} of the recording is null or on another tape than the one given",
           i);
    if (op_def(e.tape.instrs()[static_cast<std::size_t>(e.tape.producer(v.id))].op).role != Role::input)
      fail(ErrorKind::usage, "ProgramCache: input {} of the recording is no input of the tape\n  {}", i,
           e.tape.describe(v.id));
    if (v.type() != e.types[i])
      fail(v.dtype() == e.types[i].dtype ? ErrorKind::shape : ErrorKind::dtype,
           "ProgramCache: input {} was asked for as {} and recorded as {}\n  {}", i, to_string(e.types[i]),
           to_string(v.type()), e.tape.describe(v.id));
  }
}

}  // namespace

ProgramCache::ProgramCache(Record record, Backend& backend, std::size_t most, CompileOptions options)
    : record_(std::move(record)), backend_(backend), most_(most), options_(options) {
  if (most_ < 1) fail(ErrorKind::usage, "ProgramCache: room for {} programs; at least 1", most_);
  if (!record_) fail(ErrorKind::usage, "ProgramCache: the record function is empty");
}

ProgramCache::Entry& ProgramCache::at(std::span<const TensorType> types) {
  const auto known = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& e) { return std::ranges::equal(e.types, types); });
  if (known != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, known);
    return entries_.front();
  }
  std::list<Entry> fresh(1);  // joins the others only once it is whole
  Entry& e = fresh.front();
  e.types.assign(types.begin(), types.end());
  e.recorded = record_(e.tape, e.types);
  check_inputs(e);
  if (entries_.size() >= most_) entries_.pop_back();  // before compiling: the dropped arena makes room for the new one
  e.program.emplace(compile(e.tape, e.recorded.fetches, backend_, options_));
  ++compilations_;
  entries_.splice(entries_.begin(), fresh);
  return entries_.front();
}

std::vector<Tensor> ProgramCache::run(std::span<const Tensor> inputs) {
  std::vector<TensorType> types;
  for (const Tensor& t : inputs) types.push_back(t.type());
  Entry& e = at(types);
  for (std::size_t i = 0; i < inputs.size(); ++i) e.program->feed(e.recorded.inputs[i], inputs[i]);
  e.program->run();
  std::vector<Tensor> out;
  for (const Value& v : e.recorded.fetches) out.push_back(e.program->fetch(v));
  return out;
}

}  // namespace sg
