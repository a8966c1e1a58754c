// Progress of a long loop: a bar with speed and time left on a terminal, plain lines otherwise. And Ctrl-C.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>

namespace sg::tools {

class Progress {
 public:
  Progress(std::int64_t first, std::int64_t total, std::int64_t line_every);
  ~Progress();
  // done: steps finished in all. `text`: what to say about this step; `pace` of the last steps, "1234 images/s".
  void update(std::int64_t done, const std::string& text, const std::string& pace);
  // Prints a line of its own, keeping the bar below it.
  void line(const std::string& text);
  bool wants_text(std::int64_t done) const;  // whether update() would show anything now

 private:
  using Clock = std::chrono::steady_clock;
  void clear();
  std::int64_t first_, total_, line_every_;
  bool terminal_;
  bool shown_ = false;
  Clock::time_point start_, last_;
};

std::string duration_text(double seconds);  // "3:07", "1:02:09"

// While one lives, SIGINT and SIGTERM set a flag instead of ending the process; a second one ends it.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;
  static bool interrupted();
};

// Seconds since this process was started, and its memory.
double seconds_since_start();
double peak_memory_mb();  // resident set

}  // namespace sg::tools
