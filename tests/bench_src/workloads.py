"""Throughput workloads: the same run on every target, interleaved; the result is a rate and its ratio to raw."""

import os
import time
from dataclasses import dataclass, field

from stage import NOBODY, TestFailure, Worker, fuse_requests, machine_busy_seconds, process_cpu_seconds

WAL = {"journal": "wal", "synchronous": "normal"}
WAL_FULL = {"journal": "wal", "synchronous": "full"}
DELETE = {"journal": "delete", "synchronous": "full"}


@dataclass
class Workload:
    name: str
    what: str
    unit: str
    command: str  # of the worker
    values: dict
    target_ratio: float = None     # to raw, with a live replica
    no_requests: bool = False      # no FUSE request per operation allowed
    shared: str = None             # fixture it reads ("wal", "delete", "small-wal", …); None: a fresh database each run
    on_replica: bool = False       # runs on the replica's mount, too
    uid: int = 0
    rate: object = field(default=lambda r: r["ops"] / seconds_of(r))


def seconds_of(result):
    return (result["end_ns"] - result["start_ns"]) / 1e9


def megabytes(result):
    return result["bytes"] / seconds_of(result) / 1e6


def row_rate(result):
    return result["rows"] / seconds_of(result)


def scan_rate(result):
    return result["ops"] * megabytes(result)


