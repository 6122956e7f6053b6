#include <fcntl.h>

#include "fuse/files/kind.h"
#include "fuse/operations_internal.h"
#include "fuse/passthrough.h"
#include "fuse/protocol.h"

// MKNOD, CREATE, OPEN, RELEASE.
namespace sluice::fuse {

Op Operations::open_op(OpKind kind, const Request& request, int flags) const {
  Op op;
  op.kind = kind;
  const int access = flags & O_ACCMODE;
  op.write_access = access != O_RDONLY;
  op.write_only = access == O_WRONLY;
  op.own = p_.own_threads.contains(request.thread_id());
  return op;
}

/// Opens the node's file read-write, or read-only if nothing else is possible and `write` does not ask for it. The
/// caller holds tree_mutex_.
int Operations::open_backing(const NodeView& node, bool write, std::shared_ptr<const BackingFile>& file,
                             FileKind& kind) {
  const std::string& path = node.names->path;
  UniqueFd fd;
  bool writable = true;
  int err = p_.tree.open_file(path, O_RDWR, 0, fd);
  if (err != 0 && err != ENOENT && !write) {
    writable = false;
    err = p_.tree.open_file(path, O_RDONLY, 0, fd);
  }
  if (err == ENOENT) return ESTALE;
  if (err != 0) return err;
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return errno;
  // Replaced beside the mount: ESTALE makes the kernel look the name up again.
  if (st.st_ino != node.backing_ino) return ESTALE;
  kind = kind_by_name(path);
  if (kind == FileKind::plain) {
    const bool was = node.kind == FileKind::database;
    kind = was || file_has_magic(fd.get()) ? FileKind::database : FileKind::plain;
  }
  file = std::make_shared<const BackingFile>(BackingFile{std::move(fd), writable});
  return 0;
}

/// Makes `file` the node's shared descriptor. The caller holds the node's open_mutex and found it not open.
int Operations::register_open(NodeId id, FileKind kind, std::shared_ptr<const BackingFile> file, OpenState& state) {
  state = OpenState{std::move(file), 0};
  if (is_side_file(kind)) io_path_.wait(IoPath::automatic);
  if (is_side_file(kind) && io_path_.load() == IoPath::native) {
    const auto backing_id = open_backing_id(device_fd_, state.file->fd.get());
    if (!backing_id) {
      LOG_ERROR("{}", backing_id.error().to_string());
      return EIO;
    }
    state.backing_id = *backing_id;
  }
  p_.nodes.first_open(id, state);
  return 0;
}

int Operations::open_first(NodeId id, bool write, OpenState& state) {
  std::shared_ptr<const BackingFile> file;
  FileKind kind{};
  std::optional<NodeView> node;
  {
    const TreeShared tree(tree_mutex_);
    node = p_.nodes.find(id);
    if (!node || !node->linked) return ESTALE;
    if (const int err = open_backing(*node, write, file, kind); err != 0) return err;
  }
  if (kind != node->kind) {
    if (kind == FileKind::database)
      become_database(*node);
    else
      p_.nodes.set_kind(id, kind);
  }
  return register_open(id, kind, std::move(file), state);
}

int Operations::open_node(NodeId id, bool write, OpenState& state) {
  MutexLock lock(p_.nodes.open_mutex(id));
  const auto already = p_.nodes.add_open(id);
  if (!already) return open_first(id, write, state);
  state = *already;
  if (!state.file) {  // open since before a takeover
    const auto left = p_.nodes.find(id);
    if (left) state.file = reopen_file(*left);
    if (state.file) {
      p_.nodes.replace_file(id, state.file);
    } else {
      p_.nodes.drop_open(id);
      return ESTALE;
    }
  }
  if (!write || state.file->writable) return 0;
  std::shared_ptr<const BackingFile> file;
  FileKind kind{};
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    const auto node = p_.nodes.find(id);
    if (node && node->linked) err = open_backing(*node, true, file, kind);
  }
  if (err == 0) {
    p_.nodes.replace_file(id, file);
    state.file = std::move(file);
  } else {
    p_.nodes.drop_open(id);
  }
  return err;
}

void Operations::close_node(NodeId id) {
  OpenState last;
  {
    MutexLock lock(p_.nodes.open_mutex(id));
    last = p_.nodes.drop_open(id);
    if (last.backing_id != 0) close_backing_id(device_fd_, last.backing_id);
  }
  if (last.hidden && p_.hidden != nullptr) p_.hidden->remove(id);
  // The descriptor closes here, without the mutex: dropping a removed file's last reference can take long.
}

OpenReply Operations::make_open_reply(const OpenState& state, HandleId handle) const {
  OpenReply reply;
  reply.handle = handle.value();
  reply.flags = protocol::kOpenNoFlush;
  if (state.backing_id != 0) {
    reply.flags |= protocol::kOpenPassthrough;
    reply.backing_id = state.backing_id;
  } else {
    reply.flags |= protocol::kOpenKeepCache;
  }
  return reply;
}

void Operations::open(Request request, NodeId id, int flags) {
  if (answer_open_again(request)) return;
  const auto node = p_.nodes.find(id);
  if (!node) {
    request.error(ESTALE);
    return;
  }
  if (node->kind == FileKind::virtual_file) {
    open_virtual(request, id, flags);
    return;
  }
  Op op = open_op(OpKind::open, request, flags);
  op.file = node->kind;
  op.path = node->names->path;
  op.database = node->names->database;
  op.unlinked = !node->linked;
  observe(std::move(request), op, [this, id](Request& r, const Op& o) {
    int err = p_.observer.run(o, [] { return 0; });
    OpenState state;
    if (err == 0) err = open_node(id, o.write_access, state);
    if (err != 0) {
      r.error(err);
      return;
    }
    const HandleId handle = p_.handles.add(OpenFile{id, o.write_access, o.write_only, o.own, nullptr}, r.flight().unique());
    p_.observer.opened(o);
    if (r.open(make_open_reply(state, handle))) return;
    p_.handles.remove(handle);
    close_node(id);
    p_.observer.released(o);
  });
}

