#include "server/connection_watch.h"

#include <gtest/gtest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <string>
#include <thread>

namespace sluice::server {
namespace {

constexpr int kPatience_ms = 20'000;

/// A stand-in for the daemon, with a watch beside it whose abort file is a pipe.
class Watched {
 public:
  /// `daemon` is given the watch's process id.
  explicit Watched(void (*daemon)(pid_t)) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return;
    aborted_ = UniqueFd(ends[0]);
    UniqueFd write_end(ends[1]);
    pid_ = ::fork();
    if (pid_ != 0) return;
    const pid_t daemon_pid = ::getpid();
    sigset_t all;
    sigfillset(&all);
    ::sigprocmask(SIG_BLOCK, &all, nullptr);
    const pid_t watch = ::fork();
    if (watch == 0) {
      ::dup2(write_end.get(), kWatchedConnection);
      if (write_end.get() != kWatchedConnection) write_end.reset();
      ::_exit(watch_connection(daemon_pid).has_error() ? 1 : 0);
    }
    write_end.reset();
    daemon(watch);
    ::_exit(0);
  }
  ~Watched() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

  /// What the watch wrote first; empty if it ended without a word.
  std::string first_words() {
    pollfd wait{aborted_.get(), POLLIN, 0};
    if (::poll(&wait, 1, kPatience_ms) <= 0) return "(nothing happened)";
    std::array<char, 8> text{};
    const ssize_t n = ::read(aborted_.get(), text.data(), text.size());
    return std::string(text.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
  }

 private:
  UniqueFd aborted_;
  pid_t pid_ = -1;
};

/// As after SIGKILL with a thread in an uninterruptible wait: the main thread ends, the process does not.
void end_main_thread_only() {
  std::thread([] {
    for (;;) ::pause();
  }).detach();
  ::syscall(SYS_exit, 0);
}

bool is_asleep(pid_t process) {
  std::ifstream in("/proc/" + std::to_string(process) + "/stat");
  std::string line;
  std::getline(in, line);
  return line.find(") S ") != std::string::npos;
}

TEST(ConnectionWatch, AbortsWhenTheDaemonCannotEnd) {
  Watched watched([](pid_t watch) {
    while (!is_asleep(watch)) std::this_thread::yield();
    end_main_thread_only();
  });
  EXPECT_EQ(watched.first_words(), "1");
}

TEST(ConnectionWatch, AbortsWhenTheDaemonWasKilledBeforeTheWatchBegan) {
  Watched watched([](pid_t) { end_main_thread_only(); });
  EXPECT_EQ(watched.first_words(), "1");
}

TEST(ConnectionWatch, EndsWithADaemonThatEnds) {
  Watched watched([](pid_t) {});
  EXPECT_EQ(watched.first_words(), "");
}

TEST(ConnectionWatch, EndsWithADaemonThatWasGoneAlready) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(gone, nullptr, 0), gone);
  EXPECT_FALSE(watch_connection(gone).has_error());
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace sluice::server
