// A snapshot on its way into a database: its pages and their checksums collected beside the live database, and the
// marker that makes replacing the content something that is done again after a crash, never half done.
//
// DATA/install/<escaped>.<n>.pages   the image: page p at (p - 1) * page size
// DATA/install/<escaped>.<n>.sums    page checksums (storage/page_checksums.h)
// DATA/install/<escaped>.install     the marker, big-endian:
//
//   offset size
//        0    8 "SLUICESN"
//        8    4 version, 1
//       12    4 page size
//       16    4 commit: pages
//       20    4 zero
//       24    8 epoch
//       32    8 TXID
//       40    8 checksum over all pages
//       48    8 timestamp, ms since 1970
//       56    8 n
//       64    8 CRC-64/ISO of bytes 0…63
//
// While the marker is there, the content of the database is: this image, then the change log above its TXID. Files
// without a marker are an interrupted collection and of no use.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/os.h"
#include "storage/apply/image_file.h"
#include "storage/page_checksums.h"
#include "storage/snapshot.h"

namespace sluice::storage::apply {

inline constexpr std::size_t kInstallMarkerSize = 72;

/// Not thread-safe.
class SnapshotFiles {
 public:
  /// Starts collecting for the database with the escaped name `escaped` in directory `dir` (created if missing).
  static Result<std::unique_ptr<SnapshotFiles>> create(FileSystem& fs, const std::string& dir, const std::string& escaped,
                                                       std::uint32_t page_size);
  /// The snapshot whose marker was written; nullptr if there is none. Errc::corrupt: marker or files are damaged.
  static Result<std::unique_ptr<SnapshotFiles>> open_marked(FileSystem& fs, const std::string& dir,
                                                            const std::string& escaped);
  /// Deletes what belongs to no marker of `escaped` (or everything, with `marker_too`).
  static Result<void> clean(FileSystem& fs, const std::string& dir, const std::string& escaped, bool marker_too);

  /// A collection without marker is deleted.
  ~SnapshotFiles();
  SnapshotFiles(const SnapshotFiles&) = delete;
  SnapshotFiles& operator=(const SnapshotFiles&) = delete;

  /// The last content of a page counts. Errc::corrupt: page zero, the lock page, wrong size.
  Result<void> add(Pgno pgno, ByteView content);
  /// Checksum{}: not there.
  Checksum sum(Pgno pgno) const { return sums_->get(pgno); }
  /// XOR over pages 1…pages; Errc::corrupt names a page that is missing.
  Result<Checksum> total(std::uint32_t pages) const;
  /// False: the file of pages was renamed to the database file.
  bool has_image() const { return image_.has_value(); }
  ImageFile& image() { return *image_; }

  /// Makes everything durable and writes the marker: from here on the database is what `end` says. Replaces an older
  /// marker.
  Result<void> mark(const SnapshotEnd& end);
  /// Valid after mark() and open_marked().
  const SnapshotEnd& end() const { return end_; }
  /// The content is in place and durable: deletes marker and files.
  Result<void> remove();

 private:
  SnapshotFiles(FileSystem& fs, std::string dir, std::string escaped, std::uint64_t number);
  std::string path(const char* suffix) const;
  std::string marker_path() const { return dir_ + "/" + escaped_ + ".install"; }
  Result<void> remove_files();

  FileSystem& fs_;
  const std::string dir_;
  const std::string escaped_;
  const std::uint64_t number_;
  std::optional<ImageFile> image_;
  std::unique_ptr<PageChecksums> sums_;
  SnapshotEnd end_;
  bool marked_ = false;
};

}  // namespace sluice::storage::apply
