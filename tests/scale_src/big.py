"""One big database: start after SIGKILL, export, VACUUM, and what memory they take."""

import os
import shutil
import sqlite3
import time

from figures import Figures, memory_mb
from nodes import Node

START_S, MEMORY_MB = 1, 200
PAGE = 4096


def fill(path, gigabytes):
    """Rows of 1 MiB, so that the time goes to the pages; written where the node finds them at its first start."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(f"PRAGMA page_size={PAGE}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
                             "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);")
    block = bytearray(os.urandom(1 << 20))
    connection.execute("BEGIN")
    for number in range(int(gigabytes * 1024)):
        block[:8] = number.to_bytes(8, "big")
        connection.execute("INSERT INTO t(v) VALUES(?)", (bytes(block),))
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def query(node):
    connection = sqlite3.connect(f"file:{node.path('big.db')}?mode=ro", uri=True)
    connection.execute("SELECT id FROM t WHERE id = 1").fetchone()
    connection.close()


def timed(figures, what, action, limit=None):
    begin = time.monotonic()
    result = action()
    figures.show(what, time.monotonic() - begin, "s", limit)
    return result


def start(figures, node, what):
    def both():
        node.start(seconds=3600)
        query(node)
    timed(figures, f"start {what} to the first query", both, START_S if "new" not in what else None)
    figures.show("  resident", memory_mb(node), "MB")


def run(options, root):
    figures = Figures(options.limits)
    free = shutil.disk_usage(root).free
    needed = options.big_gb * 5 * (1 << 30)  # the file, its log, a WAL and a copy while it is vacuumed
    print(f"# one database of {options.big_gb} GB; {free / (1 << 30):.0f} GB are free, about {needed / (1 << 30):.0f} are needed",
          flush=True)
    primary = Node(options.binary, root, "primary")
    try:
        os.makedirs(os.path.join(primary.data, "fs"))
        timed(figures, "filling it beside the node", lambda: fill(os.path.join(primary.data, "fs", "big.db"), options.big_gb))
        start(figures, primary, "with a new database")
        figures.show("  most memory", memory_mb(primary, "VmHWM"), "MB", MEMORY_MB)
        writer = sqlite3.connect(primary.path("big.db"), isolation_level=None)
        for number in range(100):
            writer.execute("UPDATE t SET v = randomblob(1000) WHERE id = ?", (number + 1,))
        primary.kill()
        writer.close()
        start(figures, primary, "after SIGKILL")
        target = os.path.join(root, "export.db")
        timed(figures, "export", lambda: primary.export("big.db", target))
        os.unlink(target)
        figures.show("  most memory", memory_mb(primary, "VmHWM"), "MB", MEMORY_MB)
        connection = sqlite3.connect(primary.path("big.db"), isolation_level=None)
        connection.execute("PRAGMA synchronous=NORMAL")
        timed(figures, "DELETE of every other row", lambda: connection.execute("DELETE FROM t WHERE id % 2 = 0"))
        timed(figures, "VACUUM", lambda: connection.execute("VACUUM"))
        connection.close()
        timed(figures, "  captured", lambda: primary.position("big.db"))
        figures.show("  most memory", memory_mb(primary, "VmHWM"), "MB", MEMORY_MB)
        primary.kill()
        start(figures, primary, "after VACUUM and SIGKILL")
        figures.end()
    finally:
        primary.close()
