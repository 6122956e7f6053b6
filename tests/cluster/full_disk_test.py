"""A full disk, on either node: nothing is lost, the others are told, and it goes on by itself when there is space again."""

import os
import sqlite3
import subprocess
import unittest

from cases import ClusterCase, connect, count, detach, fill, integrity, wait_same_position, wait_until

MEGABYTE = 1 << 20


class FullDisk(ClusterCase):
    def small_node(self, name, primary=None, megabytes=12):
        """A node whose data directory is a file system of so many megabytes."""
        data = os.path.join(self.root, name + "-data")
        os.makedirs(data)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "small", data], check=True, timeout=30)
        self.addCleanup(detach, data)
        return self.node(name, primary)

    def fill_up(self, node, leave=0):
        """Leaves `leave` bytes of its disk; returns the file that has to go for more."""
        path = os.path.join(node.data, "filler")
        space = os.statvfs(node.data)
        size = space.f_bavail * space.f_frsize - leave
        with open(path, "wb", buffering=0) as filler:
            try:
                while size > 0:
                    size -= filler.write(b"x" * min(size, 65536))
            except OSError:
                pass  # what others took meanwhile
        return path

    def waiting(self, node, name):
        return [d["waiting"] for d in node.status()["databases"] if d["name"] == name and "waiting" in d]

    def metric(self, node, line):
        return line in node.get("/metrics")[1].decode()

    def test_a_replica_falls_behind_says_so_and_catches_up(self):
        primary = self.node("primary")
        replica = self.small_node("replica", primary)
        replica.wait_ready()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        db.execute("PRAGMA journal_mode=wal")
        fill(db, 100)
        wait_same_position(primary, replica, "a.db")
        filler = self.fill_up(replica, leave=64 * 1024)
        for n in range(1, 6):
            fill(db, 3000, start=n * 10000)
        wait_until(lambda: self.waiting(replica, "a.db"), 30, "the replica says that its disk is full")
        self.assertTrue(self.metric(replica, 'sluice_db_waiting{db="a.db"} 1'))
        self.assertEqual(integrity(replica.path("a.db")), "ok")
        self.assertGreaterEqual(count(replica.path("a.db")), 100)
        self.assertLess(count(replica.path("a.db")), 15100)
        stdout, _ = self.sluice("status", "--url", replica.url)
        self.assertIn("a.db is WAITING for space", stdout)
        os.unlink(filler)
        wait_same_position(primary, replica, "a.db")
        self.assertEqual(count(replica.path("a.db")), 15100)
        wait_until(lambda: not self.waiting(replica, "a.db"), 10, "it no longer waits")
        self.assertEqual(replica.log_tail(100000).count("waits for space"), 1, "said once")

    def full_primary(self, mode):
        primary = self.small_node("primary")
        replica = self.node("replica", primary)
        replica.wait_ready()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        db.execute(f"PRAGMA journal_mode={mode}")
        fill(db, 100)
        wait_same_position(primary, replica, "a.db")
        filler = self.fill_up(primary, leave=300 * 1024)
        committed = 100
        with self.assertRaises(sqlite3.Error) as full:
            for n in range(1, 1000):
                fill(db, 500, start=n * 1000)
                committed += 500
        self.assertIn("full", str(full.exception))
        if db.in_transaction:
            db.execute("ROLLBACK")
        self.assertEqual(count(primary.path("a.db")), committed)
        os.unlink(filler)
        fill(db, 500, start=2000000)
        wait_same_position(primary, replica, "a.db")
        self.assertEqual(count(replica.path("a.db")), committed + 500)
        self.assertEqual(integrity(primary.path("a.db")), "ok")
        self.assertEqual(integrity(replica.path("a.db")), "ok")
        self.assertEqual([d for d in primary.status()["databases"] if "fault" in d or "waiting" in d], [])

    def test_an_application_on_a_full_primary_wal(self):
        self.full_primary("wal")

    def test_an_application_on_a_full_primary_delete(self):
        self.full_primary("delete")

    def test_an_application_on_a_full_primary_persist(self):
        self.full_primary("persist")


if __name__ == "__main__":
    unittest.main()
