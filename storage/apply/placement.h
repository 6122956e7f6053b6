// A replica's files in the backing tree: putting a finished database in place, taking it away, setting things aside in
// DATA/lost+found. The mount is told about every name that changes.
#pragma once

#include <string>

#include "storage/mount_access.h"
#include "storage/store.h"

namespace sluice::storage::apply {

/// Where the mount's view is told of changed names; nullptr: no mount yet (recovery before mounting).
struct Placement {
  Store& store;
  MountAccess* access = nullptr;

  /// Renames `image` (complete, durable) to the database `name`, with a WAL of a header only beside it *before* it: SQLite must never
  /// find the database without a WAL, or a reader would read it in rollback mode, beside our backfills. Whatever else
  /// stood there is set aside first, with a warning. Durable.
  Result<void> put(const std::string& name, const std::string& image, std::uint32_t page_size) const;
  /// Unlinks the database, then -wal and -shm (in this order: never a database without its WAL). Durable.
  Result<void> remove(const std::string& name) const;
  /// Moves the database with -wal, -shm and -journal to DATA/lost+found/<escaped>-<tag>-<n>/; nothing there is no error.
  /// Returns the directory, empty if there was nothing.
  Result<std::string> set_aside(const std::string& name, const std::string& tag) const;
  /// Replaces -wal by one of a header only. Nobody has it open.
  Result<void> reset_wal_only(const std::string& name, std::uint32_t page_size) const;
  /// Leaves an empty -shm, which whoever connects first fills: what a power loss leaves of it says nothing about the WAL, and not
  /// every client may create one. Nobody has it open.
  Result<void> empty_wal_index(const std::string& name) const;
  /// Removes -shm: what a power loss leaves of it says nothing about the WAL. Nobody has it open.
  Result<void> drop_wal_index(const std::string& name) const;
  /// Replaces -wal by one of a header only, removes -shm. Nobody has them open.
  Result<void> reset_wal(const std::string& name, std::uint32_t page_size) const;

 private:
  Result<void> clear_way(const std::string& name) const;
  Result<std::string> make_directory(const std::string& name, const std::string& tag) const;
  Result<void> unlink_if_there(const std::string& path) const;
  void forget(const std::string& path) const;
};

}  // namespace sluice::storage::apply
