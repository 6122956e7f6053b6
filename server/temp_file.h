// A file in the node's own temporary directory that disappears with its owner.
#pragma once

#include <string>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/fd.h"

namespace sluice::server {

class TempFile {
 public:
  /// DIR/PREFIXxxxxxx, mode 0600.
  static Result<TempFile> create(const std::string& dir, const std::string& prefix);
  ~TempFile();
  TempFile(TempFile&& other) noexcept;
  TempFile& operator=(TempFile&&) = delete;

  const std::string& path() const { return path_; }
  int fd() const { return fd_.get(); }
  Result<void> write_at(std::uint64_t offset, ByteView data);
  /// All of `out`, or an error.
  Result<void> read_at(std::uint64_t offset, ByteSpan out) const;
  Result<std::uint64_t> size() const;
  Result<void> truncate(std::uint64_t size);

 private:
  TempFile(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  UniqueFd fd_;
  std::string path_;
};

/// Reads all of `out` at `offset` of `fd`; `what` names the file in the error.
Result<void> read_exactly(int fd, std::uint64_t offset, ByteSpan out, const std::string& what);

}  // namespace sluice::server
