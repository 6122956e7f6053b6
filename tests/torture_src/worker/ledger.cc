#include "ledger.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "control.h"

namespace sluice::torture {

namespace {

void* map_file(const std::string& path, std::size_t size) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) throw std::runtime_error("open " + path + ": " + std::strerror(errno));
  struct stat info {};
  const bool sized = ::fstat(fd, &info) == 0 && (static_cast<std::size_t>(info.st_size) >= size ||
                                                 ::ftruncate(fd, static_cast<off_t>(size)) == 0);
  void* memory = sized ? ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  ::close(fd);
  if (memory == MAP_FAILED) throw std::runtime_error("map " + path + ": " + std::strerror(errno));
  return memory;
}

}  // namespace

void Slot::begin(std::uint64_t tag) {
  const std::uint64_t index = attempts.load(std::memory_order_relaxed);
  tags[index % kTags].store(tag, std::memory_order_relaxed);
  attempts.store(index + 1, std::memory_order_release);
}

std::string Slot::judge(std::uint64_t number, std::uint64_t tag) const {
  const std::uint64_t last = acked.load(std::memory_order_acquire);
  const std::string seen =
      "transaction " + std::to_string(number) + " is the last, " + std::to_string(last) + " is acknowledged";
  if (number < last) return "LOST: " + seen;
  if (number > last + 1) return "IMPOSSIBLE: " + seen;
  if (number != last + 1) return {};
  for (const auto& known : tags) {
    if (known.load(std::memory_order_relaxed) == tag && make_tag(tag << 2, number) == tag) return {};
  }
  return "NEVER COMMITTED: " + seen + ", with an unknown tag";
}

Ledger::Ledger(const std::string& path)
    : data_(static_cast<LedgerData*>(map_file(path, sizeof(LedgerData)))) {}

Ledger::~Ledger() {
  ::munmap(data_, sizeof(LedgerData));
}

Trail::Trail(const std::string& path) : ring_(static_cast<Ring*>(map_file(path, sizeof(Ring)))) {
  ring_->pid = static_cast<std::uint64_t>(::getpid());
  note("start", ring_->pid);
}

Trail::~Trail() {
  ::munmap(ring_, sizeof(Ring));
}

void Trail::note(const char* what, std::uint64_t number, std::uint64_t tag) {
  Event& event = ring_->events[ring_->next++ % kEvents];
  event.time_ns = now_ns();
  event.number = number;
  event.tag = tag;
  std::snprintf(event.what, sizeof event.what, "%s", what);
}

void Trail::print(const std::string& path) {
  const Ring* ring = static_cast<const Ring*>(map_file(path, sizeof(Ring)));
  const std::uint64_t first = ring->next > kEvents ? ring->next - kEvents : 0;
  for (std::uint64_t i = first; i < ring->next; ++i) {
    const Event& event = ring->events[i % kEvents];
    std::printf("%llu.%09llu %-23.23s %llu %016llx\n",
                static_cast<unsigned long long>(event.time_ns / 1'000'000'000u),
                static_cast<unsigned long long>(event.time_ns % 1'000'000'000u), event.what,
                static_cast<unsigned long long>(event.number), static_cast<unsigned long long>(event.tag));
  }
}

}  // namespace sluice::torture
