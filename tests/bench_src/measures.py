"""Measures that are not a rate on three targets: each returns a list of Finding."""

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from stage import Target, Worker, database_bytes, memory_of, wait_position
from workloads import DELETE, WAL, WAL_FULL, fixture, verify

MEMORY_LIMIT_MB = 64


@dataclass
class Finding:
    name: str
    what: str
    unit: str
    values: list  # one per round
    at_most: float = None
    at_least: float = None
    details: dict = field(default_factory=dict)

    @property
    def value(self):
        return statistics.median(self.values)

    @property
    def target(self):
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else ""

    @property
    def met(self):
        """None: there is no target."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.value >= self.at_least if self.at_least is not None else None


def visibility(stage, options, note, name, what, modes, pace_us, limits):
    """From COMMIT returned on the primary until a polling reader on the replica's mount sees the row. The same between two
    processes on one raw database is the floor: what the machine itself takes to run both."""
    rounds = {"raw": [], "replica": []}
    for number in range(options.rounds):
        for kind, runs in rounds.items():
            target = stage.target(kind)
            database = f"{name}-{number}.db"
            with Worker(stage, "load", path=target.path(database), **modes, bytes=1, transaction=1, size=100) as worker:
                worker.run()
            target.settle(database)
            seconds = options.seconds * (4 if pace_us else 1)
            reader = target.replica.path(database) if target.replica else target.path(database)
            with Worker(stage, "visibility", path=target.path(database), replica=reader, **modes,
                        seconds=seconds, pace_us=pace_us, poll_us=options.poll_us) as worker:
                runs.append(worker.run())
            verify(stage, target, database, runs[-1]["rows_total"], number == 0)
            target.remove(database)
            note(f"{name} {number + 1}/{options.rounds} {kind}: {runs[-1]['ops']} commits, p50"
                 f" {runs[-1]['visible_p50_us']:.0f} us, p99 {runs[-1]['visible_p99_us']:.0f} us")

    def finding(part, kind, limit=None):
        return Finding(f"{name}.{part}" + (" (raw)" if kind == "raw" else ""), f"{what}: {part}", "ms",
                       [r[f"visible_{part}_us"] / 1000 for r in rounds[kind]], at_most=limit, details={"rounds": rounds[kind]})

    return ([finding(part, "replica", limits.get(part)) for part in ("p50", "p90", "p99", "max")]
            + [finding(part, "raw") for part in ("p50", "p99")])


def visibility_paced(stage, options, note):
    """From COMMIT returned on the primary until a reader on the replica sees it; a commit about every 5 ms, WAL NORMAL."""
    return visibility(stage, options, note, "visible_paced", "visible on the replica, a commit about every 5 ms, WAL NORMAL",
                      WAL, 5000, {"p50": 2, "p99": 5})


def visibility_paced_delete(stage, options, note):
    """The same, DELETE FULL."""
    return visibility(stage, options, note, "visible_delete", "the same, DELETE FULL", DELETE, 5000, {})


def visibility_back_to_back(stage, options, note):
    """The same, commits back to back, WAL NORMAL."""
    return visibility(stage, options, note, "visible_busy", "visible on the replica, commits back to back, WAL NORMAL", WAL, 0, {})


def bulk_end_to_end(stage, options, note):
    """From the first statement on the primary until the replica's X-pos is the primary's."""
    target = stage.target("replica")
    rates = []
    for number in range(options.rounds):
        database = f"end-to-end-{number}.db"
        size = options.load_mb * 1_000_000
        with Worker(stage, "load", path=target.path(database), **WAL, bytes=size, transaction=min(10_000_000, size // 4)) as worker:
            worker.ready()
            worker.go()
            result = worker.result()
            rates.append(result["bytes"] / (target.settle(database) - result["start_ns"]) * 1e3)
            worker.quit()
        verify(stage, target, database, result["rows_total"], False)
        target.remove(database)
        note(f"bulk_end_to_end {number + 1}/{options.rounds}: {rates[-1]:.0f} MB/s")
    return [Finding("bulk_end_to_end", f"load of {options.load_mb} MB until the replica has applied it", "MB/s", rates, at_least=100)]


def catch_up(stage, options, note):
    """From starting an empty replica's process until its X-pos of every database is the primary's. A primary of its own: what
    the other workloads made and removed is not what this is about."""
    primary = stage.start_node("catch-up-primary")
    target = Target("catch_up", primary.mount, primary, None)
    for name in ("wal", "delete"):
        fixture(stage, target, name, options)
    rates, peaks = [], []
    for number in range(options.rounds):
        sizes = database_bytes(target.primary)
        want = {name: target.captured(name) for name in sizes}
        begin = time.monotonic()
        replica = stage.start_node(f"catch-up-{number}", target.primary)
        for name, position in want.items():
            wait_position(replica, name, position, 300)
        rates.append(sum(sizes.values()) / (time.monotonic() - begin) / 1e6)
        peaks.append(memory_of(replica.process.pid)["VmHWM"])
        for name in ("wal.db", "delete.db"):
            stage.check(replica.path(name), stage.fixture_rows["catch_up", name], number == 0)
        stage.stop_node(replica)
        note(f"catch_up {number + 1}/{options.rounds}: {sum(sizes.values()) / 1e6:.0f} MB, {rates[-1]:.0f} MB/s")
    stage.stop_node(primary)
    what = f"an empty replica catches up, {options.database_mb} MB WAL and {options.database_mb} MB DELETE, with its start"
    return [Finding("catch_up", what, "MB/s", rates, at_least=300),
            Finding("catch_up.memory", "peak memory of the replica that caught up", "MB", peaks)]


def fresh_pair(stage, name):
    primary = stage.start_node(name + "-primary")
    replica = stage.start_node(name + "-replica", primary)
    return Target(name, primary.mount, primary, replica)


def memory_findings(target, name, what, limit):
    findings = []
    for node, role in ((target.primary, "primary"), (target.replica, "replica")):
        memory = memory_of(node.process.pid)
        findings.append(Finding(f"{name}.{role}", f"{what}: peak memory of the {role}", "MB", [memory["VmHWM"]],
                                at_most=limit, details=memory))
    return findings


def memory(stage, options, note):
    """Ten databases, each with a writer, on two nodes that did nothing else."""
    target = fresh_pair(stage, "memory")
    kinds = [(WAL, 1)] * 4 + [(WAL, 1000)] * 3 + [(WAL_FULL, 1)] + [(DELETE, 1)] * 2
    results = {}
    with ExitStack() as stack:
        workers = {}
        for number, (modes, rows) in enumerate(kinds):
            database = f"load-{number}.db"
            workers[database] = stack.enter_context(Worker(stage, "insert", path=target.path(database), **modes, rows=rows,
                                                           seconds=max(1, options.seconds * 6)))
        for worker in workers.values():
            worker.ready()
        for worker in workers.values():
            worker.go()
        for database, worker in workers.items():
            results[database] = worker.result()
        for database, worker in workers.items():
            target.settle(database)
            worker.quit()
    for database, result in results.items():
        verify(stage, target, database, result["rows_total"], True)
    findings = memory_findings(target, "memory", "10 databases under load", MEMORY_LIMIT_MB)
    note(f"memory: {[round(f.value, 1) for f in findings]} MB after {sum(r['rows'] for r in results.values())} rows")
    for node in (target.replica, target.primary):
        stage.stop_node(node)
    return findings


def big_transaction(stage, options, note):
    """One transaction on two nodes that did nothing else. It streams if memory stays far below its size."""
    target = fresh_pair(stage, "big")
    size = options.big_mb * 1_000_000
    with Worker(stage, "load", path=target.path("big.db"), **WAL, bytes=size, transaction=size, size=4000) as worker:
        worker.ready()
        worker.go()
        result = worker.result(1800)
        rate = result["bytes"] / (target.settle("big.db", 1800) - result["start_ns"]) * 1e3
        worker.quit(600)
    verify(stage, target, "big.db", result["rows_total"], False)
    limit = None if options.quick else max(MEMORY_LIMIT_MB, options.big_mb / 16)
    findings = memory_findings(target, "big_transaction", f"one transaction of {options.big_mb} MB", limit)
    findings.append(Finding("big_transaction.rate", "the same, until the replica has applied it", "MB/s", [rate]))
    note(f"big_transaction: {[round(f.value, 1) for f in findings]}")
    for node in (target.replica, target.primary):
        stage.stop_node(node)
    return findings


MEASURES = {
    "visible_paced": visibility_paced,
    "visible_delete": visibility_paced_delete,
    "visible_busy": visibility_back_to_back,
    "bulk_end_to_end": bulk_end_to_end,
    "catch_up": catch_up,
    "memory": memory,
    "big_transaction": big_transaction,
}
