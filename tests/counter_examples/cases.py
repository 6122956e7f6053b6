"""The counter-examples: SQLite processes that die at chosen places. Each shows that its situation arose (hooks reached,
frames in the WAL's file) before it judges. Names and rules: docs/TESTING.md.
"""

import os
import sqlite3
import struct

from scene import expect

CREATE = "sql PRAGMA journal_mode=WAL", "sql CREATE TABLE t(n INTEGER PRIMARY KEY, v TEXT)"
SQLITE_IOERR_WRITE = 778


def insert(first, last):
    return (f"sql WITH RECURSIVE s(i) AS (VALUES({first}) UNION ALL SELECT i+1 FROM s WHERE i<{last})"
            " INSERT INTO t SELECT i, printf('row %d', i) FROM s")


def insert_one_by_one(count):
    return f"repeat {count} INSERT INTO t SELECT coalesce(max(n),0)+1, 'row '||(coalesce(max(n),0)+1) FROM t"


def shm_header(scene):
    """(mxFrame, salts, nBackfill, nBackfillAttempted) of the wal-index, as its users see it."""
    with open(scene.path + "-shm", "rb") as shm:
        data = shm.read(136)
    words = struct.unpack("=34I", data)
    return words[4], data[32:40], words[24], words[32]


def a_unpublished_commit_others_alive(scene):
    """A commit frame is on disk, its process dies before publishing it, another lives: it never happened."""
    alive = scene.hk(*CREATE, insert(1, 10))
    dying = scene.hk("hook 1 die")
    before = scene.synced()
    frames = len(scene.wal_frames())
    dying.dies("sql INSERT INTO t VALUES(777, 'unpublished')")
    expect(len(scene.wal_frames()) > frames, "the dead process's frames are not in the WAL")
    expect(scene.position() == before, "a commit that was never published was captured")
    expect(alive.sql("SELECT count(*) FROM t WHERE n=777") == ["0"], "SQLite sees the unpublished commit")
    alive.do(insert(11, 12))
    scene.on_both("SELECT count(*) FROM t", 12)
    scene.on_both("SELECT count(*) FROM t WHERE n=777", 0)


def b_unpublished_commit_everybody_dead(scene):
    """The same with nobody left: recovery will find the commit, so the chain of the WAL has it and capture takes it."""
    dying = scene.hk(*CREATE, insert(1, 10), "hook 1 die")
    before = scene.synced()
    dying.dies("sql INSERT INTO t VALUES(777, 'resurrected')")
    scene.moved(before)
    scene.synced()
    if scene.replica is not None:
        expect(scene.on_replica("SELECT max(n) FROM t") == 777, "the replica lacks the commit that recovery finds")
    scene.on_both("SELECT max(n) FROM t", 777)


def b2_unpublished_commit_recovered_first(scene):
    """… and a new process recovers and writes on before anybody asks for a position."""
    dying = scene.hk(*CREATE, insert(1, 10), "hook 1 die")
    scene.synced()
    dying.dies("sql INSERT INTO t VALUES(777, 'resurrected')")
    scene.hk(insert(778, 800))
    scene.on_both("SELECT count(*) FROM t WHERE n>=777", 24)


def c_death_between_header_copies(scene):
    """The wal-index header is torn: its second copy is new, its first is old. The reader must not spin."""
    alive = scene.hk(*CREATE, insert(1, 10))
    dying = scene.hk("hook 2 die")
    scene.synced()
    dying.dies("sql INSERT INTO t VALUES(777, 'torn')")
    with open(scene.path + "-shm", "rb") as shm:
        first, second = shm.read(48), shm.read(48)
    expect(first != second, "the header is not torn")
    scene.position()
    count = int(alive.sql("SELECT count(*) FROM t")[0])
    alive.do(insert(1001, 1003))
    scene.on_both("SELECT count(*) FROM t", count + 3)


def c_death_between_header_copies_alone(scene):
    """The same with nobody else alive."""
    dying = scene.hk(*CREATE, insert(1, 10), "hook 2 die")
    scene.synced()
    dying.dies("sql INSERT INTO t VALUES(777, 'torn')")
    scene.position()
    scene.on_both("SELECT count(*) FROM t", 11)
    scene.hk(insert(1001, 1003))
    scene.on_both("SELECT count(*) FROM t", 14)


