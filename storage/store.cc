#include "storage/store.h"

#include <fcntl.h>

#include <array>
#include <boost/json.hpp>
#include <charconv>
#include <random>

#include "base/log.h"
#include "storage/boot.h"
#include "storage/change_log_format.h"

namespace sluice::storage {
namespace {

constexpr std::int64_t kFormat = 1;
constexpr std::uint64_t kMaxNodeFile = 64 * 1024;
/// File systems take 255 bytes; the log's and the checksums' name gets prefixes and suffixes in tmp/, install/, lost+found/.
constexpr std::size_t kMaxEscapedName = 220;

std::string_view role_name(Role role) {
  return role == Role::primary ? "primary" : "replica";
}

std::string_view first_line(std::string_view text) {
  return text.substr(0, text.find('\n'));
}

constexpr std::size_t kMaxLockText = 64;

/// "pid\nboot\n"
std::string read_lock_text(int fd) {
  std::array<char, kMaxLockText> text{};
  const ssize_t n = ::pread(fd, text.data(), text.size(), 0);
  return n > 0 ? std::string(text.data(), static_cast<std::size_t>(n)) : std::string();
}

std::string_view boot_line(std::string_view text) {
  const std::size_t end = text.find('\n');
  return end == std::string_view::npos ? std::string_view() : first_line(text.substr(end + 1));
}

// In place: a full disk has no room for a file that was emptied first.
Result<void> write_lock_text(int fd, const std::string& path, const std::string& text) {
  if (::pwrite(fd, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      ::ftruncate(fd, static_cast<off_t>(text.size())) != 0) {
    return errno_error("write " + path, errno);
  }
  return {};
}

NodeId random_node_id() {
  std::random_device device;
  std::uint64_t id = 0;
  while (id == 0) id = std::uint64_t{device()} << 32 | device();
  return NodeId(id);
}

Error bad_identity(const std::string& path, const std::string& what) {
  return make_error(Errc::corrupt,
                    path + ": " + what +
                        "; restore the file from a backup, or move log/ and checksums/ away together with "
                        "it to let the node start as a new one");
}

/// Has a log with at least one segment.
Result<bool> has_log(FileSystem& fs, const std::string& dir) {
  TRY_ASSIGN(const auto entries, fs.list(dir));
  for (const DirEntry& entry : entries) {
    if (log_format::parse_segment_name(entry.name)) return true;
  }
  return false;
}

struct Identity {
  NodeId node_id;
  std::optional<Role> last_role;
};

Result<Identity> parse_identity(const std::string& path, ByteView bytes) {
  boost::system::error_code ec;
  const boost::json::value value = boost::json::parse(as_text(bytes), ec);
  const boost::json::object* const object = ec ? nullptr : value.if_object();
  if (object == nullptr) return bad_identity(path, "not a JSON object");
  const auto* format = object->if_contains("format");
  if (format == nullptr || !format->is_int64()) return bad_identity(path, "no \"format\" number");
  if (format->get_int64() != kFormat) {
    return make_error(
        Errc::unsupported,
        fmt::format("{}: the data directory has format {}, this version of Sluice knows format {}; use the "
                    "version that made it, or another --data directory",
                    path, format->get_int64(), kFormat));
  }
  Identity identity;
  const auto* id = object->if_contains("node_id");
  const auto number =
      id != nullptr && id->is_string() ? parse_hex(std::string_view(id->get_string())) : std::nullopt;
  if (!number || *number == 0) return bad_identity(path, "no \"node_id\" of 16 hex digits");
  identity.node_id = NodeId(*number);
  if (const auto* role = object->if_contains("last_role"); role != nullptr && !role->is_null()) {
    const std::string_view text =
        role->is_string() ? std::string_view(role->get_string()) : std::string_view();
    if (text != "primary" && text != "replica")
      return bad_identity(path, "\"last_role\" is neither primary nor replica");
    identity.last_role = text == "primary" ? Role::primary : Role::replica;
  }
  return identity;
}

}  // namespace

Store::Store(FileSystem& fs, Clock& clock, StoreOptions options)
    : fs_(fs), clock_(clock), options_(std::move(options)) {}

Store::~Store() = default;

Result<std::unique_ptr<Store>> Store::open(FileSystem& fs, Clock& clock, StoreOptions options) {
  std::unique_ptr<Store> store(new Store(fs, clock, std::move(options)));
  TRY(store->make_layout());
  TRY(store->lock_directory());
  TRY(store->load_identity());
  TRY(store->clear_tmp());
  TRY(store->open_existing());
  return store;
}

Result<void> Store::make_layout() {
  const std::string& data = options_.data_dir;
  // Written last, and synced with its directory. Before that nobody knows what was.
  TRY_ASSIGN(const bool identified, fs_.exists(identity_path()));
  bool made = false;
  for (const std::string& dir : {data, fs_dir(), log_root(), checksums_root(), tmp_dir(), lost_found_dir(), data + "/install"}) {
    TRY_ASSIGN(const bool there, fs_.exists(dir));
    if (there) continue;
    TRY(fs_.make_directories(dir));
    made = true;
  }
  // Clients of a mount that is taken over wait for this start, and on a busy disk any sync takes seconds.
  if (identified && !made) return {};
  TRY(fs_.sync_directory(data));
  if (!identified) TRY(fs_.sync_directory(parent_directory(data)));
  return {};
}

Result<void> Store::lock_directory() {
  const std::string path = options_.data_dir + "/lock";
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!fd) return errno_error("open " + path, errno);
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(fd.get(), F_OFD_SETLK, &lock) != 0) {
    if (errno != EAGAIN && errno != EACCES) return errno_error("lock " + path, errno);
    const std::string text = read_lock_text(fd.get());
    const std::string_view pid = text.empty() ? std::string_view("unknown") : first_line(text);
    return make_error(Errc::in_use,
                      fmt::format("data directory {} is in use by process {}; stop it, or use another "
                                  "--data directory",
                                  options_.data_dir, pid));
  }
  // Never synced: text that names this boot was written in it.
  const std::string before = read_lock_text(fd.get());
  const std::string boot(boot_line(before));
  machine_restarted_ = boot != to_hex(boot_number());
  TRY(write_lock_text(fd.get(), path, std::to_string(::getpid()) + "\n" + (boot.empty() ? "-" : boot) + "\n"));
  lock_ = std::move(fd);
  return {};
}

