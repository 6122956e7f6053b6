"""Hot takeover: workers of a node with a guardian are killed under applications that tolerate nothing."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import unittest

from cases import BINARY, ClusterCase, connect, count, fill, integrity, wait_same_position, wait_until
from nodes import GuardedNode, is_mounted

CLIENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "harness", "takeover_client.py")
SECONDS = float(os.environ.get("SLUICE_TAKEOVER_SECONDS", "6"))
SEED = int(os.environ.get("SLUICE_TAKEOVER_SEED", "1"))


class TakeoverCase(ClusterCase):
    def guarded(self, name, primary=None, extra=()):
        node = GuardedNode(BINARY, self.root, name, primary.url if primary else None, extra)
        self.addCleanup(node.close)
        node.start()
        return node

    def clients(self, directory, *roles):
        """Starts them; returns a function that stops them and gives their reports by role."""
        stop = os.path.join(self.root, "stop")
        running = {}
        for role in roles:
            process = subprocess.Popen([sys.executable, "-B", CLIENT, role, directory, stop], stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True)
            running[role] = process
            self.addCleanup(process.wait, 30)
            self.addCleanup(process.kill)

        def finish():
            self.file("stop")
            reports = {}
            for role, process in running.items():
                out, err = process.communicate(timeout=90)
                reports[role] = json.loads(out) if out else {"errors": [err], "done": 0}
            return reports
        return finish

    def kill_for(self, node, seconds, seed, between=(0.1, 0.3), number=signal.SIGKILL):
        chance = random.Random(seed)
        end = time.monotonic() + seconds
        kills = 0
        while time.monotonic() < end:
            time.sleep(chance.uniform(*between))
            pid = node.kill_worker(number)
            kills += pid is not None
            if pid is not None and chance.random() < 0.7:  # the others are killed while they start
                node.wait_worker(after=pid)
        return kills

    def expect_clean(self, reports, node):
        errors = [error for report in reports.values() for error in report["errors"]]
        self.assertEqual(errors, [], node.log_tail(60))
        self.assertTrue(all(report["done"] > 0 for report in reports.values()), reports)


class Primary(TakeoverCase):
    def test_kills_under_load(self):
        primary = self.guarded("primary")
        replica = self.node("replica", primary)
        replica.wait_ready()
        finish = self.clients(primary.mount, "wal", "wal-full", "delete", "files", "ping", "read")
        kills = self.kill_for(primary, SECONDS, seed=SEED)
        reports = finish()
        summary = {role: (r["done"], r.get("longest_ms")) for role, r in reports.items()}
        print(f"{kills} kills; done, longest ms: {summary}; ping: {reports['ping'].get('pauses_ms', [])[-40:]}")
        self.expect_clean(reports, primary)
        self.assertGreater(kills, 3)
        for database in ("wal.db", "wal-full.db", "delete.db"):
            wait_same_position(primary, replica, database)
            self.assertEqual(count(replica.path(database)), count(primary.path(database)))
            self.assertEqual(integrity(replica.path(database)), "ok")
            primary.verify(database)
        primary.stop()
        self.assertEqual(os.listdir(os.path.join(primary.data, "unlinked")), [])
        for database in ("wal.db", "delete.db"):
            self.assertEqual(integrity(os.path.join(primary.data, "fs", database)), "ok")


class Replica(TakeoverCase):
    def run_with(self, extra):
        primary = self.node("primary")
        replica = self.guarded("replica", primary, extra)
        replica.wait_ready()
        finish_writers = self.clients(primary.mount, "wal", "delete")
        wait_until(lambda: replica.position("wal.db") and replica.position("delete.db"), 30, "the databases are there")
        return primary, replica, finish_writers

    def check(self, primary, replica):
        for database in ("wal.db", "delete.db"):
            wait_same_position(primary, replica, database)
            self.assertEqual(count(replica.path(database)), count(primary.path(database)))
            self.assertEqual(integrity(replica.path(database)), "ok")
            replica.verify(database)
        with open(replica.log_path, encoding="utf-8") as log:
            text = log.read()
        self.assertNotIn("needs a snapshot", text)
        self.assertNotIn("recovering it", text)
        replica.stop()

    def test_readers_go_on(self):
        primary, replica, finish = self.run_with([])
        readers = self.start_readers(replica)
        kills = self.kill_for(replica, SECONDS, seed=SEED)
        reports = finish()
        reports["reader"] = readers()
        print(f"{kills} kills; {[(role, r['done'], r.get('longest_ms')) for role, r in reports.items()]}")
        self.expect_clean(reports, replica)
        self.check(primary, replica)

    def start_readers(self, replica):
        stop = os.path.join(self.root, "stop")
        process = subprocess.Popen([sys.executable, "-B", CLIENT, "read", replica.mount, stop], stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.wait, 30)
        self.addCleanup(process.kill)
        return lambda: json.loads(process.communicate(timeout=60)[0])

    def test_writers_stay_locked_out(self):
        """replica-writes: wait. The locks that keep SQLite from writing are closed in the gap, too."""
        primary, replica, finish = self.run_with(["--replica-writes", "wait"])
        db = connect(replica.path("wal.db"), timeout=0)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            replica.kill_worker()
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                with self.assertRaises(sqlite3.OperationalError) as refused:
                    db.execute("BEGIN IMMEDIATE")
                self.assertIn("locked", str(refused.exception))
        db.close()
        self.expect_clean(finish(), replica)
        self.check(primary, replica)


class Ends(TakeoverCase):
    def write(self, node, rows=10):
        db = connect(node.path("a.db"))
        db.execute("PRAGMA journal_mode=WAL")
        fill(db, rows)
        return db

    def test_a_crash_is_taken_over(self):
        node = self.guarded("primary")
        db = self.write(node)
        for number in (signal.SIGSEGV, signal.SIGABRT):
            before = node.worker()
            node.kill_worker(number)
            fill(db, 10, start=count(node.path("a.db")))
            node.wait_worker(after=before)
        self.assertEqual(count(node.path("a.db")), 30)
        self.assertIn("was killed by signal 11", node.log_tail(60))
        db.close()
        node.stop()

    def test_what_a_client_holds_goes_on(self):
        """Locks, mappings and open transactions."""
        node = self.guarded("primary")
        db = self.write(node)
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES(1000, 'in the middle')")
        other = connect(node.path("a.db"), timeout=0)
        node.kill_worker()
        with self.assertRaises(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
        db.execute("COMMIT")
        self.assertEqual(other.execute("SELECT count(*) FROM t").fetchone()[0], 11)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.close()
        db.close()
        node.stop()
        self.assertEqual(count(os.path.join(node.data, "fs", "a.db")), 11)

    def test_the_way_to_the_mount_point_may_be_a_link(self):
        node = self.guarded("primary")
        node.stop()
        real = node.mount
        os.symlink(self.root, os.path.join(self.root, "link"))
        node.mount = os.path.join(self.root, "link", "primary")
        command = [BINARY, "mount", "--guardian", "--data", node.data, "--listen", f"127.0.0.1:{node.port}", node.mount]
        with open(node.log_path, "ab") as log:
            node.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: node.get("/v1/health")[0] == 200, 30, node.log_tail)
        db = self.write(node)
        before = node.worker()
        node.kill_worker()
        self.assertEqual(count(os.path.join(real, "a.db")), 10, node.log_tail())
        node.wait_worker(after=before)
        db.close()
        node.mount = real
        node.stop()

    def test_receive_buffers_are_resident(self):
        """A process that is killed in a page fault of read(2) fails the request: seldom, so look at what prevents it."""
        node = self.guarded("primary")
        before = node.worker()
        for _ in range(2):
            self.write_files(node)
            with open(f"/proc/{node.worker()}/status", encoding="ascii") as status:
                locked = [int(line.split()[1]) for line in status if line.startswith("VmLck:")]
            self.assertGreaterEqual(locked[0], 1024, "kB, of one worker thread at least")
            node.kill_worker()
            before = node.wait_worker(after=before)
        node.stop()

    def write_files(self, node):
        for i in range(20):
            with open(node.path(f"file{i}"), "wb") as file:
                file.write(b"x" * 100000)
            os.unlink(node.path(f"file{i}"))

    def test_the_guardian_dies_alone(self):
        node = self.guarded("primary")
        db = self.write(node)
        worker = node.worker()
        node.process.kill()
        node.process.wait(30)
        fill(db, 10, start=10)
        wait_until(lambda: "the guardian has died" in node.log_tail(60), 30, "the worker says so")
        db.close()
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda: not is_mounted(node.mount), 30, "the worker stops and unmounts")
        wait_until(lambda: not node.orphans(), 30, "the worker ends")

    def test_both_die(self):
        node = self.guarded("primary")
        db = self.write(node)
        db.close()
        node.kill()
        with self.assertRaises(OSError):
            os.listdir(node.mount)
        node.start()
        self.assertEqual(count(node.path("a.db")), 10)
        node.stop()

    def test_the_application_stays(self):
        node = GuardedNode(BINARY, self.root, "app")
        self.addCleanup(node.close)
        pid_file = os.path.join(self.root, "pid")
        script = f"echo $$ > {pid_file}.t; mv {pid_file}.t {pid_file}; trap 'exit 7' TERM; while :; do sleep 0.05; done"
        command = [BINARY, "mount", "--guardian", "--data", node.data, "--listen", f"127.0.0.1:{node.port}", node.mount,
                   "--", "sh", "-c", script]
        with open(node.log_path, "wb") as log:
            node.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: os.path.exists(pid_file), 30, lambda: f"the application starts\n{node.log_tail()}")
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read())
        before = node.worker()
        node.kill_worker()
        node.wait_worker(after=before)
        os.kill(pid, 0)  # it lives
        node.process.send_signal(signal.SIGTERM)
        self.assertEqual(node.process.wait(30), 7, node.log_tail())
        self.assertFalse(is_mounted(node.mount))


class Upgrade(TakeoverCase):
    def setUp(self):
        super().setUp()
        self.program = os.path.join(self.root, "sluice")
        shutil.copy(BINARY, self.program)

    def replace_program(self, by):
        shutil.copy(by, self.program + ".new")
        os.rename(self.program + ".new", self.program)

    def test_another_program_takes_over(self):
        node = GuardedNode(self.program, self.root, "primary")
        self.addCleanup(node.close)
        node.start()
        db = connect(node.path("a.db"))
        fill(db, 10)
        before = node.worker()
        self.replace_program(BINARY)
        out, _ = self.sluice("upgrade", "--url", node.url)
        self.assertIn(f"took over from {before}", out)
        self.assertEqual(os.readlink(f"/proc/{node.worker()}/exe"), self.program)
        fill(db, 10, start=10)
        db.close()
        # SIGUSR2, and a program that cannot take over: the one before goes on.
        before = node.worker()
        self.replace_program("/bin/false")
        node.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: "no upgrade" in node.log_tail(), 30, node.log_tail)
        self.assertEqual(node.worker(), before)
        self.assertEqual(count(node.path("a.db")), 20)
        node.kill_worker()  # and is started again, although its path has another program now
        self.assertEqual(count(node.path("a.db")), 20)
        node.wait_worker(after=before)
        node.stop()


if __name__ == "__main__":
    unittest.main()
