#include "fuse/files/open_files.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace sluice::fuse {
namespace {

std::uint8_t flags_of(const OpenFile& file) {
  return static_cast<std::uint8_t>((file.write_access ? takeover::kWriteAccess : 0) |
                                   (file.write_only ? takeover::kWriteOnly : 0) | (file.own ? takeover::kOwn : 0));
}

HandleId id_of(std::uint32_t slot, std::uint32_t generation) { return HandleId(std::uint64_t{generation} << 32 | slot); }

}  // namespace

OpenFiles::OpenFiles(takeover::State* state) : state_(state) {
  if (state_ == nullptr) return;
  MutexLock lock(mutex_);
  slots_.resize(std::min(state_->header().open_slots, takeover::kMaxOpens));
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    const takeover::OpenRecord& record = state_->open(slot);
    Slot& entry = slots_[slot];
    entry.generation = record.generation;
    entry.used = record.used != 0;
    if (!entry.used) {
      free_.push_back(slot);
      continue;
    }
    entry.file = OpenFile{NodeId(record.node), (record.flags & takeover::kWriteAccess) != 0,
                          (record.flags & takeover::kWriteOnly) != 0, (record.flags & takeover::kOwn) != 0, nullptr};
    if (record.unique != 0) restored_[record.unique] = id_of(slot, entry.generation);
  }
}

const OpenFiles::Slot* OpenFiles::get(HandleId id) const {
  const auto slot = static_cast<std::uint32_t>(id.value());
  const auto generation = static_cast<std::uint32_t>(id.value() >> 32);
  if (slot >= slots_.size()) return nullptr;
  return slots_[slot].used && slots_[slot].generation == generation ? &slots_[slot] : nullptr;
}

HandleId OpenFiles::add(OpenFile file, std::uint64_t unique) {
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
  if (state_ != nullptr) {
    CHECK(slot < takeover::kMaxOpens);  // far above the limit of open files of any machine
    takeover::OpenRecord& record = state_->open(slot);
    record.generation = entry.generation;
    record.flags = flags_of(entry.file);
    record.node = entry.file.node.value();
    record.unique = unique;
    if (state_->header().open_slots <= slot) state_->header().open_slots = slot + 1;
    takeover::in_order();
    record.used = 1;
  }
  return id_of(slot, entry.generation);
}

std::optional<HandleId> OpenFiles::restored(std::uint64_t unique) const {
  MutexLock lock(mutex_);
  const auto it = restored_.find(unique);
  if (unique == 0 || it == restored_.end() || get(it->second) == nullptr) return std::nullopt;
  return it->second;
}

std::vector<OpenFile> OpenFiles::list() const {
  MutexLock lock(mutex_);
  std::vector<OpenFile> files;
  for (const Slot& slot : slots_)
    if (slot.used) files.push_back(slot.file);
  return files;
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
  if (state_ != nullptr) state_->open(static_cast<std::uint32_t>(id.value())).used = 0;
  OpenFile file = std::exchange(slot->file, OpenFile{});
  free_.push_back(static_cast<std::uint32_t>(id.value()));
  return file;
}

}  // namespace sluice::fuse