Result<void> Store::note_recovered() {
  return write_lock_text(lock_.get(), options_.data_dir + "/lock",
                         std::to_string(::getpid()) + "\n" + to_hex(boot_number()) + "\n");
}

Result<void> Store::load_identity() {
  const std::string path = identity_path();
  auto bytes = read_file(fs_, path, kMaxNodeFile);
  if (bytes.has_value()) {
    TRY_ASSIGN(const Identity identity, parse_identity(path, *bytes));
    node_id_ = identity.node_id;
    MutexLock lock(mutex_);
    last_role_ = identity.last_role;
    return {};
  }
  if (bytes.error().code == Errc::too_large) return bad_identity(path, "it is too large");
  if (bytes.error().code != Errc::not_found) return std::move(bytes).error();
  TRY_ASSIGN(const auto logs, fs_.list(log_root()));
  if (!logs.empty()) return bad_identity(path, "it is missing, but the directory has databases");
  node_id_ = random_node_id();
  return save_identity(std::nullopt);
}

Result<void> Store::save_identity(std::optional<Role> role) {
  boost::json::object object;
  object["format"] = kFormat;
  object["node_id"] = to_hex(node_id_.value());
  object["last_role"] = role ? boost::json::value(role_name(*role)) : boost::json::value(nullptr);
  return write_file_atomically(fs_, identity_path(), as_bytes(boost::json::serialize(object) + "\n"));
}

std::optional<Role> Store::last_role() const {
  MutexLock lock(mutex_);
  return last_role_;
}

Result<void> Store::set_last_role(Role role) {
  MutexLock opening(opening_mutex_);
  if (last_role() == role) return {};
  TRY(save_identity(role));
  MutexLock lock(mutex_);
  last_role_ = role;
  return {};
}

Result<void> Store::clear_tmp() {
  TRY_ASSIGN(const auto entries, fs_.list(tmp_dir()));
  for (const DirEntry& entry : entries) {
    if (!entry.is_directory && !entry.name.starts_with(kKeptInTmp) && !entry.name.starts_with(kSyncFailedInTmp)) TRY(fs_.unlink(tmp_dir() + "/" + entry.name));
  }
  return {};
}

