"""What the counter-examples share: hk processes, two nodes (or a plain directory), and the verdict at the end."""

import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "harness"))
from nodes import (DIE_WITH_PARENT, Node, TestFailure, first_difference, wait_same_position,  # noqa: E402
                   wait_until)

REPLY_SECONDS = 60


def expect(condition, text):
    if not condition:
        raise TestFailure(text)


class Hk:
    """A connection in a process of its own; see hk.c for the commands."""

    def __init__(self, program, path, *commands, vfs=""):
        self.process = subprocess.Popen(DIE_WITH_PARENT + [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1)
        self.do(f"open {path} {vfs}".strip())
        self.do(*commands)

    def _talk(self, line, until):
        """Sends a line; returns the answer's lines up to one that starts with a word of `until` (None: end of file)."""
        previous = signal.signal(signal.SIGALRM, self._late)
        signal.alarm(REPLY_SECONDS)
        try:
            self.process.stdin.write(line + "\n")
            lines = []
            for answer in self.process.stdout:
                lines.append(answer.rstrip("\n"))
                if lines[-1].split(" ")[0] in until:
                    return lines
            return lines + ["eof"]
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)

    @staticmethod
    def _late(*_):
        raise TestFailure(f"a SQLite process did not answer in {REPLY_SECONDS} s")

    def do(self, *commands):
        """Runs commands that must succeed; returns the rows of the last."""
        rows = []
        for command in commands:
            lines = self._talk(command, ("done",))
            for line in lines:
                expect(not line.startswith(("error", "eof")), f"{command}: {line}")
            rows = [line[4:] for line in lines if line.startswith("row ")]
        return rows

    def sql(self, text):
        return self.do("sql " + text)

    def error(self, command):
        """Extended result code of a command, 0 if it succeeded."""
        for line in self._talk(command, ("done",)):
            if line.startswith("error "):
                return int(line.split()[1])
        return 0

    def dies(self, command):
        """Runs a command in which an armed hook ends the process."""
        lines = self._talk(command, ("done", "hook"))
        expect(lines[-1] == "eof" and self.process.wait(30) == 9, f"{command}: the hook was not reached: {lines}")

    def stops(self, command):
        """Runs a command up to an armed waiting hook."""
        lines = self._talk(command, ("done", "hook"))
        expect(lines[-1].startswith("hook"), f"{command}: the hook was not reached: {lines}")

    def goes_on(self):
        """From the hook to the end of the command; its error code or 0."""
        for line in self._talk("go", ("done",)):
            if line.startswith("error "):
                return int(line.split()[1])
        return 0

    def kill(self):
        self.process.kill()
        self.process.wait(30)

    def end(self):
        """Closes the connection and waits for the process."""
        self.process.stdin.close()
        expect(self.process.wait(60) == 0, "hk did not end well")


