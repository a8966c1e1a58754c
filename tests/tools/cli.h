// The built program, run as a user runs it.
#pragma once
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>
#include <string_view>

#include "tests/support/expect.h"

namespace sg::test {

struct Outcome {
  int code;
  std::string text;
};  // text: stdout and stderr together

// Through the shell, so that a test can set limits and traps before it.
inline Outcome shell(const std::string& command) {
  std::FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  Outcome out{-1, {}};
  std::array<char, 4096> chunk{};
  for (std::size_t got; (got = std::fread(chunk.data(), 1, chunk.size(), pipe)) > 0;)
    out.text.append(chunk.data(), got);
  const int status = pclose(pipe);
  out.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return out;
}

inline Outcome stopgrad(const std::string& arguments) { return shell(SG_STOPGRAD_BINARY " " + arguments); }

// A network that trains in no time.
inline const std::string kSmall =
    " --data synthetic --limit 40 --image-size 8 --hidden 8 --residual-hidden 4 --residual-blocks 1 --codes 16 "
    "--code-dim 4 --batch 8 --window 5"
    " --threads 1 --log-every 1000 ";

// The one line of the message, without the parser's hint.
inline void expect_fails(const std::string& arguments, int code, std::string_view message) {
  const Outcome out = stopgrad(arguments);
  EXPECT_EQ(out.code, code) << arguments << "\n" << out.text;
  SG_EXPECT_CONTAINS(out.text, message);
  EXPECT_EQ(out.text.rfind("stopgrad: ", 0), 0u) << out.text;
  EXPECT_FALSE(contains(out.text, "internal error")) << out.text;
}

}  // namespace sg::test