/// Creates the file, or finds the one that appeared beside the mount; counts a lookup of its node. `file` is set if it
/// is new.
int Operations::make_node(const Creation& creation, EntryReply& entry, UniqueFd& file) {
  const TreeShared tree(tree_mutex_);
  const auto path = p_.nodes.child_path(creation.parent, creation.name);
  if (!path) return ESTALE;
  if (virtual_kind(*path) && is_virtual(creation.parent, creation.name, *path)) return EACCES;
  struct stat st {};
  const takeover::Flight& flight = creation.flight;
  const bool existed = existed_before(flight, *path);
  flight.begin(existed ? 1 : 0);
  int err = p_.tree.open_file(*path, O_RDWR | O_CREAT | O_EXCL, creation.mode & 07777, file);
  const bool made_before = err == EEXIST && flight.begun_before() && !existed;
  if (made_before) err = p_.tree.open_file(*path, O_RDWR, 0, file);
  if (err == EEXIST && !creation.exclusive) {
    if (err = p_.tree.stat(*path, st); err != 0) return err;
    return S_ISREG(st.st_mode) ? enter(creation.parent, creation.name, *path, st, false, entry) : EEXIST;
  }
  if (err == 0 && ::fstat(file.get(), &st) != 0) err = errno;
  if (err == 0) err = take_ownership(creation, *path, st);
  if (err != 0) return err;
  promote_base(creation.parent, creation.name, *path);
  return enter(creation.parent, creation.name, *path, st, !made_before, entry);
}

int Operations::create_now(const Creation& creation, EntryReply& entry, OpenState& state) {
  UniqueFd fd;
  if (const int err = make_node(creation, entry, fd); err != 0) return err;
  int err = 0;
  if (!fd) {
    err = open_node(entry.node, creation.write, state);
  } else {
    auto file = std::make_shared<const BackingFile>(BackingFile{std::move(fd), true});
    const auto node = p_.nodes.find(entry.node);
    MutexLock lock(p_.nodes.open_mutex(entry.node));
    if (const auto already = p_.nodes.add_open(entry.node))
      state = *already;
    else
      err = node ? register_open(entry.node, node->kind, std::move(file), state) : ESTALE;
  }
  if (err != 0) p_.nodes.forget(entry.node, 1);
  return err;
}

void Operations::create(Request request, NodeId parent, const char* name, mode_t mode, int flags) {
  Creation creation{parent, name, mode, request.uid(), request.gid(), (flags & O_EXCL) != 0,
                    (flags & O_ACCMODE) != O_RDONLY, request.flight()};
  if (answer_create_again(request)) return;
  std::string path;
  Op op = open_op(OpKind::create, request, flags);
  {
    const TreeShared tree(tree_mutex_);
    const auto found = p_.nodes.child_path(parent, name);
    if (!found) {
      request.error(ESTALE);
      return;
    }
    path = *found;
    op.file = kind_by_name(path);
  }
  op.path = path;
  op.database = database_of(op.file, path);
  observe(std::move(request), op, [this, creation = std::move(creation)](Request& r, const Op& o) {
    int err = p_.observer.run(o, [] { return 0; });
    EntryReply entry;
    OpenState state;
    if (err == 0) err = create_now(creation, entry, state);
    if (err != 0) {
      r.error(err);
      return;
    }
    const HandleId handle =
        p_.handles.add(OpenFile{entry.node, o.write_access, o.write_only, o.own, nullptr}, r.flight().unique());
    p_.observer.opened(o);
    if (r.create(entry, make_open_reply(state, handle))) return;
    p_.handles.remove(handle);
    close_node(entry.node);
    p_.nodes.forget(entry.node, 1);
    p_.observer.released(o);
  });
}

void Operations::mknod(Request request, NodeId parent, const char* name, mode_t mode) {
  if (!S_ISREG(mode)) {
    request.error(EPERM);
    return;
  }
  if (answer_entry_again(request)) return;
  Creation creation{parent, name, mode, request.uid(), request.gid(), true, false, request.flight()};
  std::string path;
  Op op = open_op(OpKind::create, request, O_RDONLY);
  {
    const TreeShared tree(tree_mutex_);
    path = p_.nodes.child_path(parent, name).value_or(std::string{});
    op.file = kind_by_name(path);
  }
  op.path = path;
  op.database = database_of(op.file, path);
  observe(std::move(request), op, [this, creation = std::move(creation)](Request& r, const Op& o) {
    int err = p_.observer.run(o, [] { return 0; });
    EntryReply entry;
    UniqueFd fd;
    if (err == 0) err = make_node(creation, entry, fd);
    if (err != 0)
      r.error(err);
    else
      answer_entry(r, entry);
  });
}

void Operations::release(Request request, NodeId id, HandleId handle) {
  const auto file = p_.handles.remove(handle);
  auto node = p_.nodes.find(id);
  if (!file || !node || node->kind == FileKind::virtual_file) {
    request.error(0);
    return;
  }
  if (node->kind == FileKind::plain && file->write_access) node = find_node(id);
  // Written piecemeal, it may have become a database without any write that shows it.
  if (node->kind == FileKind::plain && file->write_access && node->file && file_has_magic(node->file->fd.get())) {
    become_database(*node);
    node = p_.nodes.find(id);
  }
  node->file.reset();  // so that close_node() closes it
  close_node(id);
  p_.observer.released(op_of_open(*node, *file));
  request.error(0);
}

}  // namespace sluice::fuse
