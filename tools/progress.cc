#include "tools/progress.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <sstream>

namespace sg::tools {
namespace {

volatile sig_atomic_t interrupt_flag = 0;
extern "C" void on_interrupt(int) { interrupt_flag = 1; }

int terminal_width() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

}  // namespace

std::string duration_text(double seconds) {
  const auto s = static_cast<std::int64_t>(std::max(seconds, 0.0) + 0.5);
  return s < 3600 ? fmt::format("{}:{:02}", s / 60, s % 60)
                  : fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

Progress::Progress(std::int64_t first, std::int64_t total, std::int64_t line_every)
    : first_(first),
      total_(total),
      line_every_(line_every),
      terminal_(isatty(STDOUT_FILENO) == 1),
      start_(Clock::now()),
      last_(start_) {}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (shown_) fmt::print("\r\033[K");
  std::fflush(stdout);
  shown_ = false;
}

bool Progress::wants_text(std::int64_t done) const {
  if (terminal_) return done == total_ || Clock::now() - last_ >= std::chrono::milliseconds(100);
  return done % line_every_ == 0 || done == total_;
}

void Progress::update(std::int64_t done, const std::string& text, const std::string& pace) {
  if (!wants_text(done)) return;
  last_ = Clock::now();
  const double spent = std::chrono::duration<double>(last_ - start_).count();
  const double left =
      spent / static_cast<double>(std::max<std::int64_t>(done - first_, 1)) * static_cast<double>(total_ - done);
  const std::string numbers = fmt::format("{}/{}  {}  {}  {} left", done, total_, text, pace, duration_text(left));
  if (!terminal_) {
    fmt::print("step {}\n", numbers);
    std::fflush(stdout);
    return;
  }
  const int room = terminal_width() - static_cast<int>(numbers.size()) - 4;
  std::string bar;
  if (room >= 5) {
    const int width = std::min(room, 30);
    const int full =
        static_cast<int>(static_cast<double>(width) * static_cast<double>(done) / static_cast<double>(total_));
    bar = "[" + std::string(static_cast<std::size_t>(full), '#') +
          std::string(static_cast<std::size_t>(width - full), '.') + "] ";
  }
  fmt::print("\r\033[K{}{}", bar, numbers.substr(0, static_cast<std::size_t>(std::max(terminal_width() - 1, 10))));
  std::fflush(stdout);
  shown_ = true;
}

void Progress::line(const std::string& text) {
  clear();
  fmt::print("{}\n", text);
  std::fflush(stdout);
}

InterruptGuard::InterruptGuard() {
  interrupt_flag = 0;
  struct sigaction action {};
  action.sa_handler = &on_interrupt;
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

InterruptGuard::~InterruptGuard() {
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
}

bool InterruptGuard::interrupted() { return interrupt_flag != 0; }

double seconds_since_start() {
  // Field 22 of /proc/self/stat: start time in clock ticks since boot. The name in field 2 may hold spaces.
  std::ifstream file("/proc/self/stat");
  std::string text;
  std::getline(file, text);
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  std::string word;
  for (int i = 0; i < 20; ++i) fields >> word;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  const double ticks = word.empty() ? 0 : std::stod(word);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) -
         ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double peak_memory_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

}  // namespace sg::tools
