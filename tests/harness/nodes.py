"""Sluice nodes as processes, for tests that drive them from outside: start, kill, stop, unmount, ask.

Every wait has a deadline and ends in TestFailure. close() kills by pid and unmounts, whatever state the node is in.
"""

import array
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse


class TestFailure(Exception):
    """A broken promise, or a step that did not finish in time."""


def end_on_signals():
    """SIGTERM and SIGHUP end the test like a failure: what was started is cleaned up."""
    def raise_failure(number, _frame):
        raise TestFailure(f"ended by signal {number}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, raise_failure)


# In front of a command: the kernel kills the process when the thread that started it ends.
DIE_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"]


# The I/O path that every node takes: "native", "plain", "auto"; empty: the node's own default.
IO_PATH = os.environ.get("SLUICE_TEST_IO", "")


def use_io_path(path):
    """For programs that take --io themselves; before the first Node is made."""
    global IO_PATH  # pylint: disable=global-statement
    IO_PATH = path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(condition, seconds, what, interval=0.01):
    """Returns the first true value of condition(); TestFailure after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TestFailure(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(interval)


def is_mounted(path):
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return any(line.split(" ")[1] == path.replace(" ", "\\040") for line in mounts)


def detach(path):
    """umount -l, until nothing is mounted there any more."""
    while is_mounted(path):
        tool = ["umount", "-l", path] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", path]
        subprocess.run(tool, check=True, capture_output=True, timeout=30)


def make_mutable(directory):
    """Files of fenced processes are immutable until these have ended and the node has noticed: then nobody could remove them."""
    get_flags, set_flags, immutable = 0x80086601, 0x40086602, 0x10
    for folder, _, names in os.walk(directory):
        for name in names:
            if name != "wal" and not name.endswith("-wal"):
                continue
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                flags = array.array("L", [0])
                fcntl.ioctl(descriptor, get_flags, flags)
                if flags[0] & immutable:
                    flags[0] &= ~immutable
                    fcntl.ioctl(descriptor, set_flags, flags)
            except OSError:
                pass  # a file system without such flags
            finally:
                os.close(descriptor)


class Node:
    """One `sluice mount`. `primary_url` makes it a replica, `user` (a number) has it run without rights."""

    def __init__(self, binary, root, name, primary_url=None, extra=(), user=None):
        self.binary = os.path.abspath(binary)
        self.name = name
        self.data = os.path.join(root, name + "-data")
        self.mount = os.path.join(root, name)
        self.log_path = os.path.join(root, name + ".log")
        self.port = free_port()
        self.primary_url = primary_url
        self.extra = list(extra)
        if IO_PATH and "--io" not in self.extra:
            self.extra += ["--io", IO_PATH]
        self.process = None
        self.peak_rss_kb = 0
        self.prefix = DIE_WITH_PARENT
        for directory in (self.data, self.mount):
            os.makedirs(directory, exist_ok=True)
            if user is not None:
                os.chown(directory, user, user)
        if user is not None:
            self.prefix = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups", *DIE_WITH_PARENT[1:]]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def path(self, database):
        return os.path.join(self.mount, database)

    def start(self, seconds=60):
        """Starts the daemon and waits until it serves the mount and its API. Replaces the mount that kill() left."""
        command = [self.binary, "mount", "--data", self.data, "--listen", f"127.0.0.1:{self.port}"]
        if self.primary_url:
            command += ["--primary-url", self.primary_url]
        command += self.extra + [self.mount]
        with open(self.log_path, "ab") as log:
            log.write(f"==== {time.monotonic():.6f} {' '.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(self.prefix + command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def serving():
            if self.process.poll() is not None:
                raise TestFailure(f"{self.name} ended with {self.process.returncode} at its start:\n{self.log_tail()}")
            return is_mounted(self.mount) and self.get("/v1/health")[0] == 200

        wait_until(serving, seconds, lambda: f"{self.name} serves\n{self.log_tail()}")

    def wait_ready(self, seconds=60):
        wait_until(lambda: self.get("/v1/ready")[0] == 200, seconds, f"{self.name} ready")

    def alive(self):
        if self.process is None or self.process.poll() is not None:
            return False
        try:
            with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as status:
                for line in status:
                    if line.startswith("VmHWM:"):
                        self.peak_rss_kb = max(self.peak_rss_kb, int(line.split()[1]))
        except OSError:
            pass
        return True

    def kill(self):
        """SIGKILL. The mount stays behind, dead; see start() and detach_dead()."""
        if self.process is not None and self.process.poll() is None:
            self.alive()
            self.process.kill()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired as late:
                raise TestFailure(f"{self.name} (pid {self.process.pid}) survives SIGKILL") from late

    def detach_dead(self):
        detach(self.mount)

    def stop(self, seconds=60):
        """SIGTERM; must end with exit code 0 and nothing mounted."""
        self.alive()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired as late:
            raise TestFailure(f"{self.name} did not end {seconds} s after SIGTERM\n{self.log_tail()}") from late
        if code != 0:
            raise TestFailure(f"{self.name} ended with {code} after SIGTERM\n{self.log_tail()}")
        if is_mounted(self.mount):
            raise TestFailure(f"{self.name} left its mount behind")

    def close(self):
        try:
            self.kill()
        finally:
            detach(self.mount)
            make_mutable(self.data)

    def diagnose(self):
        """Writes what can be learned of a living daemon beside its log: status, metrics, stacks (if there is a gdb)."""
        if self.process is None or self.process.poll() is not None:
            return
        base = self.log_path.removesuffix(".log")
        for what in ("status", "metrics"):
            code, body = self.get("/v1/status" if what == "status" else "/metrics", seconds=10)
            with open(f"{base}.{what}", "wb") as file:
                file.write(body if code == 200 else b"no answer\n")
        if shutil.which("gdb"):
            with open(f"{base}.stacks", "wb") as file:
                subprocess.run(["gdb", "-p", str(self.process.pid), "-batch", "-ex", "thread apply all backtrace"],
                               stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, timeout=120, check=False)

    def log_tail(self, lines=30):
        try:
            with open(self.log_path, encoding="utf-8", errors="replace") as log:
                return "".join(log.readlines()[-lines:])
        except OSError:
            return ""

    def request(self, method, path, sink=None, seconds=60):
        """(status, body); with `sink` a 200's body goes there. Status 0: nobody answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            if sink is None or response.status != 200:
                return response.status, response.read()
            while chunk := response.read(1 << 20):
                sink.write(chunk)
            return 200, b""
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error).encode()
        finally:
            connection.close()

    def get(self, path, seconds=60):
        return self.request("GET", path, seconds=seconds)

    def status(self):
        code, body = self.get("/v1/status")
        if code != 200:
            raise TestFailure(f"{self.name}: /v1/status answers {code} {body[:200]!r}")
        return json.loads(body)

    def position(self, database):
        """Content of X-pos ("TXID/checksum"), '' if there is no such database. Reading captures what is committed."""
        try:
            with open(self.path(database) + "-pos", encoding="ascii") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    def export(self, database, target):
        """Writes an image of the database; the export of a database that is not there is a TestFailure."""
        with open(target, "wb") as sink:
            code, body = self.request("GET", f"/v1/databases/{urllib.parse.quote(database, safe='')}/export", sink)
        if code != 200:
            raise TestFailure(f"{self.name}: export of {database} answers {code} {body[:300]!r}")

    def verify(self, database):
        """The node's own scrub: every page against its checksum."""
        code, body = self.request("POST", f"/v1/databases/{urllib.parse.quote(database, safe='')}/verify")
        if code != 200:
            raise TestFailure(f"{self.name}: verify of {database} answers {code} {body[:300]!r}")
        return body


