#include "fuse/inode_table.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "fuse/files/kind.h"

namespace sluice::fuse {
namespace {

std::uint32_t slot_of(NodeId id) { return static_cast<std::uint32_t>(id.value()); }
std::uint32_t generation_of(NodeId id) { return static_cast<std::uint32_t>(id.value() >> 32); }

std::string join(const std::string& directory, std::string_view name) {
  std::string path;
  path.reserve(directory.size() + 1 + name.size());
  path = directory;
  if (!path.empty()) path += '/';
  path += name;
  return path;
}

std::shared_ptr<const FileNames> make_names(std::string path, FileKind kind) {
  std::string database(database_of(kind, path));
  return std::make_shared<const FileNames>(FileNames{std::move(path), std::move(database)});
}

}  // namespace

std::size_t InodeTable::KeyHash::operator()(const Key& key) const noexcept {
  return std::hash<std::string_view>{}(key.name) ^ (key.parent * 0x9e3779b97f4a7c15ULL);
}

InodeTable::InodeTable(ino_t root_ino, takeover::State* state) : state_(state) {
  MutexLock lock(mutex_);
  nodes_.push_back(std::make_unique<Node>());
  auto root = std::make_unique<Node>();
  root->used = root->linked = true;
  root->kind = FileKind::directory;
  root->backing_ino = root_ino;
  root->lookups = 1;
  nodes_.push_back(std::move(root));
}

InodeTable::Node* InodeTable::get(NodeId id) const {
  const std::uint32_t slot = slot_of(id);
  if (slot == 0 || slot >= nodes_.size()) return nullptr;
  Node& node = *nodes_[slot];
  return node.used && node.generation == generation_of(id) ? &node : nullptr;
}

NodeId InodeTable::id_of(std::uint32_t slot) const {
  return NodeId(std::uint64_t{nodes_[slot]->generation} << 32 | slot);
}

std::optional<NodeId> InodeTable::lookup_name(NodeId parent, std::string_view name) const {
  const auto it = by_name_.find(Key{parent.value(), name});
  if (it == by_name_.end()) return std::nullopt;
  return id_of(it->second);
}

std::shared_ptr<const FileNames> InodeTable::names_of(const Node& node) const {
  if (node.names && (!node.linked || node.names_epoch == names_epoch_)) return node.names;
  std::string path;
  if (const Node* parent = get(node.parent)) path = join(names_of(*parent)->path, node.name);
  node.names = make_names(std::move(path), node.kind);
  node.names_epoch = names_epoch_;
  return node.names;
}

NodeView InodeTable::view(NodeId id, const Node& node) const {
  return NodeView{id,         node.kind,      node.backing_ino, node.linked, node.opens, names_of(node),
                  node.open.file, node.open.backing_id, node.open.hidden};
}

std::optional<NodeView> InodeTable::find(NodeId id) const {
  MutexLock lock(mutex_);
  const Node* node = get(id);
  if (node == nullptr) return std::nullopt;
  return view(id, *node);
}

std::optional<NodeView> InodeTable::child(NodeId parent, std::string_view name) const {
  MutexLock lock(mutex_);
  const auto id = lookup_name(parent, name);
  if (!id) return std::nullopt;
  return view(*id, *get(*id));
}

std::optional<NodeId> InodeTable::find_path(std::string_view path) const {
  MutexLock lock(mutex_);
  NodeId at = kRootNode;
  while (!path.empty()) {
    const std::size_t slash = path.find('/');
    const auto next = lookup_name(at, path.substr(0, slash));
    if (!next) return std::nullopt;
    at = *next;
    path = slash == std::string_view::npos ? std::string_view{} : path.substr(slash + 1);
  }
  return at;
}

std::optional<std::string> InodeTable::child_path(NodeId parent, std::string_view name) const {
  MutexLock lock(mutex_);
  const Node* node = get(parent);
  if (node == nullptr || !node->linked) return std::nullopt;
  return join(names_of(*node)->path, name);
}

std::optional<NodeId> InodeTable::enter(NodeId parent, std::string_view name, ino_t backing_ino, FileKind kind,
                                        bool fresh) {
  MutexLock lock(mutex_);
  Node* directory = get(parent);
  if (directory == nullptr || !directory->linked) return std::nullopt;
  if (const auto known = lookup_name(parent, name)) {
    Node& node = *get(*known);
    const bool same_type = (node.kind == FileKind::directory) == (kind == FileKind::directory);
    if (!fresh && node.backing_ino == backing_ino && same_type) {
      ++node.lookups;
      store_lookups(*known);
      return known;
    }
    unlink_node(*known);
  }
  const auto slot = free_slot();
  if (!slot) return std::nullopt;
  Node& node = *nodes_[*slot];
  const std::uint32_t generation = node.generation + 1;
  node = Node{};
  node.generation = generation;
  node.used = node.linked = true;
  node.kind = kind;
  node.parent = parent;
  node.name = name;
  node.backing_ino = backing_ino;
  node.lookups = 1;
  ++directory->children;
  by_name_.emplace(Key{parent.value(), node.name}, *slot);
  store_new(*slot);
  return id_of(*slot);
}

std::optional<std::uint32_t> InodeTable::free_slot() {
  if (!free_slots_.empty()) {
    const std::uint32_t slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }
  if (state_ != nullptr && nodes_.size() >= takeover::kMaxNodes) return std::nullopt;
  nodes_.push_back(std::make_unique<Node>());
  return static_cast<std::uint32_t>(nodes_.size() - 1);
}

void InodeTable::forget(NodeId id, std::uint64_t lookups) {
  MutexLock lock(mutex_);
  Node* node = get(id);
  if (node == nullptr || id == kRootNode) return;
  node->lookups -= std::min(lookups, node->lookups);
  store_lookups(id);
  release_if_unused(id);
}

void InodeTable::unlink_node(NodeId id) {
  Node& node = *get(id);
  CHECK(node.linked);
  names_of(node);  // its last name stays with it
  by_name_.erase(Key{node.parent.value(), node.name});
  node.linked = false;
  if (auto* stored = record(id)) stored->linked = 0;
  const NodeId parent = std::exchange(node.parent, NodeId{});
  Node* directory = get(parent);
  CHECK(directory != nullptr && directory->children > 0);
  --directory->children;
  release_if_unused(parent);
  release_if_unused(id);
}

void InodeTable::release_if_unused(NodeId id) {
  Node* node = get(id);
  if (node == nullptr || id == kRootNode) return;
  if (node->lookups != 0 || node->children != 0 || node->opens != 0) return;
  node->lookups = 1;  // unlink_node() below comes back here
  if (node->linked) unlink_node(id);
  if (auto* stored = record(id)) stored->used = 0;
  const std::uint32_t generation = node->generation;
  *node = Node{};
  node->generation = generation;
  free_slots_.push_back(slot_of(id));
}

void InodeTable::removed(NodeId parent, std::string_view name) {
  MutexLock lock(mutex_);
  if (const auto id = lookup_name(parent, name)) unlink_node(*id);
}

void InodeTable::detach_idle(NodeId parent, std::string_view name) {
  MutexLock lock(mutex_);
  const auto id = lookup_name(parent, name);
  if (!id) return;
  const Node& node = *get(*id);
  if (node.opens == 0 && node.kind != FileKind::directory) unlink_node(*id);
}

void InodeTable::moved(NodeId parent, std::string_view name, NodeId new_parent, std::string_view new_name) {
  MutexLock lock(mutex_);
  const auto id = lookup_name(parent, name);
  if (const auto replaced = lookup_name(new_parent, new_name); replaced && replaced != id) unlink_node(*replaced);
  Node* target = get(new_parent);
  if (!id) return;
  Node& node = *get(*id);
  if (target == nullptr || !target->linked) {
    unlink_node(*id);
    return;
  }
  by_name_.erase(Key{parent.value(), node.name});
  ++target->children;
  node.parent = new_parent;
  node.name = new_name;
  store_move(slot_of(*id));
  node.names.reset();
  if (node.kind == FileKind::directory) ++names_epoch_;
  by_name_.emplace(Key{new_parent.value(), node.name}, slot_of(*id));
  Node* source = get(parent);
  CHECK(source != nullptr && source->children > 0);
  --source->children;
  release_if_unused(parent);
}

void InodeTable::set_kind(NodeId id, FileKind kind) {
  MutexLock lock(mutex_);
  Node* node = get(id);
  if (node == nullptr || node->kind == kind) return;
  node->kind = kind;
  if (auto* stored = record(id)) stored->kind = static_cast<std::uint8_t>(kind);
  if (node->linked)
    node->names.reset();
  else
    node->names = make_names(names_of(*node)->path, kind);
}

std::optional<OpenState> InodeTable::add_open(NodeId id) {
  MutexLock lock(mutex_);
  Node* node = get(id);
  if (node == nullptr || node->opens == 0) return std::nullopt;
  ++node->opens;
  return node->open;
}

void InodeTable::first_open(NodeId id, OpenState state) {
  MutexLock lock(mutex_);
  Node* node = get(id);
  CHECK(node != nullptr && node->opens == 0);
  node->opens = 1;
  node->open = std::move(state);
  if (auto* stored = record(id)) stored->backing_id = node->open.backing_id;
}

void InodeTable::set_hidden(NodeId id) {
  MutexLock lock(mutex_);
  if (Node* node = get(id)) node->open.hidden = true;
}

void InodeTable::replace_file(NodeId id, std::shared_ptr<const BackingFile> file) {
  MutexLock lock(mutex_);
  Node* node = get(id);
  CHECK(node != nullptr && node->opens > 0);
  std::swap(node->open.file, file);
}

OpenState InodeTable::drop_open(NodeId id) {
  MutexLock lock(mutex_);
  Node* node = get(id);
  if (node == nullptr || node->opens == 0) return {};
  if (--node->opens > 0) return {};
  OpenState last = std::exchange(node->open, OpenState{});
  if (auto* stored = record(id)) stored->backing_id = 0;  // before it is closed
  release_if_unused(id);
  return last;
}

std::size_t InodeTable::size() const {
  MutexLock lock(mutex_);
  return nodes_.size() - 1 - free_slots_.size();
}

}  // namespace sluice::fuse
