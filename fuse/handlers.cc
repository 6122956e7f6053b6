#include "fuse/handlers.h"

#include <cerrno>
#include <exception>

#include "base/log.h"
#include "fuse/lowlevel.h"
#include "fuse/session.h"

namespace sluice::fuse {

/// The boundary that no exception crosses: what is thrown drops the Request, which answers EIO.
struct Handlers {
  template <class Call>
  static void call(fuse_req_t req, Call body) {
    auto* session = static_cast<Session*>(fuse_req_userdata(req));
    try {
      body(session->operations_, Request(req));
    } catch (const std::exception& e) {
      LOG_ERROR("file operation failed: {}", e.what());
    }
  }

  static void init(void*, fuse_conn_info* conn) {
    const unsigned off = FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_SPLICE_READ |
                         FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_WRITEBACK_CACHE |
                         FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS | FUSE_CAP_READDIRPLUS |
                         FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_IOCTL_DIR;
    const unsigned on = FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_READ |
                        FUSE_CAP_ASYNC_DIO | FUSE_CAP_CACHE_SYMLINKS;
    conn->want = (conn->want & ~off) | (conn->capable & on);
    conn->max_write = 1u << 20;
    conn->time_gran = 1;
  }

  static void lookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
    call(req, [&](Operations& ops, Request r) { ops.lookup(std::move(r), NodeId(parent), name); });
  }
  static void forget(fuse_req_t req, fuse_ino_t ino, std::uint64_t lookups) {
    call(req, [&](Operations& ops, Request r) {
      ops.forget(NodeId(ino), lookups);
      r.none();
    });
  }
  static void forget_multi(fuse_req_t req, std::size_t count, fuse_forget_data* forgets) {
    call(req, [&](Operations& ops, Request r) {
      for (std::size_t i = 0; i < count; ++i) ops.forget(NodeId(forgets[i].ino), forgets[i].nlookup);
      r.none();
    });
  }
  static void getattr(fuse_req_t req, fuse_ino_t ino, fuse_file_info*) {
    call(req, [&](Operations& ops, Request r) { ops.getattr(std::move(r), NodeId(ino)); });
  }
  static void setattr(fuse_req_t req, fuse_ino_t ino, struct stat* attr, int to_set, fuse_file_info*) {
    call(req, [&](Operations& ops, Request r) {
      ops.setattr(std::move(r), NodeId(ino), AttrChange{to_set, *attr});
    });
  }
  static void readlink(fuse_req_t req, fuse_ino_t ino) {
    call(req, [&](Operations& ops, Request r) { ops.readlink(std::move(r), NodeId(ino)); });
  }
  static void mknod(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, dev_t) {
    call(req, [&](Operations& ops, Request r) { ops.mknod(std::move(r), NodeId(parent), name, mode); });
  }
  static void mkdir(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode) {
    call(req, [&](Operations& ops, Request r) { ops.mkdir(std::move(r), NodeId(parent), name, mode); });
  }
  static void symlink(fuse_req_t req, const char* target, fuse_ino_t parent, const char* name) {
    call(req, [&](Operations& ops, Request r) { ops.symlink(std::move(r), target, NodeId(parent), name); });
  }
  static void unlink(fuse_req_t req, fuse_ino_t parent, const char* name) {
    call(req, [&](Operations& ops, Request r) { ops.unlink(std::move(r), NodeId(parent), name); });
  }
  static void rmdir(fuse_req_t req, fuse_ino_t parent, const char* name) {
    call(req, [&](Operations& ops, Request r) { ops.rmdir(std::move(r), NodeId(parent), name); });
  }
  static void rename(fuse_req_t req, fuse_ino_t parent, const char* name, fuse_ino_t new_parent,
                     const char* new_name, unsigned flags) {
    call(req, [&](Operations& ops, Request r) {
      ops.rename(std::move(r), NodeId(parent), name, NodeId(new_parent), new_name, flags);
    });
  }
  // A hard link would give a database two names, and two sets of journals.
  static void link(fuse_req_t req, fuse_ino_t, fuse_ino_t, const char*) { fuse_reply_err(req, EPERM); }
  static void create(fuse_req_t req, fuse_ino_t parent, const char* name, mode_t mode, fuse_file_info* fi) {
    call(req, [&](Operations& ops, Request r) { ops.create(std::move(r), NodeId(parent), name, mode, fi->flags); });
  }
  static void open(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi) {
    call(req, [&](Operations& ops, Request r) { ops.open(std::move(r), NodeId(ino), fi->flags); });
  }
  static void release(fuse_req_t req, fuse_ino_t ino, fuse_file_info* fi) {
    call(req, [&](Operations& ops, Request r) { ops.release(std::move(r), NodeId(ino), HandleId(fi->fh)); });
  }
  static void read(fuse_req_t req, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info* fi) {
    call(req, [&](Operations& ops, Request r) {
      ops.read(std::move(r), NodeId(ino), HandleId(fi->fh), size, static_cast<std::uint64_t>(offset));
    });
  }
  static void write(fuse_req_t req, fuse_ino_t ino, const char* data, std::size_t size, off_t offset,
                    fuse_file_info* fi) {
    call(req, [&](Operations& ops, Request r) {
      ops.write(std::move(r), NodeId(ino), HandleId(fi->fh), std::as_bytes(std::span(data, size)),
                static_cast<std::uint64_t>(offset));
    });
  }
  static void fsync(fuse_req_t req, fuse_ino_t ino, int data_only, fuse_file_info* fi) {
    call(req, [&](Operations& ops, Request r) {
      ops.fsync(std::move(r), NodeId(ino), HandleId(fi->fh), data_only != 0);
    });
  }
  static void opendir(fuse_req_t req, fuse_ino_t, fuse_file_info*) { fuse_reply_err(req, ENOSYS); }
  static void readdir(fuse_req_t req, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info*) {
    call(req, [&](Operations& ops, Request r) { ops.readdir(std::move(r), NodeId(ino), size, offset); });
  }
  static void fsyncdir(fuse_req_t req, fuse_ino_t ino, int, fuse_file_info*) {
    call(req, [&](Operations& ops, Request r) { ops.fsyncdir(std::move(r), NodeId(ino)); });
  }
  static void statfs(fuse_req_t req, fuse_ino_t) {
    call(req, [&](Operations& ops, Request r) { ops.statfs(std::move(r)); });
  }

  static fuse_lowlevel_ops table() {
    fuse_lowlevel_ops t{};
    t.init = init;
    t.lookup = lookup;
    t.forget = forget;
    t.forget_multi = forget_multi;
    t.getattr = getattr;
    t.setattr = setattr;
    t.readlink = readlink;
    t.mknod = mknod;
    t.mkdir = mkdir;
    t.symlink = symlink;
    t.unlink = unlink;
    t.rmdir = rmdir;
    t.rename = rename;
    t.link = link;
    t.create = create;
    t.open = open;
    t.release = release;
    t.read = read;
    t.write = write;
    t.fsync = fsync;
    t.opendir = opendir;
    t.readdir = readdir;
    t.fsyncdir = fsyncdir;
    t.statfs = statfs;
    return t;
  }
};

const fuse_lowlevel_ops& lowlevel_operations() {
  static const fuse_lowlevel_ops table = Handlers::table();
  return table;
}

}  // namespace sluice::fuse
