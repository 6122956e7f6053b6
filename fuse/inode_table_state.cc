// InodeTable: what is stored for, and restored by, a process that takes the connection over.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "fuse/inode_table.h"

namespace sluice::fuse {

takeover::NodeRecord* InodeTable::record(NodeId id) const {
  const auto slot = static_cast<std::uint32_t>(id.value());
  return state_ == nullptr || id == kRootNode ? nullptr : &state_->node(slot);
}

void InodeTable::store_new(std::uint32_t slot) {
  if (state_ == nullptr) return;
  const Node& node = *nodes_[slot];
  takeover::NodeRecord& to = state_->node(slot);
  to.generation = node.generation;
  to.linked = 1;
  to.kind = static_cast<std::uint8_t>(node.kind);
  to.parent = node.parent.value();
  to.backing_ino = node.backing_ino;
  to.lookups = node.lookups;
  to.backing_id = 0;
  takeover::store_name(to.name, node.name);
  state_->header().node_slots = std::max(state_->header().node_slots, slot + 1);
  takeover::in_order();
  to.used = 1;
  takeover::in_order();
}

void InodeTable::store_lookups(NodeId id) {
  if (auto* to = record(id)) to->lookups = get(id)->lookups;
}

// Name and parent change together: first noted, then changed, and what is noted can be done twice.
void InodeTable::store_move(std::uint32_t slot) {
  if (state_ == nullptr) return;
  takeover::MoveRecord& move = state_->header().move;
  move.slot = slot;
  move.new_parent = nodes_[slot]->parent.value();
  takeover::store_name(move.new_name, nodes_[slot]->name);
  takeover::in_order();
  move.active.store(1, std::memory_order_release);
  takeover::in_order();
  finish_move();
}

void InodeTable::finish_move() {
  takeover::MoveRecord& move = state_->header().move;
  takeover::NodeRecord& to = state_->node(move.slot);
  to.parent = move.new_parent;
  takeover::store_name(to.name, takeover::load_name(move.new_name));
  takeover::in_order();
  move.active.store(0, std::memory_order_release);
  takeover::in_order();
}

void InodeTable::load(std::uint32_t slot) {
  const takeover::NodeRecord& from = state_->node(slot);
  Node& node = *nodes_[slot];
  node.generation = from.generation;
  if (from.used == 0) return;
  node.used = true;
  node.linked = from.linked != 0;
  node.kind = static_cast<FileKind>(from.kind);
  node.parent = NodeId(from.parent);
  node.name = takeover::load_name(from.name);
  node.backing_ino = from.backing_ino;
  node.lookups = from.lookups;
  node.open.backing_id = from.backing_id;
}

// A node whose parent is gone, or whose name another has, was losing its name when its process died.
void InodeTable::link_up(std::uint32_t slot) {
  Node& node = *nodes_[slot];
  Node* parent = get(node.parent);
  const bool named = node.linked && parent != nullptr && parent->linked &&
                     by_name_.emplace(Key{node.parent.value(), node.name}, slot).second;
  if (named) {
    ++parent->children;
    return;
  }
  node.linked = false;
  node.parent = NodeId{};
  node.names = std::make_shared<const FileNames>(FileNames{node.name, {}});
  state_->node(slot).linked = 0;
}

std::vector<int> InodeTable::restore(const std::unordered_map<std::uint64_t, unsigned>& opens) {
  CHECK(state_ != nullptr);
  MutexLock lock(mutex_);
  if (state_->header().move.active.load(std::memory_order_acquire) != 0) finish_move();
  const std::uint32_t slots = std::min(state_->header().node_slots, takeover::kMaxNodes);
  while (nodes_.size() < slots) nodes_.push_back(std::make_unique<Node>());
  for (std::uint32_t slot = 2; slot < slots; ++slot) load(slot);
  std::vector<int> unused_ids;
  for (std::uint32_t slot = 2; slot < slots; ++slot) {
    Node& node = *nodes_[slot];
    if (!node.used) continue;
    const auto open = opens.find(id_of(slot).value());
    node.opens = open == opens.end() || node.kind == FileKind::virtual_file ? 0 : open->second;
    if (node.opens == 0 && node.open.backing_id != 0) {
      unused_ids.push_back(std::exchange(node.open.backing_id, 0));
      state_->node(slot).backing_id = 0;
    }
    link_up(slot);
  }
  for (std::uint32_t slot = 2; slot < slots; ++slot)
    if (!nodes_[slot]->used) free_slots_.push_back(slot);
  for (std::uint32_t slot = 2; slot < slots; ++slot)
    if (nodes_[slot]->used) release_if_unused(id_of(slot));
  return unused_ids;
}

}  // namespace sluice::fuse
