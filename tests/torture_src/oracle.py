"""Judges a moment of rest: are both nodes what they promise to be?"""

import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "harness"))
from nodes import TestFailure, first_difference, wait_same_position, wait_until  # noqa: E402


class Oracle:
    def __init__(self, worker, directory):
        self.worker = worker
        self.directory = directory
        self.ledgers = os.path.join(directory, "ledgers")
        self.checks = 0
        self.databases_compared = 0

    def judge(self, database, path, with_ledger=True):
        """The worker's verdict on one database file as a dict; TestFailure on any broken promise."""
        target = f"{database.id}:{database.profile}:{path}"
        command = [self.worker, "verify", "--ledgers", self.ledgers if with_ledger else "-", target]
        run = subprocess.run(command, capture_output=True, timeout=180, check=False)
        try:
            result = json.loads(run.stdout)
        except ValueError as error:
            raise TestFailure(f"verify of {path} said {run.stdout!r} {run.stderr!r}") from error
        if result["problems"]:
            raise TestFailure(f"{path}: " + "; ".join(result["problems"]))
        return result

    def presence(self, database):
        """absent, present or changing: what the churner last wrote down. Others are always present."""
        if database.profile != "churn":
            return "present"
        if not os.path.exists(os.path.join(self.ledgers, database.id)):
            return "absent"
        with open(os.path.join(self.ledgers, database.id), "rb") as ledger:
            ledger.seek(16)
            return ("absent", "present", "changing")[int.from_bytes(ledger.read(8), "little")]

    def check(self, databases, primary, replica, primary_path):
        """All writers are paused. `primary` and `replica` are None with --raw."""
        self.checks += 1
        folder = os.path.join(self.directory, f"check-{self.checks}")
        os.makedirs(folder)
        verdicts = {}
        for database in databases:
            presence = self.presence(database)
            if presence == "present":
                verdicts[database.id] = self._check_one(database, primary, replica, primary_path(database), folder)
            elif presence == "absent":
                self._check_absent(database, primary_path(database), replica)
        self._check_pairs(databases, verdicts)
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)

    def _check_one(self, database, primary, replica, path, folder):
        if primary is None:
            return self.judge(database, path)
        position = wait_same_position(primary, replica, database.path)
        on_primary = self.judge(database, path)
        on_replica = self.judge(database, replica.path(database.path))
        images = [os.path.join(folder, f"{database.id}.{node.name}") for node in (primary, replica)]
        for node, image in zip((primary, replica), images):
            node.export(database.path, image)
        difference = first_difference(*images)
        if difference:
            raise TestFailure(f"{database.path} at {position}: the exports of the nodes differ: {difference} ({folder})")
        for node in (primary, replica):
            if node.position(database.path) != position:
                raise TestFailure(f"{database.path}: {node.name} moved from {position} to {node.position(database.path)}"
                                  " while nobody wrote")
            node.verify(database.path)
        exported = self.judge(database, images[0])
        digests = {on_primary["digest"], on_replica["digest"], exported["digest"]}
        if len(digests) != 1:
            raise TestFailure(f"{database.path} at {position}: read through the primary, the replica and from the export"
                              f" give different content: {on_primary} {on_replica} {exported} ({folder})")
        for left in os.listdir(folder):
            if left.startswith(database.id + ".") and left.endswith(("-wal", "-shm", "-journal")):
                os.unlink(os.path.join(folder, left))
        self.databases_compared += 1
        return on_primary

    @staticmethod
    def _check_absent(database, path, replica):
        if os.path.exists(path):
            raise TestFailure(f"{path} is there again after its deletion")
        if replica is not None:
            wait_until(lambda: not os.path.exists(replica.path(database.path)), 60,
                       f"{database.path} disappears from the replica")

    @staticmethod
    def _check_pairs(databases, verdicts):
        """A transaction over two databases in rollback mode is in both or in neither (SQLite's super-journal)."""
        for database in databases:
            if not database.atomic_pairs or database.id not in verdicts:
                continue
            for key, number in verdicts[database.id]["pairs"].items():
                writer, partner = key.split(":")
                other = verdicts.get(partner, {"pairs": {}})["pairs"].get(f"{writer}:{database.id}", 0)
                if other != number:
                    raise TestFailure(f"{database.id} has {number} transactions of writer {writer} with {partner},"
                                      f" which has {other}")

    def compare_stopped(self, databases, primary, replica, scratch):
        """Both daemons are down: every database in DATA/fs is a plain SQLite database, the same on both nodes."""
        for database in databases:
            if self.presence(database) != "present":
                continue
            images = []
            for node in (primary, replica):
                image = os.path.join(scratch, f"{database.id}.{node.name}")
                source = os.path.join(node.data, "fs", database.path)
                for suffix in ("", "-wal", "-journal"):
                    if os.path.exists(source + suffix):
                        subprocess.run(["cp", source + suffix, image + suffix], check=True)
                images.append(image)
            digests = [self.judge(database, image)["digest"] for image in images]
            if digests[0] != digests[1]:
                raise TestFailure(f"{database.path}: the stopped nodes' files differ: {digests} ({scratch})")
            # Closing the judge's connection has checkpointed the copies.
            difference = first_difference(*images)
            if difference:
                raise TestFailure(f"{database.path}: the stopped nodes' files differ: {difference} ({scratch})")
