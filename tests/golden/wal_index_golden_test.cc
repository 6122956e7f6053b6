// The wal-index against real SQLite: what it wrote is compared with what we build from the same WAL, byte by
// byte, and a SQLite process works on an index that we wrote.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <filesystem>

#include "base/fd.h"
#include "storage/sqlite/wal_index.h"
#include "tests/golden/sqlite_process.h"
#include "tests/golden/wal_support.h"

namespace sluice::test {
namespace {

using namespace sqlite;

struct alignas(4096) Block {
  std::array<std::byte, kWalIndexBlockSize> bytes{};
};

// A copy of a -shm file, or one that we build.
class Index {
 public:
  Index() = default;
  explicit Index(const Bytes& file) {
    EXPECT_EQ(file.size() % kWalIndexBlockSize, 0u);
    blocks_.resize(file.size() / kWalIndexBlockSize);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      std::memcpy(blocks_[i].bytes.data(), file.data() + i * kWalIndexBlockSize, kWalIndexBlockSize);
    }
  }
  std::byte* block(std::uint32_t frame) {
    if (blocks_.size() <= block_of(frame)) blocks_.resize(block_of(frame) + 1);
    return blocks_[block_of(frame)].bytes.data();
  }
  std::byte* data() { return block(1); }
  void append(const ScannedFrame& frame) {
    const auto result = append_frame(block(frame.frame), frame.frame, frame.pgno);
    EXPECT_TRUE(result.has_value());
  }
  std::size_t size() const { return blocks_.size(); }
  Bytes file() const {
    Bytes out;
    for (const Block& b : blocks_) out.insert(out.end(), b.bytes.begin(), b.bytes.end());
    return out;
  }

 private:
  std::vector<Block> blocks_;
};

WalIndexHeader header_for(const ScannedWal& wal, std::uint32_t change) {
  WalIndexHeader header;
  header.change = change;
  header.big_endian_checksums = wal.header.big_endian_checksums;
  header.page_size_code = encode_page_size(wal.header.page_size);
  header.mx_frame = wal.scan.end.frame;
  header.page_count = wal.scan.commit;
  header.frame_checksum = wal.scan.end.checksum;
  header.salts = wal.header.salts;
  return header;
}

Index build(const ScannedWal& wal, std::uint32_t change) {
  Index index;
  for (const auto& frame : wal.frames) index.append(frame);
  publish_header(index.data(), header_for(wal, change));
  store_backfill_attempted(index.data(), wal.scan.end.frame);
  store_read_mark(index.data(), 1, wal.scan.end.frame);
  for (unsigned i = 2; i < 5; ++i) store_read_mark(index.data(), i, kReadMarkNotUsed);
  return index;
}

// Page numbers and hash tables, and the two headers.
void expect_same(Index& ours, Index& theirs, std::uint32_t mx_frame) {
  ASSERT_EQ(ours.size(), theirs.size());
  EXPECT_EQ(std::memcmp(ours.data(), theirs.data(), 96), 0) << "headers";
  for (std::uint32_t b = 0; b <= block_of(mx_frame); ++b) {
    const std::uint32_t first = b == 0 ? 1 : 4062 + (b - 1) * 4096 + 1;
    const std::size_t skip = b == 0 ? kWalIndexHeaderSize : 0;
    EXPECT_EQ(std::memcmp(ours.block(first) + skip, theirs.block(first) + skip, kWalIndexBlockSize - skip), 0)
        << "block " << b;
  }
}

class WalIndexGolden : public testing::Test {
 protected:
  static void write_some(SqliteProcess& db, std::uint32_t page_size, int rows) {
    db.sql("PRAGMA page_size=" + std::to_string(page_size) +
           "; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;");
    db.sql("CREATE TABLE t(a INTEGER PRIMARY KEY, b);");
    db.sql(insert_rows(1, rows, static_cast<int>(page_size)));
    db.sql("UPDATE t SET b=randomblob(100) WHERE a%3=0;");
    db.sql("DELETE FROM t WHERE a%7=0;");
  }

