#include "tests/powerloss_src/primary_node.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>

#include "storage/boot.h"
#include "storage/ltx/checksum.h"
#include "storage/ltx/decoder.h"
#include "storage/mount_access.h"
#include "storage/sqlite/database_header.h"
#include "tests/powerloss_src/app_mount.h"

namespace sluice::powerloss {

using storage::Database;

class PrimaryNode::Access final : public storage::MountAccess {
 public:
  explicit Access(std::string root) : root_(std::move(root)) {}
  Result<UniqueFd> open(const std::string& path, int flags, unsigned mode) override {
    UniqueFd fd(::open(backing_path(path).c_str(), flags | O_CLOEXEC, mode));
    if (!fd) return errno_error("open " + path, errno);
    return fd;
  }
  Result<UniqueFd> open_backing(const std::string& path, int flags, unsigned mode) override { return open(path, flags, mode); }
  Result<void> truncate(int fd, std::uint64_t size) override {
    if (::ftruncate(fd, static_cast<off_t>(size)) != 0) return errno_error("ftruncate", errno);
    return {};
  }
  void invalidate(const std::string&, std::uint64_t, std::uint64_t) override {}
  void invalidate_entry(const std::string&) override {}
  std::string backing_path(const std::string& path) const override { return root_ + "/" + path; }
  bool passthrough() const override { return true; }

 private:
  const std::string root_;
};

PrimaryNode::PrimaryNode(std::string data, std::string prefix, ShipObserver* observer)
    : data_(std::move(data)), prefix_(std::move(prefix)), observer_(observer), pool_(std::make_unique<SteppedPool>()) {}

PrimaryNode::~PrimaryNode() {
  // As if killed: nothing is captured and nobody is told.
  AppMount::instance().serve(prefix_, data_ + "/fs", nullptr);
  if (capture_) {
    allow_wakeups(true);
    capture_->release_mount();
    capture_->stop();
  }
  pool_.reset();
  capture_.reset();
  store_.reset();
}

std::string PrimaryNode::start() {
  allow_wakeups(false);
  storage::StoreOptions options;
  options.data_dir = data_;
  options.retention = {.max_age_ms = 10, .max_bytes = 200'000};
  options.database.log.segment_size = 32 * 1024;
  options.database.checkpoint_bytes = 64 * 1024;
  auto store = storage::Store::open(real_file_system(), system_clock(), options);
  if (store.has_error()) return store.error().to_string();
  store_ = std::move(*store);
  store_->set_observer(this);
  access_ = std::make_unique<Access>(data_ + "/fs");
  capture_ = fuse::Capture::create(*store_, pool_->pool(), {});
  const auto recovered = capture_->recover();
  if (recovered.has_error()) return recovered.error().to_string();
  AppMount::instance().serve(prefix_, data_ + "/fs", capture_.get());
  const auto started = capture_->start(*access_);
  return started.has_error() ? started.error().to_string() : std::string();
}

void PrimaryNode::stop() {
  pool_->drain();
  allow_wakeups(true);
  capture_->release_mount();
  capture_->stop();
  capture_.reset();
  for (const auto& database : store_->list()) (void)database->maintain(store_->options().retention, Database::Checkpoint::now);
  pool_.reset();
  store_.reset();
}

void PrimaryNode::capture(const std::string& database) { (void)capture_->capture_now(database); }

void PrimaryNode::maintain(const std::string& name, bool checkpoint) {
  const auto database = store_->find(name);
  if (database == nullptr) return;
  (void)database->maintain(store_->options().retention, checkpoint ? Database::Checkpoint::now : Database::Checkpoint::if_due);
}

std::string PrimaryNode::fault(const std::string& name) {
  const auto database = store_->find(name);
  return database == nullptr ? std::string() : database->fault();
}

Pos PrimaryNode::position(const std::string& name) {
  const auto database = store_->find(name);
  return database == nullptr ? Pos{} : database->pos();
}

Pos PrimaryNode::position_at(const std::string& name, Txid txid) {
  const auto database = store_->find(name);
  return database == nullptr ? Pos{} : database->log().position_at(txid).value_or(Pos{});
}

bool PrimaryNode::started_over_after(const std::string& name, Txid txid) {
  const auto database = store_->find(name);
  return database != nullptr && database->log().first_readable() > txid;
}

void PrimaryNode::on_durable(Database& database) {
  if (observer_ == nullptr) return;
  auto& [last, count] = shipped_[database.name()];
  const Txid durable = database.log().durable();
  if (durable <= last) return;
  const auto seen = database.log().for_each(last.next(), [&](const storage::ChangeLog::Handle& handle) {
    if (handle.info.base || handle.info.post.txid > durable) return true;
    const auto source = [&](std::uint64_t offset, ByteSpan out) -> Result<void> {
      TRY_ASSIGN(const std::size_t n, handle.file->read_at(handle.offset + offset, out));
      return n == out.size() ? Result<void>() : Result<void>(make_error(Errc::corrupt, "short"));
    };
    const auto decoded = ltx::decode(source, handle.info.length, [&count = count](Pgno pgno, ByteView page) -> Result<void> {
      if (pgno == Pgno(1)) count = load_be<std::uint32_t>(page.data() + 60);
      return {};
    });
    return decoded.has_value();
  });
  const auto pos = database.log().position_at(durable);
  if (seen.has_error() || !pos) return;
  last = durable;
  observer_->shipped(database.name(), *pos, count);
}

std::string PrimaryNode::check_content(const std::string& name) {
  const auto database = store_->find(name);
  const std::string path = store_->backing_path(name);
  if (database == nullptr) return exists(path) && load(path).size() != 0 ? "a database that no log knows" : "";
  {
    Connection sql(prefix_ + "/" + name, false);
    if (sql.open_code() == SQLITE_OK) (void)sql.value("pragma wal_checkpoint(truncate)");
  }
  capture(name);
  const Bytes content = load(path);
  const auto header = sqlite::parse_database_header(content);
  const std::uint32_t pages = header.has_value() ? header->pages(content.size()) : 0;
  if (pages != database->page_count()) return fmt::format("{} pages, at {} there are {}", pages, database->pos(), database->page_count());
  if (pages == 0) return "";
  const std::uint32_t page_size = database->page_size();
  if (header->page_size != page_size || content.size() < std::size_t{pages} * page_size) return "another page size";
  Checksum total = kEmptyChecksum;
  MutexLock lock(database->commit_mutex());
  for (std::uint32_t p = 1; p <= pages; ++p) {
    const Checksum sum = ltx::page_checksum(Pgno(p), ByteView(content).subspan(std::size_t{p - 1} * page_size, page_size));
    const Checksum known = database->checksums().get(Pgno(p));
    if (known != Checksum{} && known != sum) return fmt::format("page {} is not what its checksum says, at {}", p, database->pos());
    total = ltx::toggle(total, sum);
  }
  return total == database->pos().checksum ? "" : fmt::format("the content is not that of {}", database->pos());
}

void storage_boot(std::uint64_t number) { storage::set_boot_number_for_tests(number); }

void make_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) std::abort();
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

}  // namespace sluice::powerloss
