#include "tests/unit/apply/support.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "storage/ltx/checksum.h"
#include "storage/ltx/encoder.h"
#include "storage/sqlite/database_header.h"

extern char** environ;

namespace sluice::storage::apply_test {

TempDir::TempDir() {
  const char* base = std::getenv("TMPDIR");
  std::string pattern = std::string(base != nullptr ? base : "/tmp") + "/sluice-apply-XXXXXX";
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp");
  path_ = pattern;
}
TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

// ---- access ----

Result<UniqueFd> PlainDirAccess::open(const std::string& path, int flags, unsigned mode) {
  UniqueFd fd(::open(backing_path(path).c_str(), flags | O_CLOEXEC, mode));
  if (!fd) return errno_error("open " + path, errno);
  return fd;
}
Result<UniqueFd> PlainDirAccess::open_backing(const std::string& path, int flags, unsigned mode) {
  return open(path, flags, mode);
}
Result<void> PlainDirAccess::truncate(int mount_fd, std::uint64_t size) {
  if (full) return errno_error("ftruncate", ENOSPC);
  if (::ftruncate(mount_fd, static_cast<off_t>(size)) != 0) return errno_error("ftruncate", errno);
  return {};
}
void PlainDirAccess::invalidate(const std::string&, std::uint64_t, std::uint64_t) { ++invalidations; }
void PlainDirAccess::invalidate_entry(const std::string&) { ++forgotten_entries; }

// ---- SQLite ----

Connection::Connection(const std::string& path, int flags) {
  if (sqlite3_open_v2(path.c_str(), &db_, flags, nullptr) != SQLITE_OK) {
    const std::string message = db_ != nullptr ? sqlite3_errmsg(db_) : "out of memory";
    sqlite3_close(db_);
    throw std::runtime_error("open " + path + ": " + message);
  }
  sqlite3_busy_timeout(db_, 10'000);
}
Connection::~Connection() { sqlite3_close(db_); }

void Connection::exec(const std::string& sql) {
  const int code = try_exec(sql);
  if (code != SQLITE_OK) {
    throw std::runtime_error(sql + ": " + sqlite3_errmsg(db_) + " (" +
                             std::to_string(sqlite3_extended_errcode(db_)) + ")");
  }
}
int Connection::try_exec(const std::string& sql) { return sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr); }

std::string Connection::text(const std::string& sql) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(db_, sql.c_str(), -1, &statement, nullptr) != SQLITE_OK) {
    throw std::runtime_error(sql + ": " + sqlite3_errmsg(db_));
  }
  const int code = sqlite3_step(statement);
  std::string value;
  if (code == SQLITE_ROW) {
    const unsigned char* column = sqlite3_column_text(statement, 0);
    if (column != nullptr) value = reinterpret_cast<const char*>(column);
  }
  sqlite3_finalize(statement);
  if (code != SQLITE_ROW && code != SQLITE_DONE) {
    throw std::runtime_error(sql + ": " + sqlite3_errmsg(db_) + " (" +
                             std::to_string(sqlite3_extended_errcode(db_)) + ")");
  }
  return value;
}
std::int64_t Connection::integer(const std::string& sql) { return std::stoll(text(sql)); }

void create_accounts(Connection& sql, int accounts) {
  sql.exec("CREATE TABLE account(id INTEGER PRIMARY KEY, v INTEGER); CREATE TABLE journal(n INTEGER PRIMARY KEY, note);"
           "CREATE TABLE meta(n INTEGER); INSERT INTO meta VALUES(0);");
  sql.exec("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<" + std::to_string(accounts) +
           ") INSERT INTO account SELECT i, 0 FROM c");
}

void transfer(Connection& sql, int number) {
  const std::string n = std::to_string(number);
  sql.exec("BEGIN; UPDATE account SET v = v + " + n + " WHERE id = 1 + " + n + " % 97;" +
           "UPDATE account SET v = v - " + n + " WHERE id = 1 + (" + n + " * 31) % 89;" +
           "UPDATE meta SET n = n + 1; INSERT INTO journal SELECT n, hex(randomblob(20)) FROM meta; COMMIT");
}

// ---- source ----

Source::Source(const std::string& path, std::uint32_t page_size, const std::string& journal_mode) : path_(path) {
  create(page_size, journal_mode);
}
Source::~Source() = default;

void Source::create(std::uint32_t page_size, const std::string& journal_mode) {
  connection_ = std::make_unique<Connection>(path_);
  connection_->exec("PRAGMA synchronous=OFF; PRAGMA page_size=" + std::to_string(page_size));
  connection_->text("PRAGMA journal_mode=" + journal_mode);
}

ChangeSet Source::next() {
  connection_->text("PRAGMA wal_checkpoint(TRUNCATE)");
  const Bytes now = file_content(path_);
  const auto header = sqlite::parse_database_header(now);
  if (header.has_error()) throw std::runtime_error(header.error().message);
  return encode(now, header->page_size);
}

ChangeSet Source::remove() {
  connection_.reset();
  for (const char* suffix : {"", "-wal", "-shm", "-journal"}) ::unlink((path_ + suffix).c_str());
  return encode({}, page_size_);
}

