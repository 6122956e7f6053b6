#include "storage/apply/snapshot_files.h"

#include <algorithm>
#include <array>

#include "base/log.h"
#include "storage/ltx/checksum.h"

namespace sluice::storage::apply {
namespace {

constexpr std::string_view kMagic = "SLUICESN";
constexpr std::uint32_t kWhole = 1;  // versions
constexpr std::uint32_t kPartial = 2;
constexpr std::size_t kSummed = 64;
constexpr std::size_t kListPiece = 64 * 1024;

using Marker = std::array<std::byte, kInstallMarkerSize>;

std::uint64_t crc_of(const Marker& marker) {
  ltx::Crc64 crc;
  crc.update(ByteView(marker).first(kSummed));
  return crc.value();
}

struct Decoded {
  SnapshotEnd end;
  std::uint64_t number = 0;
  bool partial = false;
  std::uint32_t listed = 0;
};

Marker encode(const Decoded& in) {
  const SnapshotEnd& end = in.end;
  Marker marker{};
  std::byte* p = marker.data();
  std::ranges::copy(as_bytes(kMagic), p);
  store_be<std::uint32_t>(p + 8, in.partial ? kPartial : kWhole);
  store_be<std::uint32_t>(p + 12, end.page_size);
  store_be<std::uint32_t>(p + 16, end.commit);
  store_be<std::uint32_t>(p + 20, in.listed);
  store_be<std::uint64_t>(p + 24, end.epoch.value());
  store_be<std::uint64_t>(p + 32, end.pos.txid.value());
  store_be<std::uint64_t>(p + 40, end.pos.checksum.value());
  store_be<std::uint64_t>(p + 48, static_cast<std::uint64_t>(end.timestamp_ms));
  store_be<std::uint64_t>(p + 56, in.number);
  store_be<std::uint64_t>(p + 64, crc_of(marker));
  return marker;
}

Result<Decoded> decode(ByteView in) {
  Marker marker{};
  if (in.size() != marker.size()) return make_error(Errc::corrupt, "install marker has the wrong length");
  std::ranges::copy(in, marker.begin());
  const std::byte* p = marker.data();
  if (as_text(ByteView(marker).first(kMagic.size())) != kMagic || load_be<std::uint64_t>(p + 64) != crc_of(marker)) {
    return make_error(Errc::corrupt, "install marker is damaged");
  }
  const std::uint32_t version = load_be<std::uint32_t>(p + 8);
  if (version != kWhole && version != kPartial) {
    return make_error(Errc::unsupported, "install marker is of a newer version of sluice");
  }
  Decoded out;
  out.partial = version == kPartial;
  out.listed = load_be<std::uint32_t>(p + 20);
  SnapshotEnd& end = out.end;
  end.page_size = load_be<std::uint32_t>(p + 12);
  end.commit = load_be<std::uint32_t>(p + 16);
  end.epoch = Epoch(load_be<std::uint64_t>(p + 24));
  end.pos = {Txid(load_be<std::uint64_t>(p + 32)), Checksum(load_be<std::uint64_t>(p + 40))};
  end.timestamp_ms = static_cast<std::int64_t>(load_be<std::uint64_t>(p + 48));
  out.number = load_be<std::uint64_t>(p + 56);
  return out;
}

/// The number n of "<escaped>.<n>.pages" / ".sums", if `file` is one of these.
std::optional<std::uint64_t> number_of(const std::string& file, const std::string& escaped) {
  if (!file.starts_with(escaped + ".")) return std::nullopt;
  const std::string rest = file.substr(escaped.size() + 1);
  const std::size_t dot = rest.find('.');
  if (dot == std::string::npos || dot == 0 || dot > 18) return std::nullopt;
  const std::string suffix = rest.substr(dot);
  if (suffix != ".pages" && suffix != ".sums" && suffix != ".all" && suffix != ".list") return std::nullopt;
  std::uint64_t number = 0;
  for (const char c : rest.substr(0, dot)) {
    if (c < '0' || c > '9') return std::nullopt;
    number = number * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return number;
}

Result<std::optional<Bytes>> read_marker(FileSystem& fs, const std::string& path) {
  TRY_ASSIGN(const bool exists, fs.exists(path));
  if (!exists) return std::optional<Bytes>();
  TRY_ASSIGN(Bytes bytes, read_file(fs, path, 4096));
  return std::optional<Bytes>(std::move(bytes));
}

}  // namespace

SnapshotFiles::SnapshotFiles(FileSystem& fs, std::string dir, std::string escaped, std::uint64_t number)
    : fs_(fs), dir_(std::move(dir)), escaped_(std::move(escaped)), number_(number) {}

SnapshotFiles::~SnapshotFiles() {
  if (marked_ || removed_) return;
  if (const auto removed = remove_files(); removed.has_error()) LOG_WARN("{}", removed.error().to_string());
}

std::string SnapshotFiles::path(const char* suffix) const {
  return dir_ + "/" + escaped_ + "." + std::to_string(number_) + suffix;
}

Result<std::unique_ptr<SnapshotFiles>> SnapshotFiles::create(FileSystem& fs, const std::string& dir,
                                                             const std::string& escaped, std::uint32_t page_size) {
  if (!valid_page_size(page_size)) {
    return make_error(Errc::corrupt, "a snapshot with impossible page size " + std::to_string(page_size));
  }
  TRY(fs.make_directories(dir));
  TRY_ASSIGN(const auto entries, fs.list(dir));
  std::uint64_t number = 1;
  for (const DirEntry& entry : entries) {
    if (const auto used = number_of(entry.name, escaped)) number = std::max(number, *used + 1);
  }
  std::unique_ptr<SnapshotFiles> files(new SnapshotFiles(fs, dir, escaped, number));
  files->page_size_ = page_size;
  TRY_ASSIGN(files->image_, ImageFile::create(fs, files->path(".pages"), page_size));
  TRY_ASSIGN(files->sums_, PageChecksums::open(fs, files->path(".sums")));
  return files;
}

Result<std::unique_ptr<SnapshotFiles>> SnapshotFiles::open_marked(FileSystem& fs, const std::string& dir,
                                                                  const std::string& escaped) {
  TRY_ASSIGN(const auto bytes, read_marker(fs, dir + "/" + escaped + ".install"));
  if (!bytes) return std::unique_ptr<SnapshotFiles>();
  TRY_ASSIGN(const Decoded decoded, decode(*bytes));
  const SnapshotEnd& end = decoded.end;
  std::unique_ptr<SnapshotFiles> files(new SnapshotFiles(fs, dir, escaped, decoded.number));
  files->marked_ = true;
  files->end_ = end;
  files->page_size_ = end.page_size;
  files->highest_ = end.commit;
  files->listed_ = decoded.listed;
  TRY_ASSIGN(const bool image, fs.exists(files->path(".pages")));
  if (image) {
    TRY_ASSIGN(files->image_, ImageFile::open(fs, files->path(".pages"), end.page_size, false));
  }
  TRY_ASSIGN(files->sums_, PageChecksums::open(fs, files->path(".sums")));
  if (!decoded.partial) return files;
  if (!image) return make_error(Errc::corrupt, files->path(".pages") + ": the marker's image is missing");
  TRY_ASSIGN(files->all_, PageChecksums::open(fs, files->path(".all")));
  return files;
}

Result<void> SnapshotFiles::clean(FileSystem& fs, const std::string& dir, const std::string& escaped, bool marker_too) {
  TRY_ASSIGN(const bool exists, fs.exists(dir));
  if (!exists) return {};
  const std::string marker = dir + "/" + escaped + ".install";
  std::optional<std::uint64_t> kept;
  if (marker_too) {
    TRY_ASSIGN(const bool marked, fs.exists(marker));
    if (marked) {
      TRY(fs.unlink(marker));
      TRY(fs.sync_directory(dir));
    }
  } else {
    TRY_ASSIGN(const auto bytes, read_marker(fs, marker));
    if (bytes) {
      if (const auto decoded = decode(*bytes); decoded.has_value()) kept = decoded->number;
    }
  }
  TRY_ASSIGN(const auto entries, fs.list(dir));
  for (const DirEntry& entry : entries) {
    const auto number = number_of(entry.name, escaped);
    if (number && number != kept) TRY(fs.unlink(dir + "/" + entry.name));
  }
  return {};
}

Result<void> SnapshotFiles::add(Pgno pgno, ByteView content) {
  if (pgno == Pgno(0) || pgno == lock_page(image_->page_size()) || content.size() != image_->page_size()) {
    return make_error(Errc::corrupt, fmt::format("a snapshot cannot have page {} of {} bytes", pgno, content.size()));
  }
  TRY(image_->write(pgno, content));
  highest_ = std::max(highest_, pgno.value());
  return sums_->set(pgno, ltx::page_checksum(pgno, content));
}

Result<void> SnapshotFiles::make_partial(std::uint32_t pages, FunctionRef<Checksum(Pgno)> sum_of) {
  TRY_ASSIGN(auto all, PageChecksums::open(fs_, path(".all")));
  const std::uint32_t lock = lock_page(page_size_).value();
  for (std::uint64_t p = 1; p <= pages; ++p) {
    const Pgno pgno(static_cast<std::uint32_t>(p));
    if (p != lock) TRY(all->set(pgno, sum_of(pgno)));
  }
  TRY(all->truncate(pages));
  all_ = std::move(all);
  return {};
}

// Not the table of checksums: after a restart of the machine that one trusts only what adds up to a whole database.
Result<void> SnapshotFiles::write_list(std::uint32_t pages) {
  TRY_ASSIGN(const auto file, fs_.open(path(".list"), {.write = true, .create = true}));
  TRY(file->truncate(0));
  Bytes piece;
  std::uint64_t at = 0;
  listed_ = 0;
  const auto flush = [&]() -> Result<void> {
    TRY(file->write_at(at, piece));
    at += piece.size();
    piece.clear();
    return {};
  };
  for (std::uint64_t p = 1; p <= std::min(pages, highest_); ++p) {
    const auto number = static_cast<std::uint32_t>(p);
    if (collected(Pgno(number)) == Checksum{}) continue;
    ++listed_;
    piece.resize(piece.size() + 4);
    store_be<std::uint32_t>(piece.data() + piece.size() - 4, number);
    if (piece.size() >= kListPiece) TRY(flush());
  }
  if (!piece.empty()) TRY(flush());
  return file->sync_data();
}

Result<void> SnapshotFiles::for_each_page(FunctionRef<Result<void>(Pgno, ByteView)> visit) {
  TRY_ASSIGN(const auto file, fs_.open(path(".list"), {}));
  TRY_ASSIGN(const std::uint64_t size, file->size());
  if (size != std::uint64_t{listed_} * 4) return make_error(Errc::corrupt, file->path() + " has the wrong length");
  Bytes piece(kListPiece);
  Bytes page(page_size_);
  for (std::uint64_t at = 0; at < size; at += piece.size()) {
    piece.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kListPiece, size - at)));
    TRY_ASSIGN(const std::size_t n, file->read_at(at, piece));
    if (n != piece.size()) return make_error(Errc::corrupt, file->path() + " became shorter");
    for (std::size_t i = 0; i < piece.size(); i += 4) {
      const Pgno pgno(load_be<std::uint32_t>(piece.data() + i));
      if (pgno == Pgno(0) || pgno.value() > end_.commit) return make_error(Errc::corrupt, file->path() + " is damaged");
      TRY(image_->read(pgno, page));
      if (ltx::page_checksum(pgno, page) != sum(pgno)) {
        return make_error(Errc::corrupt, fmt::format("{}: page {} is damaged", image_->path(), pgno));
      }
      TRY(visit(pgno, page));
    }
  }
  return {};
}

