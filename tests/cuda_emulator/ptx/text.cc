#include "tests/cuda_emulator/ptx/text.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <stdexcept>

namespace sg::ptx {
namespace {

bool blank(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool name_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$' || c == '%';
}

}  // namespace

void refuse(int line, const std::string& what) { throw std::runtime_error(fmt::format("ptx line {}: {}", line, what)); }

void Reader::advance() {
  if ((*text_)[at_] == '\n') ++line_;
  ++at_;
}
void Reader::skip_blanks() {
  while (at_ < text_->size()) {
    if (text_->compare(at_, 2, "//") == 0) {
      while (at_ < text_->size() && (*text_)[at_] != '\n') ++at_;
    } else if (text_->compare(at_, 2, "/*") == 0) {
      const std::size_t end = text_->find("*/", at_ + 2);
      if (end == std::string::npos) refuse(line_, "a comment without end");
      while (at_ < end + 2) advance();
    } else if (blank((*text_)[at_]) || (*text_)[at_] == '\0') {
      advance();
    } else {
      return;
    }
  }
}
bool Reader::at_end() {
  skip_blanks();
  return at_ >= text_->size();
}
char Reader::peek() { return at_end() ? '\0' : (*text_)[at_]; }
void Reader::expect(char c) {
  if (peek() != c) refuse(line_, fmt::format("'{}' expected", c));
  advance();
}
std::string Reader::word() {
  skip_blanks();
  const std::size_t start = at_;
  while (at_ < text_->size() && !blank((*text_)[at_]) &&
         std::string_view("(){}[];,").find((*text_)[at_]) == std::string_view::npos)
    ++at_;
  if (at_ == start)
    refuse(line_, at_ < text_->size() ? fmt::format("unexpected '{}'", (*text_)[at_]) : std::string("unexpected end"));
  return text_->substr(start, at_ - start);
}
std::string Reader::until(char stop) {
  const int first = line_;
  std::string piece;
  bool quoted = false;
  for (;;) {
    if (!quoted && at_ < text_->size() && (*text_)[at_] == '/') {
      const std::size_t before = at_;
      skip_blanks();
      if (at_ != before) piece += ' ';
    }
    if (at_ >= text_->size()) refuse(first, fmt::format("'{}' expected before the end", stop));
    const char c = (*text_)[at_];
    advance();
    if (c == '"') quoted = !quoted;
    if (c == stop && !quoted) return trimmed(piece);
    if (!blank(c) || quoted)
      piece += c;
    else if (!piece.empty() && piece.back() != ' ')
      piece += ' ';
  }
}
std::string Reader::rest_of_line() {
  std::string piece;
  while (at_ < text_->size() && (*text_)[at_] != '\n') piece += (*text_)[at_++];
  return trimmed(piece);
}
bool Reader::label(std::string& name) {
  skip_blanks();
  std::size_t end = at_;
  while (end < text_->size() && name_character((*text_)[end])) ++end;
  std::size_t colon = end;
  while (colon < text_->size() && blank((*text_)[colon])) ++colon;
  if (end == at_ || colon >= text_->size() || (*text_)[colon] != ':') return false;
  name = text_->substr(at_, end - at_);
  while (at_ <= colon) advance();
  return true;
}
void Reader::skip_braces() {
  expect('{');
  for (int depth = 1; depth > 0; advance()) {
    if (at_end()) refuse(line_, "'}' expected");
    if ((*text_)[at_] == '{') ++depth;
    if ((*text_)[at_] == '}') --depth;
  }
}

std::string trimmed(std::string_view text) {
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return std::string(text);
}
std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> pieces;
  if (trimmed(text).empty()) return pieces;
  int depth = 0;
  std::string piece;
  for (const char c : text) {
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
    if (c == separator && depth == 0) {
      pieces.push_back(trimmed(piece));
      piece.clear();
    } else {
      piece += c;
    }
  }
  pieces.push_back(trimmed(piece));
  return pieces;
}
std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> all;
  std::string word;
  for (const char c : std::string(text) + ' ') {
    if (!blank(c)) {
      word += c;
    } else if (!word.empty()) {
      all.push_back(word);
      word.clear();
    }
  }
  return all;
}
std::string between(const std::string& text, char open, char close) {
  if (text.size() < 2 || text.front() != open || text.back() != close) return {};
  return trimmed(std::string_view(text).substr(1, text.size() - 2));
}

