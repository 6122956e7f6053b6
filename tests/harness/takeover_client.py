#!/usr/bin/env python3
"""takeover_client.py ROLE DIRECTORY STOP-FILE: an application that tolerates nothing, while a node's workers are killed.

Roles: wal, wal-full, delete, files, ping, read. Works until STOP-FILE exists, then checks what it did and prints one JSON
object: {"errors": [...], "done": n, "longest_ms": x, "pauses_ms": [...]}.
"""

import errno
import json
import os
import sqlite3
import sys
import time
import traceback

errors = []
pauses = []
longest = 0.0


def timed(call, *arguments):
    global longest
    begin = time.monotonic()
    result = call(*arguments)
    took = (time.monotonic() - begin) * 1000
    longest = max(longest, took)
    if took > 3:
        pauses.append(round(took, 2))
    return result


def check(truth, what):
    if not truth:
        raise AssertionError(what)


def write_rows(path, mode, synchronous, stop):
    """A row a transaction; every one that was acknowledged is there once."""
    done = 0
    while not os.path.exists(stop):
        db = sqlite3.connect(path, isolation_level=None, timeout=30)
        check(db.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode, "journal mode")
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, seq INTEGER, text TEXT)")
        for _ in range(40):
            timed(db.execute, f"INSERT INTO t(seq, text) VALUES({done}, '{'x' * (done * 37 % 900)}')")
            done += 1
            if os.path.exists(stop):
                break
        db.close()
    db = sqlite3.connect(path, timeout=30)
    counts = db.execute("SELECT count(*), count(DISTINCT seq), max(seq) + 1 FROM t").fetchone()
    check(counts == (done, done, done), f"rows, different rows, highest: {counts}; acknowledged {done}")
    check(db.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "integrity")
    return done


def read_rows(path, stop):
    """Never sees fewer rows than before, nor a half transaction."""
    done = before = 0
    while not os.path.exists(path) and not os.path.exists(stop):
        time.sleep(0.01)
    while not os.path.exists(stop):
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
        for _ in range(20):
            try:
                rows, top = timed(lambda: db.execute("SELECT count(*), max(seq) + 1 FROM t").fetchone())
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    break
                raise
            check(rows >= before and (top or 0) == rows, f"{rows} rows after {before}, highest {top}")
            before = rows
            done += 1
            time.sleep(0.002)
        db.close()
    return done


def one_round(directory, number):
    """Strict file operations: none may fail, happen twice, or lose anything."""
    a, b = (os.path.join(directory, f"{name}{number}") for name in "ab")
    fd = timed(os.open, a, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    check(timed(os.pwrite, fd, b"1" * 5000, 0) == 5000, "write")
    timed(os.ftruncate, fd, 3000)
    timed(os.rename, a, b)
    second = timed(os.open, a, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    check(timed(os.pwrite, second, b"2" * 100, 0) == 100, "write")
    timed(os.rename, a, b)  # over the first, which stays open
    check(os.fstat(fd).st_size == 3000 and os.pread(fd, 9000, 0) == b"1" * 3000, "content of the file that lost its name")
    timed(os.fsync, fd)
    timed(os.ftruncate, fd, 10)
    check(os.fstat(fd).st_size == 10, "size of the file that lost its name")
    check(os.stat(b).st_size == 100, "what has the name now")
    timed(os.unlink, b)
    check(os.pread(second, 200, 0) == b"2" * 100, "content of the removed file")
    for name in (a, b):
        check(not os.path.exists(name), f"{name} is still there")
    os.close(fd)
    os.close(second)
    timed(os.mkdir, a)
    timed(os.symlink, "nowhere", b)
    check(os.readlink(b) == "nowhere", "link")
    timed(os.unlink, b)
    timed(os.rename, a, b)
    timed(os.rmdir, b)


def use_files(directory, stop):
    os.mkdir(directory)
    done = 0
    while not os.path.exists(stop):
        one_round(directory, done % 7)
        done += 1
    check(os.listdir(directory) == [], f"left: {os.listdir(directory)}")
    return done


def ping(path, stop):
    """One request after the other."""
    with open(path, "w", encoding="ascii"):
        pass
    done = 0
    while not os.path.exists(stop) if done % 16 == 0 else True:
        timed(os.utime, path, (done, done))
        done += 1
        time.sleep(0.0003)
    return done


def main():
    role, directory, stop = sys.argv[1:4]
    done = 0
    roles = {
        "wal": lambda: write_rows(os.path.join(directory, "wal.db"), "wal", "normal", stop),
        "wal-full": lambda: write_rows(os.path.join(directory, "wal-full.db"), "wal", "full", stop),
        "delete": lambda: write_rows(os.path.join(directory, "delete.db"), "delete", "full", stop),
        "files": lambda: use_files(os.path.join(directory, "files"), stop),
        "ping": lambda: ping(os.path.join(directory, "ping"), stop),
        "read": lambda: read_rows(os.path.join(directory, "wal.db"), stop),
    }
    try:
        done = roles[role]()
    except Exception as error:  # whatever it is: it is what an application would have seen
        code = getattr(error, "errno", None)
        errors.append(f"{role}: {errno.errorcode.get(code, code)} {traceback.format_exc(limit=4)}")
    print(json.dumps({"errors": errors, "done": done, "longest_ms": round(longest, 1), "pauses_ms": sorted(pauses)[-200:]}))


if __name__ == "__main__":
    main()
