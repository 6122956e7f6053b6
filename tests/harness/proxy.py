"""A TCP proxy on loopback that a test can cut, stall and make corrupt bytes."""

import random
import socket
import threading


class Proxy:
    """Forwards connections on `port` to `target_port`. Thread-safe; close() ends its threads."""

    def __init__(self, target_port, seed=1):
        self.target_port = target_port
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.refusing = False
        self.corrupt_after = None
        self.closed = False
        self.sockets = set()
        self.forwarded = 0
        self.corrupted = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """Breaks all connections, in the middle of whatever they carry, and refuses new ones until mend()."""
        with self.lock:
            self.refusing = True
        self._drop()

    def stall(self):
        """Connections stay, nothing moves, until mend()."""
        self.open_gate.clear()

    def mend(self):
        with self.lock:
            self.refusing = False
        self.open_gate.set()

    def corrupt_one_byte(self, after):
        """Flips a bit of one byte, `after` more bytes from the primary."""
        with self.lock:
            self.corrupt_after = after

    def close(self):
        self.closed = True
        self.listener.close()
        self.open_gate.set()
        self._drop()

    def _drop(self):
        with self.lock:
            doomed, self.sockets = self.sockets, set()
        for s in doomed:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def _accept(self):
        while not self.closed:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                refuse = self.refusing
            try:
                if refuse:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            for s in (client, server):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.sockets |= {client, server}
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source, sink, from_primary):
        try:
            while data := source.recv(1 << 18):
                self.open_gate.wait()
                if from_primary:
                    data = self._maybe_corrupt(data)
                sink.sendall(data)
                self.forwarded += len(data)
        except OSError:
            pass
        for s in (source, sink):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _maybe_corrupt(self, data):
        with self.lock:
            if self.corrupt_after is None:
                return data
            if self.corrupt_after >= len(data):
                self.corrupt_after -= len(data)
                return data
            at, self.corrupt_after = self.corrupt_after, None
            self.corrupted += 1
            bit = 1 << self.random.randrange(8)
        return data[:at] + bytes([data[at] ^ bit]) + data[at + 1:]
