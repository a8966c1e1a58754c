// docs_extract PAGE NAME OUT: writes the ```cpp blocks of a documentation page as one source file, to be compiled.
// - A block with `int main(` must stand alone: it becomes a namespace of its own, main renamed, includes kept.
// - A block that defines something at column 0 (a function, a struct, a template) stays at namespace scope.
// - Any other block is a piece of a function's body. Each later piece is nested in the one before, so that a page can
// go
//   on from its own earlier lines, or start again with the same names.
// #line directives make the compiler report the page's own lines. A block marked `// not compiled` is refused.
#include <fstream>
#include <iostream>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Block {
  int line = 0;
  std::string text;
};

std::vector<Block> read_blocks(std::istream& page) {
  std::vector<Block> blocks;
  std::string line;
  bool inside = false;
  for (int n = 1; std::getline(page, line); ++n) {
    if (!inside && line.rfind("```cpp", 0) == 0) {
      inside = true;
      blocks.push_back({n + 1, {}});
    } else if (inside && line.rfind("```", 0) == 0) {
      inside = false;
    } else if (inside) {
      blocks.back().text += line + "\n";
    }
  }
  return blocks;
}

bool defines_at_column_zero(const std::string& text) {
  static const std::regex definition(
      R"((^|\n)((struct|class|enum|namespace|template|using namespace)\b[^\n]*[{>;]|)"
      R"((?!if|for|while|switch|else|return|do\b)[A-Za-z_][\w:<>,&\* ]*[ &\*][\w:]+\([^;]*\)( const)? \{))");
  return std::regex_search(text, definition);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return std::cerr << "usage: docs_extract PAGE NAME OUT\n", 2;
  std::ifstream page(argv[1]);
  if (!page) return std::cerr << "docs_extract: cannot read " << argv[1] << "\n", 1;
  std::string includes, scope, body, closing;
  int programs = 0;
  for (auto& block : read_blocks(page)) {
    if (block.text.rfind("// not compiled", 0) == 0)
      return std::cerr << argv[2] << ":" << block.line
                       << ": a snippet must compile; '// not compiled' is not allowed\n",
             1;
    const std::string where = "#line " + std::to_string(block.line) + " \"" + argv[2] + "\"\n";
    std::string code;
    std::istringstream lines(block.text);
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind("#include", 0) == 0) {
        // A program against the installed library names its headers below stopgrad/.
        if (const auto at = line.find("<stopgrad/"); at != std::string::npos) line.erase(at + 1, 9);
        includes += line + "\n";
        code += "\n";
      } else {
        code += line + "\n";
      }
    }
    if (code.find("int main(") != std::string::npos) {
      code.replace(code.find("int main("), 9, "int program(");
      scope += "namespace program_" + std::to_string(++programs) + " {\n" + where + code + "}\n";
    } else if (defines_at_column_zero(code)) {
      scope += where + code;
    } else {
      body += "{\n" + where + code;
      closing += "}\n";
    }
  }
  std::ofstream out(argv[3]);
  out << "#include \"prelude.h\"\n"
      << includes << scope << "namespace {\n[[maybe_unused]] void page() {\n"
      << body << closing << "}\n}  // namespace\n";
  out.flush();
  if (!out) return std::cerr << "docs_extract: cannot write " << argv[3] << "\n", 1;
  return 0;
}