def d_restart_published_header_not_written(scene):
    """Generation B is published with no frames, its process dies before the WAL's header: recovery goes back to A."""
    dying = scene.hk(*CREATE, insert_one_by_one(20), "checkpoint 0", "hook 4 die")
    before = scene.synced()
    with open(scene.backing + "-wal", "rb") as wal:
        salts = wal.read(32)[16:24]
    dying.dies("sql INSERT INTO t VALUES(777, 'never')")
    expect(shm_header(scene)[1] != salts, "the wal-index does not announce another generation than the WAL's header")
    expect(scene.position() == before, "going back to the old generation looked like new transactions")
    scene.hk(insert(21, 30))
    scene.on_both("SELECT count(*) FROM t", 30)
    scene.on_both("SELECT count(*) FROM t WHERE n=777", 0)


def k_restart_header_written_no_frames(scene):
    """The same, but B's header is in the WAL: recovery finds no frames."""
    dying = scene.hk(*CREATE, insert_one_by_one(20), "checkpoint 0", "hook 5 die")
    before = scene.synced()
    dying.dies("sql INSERT INTO t VALUES(777, 'never')")
    expect(scene.position() == before, "an empty generation looked like new transactions")
    scene.hk(insert(21, 30))
    scene.on_both("SELECT count(*) FROM t", 30)


def e_exclusive_before_first_access(scene):
    """A wal-index in heap memory: nothing to map, the WAL's own chain must do."""
    scene.hk(*CREATE, insert(1, 10)).end()
    owner = scene.hk("sql PRAGMA locking_mode=EXCLUSIVE", insert_one_by_one(300))
    expect(not os.path.exists(scene.backing + "-shm") or os.path.getsize(scene.backing + "-shm") == 0
           or shm_header(scene)[0] == 0, "the wal-index is in shared memory")
    scene.synced()
    if scene.replica is not None:
        expect(scene.on_replica("SELECT count(*) FROM t") == 310, "transactions of the heap wal-index are missing")
    owner.do("checkpoint 3", insert_one_by_one(50), "checkpoint 0", insert_one_by_one(50))
    owner.end()
    scene.on_both("SELECT count(*) FROM t", 410)


def j_exclusive_after_first_access(scene):
    """EXCLUSIVE after the wal-index was mapped: it stays in shared memory."""
    owner = scene.hk(*CREATE, insert(1, 10), "sql PRAGMA locking_mode=EXCLUSIVE", insert_one_by_one(300))
    scene.synced()
    if scene.replica is not None:
        expect(scene.on_replica("SELECT count(*) FROM t") == 310, "transactions of the exclusive owner are missing")
    owner.do("checkpoint 3", insert_one_by_one(50))
    owner.end()
    scene.on_both("SELECT count(*) FROM t", 360)


def stale_shm_then_heap(scene, vfs, exclusive):
    victim = scene.hk(*CREATE, insert_one_by_one(20))
    scene.synced()
    victim.kill()
    frozen = shm_header(scene)
    expect(frozen[0] > 0, "SIGKILL left no valid wal-index")
    owner = scene.hk(*(["sql PRAGMA locking_mode=EXCLUSIVE"] if exclusive else []), insert_one_by_one(300), vfs=vfs)
    expect(shm_header(scene) == frozen, "the wal-index is not frozen")
    scene.synced()
    if scene.replica is not None:
        expect(scene.on_replica("SELECT count(*) FROM t") == 320, "transactions beside a stale wal-index are missing")
    owner.do("checkpoint 3", insert_one_by_one(10))
    owner.end()
    scene.on_both("SELECT count(*) FROM t", 330)


def f_stale_shm_then_exclusive(scene):
    """A SIGKILLed process leaves a valid -shm; a heap-mode writer goes on in the same generation."""
    stale_shm_then_heap(scene, "", True)


def f_stale_shm_then_unix_excl(scene):
    """The same with the unix-excl VFS."""
    stale_shm_then_heap(scene, "unix-excl", False)


def f_stale_shm_then_unix_none(scene):
    """The same with the unix-none VFS, which takes no locks at all."""
    stale_shm_then_heap(scene, "unix-none", True)