Result<void> Store::open_existing() {
  TRY_ASSIGN(const auto entries, fs_.list(log_root()));
  for (const DirEntry& entry : entries) {
    if (!entry.is_directory) continue;
    const auto name = unescape_name(entry.name);
    if (name.has_error() || check_database_name(*name).has_error()) {
      LOG_WARN("{}/{} is not the log of a database; ignored", log_root(), entry.name);
      continue;
    }
    TRY_ASSIGN(const bool has_segments, has_log(fs_, log_root() + "/" + entry.name));
    if (has_segments) TRY(open_database(*name));
  }
  return {};
}

std::shared_ptr<Database> Store::find(const std::string& name) const {
  MutexLock lock(mutex_);
  const auto it = databases_.find(name);
  return it == databases_.end() ? nullptr : it->second;
}

Result<std::shared_ptr<Database>> Store::open_database(const std::string& name) {
  if (auto database = find(name)) return database;
  TRY(check_database_name(name));
  const std::string escaped = escape_name(name);
  if (escaped.size() > kMaxEscapedName) {
    return make_error(Errc::too_large,
                      fmt::format("database name {} is longer than {} bytes when '/' and '%' count three",
                                  name, kMaxEscapedName));
  }
  MutexLock opening(opening_mutex_);
  if (auto database = find(name)) return database;
  TRY_ASSIGN(auto database, Database::open(fs_, name, log_root() + "/" + escaped,
                                           checksums_root() + "/" + escaped, clock_, options_.database));
  MutexLock lock(mutex_);
  if (observer_ != nullptr) database->set_observer(observer_);
  databases_.emplace(name, database);
  return database;
}

std::vector<std::shared_ptr<Database>> Store::list() const {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<Database>> all;
  all.reserve(databases_.size());
  for (const auto& [name, database] : databases_) all.push_back(database);
  return all;
}

Result<void> Store::remove_database(const std::string& name) {
  MutexLock opening(opening_mutex_);
  std::shared_ptr<Database> database;
  {
    MutexLock lock(mutex_);
    const auto it = databases_.find(name);
    if (it == databases_.end()) return make_error(Errc::not_found, "no database " + name);
    database = it->second;
    databases_.erase(it);
  }
  database->set_observer(nullptr);
  {
    MutexLock lock(mutex_);
    if (observer_ != nullptr) observer_->on_removed(name);
  }
  {
    MutexLock commit(database->commit_mutex());
    TRY(database->log().remove_all());
  }
  TRY(fs_.unlink(checksums_root() + "/" + escape_name(name)));
  return fs_.sync_directory(checksums_root());
}

void Store::set_observer(DatabaseObserver* observer) {
  MutexLock lock(mutex_);
  observer_ = observer;
  for (const auto& [name, database] : databases_) database->set_observer(observer);
}

Result<void> check_database_name(std::string_view name) {
  const auto refuse = [&](const char* why) {
    return make_error(Errc::invalid_argument,
                      fmt::format("database name \"{}\" {}", name.substr(0, 100), why));
  };
  if (name.empty()) return refuse("is empty");
  if (name.size() > 1024) return refuse("is longer than 1024 bytes");
  if (name.find('\0') != std::string_view::npos) return refuse("has a zero byte");
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t slash = std::min(name.find('/', at), name.size());
    const std::string_view part = name.substr(at, slash - at);
    if (part.empty() || part == "." || part == "..") return refuse("is not a clean relative path");
    at = slash + 1;
  }
  return {};
}

std::string escape_name(std::string_view name) {
  std::string escaped;
  for (const char c : name) {
    if (c == '%') {
      escaped += "%25";
    } else if (c == '/') {
      escaped += "%2F";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

Result<std::string> unescape_name(std::string_view escaped) {
  std::string name;
  for (std::size_t i = 0; i < escaped.size(); ++i) {
    if (escaped[i] != '%') {
      name += escaped[i];
    } else if (escaped.substr(i, 3) == "%25") {
      name += '%';
      i += 2;
    } else if (escaped.substr(i, 3) == "%2F") {
      name += '/';
      i += 2;
    } else {
      return make_error(Errc::invalid_argument,
                        fmt::format("\"{}\" is not an escaped database name", escaped));
    }
  }
  return name;
}

}  // namespace sluice::storage
