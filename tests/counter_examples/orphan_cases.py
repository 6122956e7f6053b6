"""Processes that outlive the mount they came through (I9): at the next start the node fences them off, keeps what they had
committed, and nothing they do later counts. Without nodes (--raw) there is no mount to outlive: the steps alone."""

import os

from scene import expect
from nodes import wait_until

CREATE = ("sql PRAGMA journal_mode=WAL", "sql PRAGMA synchronous=NORMAL", "sql CREATE TABLE t(n INTEGER PRIMARY KEY, v TEXT)",
          "sql INSERT INTO t VALUES(0, 'first')")
CANTOPEN = 14


def primary_code(code):
    return code & 0xff


def restart(scene):
    """The node is killed and started again over its living clients."""
    if scene.primary is not None:
        scene.primary.kill()
        scene.primary.start()


def is_cut_off(scene, orphan):
    """Reading and writing fail, and what is tried changes nothing."""
    if scene.primary is None:
        return
    read = orphan.error("sql SELECT count(*) FROM t")
    expect(primary_code(read) == CANTOPEN, f"reading through the old mount gives {read}")
    expect(orphan.error("sql INSERT INTO t VALUES(666, 'orphan')") != 0, "an orphan can still commit")


def orphan_idle(scene):
    """Commits that nobody captured because no node ran are kept; the connection is cut off; another one works."""
    orphan = scene.hk(*CREATE)
    scene.synced()
    if scene.primary is not None:
        scene.primary.kill()
    orphan.do("sql INSERT INTO t VALUES(1, 'while no node ran')")
    if scene.primary is not None:
        scene.primary.start()
        status = scene.primary.status()["databases"][0]
        expect([o["pid"] for o in status.get("orphans", [])] == [orphan.process.pid], f"status does not name the orphan: {status}")
    is_cut_off(scene, orphan)
    scene.hk("sql INSERT INTO t VALUES(2, 'after')")
    scene.on_both("SELECT count(*) FROM t", 3)
    is_cut_off(scene, orphan)
    orphan.end()
    scene.on_both("SELECT count(*) FROM t", 3)


def orphan_writing(scene):
    """An open write transaction, with pages spilled to the WAL, ends in an error."""
    orphan = scene.hk(*CREATE, "sql PRAGMA cache_size=5", "sql BEGIN IMMEDIATE",
                      "sql WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM s WHERE i<500)"
                      " INSERT INTO t SELECT 1000+i, randomblob(500) FROM s")
    restart(scene)
    if scene.primary is None:
        return
    expect(orphan.error("sql COMMIT") != 0, "an open transaction could be committed after the start")
    is_cut_off(scene, orphan)
    scene.hk("sql INSERT INTO t VALUES(2, 'after')")
    scene.on_both("SELECT count(*) FROM t", 2)


def orphan_reading(scene):
    """An open read transaction keeps its snapshot to its end."""
    writer = scene.hk(*CREATE)
    orphan = scene.hk("sql BEGIN", "sql SELECT count(*) FROM t")
    writer.do("sql INSERT INTO t VALUES(1, 'later')")
    restart(scene)
    if scene.primary is None:
        return
    scene.hk("sql INSERT INTO t VALUES(2, 'after')")
    expect(orphan.sql("SELECT count(*) FROM t") == ["1"], "the snapshot moved")
    orphan.do("sql COMMIT")
    is_cut_off(scene, orphan)
    is_cut_off(scene, writer)
    scene.on_both("SELECT count(*) FROM t", 3)


def orphan_publishing(scene):
    """A process stopped between its last frame and the wal-index: its COMMIT will return success, so it counts."""
    orphan = scene.hk(*CREATE, "hook 1 wait")
    orphan.stops("sql INSERT INTO t VALUES(1, 'complete, not published')")
    restart(scene)
    expect(orphan.goes_on() == 0, "the commit failed: the test needs another way to make this")
    scene.on_both("SELECT count(*) FROM t", 2)
    if scene.primary is not None:
        expect(orphan.error("sql INSERT INTO t VALUES(666, 'orphan')") != 0, "an orphan can still commit")
    scene.on_both("SELECT count(*) FROM t", 2)


def orphan_unpublished_frames(scene):
    """A process died before it published its commit, others live: SQLite dropped it, so does the node."""
    alive = scene.hk(*CREATE)
    scene.hk("hook 1 die").dies("sql INSERT INTO t VALUES(777, 'unpublished')")
    restart(scene)
    scene.on_both("SELECT count(*) FROM t", 1)
    is_cut_off(scene, alive)


def orphan_failed_full(scene):
    """synchronous=FULL without a node: COMMIT fails at its fsync, and stays failed although its frames are in the WAL."""
    orphan = scene.hk(*CREATE, "sql PRAGMA synchronous=FULL")
    scene.synced()
    if scene.primary is None:
        return
    scene.primary.kill()
    expect(orphan.error("sql INSERT INTO t VALUES(1, 'failed')") != 0, "the commit did not fail")
    scene.primary.start()
    scene.on_both("SELECT count(*) FROM t", 1)
    is_cut_off(scene, orphan)


