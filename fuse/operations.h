// The file system: one function per FUSE request, on top of the backing tree, the inode table and the observer.
//
// Locks, outermost first: InodeTable::open_mutex, tree_mutex_, the tables' own mutexes. None is held while the observer
// is called, a file is read, written or synced, or a request is answered.
#pragma once

#include <atomic>
#include <shared_mutex>
#include <string>
#include <string_view>

#include "base/thread_pool.h"
#include "fuse/files/backing_tree.h"
#include "fuse/files/open_files.h"
#include "fuse/files/virtual_file.h"
#include "fuse/inode_table.h"
#include "fuse/invalidator.h"
#include "fuse/io_path.h"
#include "fuse/observer.h"
#include "fuse/own_threads.h"
#include "fuse/request.h"
#include "fuse/takeover/hidden_files.h"

namespace sluice::fuse {

/// What a SETATTR sets; `what` has the FUSE_SET_ATTR_… bits.
struct AttrChange {
  int what = 0;
  struct stat attr {};
};

/// Thread-safe. All of it runs on FUSE workers, or on the disk pool for what was parked there.
class Operations {
 public:
  struct Parts {
    const BackingTree& tree;
    InodeTable& nodes;
    OpenFiles& handles;
    Observer& observer;
    VirtualFiles& virtual_files;
    ThreadPool& pool;
    OwnThreads& own_threads;
    Invalidator& invalidator;
    /// With takeover; else nullptr.
    takeover::State* state = nullptr;
    const takeover::HiddenFiles* hidden = nullptr;
  };
  explicit Operations(const Parts& parts) : p_(parts) {}

  /// Before the first request: the connection that backing files are registered with.
  void set_device(int device_fd) { device_fd_ = device_fd; }
  /// Which way -wal and -shm go, native or plain. Until it is told, requests to open one of them wait: the path can be
  /// probed only when the session runs, and all opens of a file must agree.
  void set_io_path(IoPath path) {
    io_path_.store(path);
    io_path_.notify_all();
  }
  /// Takeover, before the first request: tells the observer what is open.
  void announce_opens();
  /// Waits until no parked operation is left. New ones must not come any more.
  void drain() EXCLUDES(parked_mutex_);

  void lookup(Request request, NodeId parent, const char* name);
  void forget(NodeId node, std::uint64_t lookups);
  void getattr(Request request, NodeId node);
  void setattr(Request request, NodeId node, const AttrChange& change);
  void readlink(Request request, NodeId node);
  void mknod(Request request, NodeId parent, const char* name, mode_t mode);
  void mkdir(Request request, NodeId parent, const char* name, mode_t mode);
  void symlink(Request request, const char* target, NodeId parent, const char* name);
  void unlink(Request request, NodeId parent, const char* name);
  void rmdir(Request request, NodeId parent, const char* name);
  void rename(Request request, NodeId parent, const char* name, NodeId new_parent, const char* new_name,
              unsigned flags);
  void create(Request request, NodeId parent, const char* name, mode_t mode, int flags);
  void open(Request request, NodeId node, int flags);
  void release(Request request, NodeId node, HandleId handle);
  void read(Request request, NodeId node, HandleId handle, std::size_t size, std::uint64_t offset);
  void write(Request request, NodeId node, HandleId handle, ByteView data, std::uint64_t offset);
  void fsync(Request request, NodeId node, HandleId handle, bool data_only);
  void readdir(Request request, NodeId node, std::size_t size, std::int64_t offset);
  void fsyncdir(Request request, NodeId node);
  void statfs(Request request);

 private:
  struct Creation;
  struct Removal;
  struct Renaming;
  using TreeShared = std::shared_lock<std::shared_mutex>;

  /// Calls body(request, op) here if the observer can run here, else on the pool with copies of what `op` points to.
  template <class Body>
  void observe(Request request, const Op& op, Body body);
  void post(std::function<void()> task) EXCLUDES(parked_mutex_);

