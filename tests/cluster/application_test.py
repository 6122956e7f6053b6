"""`sluice mount … -- APP`: started when ready, told signals, its exit status passed on."""

import os
import signal
import subprocess
import unittest

from cases import BINARY, ClusterCase, Node, connect, fill, wait_until
from nodes import free_port, is_mounted


class Application(ClusterCase):
    def run_with(self, *application, extra=()):
        """A primary with an application; (process, node)."""
        node = Node(BINARY, self.root, "app")
        self.addCleanup(node.close)
        command = [BINARY, "mount", "--data", node.data, "--listen", f"127.0.0.1:{node.port}", *extra, node.mount,
                   "--", *application]
        with open(node.log_path, "wb") as log:
            node.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return node

    def finish(self, node, seconds=60):
        code = node.process.wait(seconds)
        self.assertFalse(is_mounted(node.mount), "the mount is left behind")
        return code

    def test_exit_codes(self):
        for script, code in (("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137)):
            node = self.run_with("sh", "-c", script)
            self.assertEqual(self.finish(node), code, node.log_tail())

    def test_application_that_cannot_start(self):
        self.assertEqual(self.finish(self.run_with("/no/such/program")), 127)
        self.assertEqual(self.finish(self.run_with(self.file("not-executable"))), 126)

    def test_application_finds_the_mount_ready(self):
        script = ("import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('CREATE TABLE t(x)');"
                  "db.execute('INSERT INTO t VALUES(1)'); db.commit(); db.close()")
        node = self.run_with("python3", "-c", script, os.path.join(self.root, "app", "a.db"))
        self.assertEqual(self.finish(node), 0, node.log_tail())
        self.assertTrue(os.path.exists(os.path.join(node.data, "fs", "a.db")))

    def test_signals_reach_the_application(self):
        ready = os.path.join(self.root, "ready")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            script = f"trap 'exit 7' TERM INT HUP USR1 USR2; : > {ready}; while :; do sleep 0.05; done"
            node = self.run_with("sh", "-c", script)
            wait_until(lambda: os.path.exists(ready), 30, f"the application runs\n{node.log_tail()}")
            node.process.send_signal(number)
            self.assertEqual(self.finish(node), 7, f"{number}\n{node.log_tail()}")
            os.unlink(ready)

    def test_application_of_a_replica_waits_until_it_has_caught_up(self):
        primary = self.node("primary")
        db = connect(primary.path("a.db"))
        fill(db, 500)
        db.close()
        seen = os.path.join(self.root, "seen")
        script = ("import sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
                  "open(sys.argv[2], 'w').write(str(db.execute('SELECT count(*) FROM t').fetchone()[0]))")
        node = self.run_with("python3", "-c", script, os.path.join(self.root, "app", "a.db"), seen,
                             extra=("--primary-url", primary.url))
        self.assertEqual(self.finish(node), 0, node.log_tail())
        with open(seen, encoding="ascii") as file:
            self.assertEqual(file.read(), "500")

    def test_waiting_for_the_primary_can_be_ended(self):
        node = self.run_with("sh", "-c", f": > {self.root}/started",
                             extra=("--primary-url", f"http://127.0.0.1:{free_port()}"))
        wait_until(lambda: "waits until this node is ready" in node.log_tail(), 30, "it waits")
        self.assertFalse(os.path.exists(self.root + "/started"))
        node.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.finish(node), 0, node.log_tail())
        self.assertFalse(os.path.exists(self.root + "/started"))

    def test_no_wait_sync(self):
        node = self.run_with("sh", "-c", "exit 5",
                             extra=("--no-wait-sync", "--primary-url", f"http://127.0.0.1:{free_port()}"))
        self.assertEqual(self.finish(node), 5, node.log_tail())

    def test_commands_of_the_configuration_run_in_order(self):
        trace = os.path.join(self.root, "trace")
        mount = os.path.join(self.root, "app")
        config = self.file("sluice.yml", f"""
fuse: {{dir: "{mount}"}}
data: {{dir: "{mount}-data"}}
http: {{addr: "127.0.0.1:{free_port()}"}}
exec:
  - cmd: "sh -c 'echo first >> {trace}'"
    if-candidate: true
  - cmd: "sh -c 'echo second >> {trace}; exit 3'"
""")
        os.makedirs(mount)
        self.sluice("mount", "--config", config, code=3)
        with open(trace, encoding="ascii") as file:
            self.assertEqual(file.read(), "first\nsecond\n")

    def test_mount_taken_away_from_outside(self):
        node = self.node("primary")
        subprocess.run(["umount", node.mount], check=True, timeout=30)
        self.assertEqual(node.process.wait(30), 1)
        self.assertIn("taken away from outside", node.log_tail())


if __name__ == "__main__":
    unittest.main()
