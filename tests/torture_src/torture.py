"""The torture test: many processes, both nodes, everything killed at random, an oracle that knows what was acknowledged.

See docs/TESTING.md. Decisions come from the seed; what the processes make of them depends on their timing.
"""

import argparse
import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "harness"))
from clients import Client, hash_seed  # noqa: E402
from events import DECK, Events  # noqa: E402
from layout import make_clients, make_databases  # noqa: E402
from nodes import GuardedNode, Node, TestFailure, end_on_signals, use_io_path, wait_until  # noqa: E402
from oracle import Oracle  # noqa: E402
from proxy import Proxy  # noqa: E402

HOLDER = """
import signal, sqlite3, sys
connections = [sqlite3.connect(path, timeout=60) for path in sys.argv[1:]]
for connection in connections:
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
print("connected", flush=True)
signal.pause()
"""
STUCK_SECONDS = 90  # a writer that is not paused commits something in this time
CHECK_EVERY_SECONDS = 15


class Torture:
    def __init__(self, options, directory):
        self.options = options
        self.directory = directory
        self.random = random.Random(options.seed)
        self.nodes = []
        self.primary = self.replica = self.proxy = None
        self.outages = {0: [], 1: []}  # [start_ns, end_ns or None] by node: see docs/TESTING.md
        self.event_counts = {}
        self.databases = make_databases(self.random)
        self.oracle = Oracle(options.worker, directory)
        self.clients = []
        self.holder = None
        self.started = time.monotonic()
        for name in ("ledgers", "trails", "scratch", "primary"):
            os.makedirs(os.path.join(directory, name), exist_ok=True)

    def say(self, text):
        print(f"[{time.monotonic() - self.started:7.2f}] {text}", flush=True)

    # ---- nodes and clients ----

    def path(self, database, node=0):
        root = os.path.join(self.directory, "primary") if node == 0 or self.replica is None else self.replica.mount
        return os.path.join(root, database.path)

    def start_nodes(self):
        if self.options.raw:
            return
        binary = self.options.binary
        # In every other run the log is so short that a replica falls off it whenever it is away: what differs is sent.
        short = ["--log-segment", "256KiB", "--retention-bytes", "256KiB", "--retention-interval", "500ms"]
        extra = short if self.options.seed % 2 == 0 else []
        extra = extra + ["--scrub-interval", "5s", "--scrub-rate", "0"]
        kind = GuardedNode if self.options.guardian else Node
        self.primary = kind(binary, self.directory, "primary", None, extra)
        self.nodes.append(self.primary)
        self.proxy = Proxy(self.primary.port, self.options.seed)
        self.replica = kind(binary, self.directory, "replica", f"http://127.0.0.1:{self.proxy.port}",
                            extra)
        self.nodes.append(self.replica)
        self.primary.start()
        self.replica.start()

    def create_databases(self):
        for database in self.databases:
            os.makedirs(os.path.dirname(self.path(database)), exist_ok=True)
            if database.profile != "churn":
                self.create_database(database)
        if self.replica is not None:
            self.replica.wait_ready()
            self.oracle.check(self.databases, self.primary, self.replica, self.path)

    def create_database(self, database):
        client = Client(self.options.worker, "init-" + database.id, "init", 0, [], self.directory, 0)
        client.targets = ["--page-size", str(database.page_size), database.target(self.path(database))]
        client.start()
        if client.process.wait(60) != 0:
            raise TestFailure(f"cannot create {database.path}: see workers.log")

    def recreate_fragile_databases(self):
        """Nobody is connected, and everybody may have been killed."""
        for database in self.databases:
            if not database.fragile:
                continue
            for suffix in ("-journal", "-wal", "-shm", ""):
                if os.path.exists(self.path(database) + suffix):
                    os.unlink(self.path(database) + suffix)
            ledger = os.path.join(self.directory, "ledgers", database.id)
            if os.path.exists(ledger):
                os.unlink(ledger)
            self.create_database(database)

    def hold_fragile(self):
        """Somebody is connected for as long as clients come and go: then nobody's first access is a recovery."""
        paths = [self.path(database) for database in self.databases if database.fragile]
        self.holder = subprocess.Popen([sys.executable, "-c", HOLDER, *paths], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        if self.holder.stdout.readline() != b"connected\n":
            raise TestFailure("cannot connect to the fragile databases")

    def let_fragile_go(self):
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()
            self.holder.stdout.close()
            self.holder = None

    def quit_clients_of_primary(self):
        """In an orderly way: the fragile databases have nothing in their WAL when the last connection closes."""
        writing = [client for client in self.on_node(0) if client.role != "reader" and not client.killed]
        for client in writing:
            if not client.paused.is_set():
                client.pause()
        for client in writing:
            client.wait_paused()
        self.empty_fragile_wals()
        for client in self.on_node(0):
            client.quit()
        self.let_fragile_go()

    def empty_fragile_wals(self):
        """While somebody is connected: what the WAL of such a database holds must not need a recovery."""
        for database in self.databases:
            if database.fragile:
                with contextlib.closing(sqlite3.connect(self.path(database), timeout=60)) as db:
                    wait_until(lambda: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, 60,
                               f"the WAL of {database.path} is empty")

    def on_node(self, node):
        return [client for client in self.clients if client.node == node]

    def outage_begins(self, node):
        self.outages[node].append([time.monotonic_ns(), None])

    def outage_ends(self, node):
        self.outages[node][-1][1] = time.monotonic_ns()

    # ---- supervision ----

    def supervise(self):
        """Looks at everything that may have gone wrong since the last time."""
        for client in self.clients:
            for kind, when, text in client.take_reports():
                if not any(a <= when and (b is None or when <= b) for a, b in self.outages[client.node]):
                    raise TestFailure(f"{client.name} (pid {client.process.pid}) at {when / 1e9:.6f}: {kind}: {text}")
            if not client.killed and client.process.poll() is not None and not self.in_outage(client.node):
                raise TestFailure(f"{client.name} ended by itself with {client.process.returncode}: see workers.log")
            writes = client.role in ("writer", "churner") and not client.killed and not client.paused.is_set()
            if writes and time.monotonic() - client.moved_at > STUCK_SECONDS:
                raise TestFailure(f"{client.name} (pid {client.process.pid}) has committed nothing for {STUCK_SECONDS} s")
        for node in self.nodes:
            if node.process is not None and not node.alive() and not self.down(node):
                raise TestFailure(f"the {node.name} ended by itself with {node.process.returncode}\n{node.log_tail()}")

    def down(self, node):
        return self.in_outage(0 if node is self.primary else 1)

    def in_outage(self, number):
        return bool(self.outages[number]) and self.outages[number][-1][1] is None

    def run_for(self, seconds):
        end = time.monotonic() + seconds
        while True:
            self.supervise()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.05))

    def check(self, last=False):
        """Pauses the writers and lets the oracle judge; readers go on. `last`: the writers stay paused."""
        writing = [client for client in self.on_node(0) if client.role != "reader" and not client.killed]
        for client in writing:
            client.pause()
        for client in writing:
            client.wait_paused()
        self.supervise()
        began = time.monotonic()
        self.oracle.check(self.databases, self.primary, self.replica, self.path)
        self.supervise()
        for client in writing if not last else []:
            client.resume()
        self.say(f"check {self.oracle.checks} passed in {time.monotonic() - began:.2f} s; {self.totals()}")

    def totals(self):
        def total(*roles):
            return sum(client.total_done + client.done for client in self.clients if client.role in roles)
        busy = sum(client.total_busy + client.busy for client in self.clients)
        refused = sum(client.total_odd + client.odd for client in self.clients)
        return (f"{total('writer', 'churner')} transactions, {total('reader')} reads,"
                f" {total('checkpointer')} checkpoints ({refused} refused), {busy} busy")

    # ---- the run ----

    def run(self):
        self.start_nodes()
        self.create_databases()
        if self.options.sabotage:
            from sabotage import sabotage_and_expect  # the oracle's own test
            sabotage_and_expect(self)
            return
        self.hold_fragile()
        self.clients = make_clients(self)
        for client in self.clients:
            client.start()
        events = Events(self)
        deck = []
        end = time.monotonic() + self.options.seconds
        next_check = time.monotonic() + CHECK_EVERY_SECONDS / 3
        while time.monotonic() < end:
            self.run_for(self.random.uniform(0.1, 1.5))
            if time.monotonic() >= next_check:
                self.check()
                next_check = time.monotonic() + CHECK_EVERY_SECONDS
            if not deck:
                deck = [name for name, count in DECK if events.possible(name) for _ in range(count)]
                self.random.shuffle(deck)
            name = deck.pop()
            self.event_counts[name] = self.event_counts.get(name, 0) + 1
            events.play(name)
        self.finish()

    def finish(self):
        self.run_for(0.5)
        self.check(last=True)
        self.quit_clients_of_primary()
        for client in self.clients:
            client.quit()
        self.supervise()
        # Once more with nobody connected, and with the daemons gone.
        self.oracle.check(self.databases, self.primary, self.replica, self.path)
        if self.replica is None:
            return
        self.replica.stop()
        self.primary.stop()
        self.oracle.compare_stopped(self.databases, self.primary, self.replica, os.path.join(self.directory, "scratch"))

    def summary(self):
        self.say(f"seed {self.options.seed}: {self.totals()}; {self.oracle.checks} checks,"
                 f" {self.oracle.databases_compared} comparisons of databases")
        self.say("events: " + (", ".join(f"{name} {count}" for name, count in sorted(self.event_counts.items())) or "none"))
        for node in self.nodes:
            self.say(f"{node.name}: peak memory {node.peak_rss_kb / 1024:.0f} MB")

    def close(self):
        """Ends every process that was started and unmounts; tries everything, then raises what failed first."""
        first = None
        steps = [client.kill for client in self.clients] + [self.let_fragile_go]
        steps += [self.proxy.close] if self.proxy is not None else []
        steps += [node.close for node in self.nodes]
        for step in steps:
            try:
                step()
            except (TestFailure, OSError) as error:
                first = first or error
        if first is not None:
            raise first


