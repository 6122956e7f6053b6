#include "tests/powerloss_src/disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace sluice::powerloss {
namespace {

constexpr std::uint64_t kPage = 4096;

void put(Bytes& content, std::uint64_t offset, ByteView data) {
  const auto end = static_cast<std::size_t>(offset) + data.size();
  if (content.size() < end) content.resize(end);
  std::copy(data.begin(), data.end(), content.begin() + static_cast<std::ptrdiff_t>(offset));
}

void perform(Bytes& content, const Op& op) {
  if (op.kind == OpKind::truncate) {
    content.resize(static_cast<std::size_t>(op.offset));
  } else {
    put(content, op.offset, op.data);
  }
}

bool changes_names(OpKind kind) {
  switch (kind) {
    case OpKind::create:
    case OpKind::make_directory:
    case OpKind::unlink:
    case OpKind::remove_directory:
    case OpKind::rename: return true;
    default: return false;
  }
}

std::size_t up_to(std::mt19937_64& random, std::size_t most) {
  return std::uniform_int_distribution<std::size_t>(0, most)(random);
}

}  // namespace

void Disk::advance(std::size_t upto) {
  for (; point_ < upto; ++point_) {
    const Op& op = ops_[point_];
    if (changes_names(op.kind)) {
      names_.push_back({point_, false, {}});
    } else if (op.kind == OpKind::write || op.kind == OpKind::truncate) {
      files_[op.file].since.push_back(point_);
    } else if (op.kind == OpKind::sync) {
      File& file = files_[op.file];
      for (const std::size_t at : file.since) perform(file.synced, ops_[at]);
      file.since.clear();
    }
    if (op.kind != OpKind::sync && op.kind != OpKind::sync_directory) continue;
    for (NameOp& name : names_) {
      name.synced_by_journal = true;
      if (op.kind == OpKind::sync_directory) name.synced_in.insert(op.file);
    }
  }
}

std::vector<bool> Disk::choose_names(std::mt19937_64& random, Names names) const {
  std::vector<bool> kept(names_.size());
  if (names == Names::journal) {
    const auto certain = static_cast<std::size_t>(
        std::count_if(names_.begin(), names_.end(), [](const NameOp& op) { return op.synced_by_journal; }));
    std::fill_n(kept.begin(), certain + up_to(random, names_.size() - certain), true);
    return kept;
  }
  // By directory: how many of the operations in it survive.
  std::map<int, std::vector<std::size_t>> by_directory;
  for (std::size_t i = 0; i < names_.size(); ++i) {
    const Op& op = ops_[names_[i].at];
    by_directory[op.directory].push_back(i);
    if (op.to_directory >= 0 && op.to_directory != op.directory) by_directory[op.to_directory].push_back(i);
  }
  for (const auto& [directory, ops] : by_directory) {
    const auto certain = static_cast<std::size_t>(std::count_if(
        ops.begin(), ops.end(), [this, d = directory](std::size_t i) { return names_[i].synced_in.contains(d); }));
    // Often all or nothing: what a busy file system and an idle one do.
    const std::size_t open = ops.size() - certain;
    const std::size_t more = random() % 3 == 0 ? up_to(random, open) : random() % 2 == 0 ? open : 0;
    for (std::size_t i = 0; i < certain + more; ++i) kept[ops[i]] = true;
  }
  // A rename that survives takes with it what came before it in both directories.
  for (bool changed = true; changed;) {
    changed = false;
    for (const auto& [directory, ops] : by_directory) {
      std::size_t last = ops.size();
      while (last > 0 && !kept[ops[last - 1]]) --last;
      for (std::size_t i = 0; i < last; ++i) {
        if (kept[ops[i]]) continue;
        kept[ops[i]] = true;
        changed = true;
      }
    }
  }
  return kept;
}

void Disk::build(const std::vector<bool>& kept, std::map<int, std::map<std::string, int>>& directories,
                 std::set<int>& known) const {
  known.insert(0);
  for (std::size_t i = 0; i < names_.size(); ++i) {
    const Op& op = ops_[names_[i].at];
    // A directory is one whether its own name survives or not; then nothing leads to it.
    if (op.kind == OpKind::make_directory) known.insert(op.file);
    if (!kept[i]) continue;
    auto& entries = directories[op.directory];
    switch (op.kind) {
      case OpKind::create:
      case OpKind::make_directory: entries[op.name] = op.file; break;
      case OpKind::unlink:
      case OpKind::remove_directory: entries.erase(op.name); break;
      case OpKind::rename:
        entries.erase(op.name);
        directories[op.to_directory][op.to_name] = op.file;
        break;
      default: break;
    }
  }
}

Bytes Disk::content(int file, std::mt19937_64& random, Data data, std::size_t cut) const {
  const auto found = files_.find(file);
  if (found == files_.end()) return {};
  Bytes content = found->second.synced;
  for (const std::size_t at : found->second.since) {
    const Op& op = ops_[at];
    const bool whole = data == Data::all || (data == Data::prefix && at < cut);
    if (op.kind == OpKind::truncate) {
      if (whole || (data == Data::luck && random() % 2 == 0)) perform(content, op);
      continue;
    }
    const bool torn = data == Data::luck || (data == Data::prefix && at == cut);
    const std::uint64_t end = op.offset + op.data.size();
    for (std::uint64_t from = op.offset; from < end && (whole || torn);) {
      const std::uint64_t to = std::min(end, (from / kPage + 1) * kPage);
      const ByteView piece = ByteView(op.data).subspan(static_cast<std::size_t>(from - op.offset), static_cast<std::size_t>(to - from));
      if (whole || random() % 2 == 0) {
        put(content, from, piece);
      } else if (content.size() < to && random() % 2 == 0) {
        content.resize(static_cast<std::size_t>(to));  // the size without the data
      }
      from = to;
    }
  }
  return content;
}

Image Disk::sample(std::mt19937_64& random, Policy policy) const {
  std::map<int, std::map<std::string, int>> directories;
  std::set<int> known;
  build(choose_names(random, policy.names), directories, known);
  const std::size_t cut = up_to(random, point_);
  Image image;
  std::vector<std::pair<std::string, int>> left{{"", 0}};
  while (!left.empty()) {
    const auto [path, directory] = left.back();
    left.pop_back();
    for (const auto& [name, file] : directories[directory]) {
      const std::string below = path.empty() ? name : path + "/" + name;
      if (known.contains(file)) {
        image.directories.insert(below);
        left.emplace_back(below, file);
      } else {
        // A different way to lose things in every file: a busy one and a quiet one.
        const Data data = policy.data == Data::luck && random() % 4 == 0 ? Data::all : policy.data;
        image.files[below] = content(file, random, data, cut);
      }
    }
  }
  return image;
}

void write_image(const Image& image, const std::string& directory) {
  for (const std::string& path : image.directories) {
    if (::mkdir((directory + "/" + path).c_str(), 0755) != 0) std::abort();
  }
  static const Bytes zeros(kPage);
  for (const auto& [path, content] : image.files) {
    const int fd = ::open((directory + "/" + path).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(content.size())) != 0) std::abort();
    for (std::size_t at = 0; at < content.size(); at += kPage) {
      const std::size_t n = std::min<std::size_t>(kPage, content.size() - at);
      if (std::equal(content.begin() + static_cast<std::ptrdiff_t>(at), content.begin() + static_cast<std::ptrdiff_t>(at + n), zeros.begin())) continue;
      if (::pwrite(fd, content.data() + at, n, static_cast<off_t>(at)) != static_cast<ssize_t>(n)) std::abort();
    }
    ::close(fd);
  }
}

}  // namespace sluice::powerloss
