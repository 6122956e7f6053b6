#include "fuse/capture/capture.h"

#include <algorithm>
#include <map>
#include <vector>

#include "base/log.h"
#include "fuse/capture/captured_database.h"
#include "fuse/capture/recovery.h"
#include "fuse/capture/tailer.h"

namespace sluice::fuse {
namespace {

constexpr auto kUnjournaledDelay = std::chrono::milliseconds(30);
/// The application itself comes first: SQLite's recoveries of two databases that share a super-journal disturb each other (one
/// removes it under the other, which then says IOERR_DELETE_NOENT or CANTOPEN).
constexpr auto kAbandonedDelay = std::chrono::seconds(1);
constexpr std::size_t kSyncEverything = 16;  ///< databases
constexpr auto kAbandonedRetryDelay = std::chrono::seconds(10);

class CaptureImpl final : public Capture {
 public:
  CaptureImpl(storage::Store& store, ThreadPool& pool, CaptureOptions options)
      : options_(std::move(options)),
        context_{store, pool, options_, counters_},
        tailer_(options_, [](const auto& database) { database->schedule_capture(); },
                [this](const auto& database, Timer timer) { timer_due(database, timer); }) {}
  ~CaptureImpl() override { stop(); }

  Result<void> recover() override;
  Result<void> start(storage::MountAccess& access) override;
  Result<void> capture_now(const std::string& name) override;
  void release_mount() override {
    context_.stopping.store(true);
    for (const DatabasePtr& database : list()) database->release_mount_files();
  }
  const CaptureCounters& counters() const override { return counters_; }
  void stop() override;

  bool can_run_inline(const Op& op) override;
  int run(const Op& op, FunctionRef<int()> perform) override;
  void opened(const Op& op) override;
  void released(const Op& op) override;
  bool writable() const override { return true; }
  bool changes_side_files() const override { return false; }

 private:
  using DatabasePtr = std::shared_ptr<CapturedDatabase>;

  DatabasePtr find(std::string_view name) EXCLUDES(mutex_);
  Result<DatabasePtr> open_database(std::string_view name) EXCLUDES(mutex_);
  void make_recovered_durable();
  DatabasePtr database_of(const Op& op);
  std::vector<DatabasePtr> list() EXCLUDES(mutex_);
  std::vector<DatabasePtr> below(std::string_view directory) EXCLUDES(mutex_);
  int may_open(const Op& op);
  int rename(const Op& op, FunctionRef<int()> perform);
  void appeared(const std::string& path);
  int remove_super_journal(const Op& op, FunctionRef<int()> perform);
  void count_writer(const Op& op, int change) EXCLUDES(mutex_);
  bool being_written(const std::string& name) EXCLUDES(mutex_);
  void roll_back_abandoned(const DatabasePtr& database);
  void capture_unjournaled(const DatabasePtr& database);
  void timer_due(const DatabasePtr& database, Timer timer);
  void wake(const DatabasePtr& database) {
    tailer_.wake(database, context_.store.backing_path(database->name()) + "-wal");
  }

