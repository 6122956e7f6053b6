"""SQLite's own stress and speed programs, unmodified, on a primary's mount with a replica attached; then both nodes are
compared.

    tests/sqlite_suite [--binary build/release/sluice] [--small] [--raw] [NAME-PREFIX…]

mptester (config01, config02, crash01, multiwrite…), threadtest3, speedtest1 and kvtest come from Debian's source package,
built at test time. Prints a table; exit code 0 if every program passed and the nodes are equal after each.
"""

import argparse
import glob
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "harness"))
import sqlite_source  # noqa: E402
from nodes import (DIE_WITH_PARENT, Node, TestFailure, end_on_signals, first_difference,  # noqa: E402
                   wait_same_position, wait_until)

MODES = ("wal", "delete")
THREAD_TESTS_SMALL = ["walthread5", "cgt_pager_1", "vacuum1", "create_drop_index_1", "checkpoint_starvation_1"]
THREAD_TESTS = THREAD_TESTS_SMALL + ["walthread1", "walthread2", "walthread3", "walthread4", "dynamic_triggers",
                                     "checkpoint_starvation_2", "lookaside1", "stress1", "stress2", "shared1"]


class Programs:
    def __init__(self, cache):
        self.source = sqlite_source.prepare(cache)
        sources = os.path.join(self.source, "test")
        self.mptester = sqlite_source.program(cache, "mptester", [os.path.join(self.source, "mptest", "mptest.c")])
        self.threadtest3 = sqlite_source.program(
            cache, "threadtest3", [os.path.join(sources, "threadtest3.c"), os.path.join(self.source, "src", "test_multiplex.c")],
            ["-I", os.path.join(self.source, "src"), "-I", sources])
        self.speedtest1 = sqlite_source.program(cache, "speedtest1", [os.path.join(sources, "speedtest1.c")])
        self.kvtest = sqlite_source.program(cache, "kvtest", [os.path.join(sources, "kvtest.c")])


def end_session(process):
    """Kills what is left of the process's session and waits until it is gone."""
    def gone():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return True
        process.poll()
        return False
    wait_until(gone, 30, "the program's processes die")