Result<void> SnapshotFiles::mark(const SnapshotEnd& end) {
  TRY(image_->finish(end.commit));
  TRY(sums_->truncate(end.commit));
  TRY(sums_->checkpoint({end.pos, end.page_size, end.commit}));
  if (all_) {
    TRY(all_->checkpoint({end.pos, end.page_size, end.commit}));
    TRY(write_list(end.commit));
  }
  TRY(fs_.sync_directory(dir_));
  end_ = end;
  // After a failure it is unknown whether the marker is there: it must then find its files.
  marked_ = true;
  TRY(write_file_atomically(fs_, marker_path(), encode({end, number_, partial(), listed_})));
  return clean(fs_, dir_, escaped_, false);
}

Result<void> SnapshotFiles::remove() {
  TRY(fs_.unlink(marker_path()));
  TRY(fs_.sync_directory(dir_));
  marked_ = false;
  // From here on the number may be taken again, by a thread that begins the next snapshot: these files are removed once.
  removed_ = true;
  return remove_files();
}

Result<void> SnapshotFiles::remove_files() {
  for (const char* suffix : {".pages", ".sums", ".all", ".list"}) {
    TRY_ASSIGN(const bool exists, fs_.exists(path(suffix)));
    if (exists) TRY(fs_.unlink(path(suffix)));
  }
  return {};
}

}  // namespace sluice::storage::apply
