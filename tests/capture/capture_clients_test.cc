// More clients at once than there are FUSE workers or pool threads: whoever waits for a database's commit lock must not be the
// one who would serve what its holder waits for (plain path: the wal-index is read through the mount).
#include <pthread.h>

#include <array>
#include <atomic>
#include <string>
#include <string_view>

#include "tests/capture/capture_fixture.h"

namespace sluice::fuse {
namespace {

class CaptureClients : public CaptureFixture {};

TEST_F(CaptureClients, ManyComeAndGoAtOnce) {
  sql("a.db", "pragma journal_mode=wal; create table t(x);");
  // The last one to close removes -wal and -shm, the next one makes them: captures meet opens, checkpoints and removals.
  const std::string client =
      "for i in 1 2 3; do timeout 60 sqlite3 -bail '" + path("a.db") +
      "' '.timeout 50000' 'insert into t values(randomblob(3000)); pragma wal_checkpoint; select count(*) from t;' || echo failed; done";
  std::string output;
  EXPECT_EQ(shell("(for n in $(seq 24); do (" + client + ") & done; wait)", &output), 0);
  EXPECT_EQ(output.find("failed"), std::string::npos) << output;
  EXPECT_EQ(sql("a.db", "select count(*) from t;"), "72\n");
  expect_same("a.db");
  EXPECT_EQ(capture_->counters().anomalies.load(), 0u);
}

TEST_F(CaptureClients, NoWorkerWaitsForWhoeverReadsTheIndexThroughTheMount) {
  Session session(path("a.db"));
  session.run("pragma journal_mode=wal; create table t(x); insert into t values(1);");
  txid("a.db");  // opens its view of the -shm
  std::atomic<int> gates_on_workers{0};
  std::atomic<int> gates_elsewhere{0};
  std::atomic<int> appends_elsewhere{0};
  before_operation([&](const Op& op) {
    std::array<char, 16> name{};
    pthread_getname_np(pthread_self(), name.data(), name.size());
    const bool worker = std::string_view(name.data()) == "sluice-fuse";
    if (op.kind == OpKind::write && op.file == FileKind::database) ++(worker ? gates_on_workers : gates_elsewhere);
    if (op.kind == OpKind::write && op.file == FileKind::wal && !worker) ++appends_elsewhere;
    return 0;
  });
  session.run("insert into t values(randomblob(100000)); pragma wal_checkpoint;");
  before_operation(nullptr);
  EXPECT_GT(gates_on_workers + gates_elsewhere, 0);
  EXPECT_EQ(appends_elsewhere, 0);
  if (!mount_->access().passthrough()) {
    EXPECT_EQ(gates_on_workers, 0);
  }
}

}  // namespace
}  // namespace sluice::fuse