ChangeSet Source::encode(const Bytes& now, std::uint32_t page_size) {
  ChangeSet change;
  IncomingChangeSet& head = change.head;
  head.epoch = epoch;
  head.pre = pos_;
  head.page_size = page_size;
  head.commit = static_cast<std::uint32_t>(now.size() / page_size);
  head.timestamp_ms = 1'700'000'000'000 + static_cast<std::int64_t>(pos_.txid.value());
  head.post.txid = pos_.txid.next();
  const bool whole = page_size != page_size_ || content_.empty();
  const auto page_of = [page_size](const Bytes& content, std::uint32_t p) {
    return ByteView(content).subspan(std::size_t{p - 1} * page_size, page_size);
  };
  ltx::Header header;
  header.page_size = page_size;
  header.commit = head.commit;
  header.min_txid = header.max_txid = head.post.txid;
  header.timestamp_ms = head.timestamp_ms;
  header.pre_apply_checksum = header.is_snapshot() ? 0 : pos_.checksum.value();
  ltx::Encoder encoder;
  const auto check = [](const auto& result) {
    if (result.has_error()) throw std::runtime_error(result.error().message);
  };
  check(encoder.begin(header, [&change](ByteView bytes) -> Result<void> {
    change.image.insert(change.image.end(), bytes.begin(), bytes.end());
    return {};
  }));
  Checksum sum = kEmptyChecksum;
  for (std::uint32_t p = 1; p <= head.commit; ++p) {
    if (Pgno(p) == lock_page(page_size)) continue;
    const ByteView page = page_of(now, p);
    sum = ltx::toggle(sum, ltx::page_checksum(Pgno(p), page));
    const bool same = !whole && std::size_t{p} * page_size <= content_.size() &&
                      std::ranges::equal(page, page_of(content_, p));
    if (!same) check(encoder.add_page(Pgno(p), page));
  }
  check(encoder.finish(sum));
  head.post.checksum = sum;
  head.length = change.image.size();
  content_ = now;
  page_size_ = page_size;
  pos_ = head.post;
  return change;
}

SnapshotEnd Source::end() const {
  SnapshotEnd end;
  end.pos = pos_;
  end.epoch = epoch;
  end.page_size = page_size_;
  end.commit = pages();
  end.timestamp_ms = 1'700'000'000'000;
  return end;
}

// ---- node ----

ReplicaNode::ReplicaNode(const std::string& data_dir, ReplicaOptions options, FileSystem& fs)
    : data_dir_(data_dir), fs_(fs) {
  open(options);
}
ReplicaNode::~ReplicaNode() { close(); }

bool PlainDirAccess::passthrough() const {
  const char* path = std::getenv("SLUICE_TEST_IO");
  return path == nullptr || std::string(path) != "plain";
}

Result<HelperProcess> start_index_helper() {
  int ends[2] = {};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) throw std::runtime_error("socketpair");
  HelperProcess process;
  process.socket = UniqueFd(ends[0]);
  const UniqueFd theirs(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), 3);
  char program[] = SLUICE_APPLY_INDEX_HELPER;
  char* argv[] = {program, nullptr};
  if (::posix_spawn(&process.pid, program, &actions, nullptr, argv, environ) != 0) throw std::runtime_error("posix_spawn");
  posix_spawn_file_actions_destroy(&actions);
  return process;
}

void ReplicaNode::open(ReplicaOptions options) {
  StoreOptions store_options;
  store_options.data_dir = data_dir_;
  auto store = Store::open(fs_, system_clock(), store_options);
  if (store.has_error()) throw std::runtime_error(store.error().to_string());
  store_ = std::move(*store);
  access_ = std::make_unique<PlainDirAccess>(store_->fs_dir());
  pool_ = std::make_unique<ThreadPool>("disk", 2);
  options.start_index_helper = [this] {
    auto process = start_index_helper();
    if (process.has_value()) helper_pid_ = process->pid;
    return process;
  };
  auto replica = Replica::open(*store_, *access_, *pool_, options);
  if (replica.has_error()) throw std::runtime_error(replica.error().to_string());
  replica_ = std::move(*replica);
}

void ReplicaNode::close() {
  if (replica_) replica_->stop();
  if (pool_) pool_->stop();
  replica_.reset();
  pool_.reset();
  access_.reset();
  store_.reset();
}

void ReplicaNode::restart(ReplicaOptions options) {
  close();
  open(options);
}

std::shared_ptr<ReplicaDatabase> ReplicaNode::database(const std::string& name) {
  auto database = replica_->database(name);
  if (database.has_error()) throw std::runtime_error(database.error().to_string());
  return *database;
}

Result<void> ReplicaNode::apply(const std::string& name, const ChangeSet& change) {
  return apply_to(*database(name), change);
}

