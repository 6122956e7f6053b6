// Readers in other processes while change sets are applied, the WAL starts over and snapshots are installed.
#include <gtest/gtest.h>

#include <chrono>

#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {
namespace {

class ApplyReaders : public testing::TestWithParam<const char*> {
 protected:
  void start_readers(const std::string& name) {
    for (const char* mode : {"point", "reopen", "long", "readonly", "mmap"}) {
      readers.push_back(std::make_unique<Child>(std::vector<std::string>{SLUICE_APPLY_READER, mode, node.path(name)}));
    }
    for (const auto& reader : readers) ASSERT_EQ(reader->read_line(), "ready");
  }
  void stop_readers(int min_states) {
    for (const auto& reader : readers) {
      reader->close_input();
      const std::string line = reader->read_line();
      EXPECT_EQ(reader->wait(), 0) << line;
      EXPECT_TRUE(line.starts_with("reads")) << line;
      if (line.starts_with("reads")) {
        EXPECT_GE(std::stoi(line.substr(line.rfind(' '))), min_states) << line;
      }
    }
    readers.clear();
  }
  static ReplicaOptions busy_options() {
    ReplicaOptions options;
    options.checkpoint_frames = 50;
    options.idle_checkpoint_ms = 20;
    return options;
  }

  TempDir dir;
  ReplicaNode node{dir.path() + "/data", busy_options()};
  Source source{dir.path() + "/source.db", 4096, GetParam()};
  std::vector<std::unique_ptr<Child>> readers;
};

INSTANTIATE_TEST_SUITE_P(Modes, ApplyReaders, testing::Values("WAL", "DELETE"),
                         [](const auto& mode) { return std::string(mode.param); });

TEST_P(ApplyReaders, SeeEveryStateWholeAndInOrder) {
  create_accounts(source.sql(), 200);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  ASSERT_NO_FATAL_FAILURE(start_readers("app.db"));
  const auto database = node.database("app.db");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(4);
  for (int i = 1; std::chrono::steady_clock::now() < deadline; ++i) {
    transfer(source.sql(), i);
    if (i % 100 == 0) source.sql().exec("VACUUM");
    const auto applied = apply_to(*database, source.next());
    ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
    if (i % 20 == 0) {
      ASSERT_TRUE(database->sync().has_value());
    }
  }
  stop_readers(3);
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_P(ApplyReaders, SeeSnapshotsAsOrdinaryTransactions) {
  create_accounts(source.sql(), 200);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  ASSERT_NO_FATAL_FAILURE(start_readers("app.db"));
  // Long enough that every reader, the slow ones too, gets to see more than one state.
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  for (int i = 1; i <= 30 || std::chrono::steady_clock::now() < until; ++i) {
    transfer(source.sql(), i);
    const ChangeSet change = source.next();
    if (i % 3 == 0) {
      const auto installed = node.snapshot("app.db", source);
      ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
    } else {
      const auto applied = node.apply("app.db", change);
      ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
    }
    ASSERT_EQ(node.database("app.db")->logged(), source.pos());
  }
  stop_readers(2);
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  node.restart(busy_options());
  EXPECT_EQ(node.database("app.db")->logged(), source.pos());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

}  // namespace
}  // namespace sluice::storage::apply_test
