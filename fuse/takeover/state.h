// The shared memory of layout.h, mapped.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "base/errors.h"
#include "base/fd.h"
#include "fuse/takeover/layout.h"

namespace sluice::fuse::takeover {

/// The mapping is as large as everything could become; memory is used as far as records were.
class State {
 public:
  /// Of a new connection.
  static Result<std::unique_ptr<State>> create();
  /// Of a connection that another process has served; counts this process. Errc::unsupported: of another version of Sluice.
  static Result<std::unique_ptr<State>> adopt(UniqueFd file);
  /// Could this program take over from one that left `file`? Changes nothing.
  static Result<void> check(int file);

  int fd() const { return file_.get(); }
  /// The process before us answered the kernel's INIT.
  bool taken_over() const { return header().generation > 1; }
  /// It did not end by a clean kill: one of the requests it left may be the cause.
  bool after_crash() const { return after_crash_; }

  StateHeader& header() const { return *reinterpret_cast<StateHeader*>(memory_.data()); }
  NodeRecord& node(std::uint32_t slot) const;
  OpenRecord& open(std::uint32_t slot) const;
  std::span<RequestRecord> requests() const;
  std::span<RenameRecord> renames() const;
  /// `node` is being renamed, in place of what is noted of it. Nothing is noted if too many are.
  void note_rename(std::uint64_t node, std::uint64_t new_parent, std::string_view new_name);
  /// The table knows where it is. Of a process that died, too.
  void forget_rename(std::uint64_t node);

 private:
  State(UniqueFd file, Mapping memory) : file_(std::move(file)), memory_(std::move(memory)) {}
  static Result<std::unique_ptr<State>> map(UniqueFd file);

  UniqueFd file_;
  Mapping memory_;
  bool after_crash_ = false;
};

/// Stores that come before it in the program are made before those that come after it.
inline void in_order() { std::atomic_signal_fence(std::memory_order_seq_cst); }

void store_name(NameRecord& record, std::string_view name);
std::string_view load_name(const NameRecord& record);

}  // namespace sluice::fuse::takeover