class Scene:
    """A primary with a replica attached (or, with binary None, one plain directory) and the database test.db; a case may
    use others beside it."""

    name = "test.db"

    def __init__(self, hk_program, binary):
        self.hk_program = hk_program
        self.directory = tempfile.mkdtemp(prefix="sluice-ce-")
        self.processes = []
        self.primary = self.replica = None
        self.succeeded = False
        self.names = [self.name]
        if binary is None:
            self.path = os.path.join(self.directory, self.name)
            self.backing = self.path
            return
        self.primary = Node(binary, self.directory, "primary")
        self.replica = Node(binary, self.directory, "replica", self.primary.url)
        self.path = self.primary.path(self.name)
        self.backing = os.path.join(self.primary.data, "fs", self.name)

    def __enter__(self):
        try:
            if self.primary is not None:
                self.primary.start()
                self.replica.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for hk in self.processes:
            hk.kill()
        if self.primary is not None:
            for node in (self.replica, self.primary):
                node.close()
        if self.succeeded:
            shutil.rmtree(self.directory)
        else:
            print(f"kept {self.directory}", flush=True)

    def hk(self, *commands, vfs="", path=None):
        hk = Hk(self.hk_program, path or self.path, *commands, vfs=vfs)
        self.processes.append(hk)
        return hk

    def path_of(self, name):
        """A database's path on the primary; the verdict will cover it."""
        if name not in self.names:
            self.names.append(name)
        return os.path.join(os.path.dirname(self.path), name)

    def position(self):
        """The primary's position; asking captures what is committed now."""
        return self.primary.position(self.name) if self.primary is not None else ""

    def synced(self, name=name):
        """Waits until the replica is where the primary is, and returns that position."""
        return wait_same_position(self.primary, self.replica, name) if self.primary is not None else ""

    def on_replica(self, sql, name=name):
        """First value of a query on the replica ('' with a plain directory)."""
        if self.replica is None:
            return ""
        connection = sqlite3.connect(f"file:{self.replica.path(name)}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(sql).fetchone()[0]
        finally:
            connection.close()

    def replica_comes_to(self, sql, value, name=name):
        """The replica shows the value in time, though nobody asks the primary for anything."""
        if self.replica is not None:
            wait_until(lambda: self.replica.position(name) != "", 30, f"{name} is on the replica")
            wait_until(lambda: self.on_replica(sql, name) == value, 30,
                       lambda: f"{sql} is {value} in the replica's {name}, it is {self.on_replica(sql, name)}")

    def on_both(self, sql, value, name=name):
        """The query's first value is `value` on the primary and, when it has caught up, on the replica."""
        rows = self.hk(path=self.path_of(name)).sql(sql)
        expect(rows == [str(value)], f"primary: {sql} gives {rows}, not {value}")
        if self.replica is not None:
            self.synced(name)
            got = self.on_replica(sql, name)
            expect(str(got) == str(value), f"replica: {sql} gives {got}, not {value}")

    def wal_frames(self):
        """(salt, checksum part) headers of all frames in the WAL's file: [(pgno, commit, salts, checksum), …]."""
        with open(self.backing + "-wal", "rb") as file:
            data = file.read()
        page_size = struct.unpack(">I", data[8:12])[0]
        at = range(32, len(data) - page_size - 23, page_size + 24)
        return [(*struct.unpack(">II", data[o:o + 8]), data[o + 8:o + 16], data[o + 16:o + 24]) for o in at]

    def verdict(self):
        """Everybody gone: both nodes' exports are equal, sound, and what the primary's applications see."""
        for hk in self.processes:
            hk.kill()
        for name in self.names:
            self.judge(name)
        self.succeeded = True

    def judge(self, name):
        last = self.hk(path=self.path_of(name))
        want = last.sql("SELECT * FROM t ORDER BY 1") if self.has_table(last) else []
        expect(last.sql("PRAGMA integrity_check") == ["ok"], f"the primary's {name} is damaged")
        last.end()
        if self.primary is None:
            return
        self.synced(name)
        images = []
        for node in (self.primary, self.replica):
            image = os.path.join(self.directory, f"{node.name}-{name}.image")
            node.export(name, image)
            node.verify(name)
            images.append(image)
        difference = first_difference(*images)
        expect(difference is None, f"the nodes' exports of {name} differ: {difference}")
        for path in images + [self.replica.path(name)]:
            connection = sqlite3.connect(path, timeout=10)
            expect(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok", f"{path} is damaged")
            rows = ["|".join("NULL" if v is None else str(v) for v in row)
                    for row in connection.execute("SELECT * FROM t ORDER BY 1")] if want else []
            connection.close()
            expect(rows == want, f"{path} has {len(rows)} rows, the primary {len(want)}; they are not the same")

    @staticmethod
    def has_table(hk):
        return hk.sql("SELECT count(*) FROM sqlite_schema WHERE name='t'") == ["1"]

    def moved(self, before):
        """Waits until the primary's position is another one."""
        if self.primary is not None:
            wait_until(lambda: self.position() != before, 30, f"the position moves on from {before}")