def native_workloads(options):
    seconds = {"seconds": options.seconds}
    load_bytes = options.load_mb * 1_000_000

    def insert(name, what, modes, target, **extra):
        return Workload(name, what, "tx/s", "insert", {**modes, **seconds, **extra}, target)

    def read(name, what, mode, kind="point", **extra):
        rate = {"rate": scan_rate} if kind == "scan" else {}
        return Workload(name, what, "MB/s" if kind == "scan" else "reads/s", "read", {**seconds, "kind": kind, **extra},
                        0.95, True, mode, True, **rate)

    def opens(name, what, fixture, uid=0, **extra):
        return Workload(name, what, "opens/s", "open-close", {**seconds, **extra}, None, False, fixture, uid=uid)

    return [
        insert("ins_wal_normal", "autocommit inserts, WAL NORMAL", WAL, 0.60),
        insert("ins_wal_full", "autocommit inserts, WAL FULL", WAL_FULL, 0.50),
        insert("ins_delete_full", "autocommit inserts, DELETE FULL", DELETE, None),
        Workload("bulk_rows", "1000-row transactions, WAL NORMAL", "rows/s", "insert", {**WAL, **seconds, "rows": 1000},
                 0.30, rate=row_rate),
        Workload("bulk_load", f"load of {options.load_mb} MB in 10 MB transactions, WAL NORMAL", "MB/s", "load",
                 {**WAL, "bytes": load_bytes, "transaction": min(10_000_000, load_bytes // 4)}, 0.30, rate=megabytes),
        read("point_wal", "point reads, WAL with frames", "wal", touch=500),
        read("point_wal_tiny", "point reads, WAL with frames, cache of 10 pages", "wal", touch=500, cache=10),
        read("point_wal_empty", "point reads, empty WAL", "wal", truncate=1),
        read("point_delete", "point reads, DELETE", "delete"),
        read("point_delete_tiny", "point reads, DELETE, cache of 10 pages", "delete", cache=10),
        read("scan_wal", "scans, WAL", "wal", "scan"),
        read("scan_delete", "scans, DELETE", "delete", "scan"),
        Workload("mixed_writes", "1 writer + 2 readers: writes, WAL NORMAL", "tx/s", "mixed", {**WAL, **seconds, "readers": 2}),
        opens("open_wal_held", "open+query+close, WAL, another connection open", "small-wal", held=1),
        opens("open_wal_sole", "open+query+close, WAL, sole connection", "small-wal"),
        opens("open_delete", "open+query+close, DELETE", "small-delete"),
        opens("open_wal_held_nobody", "the same as uid 65534, WAL, another connection open", "nobody/small-wal", NOBODY, held=1),
        opens("open_delete_nobody", "the same as uid 65534, DELETE", "nobody/small-delete", NOBODY),
    ]


# On the plain path every append to the WAL is a request; reads cost what they cost on the native one.
PLAIN_WRITE_TARGETS = {"ins_wal_normal": 0.10}


def workloads(options):
    """All of them, with the targets of the I/O path."""
    found = native_workloads(options)
    if options.io == "plain":
        for workload in found:
            if not workload.no_requests:
                workload.target_ratio = PLAIN_WRITE_TARGETS.get(workload.name)
    return found


def fixture(stage, target, name, options):
    """A database that workloads read: made by SQLite in place, once per target."""
    database = f"{name}.db"
    if (target.name, database) in stage.fixture_rows:
        return database
    small = "small" in name
    values = WAL if name.endswith("wal") else DELETE
    values = {**values, "bytes": 400_000 if small else options.database_mb * 1_000_000, "transaction": 4_000_000, "size": 400}
    if name.startswith("nobody/"):
        values["uid"] = NOBODY
    with Worker(stage, "load", path=target.path(database), **values) as worker:
        rows = worker.run()["rows_total"]
    stage.fixture_rows[target.name, database] = rows
    target.settle(database)
    if target.replica:
        stage.check(target.replica.path(database), rows)
    return database


class Observation:
    """What one run cost, read off around it: FUSE requests and CPU of the nodes, CPU of everything that is not ours."""

    def __init__(self, target, node, worker):
        self.node = node
        self.nodes = target.nodes()
        self.worker = worker
        self.before = self.read()

    def read(self):
        own = os.times()
        return {"requests": fuse_requests(self.node) if self.node else {},
                "cpu": {node.name: process_cpu_seconds(node.process.pid) for node in self.nodes},
                "worker": self.worker.cpu_seconds(), "own": own.user + own.system, "busy": machine_busy_seconds(),
                "at": time.monotonic()}

    def finish(self, ops):
        after, before = self.read(), self.before
        requests = {k: v - before["requests"].get(k, 0) for k, v in after["requests"].items()}
        requests = {k: v / ops for k, v in requests.items() if v}
        cpu = {k: v - before["cpu"][k] for k, v in after["cpu"].items()}
        mine = sum(cpu.values()) + after["worker"] - before["worker"] + after["own"] - before["own"]
        wall = after["at"] - before["at"]
        return {"requests_per_op": sum(requests.values()), "requests": requests,
                "cpu_us_per_op": {k: v / ops * 1e6 for k, v in cpu.items()},
                "foreign_cpu": max(0.0, after["busy"] - before["busy"] - mine) / wall / os.cpu_count()}


def run_workload(stage, workload, name, round_number, options):
    """One run. `name`: raw, mount, replica, or at_replica = on the replica's mount."""
    target = stage.target("replica" if name == "at_replica" else name)
    node = target.replica if name == "at_replica" else target.primary
    values = dict(workload.values)
    if workload.uid:
        values["uid"] = workload.uid
    if workload.shared:
        database = fixture(stage, target, workload.shared, options)
    else:
        database = f"{workload.name}-{round_number}.db"
    path = target.path(database)
    if name == "at_replica":
        target.settle(database)
        values = {k: v for k, v in values.items() if k not in ("touch", "truncate")} | {"readonly": 1}
        path = target.replica.path(database)
    if workload.command == "read":
        values["seed"] = round_number + 1
    if workload.command == "mixed":
        with Worker(stage, "load", path=path, **WAL, bytes=1_000_000, transaction=1_000_000, size=100) as worker:
            worker.run()
    if not options.quick:
        os.sync()  # what the run before left to be written is not this one's
    with Worker(stage, workload.command, path=path, **values) as worker:
        worker.ready()
        observation = Observation(target, node, worker)
        worker.go()
        result = worker.result()
        result.update(observation.finish(max(1, result["ops"])))
        result["value"] = workload.rate(result)
        if not workload.shared:
            settled_ns = target.settle(database)
            result["settle_ms"] = (settled_ns - result["end_ns"]) / 1e6
            result["end_to_end_mb_per_s"] = result.get("bytes", 0) / (settled_ns - result["start_ns"]) * 1e3
        worker.quit()
    if not workload.shared:
        verify(stage, target, database, result["rows_total"], round_number == 0)
        target.remove(database)
    return result


def verify(stage, target, database, rows, quick_check):
    """Every acknowledged row is there, here and on the replica."""
    stage.check(target.path(database), rows, quick_check)
    if target.replica:
        target.settle(database)
        stage.check(target.replica.path(database), rows, quick_check)


def run_rounds(stage, workload, options, note):
    """{target: [result per round]}, the targets in another order every round."""
    names = list(options.targets)
    if workload.on_replica and "replica" in names:
        names.append("at_replica")
    results = {name: [] for name in names}
    for round_number in range(options.rounds):
        shift = round_number % len(names)
        for name in names[shift:] + names[:shift]:
            try:
                results[name].append(run_workload(stage, workload, name, round_number, options))
            except TestFailure as failure:
                raise TestFailure(f"{workload.name} on {name}, round {round_number}: {failure}") from failure
            note(f"{workload.name} {round_number + 1}/{options.rounds} {name}: {results[name][-1]['value']:.0f} {workload.unit}")
    return results
