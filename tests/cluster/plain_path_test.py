"""The plain I/O path's own parts: the process that stores into a replica's wal-indexes, and its end."""

import glob
import os
import signal
import sqlite3

from cases import ClusterCase, connect, fill, wait_same_position, wait_until

PLAIN = ("--io", "plain")


def helpers_of(node):
    """Process ids of the node's index helpers."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                words = file.read().split(b"\0")
            with open(os.path.join(os.path.dirname(path), "status"), encoding="ascii", errors="replace") as file:
                parent = next(line.split()[1] for line in file if line.startswith("PPid:"))
        except (OSError, StopIteration):
            continue
        if b"internal-wal-index" in words and int(parent) == node.process.pid:
            found.append(int(path.split("/")[2]))
    return found


class PlainPath(ClusterCase):
    def pair_with_data(self):
        primary = self.node("primary", extra=PLAIN)
        replica = self.node("replica", primary, PLAIN)
        db = connect(primary.path("app.db"))
        self.addCleanup(db.close)
        db.execute("PRAGMA journal_mode=WAL")
        fill(db, 100)
        wait_same_position(primary, replica, "app.db")
        return primary, replica, db

    def test_another_helper_goes_on(self):
        primary, replica, db = self.pair_with_data()
        self.assertEqual(primary.status()["io"], "plain")
        self.assertEqual(helpers_of(primary), [])
        reader = sqlite3.connect(f"file:{replica.path('app.db')}?mode=ro", uri=True, isolation_level=None)
        self.addCleanup(reader.close)
        seen = reader.execute("SELECT count(*) FROM t").fetchone()[0]
        for round_number in range(20):
            helpers = helpers_of(replica)
            self.assertEqual(len(helpers), 1)
            os.kill(helpers[0], signal.SIGKILL)
            db.execute("INSERT INTO t(text) VALUES(?)", (f"after kill {round_number}",))
            seen += 1
            wait_until(lambda want=seen: reader.execute("SELECT count(*) FROM t").fetchone()[0] == want, 20, "the reader sees it")
        wait_same_position(primary, replica, "app.db")
        self.assertEqual(replica.status()["primary"]["resyncs"], 0)
        self.assertEqual(reader.execute("PRAGMA integrity_check").fetchone()[0], "ok")
        replica.verify("app.db")

    def test_helper_ends_with_the_node(self):
        primary, replica, db = self.pair_with_data()
        reader = sqlite3.connect(f"file:{replica.path('app.db')}?mode=ro", uri=True, isolation_level=None)
        self.addCleanup(reader.close)
        reader.execute("SELECT count(*) FROM t").fetchone()
        helper = helpers_of(replica)[0]
        replica.kill()
        wait_until(lambda: not os.path.exists(f"/proc/{helper}/exe"), 20, "the helper ends")
        db.execute("INSERT INTO t(text) VALUES('meanwhile')")
        replica.start()
        wait_same_position(primary, replica, "app.db")
        replica.verify("app.db")
        reader.close()
        db.close()
        replica.stop()
        primary.stop()
