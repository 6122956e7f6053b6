#include "storage/sqlite/journal.h"

#include <fmt/format.h>

#include <array>
#include <bitset>
#include <unordered_map>

#include "storage/sqlite/database_header.h"

namespace sluice::sqlite {
namespace {

constexpr std::array<unsigned char, 8> kJournalMagic = {0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7};
// Before the first header SQLite knows only its own sector size: 512 with powersafe overwrite, its default.
constexpr std::uint32_t kAssumedSectorSize = 512;
constexpr std::uint32_t kMinSectorSize = 32;
constexpr std::uint32_t kMaxSectorSize = 65536;
constexpr std::size_t kMaxSuperJournalName = 512;  // os_unix.c MAX_PATHNAME
constexpr std::size_t kSuperJournalTrailer = 16;   // length, checksum, magic

bool is_magic(ByteView in) {
  return std::memcmp(in.data(), kJournalMagic.data(), kJournalMagic.size()) == 0;
}

bool power_of_two(std::uint32_t n) {
  return n != 0 && (n & (n - 1)) == 0;
}

// Page numbers seen. Takes memory by what was seen, not by how large the numbers are.
class PageSet {
 public:
  bool contains(std::uint32_t pgno) const {
    const auto it = groups_.find(pgno / kGroup);
    return it != groups_.end() && it->second.test(pgno % kGroup);
  }
  void insert(std::uint32_t pgno) { groups_[pgno / kGroup].set(pgno % kGroup); }

 private:
  static constexpr std::uint32_t kGroup = 512;
  std::unordered_map<std::uint32_t, std::bitset<kGroup>> groups_;
};

// pager_playback() of a hot journal, without the playing back.
class JournalScanner {
 public:
  JournalScanner(const File& journal, std::uint64_t size, FunctionRef<void(Pgno, std::uint64_t)> visit)
      : journal_(journal), size_(size), visit_(visit) {}

  Result<JournalSummary> run() {
    TRY_ASSIGN(const bool any, first_header());
    if (!any) return make_error(Errc::not_found, journal_.path() + ": no valid journal header");
    JournalHeader header = summary_.first;
    for (;;) {
      ++summary_.segments;
      TRY_ASSIGN(const bool more, records(header));
      if (!more) return std::move(summary_);
      TRY_ASSIGN(const bool found, next_header(header));
      if (!found) return std::move(summary_);
    }
  }

 private:
  // False: nothing that SQLite would play back.
  Result<bool> first_header() {
    if (size_ < kAssumedSectorSize) return false;
    JournalHeader& header = summary_.first;
    TRY_ASSIGN(const bool valid, read_header(header));
    if (!valid) return false;
    if (header.page_size == 0) {
      return make_error(Errc::unsupported,
                        journal_.path() + ": journal of a SQLite before 3.5.8 (no page size)");
    }
    if (!valid_page_size(header.page_size) || header.sector_size < kMinSectorSize ||
        header.sector_size > kMaxSectorSize || !power_of_two(header.sector_size)) {
      return false;
    }
    offset_ = header.sector_size;
    record_.resize(header.page_size + 8);
    return true;
  }

  // Later headers start at the next sector; of them, only count and nonce matter (readJournalHdr()).
  Result<bool> next_header(JournalHeader& header) {
    const std::uint64_t sector = summary_.first.sector_size;
    offset_ = (offset_ + sector - 1) / sector * sector;
    if (offset_ + sector > size_) return false;
    TRY_ASSIGN(const bool valid, read_header(header));
    offset_ += sector;
    return valid;
  }

  Result<bool> read_header(JournalHeader& out) const {
    std::array<std::byte, kJournalHeaderSize> bytes{};
    TRY_ASSIGN(const std::size_t n, journal_.read_at(offset_, bytes));
    if (n < bytes.size() || !is_magic(bytes)) return false;
    out.record_count = load_be<std::uint32_t>(&bytes[8]);
    out.nonce = load_be<std::uint32_t>(&bytes[12]);
    out.original_pages = load_be<std::uint32_t>(&bytes[16]);
    out.sector_size = load_be<std::uint32_t>(&bytes[20]);
    out.page_size = load_be<std::uint32_t>(&bytes[24]);
    return true;
  }

