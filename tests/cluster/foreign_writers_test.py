"""Writers that have no commit event: journal_mode MEMORY and OFF, and programs that are not SQLite (cp, dd, truncate, mv, rm).
What the primary's SQLite reads in the end is what the replica has."""

import os
import shutil
import sqlite3
import subprocess
import time

from cases import ClusterCase, connect, count, fill, integrity, wait_same_position, wait_until


def rows(path):
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        return db.execute("SELECT * FROM t ORDER BY 1").fetchall()
    finally:
        db.close()


def run(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=60)


class ForeignCase(ClusterCase):
    def setUp(self):
        super().setUp()
        self.primary, self.replica = self.pair()

    def database(self, name, n=100, mode="delete"):
        """A database on the primary, also on the replica; nobody connected."""
        db = connect(self.primary.path(name))
        db.execute(f"PRAGMA journal_mode={mode}")
        fill(db, n)
        db.close()
        wait_same_position(self.primary, self.replica, name)

    def equal(self, name="a.db", n=None):
        """The replica comes to what the primary's file is, without anybody asking the primary for a position."""
        def same():
            try:
                return rows(self.replica.path(name)) == rows(self.primary.path(name))
            except sqlite3.Error:
                return False
        wait_until(same, 30, lambda: f"{name}: equal on both nodes\n{self.primary.log_tail()}\n{self.replica.log_tail()}", 0.05)
        wait_same_position(self.primary, self.replica, name)
        for node in (self.primary, self.replica):
            node.verify(name)
            self.assertEqual(integrity(node.path(name)), "ok")
        if n is not None:
            self.assertEqual(count(self.replica.path(name)), n)

    def warning(self, name="a.db"):
        return next(d for d in self.primary.status()["databases"] if d["name"] == name).get("warning", "")

    def warnings_in_log(self):
        with open(self.primary.log_path, encoding="utf-8", errors="replace") as log:
            return log.read().count("without a journal that protects it")


class WithoutJournal(ForeignCase):
    def test_memory_and_off(self):
        for mode in ("memory", "off"):
            name = f"{mode}.db"
            self.database(name)
            db = connect(self.primary.path(name))
            self.assertEqual(db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0], mode)
            for n in range(20):
                fill(db, 10, 100 + 10 * n)
            self.equal(name, 300)
            db.execute("DELETE FROM t WHERE id % 2")
            db.execute("VACUUM")
            self.equal(name, 150)
            self.assertIn("journal", self.warning(name))
            db.close()
        self.assertEqual(self.warnings_in_log(), 2, "one warning a database")

    def test_an_open_transaction_is_not_captured(self):
        self.database("a.db", 2000)
        before = rows(self.replica.path("a.db"))
        db = connect(self.primary.path("a.db"))
        db.execute("PRAGMA journal_mode=MEMORY")
        db.execute("PRAGMA cache_size=5")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE t SET text = 'half' || id")
        db.execute("SELECT count(*) FROM t").fetchone()
        time.sleep(0.5)  # longer than capture waits after a write
        self.assertEqual(rows(self.replica.path("a.db")), before)
        db.execute("COMMIT")
        db.close()
        self.equal("a.db", 2000)

    def test_the_node_dies_in_the_middle(self):
        self.database("a.db", 500)
        position = self.primary.position("a.db")
        db = connect(self.primary.path("a.db"))
        db.execute("PRAGMA journal_mode=MEMORY")
        db.execute("PRAGMA synchronous=OFF")
        fill(db, 500, 500)
        self.primary.kill()
        db.close()
        self.primary.start()
        self.equal("a.db", 1000)
        self.assertNotEqual(self.primary.position("a.db"), position)


