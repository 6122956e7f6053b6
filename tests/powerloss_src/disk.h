// What a disk may have after a loss of power: the fault model (docs/decisions/0007).
//
//   journal   ext4 with data=ordered: creations, removals and renames survive as a prefix of their global order, and every sync of
//             anything makes all of them that came before it survive.
//   names     what POSIX promises: names survive in order within one directory, and for certain only up to its last sync; a rename
//             between directories happens in both or in neither.
//
// In both, a file's content is that of its last sync, and of what was written since, in pieces of at most 4 KiB that end at
// multiples of it, any subset: none, all, a prefix of the order in which it was written (with a torn last piece), or each with its
// own luck. Pieces that are lost may leave the size that they would have made (zeros). Truncations are kept or lost likewise.
#pragma once

#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/powerloss_src/trace.h"

namespace sluice::powerloss {

enum class Names { journal, names };
enum class Data { none, all, prefix, luck };

struct Policy {
  Names names{};
  Data data{};
};

struct Image {
  std::map<std::string, Bytes> files;   ///< by path relative to the root
  std::set<std::string> directories;
};

/// The disk under a trace, at a point that only moves forward.
class Disk {
 public:
  explicit Disk(const std::vector<Op>& ops) : ops_(ops) {}
  /// The next `upto - point` operations happen.
  void advance(std::size_t upto);
  /// One of the images that a loss of power now may leave.
  Image sample(std::mt19937_64& random, Policy policy) const;

 private:
  struct File {
    Bytes synced;
    std::vector<std::size_t> since;  ///< writes and truncations
  };
  struct NameOp {
    std::size_t at;
    bool synced_by_journal = false;
    std::set<int> synced_in;  ///< directories that were synced since
  };

  std::vector<bool> choose_names(std::mt19937_64& random, Names names) const;
  Bytes content(int file, std::mt19937_64& random, Data data, std::size_t cut) const;
  void build(const std::vector<bool>& kept, std::map<int, std::map<std::string, int>>& directories, std::set<int>& known) const;

  const std::vector<Op>& ops_;
  std::size_t point_ = 0;
  std::map<int, File> files_;
  std::vector<NameOp> names_;
};

/// Writes it to an empty directory.
void write_image(const Image& image, const std::string& directory);

}  // namespace sluice::powerloss
