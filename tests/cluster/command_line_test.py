"""The subcommands that talk to a running node."""

import json
import os
import threading
import unittest

from cases import ClusterCase, connect, count, fill, integrity, wait_same_position


class Status(ClusterCase):
    def test_table_and_json(self):
        primary, replica = self.pair()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        fill(db, 10)
        wait_same_position(primary, replica, "a.db")
        out, _ = self.sluice("status", "--url", primary.url)
        self.assertRegex(out, r"(?m)^role +primary$")
        self.assertRegex(out, r"(?m)^a\.db +\d")
        out, _ = self.sluice("status", environment={"SLUICE_URL": replica.url})
        self.assertRegex(out, r"(?m)^role +replica$")
        self.assertIn("connected, in sync", out)
        out, _ = self.sluice("status", "--json", "--url", replica.url)
        self.assertEqual(json.loads(out)["role"], "replica")

    def test_nobody_there(self):
        _, err = self.sluice("status", "--url", "http://127.0.0.1:1", code=3)
        self.assertIn("http://127.0.0.1:1", err)


class ImportExport(ClusterCase):
    def test_export_is_consistent_while_a_writer_goes_on(self):
        primary, replica = self.pair()
        db = connect(primary.path("a.db"), check_same_thread=False)
        self.addCleanup(db.close)
        db.execute("PRAGMA journal_mode=wal")
        db.execute("CREATE TABLE pair(a INTEGER, b INTEGER)")
        db.execute("INSERT INTO pair VALUES(0, 0)")
        fill(db, 5000)
        stop = threading.Event()

        def write():
            n = 0
            while not stop.is_set():
                n += 1
                db.execute("BEGIN")
                db.execute("UPDATE pair SET a = ?", (n,))
                db.execute("UPDATE t SET text = ? WHERE id = ?", (f"changed {n}", n % 5000))
                db.execute("UPDATE pair SET b = ?", (n,))
                db.execute("COMMIT")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for n, node in enumerate((primary, replica, primary, replica)):
                out = os.path.join(self.root, f"out{n}.db")
                self.sluice("export", "--name", "a.db", "--url", node.url, out)
                self.assertEqual(integrity(out), "ok")
                copy = connect(out)
                a, b = copy.execute("SELECT a, b FROM pair").fetchone()
                copy.close()
                self.assertEqual(a, b)
        finally:
            stop.set()
            writer.join()

    def test_export_does_not_overwrite(self):
        primary = self.node("primary")
        db = connect(primary.path("a.db"))
        fill(db, 10)
        db.close()
        out = self.file("out.db", "precious")
        _, err = self.sluice("export", "--name", "a.db", "--url", primary.url, out, code=1)
        self.assertIn("--force", err)
        with open(out, encoding="utf-8") as file:
            self.assertEqual(file.read(), "precious")
        self.sluice("export", "--force", "--name", "a.db", "--url", primary.url, out)
        self.assertEqual(count(out), 10)
        _, err = self.sluice("export", "--name", "none.db", "--url", primary.url, out + "2", code=1)
        self.assertIn("none.db", err)
        self.assertFalse([name for name in os.listdir(self.root) if name.startswith("out.db2")])

    def test_import_new_and_replace(self):
        primary, replica = self.pair()
        first = self.database_file("first.db", rows=300, journal_mode="wal")
        out, _ = self.sluice("import", "--url", primary.url, "--name", "tenants/1.db", first)
        self.assertIn("imported tenants/1.db", out)
        wait_same_position(primary, replica, "tenants/1.db")
        self.assertEqual(count(replica.path("tenants/1.db")), 300)
        second = self.database_file("second.db", rows=50, page_size=1024)
        _, err = self.sluice("import", "--url", primary.url, "--name", "tenants/1.db", second, code=1)
        self.assertIn("--replace", err)
        self.sluice("import", "--url", primary.url, "--name", "tenants/1.db", "--replace", second)
        wait_same_position(primary, replica, "tenants/1.db")
        self.assertEqual(count(primary.path("tenants/1.db")), 50)
        self.assertEqual(count(replica.path("tenants/1.db")), 50)
        self.assertEqual(integrity(replica.path("tenants/1.db")), "ok")

    def test_import_refuses_what_is_not_a_whole_database(self):
        primary, replica = self.pair()
        good = self.database_file("good.db", rows=2000)
        with open(good, "rb") as file:
            image = file.read()
        cut = os.path.join(self.root, "cut.db")
        damaged = os.path.join(self.root, "damaged.db")
        with open(cut, "wb") as file:
            file.write(image[:-5000])
        with open(damaged, "wb") as file:
            file.write(image[:8192] + b"\xff" * 4096 + image[12288:])
        for path, words in ((self.file("text.db", "hello " * 1000), "not a SQLite database"), (cut, "cut off"),
                            (damaged, "damaged"), (self.file("empty.db"), "empty")):
            _, err = self.sluice("import", "--url", primary.url, path, code=1)
            self.assertIn(words, err)
        self.assertEqual(primary.status()["databases"], [])
        _, err = self.sluice("import", "--url", replica.url, good, code=3)
        self.assertIn(primary.url, err)
        _, err = self.sluice("import", "--url", primary.url, "--name", "../x.db", good, code=1)
        self.assertIn("..", err)