class Copies(ForeignCase):
    def test_cp_over_a_database(self):
        for mode in ("delete", "wal"):
            for page_size, n in ((4096, 700), (1024, 50)):
                self.database("a.db", 300, mode)
                source = self.database_file(f"{mode}{page_size}.db", n, page_size, mode)
                reader = connect(self.primary.path("a.db")) if mode == "delete" else None
                if reader:
                    reader.execute("SELECT count(*) FROM t").fetchone()
                run("cp", source, self.primary.path("a.db"))
                self.equal("a.db", n)
                if reader:
                    self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone()[0], n)
                    reader.close()
                os.unlink(self.primary.path("a.db"))
                wait_until(lambda: not os.path.exists(self.replica.path("a.db")), 30, "deleted")

    def test_cp_of_a_new_database_is_no_reason_to_warn(self):
        run("cp", self.database_file("source.db", 500), self.primary.path("a.db"))
        self.equal("a.db", 500)
        self.assertEqual(self.warning(), "")
        self.assertEqual(self.warnings_in_log(), 0)

    def test_dd_into_the_middle(self):
        self.database("a.db", 3000)
        outside = os.path.join(self.root, "outside.db")
        run("cp", self.primary.path("a.db"), outside)
        db = connect(outside)
        db.execute("UPDATE t SET text = 'changed' WHERE id BETWEEN 1000 AND 1200")
        db.close()
        run("dd", f"if={outside}", f"of={self.primary.path('a.db')}", "bs=4096", "conv=notrunc")
        self.equal("a.db", 3000)
        self.assertEqual(rows(self.replica.path("a.db")), rows(outside))

    def test_cp_over_a_database_in_wal_mode_with_a_wal(self):
        self.database("a.db", 100, "wal")
        db = connect(self.primary.path("a.db"))
        fill(db, 100, 100)
        outside = self.database_file("source.db", 40, journal_mode="wal")
        run("cp", outside, self.primary.path("a.db"))
        wait_until(lambda: self.warning(), 30, "the warning")
        try:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            db.close()
        except sqlite3.Error:
            pass  # a file under a WAL that is not its own may be anything
        run("cp", outside, self.primary.path("a.db"))
        for suffix in ("-wal", "-shm"):
            if os.path.exists(self.primary.path("a.db") + suffix):
                os.unlink(self.primary.path("a.db") + suffix)
        self.equal("a.db", 40)

    def test_restore(self):
        self.database("a.db", 10, "wal")
        source = self.database_file("source.db", 900)
        run("sqlite3", self.primary.path("a.db"), f".restore {source}")
        self.equal("a.db", 900)

    def test_the_node_dies_while_a_copy_is_written(self):
        self.database("a.db", 3000)
        source = self.database_file("source.db", 5000)
        size = os.path.getsize(source)
        for part in (0.1, 0.5, 0.9):
            with open(source, "rb") as file:
                data = file.read()
            target = os.open(self.primary.path("a.db"), os.O_WRONLY)
            os.pwrite(target, data[:int(size * part)], 0)
            self.primary.kill()
            os.close(target)
            self.primary.start()
            # What is there is half of one and half of the other: it has a position of its own, the one that was is not claimed.
            wait_same_position(self.primary, self.replica, "a.db")
            self.primary.verify("a.db")
            self.replica.verify("a.db")
            run("cp", source, self.primary.path("a.db"))
            self.equal("a.db", 5000)


class Becoming(ForeignCase):
    def test_becomes_a_database_later(self):
        with open(self.primary.path("a.db"), "w", encoding="utf-8") as file:
            file.write("not yet")
        self.assertEqual(self.primary.position("a.db"), "")
        run("cp", self.database_file("source.db", 60), self.primary.path("a.db"))
        self.equal("a.db", 60)
        run("truncate", "-s", "0", self.primary.path("b.db"))
        db = connect(self.primary.path("b.db"))
        fill(db, 20)
        db.close()
        self.equal("b.db", 20)

    def test_stops_being_one_and_becomes_one_again(self):
        for mode in ("delete", "wal"):
            self.database("a.db", 100, mode)
            with open(self.primary.path("a.db"), "r+b") as file:
                file.write(b"x" * 5000)
            time.sleep(0.3)
            self.assertEqual(count(self.replica.path("a.db")), 100)
            run("cp", self.database_file(f"{mode}.db", 70, journal_mode=mode), self.primary.path("a.db"))
            self.equal("a.db", 70)
            with open(self.primary.path("a.db"), "r+b") as file:
                file.write(b"y" * 5000)
            os.unlink(self.primary.path("a.db"))
            wait_until(lambda: not os.path.exists(self.replica.path("a.db")), 30, "deleted on the replica")

    def test_truncated_to_nothing(self):
        self.database("a.db", 100)
        run("truncate", "-s", "0", self.primary.path("a.db"))
        db = connect(self.primary.path("a.db"))
        self.assertEqual(db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0], 0)
        fill(db, 5)
        db.close()
        self.equal("a.db", 5)

    def test_truncated_in_the_middle(self):
        self.database("a.db", 3000)
        run("truncate", "-s", "8192", self.primary.path("a.db"))
        wait_until(lambda: self.warning(), 30, "the warning")
        self.primary.verify("a.db")
        run("cp", self.database_file("source.db", 30), self.primary.path("a.db"))
        self.equal("a.db", 30)