def wait_same_position(primary, replica, database, seconds=60):
    """Captures on the primary, then waits until the replica stands at the same TXID and checksum."""
    want = primary.position(database)
    if not want:
        raise TestFailure(f"{primary.name} has no position for {database}")
    wait_until(lambda: replica.position(database) == want, seconds,
               lambda: f"{database}: {replica.name} at {replica.position(database) or 'nothing'}, {primary.name} at {want}"
                       f" (now {primary.position(database)})")
    return want


def first_difference(one, other):
    """None if the two files are equal, else a text naming the sizes and the pages that differ."""
    with open(one, "rb") as a, open(other, "rb") as b:
        left, right = a.read(), b.read()
    if left == right:
        return None
    page_size = int.from_bytes(left[16:18], "big") if len(left) >= 100 else 4096
    page_size = 65536 if page_size == 1 else max(page_size, 512)
    pages = [n // page_size + 1 for n in range(0, min(len(left), len(right)), page_size)
             if left[n:n + page_size] != right[n:n + page_size]]
    return f"sizes {len(left)} and {len(right)}, page size {page_size}, pages that differ: {len(pages)} {pages[:20]}"


class GuardedNode(Node):
    """`sluice mount --guardian`: `process` is the guardian, the node is its child, the worker."""

    def __init__(self, binary, root, name, primary_url=None, extra=()):
        super().__init__(binary, root, name, primary_url, ["--guardian", *extra])

    def worker(self):
        """Process id of the worker; None between two."""
        try:
            with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
                children = file.read().split()
        except OSError:
            return None
        for child in children:
            try:
                with open(f"/proc/{child}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if len(words) > 1 and words[1] == b"mount":
                return int(child)
        return None

    def kill_worker(self, number=signal.SIGKILL):
        """Its process id; None if there was none just now."""
        pid = self.worker()
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return None
        return pid

    def wait_worker(self, after=None, seconds=30):
        """Waits for a worker other than `after` that answers."""
        def there():
            pid = self.worker()
            return pid if pid not in (None, after) and self.get("/v1/health")[0] == 200 else None
        return wait_until(there, seconds, lambda: f"{self.name}: no worker after {after}\n{self.log_tail()}")

    def orphans(self):
        """Workers of this node whose guardian is gone."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if len(words) > 2 and words[1] == b"mount" and os.fsencode(self.mount) in words:
                found.append(int(entry))
        return found

    def kill(self):
        """Guardian and worker."""
        super().kill()
        for pid in self.orphans():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_until(lambda: not self.orphans(), 30, f"{self.name}: the workers end")
