#include "storage/boot.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <random>

#include "base/bytes.h"
#include "base/fd.h"
#include "storage/ltx/checksum.h"

namespace sluice::storage {
namespace {

std::atomic<std::uint64_t> test_number{0};

std::uint64_t read_boot_number() {
  std::byte text[36];
  const UniqueFd fd(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  if (fd && ::read(fd.get(), text, sizeof text) == static_cast<ssize_t>(sizeof text)) {
    ltx::Crc64 crc;
    crc.update(text);
    return crc.value();
  }
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

}  // namespace

std::uint64_t boot_number() {
  static const std::uint64_t number = read_boot_number();
  const std::uint64_t test = test_number.load();
  return test != 0 ? test : number;
}

void set_boot_number_for_tests(std::uint64_t number) { test_number.store(number); }

}  // namespace sluice::storage