class Suite:
    def __init__(self, options, programs, directory):
        self.options = options
        self.programs = programs
        self.directory = directory
        self.rows = []
        self.primary = self.replica = None
        self.root = os.path.join(directory, "raw")
        os.makedirs(self.root)

    def start(self):
        if self.options.raw:
            return
        self.primary = Node(self.options.binary, self.directory, "primary")
        self.replica = Node(self.options.binary, self.directory, "replica", self.primary.url)
        self.primary.start()
        self.replica.start()
        self.root = self.primary.mount

    def close(self):
        for node in (self.replica, self.primary):
            if node is not None:
                node.close()

    def run(self, name, command, seconds=900):
        """One row of the table: runs the program with a directory of its own on the mount as its current directory."""
        if self.options.only and not any(name.startswith(prefix) for prefix in self.options.only):
            return
        folder = os.path.join(self.root, name.replace(" ", "-").replace("/", "-"))
        os.makedirs(folder)
        began = time.monotonic()
        log_path = os.path.join(self.directory, os.path.basename(folder) + ".log")
        with open(log_path, "wb") as log:
            # mptester's clients are its background processes: a session of their own, so that none outlives the row.
            process = subprocess.Popen(DIE_WITH_PARENT + command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=log, start_new_session=True)
            try:
                code = process.wait(seconds)
                verdict = "passed" if code == 0 else f"exit code {code}, see {log_path}"
            except subprocess.TimeoutExpired:
                verdict = f"not done in {seconds} s, see {log_path}"
            finally:
                end_session(process)
        took = time.monotonic() - began
        nodes = "-"
        if self.primary is not None:
            try:
                nodes = f"{self.compare()} equal"
            except TestFailure as failure:
                nodes = f"DIFFER: {failure}"
        self.rows.append((name, verdict, f"{took:.1f} s", nodes))
        print(f"{name:38} {verdict:10} {took:7.1f} s   {nodes}", flush=True)

    def databases(self, root):
        found = []
        for folder, _, files in os.walk(root):
            for name in files:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    if file.read(16) == b"SQLite format 3\0":
                        found.append(os.path.relpath(path, root))
        return sorted(found)

    def compare(self):
        """Number of databases compared; TestFailure if the nodes are not equal."""
        names = self.databases(self.primary.mount)
        wait_until(lambda: self.databases(self.replica.mount) == names, 120,
                   lambda: f"databases on the replica {self.databases(self.replica.mount)}, on the primary {names}")
        for name in names:
            wait_same_position(self.primary, self.replica, name, 120)
            images = [os.path.join(self.directory, node.name + ".image") for node in (self.primary, self.replica)]
            for node, image in zip((self.primary, self.replica), images):
                node.export(name, image)
                node.verify(name)
            difference = first_difference(*images)
            if difference:
                raise TestFailure(f"{name}: {difference}")
            for path in images + [self.replica.path(name)]:
                connection = sqlite3.connect(path, timeout=10)
                result = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
                connection.close()
                if result != "ok":
                    raise TestFailure(f"{path} ({name}): {result}")
        for node in (self.primary, self.replica):
            if not node.alive():
                raise TestFailure(f"the {node.name} is gone\n{node.log_tail()}")
        return len(names)

    def everything(self):
        small = self.options.small
        repeat = "1" if small else "10"
        for mode in MODES:
            for script in self.multi_process_scripts(mode):
                name = os.path.basename(script).removesuffix(".test")
                self.run(f"mptester {name} {mode}", [self.programs.mptester, "mptest.db", script, "--journalmode", mode,
                                                     "--repeat", repeat, "--timeout", "120000"])
            size = "10" if small else "100"
            self.run(f"speedtest1 {mode}", [self.programs.speedtest1, "--journal", mode, "--size", size, "--verify",
                                            "--shrink-memory", "speed.db"])
            self.key_value(mode)
        for test in THREAD_TESTS_SMALL if small else THREAD_TESTS:
            self.run(f"threadtest3 {test}", [self.programs.threadtest3, test])

    def multi_process_scripts(self, mode):
        """mptester's scripts. config01 and config02 are written for rollback modes: in WAL their tasks may not set another
        mode and VACUUM keeps the page size, on a plain directory too; without those lines they run in WAL."""
        folder = os.path.join(self.directory, "scripts-" + mode)
        shutil.copytree(os.path.join(self.programs.source, "mptest"), folder)
        scripts = sorted(glob.glob(os.path.join(folder, "*.test")))
        for script in scripts if mode == "wal" else []:
            with open(script, encoding="utf-8") as file:
                text = file.read()
            text = re.sub(r"^ *PRAGMA journal_mode=\w+;\n", "", text, flags=re.M)
            text = re.sub(r"^--match( \d+)\1{4}\n", "", text, flags=re.M)
            with open(script, "w", encoding="utf-8") as file:
                file.write(text)
        return scripts

    def key_value(self, mode):
        count, rounds = ("500", "2000") if self.options.small else ("5000", "20000")
        program = self.programs.kvtest
        script = (f'set -e; "{program}" init kv.db --count {count} --size 12000 --variance 5000;'
                  f' sqlite3 kv.db "PRAGMA journal_mode={mode}";'
                  f' "{program}" run kv.db --count {rounds} --random --stats;'
                  f' "{program}" run kv.db --count {rounds} --random --update --multitrans;'
                  f' "{program}" run kv.db --count {rounds} --desc --blob-api --mmap 268435456;'
                  ' sqlite3 kv.db "PRAGMA integrity_check" | grep -qx ok')
        self.run(f"kvtest {mode}", ["sh", "-c", script])


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tests/sqlite_suite", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(sqlite_source.TOP, "build/release/sluice"))
    parser.add_argument("--cache", default=sqlite_source.DEFAULT_CACHE)
    parser.add_argument("--small", action="store_true", help="a few minutes instead of half an hour")
    parser.add_argument("--raw", action="store_true", help="a plain directory: what SQLite does without Sluice")
    parser.add_argument("only", nargs="*", metavar="NAME-PREFIX")
    return parser.parse_args()


def main():
    options = parse_arguments()
    end_on_signals()
    cache = os.path.abspath(options.cache)
    try:
        with sqlite_source.Locked(cache):
            programs = Programs(cache)
    except sqlite_source.SourceError as error:
        print(f"cannot build SQLite's test programs: {error}", file=sys.stderr)
        return 1
    directory = tempfile.mkdtemp(prefix="sluice-suite-")
    suite = Suite(options, programs, directory)
    failed = False
    try:
        suite.start()
        suite.everything()
    except TestFailure as failure:
        print(f"FAILED: {failure}")
        failed = True
    finally:
        suite.close()
    failed = failed or not suite.rows or any(row[1] != "passed" or row[3].startswith("DIFFER") for row in suite.rows)
    print(f"{len(suite.rows)} programs, {'FAILED' if failed else 'all passed'}")
    if failed:
        print(f"kept {directory}")
    else:
        shutil.rmtree(directory)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
