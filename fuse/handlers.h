// libfuse's callbacks: each turns its arguments into ours and hands the request to Operations.
#pragma once

struct fuse_lowlevel_ops;

namespace sluice::fuse {

/// Expects the Session as the fuse_session's user data. Requests that are not in it (locks, xattr, access, flush,
/// fallocate …) are answered ENOSYS by libfuse, and the kernel stops sending them or acts itself: POSIX and flock locks
/// stay in the kernel, where SQLite's locks meet ours.
const fuse_lowlevel_ops& lowlevel_operations();

}  // namespace sluice::fuse
