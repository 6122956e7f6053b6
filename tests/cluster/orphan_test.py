"""Processes that outlive a node that was killed (I9): many kinds at once, nodes that die in the middle of fencing them off, and
data directories on a file system where that is impossible."""

import json
import os
import random
import signal
import subprocess
import sys
import time

from cases import BINARY, ClusterCase, Node, connect, count, fill, integrity, wait_same_position, wait_until
from nodes import DIE_WITH_PARENT, GuardedNode

# Commits as fast as it can and says what was acknowledged: one line a transaction, flushed before the next begins. On an error it
# goes on trying with the same connection.
WRITER = r"""
import sqlite3, sys, time
path, first, mode, synchronous = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
db = sqlite3.connect(path, isolation_level=None, timeout=5)
db.execute('PRAGMA synchronous=' + synchronous)
db.execute('CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, text TEXT)')
if mode == 'transaction':
    db.execute('BEGIN IMMEDIATE')
    db.execute("INSERT INTO t VALUES(?, 'open')", (first,))
elif mode == 'reader':
    db.execute('BEGIN')
    db.execute('SELECT count(*) FROM t').fetchone()
print('ready', flush=True)
if mode != 'writer':
    sys.stdin.readline()
    try:
        db.execute('COMMIT')
        print('committed', flush=True)
    except sqlite3.Error as error:
        print('error', error, flush=True)
    sys.exit(0)
n = first
while True:
    try:
        db.execute('INSERT INTO t VALUES(?, ?)', (n, 'x' * 300))
        print(n, flush=True)
        n += 1
    except sqlite3.Error as error:
        print('error', str(error).replace('\n', ' '), flush=True)
        time.sleep(0.01)
        n += 1
"""


class Orphan:
    def __init__(self, case, path, first, mode="writer", synchronous="NORMAL"):
        self.log = os.path.join(case.root, f"orphan-{first}-{time.monotonic_ns()}")
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(DIE_WITH_PARENT + [sys.executable, "-c", WRITER, path, str(first), mode, synchronous],
                                            stdin=subprocess.PIPE, stdout=out, stderr=out)
        case.addCleanup(self.end)
        wait_until(lambda: self.lines(), 30, "the process is connected")

    def lines(self):
        with open(self.log, encoding="utf-8") as log:
            return [line for line in log.read().split("\n")[:-1] if line]

    def acknowledged(self):
        return {int(line) for line in self.lines() if line.isdigit()}

    def errors(self):
        return [line for line in self.lines() if line.startswith("error")]

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self.process.stdin.close()


def wal_database(node, name):
    db = connect(node.path(name))
    db.execute("PRAGMA journal_mode=WAL")
    fill(db, 1)
    db.close()


def ids(path):
    db = connect(path)
    try:
        return {row[0] for row in db.execute("SELECT id FROM t")}
    finally:
        db.close()


