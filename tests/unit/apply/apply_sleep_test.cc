// Databases that nobody changes are closed. Nobody may notice: not readers that stay or come, not who reads pages for an export,
// not a change set, a snapshot, a crash.
#include <gtest/gtest.h>

#include <filesystem>

#include "storage/sqlite/wal_format.h"
#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {
namespace {

constexpr std::size_t kDatabases = 12;

ReplicaOptions few_awake() {
  ReplicaOptions options;
  options.most_awake = 3;
  options.start_asleep = true;
  options.idle_checkpoint_ms = 20;
  return options;
}

std::size_t own_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

class ApplySleep : public testing::Test {
 protected:
  ApplySleep() : node_(dir_.path() + "/data", few_awake()) {
    for (std::size_t i = 0; i < kDatabases; ++i) {
      sources_.push_back(std::make_unique<Source>(dir_.path() + "/source" + std::to_string(i), 1024, "DELETE"));
      create_accounts(sources_.back()->sql(), 50);
    }
  }
  static std::string name(std::size_t i) { return "d" + std::to_string(i % 3) + "/" + std::to_string(i) + ".db"; }
  void change(std::size_t i, int number) {
    transfer(sources_[i]->sql(), number);
    const auto applied = node_.apply(name(i), sources_[i]->next());
    ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
  }
  void copy_all() {
    for (std::size_t i = 0; i < kDatabases; ++i) {
      const auto applied = node_.apply(name(i), sources_[i]->next());
      ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
    }
  }
  /// The -shm of a database that sleeps has nothing in it.
  bool sleeps(std::size_t i) const { return std::filesystem::file_size(node_path(i) + "-shm") == 0; }
  std::string node_path(std::size_t i) const { return dir_.path() + "/data/fs/" + name(i); }
  std::size_t sleeping() const {
    std::size_t count = 0;
    for (std::size_t i = 0; i < kDatabases; ++i) count += sleeps(i) ? 1 : 0;
    return count;
  }
  void expect_whole() {
    for (std::size_t i = 0; i < kDatabases; ++i) {
      EXPECT_EQ(difference(node_path(i), sources_[i]->content()), "") << i;
      EXPECT_EQ(node_.database(name(i))->applied(), sources_[i]->pos()) << i;
    }
  }

