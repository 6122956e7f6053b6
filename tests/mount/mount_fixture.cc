#include "tests/mount/mount_fixture.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "fuse/files/kind.h"
#include "tests/support/unmount_on_signals.h"

namespace sluice::fuse {
namespace {

std::string_view op_name(OpKind kind) {
  switch (kind) {
    case OpKind::write: return "write";
    case OpKind::truncate: return "truncate";
    case OpKind::fsync: return "fsync";
    case OpKind::unlink: return "unlink";
    case OpKind::rename: return "rename";
    case OpKind::create: return "create";
    case OpKind::open: return "open";
  }
  return "?";
}

int wait_status(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

std::string SeenOp::text() const {
  std::string s = fmt::format("{} {} {}", op_name(kind), kind_name(file), path);
  if (kind == OpKind::write) s += fmt::format(" {}+{}", offset, length);
  if (kind == OpKind::truncate) s += fmt::format(" {}", size);
  if (kind == OpKind::rename) s += " " + new_path + (replaces ? fmt::format(" over {}", kind_name(replaced_kind)) : "");
  return s;
}

bool RecordingObserver::can_run_inline(const Op&) { return !park_; }

int RecordingObserver::run(const Op& op, FunctionRef<int()> perform) {
  if (park_) ++parked_;
  std::function<int(const Op&)> rule;
  {
    const std::lock_guard lock(mutex_);
    rule = rule_;
  }
  if (rule)
    if (const int err = rule(op); err != 0) return err;
  remember(op, false, false);
  return perform();
}

void RecordingObserver::opened(const Op& op) { remember(op, true, false); }
void RecordingObserver::released(const Op& op) { remember(op, false, true); }

void RecordingObserver::remember(const Op& op, bool opened, bool released) {
  SeenOp seen{op.kind,          op.file,     std::string(op.path), std::string(op.database),
              std::string(op.new_path), op.offset, op.size,        op.data.size(),
              op.replaced_kind, op.replaces, op.write_access,      op.write_only,
              op.own,           op.unlinked, opened,          released};
  const std::lock_guard lock(mutex_);
  seen_.push_back(std::move(seen));
}

void RecordingObserver::refuse(std::function<int(const Op&)> rule) {
  const std::lock_guard lock(mutex_);
  rule_ = std::move(rule);
}

std::vector<SeenOp> RecordingObserver::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(seen_, {});
}

std::vector<std::string> RecordingObserver::take_changes() {
  std::vector<std::string> texts;
  for (const SeenOp& op : take())
    if (op.kind != OpKind::open && !op.opened && !op.released) texts.push_back(op.text());
  return texts;
}

bool RecordingObserver::saw(const std::function<bool(const SeenOp&)>& match) const {
  const std::lock_guard lock(mutex_);
  for (const SeenOp& op : seen_)
    if (match(op)) return true;
  return false;
}

std::string FakeVirtualFiles::primary() {
  const std::lock_guard lock(mutex_);
  return primary_;
}

std::string FakeVirtualFiles::position(std::string_view) {
  const std::lock_guard lock(mutex_);
  return position_;
}

void FakeVirtualFiles::set_primary(std::string text) {
  const std::lock_guard lock(mutex_);
  primary_ = std::move(text);
}

void FakeVirtualFiles::set_position(std::string text) {
  const std::lock_guard lock(mutex_);
  position_ = std::move(text);
}

MountFixture::MountFixture() {
  const char* base = std::getenv("TMPDIR");
  std::string pattern = std::string(base != nullptr ? base : "/tmp") + "/sluice-mount-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  directory_ = pattern;
  ::chmod(directory_.c_str(), 0755);
  mountpoint_ = directory_ + "/mnt";
  test::unmount_on_signals(mountpoint_);
  backing_ = directory_ + "/fs";
  std::filesystem::create_directory(mountpoint_);
  std::filesystem::create_directory(backing_);
  pool_ = std::make_unique<ThreadPool>("test-disk", 4);
}

MountFixture::~MountFixture() {
  mount_.reset();
  pool_.reset();
  ::umount2(mountpoint_.c_str(), MNT_DETACH);  // only if a test left one behind
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

MountOptions MountFixture::options() const {
  MountOptions o;
  o.mountpoint = mountpoint_;
  o.backing_dir = backing_;
  o.allow_other = true;
  o.io = test_io_path();
  return o;
}

void MountFixture::SetUp() { start_mount(); }

void MountFixture::TearDown() { stop_mount(); }

void MountFixture::start_mount() {
  auto mount = Mount::start(options(), observer_, virtual_files_, *pool_);
  ASSERT_TRUE(mount) << mount.error().to_string();
  mount_ = std::move(*mount);
}

void MountFixture::stop_mount() {
  if (!mount_) return;
  const auto stopped = mount_->stop(5'000);
  EXPECT_TRUE(stopped) << stopped.error().to_string();
  mount_.reset();
}

std::uint64_t MountFixture::requests(const std::string& opcode) const {
  const auto counts = mount_->request_counts();
  const auto it = counts.find(opcode);
  return it == counts.end() ? 0 : it->second;
}

std::uint64_t MountFixture::all_requests() const {
  std::uint64_t total = 0;
  for (const auto& [name, count] : mount_->request_counts()) total += count;
  return total;
}

RunResult MountFixture::run(const std::vector<std::string>& arguments, const std::string& input) {
  int in[2] = {};
  int out[2] = {};
  if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
  std::vector<char*> argv;
  for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(in[0], 0);
    ::dup2(out[1], 1);
    ::dup2(out[1], 2);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  ::close(in[0]);
  ::close(out[1]);
  std::thread feeder([&] {
    std::size_t done = 0;
    while (done < input.size()) {
      const ssize_t n = ::write(in[1], input.data() + done, input.size() - done);
      if (n <= 0) break;
      done += static_cast<std::size_t>(n);
    }
    ::close(in[1]);
  });
  RunResult result;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(out[0], buffer, sizeof buffer)) > 0;)
    result.output.append(buffer, static_cast<std::size_t>(n));
  ::close(out[0]);
  feeder.join();
  result.status = wait_status(pid);
  return result;
}

std::string MountFixture::sqlite(const std::string& database, const std::string& sql, bool may_fail) {
  const RunResult result = run({"sqlite3", "-batch", "-bail", at(database)}, sql);
  if (!may_fail) {
    EXPECT_EQ(result.status, 0) << sql << "\n" << result.output;
  }
  std::string text = result.output;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

int MountFixture::in_child(const std::function<int()>& body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(60);
    ::_exit(body());
  }
  return wait_status(pid);
}

IoPath test_io_path() {
  const char* path = std::getenv("SLUICE_TEST_IO");
  return path != nullptr && std::string(path) == "plain" ? IoPath::plain : IoPath::native;
}

bool wait_for(const std::function<bool()>& condition, int deadline_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::poll(nullptr, 0, 2);
  }
  return true;
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  if (!out) throw std::runtime_error("cannot write " + path);
}

}  // namespace sluice::fuse
