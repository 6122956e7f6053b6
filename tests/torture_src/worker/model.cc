#include "model.h"

#include <cstring>
#include <stdexcept>

namespace sluice::torture {

namespace {

constexpr std::uint64_t kFnvStart = 0xcbf29ce484222325u;

/// FNV-1a over 8-byte words (and the rest bytewise): quick enough for every body.
std::uint64_t hash_bytes(std::uint64_t hash, std::string_view bytes) {
  while (bytes.size() >= 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), 8);
    hash = (hash ^ word) * 0x100000001b3u;
    hash ^= hash >> 29;
    bytes.remove_prefix(8);
  }
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

std::string make_body(Random& random, int bytes) {
  std::string body(static_cast<std::size_t>(bytes), '\0');
  // A third of the words are random: compressible like real rows, different from every other body.
  std::uint64_t word = random.next();
  for (std::size_t at = 0; at + 8 <= body.size(); at += 8) {
    if (at % 24 == 0) word = random.next();
    std::memcpy(&body[at], &word, 8);
  }
  return body;
}

std::int64_t body_sum(std::string_view body) {
  return static_cast<std::int64_t>(hash_bytes(kFnvStart, body) >> 1);
}

void must_change_one(Database& db, const char* what) {
  if (sqlite3_changes(db.handle()) != 1) throw std::logic_error(std::string("row missing: ") + what);
}

void insert_parts(Database& db, const std::string& schema, const Work& work, Random& random) {
  for (int part = 0; part < work.parts; ++part) {
    const std::string body = make_body(random, work.body_bytes);
    db.query("INSERT INTO " + schema + ".parts(w,seq,part,parts,tag,sum,body) VALUES(?,?,?,?,?,?,?)")
        .bind(work.writer)
        .bind(static_cast<std::int64_t>(work.seq))
        .bind(part)
        .bind(work.parts)
        .bind(static_cast<std::int64_t>(work.tag))
        .bind(body_sum(body))
        .bind_blob(body)
        .run();
  }
}

void check_parts(Database& db, int writer, const Progress& progress, bool thorough,
                 std::vector<std::string>* problems) {
  Query groups = db.query(
      "SELECT seq, count(*), min(parts), max(parts), min(tag), max(tag) FROM parts WHERE w=? GROUP BY seq "
      "ORDER BY seq");
  groups.bind(writer);
  std::uint64_t last = 0;
  while (groups.step()) {
    const std::string name = "writer " + std::to_string(writer) + " transaction " + groups.text(0);
    if (groups.integer(1) != groups.integer(2) || groups.integer(2) != groups.integer(3)) {
      problems->push_back("TORN: " + name + " has " + groups.text(1) + " of " + groups.text(3) + " parts");
    }
    if (groups.integer(4) != groups.integer(5))
      problems->push_back("MIXED: " + name + " has parts of two attempts");
    last = static_cast<std::uint64_t>(groups.integer(0));
    if (last == progress.seq && static_cast<std::uint64_t>(groups.integer(4)) != progress.tag) {
      problems->push_back("MIXED: " + name + " has another tag than progress");
    }
  }
  if (last != progress.seq) {
    problems->push_back("TORN: writer " + std::to_string(writer) + " progress " +
                        std::to_string(progress.seq) + ", last parts " + std::to_string(last));
  }
  Query rows =
      db.query(thorough ? "SELECT seq, part, sum, body FROM parts WHERE w=?"
                        : "SELECT seq, part, sum, body FROM parts WHERE w=? ORDER BY seq DESC LIMIT 2");
  rows.bind(writer);
  while (rows.step()) {
    if (body_sum(rows.blob(3)) != rows.integer(2)) {
      problems->push_back("BODY: writer " + std::to_string(writer) + " transaction " + rows.text(0) +
                          " part " + rows.text(1));
    }
  }
}

std::uint64_t hash_row(std::uint64_t hash, const Query& row) {
  for (int column = 0; column < row.columns(); ++column) {
    const int type = row.type(column);
    hash = hash_bytes(hash, std::string_view(reinterpret_cast<const char*>(&type), sizeof type));
    const std::string_view bytes = row.blob(column);
    const std::uint64_t size = bytes.size();
    hash = hash_bytes(hash, std::string_view(reinterpret_cast<const char*>(&size), sizeof size));
    hash = hash_bytes(hash, bytes);
  }
  return hash;
}

}  // namespace

void create_schema(Database& db) {
  db.exec("BEGIN IMMEDIATE");
  db.exec(
      "CREATE TABLE IF NOT EXISTS accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);"
      "CREATE TABLE IF NOT EXISTS counter(id INTEGER PRIMARY KEY CHECK(id=1), n INTEGER NOT NULL);"
      "CREATE TABLE IF NOT EXISTS progress(w INTEGER PRIMARY KEY, seq INTEGER NOT NULL, tag INTEGER NOT "
      "NULL);"
      "CREATE TABLE IF NOT EXISTS parts(w INT, seq INT, part INT, parts INT, tag INT, sum INT, body BLOB,"
      " PRIMARY KEY(w,seq,part));"
      "CREATE INDEX IF NOT EXISTS parts_sum ON parts(sum);"
      "CREATE TABLE IF NOT EXISTS pairs(w INT, partner TEXT, n INT, PRIMARY KEY(w,partner)) WITHOUT ROWID;");
  if (db.integer("SELECT count(*) FROM counter") == 0) {
    db.exec("INSERT INTO counter VALUES(1,0)");
    db.exec("WITH RECURSIVE a(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM a WHERE i<" +
            std::to_string(kAccounts) + ") INSERT INTO accounts SELECT i," + std::to_string(kBalance) +
            " FROM a");
  }
  db.exec("COMMIT");
}

