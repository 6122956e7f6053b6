#include "storage/ltx/checksum.h"

#include <isa-l/crc64.h>

#include "base/check.h"

namespace sluice::ltx {
namespace {

// ISA-L inverts on entry and on exit, so 0 starts a sum and a returned value continues it.
std::uint64_t crc64(std::uint64_t crc, ByteView data) {
  return ::crc64_iso_refl(crc, reinterpret_cast<const unsigned char*>(data.data()), data.size());
}

}  // namespace

void Crc64::update(ByteView data) {
  if (!data.empty()) crc_ = crc64(crc_, data);
}

Checksum page_checksum(Pgno pgno, ByteView page) {
  std::byte number[4];
  store_be<std::uint32_t>(number, pgno.value());
  return Checksum(kEmptyChecksum.value() | crc64(crc64(0, number), page));
}

Checksum toggle(Checksum database, Checksum page) {
  CHECK(page != Checksum{});
  return Checksum(kEmptyChecksum.value() | (database.value() ^ page.value()));
}

}  // namespace sluice::ltx
