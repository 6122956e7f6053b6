// Prometheus metrics, made from a NodeStatus at each scrape: no counters of our own to keep.
#include <dirent.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <cstdio>

#include "server/status.h"
#include "base/utf8.h"

namespace sluice::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<ClientMetric::Label>;

class Families {
 public:
  void gauge(const std::string& name, const std::string& help, Labels labels, double value) {
    ClientMetric metric;
    metric.label = std::move(labels);
    metric.gauge.value = value;
    family(name, help, MetricType::Gauge).metric.push_back(std::move(metric));
  }
  void counter(const std::string& name, const std::string& help, Labels labels, double value) {
    ClientMetric metric;
    metric.label = std::move(labels);
    metric.counter.value = value;
    family(name, help, MetricType::Counter).metric.push_back(std::move(metric));
  }
  std::string text() const { return prometheus::TextSerializer().Serialize(families_); }

 private:
  MetricFamily& family(const std::string& name, const std::string& help, MetricType type) {
    for (MetricFamily& f : families_)
      if (f.name == name) return f;
    MetricFamily f;
    f.name = name;
    f.help = help;
    f.type = type;
    families_.push_back(std::move(f));
    return families_.back();
  }
  std::vector<MetricFamily> families_;
};

double resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return 0;
  unsigned long size = 0;
  unsigned long resident = 0;
  const int fields = std::fscanf(file, "%lu %lu", &size, &resident);
  std::fclose(file);
  return fields == 2 ? static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) : 0;
}

double open_descriptors() {
  DIR* dir = ::opendir("/proc/self/fd");
  if (dir == nullptr) return 0;
  int count = -3;  // ".", ".." and this directory's own
  while (::readdir(dir) != nullptr) ++count;
  ::closedir(dir);
  return count;
}

void add_resync(Families& m, const Labels& labels, const replication::ResyncProgress& p) {
  m.gauge("sluice_resync_pages", "Pages of the resynchronisation under way that were sent or received.", labels,
          static_cast<double>(p.pages));
  m.gauge("sluice_resync_expected_pages", "Pages that it will have in all, about.", labels, static_cast<double>(p.expected));
  m.gauge("sluice_resync_bytes", "Bytes of pages that it has had on the wire.", labels, static_cast<double>(p.bytes));
}

void add_database(Families& m, const DatabaseStatus& d) {
  const Labels db = {{"db", clean_utf8(d.name)}};
  m.counter("sluice_db_txid", "TXID of the database: change sets since it began.", db,
            static_cast<double>(d.pos.txid.value()));
  if (d.applied) {
    m.gauge("sluice_db_applied_txid", "TXID that readers on this replica see.", db,
            static_cast<double>(d.applied->txid.value()));
  }
  m.gauge("sluice_db_durable_txid", "TXID up to which the change log is on disk.", db,
          static_cast<double>(d.durable.value()));
  m.gauge("sluice_db_stopped", "1: operations on the database fail until the node is restarted, see its log.", db,
          d.fault.empty() ? 0 : 1);
  m.gauge("sluice_db_waiting", "1: a full disk keeps the database from being captured or applied; it is tried again.", db,
          d.waiting.empty() ? 0 : 1);
  m.gauge("sluice_db_orphans", "Processes that used an earlier mount and were cut off.", db,
          static_cast<double>(d.orphans.size()));
  if (d.resync.phase != replication::ResyncProgress::Phase::none) add_resync(m, db, d.resync);
  if (d.scrub) {
    m.gauge("sluice_scrub_timestamp_seconds", "When the last scrub of the database ended.", db,
            static_cast<double>(d.scrub->ended_ms) / 1000);
    m.gauge("sluice_scrub_bad_pages", "Pages that the last scrub found damaged.", db, static_cast<double>(d.scrub->bad_pages));
    m.counter("sluice_scrub_bad_pages_total", "Pages found damaged since the node started.", db,
              static_cast<double>(d.scrub->bad_total));
  }
  m.gauge("sluice_db_pages", "Size of the database in pages.", db, d.pages);
  m.gauge("sluice_db_bytes", "Size of the database in bytes.", db, static_cast<double>(d.bytes()));
  m.gauge("sluice_db_log_bytes", "Size of the change log in bytes.", db, static_cast<double>(d.log_bytes));
  m.gauge("sluice_db_log_first_txid", "Smallest TXID that the change log still has.", db,
          static_cast<double>(d.log_first.value()));
  m.gauge("sluice_db_timestamp_seconds", "Time of the last change set.", db,
          static_cast<double>(d.timestamp_ms) / 1000);
}

