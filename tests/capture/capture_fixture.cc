#include "tests/capture/capture_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "storage/ltx/decoder.h"
#include "storage/sqlite/database_header.h"
#include "tests/support/unmount_on_signals.h"

namespace sluice::fuse {
namespace {

class NoVirtualFiles final : public VirtualFiles {
 public:
  std::string primary() override { return ""; }
  std::string lag() override { return "+000000000\n"; }
  std::string position(std::string_view) override { return ""; }
};

/// Capture, with a test in the place of the operations.
class Between final : public Observer {
 public:
  Between(Capture& capture, std::function<std::function<int(const Op&)>()> before)
      : capture_(capture), before_(std::move(before)) {}
  bool can_run_inline(const Op& op) override { return capture_.can_run_inline(op); }
  int run(const Op& op, FunctionRef<int()> perform) override {
    return capture_.run(op, [&] {
      const auto before = before_();
      const int failed = before ? before(op) : 0;
      return failed != 0 ? failed : perform();
    });
  }
  void opened(const Op& op) override { capture_.opened(op); }
  void released(const Op& op) override { capture_.released(op); }
  bool writable() const override { return true; }

 private:
  Capture& capture_;
  const std::function<std::function<int(const Op&)>()> before_;
};

Bytes read_all(const std::string& path) {
  auto content = read_file(real_file_system(), path, std::uint64_t{4} << 30);
  EXPECT_TRUE(content.has_value()) << content.error().to_string();
  return content.has_value() ? *content : Bytes{};
}

}  // namespace

void CaptureFixture::SetUp() {
  char base[] = "/tmp/sluice-capture-XXXXXX";
  ASSERT_NE(mkdtemp(base), nullptr);
  dir_ = base;
  data_ = dir_ + "/data";
  mountpoint_ = dir_ + "/mnt";
  test::unmount_on_signals(mountpoint_);
  std::filesystem::create_directories(mountpoint_);
  start_node();
}

void CaptureFixture::before_operation(Before before) {
  MutexLock lock(before_mutex_);
  before_ = std::move(before);
}

CaptureFixture::Before CaptureFixture::before_operation() {
  MutexLock lock(before_mutex_);
  return before_;
}

void CaptureFixture::start_node() {
  auto store = storage::Store::open(real_file_system(), system_clock(), {.data_dir = data_, .database = {}, .retention = {}});
  ASSERT_TRUE(store.has_value()) << store.error().to_string();
  store_ = std::move(*store);
  pool_ = std::make_unique<ThreadPool>("disk", 4);
  capture_ = Capture::create(*store_, *pool_, options_);
  const auto recovered = capture_->recover();
  ASSERT_FALSE(recovered.has_error()) << recovered.error().to_string();
  virtual_files_ = std::make_unique<NoVirtualFiles>();
  MountOptions options;
  options.mountpoint = mountpoint_;
  options.backing_dir = store_->fs_dir();
  const char* io = std::getenv("SLUICE_TEST_IO");
  options.io = io != nullptr && std::string(io) == "plain" ? IoPath::plain : IoPath::native;
  observer_ = std::make_unique<Between>(*capture_, [this] { return before_operation(); });
  auto mount = Mount::start(options, *observer_, *virtual_files_, *pool_);
  ASSERT_TRUE(mount.has_value()) << mount.error().to_string();
  mount_ = std::move(*mount);
  const auto started = capture_->start(mount_->access());
  ASSERT_FALSE(started.has_error()) << started.error().to_string();
}

void CaptureFixture::stop_node() {
  if (capture_) capture_->release_mount();
  if (mount_) (void)mount_->stop(3000);
  if (capture_) capture_->stop();
  if (pool_) pool_->stop();
  mount_.reset();
  observer_.reset();
  capture_.reset();
  pool_.reset();
  store_.reset();
}

void CaptureFixture::TearDown() {
  stop_node();
  std::filesystem::remove_all(dir_);
}

int CaptureFixture::shell(const std::string& command, std::string* output) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return -1;
  std::string text;
  std::array<char, 4096> buffer{};
  while (const std::size_t n = fread(buffer.data(), 1, buffer.size(), pipe)) text.append(buffer.data(), n);
  const int status = pclose(pipe);
  if (output != nullptr) *output = text;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string CaptureFixture::sql(const std::string& database, const std::string& statements, bool expect_success) {
  const std::string file = dir_ + "/statements.sql";
  std::ofstream(file) << statements;
  std::string output;
  const int rc = shell("sqlite3 -bail '" + path(database) + "' < '" + file + "'", &output);
  if (expect_success) {
    EXPECT_EQ(rc, 0) << statements << "\n" << output;
  }
  return output;
}

CaptureFixture::Session::Session(const std::string& database_path) {
  int to[2];
  int from[2];
  if (pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) return;
  pid_ = fork();
  if (pid_ == 0) {
    dup2(to[0], 0);
    dup2(from[1], 1);
    dup2(from[1], 2);
    execlp("sqlite3", "sqlite3", database_path.c_str(), nullptr);
    _exit(127);
  }
  close(to[0]);
  close(from[1]);
  in_ = to[1];
  out_ = from[0];
}

CaptureFixture::Session::~Session() {
  if (in_ >= 0) close(in_);
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
  if (out_ >= 0) close(out_);
}

std::string CaptureFixture::Session::run(const std::string& statements) {
  const std::string mark = "--done--";
  const std::string text = statements + "\n.print " + mark + "\n";
  EXPECT_EQ(write(in_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  std::string output;
  std::array<char, 4096> buffer{};
  while (output.find(mark) == std::string::npos) {
    const ssize_t n = read(out_, buffer.data(), buffer.size());
    if (n <= 0) break;
    output.append(buffer.data(), static_cast<std::size_t>(n));
  }
  return output.substr(0, output.find(mark));
}

void CaptureFixture::Session::kill() {
  ::kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

Txid CaptureFixture::txid(const std::string& name) {
  EXPECT_FALSE(capture_->capture_now(name).has_error());
  const auto database = store_->find(name);
  return database == nullptr ? Txid(0) : database->pos().txid;
}

Bytes CaptureFixture::replica_image(const std::string& name) {
  const auto database = store_->find(name);
  if (database == nullptr) {
    ADD_FAILURE() << "no database " << name;
    return {};
  }
  Bytes image;
  Pos at;
  const auto visited = database->log().for_each(Txid(1), [&](const storage::ChangeLog::Handle& handle) {
    EXPECT_FALSE(handle.info.base);
    EXPECT_EQ(handle.info.pre, at);
    const auto source = [&](std::uint64_t offset, ByteSpan out) -> Result<void> {
      TRY_ASSIGN(const std::size_t n, handle.file->read_at(handle.offset + offset, out));
      return n == out.size() ? Result<void>() : Result<void>(make_error(Errc::corrupt, "short"));
    };
    image.resize(std::size_t{handle.info.commit} * handle.info.page_size);
    const auto decoded = ltx::decode(source, handle.info.length, [&](Pgno pgno, ByteView page) -> Result<void> {
      std::copy(page.begin(), page.end(), image.begin() + static_cast<std::ptrdiff_t>((pgno.value() - 1) * page.size()));
      return {};
    });
    EXPECT_TRUE(decoded.has_value()) << decoded.error().to_string();
    at = handle.info.post;
    return true;
  });
  EXPECT_FALSE(visited.has_error());
  EXPECT_EQ(at, database->pos());
  return image;
}

void CaptureFixture::expect_same(const std::string& name) {
  const auto captured = capture_->capture_now(name);
  ASSERT_FALSE(captured.has_error()) << captured.error().to_string();
  const Bytes image = replica_image(name);
  const Bytes file = read_all(backing(name));
  const auto header = sqlite::parse_database_header(file);
  ASSERT_TRUE(header.has_value());
  const std::size_t size = std::size_t{header->pages(file.size())} * header->page_size;
  ASSERT_EQ(image.size(), size);
  for (std::size_t p = 0; p < size / header->page_size; ++p) {
    ASSERT_EQ(0, memcmp(image.data() + p * header->page_size, file.data() + p * header->page_size, header->page_size))
        << name << ": page " << p + 1 << " differs";
  }
  const std::string copy = dir_ + "/image.db";
  std::ofstream(copy, std::ios::binary).write(reinterpret_cast<const char*>(image.data()), static_cast<std::streamsize>(image.size()));
  std::string output;
  EXPECT_EQ(shell("sqlite3 '" + copy + "' 'pragma integrity_check'", &output), 0);
  EXPECT_EQ(output, "ok\n");
  std::filesystem::remove(copy);
  std::filesystem::remove(copy + "-wal");
  std::filesystem::remove(copy + "-shm");
}

}  // namespace sluice::fuse
