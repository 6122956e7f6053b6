// How -wal and -shm are served (DESIGN §2; decisions/0006).
#pragma once

namespace sluice::fuse {

enum class IoPath {
  native,     ///< FUSE passthrough: their reads, writes and mappings go to the backing files without a request
  plain,      ///< files like any other, in the mount's page cache
  automatic,  ///< native where kernel and rights allow it, else plain
};

}  // namespace sluice::fuse
