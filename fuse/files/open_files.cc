#include "fuse/files/open_files.h"

#include <utility>

namespace sluice::fuse {

const OpenFiles::Slot* OpenFiles::get(HandleId id) const {
  const auto slot = static_cast<std::uint32_t>(id.value());
  const auto generation = static_cast<std::uint32_t>(id.value() >> 32);
  if (slot >= slots_.size()) return nullptr;
  return slots_[slot].used && slots_[slot].generation == generation ? &slots_[slot] : nullptr;
}

HandleId OpenFiles::add(OpenFile file) {
  MutexLock lock(mutex_);
  if (free_.empty()) {
    free_.push_back(static_cast<std::uint32_t>(slots_.size()));
    slots_.emplace_back();
  }
  const std::uint32_t slot = free_.back();
  free_.pop_back();
  Slot& entry = slots_[slot];
  ++entry.generation;
  entry.used = true;
  entry.file = std::move(file);
  return HandleId(std::uint64_t{entry.generation} << 32 | slot);
}

std::optional<OpenFile> OpenFiles::find(HandleId id) const {
  MutexLock lock(mutex_);
  const Slot* slot = get(id);
  if (slot == nullptr) return std::nullopt;
  return slot->file;
}

void OpenFiles::set_content(HandleId id, std::shared_ptr<const std::string> content) {
  MutexLock lock(mutex_);
  if (const Slot* slot = get(id)) const_cast<Slot*>(slot)->file.content = std::move(content);
}

std::optional<OpenFile> OpenFiles::remove(HandleId id) {
  MutexLock lock(mutex_);
  auto* slot = const_cast<Slot*>(get(id));
  if (slot == nullptr) return std::nullopt;
  slot->used = false;
  OpenFile file = std::exchange(slot->file, OpenFile{});
  free_.push_back(static_cast<std::uint32_t>(id.value()));
  return file;
}

}  // namespace sluice::fuse