  TempDir dir_;
  const std::string path_ = dir_.path("a.db");
  const std::string copy_ = dir_.path("b.db");
};

struct IndexCase {
  std::uint32_t page_size;
  int rows;
};
class WalIndexSizes : public WalIndexGolden, public testing::WithParamInterface<IndexCase> {};

TEST_P(WalIndexSizes, IndexOfALiveWriter) {
  SqliteProcess db(path_);
  write_some(db, GetParam().page_size, GetParam().rows);
  const ScannedWal wal(read_bytes(path_ + "-wal"));
  Index theirs(read_bytes(path_ + "-shm"));
  WalIndexHeader header;
  ASSERT_EQ(read_header(theirs.data(), header), HeaderState::valid);
  EXPECT_EQ(header.version, kWalIndexVersion);
  EXPECT_EQ(header.page_size(), GetParam().page_size);
  EXPECT_EQ(header.mx_frame, wal.scan.end.frame);
  EXPECT_EQ(header.page_count, wal.scan.commit);
  EXPECT_EQ(header.frame_checksum, wal.scan.end.checksum);
  EXPECT_EQ(header.salts, wal.header.salts);
  EXPECT_EQ(header.big_endian_checksums, 0);
  EXPECT_GT(header.change, 3u);
  for (const auto& frame : wal.frames)
    ASSERT_EQ(frame_page(theirs.block(frame.frame), frame.frame), frame.pgno);
  EXPECT_FALSE(frame_slot_used(theirs.block(header.mx_frame), header.mx_frame + 1) &&
               block_of(header.mx_frame) == block_of(header.mx_frame + 1));
  Index ours = build(wal, header.change);
  expect_same(ours, theirs, header.mx_frame);
}

TEST_P(WalIndexSizes, IndexAfterRecovery) {
  SqliteProcess writer(path_);
  write_some(writer, GetParam().page_size, GetParam().rows);
  copy_files(path_, copy_, {"", "-wal"});
  SqliteProcess db(copy_);
  db.sql("SELECT count(*) FROM t;");
  const ScannedWal wal(read_bytes(copy_ + "-wal"));
  EXPECT_EQ(db.recovered(), wal.scan.end.frame);
  Index theirs(read_bytes(copy_ + "-shm"));
  Index ours = build(wal, 0);
  expect_same(ours, theirs, wal.scan.end.frame);
  const CheckpointInfo got = read_checkpoint_info(theirs.data());
  const CheckpointInfo expected = read_checkpoint_info(ours.data());
  EXPECT_EQ(got.backfilled, expected.backfilled);
  EXPECT_EQ(got.backfill_attempted, expected.backfill_attempted);
  EXPECT_EQ(got.read_marks, expected.read_marks);

  db.sql("PRAGMA wal_checkpoint(PASSIVE);");
  const Index checkpointed(read_bytes(copy_ + "-shm"));
  EXPECT_EQ(load_backfilled(Index(checkpointed).data()), wal.scan.end.frame);
}

// Holds the DMS lock as a participant does, so that SQLite takes the -shm file as it is.
class SharedIndex {
 public:
  explicit SharedIndex(const std::string& path)
      : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    EXPECT_TRUE(static_cast<bool>(fd_));
    lock(F_RDLCK, ShmLock::dms);
  }
  void lock(short type, ShmLock which) {
    struct flock range {};
    range.l_type = type;
    range.l_whence = SEEK_SET;
    range.l_start = static_cast<off_t>(which);
    range.l_len = 1;
    EXPECT_EQ(::fcntl(fd_.get(), F_OFD_SETLK, &range), 0);
  }
  std::byte* map(std::size_t length) {
    void* p = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    EXPECT_NE(p, MAP_FAILED);
    mapping_ = Mapping(p, length);
    return mapping_.data();
  }

 private:
  UniqueFd fd_;
  Mapping mapping_;
};

