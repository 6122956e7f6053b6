"""A replica that fell off the log is sent what differs; damaged pages are found and repaired."""

import json
import os
import sqlite3
import threading
import unittest

from cases import ClusterCase, connect, count, fill, integrity, wait_same_position, wait_until

SHORT_LOG = ("--log-segment", "64KiB", "--retention-bytes", "64KiB", "--retention-interval", "100ms")
PAGE = 4096


def flip(node, database, page):
    with open(os.path.join(node.data, "fs", database), "r+b") as file:
        file.seek(PAGE * (page - 1) + 100)
        byte = file.read(1)
        file.seek(PAGE * (page - 1) + 100)
        file.write(bytes([byte[0] ^ 1]))
        os.fsync(file.fileno())


class Resync(ClusterCase):
    def off_the_log(self, primary, db, name, txid):
        """Changes one page until the log of the primary no longer reaches back to `txid`."""
        def gone():
            for _ in range(50):
                db.execute("UPDATE t SET text = hex(randomblob(1000)) WHERE id = 1")
            log = next(d for d in primary.status()["databases"] if d["name"] == name)["log"]
            return int(log["first"], 16) > int(txid, 16) + 1

        wait_until(gone, 60, "the log is short")

    def test_what_differs_is_sent_while_writers_and_readers_go_on(self):
        primary = self.node("primary", extra=SHORT_LOG)
        replica = self.node("replica", primary, SHORT_LOG)
        replica.wait_ready()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        db.execute("PRAGMA journal_mode=wal")
        fill(db, 60000)
        txid = wait_same_position(primary, replica, "a.db").split("/")[0]
        size = os.path.getsize(os.path.join(replica.data, "fs", "a.db"))
        self.assertGreater(size, 5 << 20)
        replica.stop()
        db.execute("UPDATE t SET text = 'changed' WHERE id % 6000 = 7")
        self.off_the_log(primary, db, "a.db", txid)

        stop = threading.Event()
        failures = []

        def read():
            seen = -1
            try:
                while not stop.is_set():
                    reader = connect(replica.path("a.db"))
                    now = reader.execute("SELECT max(id), count(*) FROM t").fetchone()
                    reader.close()
                    if now[0] + 1 != now[1] or now[0] < seen:
                        failures.append(f"{now} after {seen}")
                    seen = now[0]
            except sqlite3.Error as error:
                failures.append(repr(error))

        replica.start()
        reading = threading.Thread(target=read)
        reading.start()
        try:
            for n in range(60000, 60100):
                db.execute("INSERT INTO t VALUES(?, 'more')", (n,))
            wait_same_position(primary, replica, "a.db")
        finally:
            stop.set()
            reading.join()
        self.assertEqual(failures, [])
        self.assertEqual(count(replica.path("a.db")), 60100)
        self.assertEqual(integrity(replica.path("a.db")), "ok")
        self.assertTrue(json.loads(replica.verify("a.db"))["ok"])
        received = replica.status()["primary"]["bytes_received"]
        self.assertLess(received, size / 4, "more than what differs")

    def test_a_flipped_page_is_repaired_from_the_primary(self):
        primary = self.node("primary")
        replica = self.node("replica", primary, ("--scrub-interval", "300ms", "--scrub-rate", "0"))
        replica.wait_ready()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        fill(db, 3000)
        wait_same_position(primary, replica, "a.db")
        wait_until(lambda: "scrub" in replica.status()["databases"][0], 30, "a scrub ended")
        self.flip(replica, 9)
        wait_until(lambda: replica.status()["databases"][0].get("scrub", {}).get("bad_total", 0) > 0, 30, "the scrub finds it")
        wait_until(lambda: replica.status()["databases"][0]["scrub"]["bad_pages"] == 0, 30, "it is repaired")
        self.assertTrue(json.loads(replica.verify("a.db"))["ok"])
        self.assertEqual(integrity(replica.path("a.db")), "ok")
        self.assertLess(replica.status()["primary"]["bytes_received"], 2 << 20)
        db.execute("INSERT INTO t VALUES(99999, 'x')")
        wait_same_position(primary, replica, "a.db")

    def flip(self, replica, *pages):
        """While it is down: a page that is in the WAL, too, is read from there."""
        replica.stop()
        for page in pages:
            flip(replica, "a.db", page)
        replica.start()
        replica.wait_ready()

    def test_verify_repair(self):
        primary = self.node("primary")
        replica = self.node("replica", primary)
        replica.wait_ready()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        fill(db, 3000)
        wait_same_position(primary, replica, "a.db")
        self.flip(replica, 2, 9, 30)
        self.sluice("verify", "a.db", "--url", replica.url, code=1)
        out, _ = self.sluice("verify", "--repair", "a.db", "--url", replica.url)
        self.assertRegex(out, r"a\.db: ok, .*3 pages repaired")
        self.sluice("verify", "a.db", "--url", replica.url)
        self.assertEqual(count(replica.path("a.db")), 3000)
        _, err = self.sluice("verify", "--repair", "a.db", "--url", primary.url, code=1)
        self.assertIn("export there and import the copy here", err)
        primary.stop()
        flip(replica, "a.db", 50)  # not one of those that are in the WAL now
        _, err = self.sluice("verify", "--repair", "a.db", "--url", replica.url, code=3)
        self.assertIn("not connected", err)


if __name__ == "__main__":
    unittest.main()
