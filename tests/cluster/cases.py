"""What the cluster tests share: a directory of their own, nodes that are cleaned up, the command line."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "harness"))

from nodes import Node, detach, end_on_signals, wait_same_position, wait_until  # noqa: E402  (the path comes first)

BINARY = os.environ.get("SLUICE_BINARY", "")

end_on_signals()  # a time-out leaves no mount behind


class ClusterCase(unittest.TestCase):
    """One temporary directory and its nodes a test; all is stopped, unmounted and removed at the end."""

    def setUp(self):
        self.assertTrue(os.path.exists(BINARY), "SLUICE_BINARY must name the sluice executable")
        self.assertTrue(os.path.exists("/dev/fuse"), "these tests need /dev/fuse")
        self.root = tempfile.mkdtemp(prefix="sluice-cluster-")
        self.addCleanup(shutil.rmtree, self.root)

    def node(self, name, primary=None, extra=(), start=True):
        node = Node(BINARY, self.root, name, primary.url if primary else None, extra)
        self.addCleanup(node.close)
        if start:
            node.start()
        return node

    def pair(self, replica_extra=()):
        primary = self.node("primary")
        replica = self.node("replica", primary, replica_extra)
        replica.wait_ready()
        return primary, replica

    def file(self, name, content=""):
        path = os.path.join(self.root, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        return path

    def database_file(self, name, rows=100, page_size=4096, journal_mode="delete"):
        """An ordinary database outside the mounts."""
        path = os.path.join(self.root, name)
        with connect(path) as db:
            db.execute(f"PRAGMA page_size={page_size}")
            db.execute(f"PRAGMA journal_mode={journal_mode}")
            fill(db, rows)
        db.close()
        return path

    def sluice(self, *arguments, code=0, environment=None, seconds=60):
        """Runs the command line; checks its exit code; (stdout, stderr)."""
        done = subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=seconds, check=False,
                              env={**os.environ, **(environment or {})})
        self.assertEqual(done.returncode, code, f"{arguments}\n{done.stdout}\n{done.stderr}")
        return done.stdout, done.stderr


def connect(path, **options):
    return sqlite3.connect(path, isolation_level=None, timeout=options.pop("timeout", 10), **options)


def fill(db, rows, start=0):
    db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, text TEXT)")
    db.execute("BEGIN")
    db.executemany("INSERT INTO t VALUES(?, ?)", ((n, f"row {n} " * 10) for n in range(start, start + rows)))
    db.execute("COMMIT")


def count(path):
    db = connect(path)
    try:
        return db.execute("SELECT count(*) FROM t").fetchone()[0]
    finally:
        db.close()


def integrity(path):
    db = connect(path)
    try:
        return db.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        db.close()


__all__ = ["BINARY", "ClusterCase", "Node", "connect", "count", "detach", "fill", "integrity", "wait_same_position", "wait_until"]