def g_wal_reset_bug(scene):
    """SQLite's WAL-reset bug: a checkpointer with a stale header meets a restarted WAL. Its write is refused with EIO."""
    writer = scene.hk(*CREATE, "sql PRAGMA wal_autocheckpoint=0", insert_one_by_one(64), "checkpoint 0")
    stale = scene.hk("sql SELECT count(*) FROM t", "hook 3 wait")
    stale.stops("checkpoint 0")
    old_frame, _, backfilled, _ = shm_header(scene)
    expect(backfilled == old_frame, "the first checkpoint was not complete")
    writer.do(insert_one_by_one(20))
    expect(0 < shm_header(scene)[0] < old_frame, "the WAL was not restarted")
    code = stale.goes_on()
    if scene.primary is not None:
        expect(code == SQLITE_IOERR_WRITE, f"the stale checkpoint ended with {code}, not SQLITE_IOERR_WRITE")
    writer.do(insert_one_by_one(200), "checkpoint 0", insert_one_by_one(100))
    if scene.primary is None:
        scene.succeeded = True  # on a plain directory SQLite's bug may do its damage
        return
    expect(writer.sql("PRAGMA integrity_check") == ["ok"], "the database was damaged")
    scene.on_both("SELECT count(*) FROM t", 384)


def h_persistent_wal(scene):
    """PERSIST_WAL with journal_size_limit: the WAL's file stays, is cut, and is used again."""
    for limit in (-1, 0, 20000):
        hk = scene.hk(*CREATE[:1], "sql CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, v TEXT)",
                      "persist_wal", f"sql PRAGMA journal_size_limit={limit}", insert_one_by_one(30))
        scene.synced()
        hk.end()
        expect(os.path.exists(scene.backing + "-wal"), "the WAL did not persist")
    scene.on_both("SELECT count(*) FROM t", 90)


def i_resurrected_after_persistent_close(scene):
    """A dead process's unpublished commit stands behind the last frame when the WAL persists at a clean close: the next
    recovery finds it."""
    alive = scene.hk(*CREATE, "persist_wal", "sql PRAGMA wal_autocheckpoint=0", insert(1, 10))
    dying = scene.hk("hook 1 die")
    scene.synced()
    dying.dies("sql INSERT INTO t VALUES(777, 'resurrected')")
    alive.end()
    expect(os.path.exists(scene.backing + "-wal"), "the WAL did not persist")
    scene.on_both("SELECT max(n) FROM t", 777)
    scene.hk(insert(778, 780))
    scene.on_both("SELECT count(*) FROM t", 14)


def i_prime_unpublished_frames_at_a_restart(scene):
    """Valid frames of a dead process stand behind mxFrame when the WAL is restarted: they are nobody's."""
    alive = scene.hk(*CREATE, "sql PRAGMA wal_autocheckpoint=0", insert_one_by_one(30))
    dying = scene.hk("hook 1 die")
    scene.synced()
    dying.dies("sql INSERT INTO t VALUES(777, 'unpublished')")
    alive.do("checkpoint 0", "sql INSERT INTO t VALUES(31, 'row 31')")
    frames = scene.wal_frames()
    expect(frames[0][2] != frames[-1][2], "the WAL was not restarted over the dead process's frames")
    expect(alive.sql("SELECT count(*) FROM t WHERE n=777") == ["0"], "SQLite sees the unpublished commit")
    scene.on_both("SELECT count(*) FROM t WHERE n=777", 0)
    scene.on_both("SELECT count(*) FROM t", 31)


def z_committed_frames_without_salt(scene):
    """savepoint; spill; overwrite in place; rollback to; more; commit: SQLite 3.40 commits frames without salt and
    checksum. While somebody lives they count; when everybody dies, SQLite itself loses the commit, and so do we."""
    writer = scene.hk(*CREATE, "sql CREATE TABLE big(n INTEGER PRIMARY KEY, v BLOB)", insert(1, 10),
                      "sql PRAGMA wal_autocheckpoint=0", "sql PRAGMA cache_size=5")
    scene.synced()
    writer.do("sql BEGIN", "sql SAVEPOINT s",
              "sql WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM s WHERE i<200)"
              " INSERT INTO big SELECT i, randomblob(900) FROM s",
              "sql UPDATE big SET v=randomblob(900) WHERE n>150", "sql UPDATE big SET v=randomblob(900) WHERE n>150",
              "sql ROLLBACK TO s", "sql RELEASE s", "sql INSERT INTO t VALUES(999, 'committed')", "sql COMMIT")
    last = shm_header(scene)[0]
    unsalted = [frame for frame in scene.wal_frames()[:last] if frame[2] == frame[3] == bytes(8)]
    expect(unsalted, "SQLite wrote no frame without salts: the test needs another way to make it")
    before = scene.synced()
    if scene.replica is not None:
        expect(scene.on_replica("SELECT max(n) FROM t") == 999, "the committed transaction was not captured")
    writer.kill()
    lost = scene.hk().sql("SELECT count(*) FROM t WHERE n=999") == ["0"]
    expect(lost, "this SQLite did not lose the commit")
    scene.moved(before)
    scene.on_both("SELECT count(*) FROM t WHERE n=999", 0)
    scene.hk(insert(2001, 2003))
    scene.on_both("SELECT count(*) FROM t", 13)


