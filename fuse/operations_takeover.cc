// What another process began: its nodes' files are opened again when they are needed, and what it did for a request that is
// sent again is not done twice (takeover/in_flight.h).
#include <fcntl.h>

#include "fuse/operations_internal.h"
#include "fuse/protocol.h"

namespace sluice::fuse {

std::optional<NodeView> Operations::find_node(NodeId id) {
  auto node = p_.nodes.find(id);
  if (node && node->opens > 0 && !node->file && node->kind != FileKind::virtual_file) reopen(*node);
  return node;
}

void Operations::reopen(NodeView& node) {
  MutexLock lock(p_.nodes.open_mutex(node.id));
  const auto now = p_.nodes.find(node.id);
  if (!now) return;
  node = *now;
  if (node.file || node.opens == 0) return;
  node.file = reopen_file(node);
  if (node.file)
    p_.nodes.replace_file(node.id, node.file);
  else
    LOG_ERROR("{}: a file that was open when the process before this one died cannot be opened again", node.names->path);
}

/// Null if it cannot be found. The node's open_mutex is held.
std::shared_ptr<const BackingFile> Operations::reopen_file(const NodeView& node) {
  for (const bool writable : {true, false}) {
    UniqueFd fd;
    if (open_left_behind(node, writable ? O_RDWR : O_RDONLY, fd) == 0)
      return std::make_shared<const BackingFile>(BackingFile{std::move(fd), writable});
  }
  return nullptr;
}

/// Under its name, its hidden name, or the name that an unfinished RENAME may have given it.
int Operations::open_left_behind(const NodeView& node, int flags, UniqueFd& fd) {
  int first = ENOENT;
  const auto is_it = [&](int err) {
    struct stat st {};
    if (err == 0 && ::fstat(fd.get(), &st) == 0 && st.st_ino == node.backing_ino) return true;
    if (err != 0 && err != ENOENT) first = err;
    return false;
  };
  const TreeShared tree(tree_mutex_);
  if (node.linked && is_it(p_.tree.open_file(node.names->path, flags, 0, fd))) return 0;
  if (p_.hidden != nullptr && is_it(p_.hidden->open_file(node.id, flags, fd))) return 0;
  if (p_.state == nullptr) return first;
  for (const takeover::RenameRecord& rename : p_.state->renames()) {
    if (rename.node.load(std::memory_order_acquire) != node.id.value()) continue;
    const auto path = p_.nodes.child_path(NodeId(rename.new_parent), takeover::load_name(rename.new_name));
    if (path && is_it(p_.tree.open_file(*path, flags, 0, fd))) return 0;
  }
  return first;
}

bool Operations::existed_before(const takeover::Flight& flight, const std::string& path) const {
  if (flight.begun_before()) return flight.before(0) != 0;
  struct stat st {};
  return flight.unique() == 0 || p_.tree.stat(path, st) == 0;
}

/// Was the file of an UNLINK, RMDIR or RENAME taken away from `path` before we took over? before(0) is its inode.
bool Operations::removed_before(const takeover::Flight& flight, const std::string& path) const {
  if (flight.done_before()) return flight.result() == 0;
  if (!flight.begun_before() || flight.before(0) == 0) return false;
  struct stat st {};
  const int err = p_.tree.stat(path, st);
  return err == ENOENT || (err == 0 && st.st_ino != flight.before(0));
}

bool Operations::answer_entry_again(Request& request) {
  if (!request.flight().done_before()) return false;
  EntryReply reply;
  reply.node = NodeId(request.flight().node());
  FileKind kind{};
  if (const int err = stat_node(reply.node, reply.attr, kind); err != 0) {
    request.error(err);
    return true;
  }
  reply.entry_timeout_s = entry_timeout_s(kind);
  reply.attr_timeout_s = attr_timeout_s(kind);
  request.entry(reply);
  return true;
}

bool Operations::answer_open_again(Request& request) {
  const auto handle = p_.handles.restored(request.flight().unique());
  const auto file = handle ? p_.handles.find(*handle) : std::nullopt;
  const auto node = file ? p_.nodes.find(file->node) : std::nullopt;
  if (!node) return false;
  OpenReply reply = make_open_reply(OpenState{nullptr, node->backing_id}, *handle);
  if (node->kind == FileKind::virtual_file) reply.flags = protocol::kOpenDirectIo | protocol::kOpenNoFlush;
  request.open(reply);
  return true;
}

bool Operations::answer_create_again(Request& request) {
  const auto handle = p_.handles.restored(request.flight().unique());
  const auto file = handle ? p_.handles.find(*handle) : std::nullopt;
  if (!file) return false;
  EntryReply entry;
  entry.node = file->node;
  FileKind kind{};
  if (const int err = stat_node(file->node, entry.attr, kind); err != 0) {
    request.error(err);
    return true;
  }
  entry.entry_timeout_s = entry_timeout_s(kind);
  entry.attr_timeout_s = attr_timeout_s(kind);
  const auto node = p_.nodes.find(file->node);
  request.create(entry, make_open_reply(OpenState{nullptr, node ? node->backing_id : 0}, *handle));
  return true;
}

void Operations::note_rename(const Renaming& renaming) {
  if (p_.state == nullptr) return;
  if (const auto source = p_.nodes.child(renaming.parent, renaming.name))
    p_.state->note_rename(source->id.value(), renaming.new_parent.value(), renaming.new_name);
}

void Operations::forget_rename(const std::optional<NodeView>& source) {
  if (p_.state != nullptr && source) p_.state->forget_rename(source->id.value());
}

void Operations::announce_opens() {
  for (const OpenFile& file : p_.handles.list()) {
    const auto node = p_.nodes.find(file.node);
    if (node && node->kind != FileKind::virtual_file) p_.observer.opened(op_of_open(*node, file));
  }
}

}  // namespace sluice::fuse
