"""Where the benchmark plays: three directories on one file system (raw, a mount alone, a mount with a replica), worker
processes, and what is read off the nodes from outside: positions, FUSE requests, CPU time, memory."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "harness"))
from nodes import DIE_WITH_PARENT, Node, TestFailure, use_io_path, wait_until  # noqa: E402,F401

NOBODY = 65534
TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """One bench_worker; see worker/main.cc. A context manager: kills what is still running."""

    def __init__(self, stage, command, **values):
        words = [f"{name}={value}" for name, value in values.items()]
        self.what = " ".join([command] + words)
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(DIE_WITH_PARENT + [stage.worker, command] + words, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.errors)
        self.pending = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()

    def failure(self, why):
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip()
        return TestFailure(f"worker '{self.what}' {why}" + (f": {said}" if said else ""))

    def line(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\n" not in self.pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise self.failure(f"says nothing for {seconds:g} s")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise self.failure(f"ended with {self.process.wait(30)}")
            self.pending += data
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode()

    def say(self, word):
        try:
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError as broken:
            raise self.failure("is gone") from broken

    def ready(self, seconds=120):
        line = self.line(seconds)
        if line != "ready":
            raise self.failure(f"says '{line}', not 'ready'")

    def go(self):
        self.say("go")

    def result(self, seconds=600):
        return json.loads(self.line(seconds))

    def quit(self, seconds=120):
        self.say("quit")
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired as late:
            raise self.failure(f"does not end within {seconds} s") from late
        if code != 0:
            raise self.failure(f"ended with {code}")

    def run(self, seconds=600):
        """All steps of the handshake with nothing in between."""
        self.ready()
        self.go()
        result = self.result(seconds)
        self.quit()
        return result

    def cpu_seconds(self):
        """Of the process and its helpers."""
        pid = self.process.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
                helpers = [int(word) for word in file.read().split()]
        except OSError:
            helpers = []
        return sum(process_cpu_seconds(one) for one in [pid] + helpers)


def process_cpu_seconds(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def machine_busy_seconds():
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def memory_of(pid):
    """Peak and present resident memory in MB (10^6 bytes), from /proc/PID/status."""
    values = {}
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem"):
                values[name] = int(rest.split()[0]) * 1024 / 1e6
    return values


class Target:
    """A directory that workloads run in. `primary` and `replica` are nodes or None."""

    def __init__(self, name, directory, primary=None, replica=None):
        self.name = name
        self.directory = directory
        self.primary = primary
        self.replica = replica

    def path(self, database):
        return os.path.join(self.directory, database)

    def nodes(self):
        return [node for node in (self.primary, self.replica) if node]

    def captured(self, database):
        """The primary's position with all that is committed."""
        want = self.primary.position(database)
        if not want:
            raise TestFailure(f"{self.primary.name} has no position for {database}\n{self.primary.log_tail()}")
        return want

    def settle(self, database, seconds=300):
        """Waits until everything committed is where it is to go. Returns time.monotonic_ns() of that moment."""
        if self.primary:
            want = self.captured(database)
            if self.replica:
                wait_position(self.replica, database, want, seconds)
        return time.monotonic_ns()

    def remove(self, database, seconds=60):
        for suffix in ("", "-wal", "-shm", "-journal"):
            try:
                os.unlink(self.path(database) + suffix)
            except FileNotFoundError:
                pass
        if self.replica:
            copy = self.replica.path(database)
            wait_until(lambda: not os.path.exists(copy), seconds, f"{copy} goes after its deletion on the primary")


def wait_position(node, database, want, seconds):
    wait_until(lambda: node.position(database) == want, seconds, interval=0.001,
               what=lambda: f"{database}: {node.name} at {node.position(database) or 'nothing'}, not at {want}\n{node.log_tail()}")


def fuse_requests(node):
    """Counter of /metrics by opcode."""
    code, body = node.get("/metrics")
    if code != 200:
        raise TestFailure(f"{node.name}: /metrics answers {code}")
    counts = {}
    for line in body.decode().splitlines():
        if line.startswith("sluice_fuse_requests_total{"):
            labels, value = line.rsplit(" ", 1)
            counts[labels.split('opcode="', 1)[1].split('"', 1)[0]] = float(value)
    if not counts:
        raise TestFailure(f"{node.name}: no sluice_fuse_requests_total in /metrics")
    return counts


def database_bytes(node):
    """Size of each database that has content, by name."""
    return {d["name"]: d["bytes"] for d in node.status()["databases"] if d["pages"] != 0}


class Stage:
    """A context manager: at the end, also of a failure, every process it started is gone, nothing is mounted, and the
    directory is removed (unless options.keep)."""

    def __init__(self, options):
        self.binary = options.binary
        self.worker = options.worker
        self.keep = options.keep
        self.parent = options.dir
        self.root = None
        self.targets = {}
        self.nodes = []
        self.fixture_rows = {}  # (target, database): rows

    def __enter__(self):
        self.root = tempfile.mkdtemp(prefix="sluice-bench-", dir=self.parent)
        os.chmod(self.root, 0o755)  # for the runs as another user
        return self

    def __exit__(self, kind, *_):
        problems = []
        for node in reversed(self.nodes):
            try:
                if kind is None and node.alive():
                    node.stop()
            except TestFailure as failure:
                problems.append(str(failure))
            try:
                node.close()
            except (TestFailure, subprocess.SubprocessError, OSError) as failure:
                problems.append(f"closing {node.name}: {failure}")
        if self.keep or problems:
            print(f"kept: {self.root}", file=sys.stderr)
        else:
            shutil.rmtree(self.root, ignore_errors=True)
        if problems and kind is None:
            raise TestFailure("\n".join(problems))
        for problem in problems:
            print(problem, file=sys.stderr)

    def start_node(self, name, primary=None):
        node = Node(self.binary, self.root, name, primary.url if primary else None, ["--allow-other"])
        self.nodes.append(node)
        node.start()
        node.wait_ready()
        return node

    def stop_node(self, node):
        """Stops it and removes its data."""
        node.stop()
        self.nodes.remove(node)
        shutil.rmtree(node.data)

    def target(self, name):
        """raw, mount, replica: started when first asked for."""
        if name not in self.targets:
            if name == "raw":
                target = Target(name, os.path.join(self.root, "raw"))
                os.makedirs(target.directory)
            else:
                primary = self.start_node("alone" if name == "mount" else "primary")
                replica = self.start_node("replica", primary) if name == "replica" else None
                target = Target(name, primary.mount, primary, replica)
            nobody = target.path("nobody")
            os.mkdir(nobody)
            os.chown(nobody, NOBODY, NOBODY)
            self.targets[name] = target
        return self.targets[name]

    def check(self, path, rows, quick_check=False):
        """The database at `path` has exactly `rows` rows, numbered without a gap."""
        with Worker(self, "check", path=path, quick_check=int(quick_check)) as worker:
            result = worker.result()
            worker.quit()
        if result["rows_total"] != rows or result["max_id"] != rows:
            raise TestFailure(f"{path} has {result['rows_total']} rows up to {result['max_id']}, not {rows}")
        if quick_check and result["quick_check"] != "ok":
            raise TestFailure(f"{path}: quick_check says {result['quick_check']}")



def stop_on_signals():
    """SIGTERM as SIGINT: through the context managers."""
    def interrupt(_number, _frame):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, interrupt)
