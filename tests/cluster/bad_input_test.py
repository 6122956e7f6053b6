"""Mistakes get an error that names them."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import unittest

from cases import ClusterCase, connect, count, fill, integrity, wait_same_position, wait_until
from nodes import free_port


HOLD_OPEN = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1])
db.execute("SELECT count(*) FROM t").fetchone()
print("open", flush=True)
time.sleep(600)
"""


class Configuration(ClusterCase):
    def mount(self, *arguments, code=2):
        _, err = self.sluice("mount", *arguments, code=code)
        return err

    def test_all_mistakes_of_a_file_with_line_and_key(self):
        config = self.file("sluice.yml", "fuse:\n  dri: /mnt\ndata:\n  retention: soon\ncolour: blue\n")
        err = self.mount("--config", config)
        self.assertIn(f"{config}:2: fuse.dri: is not a setting", err)
        self.assertIn(f"{config}:4: data.retention: 'soon' is not a duration", err)
        self.assertIn(f"{config}:5: colour: is not a setting", err)
        self.assertIn("no mount point", err)
        self.assertIn("no data directory", err)

    def test_flags(self):
        self.assertIn("--colour", self.mount("--colour", "/mnt"))
        self.assertIn("no data directory", self.mount("/mnt"))
        self.assertIn("neither reject nor wait", self.mount("--data", "d", "--replica-writes", "maybe", "/mnt"))
        self.assertIn("not native, plain or auto", self.mount("--data", "d", "--io", "fast", "/mnt"))
        self.assertIn("not a URL", self.mount("--data", "d", "--primary-url", "somewhere", "/mnt"))
        self.assertIn("--token-file", self.mount("--data", "d", "--listen", "0.0.0.0:1", "/mnt"))
        self.assertIn("No such file", self.mount("--data", "d", "--config", self.root + "/none.yml", "/mnt"))
        self.assertIn("is empty", self.mount("--data", "d", "--token-file", self.file("token"), "/mnt"))

    def test_litefs_file(self):
        mount = os.path.join(self.root, "m")
        os.makedirs(mount)
        config = self.file("litefs.yml", f"""
fuse:
  dir: "{mount}"
data:
  dir: "{mount}-data"
exit-on-error: true
http:
  addr: "127.0.0.1:${{SLUICE_TEST_PORT}}"
lease:
  type: "static"
  candidate: ${{SLUICE_TEST_REGION == 'ams'}}
  hostname: "localhost"
  advertise-url: "http://127.0.0.1:${{SLUICE_TEST_PORT}}"
exec: "true"
""")
        environment = {"SLUICE_TEST_PORT": str(free_port()), "SLUICE_TEST_REGION": "ams"}
        self.sluice("mount", "--config", config, environment=environment)


