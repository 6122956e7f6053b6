#include "tests/unit/replication/test_primary.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <filesystem>
#include <random>

#include <gtest/gtest.h>

#include "base/check.h"
#include "base/log.h"
#include "storage/ltx/checksum.h"

namespace sluice::replication::testing {
namespace {

// As in the daemon: the logger is there before any other thread.
class Logging final : public ::testing::Environment {
  void SetUp() override { init_logging({}); }
};
[[maybe_unused]] const auto* const kLogging = ::testing::AddGlobalTestEnvironment(new Logging);

}  // namespace

bool wait_for(const std::function<bool()>& condition, std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::poll(nullptr, 0, 1);
  }
  return true;
}

TempDir::TempDir() {
  // Nothing here tests the disk: memory, where there is some, makes a thousand databases quick.
  const char* base = ::getenv("TMPDIR");
  if (base == nullptr) base = std::filesystem::exists("/dev/shm") ? "/dev/shm" : "/tmp";
  path_ = std::string(base) + "/sluice-replication-XXXXXX";
  CHECK(::mkdtemp(path_.data()) != nullptr);
}

TempDir::~TempDir() { std::filesystem::remove_all(path_); }

Listener::Listener(std::function<void(UniqueFd)> handle)
    : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), handle_(std::move(handle)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(::bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  CHECK(::listen(socket_.get(), 64) == 0);
  socklen_t length = sizeof address;
  CHECK(::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] {
    for (;;) {
      UniqueFd peer(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!peer) return;
      handle_(std::move(peer));
    }
  });
}

Listener::~Listener() { stop(); }

void Listener::stop() {
  if (!thread_.joinable()) return;
  ::shutdown(socket_.get(), SHUT_RDWR);
  thread_.join();
}

UniqueFd connect_to(std::uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
  return fd;
}

TestDatabase::TestDatabase(std::shared_ptr<storage::Database> database, std::uint32_t page_size)
    : database_(std::move(database)), page_size_(page_size) {
  MutexLock lock(database_->commit_mutex());
  database_->set_page_source(this);
}

TestDatabase::~TestDatabase() {
  MutexLock lock(database_->commit_mutex());
  database_->set_page_source(nullptr);
}

Pos TestDatabase::commit(std::uint32_t pages, std::uint32_t changed, bool sync) {
  std::mt19937_64 random(++seed_);
  std::map<std::uint32_t, Bytes> fresh;
  {
    MutexLock lock(database_->commit_mutex());
    for (std::uint32_t p = static_cast<std::uint32_t>(pages_.size()) + 1; p <= pages; ++p) fresh[p] = {};
    for (std::uint32_t i = 0; i < changed; ++i) fresh[static_cast<std::uint32_t>(random() % pages) + 1] = {};
    std::vector<Pgno> numbers;
    for (auto& [pgno, page] : fresh) {
      page.resize(page_size_);
      // Half noise, half zeros: compresses like real pages do.
      for (std::size_t i = 0; i + 8 <= page_size_ / 2; i += 8) store_le<std::uint64_t>(page.data() + i, random());
      pages_[pgno] = page;
      numbers.emplace_back(pgno);
    }
    pages_.erase(pages_.upper_bound(pages), pages_.end());
    const auto read = [this](Pgno pgno) -> Result<ByteView> { return ByteView(pages_.at(pgno.value())); };
    const auto read_old = [](Pgno) -> Result<ByteView> { return make_error(Errc::not_found, "gone"); };
    auto made = database_->commit(storage::CommitInput{page_size_, pages, numbers, read, read_old, {}}, Epoch(1),
                                  NodeId(7));
    CHECK(made.has_value() && made->has_value());
  }
  if (sync) this->sync();
  return database_->pos();
}

Pos TestDatabase::commit_deletion() {
  {
    MutexLock lock(database_->commit_mutex());
    pages_.clear();
    const auto read = [](Pgno) -> Result<ByteView> { return make_error(Errc::internal, "no pages"); };
    const auto read_old = [](Pgno) -> Result<ByteView> { return make_error(Errc::not_found, "gone"); };
    auto made = database_->commit(storage::CommitInput{page_size_, 0, {}, read, read_old, {}}, Epoch(1), NodeId(7));
    CHECK(made.has_value() && made->has_value());
  }
  sync();
  return database_->pos();
}