def orphan_without_salt(scene):
    """Frames that SQLite committed without salt and checksum (case Z), and a process that keeps them valid: kept."""
    orphan = scene.hk(*CREATE, "sql CREATE TABLE big(n INTEGER PRIMARY KEY, v BLOB)", "sql PRAGMA wal_autocheckpoint=0",
                      "sql PRAGMA cache_size=5")
    orphan.do("sql BEGIN", "sql SAVEPOINT s",
              "sql WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM s WHERE i<200)"
              " INSERT INTO big SELECT i, randomblob(900) FROM s",
              "sql UPDATE big SET v=randomblob(900) WHERE n>150", "sql UPDATE big SET v=randomblob(900) WHERE n>150",
              "sql ROLLBACK TO s", "sql RELEASE s", "sql INSERT INTO t VALUES(999, 'committed')", "sql COMMIT")
    if scene.primary is not None:
        expect(any(f[2] == f[3] == bytes(8) for f in scene.wal_frames()), "SQLite wrote no frame without salts")
    orphan.do("sql INSERT INTO t VALUES(1000, 'behind them')")
    restart(scene)
    if scene.primary is not None:
        expect(all(f[2] != bytes(8) for f in scene.wal_frames()), "the copied WAL has frames without salts")
    scene.on_both("SELECT count(*) FROM t", 3)
    is_cut_off(scene, orphan)


def orphan_exclusive(scene):
    """locking_mode=EXCLUSIVE: the wal-index is private, only the chain of the WAL tells what is committed."""
    first = scene.hk(*CREATE)
    first.end()
    orphan = scene.hk("sql PRAGMA synchronous=NORMAL", "sql PRAGMA locking_mode=EXCLUSIVE", "sql INSERT INTO t VALUES(1, 'before')")
    scene.synced()
    if scene.primary is not None:
        scene.primary.kill()
    orphan.do("sql INSERT INTO t VALUES(2, 'while no node ran')")
    if scene.primary is None:
        return
    scene.primary.start()
    expect(orphan.error("sql INSERT INTO t VALUES(666, 'orphan')") != 0, "an orphan can still commit")
    scene.hk("sql INSERT INTO t VALUES(3, 'after')")
    scene.on_both("SELECT count(*) FROM t", 4)


def orphan_rollback(scene):
    """A rollback transaction with pages in the database file: rolled back at the start, and the process can do no more."""
    orphan = scene.hk("sql PRAGMA journal_mode=DELETE", *CREATE[2:], "sql PRAGMA cache_size=5", "sql BEGIN IMMEDIATE",
                      "sql WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM s WHERE i<500)"
                      " INSERT INTO t SELECT 1000+i, randomblob(500) FROM s")
    if scene.primary is None:
        return
    expect(os.path.exists(scene.backing + "-journal"), "there is no journal")
    restart(scene)
    new = scene.hk()
    wait_until(lambda: new.sql("SELECT count(*) FROM t") == ["1"], 30, "the transaction is rolled back")
    expect(orphan.error("sql COMMIT") != 0, "an open transaction could be committed after the start")
    new.do("sql INSERT INTO t VALUES(2, 'after')")
    expect(orphan.error("sql INSERT INTO t VALUES(666, 'orphan')") != 0, "an orphan can still commit")
    scene.on_both("SELECT count(*) FROM t", 2)


def orphan_finds_a_journal(scene):
    """An idle connection of the old mount finds X-journal by its path: the journal of a new client in the middle of its
    transaction, whose lock it cannot see. It must not come to removing it."""
    orphan = scene.hk("sql PRAGMA journal_mode=DELETE", *CREATE[2:], "sql PRAGMA synchronous=OFF", "sql SELECT count(*) FROM t")
    if scene.primary is None:
        return
    restart(scene)
    new = scene.hk()
    wait_until(lambda: new.error("sql BEGIN IMMEDIATE") == 0, 30, "the database can be written")
    new.do("sql INSERT INTO t VALUES(1, 'new')")
    expect(os.path.exists(scene.backing + "-journal"), "there is no journal")
    orphan.error("sql SELECT count(*) FROM t")
    orphan.error("sql INSERT INTO t VALUES(666, 'orphan')")
    expect(os.path.exists(scene.backing + "-journal"), "the orphan removed the new client's journal")
    new.do("sql COMMIT")
    scene.on_both("SELECT count(*) FROM t", 2)


def orphan_twice(scene):
    """Two nodes die one after the other: orphans of both mounts."""
    orphans = []
    for round_number in range(1, 4):
        orphans.append(scene.hk(*(CREATE if round_number == 1 else ()), f"sql INSERT INTO t VALUES({round_number}, 'x')"))
        restart(scene)
        for orphan in orphans:
            is_cut_off(scene, orphan)
    scene.on_both("SELECT count(*) FROM t", 4)
    if scene.primary is None:
        return
    for process in scene.processes:
        process.kill()
    restart(scene)
    expect(os.listdir(os.path.join(scene.primary.data, "fenced")) == [], "what was kept for orphans is still there")
    scene.on_both("SELECT count(*) FROM t", 4)


def orphan_on_replica(scene):
    """Readers of a replica that was killed: cut off, not left with what was current then."""
    writer = scene.hk(*CREATE)
    if scene.replica is None:
        return
    scene.synced()
    reader = scene.hk("sql SELECT count(*) FROM t", path=scene.replica.path(scene.name))
    scene.replica.kill()
    writer.do("sql INSERT INTO t VALUES(1, 'later')")
    scene.replica.start()
    read = reader.error("sql SELECT count(*) FROM t")
    expect(primary_code(read) == CANTOPEN, f"reading through the old mount gives {read}")
    scene.on_both("SELECT count(*) FROM t", 2)


ORPHAN_CASES = {
    "O-idle": orphan_idle,
    "O-writing": orphan_writing,
    "O-reading": orphan_reading,
    "O-publishing": orphan_publishing,
    "O-unpublished": orphan_unpublished_frames,
    "O-failed": orphan_failed_full,
    "O-salt": orphan_without_salt,
    "O-exclusive": orphan_exclusive,
    "O-rollback": orphan_rollback,
    "O-journal": orphan_finds_a_journal,
    "O-twice": orphan_twice,
    "O-replica": orphan_on_replica,
}