  TempDir dir_;
  ReplicaNode node_;
  std::vector<std::unique_ptr<Source>> sources_;
};

TEST_F(ApplySleep, OnlySoManyAreOpenAndAllAreWhole) {
  copy_all();
  EXPECT_EQ(sleeping(), kDatabases - 3);
  expect_whole();
  const std::size_t before = own_descriptors();
  for (int round = 1; round <= 4; ++round) {
    for (std::size_t i = 0; i < kDatabases; ++i) change(i, round);
  }
  EXPECT_GE(sleeping(), kDatabases - 4);
  EXPECT_LE(own_descriptors(), before + 10);
  expect_whole();
}

TEST_F(ApplySleep, AReaderKeepsItsDatabaseAwakeAndItsSnapshot) {
  copy_all();
  Connection reader(node_path(kDatabases - 1), SQLITE_OPEN_READONLY);
  reader.exec("BEGIN");
  const std::int64_t seen = reader.integer("SELECT count(*) FROM journal");
  for (int round = 1; round <= 3; ++round) {
    for (std::size_t i = 0; i < kDatabases; ++i) change(i, round);
  }
  EXPECT_EQ(reader.integer("SELECT count(*) FROM journal"), seen);
  reader.exec("COMMIT");
  EXPECT_EQ(reader.integer("SELECT count(*) FROM journal"), seen + 3);
  expect_whole();
}

TEST_F(ApplySleep, AReaderOfASleepingDatabaseSeesWhatComes) {
  copy_all();
  ASSERT_TRUE(sleeps(0));
  Connection reader(node_path(0), SQLITE_OPEN_READONLY);
  const std::int64_t seen = reader.integer("SELECT count(*) FROM journal");
  reader.exec("BEGIN");
  EXPECT_EQ(reader.integer("SELECT count(*) FROM journal"), seen);
  change(0, 1);
  EXPECT_EQ(reader.integer("SELECT count(*) FROM journal"), seen) << "its read transaction goes on";
  reader.exec("COMMIT");
  EXPECT_EQ(reader.integer("SELECT count(*) FROM journal"), seen + 1);
  for (int round = 2; round <= 40; ++round) change(0, round);
  EXPECT_EQ(reader.integer("SELECT count(*) FROM journal"), seen + 40);
  EXPECT_EQ(reader.text("PRAGMA integrity_check"), "ok");
}

TEST_F(ApplySleep, PagesCanBeReadWithoutWaking) {
  copy_all();
  ASSERT_TRUE(sleeps(1));
  const auto database = node_.store().find(name(1));
  ASSERT_NE(database, nullptr);
  Bytes page(1024);
  {
    MutexLock lock(database->commit_mutex());
    ASSERT_NE(database->page_source(), nullptr);
    ASSERT_TRUE(database->page_source()->read_page(Pgno(2), page).has_value());
    EXPECT_TRUE(database->page_source()->read_page(Pgno(database->page_count() + 1), page).has_error());
  }
  EXPECT_TRUE(std::equal(page.begin(), page.end(), sources_[1]->content().begin() + 1024));
  EXPECT_TRUE(sleeps(1));
}

TEST_F(ApplySleep, SnapshotsAndDeletionsWakeIt) {
  copy_all();
  ASSERT_TRUE(sleeps(0) && sleeps(1) && sleeps(2));
  transfer(sources_[0]->sql(), 1);
  transfer(sources_[0]->sql(), 2);
  (void)sources_[0]->next();
  const auto installed = node_.snapshot(name(0), *sources_[0]);
  ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
  EXPECT_EQ(difference(node_path(0), sources_[0]->content()), "");
  ASSERT_TRUE(node_.apply(name(1), sources_[1]->remove()).has_value());
  EXPECT_FALSE(exists(node_path(1)));
  ASSERT_TRUE(node_.replica().discard(name(2)).has_value());
  EXPECT_FALSE(exists(node_path(2)));
}

TEST_F(ApplySleep, AStartOpensNothingAndLosesNothing) {
  copy_all();
  for (std::size_t i = 0; i < kDatabases; i += 2) change(i, 1);
  node_.restart(few_awake());
  EXPECT_GE(sleeping(), kDatabases - 4) << "all but those with frames in their WAL";
  expect_whole();
  for (std::size_t i = 0; i < kDatabases; ++i) change(i, 2);
  expect_whole();
}

// With frames in the WAL, all of which are in the database file: what a killed node leaves of an idle database.
TEST_F(ApplySleep, AWalThatIsAllBackfilledIsStartedOver) {
  copy_all();
  for (int round = 1; round <= 3; ++round) change(kDatabases - 1, round);
  ASSERT_FALSE(sleeps(kDatabases - 1));
  ASSERT_TRUE(eventually([&] {
    const auto database = node_.store().find(name(kDatabases - 1));
    MutexLock lock(database->commit_mutex());
    return database->checksums().state().checkpoint == database->pos();
  }));
  ASSERT_GT(std::filesystem::file_size(node_path(kDatabases - 1) + "-wal"), sqlite::kWalHeaderSize);
  const std::string copy = dir_.path() + "/killed";
  std::filesystem::copy(node_.data_dir(), copy, std::filesystem::copy_options::recursive);
  ReplicaNode killed(copy, few_awake());
  ASSERT_TRUE(Replica::recover(killed.store()).has_value());
  EXPECT_EQ(difference(killed.path(name(kDatabases - 1)), sources_[kDatabases - 1]->content()), "");
  EXPECT_EQ(killed.database(name(kDatabases - 1))->applied(), sources_[kDatabases - 1]->pos());
}

}  // namespace
}  // namespace sluice::storage::apply_test
