"""Thousands of small databases in subdirectories, on a primary and a replica."""

import os
import sqlite3
import subprocess
import sys
import time

from figures import Figures, cpu_seconds, descriptors, memory_mb, threads
from nodes import Node, TestFailure, wait_until

START_S, MEMORY_MB, IDLE_PERCENT, DESCRIPTORS = 5, 100, 1, 4096


def name_of(number, dirs):
    return f"d{number % dirs:03d}/t{number:05d}.db"


def seed(options, data):
    """Puts the databases where the primary finds them at its first start."""
    template = os.path.join(data, "template.db")
    connection = sqlite3.connect(template)
    connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);"
                             "INSERT INTO t(v) VALUES('first');")
    connection.close()
    with open(template, "rb") as file:
        content = file.read()
    os.unlink(template)
    for directory in range(min(options.dirs, options.databases)):
        os.makedirs(os.path.join(data, "fs", f"d{directory:03d}"))
    for number in range(options.databases):
        with open(os.path.join(data, "fs", name_of(number, options.dirs)), "wb") as file:
            file.write(content)


def positions(node):
    return {d["name"]: (d["txid"], d["checksum"]) for d in node.status()["databases"]}


def wait_replicated(primary, replica, count, seconds):
    def same():
        have = positions(replica)
        return len(have) == count and have == positions(primary)
    wait_until(same, seconds, lambda: f"the replica has {len(positions(replica))} of {count} databases, or not the newest",
               interval=0.2)


def timed_start(figures, node, what, database, limit):
    begin = time.monotonic()
    node.start(seconds=1200)
    figures.show(f"start of the {node.name} {what}", time.monotonic() - begin, "s", limit)
    connection = sqlite3.connect(f"file:{node.path(database)}?mode=ro", uri=True)
    connection.execute("SELECT count(*) FROM t").fetchone()
    connection.close()
    figures.show("  until the first query", time.monotonic() - begin, "s", limit)


def show_state(figures, node, when, limited):
    figures.show(f"{node.name} {when}: resident", memory_mb(node), "MB", MEMORY_MB if limited else None)
    figures.show(f"{node.name} {when}: descriptors", descriptors(node), "", DESCRIPTORS if limited else None)
    figures.show(f"{node.name} {when}: threads", threads(node), "")


def idle(figures, nodes, seconds, limit):
    before = [cpu_seconds(node) for node in nodes]
    time.sleep(seconds)
    for node, start in zip(nodes, before):
        figures.show(f"{node.name} idle: processor", 100 * (cpu_seconds(node) - start) / seconds, "%", limit)


def write_at_once(options, figures, primary, replica):
    """Each writer process serves some databases, opening and closing them as it goes."""
    chosen = options.random.sample(range(options.databases), min(options.writers, options.databases))
    processes = []
    for part in range(8):
        names = [primary.path(name_of(number, options.dirs)) for number in chosen[part::8]]
        if names:
            worker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "writer.py")
            processes.append(subprocess.Popen([sys.executable, "-B", worker, str(options.seconds), str(options.seed + part)]
                                              + names, stdout=subprocess.PIPE, text=True))
    try:
        results = [process.communicate(timeout=options.seconds + 120)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(len(result) != 2 for result in results):
        raise TestFailure("a writer failed")
    begin = time.monotonic()
    wait_replicated(primary, replica, options.databases, 120)
    figures.show(f"{len(chosen)} databases written at once", sum(int(r[0]) for r in results) / options.seconds, "commits/s")
    figures.show("  slowest commit with open and close", max(float(r[1]) for r in results), "ms")
    figures.show("  until the replica had it all", time.monotonic() - begin, "s")
    return chosen


def compare(options, primary, replica, chosen):
    """What readers see on both nodes, of some that were written and some that were not."""
    numbers = options.random.sample(chosen, min(10, len(chosen))) + [0, options.databases - 1]
    for number in numbers:
        rows = []
        for node in (primary, replica):
            connection = sqlite3.connect(f"file:{node.path(name_of(number, options.dirs))}?mode=ro", uri=True)
            rows.append(connection.execute("SELECT * FROM t").fetchall())
            if connection.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                raise TestFailure(f"{node.name}: {name_of(number, options.dirs)} is damaged")
            connection.close()
        if rows[0] != rows[1]:
            raise TestFailure(f"{name_of(number, options.dirs)}: {len(rows[0])} rows on the primary, {len(rows[1])} on the replica")


def run(options, root):
    figures = Figures(options.limits)
    primary = Node(options.binary, root, "primary")
    replica = Node(options.binary, root, "replica", primary_url=primary.url)
    print(f"# {options.databases} databases in {options.dirs} directories", flush=True)
    seed(options, primary.data)
    try:
        first = name_of(0, options.dirs)
        timed_start(figures, primary, "that finds them all new", first, None)
        show_state(figures, primary, "after that", False)
        begin = time.monotonic()
        replica.start()
        wait_replicated(primary, replica, options.databases, 1200)
        figures.show("first copy of all of them", time.monotonic() - begin, "s")
        for node in (primary, replica):
            show_state(figures, node, "after the copy", node is replica)
        for node in (replica, primary):
            begin = time.monotonic()
            node.stop(seconds=120)
            figures.show(f"stop of the {node.name}", time.monotonic() - begin, "s")
        for node in (primary, replica):
            timed_start(figures, node, "after a clean stop", first, START_S)
        wait_replicated(primary, replica, options.databases, 60)
        for node in (primary, replica):
            show_state(figures, node, "idle", True)
        idle(figures, (primary, replica), options.seconds, IDLE_PERCENT)
        chosen = write_at_once(options, figures, primary, replica)
        compare(options, primary, replica, chosen)
        for node in (primary, replica):
            show_state(figures, node, "after the writers", True)
        for node in (primary, replica):
            node.kill()
        for node in (primary, replica):
            timed_start(figures, node, "after SIGKILL", first, START_S)
        wait_replicated(primary, replica, options.databases, 60)
        compare(options, primary, replica, chosen)
        figures.end()
    finally:
        for node in (replica, primary):
            node.close()