TEST_P(WalIndexSizes, SQLiteWorksOnTheIndexThatWeWrote) {
  SqliteProcess writer(path_);
  write_some(writer, GetParam().page_size, GetParam().rows);
  const std::string rows = writer.value("SELECT count(*), sum(length(b)) FROM t");
  copy_files(path_, copy_, {""});
  for (const bool big_endian : {false, true}) {
    std::filesystem::remove(copy_ + "-shm");
    const ScannedWal wal(ScannedWal(read_bytes(path_ + "-wal")).reencoded(big_endian));
    write_bytes(copy_ + "-wal", wal.bytes);
    const Index ours = build(wal, 0x5105);
    write_bytes(copy_ + "-shm", ours.file());
    SharedIndex shared(copy_ + "-shm");
    std::byte* live = shared.map(ours.file().size());

    SqliteProcess db(copy_);
    EXPECT_EQ(db.value("PRAGMA integrity_check"), "ok");
    EXPECT_EQ(db.value("SELECT count(*), sum(length(b)) FROM t"), rows);
    WalIndexHeader header;
    ASSERT_EQ(read_header(live, header), HeaderState::valid);
    EXPECT_EQ(header.change, 0x5105u) << "SQLite did not rebuild it";
    EXPECT_EQ(db.recovered(), 0u);

    db.sql("PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES(1000000, 'x');");
    ASSERT_EQ(read_header(live, header), HeaderState::valid);
    EXPECT_EQ(header.change, 0x5106u);
    EXPECT_GT(header.mx_frame, wal.scan.end.frame);
    const ScannedWal more(read_bytes(copy_ + "-wal"));
    EXPECT_EQ(header.mx_frame, more.scan.end.frame) << "SQLite continued our checksum chain";
    EXPECT_EQ(header.frame_checksum, more.scan.end.checksum);
    for (std::uint32_t f = wal.scan.end.frame; f < more.scan.end.frame; ++f) {
      if (block_of(f + 1) < ours.size()) {
        EXPECT_EQ(frame_page(live + block_of(f + 1) * kWalIndexBlockSize, f + 1), more.frames[f].pgno);
      }
    }
    db.kill();
  }
}

INSTANTIATE_TEST_SUITE_P(All, WalIndexSizes,
                         testing::Values(IndexCase{512, 40}, IndexCase{1024, 3000}, IndexCase{4096, 30},
                                         IndexCase{512, 9000}, IndexCase{65536, 20}),
                         [](const auto& p) {
                           return std::to_string(p.param.page_size) + "x" + std::to_string(p.param.rows);
                         });

// The index vouches for frames that the chain does not: bytes 8...23 zero, as SQLite 3.40 leaves them after a
// savepoint's rollback over spilled pages.
TEST_F(WalIndexGolden, ZeroSaltFramesCountUnderALiveIndex) {
  SqliteProcess writer(path_);
  write_some(writer, 1024, 50);
  const std::string rows = writer.value("SELECT count(*), sum(length(b)) FROM t");
  copy_files(path_, copy_, {""});
  const ScannedWal wal(read_bytes(path_ + "-wal"));
  Bytes zeroed = wal.bytes;
  const std::uint32_t frame = wal.scan.end.frame / 2;
  std::memset(&zeroed[frame_offset(1024, frame) + 8], 0, 16);
  EXPECT_LT(scan_bytes(zeroed).frame, frame);
  EXPECT_TRUE(parse_frame_header(ByteView(zeroed).subspan(frame_offset(1024, frame))).zero_salt);
  write_bytes(copy_ + "-wal", zeroed);
  write_bytes(copy_ + "-shm", build(wal, 1).file());
  SharedIndex shared(copy_ + "-shm");
  SqliteProcess db(copy_);
  EXPECT_EQ(db.value("SELECT count(*), sum(length(b)) FROM t"), rows);
}