void add_replica(Families& m, const replication::ReplicaStatus& r, const NodeStatus& s) {
  const std::string id = to_hex(r.node_id.value());
  m.counter("sluice_replica_sent_bytes_total", "Bytes sent to the replica since it connected.",
            {{"replica", id}, {"hostname", clean_utf8(r.hostname)}}, static_cast<double>(r.bytes_sent));
  for (const auto& d : r.databases) {
    const Labels labels = {
        {"replica", id}, {"hostname", clean_utf8(r.hostname)}, {"db", clean_utf8(d.name)}};
    m.gauge("sluice_replica_durable_txid", "TXID the replica has on disk.", labels,
            static_cast<double>(d.durable.value()));
    m.gauge("sluice_replica_applied_txid", "TXID the replica's readers see.", labels,
            static_cast<double>(d.applied.value()));
    if (d.resync.phase != replication::ResyncProgress::Phase::none) add_resync(m, labels, d.resync);
    if (const DatabaseStatus* own = s.find(d.name)) {
      const double lag = static_cast<double>(own->pos.txid.value()) - static_cast<double>(d.applied.value());
      m.gauge("sluice_replica_lag_txids", "Change sets the replica has not applied yet.", labels,
              lag > 0 ? lag : 0);
    }
  }
}

void add_subscriber(Families& m, const replication::SubscriberStatus& s) {
  m.gauge("sluice_connected", "1 while this replica is connected to the primary.", {}, s.connected ? 1 : 0);
  m.gauge("sluice_synced", "1 once this replica has caught up since it connected.", {}, s.synced ? 1 : 0);
  if (s.lag_ms) {
    m.gauge("sluice_lag_seconds", "Age of what is applied against the primary's newest.", {},
            static_cast<double>(*s.lag_ms) / 1000);
  }
  m.counter("sluice_received_bytes_total", "Bytes received from the primary.", {},
            static_cast<double>(s.bytes_received));
  m.counter("sluice_resyncs_total", "Snapshots asked for because something did not fit.", {},
            static_cast<double>(s.resyncs));
}

}  // namespace

std::string metrics_text(const NodeStatus& s) {
  Families m;
  m.gauge("sluice_build_info", "Version of Sluice.", {{"version", SLUICE_VERSION}}, 1);
  m.gauge("sluice_is_primary", "1 on the primary.", {}, s.role == storage::Role::primary ? 1 : 0);
  m.gauge("sluice_ready", "1 when /v1/ready answers 200.", {}, s.ready() ? 1 : 0);
  m.gauge("sluice_epoch", "Epoch of the primary's reign.", {}, static_cast<double>(s.epoch.value()));
  m.gauge("sluice_uptime_seconds", "Since the node started.", {}, static_cast<double>(s.uptime_ms) / 1000);
  m.gauge("sluice_db_count", "Databases with content.", {},
          static_cast<double>(std::count_if(s.databases.begin(), s.databases.end(),
                                            [](const auto& d) { return d.pages != 0; })));
  for (const DatabaseStatus& d : s.databases) add_database(m, d);
  if (s.role == storage::Role::primary) {
    m.gauge("sluice_replica_count", "Replicas connected.", {}, static_cast<double>(s.replicas.size()));
    for (const auto& r : s.replicas) add_replica(m, r, s);
  } else if (s.subscriber) {
    add_subscriber(m, *s.subscriber);
  }
  for (const auto& [opcode, count] : s.fuse_requests) {
    m.counter("sluice_fuse_requests_total", "FUSE requests served.", {{"opcode", opcode}},
              static_cast<double>(count));
  }
  for (const auto& [name, count] : s.capture) {
    m.counter("sluice_capture_" + name + "_total", "Counted by capture: " + name + ".", {},
              static_cast<double>(count));
  }
  m.gauge("process_resident_memory_bytes", "Resident memory of the daemon.", {}, resident_bytes());
  m.gauge("process_open_fds", "Open file descriptors of the daemon.", {}, open_descriptors());
  return m.text();
}

}  // namespace sluice::server
