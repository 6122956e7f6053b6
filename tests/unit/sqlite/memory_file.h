// A read-only File in memory, for decoders. Counts reads and the largest one.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "base/os.h"

namespace sluice::test {

class MemoryFile final : public File {
 public:
  explicit MemoryFile(Bytes bytes) : bytes_(std::move(bytes)) {}

  Result<std::size_t> read_at(std::uint64_t offset, ByteSpan out) const override {
    largest_read_ = std::max(largest_read_, out.size());
    if (fail_reads_) return make_error(Errc::io, "read memory: told to fail");
    if (offset >= bytes_.size()) return std::size_t{0};
    const std::size_t n = std::min<std::uint64_t>(out.size(), bytes_.size() - offset);
    std::memcpy(out.data(), bytes_.data() + offset, n);
    return n;
  }
  Result<void> write_at(std::uint64_t, ByteView) override { return make_error(Errc::read_only, path_); }
  Result<void> sync_data() override { return make_error(Errc::read_only, path_); }
  Result<void> truncate(std::uint64_t) override { return make_error(Errc::read_only, path_); }
  Result<std::uint64_t> size() const override { return bytes_.size(); }
  Result<Mapping> map_shared(std::size_t) override { return make_error(Errc::unsupported, path_); }
  int fd() const override { return -1; }
  const std::string& path() const override { return path_; }

  Bytes& bytes() { return bytes_; }
  std::size_t largest_read() const { return largest_read_; }
  void fail_reads() { fail_reads_ = true; }

 private:
  Bytes bytes_;
  mutable std::size_t largest_read_ = 0;
  bool fail_reads_ = false;
  std::string path_ = "memory";
};

}  // namespace sluice::test
