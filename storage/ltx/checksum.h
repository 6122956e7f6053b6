// LTX checksums: CRC-64/ISO (reflected polynomial 0xD800000000000000, all-ones in and out) by ISA-L.
// Source: LTX specification; check value of "123456789" is b90956c775a41001.
#pragma once

#include "base/bytes.h"
#include "storage/ids.h"

namespace sluice::ltx {

/// Running CRC-64/ISO. Value type; not thread-safe.
class Crc64 {
 public:
  void update(ByteView data);
  std::uint64_t value() const { return crc_; }

 private:
  std::uint64_t crc_ = 0;
};

/// Checksum of one page: bit 63 | CRC-64(big-endian page number ‖ content).
Checksum page_checksum(Pgno pgno, ByteView page);

/// The rolling database checksum with page checksum `page` XORed in or out (the operation is its own inverse); bit 63
/// stays set. `page` == Checksum{} (unknown) is a caller's bug.
Checksum toggle(Checksum database, Checksum page);

}  // namespace sluice::ltx
