// The nodes the kernel knows: what a node id stands for. Names form a tree; a path is built by walking up, so renaming a
// directory moves everything below it. Node ids are slot and generation, never pointers: they mean the same to a process
// that takes the connection over. With takeover every change is stored in takeover::State, in an order of which each prefix is
// put right by restore().
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/fd.h"
#include "base/mutex.h"
#include "base/strong_int.h"
#include "fuse/observer.h"
#include "fuse/takeover/state.h"

namespace sluice::fuse {

using NodeId = StrongInt<struct NodeIdTag, std::uint64_t>;
inline constexpr NodeId kRootNode{1};  ///< FUSE_ROOT_ID

/// A node's path and the database it belongs to, as of one moment.
struct FileNames {
  std::string path;      ///< relative to the mount, "" for the root
  std::string database;  ///< see Op::database
};

/// The one descriptor of the backing file that all opens of a node share.
struct BackingFile {
  UniqueFd fd;
  bool writable = false;
};

/// A copy of what the table knows of a node.
struct NodeView {
  NodeId id;
  FileKind kind{};
  ino_t backing_ino = 0;
  bool linked = false;  ///< its name still leads to it
  unsigned opens = 0;
  std::shared_ptr<const FileNames> names;
  std::shared_ptr<const BackingFile> file;  ///< null while nobody has it open, and see OpenState::file
  int backing_id = 0;
  bool hidden = false;
};

/// How a node is open; `backing_id` 0 means that reads and writes come to us. `file` is null for a node that was opened before
/// this process took over, until it is reopened (Operations::reopen).
struct OpenState {
  std::shared_ptr<const BackingFile> file;
  int backing_id = 0;
  bool hidden = false;  ///< removed while open: it has a name among the takeover::HiddenFiles
};

/// Thread-safe. Every call is short and does no I/O.
class InodeTable {
 public:
  /// `state`: nullptr without takeover.
  explicit InodeTable(ino_t root_ino, takeover::State* state = nullptr);

  /// Takeover, before anything else: the nodes of the process before. `opens`: how often each is open. Returns the backing ids
  /// that are to be closed.
  std::vector<int> restore(const std::unordered_map<std::uint64_t, unsigned>& opens) EXCLUDES(mutex_);

  std::optional<NodeView> find(NodeId id) const EXCLUDES(mutex_);
  std::optional<NodeView> child(NodeId parent, std::string_view name) const EXCLUDES(mutex_);
  /// The linked node at `path` ("" is the root), if the kernel has looked it up.
  std::optional<NodeId> find_path(std::string_view path) const EXCLUDES(mutex_);
  /// Path of `name` in `parent`; nothing if `parent` is unknown or was removed.
  std::optional<std::string> child_path(NodeId parent, std::string_view name) const EXCLUDES(mutex_);

  /// The node for `name` in `parent`, counted as looked up once more. A node that stands there for another backing inode
  /// (or `fresh`: for whatever was there before a creation) loses the name and goes on for those who have it.
  /// Nothing if `parent` is unknown.
  std::optional<NodeId> enter(NodeId parent, std::string_view name, ino_t backing_ino, FileKind kind, bool fresh)
      EXCLUDES(mutex_);
  void forget(NodeId id, std::uint64_t lookups) EXCLUDES(mutex_);

  /// `name` was removed from `parent`.
  void removed(NodeId parent, std::string_view name) EXCLUDES(mutex_);
  /// `name` became `new_name`; whatever stood there lost its name.
  void moved(NodeId parent, std::string_view name, NodeId new_parent, std::string_view new_name) EXCLUDES(mutex_);
  /// The backing tree changed beside the mount: a node nobody has open loses the name, so that the next lookup makes a
  /// new one. One that is open keeps it while the name leads to its backing inode (its clients' locks live there).
  void detach_idle(NodeId parent, std::string_view name) EXCLUDES(mutex_);
  void set_kind(NodeId id, FileKind kind) EXCLUDES(mutex_);

  /// Held from deciding how a node is opened (or closed) until the table knows it; protects nothing else. Never held
  /// over a reply or a call to the observer.
  Mutex& open_mutex(NodeId id) { return open_mutexes_[(id.value() & 0xffffffff) % open_mutexes_.size()]; }
  /// One more open of a node that is open already.
  std::optional<OpenState> add_open(NodeId id) EXCLUDES(mutex_);
  void first_open(NodeId id, OpenState state) EXCLUDES(mutex_);
  /// Replaces the shared descriptor (read-only so far, now read-write).
  void replace_file(NodeId id, std::shared_ptr<const BackingFile> file) EXCLUDES(mutex_);
  void set_hidden(NodeId id) EXCLUDES(mutex_);
  /// One open less; returns what is to be closed if it was the last one.
  OpenState drop_open(NodeId id) EXCLUDES(mutex_);

  /// Number of nodes known (for tests).
  std::size_t size() const EXCLUDES(mutex_);

 private:
  struct Node {
    std::uint32_t generation = 0;
    bool used = false;
    bool linked = false;
    FileKind kind = FileKind::plain;
    NodeId parent;
    std::string name;
    ino_t backing_ino = 0;
    std::uint64_t lookups = 0;
    std::uint32_t children = 0;
    std::uint32_t opens = 0;
    OpenState open;
    mutable std::shared_ptr<const FileNames> names;  // valid while names_epoch is the table's, or not linked
    mutable std::uint64_t names_epoch = 0;
  };
  struct Key {
    std::uint64_t parent;
    std::string_view name;  // of the node itself
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const noexcept;
  };

  Node* get(NodeId id) const REQUIRES(mutex_);
  NodeId id_of(std::uint32_t slot) const REQUIRES(mutex_);
  std::optional<NodeId> lookup_name(NodeId parent, std::string_view name) const REQUIRES(mutex_);
  std::shared_ptr<const FileNames> names_of(const Node& node) const REQUIRES(mutex_);
  NodeView view(NodeId id, const Node& node) const REQUIRES(mutex_);
  void unlink_node(NodeId id) REQUIRES(mutex_);
  std::optional<std::uint32_t> free_slot() REQUIRES(mutex_);
  takeover::NodeRecord* record(NodeId id) const REQUIRES(mutex_);
  void store_new(std::uint32_t slot) REQUIRES(mutex_);
  void store_lookups(NodeId id) REQUIRES(mutex_);
  void store_move(std::uint32_t slot) REQUIRES(mutex_);
  void finish_move() REQUIRES(mutex_);
  void load(std::uint32_t slot) REQUIRES(mutex_);
  void link_up(std::uint32_t slot) REQUIRES(mutex_);
  void release_if_unused(NodeId id) REQUIRES(mutex_);

  takeover::State* const state_;
  mutable Mutex mutex_;
  std::vector<std::unique_ptr<Node>> nodes_ GUARDED_BY(mutex_);  // slot -> node; slot 0 is never used
  std::vector<std::uint32_t> free_slots_ GUARDED_BY(mutex_);
  std::unordered_map<Key, std::uint32_t, KeyHash> by_name_ GUARDED_BY(mutex_);
  std::uint64_t names_epoch_ GUARDED_BY(mutex_) = 1;  // grows when a directory moves
  std::array<Mutex, 64> open_mutexes_;
};

}  // namespace sluice::fuse
