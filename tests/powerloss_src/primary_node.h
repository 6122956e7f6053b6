// Store and capture of a primary without mount, network and threads of its own.
#pragma once

#include <memory>
#include <string>

#include "fuse/capture/capture.h"
#include "storage/store.h"
#include "tests/powerloss_src/world.h"

namespace sluice::powerloss {

class ShipObserver {
 public:
  virtual ~ShipObserver() = default;
  /// Everything up to `pos` may have left the node; `count` is the user_version in it.
  virtual void shipped(const std::string& database, Pos pos, std::int64_t count) = 0;
};

class PrimaryNode final : public storage::DatabaseObserver {
 public:
  /// Serves DATA/fs at `prefix` (app_mount.h).
  PrimaryNode(std::string data, std::string prefix, ShipObserver* observer);
  ~PrimaryNode() override;
  /// Empty, or what went wrong.
  std::string start();
  /// As a node stops in good order.
  void stop();

  void drain() { pool_->drain(); }
  void capture(const std::string& database);
  void maintain(const std::string& database, bool checkpoint);
  std::string fault(const std::string& database);
  Pos position(const std::string& database);
  /// Pos{} if the log has none there.
  Pos position_at(const std::string& database, Txid txid);
  /// The log was started over, or its older part removed, past `txid`.
  bool started_over_after(const std::string& database, Txid txid);
  /// I3: the database file, everything having been checkpointed into it, has the content of the position, and the page checksums say
  /// so. Empty, or what does not fit.
  std::string check_content(const std::string& database);

  void on_appended(storage::Database&) override {}
  void on_durable(storage::Database& database) override;

 private:
  class Access;

  const std::string data_;
  const std::string prefix_;
  ShipObserver* const observer_;
  std::map<std::string, std::pair<Txid, std::int64_t>> shipped_;  ///< and the last user_version seen
  std::unique_ptr<SteppedPool> pool_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<fuse::Capture> capture_;
  std::unique_ptr<Access> access_;
};

/// From now on the machine's boot has this number.
void storage_boot(std::uint64_t number);
void make_directory(const std::string& path);
bool exists(const std::string& path);

}  // namespace sluice::powerloss