  const CaptureOptions options_;
  CaptureCounters counters_;
  CaptureContext context_;
  Tailer tailer_;
  // Waits for clients of ours whose requests may need the pool: so it cannot be the pool.
  ThreadPool rollback_{"rollback", 1};
  Mutex mutex_;
  std::map<std::string, DatabasePtr, std::less<>> databases_ GUARDED_BY(mutex_);
  std::map<std::string, int, std::less<>> writers_ GUARDED_BY(mutex_);  ///< write-only handles by path
  bool stopped_ GUARDED_BY(mutex_) = false;
};

CaptureImpl::DatabasePtr CaptureImpl::find(std::string_view name) {
  MutexLock lock(mutex_);
  const auto it = databases_.find(name);
  return it == databases_.end() ? nullptr : it->second;
}

std::vector<CaptureImpl::DatabasePtr> CaptureImpl::list() { return below({}); }

std::vector<CaptureImpl::DatabasePtr> CaptureImpl::below(std::string_view directory) {
  MutexLock lock(mutex_);
  std::vector<DatabasePtr> found;
  for (const auto& [name, database] : databases_) {
    const bool inside = directory.empty() || (name.size() > directory.size() && name.starts_with(directory) &&
                                              name[directory.size()] == '/');
    if (inside) found.push_back(database);
  }
  return found;
}

Result<CaptureImpl::DatabasePtr> CaptureImpl::open_database(std::string_view name) {
  if (DatabasePtr known = find(name)) return known;
  TRY_ASSIGN(auto database, context_.store.open_database(std::string(name)));
  auto captured = std::make_shared<CapturedDatabase>(context_, std::move(database));
  MutexLock lock(mutex_);
  return databases_.try_emplace(std::string(name), std::move(captured)).first->second;
}

// What happens to a file without a name concerns only those who still have it open.
CaptureImpl::DatabasePtr CaptureImpl::database_of(const Op& op) {
  if (op.unlinked) return nullptr;
  switch (op.file) {
    case FileKind::database:
    case FileKind::journal:
    case FileKind::wal:
    case FileKind::shm: break;
    default: return nullptr;
  }
  if (op.database.empty()) return nullptr;
  if (DatabasePtr known = find(op.database)) return known;
  auto opened = open_database(op.database);
  if (opened.has_value()) return *opened;
  LOG_ERROR("{}: cannot be replicated: {}", op.database, opened.error().message);
  return nullptr;
}

Result<void> CaptureImpl::recover() {
  const CleanStop clean = take_clean_stop(context_.store);
  TRY_ASSIGN(std::vector<std::string> names, find_database_files(context_.store));
  for (const auto& database : context_.store.list()) names.push_back(database->name());
  for (const auto& [name, error] : options_.refused) names.push_back(name);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  for (const std::string& name : names) {
    TRY_ASSIGN(const DatabasePtr database, open_database(name));
    const auto refused = options_.refused.find(name);
    const Result<void> recovered = refused != options_.refused.end() ? Result<void>(refused->second)
                                                                     : database->recover(clean.doubt(context_.store, name));
    if (recovered.has_error()) database->refuse(recovered.error());  // the others can be served
  }
  if (!options_.clients_connected) make_recovered_durable();  // else the tail does it: clients wait
  return context_.store.note_recovered();
}

// I2 for what the last run left: nothing is served before it is on disk. One sync of everything is less than many small ones.
void CaptureImpl::make_recovered_durable() {
  std::vector<DatabasePtr> behind = list();
  std::erase_if(behind, [](const DatabasePtr& database) { return database->is_durable(); });
  const bool everything =
      behind.size() > kSyncEverything && context_.store.fs().sync_everything(context_.store.data_dir()).has_value();
  for (const DatabasePtr& database : behind) {
    const Result<void> durable = database->recovered(everything);
    if (durable.has_error()) database->refuse(durable.error());
  }
}

Result<void> CaptureImpl::start(storage::MountAccess& access) {
  context_.access.store(&access);
  TRY(tailer_.start());
  for (const DatabasePtr& database : list()) {
    if (options_.clients_connected) {
      wake(database);
      // Whose process lives is going on with it.
      if (database->has_hot_journal()) tailer_.schedule(database, Timer::abandoned_journal, kAbandonedDelay);
      if (database->unjournaled_pending()) tailer_.schedule(database, Timer::unjournaled, kUnjournaledDelay);
      continue;
    }
    if (!database->has_hot_journal()) {
      if (database->has_wal()) wake(database);
      continue;
    }
    if (!options_.recover_client) continue;
    rollback_.post([this, database] {
      const Result<void> rolled_back = options_.recover_client(database->name());
      if (rolled_back.has_error()) LOG_WARN("{}: hot journal: {}", database->name(), rolled_back.error().message);
      wake(database);
    });
  }
  return {};
}

void CaptureImpl::stop() {
  {
    MutexLock lock(mutex_);
    if (stopped_) return;
    stopped_ = true;
  }
  rollback_.stop();
  tailer_.stop();
  const bool mounted = context_.access.exchange(nullptr) != nullptr;
  bool clean = mounted;
  for (const DatabasePtr& database : list()) {
    Result<void> captured = database->open_files();
    if (captured.has_value()) captured = database->capture_at_stop();
    if (captured.has_error()) {
      clean = false;
      LOG_WARN("{}: stopping: {}", database->name(), captured.error().message);
    }
  }
  if (clean) {
    const Result<void> noted = note_clean_stop(context_.store);
    if (noted.has_error()) LOG_WARN("{}", noted.error().message);
  }
  MutexLock lock(mutex_);
  databases_.clear();
}

Result<void> CaptureImpl::capture_now(const std::string& name) {
  const DatabasePtr database = find(name);
  if (database == nullptr) return make_error(Errc::not_found, "no database " + name);
  return database->capture_and_sync();
}

bool CaptureImpl::can_run_inline(const Op& op) {
  if (op.kind == OpKind::rename || op.file == FileKind::super_journal) return false;
  if (op.kind == OpKind::open || op.kind == OpKind::create) {
    if (op.own) return true;  // a pool thread may be waiting for it
    const DatabasePtr known = find(op.database);
    return known == nullptr || !known->reads_mount();
  }
  const DatabasePtr database = database_of(op);
  return database == nullptr || database->can_run_inline(op);
}

int CaptureImpl::run(const Op& op, FunctionRef<int()> perform) {
  if (op.kind == OpKind::rename) return rename(op, perform);
  if (op.kind == OpKind::open || op.kind == OpKind::create) return may_open(op);
  if (op.file == FileKind::super_journal) return remove_super_journal(op, perform);
  const DatabasePtr database = database_of(op);
  if (database == nullptr) return op.database.empty() || op.unlinked ? perform() : EIO;
  const int rc = database->run(op, perform);
  if (op.file == FileKind::database && rc == 0 && database->unjournaled_pending()) {
    tailer_.schedule(database, Timer::unjournaled, kUnjournaledDelay);
  }
  return rc;
}

// I9: through an open -wal a database could be written without us.
int CaptureImpl::may_open(const Op& op) {
  const DatabasePtr database = op.database.empty() ? nullptr : find(op.database);
  return database != nullptr && database->refused() ? EIO : 0;
}

// A multi-database transaction commits when its super-journal goes: all its databases are captured before.
int CaptureImpl::remove_super_journal(const Op& op, FunctionRef<int()> perform) {
  if (op.kind != OpKind::unlink) return perform();
  const std::string path(op.path);
  for (const DatabasePtr& database : list()) {
    if (!database->journal_names(path)) continue;
    const int rc = database->capture_for_super_journal();
    if (rc != 0) return rc;
  }
  return perform();
}

int CaptureImpl::rename(const Op& op, FunctionRef<int()> perform) {
  const std::string from(op.path);
  const std::string to(op.new_path);
  const std::vector<DatabasePtr> moved = op.file == FileKind::directory ? below(from) : std::vector<DatabasePtr>{};
  for (const DatabasePtr& database : moved) (void)database->capture_and_sync(false);
  const DatabasePtr source = op.file == FileKind::directory ? nullptr : database_of(op);
  if (source != nullptr) (void)source->capture_and_sync(false);
  const int rc = perform();
  if (rc != 0) return rc;
  for (const DatabasePtr& database : moved) {
    const std::string name = database->name();
    database->content_removed();
    tailer_.forget(name);
    appeared(to + name.substr(from.size()));
  }
  if (op.file == FileKind::database) {
    source->content_removed();
    tailer_.forget(source->name());
    appeared(to);
  } else if (source != nullptr) {
    source->content_replaced();  // it lost its -wal or -journal
  }
  if (op.file == FileKind::plain && op.replaces && op.replaced_kind == FileKind::database) appeared(to);
  return 0;
}

// The path has a database that came there by rename.
void CaptureImpl::appeared(const std::string& path) {
  const auto database = open_database(path);
  if (database.has_error()) {
    LOG_ERROR("{}: cannot be replicated: {}", path, database.error().message);
    return;
  }
  (*database)->content_replaced();
  wake(*database);
}

void CaptureImpl::count_writer(const Op& op, int change) {
  if (!op.write_only) return;
  MutexLock lock(mutex_);
  const auto it = writers_.try_emplace(std::string(op.path), 0).first;
  it->second += change;
  if (it->second <= 0) writers_.erase(it);
}

bool CaptureImpl::being_written(const std::string& name) {
  MutexLock lock(mutex_);
  return writers_.contains(name);
}

void CaptureImpl::opened(const Op& op) {
  if (op.file == FileKind::plain || op.file == FileKind::database) count_writer(op, 1);
  const DatabasePtr database = database_of(op);
  if (database == nullptr || (op.own && database->reads_mount())) return;
  database->opened(op);
  if (!op.own && (op.file == FileKind::wal || op.file == FileKind::shm)) wake(database);
}

void CaptureImpl::released(const Op& op) {
  if (op.file == FileKind::plain || op.file == FileKind::database) count_writer(op, -1);
  const DatabasePtr database = database_of(op);
  if (database == nullptr) return;
  database->released(op);
  if (op.file != FileKind::database) {
    if (!op.own) wake(database);
    return;
  }
  const bool may_be_abandoned = op.write_access && !op.own;
  if (!op.write_only && !may_be_abandoned) return;
  const auto look = [this, database, write_only = op.write_only, may_be_abandoned] {
    if (write_only && database->unjournaled_pending()) tailer_.schedule(database, Timer::unjournaled, Duration::zero());
    if (may_be_abandoned && database->journal_open())
      tailer_.schedule(database, Timer::abandoned_journal, kAbandonedDelay);
  };
  if (!database->reads_mount() || !context_.pool.post(look)) look();
}

// A process died in the middle of a rollback transaction. SQLite rolls it back when somebody opens the database; until then no
// snapshot can be taken of the pages it overwrote. So somebody does.
void CaptureImpl::roll_back_abandoned(const DatabasePtr& database) {
  if (!options_.recover_client) return;
  rollback_.post([this, database] {
    if (!database->abandoned_journal()) return;
    const Result<void> rolled_back = options_.recover_client(database->name());
    if (!rolled_back.has_error()) return;
    LOG_WARN("{}: abandoned journal: {}", database->name(), rolled_back.error().message);
    tailer_.schedule(database, Timer::abandoned_journal, kAbandonedRetryDelay);
  });
}

void CaptureImpl::capture_unjournaled(const DatabasePtr& database) {
  if (being_written(database->name())) return;  // its release schedules again
  context_.pool.post([this, database] {
    if (!database->capture_unjournaled()) tailer_.schedule(database, Timer::unjournaled, kUnjournaledDelay);
  });
}

void CaptureImpl::timer_due(const DatabasePtr& database, Timer timer) {
  switch (timer) {
    case Timer::unjournaled: return capture_unjournaled(database);
    case Timer::abandoned_journal: return roll_back_abandoned(database);
  }
}

}  // namespace

std::unique_ptr<Capture> Capture::create(storage::Store& store, ThreadPool& pool, CaptureOptions options) {
  return std::make_unique<CaptureImpl>(store, pool, std::move(options));
}

}  // namespace sluice::fuse
