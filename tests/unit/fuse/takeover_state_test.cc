// What one process stores for the next: nodes, open files and requests are what they were, wherever the process was stopped.
#include "fuse/takeover/state.h"

#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "base/function_ref.h"
#include "fuse/files/open_files.h"
#include "fuse/inode_table.h"
#include "fuse/protocol.h"
#include "fuse/takeover/in_flight.h"

namespace sluice::fuse {
namespace {

using takeover::Flight;
using takeover::InFlight;
using takeover::State;

constexpr std::uint32_t kUsed = 16;  // records that these tests use at most

std::unique_ptr<State> new_state() {
  auto state = std::move(*State::create());
  state->header().init_reply_size = sizeof(protocol::InitOut);
  return state;
}

/// The state as the process after this one finds it.
std::unique_ptr<State> next(const State& state) { return std::move(*State::adopt(UniqueFd(::dup(state.fd())))); }

/// A copy, so that restoring changes nothing.
std::unique_ptr<State> copy(const State& state) {
  auto made = new_state();
  std::memcpy(static_cast<void*>(&made->header()), &state.header(), sizeof state.header());
  std::memcpy(static_cast<void*>(&made->node(0)), &state.node(0), kUsed * sizeof(takeover::NodeRecord));
  std::memcpy(static_cast<void*>(&made->open(0)), &state.open(0), kUsed * sizeof(takeover::OpenRecord));
  return next(*made);
}

bool same(const State& a, const State& b) {
  return std::memcmp(&a.header(), &b.header(), sizeof a.header()) == 0 &&
         std::memcmp(&a.node(0), &b.node(0), kUsed * sizeof(takeover::NodeRecord)) == 0 &&
         std::memcmp(&a.open(0), &b.open(0), kUsed * sizeof(takeover::OpenRecord)) == 0;
}

/// Runs `change` in a process of its own, one machine instruction at a time, and shows each state that a process which takes
/// over after that instruction would find. Returns how many there were.
int at_every_prefix(State& state, FunctionRef<void()> change, FunctionRef<void(State&)> look) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::raise(SIGSTOP);
    change();
    ::_exit(0);
  }
  int status = 0;
  int states = 0;
  auto seen = copy(state);
  seen->header().generation = state.header().generation;
  while (::waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
    if (!same(*seen, state)) {
      ++states;
      auto found = copy(state);
      look(*found);
      seen = copy(state);
      seen->header().generation = state.header().generation;
    }
    ::ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr);
  }
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return states;
}

class TakeoverStateTest : public ::testing::Test {
 protected:
  NodeId enter(NodeId parent, std::string_view name, ino_t ino, FileKind kind = FileKind::plain) {
    return table_.enter(parent, name, ino, kind, false).value();
  }

  std::unique_ptr<State> state_ = new_state();
  InodeTable table_{2, state_.get()};
};

TEST_F(TakeoverStateTest, NodesAreWhatTheyWere) {
  const NodeId directory = enter(kRootNode, "d", 10, FileKind::directory);
  const NodeId file = enter(directory, "f", 11, FileKind::database);
  enter(directory, "f", 11, FileKind::database);  // looked up twice
  const NodeId gone = enter(kRootNode, "gone", 12);
  table_.forget(gone, 1);
  const NodeId removed = enter(kRootNode, "removed", 13, FileKind::wal);
  table_.first_open(removed, OpenState{nullptr, 7});
  table_.removed(kRootNode, "removed");
  const NodeId closed = enter(kRootNode, "closed", 14, FileKind::shm);
  table_.first_open(closed, OpenState{nullptr, 8});

  auto state = next(*state_);
  InodeTable after(2, state.get());
  const auto unused = after.restore({{removed.value(), 2u}});
  EXPECT_EQ(unused, std::vector<int>{8});  // its process died between the close and the id's
  EXPECT_EQ(after.find_path("d/f"), file);
  EXPECT_EQ(after.find(file)->kind, FileKind::database);
  EXPECT_EQ(after.find(file)->names->database, "d/f");
  EXPECT_FALSE(after.find(gone));
  const auto left = after.find(removed);
  ASSERT_TRUE(left);
  EXPECT_FALSE(left->linked);
  EXPECT_EQ(left->opens, 2u);
  EXPECT_EQ(left->backing_id, 7);
  EXPECT_EQ(after.find(closed)->opens, 0u);
  after.forget(file, 1);
  EXPECT_TRUE(after.find(file));
  after.forget(file, 1);
  EXPECT_FALSE(after.find(file));
  const NodeId fresh = after.enter(kRootNode, "new", 20, FileKind::plain, false).value();
  for (const NodeId id : {directory, file, gone, removed, closed}) EXPECT_NE(fresh, id);
}

