#include "storage/apply/image_file.h"

#include "base/check.h"

namespace sluice::storage::apply {
namespace {

constexpr std::size_t kRunSize = std::size_t{1} << 20;

}  // namespace

Result<ImageFile> ImageFile::create(FileSystem& fs, const std::string& path, std::uint32_t page_size) {
  TRY_ASSIGN(auto file, fs.open(path, {.write = true, .create = true}));
  TRY(file->truncate(0));
  return ImageFile(std::move(file), page_size);
}

Result<ImageFile> ImageFile::open(FileSystem& fs, const std::string& path, std::uint32_t page_size, bool write) {
  TRY_ASSIGN(auto file, fs.open(path, {.write = write}));
  return ImageFile(std::move(file), page_size);
}

Result<void> ImageFile::write(Pgno pgno, ByteView page) {
  CHECK(pgno != Pgno(0) && page.size() == page_size_);
  const std::uint64_t offset = std::uint64_t{pgno.value() - 1} * page_size_;
  if (offset != run_at_ + run_.size() || run_.size() >= kRunSize) {
    TRY(flush());
    run_at_ = offset;
  }
  run_.insert(run_.end(), page.begin(), page.end());
  return {};
}

Result<void> ImageFile::flush() {
  if (run_.empty()) return {};
  TRY(file_->write_at(run_at_, run_));
  run_.clear();
  return {};
}

Result<void> ImageFile::read(Pgno first, ByteSpan out) {
  TRY(flush());
  TRY_ASSIGN(const std::size_t n, file_->read_at(std::uint64_t{first.value() - 1} * page_size_, out));
  if (n != out.size()) return make_error(Errc::io, path() + " became shorter");
  return {};
}

Result<void> ImageFile::finish(std::uint32_t pages) {
  TRY(flush());
  TRY(file_->truncate(std::uint64_t{pages} * page_size_));
  return file_->sync_data();
}

}  // namespace sluice::storage::apply