def parse_arguments():
    here = os.path.dirname(os.path.abspath(__file__))
    top = os.path.dirname(os.path.dirname(here))
    parser = argparse.ArgumentParser(prog="tests/torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock; always printed")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--binary", default=os.path.join(top, "build/release/sluice"))
    parser.add_argument("--worker", default=None, help="default: torture_worker in the binary's build directory")
    parser.add_argument("--io", choices=("native", "plain", "auto"), default="", help="the I/O path of both nodes")
    parser.add_argument("--raw", action="store_true", help="a plain directory, no daemons: tests the test")
    parser.add_argument("--guardian", action="store_true", help="nodes with a guardian; their workers are killed, too")
    parser.add_argument("--sabotage", metavar="HOW", help="tests the oracle: damages a database and expects its verdict")
    parser.add_argument("--keep", action="store_true", help="keep the directory even after success")
    options = parser.parse_args()
    if options.io:
        use_io_path(options.io)
    if options.seed is None:
        options.seed = hash_seed(time.time_ns()) % 1_000_000_000
    if options.worker is None:
        build = os.path.dirname(os.path.abspath(options.binary))
        options.worker = os.path.join(build, "tests/torture_src/torture_worker")
    for program in [options.worker] + ([] if options.raw else [options.binary]):
        if not os.access(program, os.X_OK):
            parser.error(f"{program} is not built")
    return options


def main():
    options = parse_arguments()
    end_on_signals()
    directory = tempfile.mkdtemp(prefix="sluice-torture-")
    torture = Torture(options, directory)
    torture.say(f"seed {options.seed}, {options.seconds:.0f} s, in {directory}")
    failure = None
    try:
        torture.run()
    except (TestFailure, OSError, KeyboardInterrupt) as error:
        failure = error
    torture.summary()
    if failure is not None:
        torture.say(f"FAILED: {type(failure).__name__}: {failure}")
        for node in torture.nodes:
            node.diagnose()
    try:
        torture.close()
    except (TestFailure, OSError) as error:
        torture.say(f"FAILED while cleaning up: {error}")
        failure = failure or error
    if failure is not None:
        torture.say(f"seed {options.seed}; databases, logs and trails are in {directory}"
                    f" (\"torture_worker trail FILE\" prints a trail)")
        return 1
    torture.say("passed")
    if options.keep:
        torture.say(f"kept {directory}")
    else:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
