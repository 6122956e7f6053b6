"""Two nodes replicate what ordinary SQLite clients do."""

import os
import sqlite3
import unittest

from cases import ClusterCase, connect, count, fill, integrity, wait_same_position, wait_until


class TwoNodes(ClusterCase):
    def test_every_journal_mode_and_page_size(self):
        primary, replica = self.pair()
        for mode in ("wal", "delete", "truncate", "persist"):
            for page_size in (512, 4096, 65536):
                name = f"{mode}-{page_size}.db"
                db = connect(primary.path(name))
                self.addCleanup(db.close)
                db.execute(f"PRAGMA page_size={page_size}")
                self.assertEqual(db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0], mode)
                fill(db, 200)
                db.execute("DELETE FROM t WHERE id % 3 = 0")
                wait_same_position(primary, replica, name)
                self.assertEqual(count(replica.path(name)), count(primary.path(name)))
                self.assertEqual(integrity(replica.path(name)), "ok")

    def test_subdirectories_and_files_that_are_not_databases(self):
        primary, replica = self.pair()
        os.makedirs(primary.path("tenants/eu"))
        db = connect(primary.path("tenants/eu/42.db"))
        self.addCleanup(db.close)
        fill(db, 10)
        with open(primary.path("notes.txt"), "w", encoding="utf-8") as notes:
            notes.write("kept locally")
        wait_same_position(primary, replica, "tenants/eu/42.db")
        self.assertEqual(count(replica.path("tenants/eu/42.db")), 10)
        self.assertFalse(os.path.exists(replica.path("notes.txt")))
        with open(replica.path("own.txt"), "w", encoding="utf-8") as own:
            own.write("replicas may have files too")

    def test_virtual_files(self):
        primary, replica = self.pair()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        fill(db, 10)
        position = wait_same_position(primary, replica, "a.db")
        self.assertRegex(position, r"^[0-9a-f]{16}/[0-9a-f]{16}$")
        self.assertFalse(os.path.exists(primary.path(".primary")))
        with open(replica.path(".primary"), encoding="ascii") as file:
            self.assertEqual(file.read().strip(), primary.status()["hostname"])
        with open(primary.path(".lag"), encoding="ascii") as file:
            self.assertEqual(file.read(), "+000000000\n")
        with open(replica.path(".lag"), encoding="ascii") as file:
            self.assertRegex(file.read(), r"^\+\d{9}\n$")

    def test_deletion_and_recreation(self):
        primary, replica = self.pair()
        db = connect(primary.path("a.db"))
        fill(db, 10)
        db.close()
        wait_same_position(primary, replica, "a.db")
        os.unlink(primary.path("a.db"))
        wait_until(lambda: not os.path.exists(replica.path("a.db")), 30, "deleted on the replica")
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        fill(db, 7)
        wait_same_position(primary, replica, "a.db")
        self.assertEqual(count(replica.path("a.db")), 7)

    def test_cp_in_and_out(self):
        primary, replica = self.pair()
        source = self.database_file("source.db", rows=500)
        with open(source, "rb") as a, open(primary.path("copied.db"), "wb") as b:
            b.write(a.read())
        wait_until(lambda: primary.position("copied.db"), 30, "the copied file is a database")
        wait_same_position(primary, replica, "copied.db")
        self.assertEqual(count(replica.path("copied.db")), 500)
        out = os.path.join(self.root, "out.db")
        with open(replica.path("copied.db"), "rb") as a, open(out, "wb") as b:
            b.write(a.read())
        self.assertEqual(integrity(out), "ok")

    def test_database_beyond_the_lock_page(self):
        primary, replica = self.pair()
        pages = (1 << 30) // 65536 + 20
        with open(self.database_file("small.db", rows=5, page_size=65536), "rb") as file:
            content = bytearray(file.read())
        content[28:32] = pages.to_bytes(4, "big")  # the rest is never used, and on no freelist
        with open(primary.path("big.db"), "wb") as file:
            file.write(content)
            file.truncate(pages * 65536)
        wait_until(lambda: primary.position("big.db"), 60, "the file is captured")
        wait_same_position(primary, replica, "big.db", 60)
        for number, mode in enumerate(("delete", "wal")):
            db = connect(primary.path("big.db"))
            db.execute(f"PRAGMA journal_mode={mode}")
            fill(db, 5000, start=5000 * (number + 1))
            db.close()
            wait_same_position(primary, replica, "big.db")
        self.assertEqual(count(replica.path("big.db")), 10005)
        for node in (primary, replica):
            self.sluice("verify", "--url", node.url, "big.db")

    def test_status_of_both(self):
        primary, replica = self.pair()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        fill(db, 10)
        wait_same_position(primary, replica, "a.db")
        status = primary.status()
        self.assertEqual(status["role"], "primary")
        self.assertEqual(status["databases"][0]["journal_mode"], "rollback")
        shown = wait_until(lambda: [d for r in primary.status()["replicas"] for d in r["databases"]
                                    if d["lag_txids"] == 0], 10, "the primary knows what the replica applied")
        self.assertEqual(shown[0]["name"], "a.db")
        status = replica.status()
        self.assertEqual(status["role"], "replica")
        self.assertTrue(status["primary"]["connected"])
        self.assertTrue(status["primary"]["synced"])
        self.assertEqual(status["databases"][0]["applied_txid"], status["databases"][0]["txid"])
        for node in (primary, replica):
            code, body = node.get("/metrics")
            self.assertEqual(code, 200)
            self.assertIn(b'sluice_db_txid{db="a.db"}', body)
            self.assertEqual(node.get("/v1/health")[0], 200)
            self.assertEqual(node.get("/v1/ready")[0], 200)


