#include "fuse/write_guard.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace sluice::fuse {
namespace {

Op make(OpKind kind, FileKind file, std::string_view path, std::string_view database = "") {
  Op op;
  op.kind = kind;
  op.file = file;
  op.path = path;
  op.database = database;
  return op;
}

WriteGuardOptions options(bool wait) {
  WriteGuardOptions o;
  o.allow_write_opens = wait;
  o.is_replicated = [](std::string_view name) { return name == "a.db" || name == "dir/b.db"; };
  o.has_replicated_below = [](std::string_view directory) { return directory == "dir"; };
  return o;
}

struct Ran {
  int result = 0;
  bool performed = false;
};
Ran run(WriteGuard& guard, const Op& op) {
  Ran ran;
  ran.result = guard.run(op, [&] {
    ran.performed = true;
    return 0;
  });
  EXPECT_EQ(ran.performed, ran.result == 0);
  return ran;
}

Op open(FileKind file, std::string_view path, bool write) {
  Op op = make(OpKind::open, file, path, "a.db");
  op.write_access = write;
  return op;
}

TEST(WriteGuard, RejectOpensDatabasesReadOnly) {
  WriteGuard guard(options(false));
  guard.start_serving();
  EXPECT_EQ(run(guard, open(FileKind::database, "a.db", true)).result, EROFS);
  EXPECT_EQ(run(guard, open(FileKind::database, "a.db", false)).result, 0);
  EXPECT_EQ(run(guard, open(FileKind::wal, "a.db-wal", true)).result, EACCES);
  EXPECT_EQ(run(guard, open(FileKind::wal, "a.db-wal", false)).result, 0);
  EXPECT_EQ(run(guard, open(FileKind::shm, "a.db-shm", true)).result, 0);
  EXPECT_FALSE(guard.writable());
}

TEST(WriteGuard, WaitOpensDatabasesReadWriteButWritesStayRefused) {
  WriteGuard guard(options(true));
  guard.start_serving();
  EXPECT_EQ(run(guard, open(FileKind::database, "a.db", true)).result, 0);
  EXPECT_EQ(run(guard, open(FileKind::wal, "a.db-wal", true)).result, 0);
  EXPECT_EQ(run(guard, make(OpKind::write, FileKind::database, "a.db", "a.db")).result, EROFS);
  EXPECT_EQ(run(guard, make(OpKind::create, FileKind::journal, "a.db-journal", "a.db")).result, EACCES);
  EXPECT_TRUE(guard.writable());
}

TEST(WriteGuard, JournalsAndWalsAreNotCreated) {
  WriteGuard guard(options(false));
  guard.start_serving();
  for (const FileKind kind : {FileKind::journal, FileKind::wal, FileKind::super_journal}) {
    Op op = make(OpKind::create, kind, "a.db-x", "a.db");
    op.write_access = true;
    EXPECT_EQ(run(guard, op).result, EACCES);
  }
}

TEST(WriteGuard, ReplicatedDatabasesAreNeitherRemovedNorChanged) {
  WriteGuard guard(options(false));
  guard.start_serving();
  for (const OpKind kind : {OpKind::write, OpKind::truncate, OpKind::unlink, OpKind::rename}) {
    EXPECT_EQ(run(guard, make(kind, FileKind::database, "a.db", "a.db")).result, EROFS)
        << static_cast<int>(kind);
    EXPECT_EQ(run(guard, make(kind, FileKind::wal, "a.db-wal", "a.db")).result, EROFS)
        << static_cast<int>(kind);
  }
  EXPECT_EQ(run(guard, make(OpKind::unlink, FileKind::shm, "a.db-shm", "a.db")).result, EROFS);
  // The wal-index belongs to the readers too.
  EXPECT_EQ(run(guard, make(OpKind::truncate, FileKind::shm, "a.db-shm", "a.db")).result, 0);
}

TEST(WriteGuard, RenameOntoAReplicatedDatabaseIsRefused) {
  WriteGuard guard(options(false));
  guard.start_serving();
  Op op = make(OpKind::rename, FileKind::plain, "x");
  op.new_path = "a.db";
  op.replaces = true;
  op.replaced_kind = FileKind::database;
  EXPECT_EQ(run(guard, op).result, EROFS);
  op.new_path = "local.db";
  EXPECT_EQ(run(guard, op).result, 0);
}

TEST(WriteGuard, DirectoriesWithReplicatedDatabasesStay) {
  WriteGuard guard(options(false));
  guard.start_serving();
  EXPECT_EQ(run(guard, make(OpKind::rename, FileKind::directory, "dir")).result, EROFS);
  EXPECT_EQ(run(guard, make(OpKind::rename, FileKind::directory, "other")).result, 0);
}

TEST(WriteGuard, LocalFilesAreFree) {
  WriteGuard guard(options(false));
  guard.start_serving();
  EXPECT_EQ(run(guard, make(OpKind::create, FileKind::plain, "notes.txt")).result, 0);
  EXPECT_EQ(run(guard, make(OpKind::unlink, FileKind::database, "local.db", "local.db")).result, 0);
  EXPECT_EQ(run(guard, make(OpKind::rename, FileKind::database, "local.db", "local.db")).result, 0);
  EXPECT_EQ(run(guard, make(OpKind::write, FileKind::database, "local.db", "local.db")).result, EROFS);
}

TEST(WriteGuard, TheNodeItselfPasses) {
  WriteGuard guard(options(false));
  for (const OpKind kind :
       {OpKind::write, OpKind::truncate, OpKind::unlink, OpKind::open, OpKind::create, OpKind::rename}) {
    Op op = make(kind, FileKind::database, "a.db", "a.db");
    op.own = true;
    op.write_access = true;
    EXPECT_EQ(run(guard, op).result, 0);
  }
}

TEST(WriteGuard, NothingIsOpenedBeforeRecovery) {
  WriteGuard guard(options(false));
  EXPECT_EQ(run(guard, open(FileKind::database, "a.db", false)).result, EAGAIN);
  EXPECT_EQ(run(guard, open(FileKind::plain, "x", true)).result, 0);
  guard.start_serving();
  EXPECT_EQ(run(guard, open(FileKind::database, "a.db", false)).result, 0);
}

}  // namespace
}  // namespace sluice::fuse
