#include "fuse/files/kind.h"

#include <gtest/gtest.h>

namespace sluice::fuse {
namespace {

TEST(Kind, SideFilesByName) {
  const auto expect = [](std::string_view name, FileKind kind, std::string_view base) {
    const auto side = side_file(name);
    ASSERT_TRUE(side.has_value()) << name;
    EXPECT_EQ(side->kind, kind) << name;
    EXPECT_EQ(side->base, base) << name;
  };
  expect("app.db-wal", FileKind::wal, "app.db");
  expect("app.db-shm", FileKind::shm, "app.db");
  expect("app.db-journal", FileKind::journal, "app.db");
  expect("x-wal-wal", FileKind::wal, "x-wal");
  expect("app.db-mj0123ABCD9", FileKind::super_journal, "app.db");
}

TEST(Kind, OtherNamesAreNoSideFiles) {
  for (const std::string_view name :
       {"-wal", "-shm", "-journal", "app.db", "wal", "app.db-WAL", "app.db-walx", "-mj0123ABCD9", "app.db-mj0123abcd9",
        "app.db-mj0123ABC", "app.db-mj0123ABCDEF", "app.db-pos", ""})
    EXPECT_FALSE(side_file(name).has_value()) << name;
}

TEST(Kind, PositionFiles) {
  EXPECT_EQ(position_base("app.db-pos"), "app.db");
  EXPECT_FALSE(position_base("-pos").has_value());
  EXPECT_FALSE(position_base("app.db").has_value());
}

TEST(Kind, Magic) {
  const std::string_view text("SQLite format 3\0more", 20);
  EXPECT_TRUE(begins_with_magic(as_bytes(text)));
  EXPECT_TRUE(begins_with_magic(as_bytes(text.substr(0, 16))));
  EXPECT_FALSE(begins_with_magic(as_bytes(text.substr(0, 15))));
  EXPECT_FALSE(begins_with_magic(as_bytes("SQLite format 3 and more")));
}

TEST(Kind, DatabaseOfAFile) {
  EXPECT_EQ(database_of(FileKind::database, "a/b.db"), "a/b.db");
  EXPECT_EQ(database_of(FileKind::wal, "a/b.db-wal"), "a/b.db");
  EXPECT_EQ(database_of(FileKind::shm, "a/b.db-shm"), "a/b.db");
  EXPECT_EQ(database_of(FileKind::journal, "b.db-journal"), "b.db");
  EXPECT_EQ(database_of(FileKind::super_journal, "b.db-mj0123ABCD9"), "");
  EXPECT_EQ(database_of(FileKind::plain, "b.db-wal"), "");
}

TEST(Kind, OnlyWalAndShmPassThrough) {
  for (const FileKind kind : {FileKind::directory, FileKind::plain, FileKind::database, FileKind::journal, FileKind::wal,
                              FileKind::shm, FileKind::super_journal, FileKind::virtual_file}) {
    EXPECT_EQ(is_side_file(kind), kind == FileKind::wal || kind == FileKind::shm) << kind_name(kind);
    EXPECT_EQ(is_observed(kind),
              kind != FileKind::directory && kind != FileKind::plain && kind != FileKind::virtual_file)
        << kind_name(kind);
  }
}

}  // namespace
}  // namespace sluice::fuse
