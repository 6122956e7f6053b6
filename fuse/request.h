// One FUSE request that must be answered exactly once, from whichever thread.
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <cstdint>
#include <string>
#include <utility>

#include "base/bytes.h"
#include "fuse/inode_table.h"
#include "fuse/takeover/in_flight.h"

struct fuse_req;

namespace sluice::fuse {

/// What LOOKUP, MKDIR, CREATE… answer.
struct EntryReply {
  NodeId node;
  struct stat attr {};
  double entry_timeout_s = 0;
  double attr_timeout_s = 0;
};

struct OpenReply {
  std::uint64_t handle = 0;
  std::uint32_t flags = 0;  ///< protocol::kOpen…
  int backing_id = 0;
};

/// Made on the thread that read the request. Movable. A request that is dropped unanswered is answered with EIO. The answering calls return false when the kernel
/// no longer wants the answer (the connection was aborted): what the answer handed out must then be taken back.
class Request {
 public:
  explicit Request(fuse_req* req) : req_(req), flight_(std::exchange(takeover::current_flight(), {})) {}
  ~Request();
  Request(Request&& other) noexcept
      : req_(std::exchange(other.req_, nullptr)), flight_(std::exchange(other.flight_, {})) {}
  Request& operator=(Request&&) = delete;

  /// The caller's thread id, as the mount's pid namespace has it, and its credentials.
  pid_t thread_id() const;
  uid_t uid() const;
  gid_t gid() const;

  /// What is remembered of it should this process die.
  const takeover::Flight& flight() const { return flight_; }

  /// errno; 0 for a success without a body.
  bool error(int err);
  bool entry(const EntryReply& reply);
  /// "No such name", which the kernel may remember for `timeout_s`.
  bool no_entry(double timeout_s);
  bool attr(const struct stat& st, double timeout_s);
  bool open(const OpenReply& reply);
  bool create(const EntryReply& entry, const OpenReply& open);
  bool data(ByteView bytes);
  bool written(std::size_t bytes);
  bool link(const std::string& target);
  bool statfs(const struct statvfs& st);
  /// For FORGET, which has no answer.
  void none();

 private:
  fuse_req* take() { return std::exchange(req_, nullptr); }
  bool answered(int rc) {
    flight_.finish();
    return rc == 0;
  }
  fuse_req* req_;
  takeover::Flight flight_;
};

}  // namespace sluice::fuse
