// A change log made and then damaged as the input says: opening it must give an error or a log that works and
// holds a prefix of what was written.
#include <filesystem>

#include "base/check.h"
#include "base/log.h"
#include "storage/change_log_format.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/support/fault_fs.h"
#include "tests/support/temp_dir.h"

using namespace sluice;
using namespace sluice::storage;

namespace {

constexpr std::uint64_t kSegmentSize = 900;

Pos pos_at(std::uint64_t txid) {
  return txid == 0 ? Pos{} : Pos{Txid(txid), Checksum(kEmptyChecksum.value() | txid * 1234567)};
}

RecordInfo info_of(std::uint64_t txid) {
  RecordInfo info;
  info.pre = pos_at(txid - 1);
  info.min_txid = Txid(txid);
  info.post = pos_at(txid);
  info.page_size = 512;
  return info;
}

Result<void> append(ChangeLog& log, std::uint64_t txid, std::size_t size) {
  TRY(log.begin_append());
  TRY(log.append_bytes(Bytes(size, static_cast<std::byte>(txid))));
  return log.finish_append(info_of(txid));
}

/// Returns the last TXID written.
std::uint64_t make_log(FileSystem& fs, const std::string& dir, fuzz::Input& in) {
  auto log = ChangeLog::open(fs, dir, {kSegmentSize});
  CHECK(log.has_value());
  const std::uint64_t records = in.byte() % 16;
  const std::uint64_t base = in.byte() % 4 == 0 ? 5 : 0;
  if (base != 0) CHECK((*log)->append_base(info_of(base)).has_value());
  for (std::uint64_t i = 1; i <= records; ++i) {
    CHECK(append(**log, base + i, in.byte()).has_value());
    if (in.byte() % 4 == 0) CHECK((*log)->sync().has_value());
  }
  return base + records;
}

/// Writes the input's bytes somewhere into a segment, or cuts it, and may make the header that was hit valid
/// again.
void damage(FileSystem& fs, const std::string& path, fuzz::Input& in) {
  const auto file = fs.open(path, {.write = true});
  CHECK(file.has_value());
  const std::uint64_t size = *(*file)->size();
  if (size == 0) return;
  const std::uint8_t how = in.byte();
  const std::uint64_t at = in.word16() % std::min<std::uint64_t>(size, 4096);
  if (how % 4 == 0) {
    CHECK((*file)->truncate(at).has_value());
    return;
  }
  Bytes patch(1 + how / 16);
  for (std::byte& b : patch) b = static_cast<std::byte>(in.byte());
  CHECK((*file)->write_at(at, patch).has_value());
  if (how % 4 != 1) return;
  Bytes head(log_format::kSegmentHeaderSize);
  if ((*file)->read_at(0, head).value() != head.size()) return;
  const std::uint64_t salt = load_le<std::uint64_t>(head.data() + 24);
  const std::uint64_t record = log_format::kSegmentHeaderSize;
  Bytes bytes(log_format::kRecordHeaderSize);
  if ((*file)->read_at(record, bytes).value() != bytes.size()) return;
  // Any fields at all under a checksum that holds.
  log_format::RecordHeader forged;
  forged.info = info_of(1 + in.byte() % 8);
  forged.info.length = in.byte() % 2 == 0 ? in.word32() : (std::uint64_t{in.word32()} << 32 | in.word32());
  forged.info.base = in.byte() % 2 == 0;
  forged.image_crc = load_le<std::uint64_t>(bytes.data() + 104);
  forged.durable_offset = in.word16();
  log_format::write_record_header(forged, salt, record, bytes);
  CHECK((*file)->write_at(record, bytes).has_value());
}

void use(FileSystem& fs, const std::string& dir) {
  auto log = ChangeLog::open(fs, dir, {kSegmentSize});
  if (log.has_error()) {
    CHECK(log.error().code == Errc::corrupt || log.error().code == Errc::unsupported);
    return;
  }
  ChangeLog& l = **log;
  std::uint64_t records = 0;
  const auto visited = l.for_each(Txid(0), [&](const ChangeLog::Handle& handle) {
    ++records;
    CHECK(handle.info.length < (64u << 20));
    return true;
  });
  if (visited.has_error()) CHECK(visited.error().code == Errc::corrupt);
  const std::uint64_t last = l.last() ? l.last()->post.txid.value() : 0;
  for (std::uint64_t txid = 0; txid <= std::min<std::uint64_t>(last + 1, 64); ++txid) {
    const auto found = l.find(Txid(txid));
    if (found.has_error())
      CHECK(found.error().code == Errc::not_found || found.error().code == Errc::corrupt);
    (void)l.position_at(Txid(txid));
  }
  RecordInfo next = info_of(last + 1);
  if (l.last()) next.pre = l.last()->post;
  CHECK(l.begin_append().has_value());
  CHECK(l.finish_append(next).has_value());
  CHECK(l.sync().has_value());
  CHECK(l.find(Txid(last + 1)).has_value());
  CHECK(l.retain({.max_age_ms = 0, .max_bytes = 0}, Txid(last + 1), 1).has_value());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const test::TempDir temp;
  silence_logging();
  const std::string dir = temp.file("log");
  std::filesystem::remove_all(dir);
  fuzz::Input in(data, size);
  test::FaultFileSystem fs;
  make_log(fs, dir, in);
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  while (!in.empty() && !paths.empty()) damage(fs, paths[in.byte() % paths.size()], in);
  use(fs, dir);
  use(fs, dir);
  return 0;
}
