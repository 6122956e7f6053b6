#include <fcntl.h>
#include <linux/fs.h>

#include "fuse/files/kind.h"
#include "fuse/lowlevel.h"
#include "fuse/operations_internal.h"

// Names and attributes: LOOKUP, FORGET, GETATTR, SETATTR, MKNOD, MKDIR, SYMLINK, READLINK, UNLINK, RMDIR, RENAME.
namespace sluice::fuse {

void Operations::lookup(Request request, NodeId parent, const char* name) {
  if (answer_entry_again(request)) return;
  EntryReply reply;
  const int err = find_entry(parent, name, reply);
  if (err == ENOENT)
    request.no_entry(reply.entry_timeout_s);
  else if (err != 0)
    request.error(err);
  else
    answer_entry(request, reply);
}

/// Counted already: a process that takes over must not count it again.
void Operations::answer_entry(Request& request, const EntryReply& reply) {
  request.flight().done(0, reply.node.value());
  if (!request.entry(reply)) p_.nodes.forget(reply.node, 1);
}

void Operations::forget(NodeId node, std::uint64_t lookups) { p_.nodes.forget(node, lookups); }

/// Virtual files change all the time; what clients do to -wal and -shm the kernel sees, also past us.
double Operations::attr_timeout_s(FileKind kind) const {
  const bool side_file = kind == FileKind::wal || kind == FileKind::shm;
  const bool changes = kind == FileKind::virtual_file || (side_file && p_.observer.changes_side_files());
  return changes ? 0 : kLongTimeout_s;
}

int Operations::stat_node(NodeId id, struct stat& st, FileKind& kind) {
  find_node(id);  // reopens it if need be; not under the lock
  const TreeShared tree(tree_mutex_);
  const auto node = p_.nodes.find(id);
  if (!node) return ESTALE;
  kind = node->kind;
  const std::string& path = node->names->path;
  if (kind == FileKind::virtual_file) return virtual_attr(p_.virtual_files, *virtual_kind(path), path, st);
  if (node->file) {
    if (::fstat(node->file->fd.get(), &st) != 0) return errno;
    if (node->hidden && !node->linked) st.st_nlink = 0;  // what it has is no name for others
    return 0;
  }
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
  auto node = find_node(id);
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
  const Creation creation{parent, name, mode, request.uid(), request.gid(), true, false, request.flight()};
  make_entry(request, creation, [&](const std::string& path) { return p_.tree.make_directory(path, mode & 07777); });
}

void Operations::make_entry(Request& request, const Creation& creation, FunctionRef<int(const std::string&)> make) {
  if (answer_entry_again(request)) return;
  const takeover::Flight& flight = creation.flight;
  EntryReply reply;
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    if (const auto path = p_.nodes.child_path(creation.parent, creation.name)) {
      struct stat st {};
      const bool existed = existed_before(flight, *path);
      flight.begin(existed ? 1 : 0);
      err = make(*path);
      const bool made_before = err == EEXIST && flight.begun_before() && !existed;
      if (made_before) err = 0;
      if (err == 0) err = p_.tree.stat(*path, st);
      if (err == 0) err = take_ownership(creation, *path, st);
      if (err == 0) err = enter(creation.parent, creation.name, *path, st, !made_before, reply);
    }
  }
  if (err != 0)
    request.error(err);
  else
    answer_entry(request, reply);
}

void Operations::symlink(Request request, const char* target, NodeId parent, const char* name) {
  const Creation creation{parent, name, 0777, request.uid(), request.gid(), true, false, request.flight()};
  make_entry(request, creation, [&](const std::string& path) { return p_.tree.make_symlink(target, path); });
}

/// With takeover a file that is open keeps a hidden name.
int Operations::unlink_now(NodeId parent, const std::string& name, const Removal& removal) {
  const TreeShared tree(tree_mutex_);
  const auto path = p_.nodes.child_path(parent, name);
  if (!path) return ESTALE;
  const auto node = p_.nodes.child(parent, name);
  if (removal.happened) {
    if (!removal.flight.done_before() && node && node->backing_ino == removal.ino) p_.nodes.removed(parent, name);
    removal.flight.done(0);
    return 0;
  }
  removal.flight.begin(removal.ino, static_cast<std::uint64_t>(removal.kind));
  const bool hide = p_.hidden != nullptr && node && node->opens > 0;
  const int rc = hide ? p_.hidden->put_aside(p_.tree, *path, node->id) : p_.tree.unlink(*path);
  if (hide && rc == 0) p_.nodes.set_hidden(node->id);
  if (rc == 0 || rc == ENOENT) p_.nodes.removed(parent, name);
  removal.flight.done(rc);
  return rc;
}

void Operations::unlink(Request request, NodeId parent, const char* name) {
  Removal removal;
  removal.flight = request.flight();
  std::string path;
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    if (const auto found = p_.nodes.child_path(parent, name)) {
      path = *found;
      struct stat st {};
      err = p_.tree.stat(path, st);
      removal.happened = removed_before(removal.flight, path);
      if (removal.happened) {
        err = removal.flight.result();
        removal.ino = removal.flight.before(0);
        removal.kind = static_cast<FileKind>(removal.flight.before(1));
      } else if (err == 0) {
        removal.ino = st.st_ino;
        removal.kind = kind_of_child(parent, name, path, st);
      } else if (err == ENOENT && is_virtual(parent, name, path)) {
        err = EACCES;
      }
    }
  }
  if (err != 0) {
    request.error(err);
    return;
  }
  const FileKind kind = removal.kind;
  auto perform = [this, parent, copy = std::string(name), removal] {
    const auto node = p_.hidden != nullptr ? p_.nodes.child(parent, copy) : std::nullopt;
    if (!node) return unlink_now(parent, copy, removal);
    MutexLock lock(p_.nodes.open_mutex(node->id));  // nobody opens it between the look and the removal
    return unlink_now(parent, copy, removal);
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
      const takeover::Flight& flight = request.flight();
      struct stat st {};
      if (removed_before(flight, *path)) {
        err = flight.result();
      } else if (err = p_.tree.stat(*path, st); err == 0) {
        flight.begin(st.st_ino);
        err = p_.tree.remove_directory(*path);
      }
      if (err == 0 && !flight.done_before()) p_.nodes.removed(parent, name);
      flight.done(err);
    }
  }
  request.error(err);
}

