#include "storage/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "storage/boot.h"
#include "tests/unit/storage/log_support.h"

namespace sluice::storage::test {
namespace {

using testing::HasSubstr;

class StoreTest : public testing::Test {
 protected:
  std::string data() const { return temp_.file("some/data"); }
  Result<std::unique_ptr<Store>> try_open() {
    StoreOptions options;
    options.data_dir = data();
    return Store::open(fs_, system_clock(), options);
  }
  std::unique_ptr<Store> open() {
    auto store = try_open();
    EXPECT_TRUE(store.has_value()) << store.error().to_string();
    return store.has_value() ? std::move(*store) : nullptr;
  }
  void write_identity(const std::string& text) {
    ASSERT_OK(write_file_atomically(real_file_system(), data() + "/node.json", as_bytes(text)));
  }
  /// A database with one change set in its log.
  static void fill(Database& database) {
    MutexLock lock(database.commit_mutex());
    ASSERT_OK(database.rebase(info_of(5), [](Pgno pgno) { return pos_at(pgno.value()).checksum; }));
  }
  TempDir temp_;
  FaultFileSystem fs_;
};

TEST_F(StoreTest, ANewDirectoryGetsItsLayoutAndAnIdentity) {
  NodeId id;
  {
    const auto store = open();
    id = store->node_id();
    EXPECT_NE(id, NodeId(0));
    EXPECT_FALSE(store->last_role().has_value());
    EXPECT_TRUE(store->list().empty());
    for (const char* dir : {"fs", "log", "checksums", "install", "tmp", "lost+found"}) {
      EXPECT_TRUE(std::filesystem::is_directory(data() + "/" + dir)) << dir;
    }
    EXPECT_EQ(store->backing_path("a/b.db"), data() + "/fs/a/b.db");
  }
  EXPECT_EQ(open()->node_id(), id);
}

TEST_F(StoreTest, SyncsItsDirectoryOnlyWhenItMadeSomething) {
  open();
  const int before = fs_.count(FileOp::sync_directory);
  open();
  EXPECT_EQ(fs_.count(FileOp::sync_directory), before);
  std::filesystem::remove(data() + "/install");
  open();
  EXPECT_EQ(fs_.count(FileOp::sync_directory), before + 1);
}

TEST_F(StoreTest, RemembersTheLastRole) {
  for (const Role role : {Role::primary, Role::replica, Role::replica}) {
    ASSERT_OK(open()->set_last_role(role));
    EXPECT_EQ(open()->last_role(), role);
  }
}

TEST_F(StoreTest, AFailedRoleChangeChangesNothing) {
  const auto store = open();
  ASSERT_OK(store->set_last_role(Role::primary));
  fs_.fail(FileOp::write, 1, ENOSPC);
  EXPECT_EQ(store->set_last_role(Role::replica).error().code, Errc::no_space);
  EXPECT_EQ(store->last_role(), Role::primary);
}

TEST_F(StoreTest, ASecondOneIsKeptOutAndToldByWhom) {
  auto first = open();
  const auto second = try_open();
  ASSERT_TRUE(second.has_error());
  EXPECT_EQ(second.error().code, Errc::in_use);
  EXPECT_THAT(second.error().message, HasSubstr("in use by process " + std::to_string(::getpid()) + ";"));
  first = nullptr;
  EXPECT_NE(open(), nullptr);
}

TEST_F(StoreTest, ADamagedIdentityIsRefusedWithAdvice) {
  open();
  for (const char* text :
       {"", "{", "[]", "{}", R"({"format":"1","node_id":"0000000000000001"})", R"({"format":1})",
        R"({"format":1,"node_id":"xyz"})", R"({"format":1,"node_id":"0000000000000000"})",
        R"({"format":1,"node_id":"0000000000000001","last_role":"king"})"}) {
    write_identity(text);
    const auto store = try_open();
    ASSERT_TRUE(store.has_error()) << text;
    EXPECT_EQ(store.error().code, Errc::corrupt) << text;
    EXPECT_THAT(store.error().message, HasSubstr("node.json"));
    EXPECT_THAT(store.error().message, HasSubstr("restore the file from a backup"));
  }
  write_identity(std::string(100'000, ' '));
  EXPECT_EQ(try_open().error().code, Errc::corrupt);
}

TEST_F(StoreTest, ANewerFormatIsRefusedWithAdvice) {
  open();
  write_identity(R"({"format":2,"node_id":"0000000000000001"})");
  const auto store = try_open();
  ASSERT_TRUE(store.has_error());
  EXPECT_EQ(store.error().code, Errc::unsupported);
  EXPECT_THAT(store.error().message, HasSubstr("has format 2"));
  EXPECT_THAT(store.error().message, HasSubstr("another --data directory"));
}

TEST_F(StoreTest, AMissingIdentityIsNotReplacedWhenThereAreDatabases) {
  fill(**open()->open_database("app.db"));
  std::filesystem::remove(data() + "/node.json");
  EXPECT_EQ(try_open().error().code, Errc::corrupt);
}

TEST_F(StoreTest, DatabasesWithALogAreThereAgain) {
  {
    const auto store = open();
    for (const char* name : {"b.db", "a.db", "tenants/7%/x.db"}) fill(**store->open_database(name));
    ASSERT_OK(store->open_database("never-committed.db"));
    std::filesystem::create_directory(data() + "/log/%zz");
  }
  const auto store = open();
  std::vector<std::string> names;
  for (const auto& database : store->list()) names.push_back(database->name());
  EXPECT_THAT(names, testing::ElementsAre("a.db", "b.db", "tenants/7%/x.db"));
  EXPECT_EQ(store->find("a.db")->pos(), pos_at(5));
  EXPECT_EQ(store->find("c.db"), nullptr);
  EXPECT_EQ(*store->open_database("a.db"), store->find("a.db"));
}

TEST_F(StoreTest, RemovingADatabaseLeavesItsFileAlone) {
  const auto store = open();
  fill(**store->open_database("dir/app.db"));
  std::filesystem::create_directory(store->fs_dir() + "/dir");
  std::filesystem::copy_file("/proc/self/exe", store->backing_path("dir/app.db"));
  ASSERT_OK(store->remove_database("dir/app.db"));
  EXPECT_EQ(store->find("dir/app.db"), nullptr);
  EXPECT_FALSE(std::filesystem::exists(data() + "/log/dir%2Fapp.db"));
  EXPECT_FALSE(std::filesystem::exists(data() + "/checksums/dir%2Fapp.db"));
  EXPECT_TRUE(std::filesystem::exists(store->backing_path("dir/app.db")));
  EXPECT_EQ(store->remove_database("dir/app.db").error().code, Errc::not_found);
  ASSERT_OK(store->open_database("dir/app.db"));
  EXPECT_EQ(store->find("dir/app.db")->pos(), Pos{});
}

TEST_F(StoreTest, TemporaryFilesOfADeadDaemonAreRemoved) {
  open();
  std::filesystem::copy_file("/proc/self/exe", data() + "/tmp/left");
  const std::string note = data() + "/tmp/" + std::string(kKeptInTmp) + "app.db";
  std::filesystem::copy_file("/proc/self/exe", note);
  open();
  EXPECT_FALSE(std::filesystem::exists(data() + "/tmp/left"));
  EXPECT_TRUE(std::filesystem::exists(note)) << "capture has to learn that it did not see everything";
}

class CountingObserver : public DatabaseObserver {
 public:
  void on_appended(Database&) override { ++appended; }
  void on_durable(Database&) override {}
  int appended = 0;
};

TEST_F(StoreTest, TheObserverReachesOldAndNewDatabases) {
  const auto store = open();
  const auto before = *store->open_database("before.db");
  CountingObserver observer;
  store->set_observer(&observer);
  const auto after = *store->open_database("after.db");
  fill(*before);
  fill(*after);
  EXPECT_EQ(observer.appended, 2);
}

TEST(DatabaseName, OnlyCleanRelativePaths) {
  for (const char* good : {"a", "app.db", "a/b/c.db", ".hidden", "..a", "ünï/köde", "with space", "100%"}) {
    EXPECT_TRUE(check_database_name(good).has_value()) << good;
  }
  EXPECT_TRUE(check_database_name(std::string(1024, 'x')).has_value());
  for (const char* bad : {"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "./a", "a/."}) {
    const auto checked = check_database_name(bad);
    ASSERT_TRUE(checked.has_error()) << bad;
    EXPECT_EQ(checked.error().code, Errc::invalid_argument);
  }
  EXPECT_TRUE(check_database_name(std::string(1025, 'x')).has_error());
  EXPECT_TRUE(check_database_name(std::string_view("a\0b", 3)).has_error());
}

TEST(DatabaseName, EscapingIsReversible) {
  EXPECT_EQ(escape_name("tenants/42.db"), "tenants%2F42.db");
  EXPECT_EQ(escape_name("100%"), "100%25");
  for (const char* name : {"a", "a/b%2Fc", "%", "%25", "///", "%/%"}) {
    const auto back = unescape_name(escape_name(name));
    ASSERT_OK(back);
    EXPECT_EQ(*back, name);
  }
  for (const char* bad : {"%", "%2", "%2f", "a%zz", "%20"})
    EXPECT_TRUE(unescape_name(bad).has_error()) << bad;
}

TEST_F(StoreTest, NamesThatAreNoFileNameAreRefused) {
  const auto store = open();
  EXPECT_EQ(store->open_database("../x").error().code, Errc::invalid_argument);
  EXPECT_EQ(store->open_database(std::string(300, 'x')).error().code, Errc::too_large);
  EXPECT_EQ(store->open_database(std::string(221, 'x')).error().code, Errc::too_large);
  ASSERT_OK(store->open_database(std::string(220, 'x')));
}

TEST_F(StoreTest, KnowsWhetherTheMachineWasRestartedSinceRecoveryWasComplete) {
  EXPECT_TRUE(open()->machine_restarted());
  EXPECT_TRUE(open()->machine_restarted()) << "recovery was not complete";
  ASSERT_OK(open()->note_recovered());
  EXPECT_FALSE(open()->machine_restarted());
  EXPECT_FALSE(open()->machine_restarted());
  set_boot_number_for_tests(5);
  EXPECT_TRUE(open()->machine_restarted());
  set_boot_number_for_tests(0);
  std::filesystem::remove(data() + "/lock");
  EXPECT_TRUE(open()->machine_restarted());
}

TEST_F(StoreTest, KeepsTheNotesOfFailedSyncs) {
  (void)open();
  const std::string note = data() + "/tmp/" + std::string(kSyncFailedInTmp) + "a.db";
  ASSERT_OK(write_file_atomically(real_file_system(), note, {}));
  (void)open();
  EXPECT_TRUE(std::filesystem::exists(note));
}

}  // namespace
}  // namespace sluice::storage::test
