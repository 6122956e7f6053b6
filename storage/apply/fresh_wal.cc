#include "storage/apply/fresh_wal.h"

#include <random>

namespace sluice::storage::apply {
namespace {

std::uint32_t random_word() {
  thread_local std::random_device device;
  return device();
}

}  // namespace

sqlite::Salts random_salts() { return {random_word(), random_word()}; }

sqlite::Salts next_salts(sqlite::Salts salts) {
  return {byte_swap(byte_swap(salts.raw0) + 1), random_word()};
}

FreshWalHeader make_fresh_wal_header(std::uint32_t page_size, std::uint32_t checkpoint_sequence) {
  return make_wal_header(page_size, checkpoint_sequence, random_salts());
}

FreshWalHeader make_wal_header(std::uint32_t page_size, std::uint32_t checkpoint_sequence, sqlite::Salts salts) {
  FreshWalHeader fresh{};
  fresh.header.page_size = page_size;
  fresh.header.checkpoint_sequence = checkpoint_sequence;
  fresh.header.salts = salts;
  sqlite::write_wal_header(fresh.header, fresh.bytes);
  fresh.header.checksum = {load_be<std::uint32_t>(fresh.bytes.data() + 24),
                           load_be<std::uint32_t>(fresh.bytes.data() + 28)};
  return fresh;
}

}  // namespace sluice::storage::apply