// A replica's apply in small: frames of one database's WAL appended to a copy's, beside a SQLite process that
// reads it.
TEST_F(WalIndexGolden, CommitsThatWePublishAreSeenByAReader) {
  SqliteProcess writer(path_);
  write_some(writer, 1024, 50);
  copy_files(path_, copy_, {"", "-wal"});
  SqliteProcess reader(copy_);
  const auto query = "SELECT count(*), max(a), sum(length(b)) FROM t";
  EXPECT_EQ(reader.value(query), writer.value(query));

  SharedIndex shared(copy_ + "-shm");
  std::byte* live = shared.map(kWalIndexBlockSize);
  UniqueFd wal_file(::open((copy_ + "-wal").c_str(), O_RDWR | O_CLOEXEC));
  std::uint32_t applied = ScannedWal(read_bytes(path_ + "-wal")).scan.end.frame;
  for (int i = 0; i < 5; ++i) {
    writer.sql(insert_rows(3000 + 100 * i, 10, 300));
    const ScannedWal source(read_bytes(path_ + "-wal"));
    shared.lock(F_WRLCK, ShmLock::write);
    WalIndexHeader header;
    ASSERT_EQ(read_header(live, header), HeaderState::valid);
    ASSERT_EQ(header.mx_frame, applied);
    WalChecksum sum = header.frame_checksum;
    for (; applied < source.scan.end.frame; ++applied) {
      const ScannedFrame& frame = source.frames[applied];
      std::array<std::byte, kWalFrameHeaderSize> head{};
      sum = write_frame_header(frame.pgno, frame.commit, source.header, source.page(frame), sum, head);
      const auto offset = static_cast<off_t>(frame_offset(1024, frame.frame));
      ASSERT_EQ(::pwrite(wal_file.get(), head.data(), head.size(), offset), 24);
      ASSERT_EQ(::pwrite(wal_file.get(), source.page(frame).data(), 1024, offset + 24), 1024);
      ASSERT_TRUE(append_frame(live, frame.frame, frame.pgno).has_value());
    }
    header.change++;
    header.mx_frame = applied;
    header.page_count = source.scan.commit;
    header.frame_checksum = sum;
    publish_header(live, header);
    shared.lock(F_UNLCK, ShmLock::write);
    EXPECT_EQ(reader.value(query), writer.value(query)) << i;
    EXPECT_EQ(reader.value("PRAGMA integrity_check"), "ok");
  }
  const std::string expected = writer.value(query);
  reader.sql("INSERT INTO t VALUES(999999, 'written by the reader after us');");
  reader.kill();
  std::filesystem::remove(copy_ + "-shm");
  SqliteProcess again(copy_);
  EXPECT_EQ(again.value("PRAGMA integrity_check"), "ok");
  EXPECT_GT(again.recovered(), applied);
  EXPECT_EQ(again.value("SELECT count(*)-1 FROM t"), expected.substr(0, expected.find('|')));
}

TEST_F(WalIndexGolden, LeftoversOfAKilledWriterAreRemovedAsSQLiteDoes) {
  SqliteProcess keeper(path_);
  write_some(keeper, 1024, 60);
  {
    SqliteProcess killed(path_);
    killed.sql("PRAGMA cache_size=3; BEGIN; UPDATE t SET b=randomblob(1500);");
    killed.kill();
  }
  const ScannedWal before(read_bytes(path_ + "-wal"));
  Index ours(read_bytes(path_ + "-shm"));
  const std::uint32_t mx_frame = before.scan.end.frame;
  WalIndexHeader header;
  ASSERT_EQ(read_header(ours.data(), header), HeaderState::valid);
  EXPECT_EQ(header.mx_frame, mx_frame);
  ASSERT_TRUE(frame_slot_used(ours.block(mx_frame + 1), mx_frame + 1)) << "the killed writer had spilled";

  keeper.sql("INSERT INTO t VALUES(5000, 'y');");
  const ScannedWal after(read_bytes(path_ + "-wal"));
  ASSERT_GT(after.scan.end.frame, mx_frame);
  Index theirs(read_bytes(path_ + "-shm"));
  remove_frames_above(ours.block(mx_frame), mx_frame);
  for (std::uint32_t f = mx_frame; f < after.scan.end.frame; ++f) ours.append(after.frames[f]);
  publish_header(ours.data(), header_for(after, header.change + 1));
  expect_same(ours, theirs, after.scan.end.frame);
}

}  // namespace
}  // namespace sluice::test
