// Change sets in files, for another process to apply.
#pragma once

#include <cstring>
#include <fstream>
#include <optional>
#include <string>

#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {

inline void write_change(const std::string& dir, const ChangeSet& change) {
  std::ofstream out(dir + "/" + std::to_string(change.head.post.txid.value()), std::ios::binary);
  out.write(reinterpret_cast<const char*>(&change.head), sizeof change.head);
  out.write(reinterpret_cast<const char*>(change.image.data()), static_cast<std::streamsize>(change.image.size()));
}

/// The whole content after a change set, for a worker that installs it as a snapshot instead.
inline void write_snapshot(const std::string& dir, const ChangeSet& change, const Bytes& content) {
  std::ofstream out(dir + "/" + std::to_string(change.head.post.txid.value()) + ".db", std::ios::binary);
  out.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
}

inline std::optional<ChangeSet> read_change(const std::string& dir, std::uint64_t txid) {
  const std::string path = dir + "/" + std::to_string(txid);
  if (!exists(path)) return std::nullopt;
  const Bytes content = file_content(path);
  ChangeSet change;
  std::memcpy(static_cast<void*>(&change.head), content.data(), sizeof change.head);
  change.image.assign(content.begin() + sizeof change.head, content.end());
  return change;
}

}  // namespace sluice::storage::apply_test
