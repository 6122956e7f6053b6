// A WAL of a header only. It is not empty, so SQLite opens the database in WAL mode whatever page 1 says
// (pagerOpenWalIfPresent), and its recovery finds no frame in it.
#pragma once

#include <array>

#include "storage/sqlite/wal_format.h"

namespace sluice::storage::apply {

struct FreshWalHeader {
  sqlite::WalHeader header;
  std::array<std::byte, sqlite::kWalHeaderSize> bytes;
};

sqlite::Salts random_salts();
/// Salts of the next generation: the first is counted up, the second is random (walRestartHdr).
sqlite::Salts next_salts(sqlite::Salts salts);
/// The header of a new generation with salts of its own.
FreshWalHeader make_fresh_wal_header(std::uint32_t page_size, std::uint32_t checkpoint_sequence);
FreshWalHeader make_wal_header(std::uint32_t page_size, std::uint32_t checkpoint_sequence, sqlite::Salts salts);

}  // namespace sluice::storage::apply
