#include "storage/page_checksums.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "storage/ltx/checksum.h"
#include "tests/unit/storage/log_support.h"

namespace sluice::storage::test {
namespace {

Checksum sum_of(std::uint64_t n) {
  return Checksum(kEmptyChecksum.value() | n * 0x9e3779b97f4a7c15u);
}

class PageChecksumsTest : public testing::Test {
 protected:
  std::string path() const { return temp_.file("checksums/app.db"); }
  std::unique_ptr<PageChecksums> open() {
    auto checksums = PageChecksums::open(fs_, path());
    EXPECT_TRUE(checksums.has_value()) << checksums.error().to_string();
    return checksums.has_value() ? std::move(*checksums) : nullptr;
  }
  Bytes load() const { return *read_file(real_file_system(), path(), 1u << 30); }
  void overwrite(std::uint64_t at, ByteView bytes) const {
    const auto file = real_file_system().open(path(), {.write = true});
    ASSERT_OK(file);
    ASSERT_OK((*file)->write_at(at, bytes));
  }
  /// As if the machine had been started since: the slots name another boot.
  void restart_machine() const {
    for (const std::uint64_t at : {0u, 2048u}) {
      Bytes slot = load();
      slot = Bytes(slot.begin() + static_cast<std::ptrdiff_t>(at),
                   slot.begin() + static_cast<std::ptrdiff_t>(at) + 64);
      if (all_zero(slot)) continue;
      store_le<std::uint64_t>(slot.data() + 48, load_le<std::uint64_t>(slot.data() + 48) + 1);
      ltx::Crc64 crc;
      crc.update(ByteView(slot).first(56));
      store_le<std::uint64_t>(slot.data() + 56, crc.value());
      overwrite(at, slot);
    }
  }
  /// A checkpoint of `pages` pages with their checksums known.
  ChecksumsState checkpoint_pages(PageChecksums& checksums, std::uint32_t pages) {
    Checksum database = kEmptyChecksum;
    for (std::uint32_t p = 1; p <= pages; ++p) {
      EXPECT_TRUE(checksums.set(Pgno(p), sum_of(p)).has_value());
      database = ltx::toggle(database, sum_of(p));
    }
    const ChecksumsState state{{Txid(9), database}, 4096, pages};
    EXPECT_TRUE(checksums.checkpoint(state).has_value());
    return state;
  }
  TempDir temp_;
  FaultFileSystem fs_;
};

TEST_F(PageChecksumsTest, NewOnesAreUnknown) {
  const auto checksums = open();
  EXPECT_EQ(checksums->state(), ChecksumsState{});
  EXPECT_EQ(checksums->get(Pgno(1)), Checksum{});
  EXPECT_EQ(checksums->get(Pgno(0xffffffff)), Checksum{});
  EXPECT_EQ(checksums->get(Pgno(0)), Checksum{});
}

TEST_F(PageChecksumsTest, KeepWhatIsSetAlsoWhenTheProcessIsKilled) {
  const ChecksumsState state = checkpoint_pages(*open(), 10);
  {
    const auto checksums = open();
    ASSERT_OK(checksums->set(Pgno(3), sum_of(333)));
    ASSERT_OK(checksums->set(Pgno(500'000), sum_of(5)));
    // No checkpoint, no destructor's help needed: the mapping is the page cache.
  }
  const auto checksums = open();
  EXPECT_EQ(checksums->state(), state);
  EXPECT_EQ(checksums->get(Pgno(2)), sum_of(2));
  EXPECT_EQ(checksums->get(Pgno(3)), sum_of(333));
  EXPECT_EQ(checksums->get(Pgno(500'000)), sum_of(5));
  EXPECT_EQ(checksums->get(Pgno(499'999)), Checksum{});
}

TEST_F(PageChecksumsTest, GrowBeyondTheFirstMappings) {
  const auto checksums = open();
  for (const std::uint32_t p : {1u, 100'000u, 3'000'000u, 9'000'000u})
    ASSERT_OK(checksums->set(Pgno(p), sum_of(p)));
  for (const std::uint32_t p : {1u, 100'000u, 3'000'000u, 9'000'000u})
    EXPECT_EQ(checksums->get(Pgno(p)), sum_of(p));
}

TEST_F(PageChecksumsTest, GetRacesWithGrowingSet) {
  const auto checksums = open();
  ASSERT_OK(checksums->set(Pgno(1), sum_of(1)));
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    for (std::uint32_t p = 1; !stop; p = p % 8'000'000 + 997) {
      const Checksum sum = checksums->get(Pgno(p));
      ASSERT_TRUE(sum == Checksum{} || sum == sum_of(p));
    }
  });
  for (std::uint32_t p = 1; p <= 8'000'000; p += 997) ASSERT_OK(checksums->set(Pgno(p), sum_of(p)));
  stop = true;
  reader.join();
}

TEST_F(PageChecksumsTest, TruncateForgetsExactlyThePagesAbove) {
  const auto checksums = open();
  for (const std::uint32_t keep : {20'000u, 8193u, 8192u, 8191u, 1u, 0u}) {
    for (std::uint32_t p = 1; p <= 30'000; ++p) ASSERT_OK(checksums->set(Pgno(p), sum_of(p)));
    ASSERT_OK(checksums->truncate(keep));
    for (std::uint32_t p = 1; p <= 30'000; ++p)
      ASSERT_EQ(checksums->get(Pgno(p)), p <= keep ? sum_of(p) : Checksum{});
  }
  ASSERT_OK(checksums->truncate(4'000'000'000u));
  ASSERT_OK(checksums->set(Pgno(30'000), sum_of(7)));
  EXPECT_EQ(checksums->get(Pgno(30'000)), sum_of(7));
}

TEST_F(PageChecksumsTest, ResetForgetsEverything) {
  auto checksums = open();
  checkpoint_pages(*checksums, 1000);
  ASSERT_OK(checksums->reset());
  EXPECT_EQ(checksums->state(), ChecksumsState{});
  EXPECT_EQ(checksums->get(Pgno(1)), Checksum{});
  ASSERT_OK(checksums->set(Pgno(1), sum_of(8)));
  EXPECT_EQ(checksums->get(Pgno(1)), sum_of(8));
}

TEST_F(PageChecksumsTest, AnInterruptedResetIsCompleted) {
  {
    const auto checksums = open();
    checkpoint_pages(*checksums, 1000);
    fs_.fail(FileOp::truncate, 1, EIO);
    EXPECT_TRUE(checksums->reset().has_error());
  }
  EXPECT_EQ(open()->get(Pgno(1)), Checksum{});
}

TEST_F(PageChecksumsTest, CheckpointsSyncEntriesBeforeTheState) {
  const auto checksums = open();
  ASSERT_OK(checksums->set(Pgno(1), sum_of(1)));
  const Bytes before = load();
  fs_.fail(FileOp::sync, 1, EIO);
  EXPECT_TRUE(checksums->checkpoint({pos_at(5), 4096, 1}).has_error());
  const Bytes after = load();
  EXPECT_TRUE(std::equal(before.begin(), before.begin() + 4096, after.begin()));  // the state was not touched
  EXPECT_EQ(checksums->state(), ChecksumsState{});
  EXPECT_TRUE(checksums->checkpoint({pos_at(5), 4096, 1}).has_error()) << "a failed sync was tried again into success";
}

TEST_F(PageChecksumsTest, ATornStateLeavesTheOneBefore) {
  const ChecksumsState first{pos_at(5), 4096, 10};
  const ChecksumsState second{pos_at(6), 4096, 11};
  {
    const auto checksums = open();
    ASSERT_OK(checksums->checkpoint(first));
    ASSERT_OK(checksums->checkpoint(second));
  }
  const Bytes whole = load();
  int torn = 0;
  for (const std::uint64_t slot : {0u, 2048u}) {
    for (std::uint64_t at = 0; at < 64; ++at) {
      const std::byte flipped[1] = {whole[static_cast<std::size_t>(slot + at)] ^ std::byte{1}};
      overwrite(slot + at, flipped);
      const ChecksumsState state = open()->state();
      EXPECT_TRUE(state == first || state == second);
      torn += state == first;
      overwrite(0, whole);
    }
  }
  EXPECT_EQ(torn, 64);
}

TEST_F(PageChecksumsTest, AFileThatStaysCutShortIsNotTouchedBehindItsEnd) {
  const auto checksums = open();
  for (const std::uint32_t page : {1u, 20'000u, 100'000u}) ASSERT_OK(checksums->set(Pgno(page), sum_of(page)));
  fs_.fail(FileOp::truncate, 2, EIO);  // shorter, and then not as long as before
  EXPECT_TRUE(checksums->truncate(10).has_error());
  EXPECT_EQ(checksums->get(Pgno(1)), sum_of(1));
  EXPECT_EQ(checksums->get(Pgno(100'000)), Checksum{});
  ASSERT_OK(checksums->set(Pgno(100'000), sum_of(7)));
  EXPECT_EQ(checksums->get(Pgno(100'000)), sum_of(7));
  EXPECT_EQ(checksums->get(Pgno(20'000)), Checksum{});
}

TEST_F(PageChecksumsTest, WithoutAnyHeaderTheyAreCorrupt) {
  open();
  overwrite(0, Bytes(4096, std::byte{0x77}));
  EXPECT_EQ(PageChecksums::open(fs_, path()).error().code, Errc::corrupt);
  std::filesystem::resize_file(path(), 10);
  EXPECT_EQ(PageChecksums::open(fs_, path()).error().code, Errc::corrupt);
}

TEST_F(PageChecksumsTest, AnotherFormatIsUnsupported) {
  open();
  Bytes slot = load();
  slot.resize(64);
  store_le<std::uint32_t>(slot.data() + 8, 2);
  ltx::Crc64 crc;
  crc.update(ByteView(slot).first(56));
  store_le<std::uint64_t>(slot.data() + 56, crc.value());
  overwrite(0, slot);
  EXPECT_EQ(PageChecksums::open(fs_, path()).error().code, Errc::unsupported);
}

TEST_F(PageChecksumsTest, AFullDiskIsAnErrorBeforeAnEntryIsTouched) {
  const auto checksums = open();
  fs_.fail(FileOp::write, 1, ENOSPC, true);
  EXPECT_EQ(checksums->set(Pgno(1), sum_of(1)).error().code, Errc::no_space);
  EXPECT_EQ(checksums->prepare(Pgno(70'000)).error().code, Errc::no_space);
  fs_.heal();
  ASSERT_OK(checksums->prepare(Pgno(70'000)));
  fs_.fail(FileOp::write, 1, ENOSPC, true);
  ASSERT_OK(checksums->set(Pgno(70'000), sum_of(1)));  // there was room already
}

TEST_F(PageChecksumsTest, AfterARestartOfTheMachineACleanCheckpointIsKept) {
  const ChecksumsState state = checkpoint_pages(*open(), 1000);
  restart_machine();
  const auto checksums = open();
  EXPECT_EQ(checksums->state(), state);
  EXPECT_EQ(checksums->get(Pgno(1000)), sum_of(1000));
}

TEST_F(PageChecksumsTest, AfterARestartOfTheMachineEntriesAheadOfTheCheckpointAreNotTrusted) {
  ChecksumsState state;
  {
    const auto checksums = open();
    state = checkpoint_pages(*checksums, 1000);
    // An entry of a change set whose log record the power failure took.
    ASSERT_OK(checksums->set(Pgno(3), sum_of(77)));
  }
  restart_machine();
  for (int round = 0; round < 2; ++round) {
    const auto checksums = open();
    EXPECT_EQ(checksums->state(), state);
    EXPECT_EQ(checksums->get(Pgno(3)), Checksum{});
    EXPECT_EQ(checksums->get(Pgno(4)), Checksum{});
  }
  // What is filled in from now on is of this boot.
  ASSERT_OK(open()->set(Pgno(4), sum_of(4)));
  EXPECT_EQ(open()->get(Pgno(4)), sum_of(4));
}

TEST_F(PageChecksumsTest, AfterARestartOfTheMachineUnknownEntriesCannotBeChecked) {
  {
    const auto checksums = open();
    ChecksumsState state = checkpoint_pages(*checksums, 10);
    ASSERT_OK(checksums->set(Pgno(5), Checksum{}));
    ASSERT_OK(checksums->checkpoint(state));
  }
  restart_machine();
  EXPECT_EQ(open()->get(Pgno(1)), Checksum{});
}

}  // namespace
}  // namespace sluice::storage::test
