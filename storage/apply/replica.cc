#include "storage/replica.h"

#include <map>

#include "base/log.h"
#include "storage/apply/idle_timer.h"
#include "storage/apply/recovery.h"
#include "storage/apply/replica_database.h"

namespace sluice::storage {
namespace {

using apply::LiveReplicaDatabase;
using apply::Placement;

/// A backfill that readers hold back is tried again after this many idle times.
constexpr int kRetryFactor = 5;

/// What a primary leaves behind is more than its log knows (its WAL is precious): kept, not used.
Result<void> leave_primary_role(const Placement& placement) {
  for (const auto& database : placement.store.list()) {
    if (database->deleted()) continue;
    TRY_ASSIGN(const std::string moved, placement.set_aside(database->name(), "primary"));
    if (!moved.empty()) {
      LOG_WARN("{}: this node was the primary; its copy was moved to {}, a snapshot is needed", database->name(), moved);
    }
  }
  return {};
}

class StoreReplica final : public Replica {
 public:
  StoreReplica(Store& store, MountAccess& access, ThreadPool& pool, const ReplicaOptions& options)
      : store_(store),
        pool_(pool),
        options_(options),
        helper_(options.start_index_helper && !access.passthrough()
                    ? std::make_unique<apply::IndexHelper>(options.start_index_helper)
                    : nullptr),
        context_{store, access, pool, options, helper_.get(), [this](const std::string& name) { timer_->touch(name); }},
        timer_(std::make_shared<apply::IdleTimer>(
            options.idle_checkpoint_ms, [this](const std::string& name) { post_idle_checkpoint(name); })) {}

  ~StoreReplica() override { stop(); }

  Result<void> open_all() {
    for (const auto& database : store_.list()) TRY(open_one(database));
    return {};
  }

  Result<std::shared_ptr<ReplicaDatabase>> database(const std::string& name) override {
    MutexLock lock(mutex_);
    if (stopped_) return make_error(Errc::cancelled, "the replica is stopped");
    if (const auto it = databases_.find(name); it != databases_.end()) {
      return std::shared_ptr<ReplicaDatabase>(it->second);
    }
    TRY_ASSIGN(const auto database, store_.open_database(name));
    TRY_ASSIGN(auto opened, open_locked(database));
    return std::shared_ptr<ReplicaDatabase>(std::move(opened));
  }

  std::vector<std::shared_ptr<ReplicaDatabase>> list() const override {
    MutexLock lock(mutex_);
    std::vector<std::shared_ptr<ReplicaDatabase>> all;
    for (const auto& [name, database] : databases_) all.push_back(database);
    return all;
  }

  Result<void> discard(const std::string& name) override {
    MutexLock lock(mutex_);
    const auto it = databases_.find(name);
    if (it == databases_.end()) return make_error(Errc::not_found, "no database " + name);
    TRY(it->second->set_aside());
    databases_.erase(it);
    return store_.remove_database(name);
  }

  void stop() override {
    timer_->stop();
    std::vector<std::shared_ptr<LiveReplicaDatabase>> all;
    {
      MutexLock lock(mutex_);
      if (stopped_) return;
      stopped_ = true;
      for (const auto& [name, database] : databases_) all.push_back(database);
    }
    for (const auto& database : all) database->stop();
  }

 private:
  Result<void> open_one(const std::shared_ptr<Database>& database) {
    MutexLock lock(mutex_);
    TRY(open_locked(database));
    return {};
  }

  Result<std::shared_ptr<LiveReplicaDatabase>> open_locked(const std::shared_ptr<Database>& database) REQUIRES(mutex_) {
    auto opened = std::make_shared<LiveReplicaDatabase>(context_, database);
    TRY(opened->open());
    databases_[database->name()] = opened;
    return opened;
  }

  void post_idle_checkpoint(const std::string& name) {
    std::shared_ptr<LiveReplicaDatabase> database;
    {
      MutexLock lock(mutex_);
      const auto it = databases_.find(name);
      if (it == databases_.end()) return;
      database = it->second;
    }
    const bool posted = pool_.post([database, timer = timer_, retry_ms = kRetryFactor * options_.idle_checkpoint_ms] {
      if (!database->idle_checkpoint()) timer->again(database->name(), retry_ms);
    });
    if (!posted) LOG_DEBUG("{}: no idle checkpoint, the pool has stopped", name);
  }

  Store& store_;
  ThreadPool& pool_;
  const ReplicaOptions options_;
  const std::unique_ptr<apply::IndexHelper> helper_;
  apply::ReplicaContext context_;
  mutable Mutex mutex_;
  std::map<std::string, std::shared_ptr<LiveReplicaDatabase>> databases_ GUARDED_BY(mutex_);
  bool stopped_ GUARDED_BY(mutex_) = false;
  /// Last: its thread uses the rest. Shared with tasks on the pool, which may end after us.
  std::shared_ptr<apply::IdleTimer> timer_;
};

}  // namespace

Result<void> Replica::recover(Store& store) {
  const Placement placement{store, nullptr};
  if (store.last_role() == Role::primary) TRY(leave_primary_role(placement));
  for (const auto& database : store.list()) {
    TRY_ASSIGN(const bool done, apply::is_recovered(store, *database));
    if (done) {
      TRY(placement.drop_wal_index(database->name()));
    } else {
      TRY(apply::recover_database(placement, *database));
    }
  }
  TRY(store.set_last_role(Role::replica));
  return store.note_recovered();
}

Result<std::unique_ptr<Replica>> Replica::open(Store& store, MountAccess& access, ThreadPool& pool,
                                               ReplicaOptions options) {
  if (store.last_role() == Role::primary) {
    TRY(leave_primary_role({store, &access}));
    TRY(store.set_last_role(Role::replica));
  }
  auto replica = std::make_unique<StoreReplica>(store, access, pool, options);
  TRY(replica->open_all());
  return std::unique_ptr<Replica>(std::move(replica));
}

}  // namespace sluice::storage
