#include "server/scrub.h"

#include <algorithm>
#include <chrono>

#include "base/log.h"

namespace sluice::server {
namespace {

constexpr std::uint32_t kBatchPages = 16;
constexpr std::int64_t kFirstAfterMs = 10 * 60 * 1000;  // or the interval, if that is less

}  // namespace

void Scrubber::start(storage::Store& store, const ScrubOptions& options, Damaged damaged) {
  if (options.interval_ms <= 0) return;
  store_ = &store;
  options_ = options;
  damaged_ = std::move(damaged);
  thread_ = std::thread([this] { run(); });
}

void Scrubber::stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::map<std::string, ScrubStatus> Scrubber::status() const {
  MutexLock lock(mutex_);
  return status_;
}

bool Scrubber::stopping() const {
  MutexLock lock(mutex_);
  return stopping_;
}

// True: stopping.
bool Scrubber::wait(std::chrono::nanoseconds duration) {
  const auto until = std::chrono::steady_clock::now() + duration;
  MutexLock lock(mutex_);
  while (!stopping_ && wake_.wait_until(mutex_, until)) {
  }
  return stopping_;
}

void Scrubber::run() {
  std::int64_t pause = std::min(options_.interval_ms, kFirstAfterMs);
  while (!wait(std::chrono::milliseconds(pause))) {
    for (const auto& database : store_->list()) {
      if (stopping()) return;
      if (!database->deleted()) scrub(*database);
    }
    pause = options_.interval_ms;
  }
}

void Scrubber::scrub(storage::Database& database) {
  const std::string& name = database.name();
  // For reading ahead only; what is compared is read under the commit lock, from the page cache then.
  const auto file = store_->fs().open(store_->backing_path(name), {});
  Bytes ahead;
  VerifyOptions options;
  options.cancelled = [this] { return stopping(); };
  options.batch_pages = kBatchPages;
  options.before_batch = [&](Pgno first, std::uint32_t page_size) {
    const std::uint64_t bytes = std::uint64_t{kBatchPages} * page_size;
    if (options_.bytes_per_second != 0 && wait(std::chrono::nanoseconds(bytes * 1'000'000'000 / options_.bytes_per_second))) {
      return;
    }
    if (file.has_error()) return;
    ahead.resize(bytes);
    const auto read = (*file)->read_at(std::uint64_t{first.value() - 1} * page_size, ahead);
    if (read.has_error()) LOG_ERROR("{}: scrub: {}", name, read.error().to_string());
  };
  const auto report = verify_database(database, options);
  if (report.has_error()) {
    if (report.error().code != Errc::cancelled) LOG_WARN("{}: scrub: {}", name, report.error().to_string());
    return;
  }
  {
    MutexLock lock(mutex_);
    ScrubStatus& status = status_[name];
    status.ended_ms = store_->clock().wall_ms();
    status.pages = report->pages;
    status.bad_pages = report->bad_count;
    status.bad_total += report->bad_count;
  }
  if (report->bad_count == 0 && report->sum_matches) return;
  LOG_ERROR("{}: the scrub found {} of {} pages that are not what their checksums say (the first is page {}){}", name,
            report->bad_count, report->pages, report->bad_pages.empty() ? 0 : report->bad_pages.front().value(),
            report->sum_matches ? "" : ", and checksums that do not add up to the position");
  damaged_(name, *report);
}

}  // namespace sluice::server
