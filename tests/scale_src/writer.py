"""writer.py SECONDS SEED DATABASE...: one row at a time into one of them after the other; prints commits and the slowest in ms."""

import random
import sqlite3
import sys
import time


def main():
    seconds, chance, names = float(sys.argv[1]), random.Random(int(sys.argv[2])), sys.argv[3:]
    deadline = time.monotonic() + seconds
    commits, slowest = 0, 0.0
    while time.monotonic() < deadline:
        chance.shuffle(names)
        for name in names:
            begin = time.monotonic()
            connection = sqlite3.connect(name, timeout=30, isolation_level=None)
            connection.execute("INSERT INTO t(v) VALUES(?)", (f"row {chance.random()}",))
            connection.close()
            commits += 1
            slowest = max(slowest, time.monotonic() - begin)
    print(commits, slowest * 1000)


main()
