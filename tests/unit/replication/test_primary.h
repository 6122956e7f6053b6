// A primary without FUSE and HTTP server: a store in a temporary directory, databases made of generated pages, a publisher,
// and a listener that grants every upgrade.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/thread_pool.h"
#include "replication/publisher.h"
#include "storage/store.h"

namespace sluice::replication::testing {

/// Polls `condition` until it holds or the deadline passes.
bool wait_for(const std::function<bool()>& condition, std::chrono::milliseconds limit = std::chrono::seconds(20));

/// A temporary directory, removed with the object.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// A loopback TCP listener on a free port; each connection is handed to `handle` on the listener's thread.
class Listener {
 public:
  explicit Listener(std::function<void(UniqueFd)> handle);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  std::uint16_t port() const { return port_; }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  void stop();

 private:
  UniqueFd socket_;
  std::uint16_t port_ = 0;
  std::function<void(UniqueFd)> handle_;
  std::thread thread_;
};

/// Connects to a loopback port; invalid when refused.
UniqueFd connect_to(std::uint16_t port);

/// Content of one database and a way to change it. Its own page source.
class TestDatabase final : public storage::PageSource {
 public:
  TestDatabase(std::shared_ptr<storage::Database> database, std::uint32_t page_size);
  ~TestDatabase() override;

  /// Changes `changed` random pages (or all of a growing database) and commits; with `sync`, makes it durable.
  Pos commit(std::uint32_t pages, std::uint32_t changed, bool sync = true);
  /// Deletes the database.
  Pos commit_deletion();
  /// Starts the log over at the present content, as after an import.
  Pos rebase();
  void sync();
  storage::Database& database() { return *database_; }
  std::map<std::uint32_t, Bytes> pages() const;

  Result<void> read_page(Pgno pgno, ByteSpan out) override;

 private:
  std::shared_ptr<storage::Database> database_;
  const std::uint32_t page_size_;
  std::map<std::uint32_t, Bytes> pages_;  // under the commit lock
  std::uint64_t seed_ = 1;
};

class TestPrimary {
 public:
  explicit TestPrimary(PublisherOptions options = {}, std::uint64_t segment_size = 64u << 20);
  ~TestPrimary();
  TestPrimary(const TestPrimary&) = delete;
  TestPrimary& operator=(const TestPrimary&) = delete;

  TestDatabase& database(const std::string& name, std::uint32_t page_size = 4096);
  Publisher& publisher() { return *publisher_; }
  storage::Store& store() { return *store_; }
  std::uint16_t port() const { return listener_->port(); }
  std::string url() const { return listener_->url(); }
  /// New publisher on the same store and port, as after a restart of the daemon.
  void restart();

 private:
  void serve(UniqueFd socket);
  void start_publisher();

  TempDir dir_;
  PublisherOptions options_;
  std::unique_ptr<storage::Store> store_;
  ThreadPool pool_{"primary", 3};
  Mutex mutex_;
  std::unique_ptr<Publisher> publisher_;
  std::map<std::string, std::unique_ptr<TestDatabase>> databases_;
  std::unique_ptr<Listener> listener_;
};

}  // namespace sluice::replication::testing
