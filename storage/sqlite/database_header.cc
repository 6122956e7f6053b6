#include "storage/sqlite/database_header.h"

#include <fmt/format.h>

namespace sluice::sqlite {
namespace {

constexpr std::uint32_t kMinUsableSize = 480;  // lockBtree(): a smaller usable size is not a database

Error bad_header(std::string what) {
  return make_error(Errc::corrupt, "database header: " + std::move(what));
}

}  // namespace

bool looks_like_database(ByteView in) {
  return in.size() >= kMagic.size() && as_text(in.first(kMagic.size())) == kMagic;
}

Result<DatabaseHeader> parse_database_header(ByteView in) {
  if (in.size() < kDatabaseHeaderSize) return bad_header(fmt::format("only {} of 100 bytes", in.size()));
  if (!looks_like_database(in)) return bad_header("does not begin with \"SQLite format 3\"");
  const std::byte* p = in.data();

  DatabaseHeader header;
  const std::uint32_t size_field = load_be<std::uint16_t>(p + 16);
  header.page_size = size_field == 1 ? 65536 : size_field;
  if (!valid_page_size(header.page_size))
    return bad_header(fmt::format("page size {} is impossible", size_field));
  header.write_version = std::to_integer<std::uint8_t>(p[18]);
  header.read_version = std::to_integer<std::uint8_t>(p[19]);
  if (header.write_version > 2 || header.read_version > 2) {
    return bad_header(fmt::format("file format version {}/{} is newer than 2 (rollback journal and WAL)",
                                  header.write_version, header.read_version));
  }
  header.reserved_bytes = std::to_integer<std::uint8_t>(p[20]);
  if (header.page_size - header.reserved_bytes < kMinUsableSize) {
    return bad_header(fmt::format("{} reserved bytes leave too little of a page of {}", header.reserved_bytes,
                                  header.page_size));
  }
  if (p[21] != std::byte{64} || p[22] != std::byte{32} || p[23] != std::byte{32}) {
    return bad_header("payload fractions are not 64, 32, 32");
  }
  header.change_counter = load_be<std::uint32_t>(p + 24);
  header.page_count = load_be<std::uint32_t>(p + 28);
  header.auto_vacuum_root = load_be<std::uint32_t>(p + 52);
  header.version_valid_for = load_be<std::uint32_t>(p + 92);
  header.sqlite_version = load_be<std::uint32_t>(p + 96);
  return header;
}

}  // namespace sluice::sqlite