class VerifyAndLog(ClusterCase):
    def test_verify_finds_a_flipped_byte(self):
        primary, replica = self.pair()
        db = connect(primary.path("a.db"))
        fill(db, 3000)
        db.close()
        wait_same_position(primary, replica, "a.db")
        for node in (primary, replica):
            out, _ = self.sluice("verify", "--integrity", "--url", node.url)
            self.assertRegex(out, r"a\.db: ok, \d+ pages at TXID [0-9a-f]{16}, integrity_check: ok")
        with open(os.path.join(primary.data, "fs", "a.db"), "r+b") as file:
            file.seek(4096 * 7 + 100)
            byte = file.read(1)
            file.seek(4096 * 7 + 100)
            file.write(bytes([byte[0] ^ 1]))
        out, _ = self.sluice("verify", "a.db", "--url", primary.url, code=1)
        self.assertIn("MISMATCH", out)
        self.assertIn("pages that differ: 1 8", out)
        out, _ = self.sluice("verify", "a.db", "--json", "--url", primary.url, code=1)
        self.assertEqual(json.loads(out)["bad_pages"], [8])

    def test_log(self):
        primary = self.node("primary")
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        fill(db, 10)
        db.execute("INSERT INTO t VALUES(100, 'x')")
        txid = primary.position("a.db").split("/")[0]
        out, _ = self.sluice("log", "list", "a.db", "--url", primary.url)
        self.assertIn(txid, out)
        out, _ = self.sluice("log", "list", "a.db", "--json", "--url", primary.url)
        records = json.loads(out)["records"]
        self.assertEqual(records[0]["min_txid"], "0000000000000001")
        for one, following in zip(records, records[1:]):
            self.assertEqual(int(following["min_txid"], 16), int(one["max_txid"], 16) + 1)
            self.assertEqual(following["pre_checksum"], one["post_checksum"])
        out, _ = self.sluice("log", "dump", "a.db", txid, "--url", primary.url)
        self.assertIn("(verified)", out)
        self.assertRegex(out, r"(?m)^page +\d+")
        target = os.path.join(self.root, "one.ltx")
        self.sluice("log", "extract", "a.db", "1", target, "--url", primary.url)
        with open(target, "rb") as file:
            self.assertEqual(file.read(4), b"LTX1")
        self.sluice("log", "dump", "a.db", "99999", "--url", primary.url, code=1)
        self.sluice("log", "dump", "a.db", "x", "--url", primary.url, code=1)


class Help(ClusterCase):
    def test_help_and_version(self):
        out, _ = self.sluice("--help")
        for command in ("mount", "status", "import", "export", "verify", "log", "version"):
            self.assertRegex(out, rf"(?m)^  {command} ")
        self.assertNotIn("internal", out)
        out, _ = self.sluice("mount", "--help")
        for flag in ("--data", "--listen", "--primary-url", "--token-file", "--config", "--replica-writes", "--io"):
            self.assertIn(flag, out)
        out, _ = self.sluice("version")
        self.assertRegex(out, r"^sluice \d+\.\d+\.\d+")
        self.sluice(code=2)
        self.sluice("fly", code=2)
        _, err = self.sluice("status", "--colour", code=2)
        self.assertIn("--colour", err)


if __name__ == "__main__":
    unittest.main()
