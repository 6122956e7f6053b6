"""Printing figures, and reading those of a process."""

import os

from nodes import TestFailure

TICKS = os.sysconf("SC_CLK_TCK")


class Figures:
    def __init__(self, limits):
        self.limits = limits
        self.beyond = []

    def show(self, name, value, unit, limit=None):
        print(f"{name:46s} {value:10.2f} {unit}" + (f"   (limit {limit})" if limit is not None else ""), flush=True)
        if limit is not None and value > limit:
            self.beyond.append(f"{name}: {value:.2f} {unit}, the limit is {limit}")

    def end(self):
        if self.limits and self.beyond:
            raise TestFailure("; ".join(self.beyond))


def memory_mb(node, key="VmRSS"):
    with open(f"/proc/{node.process.pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
    return 0.0


def descriptors(node):
    return len(os.listdir(f"/proc/{node.process.pid}/fd"))


def threads(node):
    return len(os.listdir(f"/proc/{node.process.pid}/task"))


def cpu_seconds(node):
    with open(f"/proc/{node.process.pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
