#include "fuse/request.h"

#include <cerrno>

#include "fuse/lowlevel.h"
#include "fuse/protocol.h"

namespace sluice::fuse {
namespace {

fuse_entry_param make_entry(const EntryReply& reply) {
  fuse_entry_param e{};
  e.ino = reply.node.value();
  e.attr = reply.attr;
  e.entry_timeout = reply.entry_timeout_s;
  e.attr_timeout = reply.attr_timeout_s;
  return e;
}

protocol::OpenOut make_open(const OpenReply& reply) {
  return protocol::OpenOut{reply.handle, reply.flags, reply.backing_id};
}

void split_seconds(double timeout_s, std::uint64_t& seconds, std::uint32_t& nanoseconds) {
  seconds = static_cast<std::uint64_t>(timeout_s);
  nanoseconds = static_cast<std::uint32_t>((timeout_s - static_cast<double>(seconds)) * 1e9);
}

}  // namespace

Request::~Request() {
  if (req_ != nullptr) answered(fuse_reply_err(req_, EIO));
}

pid_t Request::thread_id() const { return fuse_req_ctx(req_)->pid; }
uid_t Request::uid() const { return fuse_req_ctx(req_)->uid; }
gid_t Request::gid() const { return fuse_req_ctx(req_)->gid; }

bool Request::error(int err) { return answered(fuse_reply_err(take(), err)); }

bool Request::entry(const EntryReply& reply) {
  const fuse_entry_param e = make_entry(reply);
  return answered(fuse_reply_entry(take(), &e));
}

bool Request::no_entry(double timeout_s) {
  fuse_entry_param e{};
  e.entry_timeout = timeout_s;
  return timeout_s > 0 ? answered(fuse_reply_entry(take(), &e)) : error(ENOENT);
}

bool Request::attr(const struct stat& st, double timeout_s) { return answered(fuse_reply_attr(take(), &st, timeout_s)); }

bool Request::open(const OpenReply& reply) {
  const protocol::OpenOut out = make_open(reply);
  return answered(fuse_reply_buf(take(), reinterpret_cast<const char*>(&out), sizeof out));
}

bool Request::create(const EntryReply& entry, const OpenReply& open) {
  protocol::CreateOut out{};
  out.entry.nodeid = entry.node.value();
  split_seconds(entry.entry_timeout_s, out.entry.entry_valid, out.entry.entry_valid_nsec);
  split_seconds(entry.attr_timeout_s, out.entry.attr_valid, out.entry.attr_valid_nsec);
  out.entry.attr = protocol::make_attr(entry.attr);
  out.open = make_open(open);
  return answered(fuse_reply_buf(take(), reinterpret_cast<const char*>(&out), sizeof out));
}

bool Request::data(ByteView bytes) {
  return answered(fuse_reply_buf(take(), reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

bool Request::written(std::size_t bytes) { return answered(fuse_reply_write(take(), bytes)); }
bool Request::link(const std::string& target) { return answered(fuse_reply_readlink(take(), target.c_str())); }
bool Request::statfs(const struct statvfs& st) { return answered(fuse_reply_statfs(take(), &st)); }
void Request::none() {
  fuse_reply_none(take());
  flight_.finish();
}

}  // namespace sluice::fuse
