// The text of a module -> kernels and variables.
#include <fmt/format.h>

#include <cstring>
#include <stdexcept>
#include <utility>

#include "tests/cuda_emulator/ptx/decode.h"

namespace sg::ptx {

struct Module::Impl {
  std::shared_ptr<ModuleData> data = std::make_shared<ModuleData>();
  std::vector<std::unique_ptr<Kernel>> kernels;
};

namespace {

unsigned count_of(const std::string& text, int line) {
  const auto n = number(text);
  if (!n || n->float_bytes != 0 || n->bits > 0x7fffffff) refuse(line, "not a count: " + text);
  return static_cast<unsigned>(n->bits);
}

class ModuleParser {
 public:
  ModuleParser(const std::string& text, std::shared_ptr<ModuleData> data, std::vector<std::unique_ptr<Kernel>>& kernels)
      : reader_(text), data_(std::move(data)), kernels_(kernels) {}
  void parse();

 private:
  void variable(bool constant_or_global, bool external);
  void initialise(Variable& variable, const Declaration& d, const std::string& values);
  void function();
  void kernel();
  void header(Kernel& kernel);
  std::string parameter_name(const std::string& text);
  unsigned count(const std::string& text);

  Reader reader_;
  std::shared_ptr<ModuleData> data_;
  std::vector<std::unique_ptr<Kernel>>& kernels_;
  ModuleNames names_;
  std::vector<Reader> entries_;  // from their names
};

void ModuleParser::parse() {
  bool external = false;
  while (!reader_.at_end()) {
    const std::string word = reader_.word();
    if (word == ".visible" || word == ".weak" || word == ".common") continue;
    if (word == ".extern") {
      external = true;
      continue;
    }
    if (word == ".version" || word == ".target" || word == ".address_size") {
      reader_.rest_of_line();
    } else if (word == ".file") {
      const std::string text = reader_.rest_of_line();
      const std::size_t quote = text.find('"'), end = text.find('"', quote + 1);
      if (end == std::string::npos) refuse(reader_.line(), "unknown directive: .file " + text);
      const std::string path = text.substr(quote + 1, end - quote - 1);
      data_->files[static_cast<int>(count(trimmed(text.substr(0, quote))))] = path.substr(path.rfind('/') + 1);
    } else if (word == ".section") {
      reader_.word();
      reader_.skip_braces();
    } else if (word == ".entry") {
      entries_.push_back(reader_);
      reader_.word();
      if (reader_.peek() == '(') reader_.until(')');
      while (reader_.peek() != '{') {
        if (reader_.peek() == ',' || reader_.peek() == ';')
          reader_.expect(reader_.peek());
        else
          reader_.word();
      }
      reader_.skip_braces();
    } else if (word == ".func") {
      function();
    } else if (word == ".global" || word == ".const") {
      variable(true, external);
    } else if (word == ".shared") {
      variable(false, external);
    } else {
      refuse(reader_.line(), "unknown directive: " + word);
    }
    external = false;
  }
  for (const Reader& entry : entries_) {  // when the functions that they call are known
    reader_ = entry;
    kernel();
  }
}

unsigned ModuleParser::count(const std::string& text) { return count_of(text, reader_.line()); }

void ModuleParser::variable(bool constant_or_global, bool external) {
  const int line = reader_.line();
  const std::string text = reader_.until(';');
  const std::size_t equals = text.find('=');
  Declaration d = declaration(text.substr(0, equals), line);
  const std::string values = equals == std::string::npos ? std::string() : trimmed(text.substr(equals + 1));
  if (!constant_or_global) {
    if (!values.empty() || (d.count == 0) != external) refuse(line, "unknown shared variable: " + text);
    names_.shared[d.name] = d;
    return;
  }
  if (external) refuse(line, "a variable of another module: " + text);
  if (d.count == 0) d.count = split(between(values, '{', '}'), ',').size();
  if (d.element * d.count == 0 || d.count > (std::size_t{1} << 30))
    refuse(line, "a variable of no size or too large: " + text);
  Variable& made = data_->variables[d.name];
  made.size = d.element * d.count;
  made.storage = std::make_unique<std::byte[]>(made.size + d.align);
  const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(made.storage.get());
  made.data = made.storage.get() + (d.align - start % d.align) % d.align;
  if (!values.empty()) initialise(made, d, values);
}

// Numbers, nested in braces or not, and addresses of earlier variables: name, name+4, generic(name).
void ModuleParser::initialise(Variable& made, const Declaration& d, const std::string& values) {
  std::string flat;
  for (const char c : values)
    if (c != '{' && c != '}') flat += c;
  std::size_t i = 0;
  for (std::string value : split(flat, ',')) {
    u64 bits = 0;
    if (value.starts_with("generic")) value = between(trimmed(value.substr(7)), '(', ')');
    if (const auto n = number(value)) {
      bits = n->bits;
    } else {
      const std::size_t plus = value.find('+');
      const auto it = data_->variables.find(trimmed(value.substr(0, plus)));
      const auto offset = plus == std::string::npos ? Number{} : number(trimmed(value.substr(plus + 1)));
      if (it == data_->variables.end() || !offset || d.element != 8) refuse(reader_.line(), "unknown value: " + value);
      bits = reinterpret_cast<u64>(it->second.data) + offset->bits;
    }
    if (i >= d.count) refuse(reader_.line(), "too many values for " + d.name);
    std::memcpy(made.data + d.element * i++, &bits, d.element);
  }
}

void ModuleParser::function() {
  Function function;
  if (reader_.peek() == '(') {
    reader_.expect('(');
    function.result = parameter_name(reader_.until(')'));
  }
  const std::string name = reader_.word();
  if (reader_.peek() == '(') {
    reader_.expect('(');
    for (const std::string& text : split(reader_.until(')'), ',')) function.parameters.push_back(parameter_name(text));
  }
  while (reader_.peek() != ';' && reader_.peek() != '{') reader_.word();  // .noreturn and the like
  if (reader_.peek() == ';') {
    reader_.expect(';');
    names_.functions.try_emplace(name, std::move(function));
    return;
  }
  function.body = reader_;
  reader_.skip_braces();
  names_.functions[name] = std::move(function);
}
std::string ModuleParser::parameter_name(const std::string& text) {
  if (!text.starts_with(".param")) refuse(reader_.line(), "unknown parameter: " + text);
  return declaration(text.substr(6), reader_.line()).name;
}

void ModuleParser::header(Kernel& kernel) {
  while (reader_.peek() != '{') {
    const std::string word = reader_.word();
    auto next_count = [&] { return count(reader_.word()); };
    auto dims = [&] {
      std::array<unsigned, 3> d{next_count(), 1, 1};
      for (std::size_t i = 1; i < 3 && reader_.peek() == ','; ++i) {
        reader_.expect(',');
        d[i] = next_count();
      }
      return d;
    };
    if (word == ".maxntid") {
      const auto d = dims();
      kernel.max_threads = d[0] * d[1] * d[2];
    } else if (word == ".reqntid") {
      kernel.required_block = dims();
    } else if (word == ".minnctapersm" || word == ".maxnreg") {
      next_count();
    } else if (word == ".pragma") {
      reader_.until(';');
    } else {
      refuse(reader_.line(), "unknown directive: " + word);
    }
  }
}

void ModuleParser::kernel() {
  auto kernel = std::make_unique<Kernel>();
  kernel->module = data_;
  kernel->name = reader_.word();
  Decoder decoder(*kernel, names_);
  if (reader_.peek() == '(') {
    reader_.expect('(');
    decoder.operands.line = reader_.line();
    for (const std::string& parameter : split(reader_.until(')'), ','))
      decoder.operands.declare_kernel_parameter(parameter);
  }
  header(*kernel);
  decode_body(reader_, decoder);
  decoder.finish();
  kernels_.push_back(std::move(kernel));
}

void directive(Reader& reader, Decoder& decoder, const std::string& word) {
  if (word == ".loc") {  // file line column, function_name label, inlined_at file line column
    const std::string text = reader.rest_of_line();
    Decoder::Location location{};
    auto take = [&](const std::vector<std::string>& parts, std::size_t first, std::size_t to) {
      if (parts.size() < first + 2) refuse(reader.line(), "unknown directive: .loc " + text);
      for (std::size_t i = 0; i < 2; ++i)
        location[to + i] = static_cast<int>(count_of(parts[first + i], reader.line()));
    };
    bool first = true;  // its line is 0 where the compiler knows none
    for (const std::string& piece : split(text, ',')) {
      const std::vector<std::string> parts = words(piece);
      if (std::exchange(first, false))
        take(parts, 0, 0);
      else if (!parts.empty() && parts[0] == "inlined_at")
        take(parts, 1, 2);
    }
    decoder.location(location);
    return;
  }
  const std::string text = reader.until(';');
  if (word == ".reg")
    decoder.operands.declare_registers(text);
  else if (word == ".shared")
    decoder.operands.declare_shared(text);
  else if (word == ".local")
    decoder.operands.declare_local(text);
  else if (word == ".param")
    decoder.operands.declare_call_parameter(text);
  else if (word != ".pragma")
    refuse(decoder.operands.line, "unknown directive: " + word + " " + text);
}

}  // namespace

void decode_body(Reader& reader, Decoder& decoder) {
  reader.expect('{');
  for (int depth = 1;;) {
    const char next = reader.peek();
    const int line = reader.line();
    decoder.operands.line = line;
    std::string label;
    if (next == '\0') refuse(line, "a body without end");
    if (next == '{') {
      reader.expect('{');
      decoder.operands.open_scope();
      ++depth;
    } else if (next == '}') {
      reader.expect('}');
      if (--depth == 0) return;
      decoder.operands.close_scope();
    } else if (next == ';') {
      reader.expect(';');
    } else if (next == '.') {
      directive(reader, decoder, reader.word());
    } else if (reader.label(label)) {
      // Only .branchtargets makes a label one of a table; any other directive stands after it by chance.
      const std::string word = reader.peek() == '.' ? reader.word() : std::string();
      if (word == ".branchtargets") {
        decoder.branch_targets(label, reader.until(';'));
        continue;
      }
      decoder.label(label);
      if (!word.empty()) directive(reader, decoder, word);
    } else {
      decoder.instruction(reader.until(';'), line);
    }
  }
}

Module::Module(const std::string& text) : impl_(std::make_unique<Impl>()) {
  ModuleParser(text, impl_->data, impl_->kernels).parse();
}
Module::~Module() = default;

const Kernel* Module::find(const std::string& name) const {
  for (const auto& kernel : impl_->kernels)
    if (kernel->name == name) return kernel.get();
  return nullptr;
}
std::vector<std::string> Module::names() const {
  std::vector<std::string> all;
  for (const auto& kernel : impl_->kernels) all.push_back(kernel->name);
  return all;
}

std::vector<Parameter> parameters(const Kernel& kernel) { return kernel.parameters; }
int registers_declared(const Kernel& kernel) { return kernel.registers; }
std::size_t static_shared_bytes(const Kernel& kernel) { return kernel.shared_bytes; }
unsigned max_threads(const Kernel& kernel) { return kernel.max_threads; }

}  // namespace sg::ptx
