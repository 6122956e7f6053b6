#include <fcntl.h>

#include <algorithm>

#include "fuse/files/kind.h"
#include "fuse/operations_internal.h"
#include "fuse/protocol.h"

// READ, WRITE, FSYNC, and virtual files.
namespace sluice::fuse {
namespace {

/// Grows to the largest read this thread has served (the kernel asks for max_readahead or 1 MiB at most).
ByteSpan read_buffer(std::size_t size) {
  thread_local Bytes buffer;
  if (buffer.size() < size) buffer.resize(size);
  return ByteSpan(buffer).first(size);
}

}  // namespace

void Operations::read(Request request, NodeId id, HandleId handle, std::size_t size, std::uint64_t offset) {
  const auto node = find_node(id);
  if (!node) {
    request.error(ESTALE);
    return;
  }
  if (node->kind == FileKind::virtual_file) {
    read_virtual(std::move(request), *node, handle, size, offset);
    return;
  }
  if (!node->file) {
    request.error(EBADF);
    return;
  }
  const ByteSpan buffer = read_buffer(size);
  std::size_t done = 0;
  const int err = read_all(node->file->fd.get(), offset, buffer, done);
  if (err != 0)
    request.error(err);
  else
    request.data(buffer.first(done));
}

void Operations::write(Request request, NodeId id, HandleId handle, ByteView data, std::uint64_t offset) {
  auto node = find_node(id);
  if (!node || !node->file || !node->file->writable) {
    request.error(node ? EBADF : ESTALE);
    return;
  }
  if (node->kind == FileKind::plain && offset == 0 && begins_with_magic(data)) {
    become_database(*node);
    node = p_.nodes.find(id);
  }
  if (!is_observed(node->kind)) {
    std::size_t done = 0;
    const int err = write_all(node->file->fd.get(), offset, data, done);
    if (err != 0 && done == 0)
      request.error(err);
    else
      request.written(done);
    return;
  }
  const auto file = p_.handles.find(handle);
  Op op;
  op.kind = OpKind::write;
  op.file = node->kind;
  op.path = node->names->path;
  op.database = node->names->database;
  op.unlinked = !node->linked;
  op.offset = offset;
  op.data = data;
  op.write_access = true;
  op.write_only = file && file->write_only;
  op.own = (file && file->own) || p_.own_threads.contains(request.thread_id());
  observe(std::move(request), op, [this, backing = node->file](Request& r, const Op& o) {
    std::size_t done = 0;
    const int err = p_.observer.run(o, [&] { return write_all(backing->fd.get(), o.offset, o.data, done); });
    if (err != 0)
      r.error(err);
    else
      r.written(done);
  });
}

void Operations::fsync(Request request, NodeId id, HandleId handle, bool data_only) {
  const auto node = find_node(id);
  if (!node || !node->file) {
    // Virtual files have nothing to sync.
    request.error(!node ? ESTALE : node->kind == FileKind::virtual_file ? 0 : EIO);
    return;
  }
  auto perform = [backing = node->file, data_only] {
    const int fd = backing->fd.get();
    return (data_only ? ::fdatasync(fd) : ::fsync(fd)) == 0 ? 0 : errno;
  };
  if (node->kind != FileKind::database && node->kind != FileKind::wal) {
    request.error(perform());
    return;
  }
  const auto file = p_.handles.find(handle);
  Op op;
  op.kind = OpKind::fsync;
  op.file = node->kind;
  op.path = node->names->path;
  op.database = node->names->database;
  op.unlinked = !node->linked;
  op.own = (file && file->own) || p_.own_threads.contains(request.thread_id());
  observe(std::move(request), op,
          [this, perform](Request& r, const Op& o) { r.error(p_.observer.run(o, perform)); });
}

void Operations::open_virtual(Request& request, NodeId id, int flags) {
  if ((flags & O_ACCMODE) != O_RDONLY) {
    request.error(EACCES);
    return;
  }
  OpenReply reply;
  const HandleId handle = p_.handles.add(OpenFile{id, false, false, false, nullptr}, request.flight().unique());
  reply.handle = handle.value();
  reply.flags = protocol::kOpenDirectIo | protocol::kOpenNoFlush;  // every read comes here
  if (!request.open(reply)) p_.handles.remove(handle);
}

void Operations::read_virtual(Request request, const NodeView& node, HandleId handle, std::size_t size,
                              std::uint64_t offset) {
  const VirtualKind kind = *virtual_kind(node.names->path);
  auto answer = [](Request& r, const std::string& content, std::uint64_t from, std::size_t most) {
    const std::size_t begin = std::min<std::uint64_t>(from, content.size());
    r.data(as_bytes(std::string_view(content).substr(begin, most)));
  };
  // A read from the beginning sees what is true now; the following ones see the rest of the same.
  const auto file = p_.handles.find(handle);
  if (offset != 0 && file && file->content) {
    answer(request, *file->content, offset, size);
    return;
  }
  auto fresh = [this, answer, kind, names = node.names, handle, size, offset](Request& r) {
    auto content = std::make_shared<const std::string>(virtual_content(p_.virtual_files, kind, names->path));
    if (content->empty()) {
      r.error(ENOENT);
      return;
    }
    p_.handles.set_content(handle, content);
    answer(r, *content, offset, size);
  };
  if (kind != VirtualKind::position) {
    fresh(request);
    return;
  }
  auto shared = std::make_shared<Request>(std::move(request));
  post([shared, fresh] { fresh(*shared); });
}

}  // namespace sluice::fuse