  // Names. `path` is that of `name` in `parent`; the caller holds tree_mutex_ at least shared.
  FileKind classify(const std::string& path, const struct stat& st) const;
  FileKind kind_by_name(const std::string& path) const;
  FileKind kind_of_child(NodeId parent, std::string_view name, const std::string& path, const struct stat& st) const;
  bool is_regular(const std::string& path) const;
  bool is_virtual(NodeId parent, std::string_view name, const std::string& path) const;
  bool is_database(NodeId parent, std::string_view name, const std::string& path) const;
  int enter(NodeId parent, std::string_view name, const std::string& path, const struct stat& st, bool fresh,
            EntryReply& reply);
  int find_entry(NodeId parent, std::string_view name, EntryReply& reply);
  void promote_base(NodeId parent, std::string_view name, const std::string& path);
  void become_database(const NodeView& node);
  int take_ownership(const Creation& creation, const std::string& path, struct stat& st) const;
  void answer_entry(Request& request, const EntryReply& reply);
  void make_entry(Request& request, const Creation& creation, FunctionRef<int(const std::string&)> make);
  int unlink_now(NodeId parent, const std::string& name, const Removal& removal);
  int rename_now(const Renaming& renaming);
  void renamed(const Renaming& renaming, const std::string& to);
  int rename_op(Renaming& renaming, Op& op, std::string& path, std::string& new_path);

  // Takeover (operations_takeover.cc).
  /// The node, with its file if it is open.
  std::optional<NodeView> find_node(NodeId node);
  void reopen(NodeView& node);
  std::shared_ptr<const BackingFile> reopen_file(const NodeView& node);
  int open_left_behind(const NodeView& node, int flags, UniqueFd& fd);
  bool existed_before(const takeover::Flight& flight, const std::string& path) const;
  bool removed_before(const takeover::Flight& flight, const std::string& path) const;
  bool answer_entry_again(Request& request);
  bool answer_open_again(Request& request);
  bool answer_create_again(Request& request);
  void note_rename(const Renaming& renaming);
  void forget_rename(const std::optional<NodeView>& source);

  // Attributes.
  double attr_timeout_s(FileKind kind) const;
  int stat_node(NodeId node, struct stat& st, FileKind& kind);
  int truncate_node(NodeId node, std::uint64_t size);
  int apply_attr(NodeId node, const AttrChange& change);
  void finish_setattr(Request& request, NodeId node, const AttrChange& change);

  // Opens.
  Op open_op(OpKind kind, const Request& request, int flags) const;
  int open_node(NodeId node, bool write, OpenState& state);
  int open_first(NodeId node, bool write, OpenState& state);
  int open_backing(const NodeView& node, bool write, std::shared_ptr<const BackingFile>& file, FileKind& kind);
  int register_open(NodeId node, FileKind kind, std::shared_ptr<const BackingFile> file, OpenState& state);
  void close_node(NodeId node);
  OpenReply make_open_reply(const OpenState& state, HandleId handle) const;
  void open_virtual(Request& request, NodeId node, int flags);
  int create_now(const Creation& creation, EntryReply& entry, OpenState& state);
  int make_node(const Creation& creation, EntryReply& entry, UniqueFd& file);

  void read_virtual(Request request, const NodeView& node, HandleId handle, std::size_t size, std::uint64_t offset);
  std::vector<std::string> virtual_names(NodeId node, const std::string& path);

  const Parts p_;
  int device_fd_ = -1;
  std::atomic<IoPath> io_path_{IoPath::automatic};  ///< automatic: not known yet
  // Shared while a path is used in a system call, exclusive while a directory moves: a path that was built stays right.
  std::shared_mutex tree_mutex_;
  Mutex parked_mutex_;
  CondVar unparked_;
  unsigned parked_ GUARDED_BY(parked_mutex_) = 0;
};

}  // namespace sluice::fuse
