#include <fcntl.h>
#include <linux/fs.h>

#include "fuse/files/kind.h"
#include "fuse/lowlevel.h"
#include "fuse/operations_internal.h"

// Names and attributes: LOOKUP, FORGET, GETATTR, SETATTR, MKNOD, MKDIR, SYMLINK, READLINK, UNLINK, RMDIR, RENAME.
namespace sluice::fuse {

void Operations::lookup(Request request, NodeId parent, const char* name) {
  EntryReply reply;
  const int err = find_entry(parent, name, reply);
  if (err == ENOENT)
    request.no_entry(reply.entry_timeout_s);
  else if (err != 0)
    request.error(err);
  else if (!request.entry(reply))
    p_.nodes.forget(reply.node, 1);
}

void Operations::forget(NodeId node, std::uint64_t lookups) { p_.nodes.forget(node, lookups); }

/// Virtual files change all the time; what clients do to -wal and -shm the kernel sees, also past us.
double Operations::attr_timeout_s(FileKind kind) const {
  const bool side_file = kind == FileKind::wal || kind == FileKind::shm;
  const bool changes = kind == FileKind::virtual_file || (side_file && p_.observer.changes_side_files());
  return changes ? 0 : kLongTimeout_s;
}

int Operations::stat_node(NodeId id, struct stat& st, FileKind& kind) {
  const TreeShared tree(tree_mutex_);
  const auto node = p_.nodes.find(id);
  if (!node) return ESTALE;
  kind = node->kind;
  const std::string& path = node->names->path;
  if (kind == FileKind::virtual_file) return virtual_attr(p_.virtual_files, *virtual_kind(path), path, st);
  if (node->file) return ::fstat(node->file->fd.get(), &st) == 0 ? 0 : errno;
  if (!node->linked) return ESTALE;
  const int err = p_.tree.stat(path, st);
  if (err != 0) return err == ENOENT ? ESTALE : err;
  return st.st_ino == node->backing_ino ? 0 : ESTALE;
}

void Operations::getattr(Request request, NodeId node) {
  struct stat st {};
  FileKind kind{};
  const int err = stat_node(node, st, kind);
  if (err != 0)
    request.error(err);
  else
    request.attr(st, attr_timeout_s(kind));
}

int Operations::truncate_node(NodeId id, std::uint64_t size) {
  auto node = p_.nodes.find(id);
  if (!node) return ESTALE;
  std::shared_ptr<const BackingFile> file = node->file;
  if (!file || !file->writable) {
    const TreeShared tree(tree_mutex_);
    node = p_.nodes.find(id);
    if (!node || !node->linked) return ESTALE;
    FileKind kind{};
    if (const int err = open_backing(*node, true, file, kind); err != 0) return err;
  }
  return ::ftruncate(file->fd.get(), static_cast<off_t>(size)) == 0 ? 0 : errno;
}

int Operations::apply_attr(NodeId id, const AttrChange& change) {
  struct stat st {};
  FileKind kind{};
  if (const int err = stat_node(id, st, kind); err != 0) return err;
  const TreeShared tree(tree_mutex_);
  const auto node = p_.nodes.find(id);
  if (!node) return ESTALE;
  const bool by_fd = node->file != nullptr;
  if (!by_fd && !node->linked) return ESTALE;
  const int fd = by_fd ? node->file->fd.get() : -1;
  const std::string& path = node->names->path;
  if ((change.what & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) != 0) {
    const uid_t uid = (change.what & FUSE_SET_ATTR_UID) != 0 ? change.attr.st_uid : static_cast<uid_t>(-1);
    const gid_t gid = (change.what & FUSE_SET_ATTR_GID) != 0 ? change.attr.st_gid : static_cast<gid_t>(-1);
    const int err = by_fd ? (::fchown(fd, uid, gid) == 0 ? 0 : errno) : p_.tree.chown(path, uid, gid);
    if (err != 0) return err;
  }
  if ((change.what & FUSE_SET_ATTR_MODE) != 0) {
    const mode_t mode = change.attr.st_mode & 07777;
    const int err = by_fd ? (::fchmod(fd, mode) == 0 ? 0 : errno) : p_.tree.chmod(path, mode);
    if (err != 0) return err;
  }
  constexpr int kTimes = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME;
  if ((change.what & kTimes) != 0) {
    timespec times[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
    if ((change.what & FUSE_SET_ATTR_ATIME_NOW) != 0)
      times[0].tv_nsec = UTIME_NOW;
    else if ((change.what & FUSE_SET_ATTR_ATIME) != 0)
      times[0] = change.attr.st_atim;
    if ((change.what & FUSE_SET_ATTR_MTIME_NOW) != 0)
      times[1].tv_nsec = UTIME_NOW;
    else if ((change.what & FUSE_SET_ATTR_MTIME) != 0)
      times[1] = change.attr.st_mtim;
    return by_fd ? (::futimens(fd, times) == 0 ? 0 : errno) : p_.tree.set_times(path, times);
  }
  return 0;
}

void Operations::finish_setattr(Request& request, NodeId node, const AttrChange& change) {
  int err = apply_attr(node, change);
  struct stat st {};
  FileKind kind{};
  if (err == 0) err = stat_node(node, st, kind);
  if (err != 0)
    request.error(err);
  else
    request.attr(st, attr_timeout_s(kind));
}

void Operations::setattr(Request request, NodeId id, const AttrChange& change) {
  const auto node = p_.nodes.find(id);
  if (!node) {
    request.error(ESTALE);
    return;
  }
  if (node->kind == FileKind::virtual_file) {
    request.error(EACCES);
    return;
  }
  if ((change.what & FUSE_SET_ATTR_SIZE) == 0) {
    finish_setattr(request, id, change);
    return;
  }
  const auto size = static_cast<std::uint64_t>(change.attr.st_size);
  if (!is_observed(node->kind)) {
    if (const int err = truncate_node(id, size); err != 0)
      request.error(err);
    else
      finish_setattr(request, id, change);
    return;
  }
  Op op;
  op.kind = OpKind::truncate;
  op.file = node->kind;
  op.path = node->names->path;
  op.database = node->names->database;
  op.unlinked = !node->linked;
  op.size = size;
  op.own = p_.own_threads.contains(request.thread_id());
  observe(std::move(request), op, [this, id, change](Request& r, const Op& o) {
    const int err = p_.observer.run(o, [&] { return truncate_node(id, o.size); });
    if (err != 0)
      r.error(err);
    else
      finish_setattr(r, id, change);
  });
}

void Operations::readlink(Request request, NodeId id) {
  std::string target;
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    const auto node = p_.nodes.find(id);
    if (node && node->linked) err = p_.tree.read_symlink(node->names->path, target);
  }
  if (err != 0)
    request.error(err);
  else
    request.link(target);
}

void Operations::mkdir(Request request, NodeId parent, const char* name, mode_t mode) {
  const Creation creation{parent, name, mode, request.uid(), request.gid(), true, false};
  EntryReply reply;
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    if (const auto path = p_.nodes.child_path(parent, name)) {
      struct stat st {};
      err = p_.tree.make_directory(*path, mode & 07777);
      if (err == 0) err = p_.tree.stat(*path, st);
      if (err == 0) err = take_ownership(creation, *path, st);
      if (err == 0) err = enter(parent, name, *path, st, true, reply);
    }
  }
  if (err != 0)
    request.error(err);
  else if (!request.entry(reply))
    p_.nodes.forget(reply.node, 1);
}

