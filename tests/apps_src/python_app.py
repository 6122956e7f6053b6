"""An ordinary Python application with production settings; knows nothing of Sluice.

    python_app.py write FOLDER SCRATCH       fills FOLDER/python.db and FOLDER/tenants/, does the usual maintenance
    python_app.py read FOLDER SCRATCH        checks what it finds there; writing must be refused
"""

import collections
import os
import sqlite3
import sys
import threading
import time

ROWS = 500
TENANTS = 150
OPEN_TENANTS = 100


def connect(path, query_only=False, synchronous="NORMAL"):
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    for pragma in (["journal_mode=WAL"] if not query_only else []) + [
            f"synchronous={synchronous}", "busy_timeout=5000", "cache_size=-64000", "mmap_size=268435456",
            "wal_autocheckpoint=1000", "foreign_keys=ON", "temp_store=MEMORY"] + (["query_only=ON"] if query_only else []):
        connection.execute("PRAGMA " + pragma)
    return connection


def writer_and_readers(path):
    """One write connection behind a lock, four read connections in threads of their own."""
    writer = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    writer.execute("PRAGMA auto_vacuum=INCREMENTAL")
    writer.close()
    writer = connect(path)
    writer.execute("CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
    writer.execute("CREATE TABLE orders(id INTEGER PRIMARY KEY, user INT NOT NULL REFERENCES users(id), total INT)")
    lock, stop, errors = threading.Lock(), threading.Event(), []

    def read():
        try:
            reader = connect(path, query_only=True)
            while not stop.is_set():
                users, orders = reader.execute("SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM orders)").fetchone()
                if orders != users * 3:
                    errors.append(f"{users} users have {orders} orders")
            reader.close()
        except sqlite3.Error as error:
            errors.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for n in range(ROWS):
        with lock:
            writer.execute("BEGIN IMMEDIATE")
            user = writer.execute("INSERT INTO users(name) VALUES(?)", (f"user {n}",)).lastrowid
            writer.executemany("INSERT INTO orders(user,total) VALUES(?,?)", [(user, n * 10 + i) for i in range(3)])
            writer.execute("COMMIT")
    stop.set()
    for reader in readers:
        reader.join()
    if errors:
        raise SystemExit("readers: " + "; ".join(errors[:3]))
    return writer


def maintain(writer):
    writer.execute("CREATE TABLE junk AS WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM s WHERE i<3000)"
                   " SELECT randomblob(500) AS b FROM s")
    writer.execute("DROP TABLE junk")
    expect(writer.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "integrity_check")
    writer.execute("ANALYZE")
    expect(writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "wal_checkpoint(TRUNCATE)")
    writer.execute("PRAGMA optimize")
    writer.execute("PRAGMA incremental_vacuum(100)").fetchall()
    writer.execute("VACUUM")


def back_up(connection, scratch):
    """The online backup API, and VACUUM INTO."""
    count = connection.execute("SELECT count(*) FROM orders").fetchone()[0]
    target = sqlite3.connect(os.path.join(scratch, "backup.db"))
    connection.backup(target, pages=50)
    into = os.path.join(scratch, "into.db")
    connection.execute("PRAGMA query_only=OFF")
    connection.execute("VACUUM INTO ?", (into,))
    for copy in (target, sqlite3.connect(into)):
        expect(copy.execute("SELECT count(*) FROM orders").fetchone()[0] == count, "the backup's rows")
        expect(copy.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "the backup's integrity")
        copy.close()
    for name in ("backup.db", "into.db"):
        os.unlink(os.path.join(scratch, name))


def page_sizes(folder):
    for size in (4096, 8192, 16384):
        connection = sqlite3.connect(os.path.join(folder, "pages.db"), isolation_level=None)
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(f"PRAGMA page_size={size}")
        connection.execute("VACUUM")
        connection.execute("CREATE TABLE IF NOT EXISTS p(size INT)")
        connection.execute("INSERT INTO p VALUES(?)", (size,))
        expect(connection.execute("PRAGMA page_size").fetchone()[0] == size, f"page size {size}")
        connection.close()


def tenants(folder):
    """A database per tenant, opened on demand, the last hundred kept open; some are deleted again."""
    os.makedirs(os.path.join(folder, "tenants"))
    open_ones = collections.OrderedDict()
    for n in range(2 * TENANTS):
        name = os.path.join(folder, "tenants", f"{n * 7 % TENANTS}.db")
        connection = open_ones.pop(name, None) or connect(name, synchronous="FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS visits(n INT)")
        connection.execute("INSERT INTO visits VALUES(?)", (n,))
        open_ones[name] = connection
        if len(open_ones) > OPEN_TENANTS:
            open_ones.popitem(last=False)[1].close()
    for connection in open_ones.values():
        connection.close()
    for n in range(0, TENANTS, 10):
        os.unlink(os.path.join(folder, "tenants", f"{n}.db"))


def check_everything(folder):
    connection = connect(os.path.join(folder, "python.db"), query_only=True)
    expect(connection.execute("SELECT count(*), sum(total) FROM orders").fetchone()
           == (3 * ROWS, sum(n * 10 + i for n in range(ROWS) for i in range(3))), "orders")
    expect(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "integrity")
    pages = sqlite3.connect(os.path.join(folder, "pages.db"))
    expect([row[0] for row in pages.execute("SELECT size FROM p ORDER BY 1")] == [4096, 8192, 16384], "page sizes")
    expect(pages.execute("PRAGMA page_size").fetchone()[0] == 16384, "last page size")
    pages.close()
    left = sorted(os.listdir(os.path.join(folder, "tenants")))
    databases = [name for name in left if name.endswith(".db")]
    expect(len(databases) == TENANTS - len(range(0, TENANTS, 10)), f"{len(databases)} tenants")
    for name in databases:
        tenant = sqlite3.connect(os.path.join(folder, "tenants", name))
        expect(tenant.execute("SELECT count(*) FROM visits").fetchone()[0] == 2, f"visits of {name}")
        tenant.close()
    return connection


def must_not_write(path):
    """At once, whatever the busy timeout."""
    began = time.monotonic()
    connection = sqlite3.connect(path, timeout=30)
    try:
        connection.execute("INSERT INTO users(name) VALUES('nobody')")
        connection.commit()
    except sqlite3.OperationalError as error:
        expect("readonly database" in str(error), f"writing says: {error}")
        expect(time.monotonic() - began < 5, "the refusal took long")
        return
    raise SystemExit("a write was accepted")


def expect(condition, what):
    if not condition:
        raise SystemExit(f"not as it should be: {what}")


def main():
    role, folder, scratch = sys.argv[1:]
    path = os.path.join(folder, "python.db")
    if role == "write":
        writer = writer_and_readers(path)
        maintain(writer)
        back_up(writer, scratch)
        writer.close()
        page_sizes(folder)
        tenants(folder)
        check_everything(folder).close()
    else:
        connection = check_everything(folder)
        back_up(connection, scratch)
        connection.close()
        must_not_write(path)


if __name__ == "__main__":
    main()
