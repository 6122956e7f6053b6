// Applies a history of change sets to a data directory, to be killed in the middle.
//
//   apply_worker DATA HISTORY       HISTORY: files 1, 2, … and some N.db (history.h): those are installed as snapshots
//
// Prints the TXID after each sync ("durable N").
#include <cstdio>
#include <cstring>

#include "tests/unit/apply/history.h"
#include "tests/unit/apply/support.h"

namespace {

using namespace sluice;
using namespace sluice::storage;
using namespace sluice::storage::apply_test;

Result<void> install(ReplicaDatabase& database, const ChangeSet& change, const Bytes& content) {
  SnapshotEnd end;
  end.pos = change.head.post;
  end.epoch = change.head.epoch;
  end.page_size = change.head.page_size;
  end.commit = change.head.commit;
  TRY(send_differences(database, content, end));
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  sluice::storage::ReplicaOptions options;
  options.checkpoint_frames = 40;
  options.idle_checkpoint_ms = 20;
  ReplicaNode node(argv[1], options);
  const auto database = node.database("app.db");
  for (std::uint64_t txid = database->logged().txid.value() + 1;; ++txid) {
    const auto change = read_change(argv[2], txid);
    if (!change) break;
    const std::string snapshot = std::string(argv[2]) + "/" + std::to_string(txid) + ".db";
    const Result<void> applied = exists(snapshot) ? install(*database, *change, file_content(snapshot))
                                                  : apply_to(*database, *change);
    if (applied.has_error()) {
      std::printf("ERROR %s\n", applied.error().to_string().c_str());
      return 1;
    }
    if (txid % 7 != 0) continue;
    const auto durable = database->sync();
    if (durable.has_error()) return 1;
    std::printf("durable %llu\n", static_cast<unsigned long long>(durable->value()));
    std::fflush(stdout);
  }
  std::printf("done\n");
  return 0;
}