Pos TestDatabase::rebase() {
  MutexLock lock(database_->commit_mutex());
  storage::RecordInfo base;
  Checksum sum = kEmptyChecksum;
  for (const auto& [pgno, page] : pages_) sum = ltx::toggle(sum, ltx::page_checksum(Pgno(pgno), page));
  base.epoch = Epoch(1);
  base.post = {database_->pos().txid.next(), sum};
  base.min_txid = base.post.txid;
  base.page_size = page_size_;
  base.commit = static_cast<std::uint32_t>(pages_.size());
  base.timestamp_ms = system_clock().wall_ms();
  base.base = true;
  const auto sum_of = [this](Pgno pgno) { return ltx::page_checksum(pgno, pages_.at(pgno.value())); };
  CHECK(database_->rebase(base, sum_of).has_value());
  return database_->pos();
}

void TestDatabase::sync() { CHECK(database_->sync().has_value()); }

std::map<std::uint32_t, Bytes> TestDatabase::pages() const {
  MutexLock lock(database_->commit_mutex());
  return pages_;
}

Result<void> TestDatabase::read_page(Pgno pgno, ByteSpan out) {
  const Bytes& page = pages_.at(pgno.value());
  std::copy(page.begin(), page.end(), out.begin());
  return {};
}

TestPrimary::TestPrimary(PublisherOptions options, std::uint64_t segment_size) : options_(std::move(options)) {
  if (options_.hostname.empty()) options_.hostname = "the-primary";
  storage::StoreOptions store_options;
  store_options.data_dir = dir_.path() + "/data";
  store_options.database.log.segment_size = segment_size;
  auto store = storage::Store::open(real_file_system(), system_clock(), store_options);
  CHECK(store.has_value());
  store_ = std::move(*store);
  start_publisher();
  listener_ = std::make_unique<Listener>([this](UniqueFd socket) { serve(std::move(socket)); });
}

TestPrimary::~TestPrimary() {
  listener_->stop();
  store_->set_observer(nullptr);
  publisher_->stop();
  pool_.stop();
  publisher_.reset();
  databases_.clear();
}

void TestPrimary::start_publisher() {
  auto fresh = Publisher::create(*store_, system_clock(), pool_, options_);
  store_->set_observer(fresh.get());
  MutexLock lock(mutex_);
  publisher_ = std::move(fresh);
}

void TestPrimary::restart() {
  store_->set_observer(nullptr);
  std::unique_ptr<Publisher> old;
  {
    MutexLock lock(mutex_);
    old = std::move(publisher_);
  }
  old->stop();
  old.reset();
  start_publisher();
}

TestDatabase& TestPrimary::database(const std::string& name, std::uint32_t page_size) {
  auto& database = databases_[name];
  if (!database) {
    auto opened = store_->open_database(name);
    CHECK(opened.has_value());
    database = std::make_unique<TestDatabase>(*opened, page_size);
    publisher_->database_added(name);
  }
  return *database;
}

// What the HTTP server does, without its manners.
void TestPrimary::serve(UniqueFd socket) {
  std::string head;
  std::byte buffer[4096];
  while (head.find("\r\n\r\n") == std::string::npos) {
    pollfd ready{socket.get(), POLLIN, 0};
    if (::poll(&ready, 1, 2000) <= 0) return;
    const ssize_t n = ::recv(socket.get(), buffer, sizeof buffer, 0);
    if (n <= 0) return;
    head += as_text(ByteView(buffer, static_cast<std::size_t>(n)));
  }
  const std::size_t end = head.find("\r\n\r\n") + 4;
  const ByteView early = as_bytes(std::string_view(head).substr(end));
  const std::string_view answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: sluice\r\n\r\n";
  if (::send(socket.get(), answer.data(), answer.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(answer.size())) return;
  MutexLock lock(mutex_);
  if (publisher_) publisher_->accept(std::move(socket), Bytes(early.begin(), early.end()), "127.0.0.1");
}

}  // namespace sluice::replication::testing
