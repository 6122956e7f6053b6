#!/usr/bin/env python3
"""Makes the golden files of this directory with the SQLite of Python's sqlite3 module.

The salts and nonces are random, so another run gives other bytes: golden_data_test.cc holds the values of the committed
files. Run it only to add a file, and keep the old ones.
"""
import os
import shutil
import sqlite3
import struct
import sys
import tempfile

PAGE = 512


def connect(path):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA page_size={PAGE}")
    return db


def make_wal(work, out):
    """t.db, t.db-wal, t.db-shm: three transactions, the last of two frames; nothing checkpointed since page 1 came."""
    path = os.path.join(work, "t.db")
    db = connect(path)
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("INSERT INTO t VALUES(1, 'one')")
    db.execute("INSERT INTO t VALUES(2, 'two')")
    db.execute("CREATE TABLE u(x)")
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(path + suffix, os.path.join(out, "t.db" + suffix))
    db.close()


def add_words(data, sums, order):
    s0, s1 = sums
    for a, b in struct.iter_unpack(order + "II", data):
        s0 = (s0 + a + s1) & 0xFFFFFFFF
        s1 = (s1 + b + s0) & 0xFFFFFFFF
    return s0, s1


def make_big_endian_wal(out):
    """t-big.wal: t.db-wal as a big-endian machine would have written it."""
    with open(os.path.join(out, "t.db-wal"), "rb") as f:
        data = f.read()
    head = struct.pack(">I", 0x377F0683) + data[4:24]
    sums = add_words(head, (0, 0), ">")
    result = head + struct.pack(">II", *sums)
    for at in range(32, len(data), 24 + PAGE):
        frame, page = data[at : at + 24], data[at + 24 : at + 24 + PAGE]
        sums = add_words(page, add_words(frame[:8], sums, ">"), ">")
        result += frame[:16] + struct.pack(">II", *sums) + page
    with open(os.path.join(out, "t-big.wal"), "wb") as f:
        f.write(result)


def make_journal(work, out):
    """j.db, j.db-journal: a transaction that spilled, as a killed process leaves it: several segments."""
    path = os.path.join(work, "j.db")
    db = connect(path)
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    db.executemany("INSERT INTO t VALUES(?, zeroblob(300))", [(i,) for i in range(1, 13)])
    db.execute("PRAGMA cache_size=4")
    db.execute("BEGIN")
    db.execute("UPDATE t SET b=randomblob(300)")
    for suffix in ("", "-journal"):
        shutil.copy(path + suffix, os.path.join(out, "j.db" + suffix))
    db.execute("ROLLBACK")
    db.close()


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    with tempfile.TemporaryDirectory() as work:
        make_wal(work, out)
        make_big_endian_wal(out)
        make_journal(work, out)


if __name__ == "__main__":
    main()