Result<void> ReplicaNode::snapshot(const std::string& name, const Source& source,
                                   const std::vector<std::uint32_t>& leave_out) {
  const auto to = database(name);
  TRY(to->begin_snapshot(source.page_size(), source.pages()));
  for (std::uint32_t p = 1; p <= source.pages(); ++p) {
    if (Pgno(p) == lock_page(source.page_size()) || std::ranges::count(leave_out, p) != 0) continue;
    TRY(to->snapshot_page(Pgno(p), ByteView(source.content()).subspan(std::size_t{p - 1} * source.page_size(),
                                                                     source.page_size())));
  }
  return to->finish_snapshot(source.end());
}

Result<std::size_t> send_differences(ReplicaDatabase& database, const Bytes& content, const SnapshotEnd& end,
                                     std::size_t most) {
  PageOffer offer;
  for (bool done = false; !done;) {
    TRY_ASSIGN(done, database.prepare_offer(offer));
  }
  std::vector<std::uint64_t> sums(offer.pages);
  if (!sums.empty()) TRY(database.offered_sums(Pgno(1), sums));
  BlockSum block;
  std::vector<std::uint64_t> blocks;
  for (std::uint32_t p = 1; p <= offer.pages; ++p) {
    if (Pgno(p) != lock_page(offer.page_size)) block.add(Checksum(sums[p - 1]));
    if (p % offer.block_pages == 0 || p == offer.pages) blocks.push_back(std::exchange(block, BlockSum()).value());
  }
  if (blocks != offer.blocks) return make_error(Errc::internal, "the blocks are not those of the page checksums");
  if (offer.page_size != end.page_size) sums.clear();
  TRY(database.begin_snapshot(end.page_size, end.commit));
  std::size_t sent = 0;
  for (std::uint32_t p = 1; p <= end.commit; ++p) {
    const ByteView page = ByteView(content).subspan(std::size_t{p - 1} * end.page_size, end.page_size);
    if (Pgno(p) == lock_page(end.page_size)) continue;
    if (p <= sums.size() && sums[p - 1] == ltx::page_checksum(Pgno(p), page).value()) continue;
    if (sent == most) {
      database.abort_snapshot();
      return make_error(Errc::cancelled, "cut");
    }
    TRY(database.snapshot_page(Pgno(p), page));
    ++sent;
  }
  TRY(database.finish_snapshot(end));
  return sent;
}

Result<void> apply_to(ReplicaDatabase& database, const ChangeSet& change) {
  TRY(database.begin_change_set(change.head));
  const ByteView image(change.image);
  constexpr std::size_t kPiece = 100'000;
  for (std::size_t at = 0; at < image.size(); at += kPiece) {
    TRY(database.change_set_bytes(image.subspan(at, std::min(kPiece, image.size() - at))));
  }
  return database.finish_change_set();
}

// ---- looking ----

Bytes file_content(const std::string& path) {
  auto content = read_file(real_file_system(), path, std::uint64_t{4} << 30);
  if (content.has_error()) throw std::runtime_error(content.error().to_string());
  return std::move(*content);
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

std::string difference(const std::string& path, const Bytes& expected) {
  // sqlite3_serialize copies the database as this connection sees it: database file and WAL.
  Connection sql(path, SQLITE_OPEN_READONLY);
  if (const std::string check = sql.text("PRAGMA integrity_check"); check != "ok") return "integrity_check: " + check;
  sqlite3_int64 size = 0;
  unsigned char* data = sqlite3_serialize(sql.handle(), "main", &size, 0);
  if (data == nullptr) return "no content";
  const Bytes seen(reinterpret_cast<std::byte*>(data), reinterpret_cast<std::byte*>(data) + size);
  sqlite3_free(data);
  if (seen.size() != expected.size()) {
    return std::to_string(seen.size()) + " bytes instead of " + std::to_string(expected.size());
  }
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (seen[i] != expected[i]) return "differs at byte " + std::to_string(i);
  }
  return {};
}

bool eventually(const std::function<bool()>& condition, int seconds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

// ---- children ----

Child::Child(const std::vector<std::string>& arguments) {
  int in[2];
  int out[2];
  if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) throw std::runtime_error("pipe");
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  const int error = ::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(in[0]);
  ::close(out[1]);
  input_ = in[1];
  output_ = out[0];
  if (error != 0) throw std::runtime_error("cannot start " + arguments[0]);
}

Child::~Child() {
  kill();
  if (pid_ > 0) wait();
  close_input();
  if (output_ >= 0) ::close(output_);
}

void Child::close_input() {
  if (input_ >= 0) ::close(input_);
  input_ = -1;
}

void Child::write_line() {
  if (::write(input_, "\n", 1) != 1) throw std::runtime_error("write to child");
}

std::string Child::read_line() {
  std::string line;
  char c = 0;
  while (::read(output_, &c, 1) == 1) {
    if (c == '\n') return line;
    line += c;
  }
  return line;
}

int Child::wait() {
  if (pid_ <= 0) return 0;
  int status = 0;
  ::waitpid(pid_, &status, 0);
  pid_ = -1;
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

void Child::kill() {
  if (pid_ > 0) ::kill(pid_, SIGKILL);
}

}  // namespace sluice::storage::apply_test
