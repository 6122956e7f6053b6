// The files of one fenced database: the orphans' -wal and -shm, moved out of the way step by step, so that every prefix of the
// steps is something the next start can go on from.
//
//   DATA/fenced/<name>.<n>/wal   second name of the orphans' -wal; immutable while orphans live
//   DATA/fenced/<name>.<n>/shm   the orphans' -shm, its headers poisoned
//   DATA/fenced/<name>.<n>/done  the database has files of its own again
#pragma once

#include <string>

#include "fuse/orphans/file_holders.h"
#include "storage/sqlite/wal_copy.h"
#include "storage/store.h"

namespace sluice::fuse {

class FencedFiles {
 public:
  /// `can_stop`: the file system has immutable files.
  FencedFiles(storage::Store& store, std::string name, std::string directory, bool can_stop);

  const std::string& name() const { return name_; }
  std::string wal() const { return directory_ + "/wal"; }
  std::string shm() const { return directory_ + "/shm"; }

  /// 1. Gives the files their names in the directory. Changes nothing for anybody.
  Result<void> take_aside();
  /// 2. From here on no write reaches the -wal (if that is possible here), and no transaction begins.
  Result<void> stop_orphans();
  /// 3. The database gets a -wal of its own with what is committed, and no -shm.
  Result<void> replace();
  /// 4. Nothing is left to do but to wait for the orphans' end.
  Result<void> finish();

  Result<bool> is_done() const;
  /// Somebody still has the files open.
  bool held() const { return is_held(wal()) || is_held(shm()); }
  /// The headers in the orphans' wal-index, again: a process may have published a last commit, see stop_orphans().
  Result<void> poison();
  Result<void> remove();
  /// What processes call the files.
  std::vector<FileIdentity> identities() const;

  std::uint32_t kept_frames() const { return kept_frames_; }

 private:
  struct Committed {
    sqlite::WalCut cut;
    std::uint32_t frames = 0;
  };
  Result<Committed> committed();
  Result<bool> wal_replaced() const;
  Result<void> put_copy(const Committed& committed, bool over_immutable);
  Result<void> extend_copy(const Committed& committed);

  storage::Store& store_;
  FileSystem& fs_;
  const std::string name_;
  const std::string directory_;
  const std::string path_;  ///< of the database
  const bool can_stop_;
  std::uint32_t kept_frames_ = 0;
};

}  // namespace sluice::fuse
