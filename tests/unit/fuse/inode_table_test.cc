#include "fuse/inode_table.h"

#include <gtest/gtest.h>

namespace sluice::fuse {
namespace {

class InodeTableTest : public ::testing::Test {
 protected:
  NodeId enter(NodeId parent, std::string_view name, ino_t ino, FileKind kind = FileKind::plain, bool fresh = false) {
    return table_.enter(parent, name, ino, kind, fresh).value();
  }
  std::string path(NodeId id) { return table_.find(id).value().names->path; }

  InodeTable table_{2};
};

TEST_F(InodeTableTest, RootIsThere) {
  const auto root = table_.find(kRootNode);
  ASSERT_TRUE(root);
  EXPECT_EQ(root->names->path, "");
  EXPECT_EQ(root->kind, FileKind::directory);
  EXPECT_EQ(table_.find_path(""), kRootNode);
  table_.forget(kRootNode, 1000);
  EXPECT_TRUE(table_.find(kRootNode));
}

TEST_F(InodeTableTest, SameNameAndInodeIsTheSameNode) {
  const NodeId a = enter(kRootNode, "a", 10);
  EXPECT_EQ(enter(kRootNode, "a", 10), a);
  table_.forget(a, 1);
  EXPECT_TRUE(table_.find(a));
  table_.forget(a, 1);
  EXPECT_FALSE(table_.find(a));
  EXPECT_EQ(table_.size(), 1u);
}

TEST_F(InodeTableTest, IdsAreNeverReused) {
  const NodeId a = enter(kRootNode, "a", 10);
  table_.forget(a, 1);
  const NodeId b = enter(kRootNode, "a", 10);
  EXPECT_NE(a, b);
  EXPECT_EQ(a.value() & 0xffffffff, b.value() & 0xffffffff);  // same slot, next generation
  EXPECT_FALSE(table_.find(a));
}

TEST_F(InodeTableTest, ReplacedBesideTheMount) {
  const NodeId old_node = enter(kRootNode, "a", 10);
  const NodeId new_node = enter(kRootNode, "a", 11);
  EXPECT_NE(old_node, new_node);
  EXPECT_FALSE(table_.find(old_node)->linked);
  EXPECT_EQ(path(old_node), "a");
  EXPECT_EQ(table_.find_path("a"), new_node);
  // A creation is a new file even if the file system gave it the old one's number.
  EXPECT_NE(enter(kRootNode, "a", 11, FileKind::plain, true), new_node);
}

TEST_F(InodeTableTest, PathsFollowRenames) {
  const NodeId d = enter(kRootNode, "d", 10, FileKind::directory);
  const NodeId e = enter(d, "e", 11, FileKind::directory);
  const NodeId f = enter(e, "f.db-wal", 12, FileKind::wal);
  EXPECT_EQ(path(f), "d/e/f.db-wal");
  EXPECT_EQ(table_.find(f)->names->database, "d/e/f.db");
  EXPECT_EQ(table_.find_path("d/e/f.db-wal"), f);
  table_.moved(kRootNode, "d", kRootNode, "new");
  EXPECT_EQ(path(f), "new/e/f.db-wal");
  EXPECT_EQ(table_.find(f)->names->database, "new/e/f.db");
  EXPECT_FALSE(table_.find_path("d/e/f.db-wal"));
  EXPECT_EQ(table_.child_path(e, "x"), "new/e/x");
}

TEST_F(InodeTableTest, MoveReplacesWhatIsThere) {
  const NodeId a = enter(kRootNode, "a", 10);
  const NodeId b = enter(kRootNode, "b", 11);
  table_.moved(kRootNode, "a", kRootNode, "b");
  EXPECT_EQ(table_.find_path("b"), a);
  EXPECT_FALSE(table_.find_path("a"));
  EXPECT_FALSE(table_.find(b)->linked);
  table_.moved(kRootNode, "b", kRootNode, "b");
  EXPECT_EQ(table_.find_path("b"), a);
}

TEST_F(InodeTableTest, RemovedNodeKeepsItsLastName) {
  const NodeId d = enter(kRootNode, "d", 10, FileKind::directory);
  const NodeId a = enter(d, "a", 11, FileKind::database);
  table_.removed(d, "a");
  EXPECT_EQ(path(a), "d/a");
  EXPECT_EQ(table_.find(a)->names->database, "d/a");
  table_.moved(kRootNode, "d", kRootNode, "e");
  EXPECT_EQ(path(a), "d/a");
  table_.set_kind(a, FileKind::plain);
  EXPECT_EQ(table_.find(a)->names->database, "");
  table_.removed(kRootNode, "e");
  EXPECT_FALSE(table_.child_path(d, "x"));
  EXPECT_FALSE(table_.enter(d, "x", 12, FileKind::plain, false));
}

TEST_F(InodeTableTest, ParentsOutliveChildren) {
  const NodeId d = enter(kRootNode, "d", 10, FileKind::directory);
  const NodeId f = enter(d, "f", 11);
  table_.forget(d, 1);  // FORGETs come in any order
  EXPECT_EQ(path(f), "d/f");
  table_.forget(f, 1);
  EXPECT_FALSE(table_.find(d));
  EXPECT_EQ(table_.size(), 1u);
}

TEST_F(InodeTableTest, OpensShareOneDescriptor) {
  const NodeId a = enter(kRootNode, "a", 10);
  EXPECT_FALSE(table_.add_open(a));
  const auto file = std::make_shared<const BackingFile>();
  table_.first_open(a, OpenState{file, 7});
  const auto again = table_.add_open(a);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->file, file);
  EXPECT_EQ(again->backing_id, 7);
  EXPECT_EQ(table_.find(a)->opens, 2u);
  EXPECT_EQ(table_.drop_open(a).backing_id, 0);
  table_.forget(a, 1);  // stays while open
  EXPECT_TRUE(table_.find(a));
  const OpenState last = table_.drop_open(a);
  EXPECT_EQ(last.backing_id, 7);
  EXPECT_EQ(last.file, file);
  EXPECT_FALSE(table_.find(a));
  EXPECT_EQ(table_.drop_open(a).file, nullptr);  // RELEASE of a stale node
}

TEST_F(InodeTableTest, DetachIdleLeavesOpenFiles) {
  const NodeId idle = enter(kRootNode, "idle", 10);
  const NodeId open = enter(kRootNode, "open", 11);
  table_.first_open(open, OpenState{std::make_shared<const BackingFile>(), 0});
  table_.detach_idle(kRootNode, "idle");
  table_.detach_idle(kRootNode, "open");
  EXPECT_FALSE(table_.find_path("idle"));
  EXPECT_NE(enter(kRootNode, "idle", 10), idle);
  EXPECT_EQ(enter(kRootNode, "open", 11), open);
}

TEST_F(InodeTableTest, UnknownIdsAreHarmless) {
  const NodeId nonsense(0x1234'0000'ffffULL);
  EXPECT_FALSE(table_.find(nonsense));
  EXPECT_FALSE(table_.child_path(nonsense, "a"));
  EXPECT_FALSE(table_.enter(nonsense, "a", 1, FileKind::plain, false));
  table_.forget(nonsense, 1);
  table_.set_kind(nonsense, FileKind::wal);
  EXPECT_FALSE(table_.add_open(nonsense));
  EXPECT_FALSE(table_.find(NodeId(0)));
}

}  // namespace
}  // namespace sluice::fuse