std::optional<Number> number(std::string_view text) {
  const bool negative = !text.empty() && text[0] == '-';
  if (negative) text.remove_prefix(1);
  if (text.empty() || std::isdigit(static_cast<unsigned char>(text[0])) == 0) return std::nullopt;
  Number result;
  int base = 10;
  if (text.size() > 2 && text[0] == '0') {
    const char kind = static_cast<char>(std::tolower(static_cast<unsigned char>(text[1])));
    if (kind == 'f' || kind == 'd') {
      result.float_bytes = kind == 'f' ? 4 : 8;
      if (negative || text.size() != 2 + 2 * static_cast<std::size_t>(result.float_bytes)) return std::nullopt;
    }
    base = kind == 'f' || kind == 'd' || kind == 'x' ? 16 : kind == 'b' ? 2 : 8;
    if (base != 8) text.remove_prefix(2);
  }
  if (result.float_bytes == 0 && text.size() > 1 && (text.back() == 'U' || text.back() == 'u')) text.remove_suffix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result.bits, base);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  if (negative) result.bits = 0 - result.bits;
  return result;
}

bool split_offset(const std::string& text, std::string& name, std::uint64_t& offset) {
  const std::size_t plus = text.find('+');
  name = trimmed(std::string_view(text).substr(0, plus));
  offset = 0;
  if (plus == std::string::npos) return true;
  const auto n = number(trimmed(std::string_view(text).substr(plus + 1)));
  if (!n || n->float_bytes != 0) return false;
  offset = n->bits;
  return true;
}

int type_bytes(std::string_view type) {
  static constexpr struct {
    std::string_view name;
    int bytes;
  } kTypes[] = {{"pred", 0},  {"b8", 1},     {"u8", 1},  {"s8", 1},  {"b16", 2}, {"u16", 2}, {"s16", 2},
                {"f16", 2},   {"bf16", 2},   {"b32", 4}, {"u32", 4}, {"s32", 4}, {"f32", 4}, {"tf32", 4},
                {"f16x2", 4}, {"bf16x2", 4}, {"b64", 8}, {"u64", 8}, {"s64", 8}, {"f64", 8}};
  for (const auto& known : kTypes)
    if (known.name == type) return known.bytes;
  return -1;
}
bool is_integer_type(std::string_view type) {
  return type.size() >= 2 && (type[0] == 'u' || type[0] == 's') && type_bytes(type) > 0;
}

Declaration declaration(const std::string& text, int line) {
  Declaration result;
  std::string name;
  bool pointer = false;
  const std::vector<std::string> parts = words(text);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i] == ".align" && i + 1 < parts.size()) {
      const auto align = number(parts[++i]);
      if (!align || align->bits == 0 || (align->bits & (align->bits - 1)) != 0 || align->bits > 4096)
        refuse(line, text);
      if (!pointer) result.align = align->bits;  // after .ptr it is of what is pointed to
    } else if (parts[i] == ".ptr") {
      pointer = true;
    } else if (parts[i][0] == '.') {
      const std::string type = parts[i].substr(1);
      const int bytes = type_bytes(type);
      if (bytes > 0 && result.element == 0) {
        result.element = static_cast<std::size_t>(bytes);
        result.type = type;
      } else if (!pointer || (type != "global" && type != "const" && type != "shared" && type != "local")) {
        refuse(line, "unknown declaration: " + text);
      }
    } else {
      name += parts[i];
    }
  }
  result.name = name.substr(0, name.find('['));
  for (std::size_t at = name.find('['); at != std::string::npos; at = name.find('[', at + 1)) {
    result.array = true;
    const std::size_t end = name.find(']', at);
    if (end == std::string::npos) refuse(line, "unknown declaration: " + text);
    const std::string dim = name.substr(at + 1, end - at - 1);
    const auto n = number(dim);
    if (!dim.empty() && (!n || n->bits > (std::uint64_t{1} << 32))) refuse(line, "unknown declaration: " + text);
    result.count *= dim.empty() ? 0 : n->bits;
  }
  if (result.name.empty() || result.element == 0) refuse(line, "unknown declaration: " + text);
  if (result.align == 0) result.align = result.element;
  return result;
}

}  // namespace sg::ptx