TEST_F(TakeoverStateTest, AMoveIsDoneOrNot) {
  const NodeId a = enter(kRootNode, "a", 10, FileKind::directory);
  const NodeId b = enter(kRootNode, "b", 11, FileKind::directory);
  const NodeId file = enter(a, "with-a-long-name-that-takes-many-stores", 12);
  enter(b, "y", 13);
  const int states = at_every_prefix(
      *state_, [&] { table_.moved(a, "with-a-long-name-that-takes-many-stores", b, "y"); },
      [&](State& found) {
        InodeTable table(2, &found);
        table.restore({});
        const bool before = table.find_path("a/with-a-long-name-that-takes-many-stores") == file;
        const bool after = table.find_path("b/y") == file;
        EXPECT_NE(before, after);
        EXPECT_TRUE(table.find(file)->linked);
      });
  EXPECT_GT(states, 5);
}

TEST_F(TakeoverStateTest, ANodeIsThereOrNot) {
  const int states = at_every_prefix(
      *state_, [&] { enter(kRootNode, "name", 10, FileKind::database); },
      [&](State& found) {
        InodeTable table(2, &found);
        table.restore({});
        const auto id = table.find_path("name");
        if (!id) return;
        EXPECT_EQ(table.find(*id)->kind, FileKind::database);
        EXPECT_EQ(table.find(*id)->backing_ino, 10u);
        table.forget(*id, 1);  // counted once, and no more
        EXPECT_FALSE(table.find(*id));
      });
  EXPECT_GT(states, 3);
}

TEST_F(TakeoverStateTest, ARemovalAndTheLastForgetLeaveNothing) {
  const NodeId directory = enter(kRootNode, "d", 9, FileKind::directory);
  const NodeId file = enter(directory, "f", 10);
  table_.forget(directory, 1);  // kept by its child
  const int states = at_every_prefix(
      *state_,
      [&] {
        table_.removed(directory, "f");
        table_.forget(file, 1);
      },
      [&](State& found) {
        InodeTable table(2, &found);
        table.restore({});
        if (const auto node = table.find(file)) {
          table.forget(file, 1);
          EXPECT_FALSE(table.find(file));
        }
        EXPECT_EQ(table.size(), 1u);  // the root
      });
  EXPECT_GT(states, 2);
}

TEST_F(TakeoverStateTest, AnOpenFileIsThereOrNot) {
  OpenFiles files(state_.get());
  const HandleId first = files.add(OpenFile{NodeId(5), true, false, false, nullptr}, 77);
  const int states = at_every_prefix(
      *state_,
      [&] {
        files.add(OpenFile{NodeId(6), true, true, true, nullptr}, 78);
        files.remove(first);
      },
      [&](State& found) {
        const OpenFiles after(&found);
        for (const OpenFile& file : after.list()) {
          const bool is_first = file.node == NodeId(5) && !file.own;
          const bool is_second = file.node == NodeId(6) && file.own && file.write_only;
          EXPECT_TRUE(is_first || is_second);
        }
        if (after.list().empty()) ADD_FAILURE() << "at least one is open at any time";
        EXPECT_EQ(after.restored(77).value_or(first), first);
      });
  EXPECT_GT(states, 4);
}

