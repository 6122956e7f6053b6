// Shared by the operations_*.cc files.
#pragma once

#include <exception>
#include <memory>
#include <utility>

#include "base/log.h"
#include "fuse/operations.h"

namespace sluice::fuse {

/// Nothing changes beside the mount without an explicit invalidation, so the kernel may remember for a day.
inline constexpr double kLongTimeout_s = 86400;

inline double entry_timeout_s(FileKind kind) { return kind == FileKind::virtual_file ? 0 : kLongTimeout_s; }

/// What CREATE, MKNOD, MKDIR and SYMLINK have in common.
struct Operations::Creation {
  NodeId parent;
  std::string name;
  mode_t mode = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  bool exclusive = false;
  bool write = false;
  takeover::Flight flight{};
};

struct Operations::Removal {
  ino_t ino = 0;
  FileKind kind = FileKind::plain;
  bool happened = false;  ///< before this process took over; only the bookkeeping is left
  takeover::Flight flight{};
};

struct Operations::Renaming {
  NodeId parent;
  std::string name;
  NodeId new_parent;
  std::string new_name;
  unsigned flags = 0;
  bool directory = false;
  ino_t ino = 0;
  std::uint64_t kinds = 0;  ///< for takeover::Flight::before(1)
  bool happened = false;    ///< see Removal
  takeover::Flight flight{};
};

/// What the observer is told when `file`, an open of `node`, is closed or was open before this process.
inline Op op_of_open(const NodeView& node, const OpenFile& file) {
  Op op;
  op.kind = OpKind::open;
  op.file = node.kind;
  op.path = node.names->path;
  op.database = node.names->database;
  op.unlinked = !node.linked;
  op.write_access = file.write_access;
  op.write_only = file.write_only;
  op.own = file.own;
  return op;
}

template <class Body>
void Operations::observe(Request request, const Op& op, Body body) {
  if (p_.observer.can_run_inline(op)) {
    body(request, op);
    return;
  }
  struct Parked {
    Parked(Request r, const Op& o, Body b)
        : request(std::move(r)), body(std::move(b)), path(o.path), database(o.database), new_path(o.new_path),
          data(o.data.begin(), o.data.end()), op(o) {
      op.path = path;
      op.database = database;
      op.new_path = new_path;
      op.data = data;
    }
    Request request;
    Body body;
    std::string path, database, new_path;
    Bytes data;
    Op op;
  };
  auto parked = std::make_shared<Parked>(std::move(request), op, std::move(body));
  post([parked] { parked->body(parked->request, parked->op); });
}

}  // namespace sluice::fuse