# ---- rollback journals ----


def rollback_process_dies(scene, mode):
    """Everything is in the database file, the journal is still hot: the transaction never happened. While nobody opens the
    database the node must still be able to give out what it holds."""
    create = (f"sql PRAGMA journal_mode={mode}", *CREATE[1:], insert(1, 10))
    scene.hk(*create).end()
    before = scene.synced()
    dying = scene.hk(f"sql PRAGMA journal_mode={mode}", "sql PRAGMA cache_size=5", "hook 6 die")
    dying.dies(insert(700, 1700))
    with open(scene.backing + "-journal", "rb") as journal:
        expect(journal.read(8) == b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", "the journal is not hot")
    expect(b"row 1700" in open(scene.backing, "rb").read(), "the transaction's pages are not in the database file")
    expect(scene.position() == before, "a transaction with a hot journal was captured")
    if scene.primary is not None:
        image = os.path.join(scene.directory, "hot.image")
        scene.primary.export(scene.name, image)
        connection = sqlite3.connect(image)
        expect(connection.execute("SELECT count(*) FROM t").fetchone()[0] == 10, "the export has uncommitted pages")
        connection.close()
    scene.on_both("SELECT count(*) FROM t", 10)
    scene.hk(f"sql PRAGMA journal_mode={mode}", insert(11, 20))
    scene.on_both("SELECT count(*) FROM t", 20)


def r_delete(scene):
    """journal_mode=DELETE"""
    rollback_process_dies(scene, "DELETE")


def r_truncate(scene):
    """journal_mode=TRUNCATE"""
    rollback_process_dies(scene, "TRUNCATE")


def r_persist(scene):
    """journal_mode=PERSIST"""
    rollback_process_dies(scene, "PERSIST")


def two_databases(scene, *commands):
    other = scene.path_of("other.db")
    scene.hk("sql PRAGMA journal_mode=DELETE", *CREATE[1:]).end()
    scene.hk("sql PRAGMA journal_mode=DELETE", *CREATE[1:], path=other).end()
    both = scene.hk(f"sql ATTACH '{other}' AS other")
    both.do(*commands, "sql BEGIN", insert(1, 5), insert(1, 5).replace("INTO t", "INTO other.t"))
    return both


def s_two_databases(scene):
    """A transaction over two databases arrives without any further event on either."""
    both = two_databases(scene)
    both.do("sql COMMIT")
    for name in ("test.db", "other.db"):
        scene.replica_comes_to("SELECT count(*) FROM t", 5, name)


def s_dies_after_the_super_journal(scene):
    """The super-journal is gone, both journals are still there: committed, in both."""
    two_databases(scene, "hook 6 die").dies("sql COMMIT")
    expect(os.path.exists(scene.backing + "-journal"), "the process did not die before its journals went")
    for name in ("test.db", "other.db"):
        scene.on_both("SELECT count(*) FROM t", 5, name)


CASES = {
    "A": a_unpublished_commit_others_alive,
    "B": b_unpublished_commit_everybody_dead,
    "B2": b2_unpublished_commit_recovered_first,
    "C": c_death_between_header_copies,
    "C-alone": c_death_between_header_copies_alone,
    "D": d_restart_published_header_not_written,
    "K": k_restart_header_written_no_frames,
    "E": e_exclusive_before_first_access,
    "J": j_exclusive_after_first_access,
    "F": f_stale_shm_then_exclusive,
    "F-unix-excl": f_stale_shm_then_unix_excl,
    "F-unix-none": f_stale_shm_then_unix_none,
    "G": g_wal_reset_bug,
    "H": h_persistent_wal,
    "I": i_resurrected_after_persistent_close,
    "I-prime": i_prime_unpublished_frames_at_a_restart,
    "R-delete": r_delete,
    "R-truncate": r_truncate,
    "R-persist": r_persist,
    "S": s_two_databases,
    "S-dies": s_dies_after_the_super_journal,
    "Z": z_committed_frames_without_salt,
}