TEST_F(TakeoverStateTest, HandlesAreNotGivenOutAgain) {
  OpenFiles files(state_.get());
  const HandleId first = files.add(OpenFile{NodeId(5), false, false, false, nullptr}, 77);
  files.remove(first);
  auto state = next(*state_);
  OpenFiles after(state.get());
  EXPECT_FALSE(after.restored(77));
  EXPECT_NE(after.add(OpenFile{NodeId(6), false, false, false, nullptr}), first);
  EXPECT_FALSE(after.remove(first));
}

constexpr std::uint64_t kAgain = protocol::kResent;

TEST_F(TakeoverStateTest, ARequestKnowsHowFarItCame) {
  InFlight before(*state_);
  before.take(11, 1);
  before.take(12, 1)->begin(3, 4);
  const Flight done = *before.take(13, 1);
  done.begin();
  done.done(5, 6);
  before.take(14, 1)->finish();

  auto state = next(*state_);
  InFlight after(*state);
  EXPECT_FALSE(after.take(11 | kAgain, 1)->begun_before());
  const Flight begun = *after.take(12 | kAgain, 1);
  EXPECT_TRUE(begun.begun_before());
  EXPECT_EQ(begun.before(0), 3u);
  EXPECT_EQ(begun.before(1), 4u);
  const Flight ended = *after.take(13 | kAgain, 1);
  EXPECT_TRUE(ended.done_before());
  EXPECT_EQ(ended.result(), 5);
  EXPECT_EQ(ended.node(), 6u);
  EXPECT_FALSE(after.take(14 | kAgain, 1)->begun_before());
}

TEST_F(TakeoverStateTest, ARequestThatCrashesProcessesIsGivenUp) {
  auto state = next(*state_);
  InFlight(*state).take(11, 1);
  for (unsigned crash = 1; crash < InFlight::kMaxDeaths; ++crash) {
    state->header().suspect = 1;
    state = next(*state);
    EXPECT_TRUE(InFlight(*state).take(11 | kAgain, 1)) << crash;
  }
  state = next(*state);  // killed by somebody: no fault of the request
  EXPECT_TRUE(InFlight(*state).take(11 | kAgain, 1));
  state->header().suspect = 1;
  state = next(*state);
  EXPECT_FALSE(InFlight(*state).take(11 | kAgain, 1));
}

TEST_F(TakeoverStateTest, RenamesOfDeadProcessesLeaveRoomForOthers) {
  const auto noted = [&](std::uint64_t node) {
    for (const takeover::RenameRecord& record : state_->renames())
      if (record.node == node) return std::string(takeover::load_name(record.new_name));
    return std::string();
  };
  for (std::uint64_t i = 0; i < 3 * takeover::kMaxRenames; ++i) {
    state_->note_rename(5, 1, "name" + std::to_string(i));  // again and again: its processes die
    EXPECT_EQ(noted(5), "name" + std::to_string(i));
  }
  for (takeover::RenameRecord& record : state_->renames())
    if (record.node == 0) record.node = ~std::uint64_t{0};  // processes died while they wrote it
  state_->note_rename(6, 1, "full");
  EXPECT_EQ(noted(6), "");
  state_ = next(*state_);
  state_->note_rename(6, 1, "other");
  EXPECT_EQ(noted(6), "other");
  state_->forget_rename(5);
  EXPECT_EQ(noted(5), "");
  EXPECT_EQ(noted(6), "other");
}

TEST_F(TakeoverStateTest, AnotherLayoutIsRefused) {
  EXPECT_TRUE(State::check(state_->fd()));
  state_->header().version = takeover::kLayoutVersion + 1;
  EXPECT_EQ(State::check(state_->fd()).error().code, Errc::unsupported);
  EXPECT_FALSE(State::adopt(UniqueFd(::dup(state_->fd()))));
}

}  // namespace
}  // namespace sluice::fuse
