// mixed, visibility: several processes at once.
#include <algorithm>
#include <atomic>

#include "processes.h"
#include "worker.h"

namespace sluice::bench {
namespace {

constexpr unsigned kMostReaders = 64;

struct MixedCounts {
  std::uint64_t start_ns;
  std::uint64_t end_ns;
  std::uint64_t writes;
  std::uint64_t rows;
  std::uint64_t reads[kMostReaders];
};

void mixed_writer(const Arguments& arguments, Barrier& barrier, MixedCounts& counts) {
  Database database(arguments.text("path"), false);
  database.set_modes(arguments);
  Statement insert(database, "insert into t(body) values(?1)");
  const std::uint64_t budget_ns = arguments.seconds_ns();
  const auto one = [&] {
    insert.bind(1, body_of(static_cast<std::int64_t>(counts.writes), 100));
    insert.step();
    insert.reset();
  };
  one();  // the first of a new WAL waits for the disk
  barrier.wait();
  barrier.wait();
  counts.start_ns = now_ns();
  std::uint64_t at = counts.start_ns;
  for (; at - counts.start_ns < budget_ns; at = now_ns()) {
    one();
    ++counts.writes;
  }
  counts.end_ns = at;
  counts.rows = static_cast<std::uint64_t>(database.integer("select count(*) from t"));
  barrier.wait();
  barrier.wait();
}

void mixed_reader(const Arguments& arguments, Barrier& barrier, std::uint64_t seed, std::uint64_t& reads) {
  Database database(arguments.text("path"), false);
  Statement query(database, "select body from t where id = ?1");
  const auto rows = static_cast<std::uint64_t>(database.integer("select max(id) from t"));
  const std::uint64_t budget_ns = arguments.seconds_ns();
  Random random(seed);
  barrier.wait();
  barrier.wait();
  const std::uint64_t until = now_ns() + budget_ns;
  while (now_ns() < until) {
    query.bind(1, 1 + static_cast<std::int64_t>(random.below(rows)));
    if (!query.step()) fail("a row is missing");
    query.reset();
    ++reads;
  }
  barrier.wait();
  barrier.wait();
}

// Times by id, of the writer's COMMIT and of the reader's first sight of it.
struct Sightings {
  static constexpr std::uint64_t kMost = 1u << 21;
  std::atomic<std::uint64_t> last_id;  // 0 until the writer has ended
  std::atomic<std::uint64_t> seen_id;
  std::uint64_t polls;
  std::uint64_t start_ns;
  std::uint64_t end_ns;
  std::uint64_t began_ns[kMost];
  std::uint64_t committed_ns[kMost];
  std::uint64_t seen_ns[kMost];
};

void visibility_writer(const Arguments& arguments, Barrier& barrier, Sightings& sightings) {
  Database database(arguments.text("path"), false);
  database.set_modes(arguments);
  Statement insert(database, "insert into t(id, body) values(?1, ?2)");
  database.run("insert into t(body) values('')");  // the first of a new WAL waits for the disk
  const auto first = static_cast<std::uint64_t>(database.integer("select max(id) from t")) + 1;
  const std::uint64_t budget_ns = arguments.seconds_ns();
  const std::uint64_t pace_ns = arguments.number_or("pace_us", 0) * 1000;
  Random random(7);
  barrier.wait();
  barrier.wait();
  sightings.start_ns = now_ns();
  std::uint64_t at = sightings.start_ns;
  std::uint64_t id = first;
  for (; at - sightings.start_ns < budget_ns && id < Sightings::kMost; ++id) {
    // Uneven steps, so that they do not fall in step with anybody's timer.
    if (pace_ns != 0) sleep_until(at + pace_ns / 2 + random.below(pace_ns));
    sightings.began_ns[id] = now_ns();
    insert.bind(1, static_cast<std::int64_t>(id));
    insert.bind(2, body_of(static_cast<std::int64_t>(id), 100));
    insert.step();
    insert.reset();
    at = now_ns();
    sightings.committed_ns[id] = at;
  }
  sightings.end_ns = at;
  sightings.last_id.store(id - 1, std::memory_order_release);
  barrier.wait();
  barrier.wait();
}

// Polls until it has seen the writer's last id. An id that goes back would be a reader seeing an older snapshot.
void visibility_reader(const Arguments& arguments, Barrier& barrier, Sightings& sightings) {
  constexpr std::uint64_t kDeadlineNs = 60'000'000'000u;
  Database database(arguments.text("replica"), true);
  Statement query(database, "select max(id) from t");
  const std::uint64_t poll_ns = arguments.number_or("poll_us", 0) * 1000;
  const auto look = [&] {
    const bool row = query.step();
    const auto id = row ? static_cast<std::uint64_t>(query.integer(0)) : 0;
    query.reset();
    return id;
  };
  std::uint64_t seen = look();
  barrier.wait();
  barrier.wait();
  std::uint64_t progress = now_ns();
  for (;;) {
    const std::uint64_t id = look();
    const std::uint64_t now = now_ns();
    ++sightings.polls;
    if (id < seen) fail("the replica went back from row " + std::to_string(seen) + " to " + std::to_string(id));
    if (id > seen) progress = now;
    while (seen < id) sightings.seen_ns[++seen] = now;
    const std::uint64_t last = sightings.last_id.load(std::memory_order_acquire);
    if (last != 0 && seen >= last) break;
    if (now - progress > kDeadlineNs) fail("the replica stays at row " + std::to_string(seen));
    if (poll_ns != 0) sleep_until(now + poll_ns);
  }
  barrier.wait();
  barrier.wait();
}

}  // namespace

void run_mixed(const Arguments& arguments) {
  const auto readers = static_cast<unsigned>(std::min<std::uint64_t>(arguments.number("readers"), kMostReaders));
  const SharedMemory memory(sizeof(MixedCounts));
  auto& counts = *memory.as<MixedCounts>();
  Barrier barrier(readers + 2);
  Helpers helpers;
  helpers.start([&] { mixed_writer(arguments, barrier, counts); });
  for (unsigned i = 0; i < readers; ++i) {
    helpers.start([&, i] { mixed_reader(arguments, barrier, i + 1, counts.reads[i]); });
  }
  barrier.wait();
  wait_for_go();
  barrier.wait();
  barrier.wait();
  std::uint64_t reads = 0;
  for (unsigned i = 0; i < readers; ++i) reads += counts.reads[i];
  Report report;
  report.add("ops", counts.writes).add("reads", reads).add("start_ns", counts.start_ns).add("end_ns", counts.end_ns);
  report.add("rows_total", counts.rows);
  finish(report);
  barrier.wait();
}

void run_visibility(const Arguments& arguments) {
  const SharedMemory memory(sizeof(Sightings));
  auto& sightings = *memory.as<Sightings>();
  Barrier barrier(3);
  Helpers helpers;
  helpers.start([&] { visibility_writer(arguments, barrier, sightings); });
  helpers.start([&] { visibility_reader(arguments, barrier, sightings); });
  barrier.wait();
  wait_for_go();
  barrier.wait();
  barrier.wait();
  Latencies visible;
  Latencies commit;
  std::uint64_t early = 0;
  std::uint64_t ops = 0;
  for (std::uint64_t id = 1; id <= sightings.last_id.load(); ++id) {
    if (sightings.committed_ns[id] == 0) continue;  // was there before
    ++ops;
    commit.add(sightings.committed_ns[id] - sightings.began_ns[id]);
    // Published before COMMIT returned: the reader may be faster than the writer's way back.
    const bool before = sightings.seen_ns[id] < sightings.committed_ns[id];
    early += before ? 1 : 0;
    visible.add(before ? 0 : sightings.seen_ns[id] - sightings.committed_ns[id]);
  }
  Report report;
  report.add("ops", ops).add("start_ns", sightings.start_ns).add("end_ns", sightings.end_ns);
  report.add("rows_total", sightings.last_id.load()).add("polls", sightings.polls).add("early", early);
  visible.report(report, "visible_");
  commit.report(report, "commit_");
  finish(report);
  barrier.wait();
}

}  // namespace sluice::bench
