#include "tests/golden/sqlite_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace sluice::test {
namespace {

constexpr auto kDeadline = std::chrono::seconds(30);

bool starts_with(const std::string& text, std::string_view prefix) {
  return text.rfind(prefix, 0) == 0;
}

}  // namespace

TempDir::TempDir() {
  const char* base = std::getenv("TMPDIR");
  dir_ = std::string(base != nullptr ? base : "/tmp") + "/sluice-golden-XXXXXX";
  if (::mkdtemp(dir_.data()) == nullptr) ADD_FAILURE() << "mkdtemp " << dir_;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

Bytes read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  const std::vector<char> chars{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  const auto bytes = std::as_bytes(std::span(chars));
  return {bytes.begin(), bytes.end()};
}

void write_bytes(const std::string& path, ByteView bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  EXPECT_TRUE(out.good()) << path;
}

void copy_files(const std::string& from, const std::string& to, const std::vector<std::string>& suffixes) {
  for (const std::string& suffix : suffixes) write_bytes(to + suffix, read_bytes(from + suffix));
}

SqliteProcess::SqliteProcess(const std::string& database) {
  int down[2];
  int up[2];
  if (::pipe2(down, O_CLOEXEC) != 0 || ::pipe2(up, O_CLOEXEC) != 0) {
    ADD_FAILURE() << "pipe2";
    return;
  }
  UniqueFd child_in(down[0]);
  UniqueFd child_out(up[1]);
  to_ = UniqueFd(down[1]);
  from_ = UniqueFd(up[0]);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, child_in.get(), 0);
  posix_spawn_file_actions_adddup2(&actions, child_out.get(), 1);
  std::string program = SLUICE_SQLITE_ACTOR;
  std::string path = database;
  char* argv[] = {program.data(), path.data(), nullptr};
  const int rc = ::posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (rc != 0) {
    pid_ = -1;
    ADD_FAILURE() << "cannot start " << program;
    return;
  }
  child_in.reset();
  child_out.reset();
  std::vector<std::string> rows;
  EXPECT_EQ(read_answer(rows), "ok") << database;
}

SqliteProcess::~SqliteProcess() {
  kill();
}

void SqliteProcess::kill() {
  if (pid_ > 0) ::kill(pid_, SIGKILL);
  reap();
}

void SqliteProcess::close() {
  to_.reset();
  std::string line;
  while (read_line(line))
    if (starts_with(line, "log ")) log_.push_back(line.substr(4));
  kill();  // it has closed its output: it is gone or about to be
}

void SqliteProcess::reap() {
  if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void SqliteProcess::send(const std::string& line) {
  const std::string text = line + "\n";
  ASSERT_EQ(::write(to_.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

std::vector<std::string> SqliteProcess::sql(const std::string& statements) {
  send(statements);
  std::vector<std::string> rows;
  EXPECT_EQ(read_answer(rows), "ok") << statements;
  return rows;
}

std::string SqliteProcess::value(const std::string& statement) {
  const auto rows = sql(statement);
  EXPECT_EQ(rows.size(), 1u) << statement;
  return rows.empty() ? "" : rows[0];
}

std::string SqliteProcess::held() {
  std::vector<std::string> rows;
  const std::string answer = read_answer(rows);
  EXPECT_TRUE(starts_with(answer, "held ")) << answer;
  return answer.substr(std::min<std::size_t>(5, answer.size()));
}

std::uint32_t SqliteProcess::recovered() const {
  for (const std::string& line : log_)
    if (starts_with(line, "recovered ")) return static_cast<std::uint32_t>(std::stoul(line.substr(10)));
  return 0;
}

std::string SqliteProcess::read_answer(std::vector<std::string>& rows) {
  std::string line;
  while (read_line(line)) {
    if (starts_with(line, "row ")) {
      rows.push_back(line.substr(4));
    } else if (starts_with(line, "log ")) {
      log_.push_back(line.substr(4));
    } else {
      return line;
    }
  }
  return "no answer";
}

bool SqliteProcess::read_line(std::string& line) {
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  for (;;) {
    if (const std::size_t end = buffer_.find('\n'); end != std::string::npos) {
      line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return true;
    }
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now())
            .count();
    pollfd ready{from_.get(), POLLIN, 0};
    if (left <= 0 || ::poll(&ready, 1, static_cast<int>(left)) <= 0) {
      ADD_FAILURE() << "no answer from SQLite in time";
      return false;
    }
    char chunk[4096];
    const ssize_t n = ::read(from_.get(), chunk, sizeof chunk);
    if (n <= 0) return false;
    buffer_.append(chunk, static_cast<std::size_t>(n));
  }
}

}  // namespace sluice::test