class Resources(ClusterCase):
    def test_data_directory_in_use(self):
        first = self.node("first")
        other = os.path.join(self.root, "other")
        os.makedirs(other)
        _, err = self.sluice("mount", "--data", first.data, "--listen", f"127.0.0.1:{free_port()}", other, code=1)
        self.assertIn("in use", err)
        self.assertIn(str(first.process.pid), err)

    def test_data_directory_of_another_format(self):
        data = os.path.join(self.root, "data")
        mount = os.path.join(self.root, "m")
        os.makedirs(data)
        os.makedirs(mount)
        for content in ("not json", json.dumps({"format": 999, "node_id": "0000000000000001"})):
            with open(os.path.join(data, "node.json"), "w", encoding="utf-8") as file:
                file.write(content)
            _, err = self.sluice("mount", "--data", data, "--listen", f"127.0.0.1:{free_port()}", mount, code=1)
            self.assertIn("node.json", err)

    def test_port_in_use(self):
        first = self.node("first")
        other = os.path.join(self.root, "other")
        os.makedirs(other)
        _, err = self.sluice("mount", "--data", other + "-data", "--listen", f"127.0.0.1:{first.port}", other, code=1)
        self.assertIn(f"127.0.0.1:{first.port}", err)

    def test_mount_point_problems(self):
        data = os.path.join(self.root, "data")
        listen = f"127.0.0.1:{free_port()}"
        full = os.path.join(self.root, "full")
        os.makedirs(full)
        with open(os.path.join(full, "file"), "w", encoding="utf-8"):
            pass
        for point, words in ((self.root + "/none", "no such directory"), (full, "not empty"),
                             (self.file("file"), "not a directory")):
            _, err = self.sluice("mount", "--data", data, "--listen", listen, point, code=2)
            self.assertIn(words, err)
            self.assertIn(point, err)
        first = self.node("first")
        _, err = self.sluice("mount", "--data", data, "--listen", listen, first.mount, code=2)
        self.assertIn(first.mount, err)

    def test_file_named_like_a_database(self):
        primary, replica = self.pair()
        with open(primary.path("text.db"), "w", encoding="utf-8") as file:
            file.write("this is not SQLite")
        db = connect(primary.path("real.db"))
        self.addCleanup(db.close)
        fill(db, 10)
        wait_same_position(primary, replica, "real.db")
        self.assertEqual([d["name"] for d in primary.status()["databases"]], ["real.db"])

    def damaged_restart(self, damage, mode="wal"):
        """Two databases on a pair; the primary is killed, the backing file of one damaged, the primary started again."""
        primary, replica = self.pair()
        for name in ("a.db", "other.db"):
            db = connect(primary.path(name))
            db.execute(f"PRAGMA journal_mode={mode}")
            db.execute("PRAGMA wal_autocheckpoint=0")
            fill(db, 300)
            if name == "other.db":
                db.close()
            else:
                holder = subprocess.Popen([sys.executable, "-c", HOLD_OPEN, primary.path(name)], stdout=subprocess.PIPE)
                self.addCleanup(holder.stdout.close)
                self.addCleanup(holder.wait)
                self.addCleanup(holder.kill)
                self.assertEqual(holder.stdout.readline(), b"open\n")
                db.close()
            wait_same_position(primary, replica, name)
        primary.kill()
        holder.kill()
        holder.wait()
        damage(os.path.join(primary.data, "fs", "a.db"))
        primary.start()
        db = connect(primary.path("other.db"))
        self.addCleanup(db.close)
        fill(db, 10, start=300)
        wait_same_position(primary, replica, "other.db")
        return primary, replica

    def test_corrupt_header(self):
        def damage(path):
            os.unlink(path + "-wal")
            with open(path, "r+b") as file:
                file.write(b"garbage!" * 16)

        primary, replica = self.damaged_restart(damage)
        with self.assertRaisesRegex(sqlite3.DatabaseError, "not a database"):
            count(primary.path("a.db"))
        self.assertEqual(count(replica.path("a.db")), 300)
        with open(primary.log_path, encoding="utf-8") as log:
            self.assertIn("a.db: the file is no SQLite database any more; replicas stay at", log.read())
        source = self.database_file("good.db", rows=7)
        with open(source, "rb") as good, open(primary.path("a.db"), "wb") as file:
            file.write(good.read())
        wait_until(lambda: count(replica.path("a.db")) == 7, 30, "a good copy goes to the replica")
        wait_same_position(primary, replica, "a.db")

    def test_truncated_wal(self):
        def damage(path):
            os.truncate(path + "-wal", os.path.getsize(path + "-wal") // 2)

        primary, replica = self.damaged_restart(damage)
        rows = count(primary.path("a.db"))
        self.assertLess(rows, 300)
        wait_same_position(primary, replica, "a.db")
        self.assertEqual(count(replica.path("a.db")), rows)
        self.assertEqual(integrity(replica.path("a.db")), "ok")


class Network(ClusterCase):
    def test_unreachable_primary(self):
        node = self.node("replica", extra=("--primary-url", f"http://127.0.0.1:{free_port()}"))
        wait_until(lambda: node.status()["primary"]["last_error"], 30, "the reason is shown")
        self.assertFalse(node.status()["primary"]["connected"])
        self.assertEqual(node.get("/v1/health")[0], 200)
        code, body = node.get("/v1/ready")
        self.assertEqual(code, 503)
        self.assertIn(b"not connected to the primary", body)
        out, _ = self.sluice("status", "--url", node.url)
        self.assertIn("NOT connected", out)
        node.stop()

    def test_primary_that_comes_later(self):
        port = free_port()
        replica = self.node("replica", extra=("--primary-url", f"http://127.0.0.1:{port}"))
        primary = self.node("primary", start=False)
        primary.port = port
        primary.start()
        replica.wait_ready()

    def test_tokens(self):
        token = self.file("token", "correct horse\n")
        wrong = self.file("wrong", "battery staple\n")
        primary = self.node("primary", extra=("--token-file", token))
        _, err = self.sluice("status", "--url", primary.url, code=1)
        self.assertIn("token", err)
        self.sluice("status", "--url", primary.url, "--token-file", wrong, code=1)
        self.sluice("status", "--url", primary.url, "--token-file", token)
        self.sluice("status", "--url", primary.url, environment={"SLUICE_TOKEN_FILE": token})
        stranger = self.node("stranger", primary, extra=("--token-file", wrong))
        status = ("status", "--json", "--url", stranger.url, "--token-file", wrong)
        wait_until(lambda: json.loads(self.sluice(*status)[0])["primary"]["last_error"], 30, "it is refused")
        friend = self.node("friend", primary, extra=("--token-file", token))
        friend.wait_ready()

    def test_garbage_on_the_port(self):
        primary, replica = self.pair()
        db = connect(primary.path("a.db"))
        self.addCleanup(db.close)
        fill(db, 10)
        upgrade = (b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: sluice\r\n\r\n")
        for garbage in (b"\x16\x03\x01\x02\x00" + os.urandom(500), b"\0" * 100_000, b"GET / HTTP/9.9\r\n\r\n",
                        upgrade + os.urandom(10_000), upgrade + b"\xff" * 10_000, upgrade):
            with socket.create_connection(("127.0.0.1", primary.port), timeout=30) as s:
                try:
                    s.sendall(garbage)
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(65536):
                        pass
                except (ConnectionResetError, BrokenPipeError):
                    pass
        fill(db, 10, start=10)
        wait_same_position(primary, replica, "a.db")
        self.assertEqual(primary.get("/v1/health")[0], 200)

    def test_unknown_addresses(self):
        primary = self.node("primary")
        for method, path, code in (("GET", "/", 404), ("GET", "/v1/databases/none.db/export", 404),
                                   ("POST", "/v1/status", 405), ("GET", "/v1/databases/a%2F..%2Fb/log", 400),
                                   ("POST", "/v1/databases/none.db/verify", 404), ("GET", "/v1/stream", 426)):
            got, body = primary.request(method, path)
            self.assertEqual(got, code, path)
            self.assertIn("message", json.loads(body))


if __name__ == "__main__":
    unittest.main()