void Operations::symlink(Request request, const char* target, NodeId parent, const char* name) {
  const Creation creation{parent, name, 0777, request.uid(), request.gid(), true, false};
  EntryReply reply;
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    if (const auto path = p_.nodes.child_path(parent, name)) {
      struct stat st {};
      err = p_.tree.make_symlink(target, *path);
      if (err == 0) err = p_.tree.stat(*path, st);
      if (err == 0) err = take_ownership(creation, *path, st);
      if (err == 0) err = enter(parent, name, *path, st, true, reply);
    }
  }
  if (err != 0)
    request.error(err);
  else if (!request.entry(reply))
    p_.nodes.forget(reply.node, 1);
}

void Operations::unlink(Request request, NodeId parent, const char* name) {
  std::string path;
  FileKind kind = FileKind::plain;
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    if (const auto found = p_.nodes.child_path(parent, name)) {
      path = *found;
      struct stat st {};
      err = p_.tree.stat(path, st);
      if (err == 0)
        kind = kind_of_child(parent, name, path, st);
      else if (err == ENOENT && is_virtual(parent, name, path))
        err = EACCES;
    }
  }
  if (err != 0) {
    request.error(err);
    return;
  }
  auto perform = [this, parent, copy = std::string(name)] {
    const TreeShared tree(tree_mutex_);
    const auto current = p_.nodes.child_path(parent, copy);
    if (!current) return ESTALE;
    const int rc = p_.tree.unlink(*current);
    if (rc == 0 || rc == ENOENT) p_.nodes.removed(parent, copy);
    return rc;
  };
  if (!is_observed(kind)) {
    request.error(perform());
    return;
  }
  Op op;
  op.kind = OpKind::unlink;
  op.file = kind;
  op.path = path;
  op.database = database_of(kind, path);
  op.own = p_.own_threads.contains(request.thread_id());
  observe(std::move(request), op, [this, parent, kind, perform](Request& r, const Op& o) {
    const int rc = p_.observer.run(o, perform);
    if (rc == 0 && kind == FileKind::database) p_.invalidator.post(parent);  // X-pos goes with it
    r.error(rc);
  });
}

