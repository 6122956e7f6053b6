// A snapshot on its way into a database: its pages and their checksums collected beside the live database, and the
// marker that makes replacing the content something that is done again after a crash, never half done.
//
// DATA/install/<escaped>.<n>.pages   the image: page p at (p - 1) * page size
// DATA/install/<escaped>.<n>.sums    their checksums (storage/page_checksums.h)
// DATA/install/<escaped>.<n>.all     partial image: checksums of all pages, also of those that are not in it
// DATA/install/<escaped>.<n>.list    partial image: the pages in it, u32 big-endian each, ascending
// DATA/install/<escaped>.install     the marker, big-endian:
//
//   offset size
//        0    8 "SLUICESN"
//        8    4 version: 1, or 2 for a partial image
//       12    4 page size
//       16    4 commit: pages
//       20    4 partial image: pages in it; else zero
//       24    8 epoch
//       32    8 TXID
//       40    8 checksum over all pages
//       48    8 timestamp, ms since 1970
//       56    8 n
//       64    8 CRC-64/ISO of bytes 0…63
//
// While the marker is there, the content of the database is: this image, then the change log above its TXID. A partial image
// (decision 0005) goes over the database file as it is: what it lacks was in the file, durably, when the marker was written.
// Files without a marker are an interrupted collection.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/function_ref.h"
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
  /// Checksum of a page in the image; Checksum{}: not there.
  Checksum collected(Pgno pgno) const { return sums_->get(pgno); }
  /// No page above this was ever collected.
  std::uint32_t highest() const { return highest_; }
  std::uint32_t page_size() const { return page_size_; }

  /// The image will be partial: the checksums of pages 1…pages that it is part of.
  Result<void> make_partial(std::uint32_t pages, FunctionRef<Checksum(Pgno)> sum_of);
  bool partial() const { return all_ != nullptr; }
  /// Of the whole content; valid when it was checked to be complete.
  Checksum sum(Pgno pgno) const { return all_ ? all_->get(pgno) : sums_->get(pgno); }
  /// False: the file of pages was renamed to the database file.
  bool has_image() const { return image_.has_value(); }
  ImageFile& image() { return *image_; }

  /// The pages of a marked partial image in ascending order. Errc::corrupt: damaged.
  Result<void> for_each_page(FunctionRef<Result<void>(Pgno, ByteView)> visit);

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
  Result<void> write_list(std::uint32_t pages);

  FileSystem& fs_;
  const std::string dir_;
  const std::string escaped_;
  const std::uint64_t number_;
  std::optional<ImageFile> image_;
  std::unique_ptr<PageChecksums> sums_;
  std::unique_ptr<PageChecksums> all_;
  std::uint32_t page_size_ = 0;
  std::uint32_t highest_ = 0;
  std::uint32_t listed_ = 0;  ///< pages in the list of a partial image
  SnapshotEnd end_;
  bool marked_ = false;
  bool removed_ = false;  ///< by remove(): the destructor has nothing to do
};

}  // namespace sluice::storage::apply