class NamesComeAndGo(ForeignCase):
    """Files removed, renamed and replaced while SQLite has them open, on both nodes."""

    def open_both(self, name, mode):
        """Connections on both nodes that have read."""
        self.database(name, 100, mode)
        found = []
        for node in (self.primary, self.replica):
            db = connect(node.path(name))
            self.addCleanup(db.close)
            self.assertEqual(db.execute("SELECT count(*) FROM t").fetchone()[0], 100)
            found.append(db)
        return found

    def try_write(self, db):
        try:
            db.execute("INSERT INTO t VALUES(9999, 'to a file that has no name')")
        except sqlite3.Error:
            pass  # SQLite notices that the file has moved

    def test_removed(self):
        for mode in ("delete", "wal"):
            writer, _ = self.open_both("a.db", mode)
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(self.primary.path("a.db") + suffix):
                    os.unlink(self.primary.path("a.db") + suffix)
            self.try_write(writer)
            wait_until(lambda: not os.path.exists(self.replica.path("a.db")), 30, "deleted on the replica")
            self.database("a.db", 30, mode)
            self.try_write(writer)
            self.equal("a.db", 30)
            writer.close()
            self.equal("a.db", 30)
            os.unlink(self.primary.path("a.db"))
            wait_until(lambda: not os.path.exists(self.replica.path("a.db")), 30, "deleted on the replica")

    def test_renamed(self):
        for mode in ("delete", "wal"):
            writer, _ = self.open_both("a.db", mode)
            os.rename(self.primary.path("a.db"), self.primary.path("b.db"))
            self.try_write(writer)
            wait_until(lambda: not os.path.exists(self.replica.path("a.db")), 30, "the old name is gone on the replica")
            writer.close()
            for suffix in ("-wal", "-shm"):
                if os.path.exists(self.primary.path("a.db") + suffix):
                    os.unlink(self.primary.path("a.db") + suffix)
            self.equal("b.db")
            self.database("a.db", 12, mode)
            self.equal("a.db", 12)
            self.equal("b.db")
            for name in ("a.db", "b.db"):
                os.unlink(self.primary.path(name))
                wait_until(lambda: not os.path.exists(self.replica.path(name)), 30, "deleted on the replica")

    def test_replaced(self):
        for mode in ("delete", "wal"):
            writer, reader = self.open_both("a.db", mode)
            writer.close() if mode == "wal" else None
            source = self.database_file(f"new-{mode}.db", 55, journal_mode=mode)
            shutil.copy(source, self.primary.path("new.tmp"))
            os.rename(self.primary.path("new.tmp"), self.primary.path("a.db"))
            self.equal("a.db", 55)
            if mode == "delete":
                self.try_write(writer)
                writer.close()
            self.equal("a.db", 55)
            self.assertEqual(reader.execute("SELECT count(*) FROM t").fetchone()[0], 55, "a reader on the replica")
            reader.close()
            os.unlink(self.primary.path("a.db"))
            wait_until(lambda: not os.path.exists(self.replica.path("a.db")), 30, "deleted on the replica")

    def test_nothing_of_this_on_a_replica(self):
        self.database("a.db", 10)
        with open(self.replica.path("own"), "w", encoding="utf-8") as own:
            own.write("local")
        for attempt in (lambda: os.unlink(self.replica.path("a.db")),
                        lambda: os.rename(self.replica.path("a.db"), self.replica.path("b.db")),
                        lambda: os.rename(self.replica.path("own"), self.replica.path("a.db")),
                        lambda: os.truncate(self.replica.path("a.db"), 0),
                        lambda: open(self.replica.path("a.db"), "r+b").close()):
            with self.assertRaises(OSError):
                attempt()
        self.equal("a.db", 10)
