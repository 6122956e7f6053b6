#include "fuse/files/kind.h"

#include <algorithm>

namespace sluice::fuse {
namespace {

constexpr std::string_view kMagic{"SQLite format 3\0", kMagicSize};
constexpr std::string_view kJournal = "-journal";
constexpr std::string_view kWal = "-wal";
constexpr std::string_view kShm = "-shm";
constexpr std::string_view kPosition = "-pos";
// SQLite's pager and vdbeCommit(): "%s-mj%06X9%02X".
constexpr std::string_view kSuper = "-mj";
constexpr std::size_t kSuperDigits = 9;

std::optional<std::string_view> without(std::string_view name, std::string_view suffix) {
  if (name.size() <= suffix.size() || !name.ends_with(suffix)) return std::nullopt;
  return name.substr(0, name.size() - suffix.size());
}

bool is_upper_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); }

}  // namespace

std::optional<SideFile> side_file(std::string_view name) {
  if (auto base = without(name, kWal)) return SideFile{FileKind::wal, *base};
  if (auto base = without(name, kShm)) return SideFile{FileKind::shm, *base};
  if (auto base = without(name, kJournal)) return SideFile{FileKind::journal, *base};
  if (name.size() <= kSuper.size() + kSuperDigits) return std::nullopt;
  const std::string_view digits = name.substr(name.size() - kSuperDigits);
  if (!std::all_of(digits.begin(), digits.end(), is_upper_hex)) return std::nullopt;
  if (auto base = without(name.substr(0, name.size() - kSuperDigits), kSuper))
    return SideFile{FileKind::super_journal, *base};
  return std::nullopt;
}

std::optional<std::string_view> position_base(std::string_view name) { return without(name, kPosition); }

bool begins_with_magic(ByteView bytes) {
  return bytes.size() >= kMagic.size() && as_text(bytes.first(kMagic.size())) == kMagic;
}

std::string_view database_of(FileKind kind, std::string_view path) {
  switch (kind) {
    case FileKind::database:
      return path;
    case FileKind::journal:
      return without(path, kJournal).value_or(std::string_view{});
    case FileKind::wal:
      return without(path, kWal).value_or(std::string_view{});
    case FileKind::shm:
      return without(path, kShm).value_or(std::string_view{});
    default:
      return {};
  }
}

bool is_observed(FileKind kind) {
  switch (kind) {
    case FileKind::database:
    case FileKind::journal:
    case FileKind::wal:
    case FileKind::shm:
    case FileKind::super_journal:
      return true;
    case FileKind::directory:
    case FileKind::plain:
    case FileKind::virtual_file:
      return false;
  }
  return false;
}

bool is_side_file(FileKind kind) { return kind == FileKind::wal || kind == FileKind::shm; }

std::string_view kind_name(FileKind kind) {
  switch (kind) {
    case FileKind::directory:
      return "directory";
    case FileKind::plain:
      return "plain";
    case FileKind::database:
      return "database";
    case FileKind::journal:
      return "journal";
    case FileKind::wal:
      return "wal";
    case FileKind::shm:
      return "shm";
    case FileKind::super_journal:
      return "super-journal";
    case FileKind::virtual_file:
      return "virtual";
  }
  return "?";
}

}  // namespace sluice::fuse