class ReplicaWrites(ClusterCase):
    def make(self, mode, extra=()):
        primary, replica = self.pair(extra)
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        db.execute(f"PRAGMA journal_mode={mode}")
        fill(db, 10)
        wait_same_position(primary, replica, "a.db")
        return primary, replica, db

    def test_reject_wal(self):
        self.reject("wal")

    def test_reject_rollback(self):
        self.reject("delete")

    def test_wait_wal(self):
        self.wait("wal")

    def test_wait_rollback(self):
        self.wait("delete")

    def reject(self, mode):
        primary, replica, db = self.make(mode)
        reader = connect(replica.path("a.db"))
        self.addCleanup(reader.close)
        with self.assertRaisesRegex(sqlite3.OperationalError, "attempt to write a readonly database"):
            reader.execute("INSERT INTO t VALUES(1000, 'no')")
        self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone()[0], 10)
        db.execute("INSERT INTO t VALUES(1000, 'yes')")
        wait_same_position(primary, replica, "a.db")
        self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone()[0], 11)
        for forbidden in (lambda: os.unlink(replica.path("a.db")),
                          lambda: os.rename(replica.path("a.db"), replica.path("b.db")),
                          lambda: os.truncate(replica.path("a.db"), 0)):
            with self.assertRaises(OSError):
                forbidden()

    def wait(self, mode):
        primary, replica, db = self.make(mode, ("--replica-writes", "wait"))
        writer = connect(replica.path("a.db"), timeout=0.1)
        self.addCleanup(writer.close)
        with self.assertRaisesRegex(sqlite3.OperationalError, "database is locked"):
            writer.execute("INSERT INTO t VALUES(1000, 'later')")
        db.execute("INSERT INTO t VALUES(1000, 'now')")
        wait_same_position(primary, replica, "a.db")
        self.assertEqual(writer.execute("SELECT count(*) FROM t").fetchone()[0], 11)


class Restarts(ClusterCase):
    def test_replica_catches_up_after_its_restart(self):
        primary, replica = self.pair()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        db.execute("PRAGMA journal_mode=wal")
        fill(db, 100)
        wait_same_position(primary, replica, "a.db")
        replica.stop()
        fill(db, 100, start=100)
        replica.start()
        replica.wait_ready()
        wait_same_position(primary, replica, "a.db")
        replica.kill()
        fill(db, 100, start=200)
        replica.start()
        replica.wait_ready()
        wait_same_position(primary, replica, "a.db")
        self.assertEqual(count(replica.path("a.db")), 300)
        self.assertIn(b'"ok":true', replica.verify("a.db"))

    def test_primary_keeps_position_and_replica_reconnects(self):
        primary, replica = self.pair()
        for mode in ("wal", "delete"):
            db = connect(primary.path(mode + ".db"))
            db.execute(f"PRAGMA journal_mode={mode}")
            fill(db, 50)
            db.close()
        before = {mode: wait_same_position(primary, replica, mode + ".db") for mode in ("wal", "delete")}
        primary.stop()
        # With the daemon stopped the backing tree is plain SQLite.
        self.assertEqual(integrity(os.path.join(primary.data, "fs", "wal.db")), "ok")
        self.assertEqual(replica.get("/v1/ready")[0], 503)
        primary.start()
        for mode, position in before.items():
            self.assertEqual(primary.position(mode + ".db"), position)
            db = connect(primary.path(mode + ".db"))
            fill(db, 50, start=50)
            db.close()
            wait_same_position(primary, replica, mode + ".db")
            self.assertEqual(count(replica.path(mode + ".db")), 100)

    def test_late_replica_gets_everything(self):
        primary = self.node("primary")
        for n in range(5):
            db = connect(primary.path(f"{n}.db"))
            fill(db, 100)
            db.close()
        replica = self.node("replica", primary)
        replica.wait_ready()
        for n in range(5):
            wait_same_position(primary, replica, f"{n}.db")
            self.assertEqual(count(replica.path(f"{n}.db")), 100)

    def test_replica_directory_becomes_a_primary(self):
        primary, replica = self.pair()
        for mode in ("wal", "delete"):
            db = connect(primary.path(mode + ".db"))
            db.execute(f"PRAGMA journal_mode={mode}")
            fill(db, 50)
            db.close()
        positions = {mode: wait_same_position(primary, replica, mode + ".db") for mode in ("wal", "delete")}
        primary.stop()
        replica.stop()
        replica.primary_url = None
        replica.start()
        for mode, position in positions.items():
            self.assertEqual(replica.position(mode + ".db"), position)
            db = connect(replica.path(mode + ".db"))
            self.assertEqual(db.execute("PRAGMA journal_mode").fetchone()[0], mode)
            fill(db, 50, start=50)
            db.close()
        # And the old primary becomes its replica: what it had is set aside, then it follows.
        primary.primary_url = replica.url
        primary.start()
        primary.wait_ready()
        for mode in positions:
            wait_same_position(replica, primary, mode + ".db")
            self.assertEqual(count(primary.path(mode + ".db")), 100)
        self.assertTrue(os.listdir(os.path.join(primary.data, "lost+found")))


if __name__ == "__main__":
    unittest.main()