void Operations::rmdir(Request request, NodeId parent, const char* name) {
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    if (const auto path = p_.nodes.child_path(parent, name)) {
      err = p_.tree.remove_directory(*path);
      if (err == 0) p_.nodes.removed(parent, name);
    }
  }
  request.error(err);
}

int Operations::rename_now(NodeId parent, const std::string& name, NodeId new_parent, const std::string& new_name,
                           unsigned flags, bool directory) {
  std::unique_lock<std::shared_mutex> exclusive(tree_mutex_, std::defer_lock);
  TreeShared shared(tree_mutex_, std::defer_lock);
  if (directory)
    exclusive.lock();
  else
    shared.lock();
  const auto from = p_.nodes.child_path(parent, name);
  const auto to = p_.nodes.child_path(new_parent, new_name);
  if (!from || !to) return ESTALE;
  if (const int err = p_.tree.rename(*from, *to, flags); err != 0) return err;
  p_.nodes.moved(parent, name, new_parent, new_name);
  if (directory) return 0;
  // A side file is one by its name; a database keeps being one.
  const auto node = p_.nodes.child(new_parent, new_name);
  struct stat st {};
  if (node && node->kind != FileKind::directory && p_.tree.stat(*to, st) == 0) {
    const FileKind kind = classify(*to, st);
    if (kind != node->kind && (kind != FileKind::plain || node->kind != FileKind::database))
      p_.nodes.set_kind(node->id, kind);
    promote_base(new_parent, new_name, *to);
  }
  return 0;
}

void Operations::rename(Request request, NodeId parent, const char* name, NodeId new_parent, const char* new_name,
                        unsigned flags) {
  if ((flags & ~static_cast<unsigned>(RENAME_NOREPLACE)) != 0) {
    request.error(EINVAL);
    return;
  }
  Op op;
  op.kind = OpKind::rename;
  std::string path;
  std::string new_path;
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    const auto from = p_.nodes.child_path(parent, name);
    const auto to = p_.nodes.child_path(new_parent, new_name);
    if (from && to) {
      path = *from;
      new_path = *to;
      struct stat st {};
      err = p_.tree.stat(path, st);
      if (err == 0) {
        op.file = kind_of_child(parent, name, path, st);
        op.replaces = p_.tree.stat(new_path, st) == 0;
        if (op.replaces)
          op.replaced_kind = kind_of_child(new_parent, new_name, new_path, st);
        else if (is_virtual(new_parent, new_name, new_path))
          err = EACCES;
      } else if (err == ENOENT && is_virtual(parent, name, path)) {
        err = EACCES;
      }
    }
  }
  if (err != 0) {
    request.error(err);
    return;
  }
  const bool directory = op.file == FileKind::directory;
  auto perform = [this, parent, from = std::string(name), new_parent, to = std::string(new_name), flags, directory] {
    return rename_now(parent, from, new_parent, to, flags, directory);
  };
  const bool observed = directory || is_observed(op.file) ||
                        (op.replaces && (is_observed(op.replaced_kind) || op.replaced_kind == FileKind::directory));
  if (!observed) {
    request.error(perform());
    return;
  }
  op.path = path;
  op.database = database_of(op.file, path);
  op.new_path = new_path;
  op.own = p_.own_threads.contains(request.thread_id());
  observe(std::move(request), op, [this, parent, new_parent, perform](Request& r, const Op& o) {
    const int rc = p_.observer.run(o, perform);
    if (rc == 0 && (o.file == FileKind::database || o.replaced_kind == FileKind::database)) {
      p_.invalidator.post(parent);
      p_.invalidator.post(new_parent);
    }
    r.error(rc);
  });
}

}  // namespace sluice::fuse
