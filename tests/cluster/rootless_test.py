"""Nodes of a user without rights: mounted by fusermount3, on the plain path."""

import os
import shutil
import stat
import subprocess

from cases import BINARY, ClusterCase, Node, wait_until

USER = 65534
EVERYBODY = stat.S_IROTH | stat.S_IWOTH


class Rootless(ClusterCase):
    def setUp(self):
        super().setUp()
        os.chmod(self.root, 0o755)
        if os.stat("/dev/fuse").st_mode & EVERYBODY != EVERYBODY:
            self.open_device()
        # Where the executable is, others need not be allowed to look.
        self.binary = shutil.copy(BINARY, os.path.join(self.root, "sluice"))
        os.chmod(self.binary, 0o755)

    def open_device(self):
        """In this mount namespace only."""
        self.assertEqual(os.environ.get("SLUICE_OWN_MOUNTS"), "1", "run me by unshare --mount env SLUICE_OWN_MOUNTS=1 …")
        device = os.path.join(self.root, "fuse")
        os.mknod(device, 0o666 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        os.chmod(device, 0o666)
        subprocess.run(["mount", "--bind", device, "/dev/fuse"], check=True, timeout=30)
        self.addCleanup(subprocess.run, ["umount", "/dev/fuse"], check=True, timeout=30)

    def node_of(self, user, name, primary=None, extra=()):
        node = Node(self.binary, self.root, name, primary.url if primary else None, extra, user)
        self.addCleanup(node.close)
        return node

    def sqlite(self, path, statements):
        """Only the node's user may look into its mount."""
        done = subprocess.run(["sqlite3", "-batch", "-bail", path, statements], user=USER, group=USER, extra_groups=[],
                              capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def txid(self, node):
        return node.status()["databases"][0]["txid"]

    def wait_same(self, primary, replica):
        def same():
            mine, theirs = primary.status()["databases"], replica.status()["databases"]
            return mine and theirs and mine[0]["checksum"] == theirs[0].get("applied_checksum")
        wait_until(same, 30, "the replica follows")

    def test_two_nodes(self):
        primary = self.node_of(USER, "primary")
        replica = self.node_of(USER, "replica", primary)
        primary.start()
        replica.start()
        for node in (primary, replica):
            self.assertEqual(node.status()["io"], "plain")
            with open(f"/proc/{node.process.pid}/status", encoding="ascii") as file:
                self.assertIn(f"Uid:\t{USER}", file.read())
        database = primary.path("app.db")
        for mode in ("WAL", "DELETE", "WAL"):
            self.sqlite(database, f"PRAGMA journal_mode={mode}; CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES('{mode}')")
        wait_until(lambda: primary.status()["databases"], 10, "the database is known")
        self.wait_same(primary, replica)
        self.assertEqual(self.sqlite(replica.path("app.db"), "SELECT group_concat(x, ' ') FROM t"), "WAL DELETE WAL")
        # A node that was killed leaves a dead mount that its user can take away.
        primary.kill()
        primary.start()
        self.sqlite(database, "INSERT INTO t VALUES('again')")
        self.wait_same(primary, replica)
        self.assertEqual(self.sqlite(replica.path("app.db"), "SELECT count(*) FROM t; PRAGMA integrity_check"), "4\nok")
        replica.stop()
        primary.stop()

    def test_native_and_allow_other_say_what_is_missing(self):
        node = self.node_of(USER, "primary")

        def refused(code, *flags):
            done = subprocess.run(node.prefix + [self.binary, "mount", "--data", node.data, "--listen", "127.0.0.1:0", *flags,
                                                 node.mount], capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual(done.returncode, code, done.stderr)
            return done.stderr
        self.assertIn("CAP_SYS_ADMIN", refused(1, "--io", "native"))
        with open("/etc/fuse.conf", encoding="utf-8") as conf:
            permitted = any(line.strip() == "user_allow_other" for line in conf)
        if not permitted:
            self.assertIn("user_allow_other", refused(2, "--allow-other"))
