// Pages that somebody compressed before they were asked for.
#pragma once

#include "base/bytes.h"
#include "storage/ids.h"

namespace sluice::storage {

class PackedPages {
 public:
  virtual ~PackedPages() = default;
  /// LZ4 block of the page with this content (ltx::page_checksum), empty if there is none. Valid until the change set is made.
  virtual ByteView find(Pgno pgno, Checksum content) = 0;
};

}  // namespace sluice::storage
