#include "fuse/passthrough.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>

#include "fuse/protocol.h"

namespace sluice::fuse {
namespace {

struct Init {
  protocol::InHeader header{};
  protocol::InitIn init{};
};

struct Exchange {
  explicit Exchange(std::uint32_t flags, std::uint32_t flags2) {
    in.header.opcode = protocol::kOpcodeInit;
    in.header.unique = 2;
    in.header.len = sizeof in;
    in.init.flags = flags;
    in.init.flags2 = flags2;
    reply.unique = 2;
    parts[0] = {&reply, sizeof reply};
    parts[1] = {&out, sizeof out};
  }
  Init in;
  protocol::OutHeader reply{};
  protocol::InitOut out{};
  iovec parts[2];
};

TEST(InitPatch, AsksForPassthroughWhereTheKernelOffersIt) {
  Exchange e(protocol::kInitExt, protocol::kInitPassthrough2 | 1);
  InitPatch patch(2);
  patch.on_request(&e.in, sizeof e.in);
  EXPECT_TRUE(patch.offered());
  EXPECT_TRUE(patch.on_reply(e.parts, 2));
  EXPECT_EQ(e.out.flags, 1u << 30);
  EXPECT_EQ(e.out.flags2, 1u << 5);
  EXPECT_EQ(e.out.max_stack_depth, 2u);
  // The kernel's offsets (facts of the protocol, not of this struct).
  const auto* bytes = reinterpret_cast<const unsigned char*>(&e.out);
  EXPECT_EQ(bytes[15], 0x40);
  EXPECT_EQ(bytes[32], 0x20);
  EXPECT_EQ(bytes[36], 2);
  EXPECT_FALSE(patch.on_reply(e.parts, 2));  // once
}

TEST(InitPatch, AsksForNothingOnThePlainPath) {
  Exchange e(protocol::kInitExt, protocol::kInitPassthrough2);
  InitPatch patch(0);
  patch.on_request(&e.in, sizeof e.in);
  EXPECT_TRUE(patch.on_reply(e.parts, 2));
  EXPECT_EQ(e.out.flags2, 0u);
  EXPECT_EQ(e.out.max_stack_depth, 0u);
}

TEST(InitPatch, LeavesOtherKernelsAlone) {
  Exchange e(0, protocol::kInitPassthrough2);  // flags2 is not valid without INIT_EXT
  InitPatch patch(1);
  patch.on_request(&e.in, sizeof e.in);
  EXPECT_FALSE(patch.offered());
  EXPECT_TRUE(patch.on_reply(e.parts, 2));
  EXPECT_EQ(e.out.flags, 0u);
  EXPECT_EQ(e.out.max_stack_depth, 0u);
}

TEST(InitPatch, OnlyTouchesTheAnswerToInit) {
  Exchange e(protocol::kInitExt, protocol::kInitPassthrough2);
  InitPatch patch(1);
  EXPECT_FALSE(patch.on_reply(e.parts, 2));  // before any request
  patch.on_request(&e.in, sizeof e.in);
  e.reply.unique = 4;
  EXPECT_FALSE(patch.on_reply(e.parts, 2));
  EXPECT_EQ(e.out.flags2, 0u);
  patch.on_request("short", 5);
  e.reply.unique = 2;
  e.parts[1].iov_len = 24;  // a reply for an old kernel has no flags2
  EXPECT_TRUE(patch.on_reply(e.parts, 2));
  EXPECT_EQ(e.out.flags2, 0u);
}

TEST(BackingId, SaysWhatIsMissing) {
  const auto id = open_backing_id(-1, 0);
  ASSERT_FALSE(id);
  EXPECT_EQ(id.error().sys_errno, EBADF);
}

}  // namespace
}  // namespace sluice::fuse
