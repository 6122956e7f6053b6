// Mounting and unmounting without CAP_SYS_ADMIN: through fusermount3, which is set-user-ID root (package fuse3).
#pragma once

#include <string>

#include "base/errors.h"
#include "base/fd.h"

namespace sluice::fuse {

/// Has fusermount3 mount at `path`; the returned descriptor is the connection. Errc::unsupported: there is no fusermount3, or
/// it refuses (its message says why); Errc::invalid_argument: `allow_other`, and /etc/fuse.conf does not permit it.
Result<UniqueFd> fusermount(const std::string& path, bool allow_other);

/// Errc::busy while files are open (not with `detach`).
Result<void> fuserunmount(const std::string& path, bool detach);

/// Does the text of a fuse.conf let users mount with allow_other?
bool permits_allow_other(const std::string& fuse_conf);

}  // namespace sluice::fuse
