// Any bytes as the side file's header: opening must give an error or something that works.
#include "storage/page_checksums.h"

#include <filesystem>

#include "base/check.h"
#include "base/log.h"
#include "storage/ltx/checksum.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/support/fault_fs.h"
#include "tests/support/temp_dir.h"

using namespace sluice;
using namespace sluice::storage;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const test::TempDir temp;
  silence_logging();
  const std::string path = temp.file("sums");
  fuzz::Input in(data, size);
  const bool valid_sum = in.byte() % 2 == 0;
  Bytes bytes(in.rest().begin(), in.rest().end());
  if (valid_sum && bytes.size() >= 64) {
    ltx::Crc64 crc;
    crc.update(ByteView(bytes).first(56));
    store_le<std::uint64_t>(bytes.data() + 56, crc.value());
  }
  test::FaultFileSystem fs;
  {
    const auto file = fs.open(path, {.write = true, .create = true});
    CHECK(file.has_value());
    CHECK((*file)->truncate(0).has_value());
    CHECK((*file)->write_at(0, bytes).has_value());
  }
  auto sums = PageChecksums::open(fs, path);
  if (sums.has_error()) {
    CHECK(sums.error().code == Errc::corrupt || sums.error().code == Errc::unsupported);
    return 0;
  }
  CHECK((*sums)->set(Pgno(7), Checksum(9)).has_value());
  CHECK((*sums)->get(Pgno(7)) == Checksum(9));
  CHECK((*sums)->truncate(6).has_value());
  CHECK((*sums)->get(Pgno(7)) == Checksum{});
  CHECK((*sums)->checkpoint({{Txid(1), kEmptyChecksum}, 512, 6}).has_value());
  sums = PageChecksums::open(fs, path);
  CHECK(sums.has_value() && (*sums)->state().page_count == 6);
  return 0;
}
