// PTX as text: words, lists and numbers.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sg::ptx {

[[noreturn]] void refuse(int line, const std::string& what);  // std::runtime_error "ptx line N: ..."

// The text of a module, read from front to back; comments are blanks.
class Reader {
 public:
  explicit Reader(const std::string& text) : text_(&text) {}
  int line() const { return line_; }
  bool at_end();  // after blanks
  char peek();    // the next character that is not blank, 0 at the end
  void expect(char c);
  std::string word();            // up to a blank or one of (){}[];,
  std::string until(char stop);  // and takes `stop`; without comments
  std::string rest_of_line();
  bool label(std::string& name);  // takes `name:` if it comes next
  void skip_braces();             // from { to its }

 private:
  void skip_blanks();
  void advance();
  const std::string* text_;
  std::size_t at_ = 0;
  int line_ = 1;
};

std::string trimmed(std::string_view text);
std::vector<std::string> split(std::string_view text, char separator);  // outside of () [] {}; pieces are trimmed
std::vector<std::string> words(std::string_view text);
std::string between(const std::string& text, char open, char close);  // text without its brackets

// An integer (decimal, 0x, 0b, 0; perhaps negative), or the bits of 0fXXXXXXXX or 0dXXXXXXXXXXXXXXXX.
struct Number {
  std::uint64_t bits = 0;
  int float_bytes = 0;  // 4 or 8: written as a float; 0: an integer
};
std::optional<Number> number(std::string_view text);

// "u32", "f16x2", "pred": its bytes, 0 for a predicate, -1 for what is no type.
int type_bytes(std::string_view type);
inline bool is_signed_type(std::string_view type) { return !type.empty() && type[0] == 's'; }
bool is_integer_type(std::string_view type);

// "name+12", "name+-4" or "name"; false where it is none of them.
bool split_offset(const std::string& text, std::string& name, std::uint64_t& offset);

// ".align 4 .b8 name[4][2]" of a declaration.
struct Declaration {
  std::string name, type;
  std::size_t align = 0, element = 0, count = 1;
  bool array = false;  // count 0: the size is not said
};
Declaration declaration(const std::string& text, int line);

}  // namespace sg::ptx