Progress read_progress(Database& db, const std::string& schema, int writer) {
  Query q = db.query("SELECT seq, tag FROM " + schema + ".progress WHERE w=?");
  q.bind(writer);
  if (!q.step()) return {};
  return {static_cast<std::uint64_t>(q.integer(0)), static_cast<std::uint64_t>(q.integer(1))};
}

void do_work(Database& db, const std::string& schema, const Work& work, Random& random) {
  const std::int64_t amount = random.between(1, 9);
  const std::int64_t from = random.between(1, kAccounts);
  const std::int64_t to = from % kAccounts + 1;
  db.query("UPDATE " + schema + ".accounts SET balance=balance-? WHERE id=?").bind(amount).bind(from).run();
  must_change_one(db, "account");
  insert_parts(db, schema, work, random);
  db.query("UPDATE " + schema + ".accounts SET balance=balance+? WHERE id=?").bind(amount).bind(to).run();
  must_change_one(db, "account");
  db.query("UPDATE " + schema + ".counter SET n=n+1 WHERE id=1").run();
  must_change_one(db, "counter");
  const auto seq = static_cast<std::int64_t>(work.seq);
  db.query("DELETE FROM " + schema + ".parts WHERE w=? AND seq<=?")
      .bind(work.writer)
      .bind(seq - kWindow)
      .run();
  db.query("INSERT INTO " + schema +
           ".progress(w,seq,tag) VALUES(?,?,?)"
           " ON CONFLICT(w) DO UPDATE SET seq=excluded.seq, tag=excluded.tag")
      .bind(work.writer)
      .bind(seq)
      .bind(static_cast<std::int64_t>(work.tag))
      .run();
  if (!work.partner.empty()) {
    db.query("INSERT INTO " + schema +
             ".pairs(w,partner,n) VALUES(?,?,1) ON CONFLICT(w,partner) DO UPDATE SET n=n+1")
        .bind(work.writer)
        .bind(work.partner)
        .run();
  }
}

void do_garbage(Database& db, const std::string& schema, int writer, int rows, int body_bytes,
                Random& random) {
  Work garbage;
  garbage.writer = 1000 + writer;
  garbage.seq = random.next() >> 40;
  garbage.tag = random.next() >> 2;
  garbage.parts = rows;
  garbage.body_bytes = body_bytes;
  insert_parts(db, schema, garbage, random);
  db.query("UPDATE " + schema + ".parts SET sum=sum+1 WHERE w=?").bind(garbage.writer).run();
  db.query("UPDATE " + schema + ".accounts SET balance=balance+100000").run();
  db.query("UPDATE " + schema + ".parts SET parts=parts+1 WHERE w=?").bind(garbage.writer).run();
}

std::vector<std::string> check_invariants(Database& db, Random& random, bool thorough, Snapshot* out) {
  std::vector<std::string> problems;
  Snapshot seen;
  const std::int64_t sum = db.integer("SELECT sum(balance) FROM accounts");
  if (sum != std::int64_t{kAccounts} * kBalance)
    problems.push_back("SUM: balances add up to " + std::to_string(sum));
  seen.counter = static_cast<std::uint64_t>(db.integer("SELECT n FROM counter"));
  std::uint64_t total = 0;
  {
    Query q = db.query("SELECT w, seq, tag FROM progress ORDER BY w");
    while (q.step()) {
      const auto writer = static_cast<std::size_t>(q.integer(0));
      if (writer >= 64) {
        problems.push_back("ROLLED BACK: a writer that does not exist has progress");
        continue;
      }
      if (seen.progress.size() <= writer) seen.progress.resize(writer + 1);
      seen.progress[writer] = {static_cast<std::uint64_t>(q.integer(1)),
                               static_cast<std::uint64_t>(q.integer(2))};
      total += seen.progress[writer].seq;
    }
  }
  if (total != seen.counter) {
    problems.push_back("COUNTER: " + std::to_string(seen.counter) + ", writers made " +
                       std::to_string(total));
  }
  const std::uint64_t only = seen.progress.empty() ? 0 : random.below(seen.progress.size());
  for (std::size_t writer = 0; writer < seen.progress.size(); ++writer) {
    if (seen.progress[writer].seq == 0 || (!thorough && writer != only)) continue;
    check_parts(db, static_cast<int>(writer), seen.progress[writer], thorough, &problems);
  }
  if (thorough && db.integer("SELECT count(*) FROM parts WHERE w>=1000") != 0) {
    problems.push_back("ROLLED BACK: rows of a rolled back transaction are there");
  }
  if (out != nullptr) *out = std::move(seen);
  return problems;
}

std::uint64_t logical_digest(Database& db) {
  std::uint64_t hash = kFnvStart;
  {
    Query q = db.query("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name");
    while (q.step()) hash = hash_row(hash, q);
  }
  for (const std::string& table :
       texts(db, "SELECT name FROM sqlite_schema WHERE type='table' ORDER BY name")) {
    Query q = db.query("SELECT * FROM \"" + table + "\" ORDER BY 1, 2");
    // Rows are summed, not chained: equal keys in the first two columns may come in any order.
    std::uint64_t sum = 0;
    while (q.step()) sum += hash_row(kFnvStart, q);
    hash = (hash ^ sum) * 0x100000001b3u;
  }
  return hash;
}

}  // namespace sluice::torture