// A side file is one by its name; a database keeps being one.
void Operations::renamed(const Renaming& r, const std::string& to) {
  const auto node = p_.nodes.child(r.new_parent, r.new_name);
  struct stat st {};
  if (!node || node->kind == FileKind::directory || p_.tree.stat(to, st) != 0) return;
  const FileKind kind = classify(to, st);
  if (kind != node->kind && (kind != FileKind::plain || node->kind != FileKind::database))
    p_.nodes.set_kind(node->id, kind);
  promote_base(r.new_parent, r.new_name, to);
}

int Operations::rename_now(const Renaming& r) {
  std::unique_lock<std::shared_mutex> exclusive(tree_mutex_, std::defer_lock);
  TreeShared shared(tree_mutex_, std::defer_lock);
  if (r.directory)
    exclusive.lock();
  else
    shared.lock();
  const auto from = p_.nodes.child_path(r.parent, r.name);
  const auto to = p_.nodes.child_path(r.new_parent, r.new_name);
  if (!from || !to) return ESTALE;
  const auto source = p_.nodes.child(r.parent, r.name);
  if (r.happened) {
    if (!r.flight.done_before() && source && source->backing_ino == r.ino)
      p_.nodes.moved(r.parent, r.name, r.new_parent, r.new_name);
    if (!r.directory) renamed(r, *to);
    r.flight.done(0);
    forget_rename(p_.nodes.child(r.new_parent, r.new_name));
    return 0;
  }
  const auto victim = p_.hidden != nullptr ? p_.nodes.child(r.new_parent, r.new_name) : std::nullopt;
  const bool hide = victim && victim->opens > 0 && (!source || victim->id != source->id);
  note_rename(r);
  r.flight.begin(r.ino, r.kinds);
  int err = hide ? p_.hidden->link_aside(p_.tree, *to, victim->id) : 0;
  if (err == 0) {
    err = p_.tree.rename(*from, *to, r.flags);
    if (hide && err == 0) p_.nodes.set_hidden(victim->id);
    if (hide && err != 0) p_.hidden->remove(victim->id);
  }
  if (err == 0) p_.nodes.moved(r.parent, r.name, r.new_parent, r.new_name);
  r.flight.done(err);
  forget_rename(source);
  if (err == 0 && !r.directory) renamed(r, *to);
  return err;
}

/// What the observer is told of it. What cannot be seen any more, because it happened, was noted.
int Operations::rename_op(Renaming& r, Op& op, std::string& path, std::string& new_path) {
  const TreeShared tree(tree_mutex_);
  const auto from = p_.nodes.child_path(r.parent, r.name);
  const auto to = p_.nodes.child_path(r.new_parent, r.new_name);
  if (!from || !to) return ESTALE;
  path = *from;
  new_path = *to;
  r.happened = removed_before(r.flight, path);
  if (r.happened) {
    r.ino = r.flight.before(0);
    r.kinds = r.flight.before(1);
    op.file = static_cast<FileKind>(r.kinds & 0xff);
    op.replaced_kind = static_cast<FileKind>(r.kinds >> 8 & 0xff);
    op.replaces = r.kinds >> 16 != 0;
    return r.flight.result();
  }
  struct stat st {};
  const int err = p_.tree.stat(path, st);
  if (err != 0) return err == ENOENT && is_virtual(r.parent, r.name, path) ? EACCES : err;
  r.ino = st.st_ino;
  op.file = kind_of_child(r.parent, r.name, path, st);
  op.replaces = p_.tree.stat(new_path, st) == 0;
  if (op.replaces)
    op.replaced_kind = kind_of_child(r.new_parent, r.new_name, new_path, st);
  else if (is_virtual(r.new_parent, r.new_name, new_path))
    return EACCES;
  r.kinds = static_cast<std::uint64_t>(op.file) | static_cast<std::uint64_t>(op.replaced_kind) << 8 |
            (op.replaces ? 1u << 16 : 0u);
  return 0;
}

void Operations::rename(Request request, NodeId parent, const char* name, NodeId new_parent, const char* new_name,
                        unsigned flags) {
  if ((flags & ~static_cast<unsigned>(RENAME_NOREPLACE)) != 0) {
    request.error(EINVAL);
    return;
  }
  Renaming renaming{parent, name, new_parent, new_name, flags};
  renaming.flight = request.flight();
  Op op;
  op.kind = OpKind::rename;
  std::string path;
  std::string new_path;
  if (const int err = rename_op(renaming, op, path, new_path); err != 0) {
    request.error(err);
    return;
  }
  renaming.directory = op.file == FileKind::directory;
  const bool observed = renaming.directory || is_observed(op.file) ||
                        (op.replaces && (is_observed(op.replaced_kind) || op.replaced_kind == FileKind::directory));
  auto perform = [this, renaming = std::move(renaming)] {
    const auto victim = p_.hidden != nullptr ? p_.nodes.child(renaming.new_parent, renaming.new_name) : std::nullopt;
    if (!victim) return rename_now(renaming);
    MutexLock lock(p_.nodes.open_mutex(victim->id));  // see unlink()
    return rename_now(renaming);
  };
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