class Orphans(ClusterCase):
    def test_every_kind_at_once(self):
        primary, replica = self.pair()
        names = ("normal.db", "full.db", "open.db", "idle.db", "read.db", "quiet.db")
        for name in names:
            wal_database(primary, name)
        normal = Orphan(self, primary.path("normal.db"), 1000)
        full = Orphan(self, primary.path("full.db"), 1000, synchronous="FULL")
        opened = Orphan(self, primary.path("open.db"), 1000, "transaction")
        reader = Orphan(self, primary.path("read.db"), 1000, "reader")
        wait_until(lambda: len(normal.acknowledged()) > 50 and full.acknowledged(), 30, "they commit")
        primary.kill()
        wait_until(lambda: full.errors(), 30, "synchronous=FULL notices")
        before = len(normal.acknowledged())
        wait_until(lambda: len(normal.acknowledged()) > before + 50, 30, "synchronous=NORMAL goes on")
        primary.start()
        wait_until(lambda: normal.errors(), 30, "the orphan is cut off")
        committed = {"normal.db": normal.acknowledged(), "full.db": full.acknowledged()}
        status = {d["name"]: d for d in primary.status()["databases"]}
        self.assertEqual([o["pid"] for o in status["normal.db"]["orphans"]], [normal.process.pid])
        self.assertIn(f"{normal.process.pid} (python3", self.sluice("status", "--url", primary.url)[0])
        self.assertNotIn("orphans", status["quiet.db"])
        for process in (opened, reader):
            process.process.stdin.write(b"\n")
            process.process.stdin.flush()
            process.process.wait(30)
        self.assertTrue(opened.errors(), "an open transaction was committed after the start")
        for name in names:
            db = connect(primary.path(name))
            fill(db, 10, 500)
            db.close()
            there = ids(primary.path(name))
            self.assertTrue(committed.get(name, set()) <= there, f"{name}: acknowledged commits are missing")
            self.assertNotIn(1000, there if name == "open.db" else ())
            wait_same_position(primary, replica, name)
            self.assertEqual(ids(replica.path(name)), there)
            self.assertEqual(integrity(replica.path(name)), "ok")
        acknowledged = normal.acknowledged()
        time.sleep(0.3)
        self.assertEqual(normal.acknowledged(), acknowledged, "an orphan still commits")
        for process in (normal, full):
            process.end()
        primary.stop()
        primary.start()
        self.assertEqual(os.listdir(os.path.join(primary.data, "fenced")), [])
        self.assertNotIn("orphans", json.dumps(primary.status()))

    def test_the_next_node_dies_while_it_fences(self):
        """SIGKILL at random times from the first moment of a start on, over and over, with writers that never stop."""
        rng = random.Random(int(os.environ.get("SLUICE_FENCE_SEED", "1")))
        primary, replica = self.pair()
        for name in ("a.db", "b.db"):
            wal_database(primary, name)
        writers = []
        for round_number in range(int(os.environ.get("SLUICE_FENCE_ROUNDS", "2"))):
            for name in ("a.db", "b.db"):
                writers.append((name, Orphan(self, primary.path(name), (round_number + 1) * 1_000_000)))
            primary.kill()
            for _ in range(3):
                process = self.start_without_waiting(primary)
                time.sleep(rng.choice((0.02, 0.1, 0.3, 0.35, 0.4, 0.45)) * rng.uniform(0.8, 1.5))
                process.kill()
                process.wait(30)
            primary.start()
            for name, writer in writers[-2:]:
                wait_until(lambda: writer.errors(), 30, "the orphan is cut off")
        for name in ("a.db", "b.db"):
            acknowledged = set().union(*(w.acknowledged() for n, w in writers if n == name))
            there = ids(primary.path(name))
            self.assertEqual(acknowledged - there, set(), f"{name}: acknowledged commits are missing")
            self.assertEqual(integrity(primary.path(name)), "ok")
            wait_same_position(primary, replica, name)
            self.assertEqual(ids(replica.path(name)), there)
            primary.verify(name)
        for _, writer in writers:
            writer.end()
        primary.stop()
        primary.start()
        self.assertEqual(os.listdir(os.path.join(primary.data, "fenced")), [])

    @staticmethod
    def start_without_waiting(node):
        command = [node.binary, "mount", "--data", node.data, "--listen", f"127.0.0.1:{node.port}", node.mount]
        with open(node.log_path, "ab") as log:
            return subprocess.Popen(DIE_WITH_PARENT + command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def test_readers_of_a_replica(self):
        primary, replica = self.pair()
        wal_database(primary, "a.db")
        wait_same_position(primary, replica, "a.db")
        idle = connect(replica.path("a.db"))
        self.addCleanup(idle.close)
        idle.execute("SELECT count(*) FROM t").fetchone()
        replica.kill()
        db = connect(primary.path("a.db"))
        fill(db, 20, 100)
        db.close()
        replica.start()
        with self.assertRaises(Exception):
            idle.execute("SELECT count(*) FROM t").fetchone()
        wait_same_position(primary, replica, "a.db")
        self.assertEqual(count(replica.path("a.db")), 21)

    def disk_without_fences(self):
        disk = os.path.join(self.root, "disk")
        os.mkdir(disk)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True, timeout=30)
        self.addCleanup(subprocess.run, ["umount", "-l", disk], check=True, timeout=30)
        return disk

    def test_the_next_worker_refuses_what_this_one_refused(self):
        """A worker that takes the mount over cannot tell orphans from clients: it does what the one before it found out."""
        disk = self.disk_without_fences()
        node = GuardedNode(BINARY, disk, "primary")
        self.addCleanup(node.close)
        node.start()
        for name in ("a.db", "b.db"):
            wal_database(node, name)
        orphan = Orphan(self, node.path("a.db"), 1000)
        worker = node.worker()
        node.kill()  # the guardian
        wait_until(lambda: not os.path.exists(f"/proc/{worker}"), 30, "the worker ends with its guardian")
        wait_until(lambda: len(orphan.acknowledged()) > 10, 30, "the orphan commits")
        node.start()
        for round_number in range(2):
            status = {d["name"]: d for d in node.status()["databases"]}
            self.assertIn(f"process {orphan.process.pid} (python3", status["a.db"]["fault"])
            with self.assertRaises(OSError):
                open(node.path("a.db"), "rb").close()
            db = connect(node.path("b.db"))
            fill(db, 10, 100 * (round_number + 1))
            db.close()
            node.wait_worker(after=node.kill_worker())
        orphan.end()
        node.stop()
        node.start()
        self.assertTrue(orphan.acknowledged() <= ids(node.path("a.db")), "acknowledged commits are missing")

    def test_where_nothing_can_be_fenced_only_that_database_is_refused(self):
        disk = self.disk_without_fences()
        node = Node(BINARY, disk, "primary")
        self.addCleanup(node.close)
        node.start()
        for name in ("a.db", "b.db"):
            wal_database(node, name)
        orphan = Orphan(self, node.path("a.db"), 1000)
        node.kill()
        node.start()
        status = {d["name"]: d for d in node.status()["databases"]}
        self.assertIn(f"process {orphan.process.pid} (python3", status["a.db"]["fault"])
        self.assertIn("cannot be fenced off", status["a.db"]["fault"])
        self.assertNotIn("fault", status["b.db"])
        self.assertIn('sluice_db_stopped{db="a.db"} 1', node.get("/metrics")[1].decode())
        with self.assertRaises(OSError):
            open(node.path("a.db"), "rb").close()
        db = connect(node.path("b.db"))
        fill(db, 10, 100)
        db.close()
        orphan.process.send_signal(signal.SIGKILL)
        orphan.process.wait(30)
        node.stop()
        node.start()
        self.assertTrue(orphan.acknowledged() <= ids(node.path("a.db")), "acknowledged commits are missing")


if __name__ == "__main__":
    import unittest
    unittest.main()
