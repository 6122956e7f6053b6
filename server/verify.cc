#include "server/verify.h"

#include <boost/json.hpp>
#include <chrono>

#include "base/utf8.h"
#include "storage/ltx/checksum.h"

namespace sluice::server {
namespace {

constexpr auto kBusyPause = std::chrono::milliseconds(20);
constexpr auto kBusyDeadline = std::chrono::seconds(60);
constexpr std::size_t kMostKept = 65536;
constexpr std::size_t kMostListed = 100;  // in the answer

class Verifier {
 public:
  Verifier(storage::Database& database, const VerifyOptions& options) : database_(database), options_(options) {}

  Result<VerifyReport> run() {
    for (bool more = true; more;) {
      if (options_.before_batch) options_.before_batch(Pgno(next_), database_.page_size());
      if (options_.cancelled && options_.cancelled()) return make_error(Errc::cancelled, "verification was stopped");
      Result<bool> batch = read_batch();
      if (batch.has_error() && batch.error().code == Errc::busy) {
        TRY(pause(batch.error()));
        continue;
      }
      TRY_ASSIGN(more, std::move(batch));
      busy_since_.reset();
    }
    TRY(compare_sum());
    return std::move(report_);
  }

 private:
  // One batch; false at the end. The position may move between batches: each page is compared with its
  // checksum of that moment.
  Result<bool> read_batch() NO_THREAD_SAFETY_ANALYSIS {
    MutexLock lock(database_.commit_mutex());
    const std::uint32_t page_size = database_.page_size();
    const std::uint32_t count = database_.page_count();
    if (page_size != page_size_) {  // first time, or VACUUM changed it: start over
      page_size_ = page_size;
      next_ = 1;
      report_ = {};
      buffer_.resize(page_size);
    }
    if (count == 0) return false;
    storage::PageSource* source = database_.page_source();
    if (source == nullptr)
      return make_error(Errc::unavailable, database_.name() + ": its pages cannot be read now; try again");
    for (std::uint32_t i = 0; i < options_.batch_pages && next_ <= count; ++i, ++next_) {
      const Pgno pgno(next_);
      if (pgno == lock_page(page_size)) continue;
      const Result<void> read = source->read_page(pgno, buffer_);
      // Sources may compare themselves.
      const bool corrupt = read.has_error() && read.error().code == Errc::corrupt;
      if (read.has_error() && !corrupt) return read.error();
      const Checksum known = database_.checksums().get(pgno);
      const Checksum found = corrupt ? Checksum{} : ltx::page_checksum(pgno, buffer_);
      ++report_.pages;
      if (!corrupt && known == Checksum{}) {
        ++report_.unknown;
        TRY(database_.checksums().set(pgno, found));
      } else if (corrupt || known != found) {
        if (report_.bad_pages.size() < kMostKept) report_.bad_pages.push_back(pgno);
        ++report_.bad_count;
      }
    }
    return next_ <= count;
  }

  // The recorded checksums must add up to the position's.
  Result<void> compare_sum() NO_THREAD_SAFETY_ANALYSIS {
    MutexLock lock(database_.commit_mutex());
    report_.pos = database_.pos();
    const std::uint32_t count = database_.page_count();
    const std::uint32_t page_size = database_.page_size();
    buffer_.resize(page_size);
    Checksum sum = kEmptyChecksum;
    for (std::uint64_t p = 1; p <= count; ++p) {
      const Pgno pgno(static_cast<std::uint32_t>(p));
      if (pgno == lock_page(page_size)) continue;
      TRY_ASSIGN(const Checksum page, database_.page_checksum(pgno, buffer_));
      sum = ltx::toggle(sum, page);
    }
    report_.sum_matches = sum == report_.pos.checksum;
    return {};
  }

  Result<void> pause(const Error& busy) {
    const auto now = std::chrono::steady_clock::now();
    if (!busy_since_) busy_since_ = now;
    if (now - *busy_since_ > kBusyDeadline) return busy;
    MutexLock lock(pause_mutex_);
    pause_wake_.wait_until(pause_mutex_, now + kBusyPause);
    return {};
  }

  storage::Database& database_;
  const VerifyOptions& options_;
  VerifyReport report_;
  std::uint32_t page_size_ = 0;
  std::uint32_t next_ = 1;
  Bytes buffer_;
  std::optional<std::chrono::steady_clock::time_point> busy_since_;
  Mutex pause_mutex_;
  CondVar pause_wake_;
};

}  // namespace

Result<VerifyReport> verify_database(storage::Database& database, const VerifyOptions& options) {
  return Verifier(database, options).run();
}

std::string verify_json(const std::string& name, const VerifyReport& report) {
  boost::json::array bad;
  for (const Pgno pgno : report.bad_pages)
    if (bad.size() < kMostListed) bad.push_back(pgno.value());
  boost::json::object out{{"name", clean_utf8(name)},
                          {"ok", report.ok()},
                          {"txid", to_hex(report.pos.txid.value())},
                          {"checksum", to_hex(report.pos.checksum.value())},
                          {"pages", report.pages},
                          {"unknown", report.unknown},
                          {"bad_count", report.bad_count},
                          {"bad_pages", std::move(bad)},
                          {"checksum_matches", report.sum_matches}};
  if (report.repaired != 0) out["repaired"] = report.repaired;
  if (!report.integrity.empty()) out["integrity_check"] = clean_utf8(report.integrity);
  return boost::json::serialize(out) + "\n";
}

}  // namespace sluice::server
