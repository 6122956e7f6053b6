"""The torture's worker processes as the orchestrator sees them."""

import os
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "harness"))
from nodes import DIE_WITH_PARENT, TestFailure, wait_until  # noqa: E402


class Client:
    """One worker process; start() after a kill gives it the next seed of its own sequence."""

    def __init__(self, worker, name, role, node, targets, directory, seed, writer=0, gentle=False):
        self.worker = worker
        self.name = name
        self.role = role
        self.node = node  # 0: primary, 1: replica
        self.targets = targets  # "ID:PROFILE:PATH"
        self.directory = directory
        self.seed = seed
        self.writer = writer
        self.gentle = gentle  # never killed alone, only together with its daemon
        self.starts = 0
        self.process = None
        self.lock = threading.Lock()
        self.paused = threading.Event()
        self.said_bye = False
        self.reports = []  # (kind, time_ns, text)
        self.done = 0
        self.busy = 0
        self.odd = 0
        self.total_done = 0
        self.total_busy = 0
        self.total_odd = 0
        self.moved_at = time.monotonic()
        self.killed = False

    def running(self):
        return self.process is not None and self.process.poll() is None

    def start(self):
        self.starts += 1
        self.paused.clear()
        self.said_bye = self.killed = False
        self.moved_at = time.monotonic()
        # Every start has a trail of its own: the killed ones are the interesting ones.
        trail = os.path.join(self.directory, "trails", f"{self.name}.{self.starts}")
        command = [self.worker, self.role, "--seed", str(hash_seed(self.seed, self.name, self.starts)),
                   "--writer", str(self.writer), "--node", str(self.node),
                   "--ledgers", os.path.join(self.directory, "ledgers"), "--trail", trail,
                   "--scratch", os.path.join(self.directory, "scratch")] + self.targets
        with open(os.path.join(self.directory, "workers.log"), "ab") as log:
            self.process = subprocess.Popen(DIE_WITH_PARENT + command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=log)
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()

    def _listen(self, process):
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            word, _, rest = line.partition(" ")
            if word == "paused":
                self.paused.set()
            elif word == "bye":
                self.said_bye = True
            elif word == "stat":
                self._stat(rest)
            elif word in ("sql", "violation"):
                when, _, text = rest.partition(" ")
                with self.lock:
                    self.reports.append((word, int(when), text))

    def _stat(self, rest):
        values = dict(pair.split("=") for pair in rest.split())
        done = int(values["done"])
        if done != self.done:
            self.moved_at = time.monotonic()
        self.done, self.busy, self.odd = done, int(values["busy"]), int(values["odd"])

    def take_reports(self):
        with self.lock:
            taken, self.reports = self.reports, []
        return taken

    def send(self, word):
        try:
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it ended; whoever looks at the exit code says so

    def pause(self):
        self.paused.clear()
        self.send("pause")

    def wait_paused(self, seconds=90):
        def there():
            return self.paused.is_set() or not self.running()
        wait_until(there, seconds, f"{self.name} (pid {self.process.pid}) pauses")

    def resume(self):
        self.moved_at = time.monotonic()
        self.paused.clear()
        self.send("resume")

    def _sum_up(self):
        self.total_done += self.done
        self.total_busy += self.busy
        self.total_odd += self.odd
        self.done = self.busy = self.odd = 0

    def kill(self):
        """SIGKILL and gone."""
        if self.process is None:
            return
        self.killed = True
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired as late:
            raise TestFailure(f"{self.name} (pid {self.process.pid}) survives SIGKILL") from late
        self._sum_up()

    def quit(self, seconds=90):
        """Ends it in an orderly way."""
        if self.process is None or self.killed:
            return
        self.send("quit")
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired as late:
            raise TestFailure(f"{self.name} (pid {self.process.pid}) does not quit") from late
        if code != 0:
            raise TestFailure(f"{self.name} ended with {code}")
        self.killed = True
        self._sum_up()


def hash_seed(*parts):
    """A 63-bit number from anything; the same on every machine."""
    value = 0xcbf29ce484222325
    for byte in "/".join(str(part) for part in parts).encode():
        value = (value ^ byte) * 0x100000001b3 & 0xFFFFFFFFFFFFFFFF
    return value >> 1
