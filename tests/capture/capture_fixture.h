// A primary without network: store, capture and mount in the test process; SQLite in others (the daemon's own process must not
// use SQLite on its own mount: POSIX locks are per process).
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "fuse/capture/capture.h"
#include "fuse/capture/counters.h"
#include "fuse/mount.h"

namespace sluice::fuse {

class CaptureFixture : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  void start_node();
  void stop_node();
  std::string path(const std::string& name) const { return mountpoint_ + "/" + name; }
  std::string backing(const std::string& name) const { return data_ + "/fs/" + name; }

  /// Runs the sqlite3 shell on a mounted database; expects success unless told otherwise; returns standard output.
  std::string sql(const std::string& database, const std::string& statements, bool expect_success = true);
  int shell(const std::string& command, std::string* output = nullptr);
  /// A sqlite3 shell that stays: write statements to its standard input.
  class Session {
   public:
    Session(const std::string& database_path);
    ~Session();
    /// Sends statements and waits until they ran.
    std::string run(const std::string& statements);
    void kill();

   private:
    pid_t pid_ = -1;
    int in_ = -1;
    int out_ = -1;
  };

  Txid txid(const std::string& name);
  /// The database that a replica would have: all change sets of the log applied to nothing.
  Bytes replica_image(const std::string& name);
  /// Captures, then compares replica_image with what SQLite has: the backing file, after all connections closed and the WAL
  /// was checkpointed into it. Also integrity_check of the image.
  void expect_same(const std::string& name);

  /// Called before every operation that capture lets through; an errno fails it, 0 lets it happen. Thread-safe.
  using Before = std::function<int(const Op&)>;
  void before_operation(Before before) EXCLUDES(before_mutex_);
  Before before_operation() EXCLUDES(before_mutex_);

  Mutex before_mutex_;
  Before before_ GUARDED_BY(before_mutex_);
  std::string dir_;
  std::string data_;
  std::string mountpoint_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Capture> capture_;
  std::unique_ptr<Observer> observer_;
  std::unique_ptr<VirtualFiles> virtual_files_;
  std::unique_ptr<Mount> mount_;
  CaptureOptions options_;
};

}  // namespace sluice::fuse
