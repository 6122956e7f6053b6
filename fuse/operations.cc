#include <fcntl.h>
#include <unistd.h>

#include "fuse/files/kind.h"
#include "fuse/lowlevel.h"
#include "fuse/operations_internal.h"

// What several requests need: classification of files, entering names into the table, parking.
namespace sluice::fuse {

void Operations::post(std::function<void()> task) {
  {
    MutexLock lock(parked_mutex_);
    ++parked_;
  }
  auto done = [this] {
    MutexLock lock(parked_mutex_);
    if (--parked_ == 0) unparked_.notify_all();
  };
  const bool posted = p_.pool.post([done, run = std::move(task)] {
    try {
      run();
    } catch (const std::exception& e) {
      LOG_ERROR("parked file operation failed: {}", e.what());  // the dropped request is answered with EIO
    }
    done();
  });
  if (!posted) done();
}

void Operations::drain() {
  MutexLock lock(parked_mutex_);
  while (parked_ > 0) unparked_.wait(parked_mutex_);  // ends: the pool runs what is queued
}

bool Operations::is_regular(const std::string& path) const {
  struct stat st {};
  return p_.tree.stat(path, st) == 0 && S_ISREG(st.st_mode);
}

FileKind Operations::kind_by_name(const std::string& path) const {
  const std::size_t slash = path.rfind('/');
  const std::size_t name_at = slash == std::string::npos ? 0 : slash + 1;
  const auto side = side_file(std::string_view(path).substr(name_at));
  if (side && is_regular(path.substr(0, name_at) + std::string(side->base))) return side->kind;
  return FileKind::plain;
}

FileKind Operations::classify(const std::string& path, const struct stat& st) const {
  if (S_ISDIR(st.st_mode)) return FileKind::directory;
  if (!S_ISREG(st.st_mode)) return FileKind::plain;
  if (const FileKind kind = kind_by_name(path); kind != FileKind::plain) return kind;
  if (st.st_size == 0)
    return is_regular(path + "-journal") || is_regular(path + "-wal") ? FileKind::database : FileKind::plain;
  if (st.st_size < static_cast<off_t>(kMagicSize)) return FileKind::plain;
  UniqueFd fd;
  if (p_.tree.open_file(path, O_RDONLY, 0, fd) != 0) return FileKind::plain;
  return file_has_magic(fd.get()) ? FileKind::database : FileKind::plain;
}

FileKind Operations::kind_of_child(NodeId parent, std::string_view name, const std::string& path,
                                   const struct stat& st) const {
  const auto known = p_.nodes.child(parent, name);
  if (known && known->backing_ino == st.st_ino) return known->kind;
  return classify(path, st);
}

bool Operations::is_database(NodeId parent, std::string_view name, const std::string& path) const {
  struct stat st {};
  if (p_.tree.stat(path, st) != 0) return false;
  return kind_of_child(parent, name, path, st) == FileKind::database;
}

bool Operations::is_virtual(NodeId parent, std::string_view name, const std::string& path) const {
  const auto kind = virtual_kind(path);
  if (!kind) return false;
  if (*kind != VirtualKind::position) return true;
  return is_database(parent, position_base(name).value_or(name), std::string(position_base(path).value_or(path)));
}

int Operations::enter(NodeId parent, std::string_view name, const std::string& path, const struct stat& st,
                      bool fresh, EntryReply& reply) {
  const FileKind kind = fresh ? classify(path, st) : kind_of_child(parent, name, path, st);
  const auto node = p_.nodes.enter(parent, name, st.st_ino, kind, fresh);
  if (!node) return ESTALE;
  reply = EntryReply{*node, st, entry_timeout_s(kind), attr_timeout_s(kind)};
  return 0;
}

int Operations::find_entry(NodeId parent, std::string_view name, EntryReply& reply) {
  const TreeShared tree(tree_mutex_);
  const auto path = p_.nodes.child_path(parent, name);
  if (!path) return ESTALE;
  struct stat st {};
  const int err = p_.tree.stat(*path, st);
  if (err == 0) return enter(parent, name, *path, st, false, reply);
  if (err != ENOENT) return err;
  if (is_virtual(parent, name, *path)) {
    if (const int none = virtual_attr(p_.virtual_files, *virtual_kind(*path), *path, st); none != 0) return none;
    const auto node = p_.nodes.enter(parent, name, st.st_ino, FileKind::virtual_file, false);
    if (!node) return ESTALE;
    reply = EntryReply{*node, st, 0, 0};
    return 0;
  }
  p_.nodes.removed(parent, name);  // a node that stands there lost its file beside the mount
  reply.entry_timeout_s = virtual_kind(*path) ? 0 : kLongTimeout_s;
  return ENOENT;
}

void Operations::become_database(const NodeView& node) {
  p_.nodes.set_kind(node.id, FileKind::database);
  if (!node.linked) return;
  const std::string& path = node.names->path;
  const std::size_t slash = path.rfind('/');
  // X-pos appears beside it.
  if (const auto parent = p_.nodes.find_path(slash == std::string::npos ? "" : path.substr(0, slash)))
    p_.invalidator.post(*parent);
}

void Operations::promote_base(NodeId parent, std::string_view name, const std::string& path) {
  const auto side = side_file(name);
  if (!side || (side->kind != FileKind::journal && side->kind != FileKind::wal)) return;
  const auto base = p_.nodes.child(parent, side->base);
  if (!base || base->kind != FileKind::plain) return;
  struct stat st {};
  if (p_.tree.stat(std::string(database_of(side->kind, path)), st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0)
    become_database(*base);
}

int Operations::take_ownership(const Creation& creation, const std::string& path, struct stat& st) const {
  const std::size_t slash = path.rfind('/');
  struct stat parent {};
  if (const int err = p_.tree.stat(slash == std::string::npos ? "" : path.substr(0, slash), parent); err != 0)
    return err;
  // In a set-group-id directory the file system has chosen the group.
  const gid_t gid = (parent.st_mode & S_ISGID) != 0 ? st.st_gid : creation.gid;
  if (st.st_uid != creation.uid || st.st_gid != gid) {
    // A node without the right to give files away keeps what others create (allow_other).
    const int err = p_.tree.chown(path, creation.uid, gid);
    if (err != 0 && (err != EPERM || ::geteuid() == 0)) return err;
  }
  if (!S_ISLNK(st.st_mode)) {
    // Our own umask, and chown, may have taken bits away; the kernel has applied the caller's umask already.
    const mode_t wanted = (creation.mode & 07777) | (S_ISDIR(st.st_mode) ? st.st_mode & S_ISGID : 0);
    if (const int err = p_.tree.chmod(path, wanted); err != 0) return err;
  }
  return p_.tree.stat(path, st);
}

}  // namespace sluice::fuse
