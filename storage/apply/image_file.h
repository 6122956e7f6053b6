// A database image being put together in a file of its own: page p at (p - 1) * page size, as in a database file.
#pragma once

#include <memory>
#include <string>

#include "base/os.h"
#include "storage/ids.h"

namespace sluice::storage::apply {

/// Not thread-safe.
class ImageFile {
 public:
  /// Creates `path` anew.
  static Result<ImageFile> create(FileSystem& fs, const std::string& path, std::uint32_t page_size);
  static Result<ImageFile> open(FileSystem& fs, const std::string& path, std::uint32_t page_size, bool write);

  /// Consecutive pages are gathered and written together.
  Result<void> write(Pgno pgno, ByteView page);
  /// Pages from `first` on, as many as `out` holds.
  Result<void> read(Pgno first, ByteSpan out);
  Result<void> flush();
  /// Writes what is gathered, cuts or extends the file to `pages` pages and makes it durable.
  Result<void> finish(std::uint32_t pages);

  std::uint32_t page_size() const { return page_size_; }
  const std::string& path() const { return file_->path(); }
  File& file() { return *file_; }

 private:
  ImageFile(std::unique_ptr<File> file, std::uint32_t page_size) : file_(std::move(file)), page_size_(page_size) {}

  std::unique_ptr<File> file_;
  std::uint32_t page_size_;
  Bytes run_;
  std::uint64_t run_at_ = 0;
};

}  // namespace sluice::storage::apply