  // The records of one segment. False: the scan ends here, whatever may follow.
  Result<bool> records(const JournalHeader& header) {
    const bool to_the_end = header.record_count == kJournalCountUnsynced;
    for (std::uint32_t i = 0; to_the_end || i < header.record_count; ++i) {
      TRY_ASSIGN(const bool valid, one_record(header.nonce));
      if (!valid) return false;
    }
    return true;
  }

  // pager_playback_one_page()
  Result<bool> one_record(std::uint32_t nonce) {
    TRY_ASSIGN(const std::size_t n, journal_.read_at(offset_, record_));
    const std::size_t page_size = record_.size() - 8;
    if (n < page_size + 4) return false;
    offset_ += record_.size();
    const auto pgno = load_be<std::uint32_t>(record_.data());
    if (pgno == 0 || Pgno(pgno) == lock_page(summary_.first.page_size)) return false;
    // Skipped by playback before it looks at the checksum.
    if (pgno > summary_.first.original_pages || seen_.contains(pgno)) return true;
    if (n < record_.size()) return false;
    if (checksum(nonce) != load_be<std::uint32_t>(&record_[page_size + 4])) return false;
    seen_.insert(pgno);
    ++summary_.records;
    visit_(Pgno(pgno), offset_ - record_.size() + 4);
    return true;
  }

  // pager_cksum(): every 200th byte, counted from the page's end; byte 0 is never one of them.
  std::uint32_t checksum(std::uint32_t nonce) const {
    const ByteView page = ByteView(record_).subspan(4, record_.size() - 8);
    std::uint32_t sum = nonce;
    for (std::size_t i = page.size() - 200; i > 0; i = i > 200 ? i - 200 : 0) {
      sum += std::to_integer<std::uint32_t>(page[i]);
    }
    return sum;
  }

  const File& journal_;
  const std::uint64_t size_;
  FunctionRef<void(Pgno, std::uint64_t)> visit_;
  JournalSummary summary_;
  std::uint64_t offset_ = 0;
  Bytes record_;
  PageSet seen_;
};

}  // namespace

Result<bool> journal_has_content(const File& journal) {
  std::array<std::byte, 1> first{};
  TRY_ASSIGN(const std::size_t n, journal.read_at(0, first));
  return n == 1 && first[0] != std::byte{0};
}

Result<JournalSummary> scan_journal(const File& journal, FunctionRef<void(Pgno)> visit) {
  return scan_journal_content(journal, [&](Pgno pgno, std::uint64_t) { visit(pgno); });
}

Result<JournalSummary> scan_journal_content(const File& journal, FunctionRef<void(Pgno, std::uint64_t)> visit) {
  TRY_ASSIGN(const std::uint64_t size, journal.size());
  TRY_ASSIGN(auto summary, JournalScanner(journal, size, visit).run());
  TRY_ASSIGN(auto name, read_super_journal_name(journal));
  summary.super_journal = std::move(name).value_or("");
  return summary;
}

Result<std::optional<std::string>> read_super_journal_name(const File& journal) {
  TRY_ASSIGN(const std::uint64_t size, journal.size());
  if (size < kSuperJournalTrailer) return std::nullopt;
  std::array<std::byte, kSuperJournalTrailer> trailer{};
  TRY_ASSIGN(std::size_t n, journal.read_at(size - trailer.size(), trailer));
  const auto length = load_be<std::uint32_t>(trailer.data());
  if (n < trailer.size() || !is_magic(ByteView(trailer).subspan(8)) || length == 0 ||
      length > kMaxSuperJournalName || length > size - trailer.size()) {
    return std::nullopt;
  }
  std::array<char, kMaxSuperJournalName> name{};
  const auto bytes = std::as_writable_bytes(std::span(name)).first(length);
  TRY_ASSIGN(n, journal.read_at(size - trailer.size() - length, bytes));
  if (n < length) return std::nullopt;
  std::uint32_t sum = load_be<std::uint32_t>(&trailer[4]);
  for (const std::byte b : bytes)
    sum -= static_cast<std::uint32_t>(std::to_integer<std::int8_t>(b));  // signed bytes
  if (sum != 0) return std::nullopt;
  // SQLite takes it as a C string.
  std::string text(name.data(), length);
  text.resize(std::min(text.find('\0'), text.size()));
  if (text.empty()) return std::nullopt;
  return text;
}

}  // namespace sluice::sqlite
