// Fuzzes parse_database_header: what it accepts has possible values.
#include "base/check.h"
#include "storage/sqlite/database_header.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace sluice;
  using namespace sluice::sqlite;
  const ByteView in(reinterpret_cast<const std::byte*>(data), size);
  const bool looks = looks_like_database(in);
  const auto header = parse_database_header(in);
  if (header.has_error()) {
    CHECK(header.error().code == Errc::corrupt && !header.error().message.empty());
    return 0;
  }
  CHECK(looks && valid_page_size(header->page_size));
  CHECK(header->write_version <= 2 && header->read_version <= 2);
  CHECK(header->page_size - header->reserved_bytes >= 480);
  CHECK(header->count_valid() || header->pages(size) == size / header->page_size);
  return 0;
}
